"""Who is near: core nodes measure providers and tell each other; `find` asks, pings and offers only what is near."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

import msgspec
import pytest
import trio

import ioc_node
from ioc_node import bearings, nearby
from ioc_node.core.challenge import Address
from ioc_node.market import routes
from ioc_node.market.policies import record_of
from ioc_node.node import Node
from ioc_node.runtime import latency, pinging
from ioc_node.runtime.datagrams import DatagramSocket
from ioc_node.runtime.links import Link
from ioc_wire.errors import NotFound, RateLimited
from ioc_wire.latency import (
    CoordinateTold,
    FetchPlaces,
    LatencyNews,
    LatencyRow,
    LatencyTold,
    PlaceNoted,
    PlacesTold,
)
from ioc_wire.market import MeasureRtt, RttMeasured
from ioc_wire.signed import sign
from tests.node.conftest import MakeHome
from tests.node.three_nodes import HELLO, changed

FAR_SECONDS = 0.15
FAR_MS = FAR_SECONDS * 1000


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is passed over because this machine is busy."""
    for module, name in (
        (pinging, "PING_SECONDS"),
        (bearings, "TAKE_SECONDS"),
        (nearby, "PING_ALL_SECONDS"),
        (nearby, "MEASURE_SECONDS"),
        (routes, "MEASURE_SECONDS"),
    ):
        monkeypatch.setattr(module, name, 8.0)


class Town(NamedTuple):
    """Two core nodes, a near and a far provider, a consumer."""

    cores: list[Node]
    near: Node
    far: Node
    consumer: Node


class LateSocket(DatagramSocket):
    """The real socket of a node on a long line: everything that it sends leaves later."""

    def __init__(self, sock: DatagramSocket, nursery: trio.Nursery) -> None:
        super().__init__(sock._socket)
        self._line = nursery

    def send_nowait(self, data: bytes, address: Address) -> None:
        self._line.start_soon(self._send_later, data, address)

    async def _send_later(self, data: bytes, address: Address) -> None:
        await trio.sleep(FAR_SECONDS)
        super().send_nowait(data, address)


class DeafSocket(DatagramSocket):
    """The real socket of a node whose datagrams a firewall swallows."""

    def send_nowait(self, data: bytes, address: Address) -> None:
        self.unsent += 1


def put_far_away(node: Node, nursery: trio.Nursery) -> None:
    """Have a node answer pings, by datagrams and over links, as if from far away."""
    node.dht._driver._socket = LateSocket(node.dht._driver._socket, nursery)
    answers = node.links._handlers._answers
    usual = answers[MeasureRtt].answer

    async def late(link: Link, message: MeasureRtt) -> RttMeasured:
        await trio.sleep(FAR_SECONDS)
        found = await usual(link, message)
        assert isinstance(found, RttMeasured)
        return found

    answers[MeasureRtt] = answers[MeasureRtt]._replace(answer=late)


@asynccontextmanager
async def open_town(make_home: MakeHome) -> AsyncIterator[Town]:
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        enter = stack.enter_async_context
        first = make_home("national", "national")
        bootstrap = (f"127.0.0.1:{first.port}",)
        cores = [await enter(ioc_node.open_node(first))]
        cores.append(await enter(ioc_node.open_node(make_home("regional", "regional", bootstrap=bootstrap))))
        near = await enter(ioc_node.open_node(make_home("near", "provider", bootstrap=bootstrap)))
        far = await enter(ioc_node.open_node(make_home("far", "provider", bootstrap=bootstrap)))
        put_far_away(far, nursery)
        consumer = await enter(ioc_node.open_node(make_home("consumer", "consumer", bootstrap=bootstrap)))
        with trio.fail_after(20):
            for provider in (near, far):
                assert provider.provider is not None
                await provider.provider.home.wait_published()
            await consumer.wait_joined()
            while len((await consumer.find(ioc_node.Demand(cores=1))).found.offers) < 2:
                await trio.sleep(0.05)
        yield Town(cores, near, far, consumer)
        nursery.cancel_scope.cancel()


