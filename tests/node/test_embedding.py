"""A plain trio program with nodes inside: what docs/embedding.md shows."""

import os
from pathlib import Path

import pytest
import trio

import ioc_node
from ioc_node.errors import ConfigError, KeyFileUnsafe, NodeError, PortInUse
from ioc_wire.errors import NotFound
from ioc_wire.metering import verify_receipt
from tests.node.conftest import MakeHome

HELLO = Path(__file__).parents[2] / "examples" / "hello.toml"


async def test_embedded_nodes_run_a_task(make_home: MakeHome, tmp_path: Path) -> None:
    core_config = make_home("core", "regional")
    first = (f"127.0.0.1:{core_config.port}",)
    async with (
        ioc_node.open_node(core_config),
        ioc_node.open_node(make_home("provider", "provider", bootstrap=first)) as provider,
        ioc_node.open_node(make_home("consumer", "consumer", bootstrap=first)) as node,
    ):
        with trio.fail_after(30):
            await node.wait_joined()
            assert provider.provider is not None
            await provider.provider.home.wait_published()
            (host,) = provider.provider.registrar.resources

            resolved = await _until_found(node, host.cid)
            assert resolved.record.key == provider.identity.public_key

            demand = ioc_node.Demand(cores=1, runtimes="wasm")
            offers = await _until_offered(node, demand)
            assert offers.found.offers[0].provider.key == provider.identity.public_key

            task = await node.submit(ioc_node.TaskSpec.load(HELLO))
            states = [told.event.state async for told in task.events() if told.event.change == "state"]
            result = await task.result()
            assert states[0] == "QUEUED"
            assert states[-1] == "COMPLETE"
            assert result.receipt is not None
            usage = verify_receipt(result.receipt)
            assert usage.task == task.id
            assert usage.provider == provider.identity.public_key
            (output,) = result.outputs
            await node.bulk.store.export(output.blob, tmp_path / "greeting.txt")
            assert "world" in (tmp_path / "greeting.txt").read_text()
            await _until(lambda: provider.ledger.totals().receipts == 1)


async def _until_found(node: ioc_node.Node, cid: str) -> object:
    while True:
        try:
            return await node.resolve(cid)
        except NotFound:
            await trio.sleep(0.05)


async def _until_offered(node: ioc_node.Node, demand: object) -> object:
    while not (found := await node.find(demand)).found.offers:
        await trio.sleep(0.05)
    return found


async def _until(condition: object) -> None:
    while not condition():
        await trio.sleep(0.02)


async def test_a_port_in_use_is_named(make_home: MakeHome) -> None:
    first = make_home("first", "regional")
    second = make_home("second", "regional")
    taken = ioc_node.NodeConfig(role="regional", home=second.home, port=first.port)
    async with ioc_node.open_node(first):
        with pytest.raises(PortInUse, match=str(first.port)):
            async with ioc_node.open_node(taken):
                pass


async def test_one_home_has_one_node(make_home: MakeHome) -> None:
    config = make_home("only", "consumer")
    async with ioc_node.open_node(config):
        with pytest.raises(NodeError, match=str(os.getpid())):
            async with ioc_node.open_node(config):
                pass


async def test_a_provider_that_offers_nothing_is_refused(make_home: MakeHome) -> None:
    config = make_home("empty", "provider")
    empty = ioc_node.NodeConfig(role="provider", home=config.home, port=config.port)
    with pytest.raises(ConfigError, match="offers nothing"):
        async with ioc_node.open_node(empty):
            pass


async def test_a_key_file_that_others_can_read_is_refused(make_home: MakeHome) -> None:
    config = make_home("open", "consumer")
    (config.home / "node.key").chmod(0o644)
    with pytest.raises(KeyFileUnsafe, match="chmod 600"):
        async with ioc_node.open_node(config):
            pass


async def test_a_wildcard_address_needs_one_that_others_can_dial(make_home: MakeHome) -> None:
    config = make_home("wild", "consumer")
    wild = ioc_node.NodeConfig(role="consumer", home=config.home, port=config.port, host="0.0.0.0")
    with pytest.raises(ConfigError, match="advertise"):
        async with ioc_node.open_node(wild):
            pass


async def test_joins_by_itself_when_its_bootstrap_peer_returns(make_home: MakeHome) -> None:
    core = make_home("core", "regional")
    async with ioc_node.open_node(
        make_home("late", "consumer", bootstrap=(f"127.0.0.1:{core.port}",))
    ) as node:
        with trio.fail_after(20):
            await _until(lambda: "down" in node.status().bootstrap)
            assert node.status().joined == 0
            async with ioc_node.open_node(core):
                await node.wait_joined()
                await _until(lambda: node.status().servers_known == 1)
                assert "joined" in node.status().bootstrap
