"""Nodes that die and come back: the network, and what is under way in it, get over it."""

import sqlite3
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import trio

from ioc_node.client import RemoteNode
from ioc_node.errors import NodeError
from ioc_node.tasks.definition import TaskSpec
from ioc_testnet.network import Testnet, open_testnet
from ioc_testnet.programs import program_path
from ioc_testnet.topology import NodePlan, Topology
from ioc_wire.metering import verify_receipt
from ioc_wire.tasks import ENDED
from tests.testnet.command import processes_in

SECONDS_MAX = 60


@asynccontextmanager
async def short_testnet(*, start: bool = True) -> AsyncIterator[Testnet]:
    with tempfile.TemporaryDirectory(prefix="ioc-t-") as temp, trio.fail_after(SECONDS_MAX):
        async with open_testnet("small", folder=Path(temp) / "net", start=start) as net:
            yield net


def sleeper(seconds: int) -> TaskSpec:
    document = {
        "name": "sleeper",
        "executor": {
            "runtime": "wasm",
            "program": f"file:{program_path('sleeper')}",
            "command": ["sleeper", str(seconds)],
        },
        "resources": {"cores": 1, "memory_mib": 16, "disk_mib": 1},
        "limits": {"wall_seconds": 60},
    }
    return TaskSpec.parse(document, folder=Path("/"))


async def test_a_task_whose_provider_is_killed_runs_elsewhere_and_is_settled_once() -> None:
    async with short_testnet() as net:
        await net.wait_joined()
        await net.wait_offered(2, "consumer-1")
        async with net["consumer-1"].client() as consumer:
            task = await consumer.submit(sleeper(3))
            places: list[str] = []
            async with consumer.follow(task) as news:
                async for one in news:
                    if one.event.change == "state" and one.event.state == "RUNNING":
                        places.append(one.place)
                        if len(places) == 1:
                            (victim,) = [node for node in net if one.place in node.saved.identifiers]
                            await victim.kill()
                            assert not victim.alive
            ended = await consumer.result(task)
            assert ended.state == "COMPLETE", ended
            assert len(places) == 2
            assert places[0] != places[1]
            (receipt,) = ended.receipts
            assert verify_receipt(receipt).cid == places[1]
            await victim.start()
            await _until_provider_has_no_open_task(victim.client)
            found = await consumer.receipts(verify=True)
            assert [row.fault for row in found.rows] == [""]
            (row,) = [row for row in await consumer.tasks() if row.task == task]
            assert (row.state, row.place, row.attempt) == ("COMPLETE", places[1], 2)


async def _until_provider_has_no_open_task(client: object) -> None:
    assert callable(client)
    async with client() as node:
        assert isinstance(node, RemoteNode)
        while any(row.state not in ENDED for row in await node.tasks()):
            await trio.sleep(0.1)


async def test_a_node_whose_bootstrap_peers_are_down_says_so_and_joins_when_one_returns() -> None:
    async with short_testnet(start=False) as net:
        lonely = net["consumer-1"]
        await lonely.start()
        async with lonely.client() as node:
            await trio.sleep(0.5)
            before = await node.status()
            assert before.joined == 0
            assert f"127.0.0.1:{net['regional-1'].port}" in before.bootstrap
            await net["regional-1"].start()
            while not (now := await node.status()).joined:
                await trio.sleep(0.05)
            assert now.servers_known >= 1
            assert now.bootstrap != before.bootstrap


def remembered(home: Path) -> int:
    """Peers that a node will know after a restart."""
    with closing(sqlite3.connect(f"file:{home / 'node.db'}?mode=ro", uri=True)) as database:
        (count,) = database.execute("SELECT count(*) FROM known_peers").fetchone()
    return int(count)


async def test_a_core_node_that_was_learnt_of_survives_a_restart() -> None:
    pair = Topology(
        name="pair",
        nodes=(
            NodePlan(name="regional-1", role="regional", prefix="cn.r3301"),
            NodePlan(name="regional-2", role="regional", prefix="cn.r1101"),
            NodePlan(name="consumer-1", role="consumer", prefix="cn.r3301", under="regional-1"),
        ),
    )
    with tempfile.TemporaryDirectory(prefix="ioc-t-") as temp, trio.fail_after(SECONDS_MAX):
        async with open_testnet(pair, folder=Path(temp) / "net") as net:
            await net.wait_joined()
            consumer = net["consumer-1"]
            while remembered(consumer.home) < 2:
                await trio.sleep(0.05)
            await consumer.stop()
            await net["regional-1"].stop()  # its only bootstrap peer
            await consumer.start()
            async with consumer.client() as node:
                while not (await node.status()).joined:
                    await trio.sleep(0.05)


async def test_a_network_that_fails_to_start_leaves_nothing() -> None:
    with tempfile.TemporaryDirectory(prefix="ioc-t-") as temp:
        folder = Path(temp) / "net"
        with pytest.raises(NodeError, match=r"provider-1 did not start: .*0644"):
            await _start_with_open_key(folder)
        assert not folder.exists()
        assert processes_in(folder) == []


async def _start_with_open_key(folder: Path) -> None:
    async with open_testnet("small", folder=folder, start=False) as net:
        (net["provider-1"].home / "node.key").chmod(0o644)
        await net.start()
