"""What a node still knows after it was stopped and started again."""

import trio

import ioc_node
from ioc_node.runtime.store import PeerMemory
from tests.node.conftest import MakeHome


async def test_a_node_finds_its_network_again_though_its_bootstrap_peer_is_gone(make_home: MakeHome) -> None:
    first = make_home("first", "regional")
    bootstrap = (f"127.0.0.1:{first.port}",)
    second = make_home("second", "industry", bootstrap=bootstrap)
    member = make_home("member", "consumer", bootstrap=bootstrap)
    async with ioc_node.open_node(second) as core:
        async with ioc_node.open_node(first):
            with trio.fail_after(20):
                await core.wait_joined()
                async with ioc_node.open_node(member) as node:
                    await node.wait_joined()
                    while len(PeerMemory(node.store).load_peers()) < 2:
                        await trio.sleep(0.02)
        async with ioc_node.open_node(member) as node:
            with trio.fail_after(20):
                await node.wait_joined()
            assert [link.peer.key for link in node.links.links.values()] == [core.identity.public_key]


async def test_a_core_node_still_holds_the_records_of_others(make_home: MakeHome) -> None:
    core_config = make_home("core", "regional")
    async with ioc_node.open_node(core_config):
        config = make_home("provider", "provider", bootstrap=(f"127.0.0.1:{core_config.port}",))
        async with ioc_node.open_node(config) as provider:
            with trio.fail_after(20):
                await provider.wait_joined()
                (row,) = await provider.register()
                while row.stored < 2:
                    (row,) = await provider.register()
    async with ioc_node.open_node(core_config) as core:
        with trio.fail_after(5):
            while core.status().records_stored == 0:
                await trio.sleep(0.01)
        assert (await core.resolve(row.cid)).record.key == provider.identity.public_key
