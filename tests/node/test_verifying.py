"""Two core nodes are compared: an honest pair agrees, one that leaves something out is named."""

from contextlib import AsyncExitStack

import msgspec
import pytest
import trio

import ioc_node
from ioc_node import verifying
from ioc_node.config import GossipConfig, NodeConfig
from ioc_node.errors import PeerUnreachable
from ioc_node.runtime.links import Link
from ioc_wire.market import FindOffers, OffersFound
from tests.node.conftest import MakeHome

DEMAND = ioc_node.Demand(cores=1, runtimes="wasm")


async def test_a_core_node_that_leaves_out_a_host_is_named(
    make_home: MakeHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "PAUSE_SECONDS", 0.1)
    async with AsyncExitStack() as stack:
        honest_config = make_home("honest", "regional")
        first = (f"127.0.0.1:{honest_config.port}",)
        honest = await stack.enter_async_context(ioc_node.open_node(honest_config))
        node = await stack.enter_async_context(
            ioc_node.open_node(make_home("consumer", "consumer", bootstrap=first))
        )
        with trio.fail_after(10):
            await node.wait_joined()
        with pytest.raises(PeerUnreachable, match="a second core node is needed"):
            await node.find(DEMAND, verify=True)
        other = await stack.enter_async_context(
            ioc_node.open_node(make_home("other", "industry", bootstrap=first))
        )
        provider = await stack.enter_async_context(
            ioc_node.open_node(make_home("provider", "provider", bootstrap=first))
        )
        assert provider.provider is not None
        await provider.provider.home.wait_published()
        with trio.fail_after(20):
            while True:
                try:
                    found = await node.find(DEMAND, verify=True)
                except PeerUnreachable:  # the other core node is not known here yet
                    await trio.sleep(0.1)
                    continue
                if found.found.offers and found.verdict is not None and found.verdict.conclusive:
                    break
                await trio.sleep(0.1)
        assert found.verdict.omissions == ()
        assert set(found.verdict.cores) == {honest.identity.name[:11], other.identity.name[:11]}

        assert other.core is not None
        answer = other.core.answer

        async def lie(link: Link, message: FindOffers) -> OffersFound:
            return msgspec.structs.replace(await answer(message), offers=())

        handlers = other.links._handlers
        handlers._answers[FindOffers] = handlers._answers[FindOffers]._replace(answer=lie)
        found = await node.find(DEMAND, verify=True)
        assert found.verdict is not None
        (omission,) = found.verdict.omissions
        assert omission.core == other.identity.name[:11]
        assert omission.cid.startswith("ioc:")
        assert found.verdict.comparisons == verifying.COMPARISONS
        own = await honest.find(DEMAND, verify=True)  # a core node compares its own answer
        assert own.verdict is not None
        assert own.verdict.cores == (verifying.OWN, other.identity.name[:11])
        assert [one.core for one in own.verdict.omissions] == [other.identity.name[:11]]


async def test_one_that_holds_only_a_part_is_not_what_a_full_core_node_is_compared_with(
    make_home: MakeHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "PAUSE_SECONDS", 0.1)
    elsewhere = GossipConfig(interest=("cn.r6501",))
    async with AsyncExitStack() as stack:

        async def opened(config: NodeConfig) -> ioc_node.Node:
            return await stack.enter_async_context(ioc_node.open_node(config))

        full_config = make_home("full", "national")
        first = (f"127.0.0.1:{full_config.port}",)
        full = await opened(full_config)
        part = await opened(make_home("part", "regional", bootstrap=first, gossip=elsewhere))
        provider = await opened(make_home("provider", "provider", bootstrap=first))
        assert provider.provider is not None
        await provider.provider.home.wait_published()
        own = await full.find(DEMAND, verify=True)
        assert own.verdict is not None
        assert (own.verdict.conclusive, own.verdict.cores[1]) == (False, part.identity.name[:11])
        third = await opened(make_home("third", "industry", bootstrap=first))
        with trio.fail_after(20):
            while (
                third.core is None
                or third.core.gossip.catalogue.digest() != full.core.gossip.catalogue.digest()
                or third.identity.name[:11] not in {link.peer.name for link in full.links.links.values()}
            ):
                await trio.sleep(0.05)
            own = await full.find(DEMAND, verify=True)
        assert own.verdict is not None
        assert (own.verdict.conclusive, own.verdict.omissions) == (True, ())
        assert own.verdict.cores == (verifying.OWN, third.identity.name[:11])