async def wait_measured(town: Town) -> None:
    """Until each core node holds what both measured to both providers."""
    keys = [town.near.identity.public_key, town.far.identity.public_key]
    with trio.fail_after(20):
        for node in town.cores:
            assert node.core is not None
            while not all(len(row) == 2 for row in node.core.latency.book.by_provider(keys).values()):
                await trio.sleep(0.05)


async def test_only_what_is_near_is_offered_and_what_is_far_is_not_even_pinged(
    make_home: MakeHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "ROUND_SECONDS_FIRST", 0.1)
    async with open_town(make_home) as town:
        demand = ioc_node.Demand(cores=1, max_rtt_ms=FAR_MS / 2)
        with trio.fail_after(20):
            before = await town.consumer.find(demand)
        assert [offer.provider.key for offer in before.found.offers] == [town.near.identity.public_key]
        assert before.routes[0].startswith("RTT ")
        assert ", measured; " in before.routes[0]

        await wait_measured(town)
        town.consumer.finder._neighbours._known.clear()
        with trio.fail_after(20):
            found = await town.consumer.find(demand, explain=True)
        assert [offer.provider.key for offer in found.found.offers] == [town.near.identity.public_key]
        assert found.probes == ioc_node.api.Probes(pinged=1, known=0, matching=2, far=1)
        (removal,) = [each for each in found.found.removals if each.condition == "rtt"]
        assert removal.removed == 1
        assert "triangulated over 2 core nodes" in removal.nearest

        own = await town.cores[0].find(demand)  # a core node looks from where it stands itself
        assert [offer.provider.key for offer in own.found.offers] == [town.near.identity.public_key]


async def test_the_nearest_comes_first_and_a_dear_near_host_is_not_lost_among_cheap_far_ones(
    make_home: MakeHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "ROUND_SECONDS_FIRST", 0.1)
    async with open_town(make_home) as town:
        await wait_measured(town)
        with trio.fail_after(20):
            ranked = await town.consumer.find(ioc_node.Demand(cores=1), policy="latency")
            (one,) = (
                await town.consumer.find(ioc_node.Demand(cores=1), policy="latency", limit=1)
            ).found.offers
        assert [offer.provider.key for offer in ranked.found.offers] == [
            town.near.identity.public_key,
            town.far.identity.public_key,
        ]
        assert one.provider.key == town.near.identity.public_key
        assert ranked.found.offers[1].rtt_us >= FAR_SECONDS * 1e6
        assert record_of(one).cid.startswith("ioc:")
        estimates = await town.consumer.finder._neighbours.estimates(
            ioc_node.Demand(cores=1), [town.far.identity.public_key]
        )
        told = estimates[town.far.identity.public_key]
        assert told is not None
        assert (told.how, told.over) == ("triangulated", 2)
        assert told.low_us > FAR_MS * 500  # half of it at least


async def test_a_round_trip_may_count_from_where_the_data_is(
    make_home: MakeHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "ROUND_SECONDS_FIRST", 0.1)
    async with open_town(make_home) as town:
        await wait_measured(town)
        for node, other in ((town.far, town.near), (town.near, town.far)):
            within = ioc_node.Demand(cores=1, max_rtt_ms=FAR_MS / 2, data_at=node.identity.prefix)
            with trio.fail_after(10):
                found = await town.consumer.find(within, policy="latency")
            (offer,) = found.found.offers
            assert offer.provider.key == node.identity.public_key
            assert offer.reasons[-1] == "RTT from the data estimated 0 ms (same provider)"
            assert found.routes[0].startswith("RTT ")  # and from here it is what it is
            (removal,) = [each for each in found.found.removals if each.condition == "rtt"]
            assert (removal.removed, "triangulated over 2 core nodes" in removal.nearest) == (1, True)

            wider = msgspec.structs.replace(within.constraints, rtt_ms_max=FAR_MS * 4)
            wide = msgspec.structs.replace(within, constraints=wider)
            both = (await town.consumer.find(wide, policy="latency")).found.offers
            keys = [offer.provider.key for offer in both]
            assert keys == [node.identity.public_key, other.identity.public_key]
            assert "triangulated over 2 core nodes" in both[1].reasons[-1]
        nobody = ioc_node.Demand(cores=1, max_rtt_ms=5, data_at="cn.r3301.29999")
        with pytest.raises(NotFound, match=r"no provider of cn\.r3301\.29999, where the data is said to be"):
            await town.consumer.find(nobody)


