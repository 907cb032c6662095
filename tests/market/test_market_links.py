"""Three core nodes and two providers over real links: one question, one answer, also after a home is gone."""

import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio

from ioc_node.core.catalogue import Catalogue
from ioc_node.core.own_catalogue import OwnCatalogue
from ioc_node.market.demand import make_demand
from ioc_node.market.query import QueryEngine
from ioc_node.market.routes import MEASURED_MAX, measure_rtts
from ioc_node.runtime.catalogue_store import CatalogueShelf, open_catalogue
from ioc_node.runtime.gossip import CoreGossip
from ioc_node.runtime.links import Handlers, Link
from ioc_node.runtime.own_shelf import OwnCatalogueShelf
from ioc_node.runtime.store import Store
from ioc_wire.codec import encode
from ioc_wire.market import FindOffers, MeasureRtt, OffersFound, RttMeasured
from tests.core.gossip_staple import Provider, certified
from tests.core.staple import UNIX
from tests.runtime.gossip_cases import CoreNode, ProviderNode, key_of, open_core, open_provider, until


class Market:
    """The query engines of the core nodes, by gossip; and what each answers over a link."""

    def add(self, gossip: CoreGossip, handlers: Handlers) -> None:
        engine = QueryEngine(gossip.catalogue)
        gossip.on_changed(engine.patch)
        gossip.on_status(engine.patch_status)

        async def answer(link: Link, message: FindOffers) -> OffersFound:
            return engine.find(message.demand, message.policy, message.limit, unix=time.time())

        handlers.serve(FindOffers, answer)


async def ask(asker: ProviderNode, node: CoreNode, **options: Any) -> OffersFound:
    link = await asker.links.connect((node.contact.host, node.contact.port), node.contact.key)
    return await link.request(FindOffers(make_demand(**options), "cost"), OffersFound)


async def agreed(asker: ProviderNode, nodes: list[CoreNode], offers: int, **options: Any) -> OffersFound:
    """Ask until every core node offers as many, and then give the one answer of all of them."""
    with trio.fail_after(20):
        while True:
            found = [await ask(asker, node, **options) for node in nodes]
            if len({encode(one) for one in found}) == 1 and len(found[0].offers) == offers:
                return found[0]
            await trio.sleep(0.02)


async def test_every_core_node_answers_the_same_bytes_also_without_the_home() -> None:
    market = Market()
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        nodes = [await enter(open_core(name, prepare=market.add)) for name in ("alice", "bob", "carol")]
        for node in nodes[1:]:
            node.links.keep((nodes[0].contact.host, nodes[0].contact.port))
        one = await enter(open_provider("one", "cn.r3301.20001", status_seconds=60))
        two = await enter(open_provider("two", "cn.r1100.20002", status_seconds=60))
        one.links.keep((nodes[0].contact.host, nodes[0].contact.port))
        two.links.keep((nodes[1].contact.host, nodes[1].contact.port))
        for host in range(5):
            one.put(f"ioc:cn.r3301.20001/gen/3301/az1/h{host}")
            two.put(f"ioc:cn.r1100.20002/ai/1100/az1/h{host}", free_milli=4000 + host)
        for provider in (one, two):
            await provider.home.wait_published()
            provider.home.status_changed()
        first = await agreed(one, nodes, 10)
        assert {offer.provider.key for offer in first.offers} == {one.own.key, two.own.key}
        assert (await agreed(one, nodes, 5, within="cn.r3301")).digest == first.digest
        nothing = await agreed(two, nodes, 0, cores=64)
        assert [removal.condition for removal in nothing.removals] == ["cores"]

        left = nodes[1:]
        await until(lambda: left[0].contact.key in left[1].links.links, 20)  # they know each other by now
        nodes[0].scope.cancel()
        late = "ioc:cn.r3301.20001/gen/3301/az1/h9"
        one.put(late)
        await until(lambda: all(node.gossip.catalogue.find(late) is not None for node in left), 20)
        one.home.status_changed()
        after = await agreed(two, left, 11)
        assert after.digest != first.digest


async def test_round_trips_are_measured_and_dead_providers_named() -> None:
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        market = Market()
        alice = await enter(open_core("alice", prepare=market.add))
        asker = await enter(open_provider("asker", "cn.r3301.20009"))
        near = await enter(open_provider("near", "cn.r3301.20001", status_seconds=60))
        near.links._handlers.serve(MeasureRtt, _pong)
        dead = await enter(open_provider("dead", "cn.r3301.20002", status_seconds=60, outbound_only=True))
        for provider in (near, dead):
            provider.links.keep((alice.contact.host, alice.contact.port))
        near.put("ioc:cn.r3301.20001/gen/3301/az1/h1")
        dead.put("ioc:cn.r3301.20002/gen/3301/az1/h1")
        for provider in (near, dead):
            await provider.home.wait_published()
            provider.home.status_changed()
        found = await agreed(asker, [alice], 2)
        measured = await measure_rtts(asker.links, found.offers)
        assert 0 < measured[near.own.key].rtt_us < 1_000_000
        assert measured[dead.own.key].rtt_us == -1
        assert "127.0.0.1" in measured[dead.own.key].error
        assert len(found.offers) <= MEASURED_MAX


