"""Core nodes that replicate only a part: what they hold, tell, compare and forget."""

from ioc_node.core.catalogue import Catalogue
from ioc_node.core.interest import EVERYTHING, NOTHING, Interest
from tests.core.gossip_staple import Provider, certified, chain_of
from tests.core.staple import UNIX

EAST, WEST = Interest(["cn.r3301"]), Interest(["cn.r6501"])


def fill(catalogue: Catalogue, *providers: Provider) -> None:
    for provider in providers:
        provider.put("h1", "h2")
        news = provider.news()
        catalogue.consider(news, unix=UNIX)
        catalogue.apply(provider.public, news.head, provider.own.entries_after(0), unix=UNIX)


def test_catalogues_that_agree_in_a_part_have_one_digest_of_it() -> None:
    east, west, wide = Provider("east", 20001), Provider("west", 20002, "r6501"), Provider("wide", 20003)
    wide.chain = chain_of("wide", "cn")
    whole, part = Catalogue(certified()), Catalogue(certified())
    fill(whole, east, west, wide)
    fill(part, east, wide)
    assert whole.digest() != part.digest()
    assert whole.digest(EAST) == part.digest(EAST) == part.digest()
    assert [row.provider for row in whole.vector(WEST)] == sorted((west.public, wide.public))
    assert whole.vector(NOTHING) == ()
    west.put("h3")
    before = whole.digest(EAST), whole.digest(WEST), whole.digest(EVERYTHING)
    fill(whole, west)
    after = whole.digest(EAST), whole.digest(WEST), whole.digest(EVERYTHING)
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, False]
