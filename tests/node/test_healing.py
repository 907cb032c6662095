"""A network whose bootstrap node is gone for good comes up again from what its nodes remember."""

from contextlib import AsyncExitStack

import msgspec
import pytest
import trio

import ioc_node
from ioc_node.config import NodeConfig
from tests.node.conftest import MakeHome


async def open_all(stack: AsyncExitStack, configs: list[NodeConfig]) -> list[ioc_node.Node]:
    return [await stack.enter_async_context(ioc_node.open_node(config)) for config in configs]


async def offered(consumer: ioc_node.Node) -> int:
    """How many offers there are, once there are any."""
    while True:
        try:
            found = await consumer.find(ioc_node.Demand(cores=1, runtimes="wasm"))
        except ioc_node.errors.PeerUnreachable:
            found = None
        if found is not None and found.found.offers:
            return len(found.found.offers)
        await trio.sleep(0.05)


async def test_nodes_find_each_other_again_without_their_bootstrap_node(make_home: MakeHome) -> None:
    first = make_home("first", "regional")
    address = (f"127.0.0.1:{first.port}",)
    others = [
        make_home("second", "regional", bootstrap=address),
        make_home("provider", "provider", bootstrap=address),
        make_home("consumer", "consumer", bootstrap=address),
    ]
    with trio.fail_after(60):
        async with AsyncExitStack() as stack:
            _, second, provider, consumer = await open_all(stack, [first, *others])
            assert await offered(consumer) == 1
            key = second.identity.public_key
            assert provider.provider is not None
            while not all(
                any(row[0] == key for row in node.store.fetch("SELECT key FROM known_peers"))
                for node in (provider, consumer)
            ):
                await trio.sleep(0.05)
        async with AsyncExitStack() as stack:
            left = [msgspec.structs.replace(config, bootstrap=()) for config in others]
            _, provider, consumer = await open_all(stack, left)
            assert await offered(consumer) == 1
            assert provider.provider is not None
            await provider.provider.home.wait_published()
            assert provider.provider.home.link is not None
            assert provider.provider.home.link.peer.key == key


@pytest.mark.slow
async def test_core_nodes_that_all_restart_at_once_are_one_network_again(make_home: MakeHome) -> None:
    """Without bootstrap addresses the second time; the provider and the consumer live on."""
    first = make_home("first", "regional")
    address = (f"127.0.0.1:{first.port}",)
    cores = [first, *(make_home(name, "regional", bootstrap=address) for name in ("second", "third"))]
    edges = [
        make_home("provider", "provider", bootstrap=address),
        make_home("consumer", "consumer", bootstrap=address),
    ]
    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.deadline = trio.current_time() + 60

        async def begin(configs: list[NodeConfig], stop: trio.Event) -> list[ioc_node.Node]:
            return [await nursery.start(live, config, stop) for config in configs]

        stop, last = trio.Event(), trio.Event()
        nodes = await begin(cores, stop)
        provider, consumer = await begin(edges, last)
        assert await offered(consumer) == 1
        await until_one(nodes)
        digest = nodes[0].status().catalogue_digest
        stop.set()
        for node in nodes:
            while await is_open(node):
                await trio.sleep(0.05)
        nodes = await begin([msgspec.structs.replace(core, bootstrap=()) for core in cores], last)
        await until_one(nodes)
        assert await offered(consumer) == 1
        assert provider.provider is not None
        while provider.provider.home.link is None:
            await trio.sleep(0.05)
        assert nodes[0].status().catalogue_digest == digest
        last.set()
    assert not nursery.cancel_scope.cancelled_caught


async def live(config: NodeConfig, stop: trio.Event, *, task_status: trio.TaskStatus[ioc_node.Node]) -> None:
    async with ioc_node.open_node(config) as node:
        task_status.started(node)
        await stop.wait()


async def is_open(node: ioc_node.Node) -> bool:
    try:
        stream = await trio.open_tcp_stream("127.0.0.1", node.config.port)
    except OSError:
        return False
    await stream.aclose()
    return True


async def until_one(cores: list[ioc_node.Node]) -> None:
    """Wait until all core nodes are linked with each other and hold the same one record."""
    keys = {node.identity.public_key for node in cores}
    while True:
        told = [node.status() for node in cores]
        linked = all(keys <= {*node.links.links, node.identity.public_key} for node in cores)
        same = {(status.catalogue_records, status.catalogue_digest) for status in told}
        if linked and len(same) == 1 and told[0].catalogue_records == 1:
            return
        await trio.sleep(0.05)
