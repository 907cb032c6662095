"""Pages of offers, and hosts that are wanted together."""

import pytest

from ioc_node.core.steps import run_through
from ioc_node.errors import UsageError
from ioc_node.market.demand import make_demand
from ioc_node.market.query import QueryEngine
from ioc_wire.market import Cursor, Demand, OffersFound
from ioc_wire.records import Price
from ioc_wire.tasks import Resources
from tests.market.query_cases import UNIX, Provider, make_catalogue

HOSTS = 100
DEMAND = Demand(resources=Resources(cores=1, memory_mib=0, disk_mib=0))


@pytest.fixture
def provider() -> Provider:
    provider = Provider("one")
    for number in range(HOSTS):  # seven prices: many hosts cost the same
        provider.put(f"gen/3301/az1/h{number}", prices=(Price("core-hour", 1000 * (number % 7)),))
    return provider


def page(
    engine: QueryEngine, after: Cursor | None, *, limit: int = 9, demand: Demand = DEMAND
) -> OffersFound:
    return run_through(engine.finding(demand, "cost", limit, unix=UNIX, after=after))


def slots(found: OffersFound) -> list[int]:
    return [offer.status.slot for offer in found.offers]


def test_pages_together_are_everything_once(provider: Provider) -> None:
    catalogue = make_catalogue()
    provider.publish(catalogue)
    engine = QueryEngine(catalogue)
    seen: list[int] = []
    prices: list[int] = []
    after: Cursor | None = Cursor(0.0, 0)
    while after is not None:
        found = page(engine, after)
        assert found.matching == HOSTS
        seen += slots(found)
        prices += [offer.price_micro for offer in found.offers]
        after = found.cursor
    assert sorted(seen) == list(range(HOSTS))
    assert prices == sorted(prices)
    assert page(engine, None).cursor is None


def test_a_host_that_goes_between_pages_moves_no_other(provider: Provider) -> None:
    catalogue = make_catalogue()
    provider.publish(catalogue)
    engine = QueryEngine(catalogue)
    first = page(engine, Cursor(0.0, 0), limit=40)
    gone = slots(first)[5]
    assert provider.own.withdraw(provider.cid(f"gen/3301/az1/h{gone}"))
    provider.rows.pop(gone)
    provider.put("gen/3301/az1/cheap", prices=(Price("core-hour", 0),))
    engine.patch(provider.public, provider.publish(catalogue, unix=UNIX + 1))
    second = page(engine, first.cursor, limit=40)
    third = page(engine, second.cursor, limit=40)
    assert second.digest != first.digest
    assert sorted(set(slots(first) + slots(second) + slots(third)) - {HOSTS}) == list(range(HOSTS))


def test_a_gang_is_whole_or_not_at_all(provider: Provider) -> None:
    catalogue = make_catalogue()
    provider.publish(catalogue)
    engine = QueryEngine(catalogue)
    assert len(page(engine, None, limit=1, demand=make_demand(gang=HOSTS, memory=0, disk=0)).offers) == HOSTS
    found = page(engine, None, demand=make_demand(gang=HOSTS + 1, memory=0, disk=0))
    assert not found.offers
    assert (found.removals[-1].condition, found.removals[-1].removed) == ("gang", HOSTS)
    assert found.removals[-1].nearest == "100 hosts can serve it, 101 are wanted together"
    with pytest.raises(UsageError, match="gang"):
        make_demand(gang=0)
