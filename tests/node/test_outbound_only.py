"""Nodes that take no connections: tasks and blobs through their core node, in one trio loop, over real sockets."""

import os
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

import ioc_node
from ioc_node.config import BulkConfig
from ioc_node.errors import ConfigError
from ioc_wire.authority import Role
from ioc_wire.market import Contact
from tests.node.conftest import MakeHome
from tests.node.three_nodes import HELLO, MIB, Three

NO_OFFLOADS = BulkConfig(offloads=())


@asynccontextmanager
async def open_town(make_home: MakeHome, *, provider: bool, consumer: bool) -> AsyncIterator[Three]:
    """A core node; a provider and a consumer that are outbound-only or not."""
    core_config = make_home("core", "regional")
    first = (f"127.0.0.1:{core_config.port}",)
    async with AsyncExitStack() as stack:
        core = await stack.enter_async_context(ioc_node.open_node(core_config))
        provides = await stack.enter_async_context(
            ioc_node.open_node(
                make_home("provider", "provider", bootstrap=first, outbound_only=provider, bulk=NO_OFFLOADS)
            )
        )
        consumes = await stack.enter_async_context(
            ioc_node.open_node(
                make_home("consumer", "consumer", bootstrap=first, outbound_only=consumer, bulk=NO_OFFLOADS)
            )
        )
        with trio.fail_after(15):
            await consumes.wait_joined()
            assert provides.provider is not None
            await provides.provider.home.wait_published()
            while not (await consumes.find(ioc_node.Demand(cores=1, runtimes="wasm"))).found.offers:
                await trio.sleep(0.05)
        yield Three(core, provides, consumes)


@pytest.mark.parametrize(
    ("provider", "consumer"),
    [(True, True), (True, False), (False, True)],
    ids=["both", "provider", "consumer"],
)
async def test_a_task_and_its_data_find_their_way(
    make_home: MakeHome, tmp_path: Path, provider: bool, consumer: bool
) -> None:
    async with open_town(make_home, provider=provider, consumer=consumer) as town:
        task = await town.consumer.submit(ioc_node.TaskSpec.load(HELLO))
        with trio.fail_after(30):
            result = await task.result()
        assert {output.path for output in result.outputs} == {"greeting.txt"}
        assert result.receipt is not None

        payload = os.urandom(3 * MIB + 17)
        (tmp_path / "data").write_bytes(payload)
        for holder, reader in ((town.provider, town.consumer), (town.consumer, town.provider)):
            (tmp_path / "data").write_bytes(payload + holder.identity.public_key)
            with trio.fail_after(30):
                added = await holder.add(tmp_path / "data")
                got = await reader.get(added.blob, tmp_path / "copy")
            assert (tmp_path / "copy").read_bytes() == payload + holder.identity.public_key
            assert got.transport.startswith("quic")
        near = await town.consumer.find(
            ioc_node.Demand(cores=1, runtimes="wasm", max_rtt_ms=2000), policy="latency"
        )
        assert [offer.rtt_us > 0 for offer in near.found.offers] == [True]
        relaying = town.core.relaying
        assert relaying is not None
        relayed = sum(row.datagram_bytes for row in relaying.told().rows)
        if provider and consumer:
            with trio.fail_after(5):
                while (relayed := sum(row.datagram_bytes for row in relaying.told().rows)) < 2 * 3 * MIB:
                    await trio.sleep(0.1)
        else:
            assert relayed == 0  # one of the two listens, no relay is asked
        assert sum(row.circuit_bytes for row in relaying.told().rows) > (0 if provider else -1)


async def run_node(config: ioc_node.NodeConfig, scope: trio.CancelScope, *, task_status: Any) -> None:
    with scope:
        async with ioc_node.open_node(config) as node:
            task_status.started(node)
            await trio.sleep_forever()


async def test_a_hidden_provider_is_found_again_at_its_next_home(make_home: MakeHome) -> None:
    demand = ioc_node.Demand(cores=1, runtimes="wasm")
    cores: dict[bytes, trio.CancelScope] = {}
    at: tuple[str, ...] = ()
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        for name in ("core-1", "core-2"):
            config = make_home(name, "regional", bootstrap=at)
            at = (*at, f"127.0.0.1:{config.port}")
            scope = trio.CancelScope()
            core: ioc_node.Node = await nursery.start(run_node, config, scope)
            cores[core.identity.public_key] = scope

        async def joined(name: str, role: Role) -> ioc_node.Node:
            config = make_home(name, role, bootstrap=at, outbound_only=True)
            return await stack.enter_async_context(ioc_node.open_node(config))

        provider, consumer = await joined("provider", "provider"), await joined("consumer", "consumer")

        async def home_of_offer(among: Collection[bytes]) -> Contact:
            with trio.fail_after(30):
                while True:
                    found = (await consumer.find(demand)).found.offers
                    if found and found[0].provider.via in among:
                        return found[0].provider
                    await trio.sleep(0.1)

        with trio.fail_after(20):
            await consumer.wait_joined()
            assert provider.provider is not None
            await provider.provider.home.wait_published()
            while len(provider.links.links) < 2:  # the second core node is known to it
                await trio.sleep(0.05)
        offered = await home_of_offer(cores)
        assert offered.via is not None
        cores.pop(offered.via).cancel()
        await home_of_offer(cores)
        with trio.fail_after(30):
            stale = await consumer.links.reach(offered)  # what was offered before the move
            assert stale.peer.key == provider.identity.public_key
            task = await consumer.submit(ioc_node.TaskSpec.load(HELLO))
            assert (await task.result()).outputs
        nursery.cancel_scope.cancel()


async def test_status_says_how_a_hidden_node_is_reached(make_home: MakeHome) -> None:
    async with open_town(make_home, provider=True, consumer=True) as town:
        core = town.core.identity.name[:11]
        assert town.provider.status().reached == f"through core node {core} (outbound only)"
        assert town.core.status().reached == ""
        cut = make_home("cut", "consumer", bootstrap=("127.0.0.1:9",), outbound_only=True)
        async with ioc_node.open_node(cut) as alone:
            assert alone.status().reached == "by nobody: no core node is linked (outbound only)"


async def test_a_core_node_cannot_be_outbound_only(make_home: MakeHome) -> None:
    config = make_home("core", "regional")
    (config.home / "config.toml").write_text('role = "regional"\noutbound_only = true\n')
    with pytest.raises(ConfigError, match="outbound_only: a regional node has to be reached by others"):
        ioc_node.NodeConfig.load(config.home)