async def test_what_is_not_pinged_states_its_estimate_in_its_route(
    make_home: MakeHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "ROUND_SECONDS_FIRST", 0.1)
    monkeypatch.setattr(routes, "MEASURED_MAX", 1)
    async with open_town(make_home) as town:
        await wait_measured(town)
        with trio.fail_after(20):
            found = await town.consumer.find(ioc_node.Demand(cores=1))
        assert found.probes.pinged == 1
        known = sorted(route.partition(";")[0] for route in found.routes)
        assert known[0].endswith(" ms, measured")
        assert known[1].startswith("RTT estimated ")
        assert known[1].endswith(" ms (triangulated over 2 core nodes)")
        assert sum(offer.estimate is None for offer in found.found.offers) == 1


async def test_a_task_goes_to_whom_is_near(make_home: MakeHome) -> None:
    async with open_town(make_home) as town:
        spec = ioc_node.TaskSpec.load(HELLO)
        constraints = msgspec.structs.replace(spec.definition.constraints, rtt_ms_max=FAR_MS / 2)
        task = await town.consumer.submit(changed(spec, constraints=constraints))
        with trio.fail_after(20):
            await task.result()
        assert town.near.identity.prefix in task.live.place


async def test_core_nodes_hear_from_each_other_where_providers_say_they_stand(
    make_home: MakeHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "ROUND_SECONDS_FIRST", 0.1)
    monkeypatch.setattr(latency, "ROUND_SECONDS_MAX", 0.4)
    monkeypatch.setattr(bearings, "TELL_SECONDS_FIRST", 0.1)
    monkeypatch.setattr(bearings, "AGAIN_SECONDS", 0.1)
    async with open_town(make_home) as town:
        with trio.fail_after(20):
            for node in town.cores:
                assert node.core is not None
                book = node.core.latency.book
                while not all(book.coordinate(other.identity.public_key) for other in town.cores):
                    await trio.sleep(0.05)
                while not all(book.place_of(one.identity.public_key) for one in (town.near, town.far)):
                    await trio.sleep(0.05)


@pytest.mark.slow
async def test_where_no_datagram_gets_through_links_are_measured(
    make_home: MakeHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinging, "PING_SECONDS", 0.3)
    async with open_town(make_home) as town:
        driver = town.consumer.dht._driver
        driver._socket = DeafSocket(driver._socket._socket)
        with trio.fail_after(20):
            found = await town.consumer.find(ioc_node.Demand(cores=1, max_rtt_ms=FAR_MS / 2))
        assert [offer.provider.key for offer in found.found.offers] == [town.near.identity.public_key]


async def test_nobody_else_than_core_nodes_and_providers_is_heard(make_home: MakeHome) -> None:
    async with open_town(make_home) as town:
        core = town.cores[0]
        assert core.core is not None
        consumer, near = town.consumer.identity, town.near.identity
        link = await town.consumer.links.connect(("127.0.0.1", core.config.port), core.identity.public_key)
        row = LatencyRow(1, int(time.time()), int(time.time()) + 60, ())
        link.notify_nowait(LatencyTold((LatencyNews(sign(consumer.key, row)),)))
        place = CoordinateTold((1.0, 2.0, 3.0), 4.0, 0.5)
        link.notify_nowait(PlaceNoted(place))
        told = await link.request(FetchPlaces(), PlacesTold)
        keys = {each.contact.key for each in told.places}
        assert keys == {node.identity.public_key for node in town.cores}
        theirs = town.near.links.link(core.identity.public_key)
        assert theirs is not None
        theirs.notify_nowait(PlaceNoted(place))
        await theirs.request(FetchPlaces(), PlacesTold)
        places = core.core.latency._places
        with trio.fail_after(5):
            while near.public_key not in places:
                await trio.sleep(0.01)
        assert places[near.public_key] == place
        assert consumer.public_key not in places
        assert core.core.latency.book.coordinate(consumer.public_key) is None

        async def ask_too_often() -> None:
            for _ in range(100):
                await link.request(FetchPlaces(), PlacesTold)

        with pytest.raises(RateLimited):
            await ask_too_often()
