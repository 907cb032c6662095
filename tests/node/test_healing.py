"""A network whose bootstrap node is gone for good comes up again from what its nodes remember."""

from contextlib import AsyncExitStack

import msgspec
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