async def _pong(link: Link, message: MeasureRtt) -> RttMeasured:
    return RttMeasured(0)


async def test_a_restarted_core_node_has_its_catalogue_at_once(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.db"
    cids = [f"ioc:cn.r3301.20001/gen/3301/az1/h{host}" for host in range(20)]
    with Store(tmp_path / "one.db") as own_store:
        own_shelf = OwnCatalogueShelf(own_store)
        async with open_provider("one", "cn.r3301.20001", shelf=own_shelf) as one:
            with open_catalogue(path) as shelf:
                async with open_core("alice", shelf=shelf) as alice:
                    one.links.keep((alice.contact.host, alice.contact.port))
                    for cid in cids:
                        one.put(cid)
                    await until(lambda: alice.gossip.catalogue.records == 20)
                    one.own.withdraw(cids[3])
                    one.home.catalogue_changed()
                    await until(lambda: alice.gossip.catalogue.records == 19)
                    digest = alice.gossip.catalogue.digest()
            with open_catalogue(path) as shelf:
                async with open_core("alice", shelf=shelf) as alice:
                    assert alice.gossip.catalogue.digest() == digest
                    assert alice.gossip.catalogue.records == 19
                    assert alice.gossip.catalogue.find(cids[4]) is not None
        again = OwnCatalogue(key_of("one"))
        assert own_shelf.load_own(again)
        assert sorted(again.records()) == sorted(set(cids) - {cids[3]})


async def saved(shelf: CatalogueShelf, *providers: Provider) -> Catalogue:
    """A catalogue that keeps its entries in `shelf`, where it was saved."""
    catalogue = Catalogue(certified(), book=shelf)
    for provider in providers:
        news = provider.news()
        catalogue.consider(news, unix=UNIX)
        catalogue.apply(provider.public, news.head, provider.own.entries_after(0), unix=UNIX)
    await shelf.save({provider.public: [provider.news()] for provider in providers})
    return catalogue


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE entries SET entry = x'00' WHERE id = (SELECT id << 17 | 1 FROM providers WHERE key = ?)",
        "DELETE FROM entries WHERE id = (SELECT id << 17 FROM providers WHERE key = ?)",
        "UPDATE heads SET news = x'93' WHERE provider = (SELECT id FROM providers WHERE key = ?)",
    ],
)
async def test_rows_that_do_not_fit_together_are_dropped_and_the_rest_is_kept(
    tmp_path: Path, damage: str
) -> None:
    good, bad = Provider("alice", 20001), Provider("bob", 20002)
    path = tmp_path / "catalogue.db"
    for provider in (good, bad):
        provider.put("h1", "h2")
    with open_catalogue(path) as shelf:
        await saved(shelf, good, bad)
    with Store(path) as store:
        assert store.execute(damage, (bad.public,)) == 1
    for _ in range(2):
        with open_catalogue(path) as shelf:
            loaded = Catalogue(certified(), book=shelf)
            await shelf.load(loaded, unix=UNIX)
            assert loaded.providers() == [good.public]
            assert loaded.records == 2
    with Store(path) as store:
        assert store.fetch("SELECT count(*) FROM entries") == [(2,)]
        assert store.fetch("SELECT count(*) FROM providers") == [(1,)]


async def test_entries_are_read_back_at_once_whether_they_are_written_or_not(tmp_path: Path) -> None:
    alice = Provider("alice", 20001)
    alice.put("h1", "h2", "h3")
    with open_catalogue(tmp_path / "catalogue.db") as shelf:
        catalogue = await saved(shelf, alice)
        before = catalogue.entries(alice.public, [0, 1, 2])
        assert before == list(alice.own.entries_after(0))
        alice.own.withdraw(alice.cid("h2"))
        alice.put("h4")
        news = alice.news(UNIX + 1)
        catalogue.consider(news, unix=UNIX + 1)
        catalogue.apply(alice.public, news.head, alice.own.entries_after(UNIX), unix=UNIX + 1)
        after = list(alice.own.entries_after(0))
        assert catalogue.entries(alice.public, [0, 1, 2, 3]) == after
        await shelf.save({alice.public: [news]})
        assert catalogue.entries(alice.public, [3, 1]) == [after[3], after[1]]
        assert catalogue.find(alice.cid("h2")) is None
        shelf.drop(alice.public)
        assert catalogue.entries(alice.public, [0]) == []
