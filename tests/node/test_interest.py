"""A national node and two regional ones that replicate only a part: a consumer finds what its core node lacks."""

from contextlib import AsyncExitStack

import pytest
import trio

import ioc_node
from ioc_node.config import GossipConfig, NodeConfig
from ioc_node.errors import UsageError
from ioc_wire.cid import self_certified_prefix
from ioc_wire.latency import FindNear, NearFound, Vantage
from ioc_wire.market import FindOffers, OffersFound, RecordResolved, ResolveRecord
from tests.node.conftest import MakeHome
from tests.node.test_healing import offered

ELSEWHERE = GossipConfig(interest=("cn.r6501",), compare_seconds=0.3)


def at(*configs: NodeConfig) -> tuple[str, ...]:
    return tuple(f"127.0.0.1:{config.port}" for config in configs)


async def test_what_a_core_node_lacks_it_asks_the_national_node_for(make_home: MakeHome) -> None:
    national = make_home("national", "national")
    east = make_home("east", "regional", bootstrap=at(national), gossip=ELSEWHERE)
    west = make_home("west", "regional", bootstrap=at(national), gossip=ELSEWHERE)
    with trio.fail_after(30):
        async with AsyncExitStack() as stack:

            async def opened(config: NodeConfig) -> ioc_node.Node:
                return await stack.enter_async_context(ioc_node.open_node(config))

            whole = await opened(national)
            first, second = await opened(east), await opened(west)
            for node in (first, second):
                await node.wait_joined()
            provider = await opened(make_home("provider", "provider", bootstrap=at(west)))
            consumer = await opened(make_home("consumer", "consumer", bootstrap=at(east)))
            await consumer.wait_joined()
            assert provider.provider is not None
            await provider.provider.home.wait_published()
            assert await offered(consumer) == 1
            assert whole.core is not None
            assert first.core is not None
            while whole.core.records != 1:
                await trio.sleep(0.05)
            cores = [node for node in (first, second) if node.core is not None and not node.core.records]
            assert cores, "somebody is not its home, and so holds nothing of it"
            link = await consumer.links.connect(
                ("127.0.0.1", cores[0].config.port), cores[0].identity.public_key
            )
            prefix = self_certified_prefix(provider.identity.public_key)
            resolve = ResolveRecord(f"ioc:{prefix}/gen/3301/az1/h1")
            assert (await link.request(resolve, RecordResolved)).record.key == provider.identity.public_key
            demand = ioc_node.Demand(cores=1)
            here = await link.request(FindOffers(demand, "cost", forwarded=True), OffersFound)
            assert here.offers == ()
            there = await link.request(FindOffers(demand, "cost"), OffersFound)
            assert len(there.offers) == 1
            assert there.digest == whole.core.digest
            assert (await link.request(FindNear(demand, Vantage(), forwarded=True), NearFound)).matching == 0
            near = await link.request(FindNear(demand, Vantage()), NearFound)
            assert [each.contact.key for each in near.providers] == [provider.identity.public_key]
            (row,) = (await whole.overview()).rows
            assert (row.node, row.providers, row.identifiers, row.hosts) == ("p2p.n0", 1, 1, 1)
            assert (row.connected, row.cores_milli, row.cores_told_milli) == (1, 2000, 2000)
            assert 0 <= row.cores_free_milli <= 2000
            with pytest.raises(UsageError, match="a consumer node holds no catalogue"):
                await consumer.overview()


async def test_where_nobody_holds_the_rest_the_answer_says_what_was_not_looked_at(
    make_home: MakeHome,
) -> None:
    async with ioc_node.open_node(make_home("east", "regional", gossip=ELSEWHERE)) as node:
        assert node.core is not None
        anywhere = await node.find(ioc_node.Demand(cores=1))
        assert [one.nearest for one in anywhere.found.removals if one.condition == "interest"] == [
            "what lies outside of cn.r6501 was not looked at: no core node that holds it answers now"
        ]
        inside = await node.find(ioc_node.Demand(cores=1, within=("cn.r6501",)))
        assert not any(one.condition == "interest" for one in inside.found.removals)
