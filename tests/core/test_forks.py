"""Two heads under one number: the proof is believed whenever it comes, as long as it counts, and cannot be forged."""

import msgspec
import pytest

from ioc_node.core import gossip_events as ev
from ioc_node.core.catalogue import Catalogue, Standing
from ioc_node.core.packing import by_provider, in_steps, pack_news
from ioc_wire import limits
from ioc_wire.errors import BadSignature, BrokenChain, Expired, WireError
from ioc_wire.gossip import HeadNews
from ioc_wire.records import Head
from ioc_wire.signed import sign
from tests.core.gossip_staple import Mesh, Provider, certified, chain_of
from tests.core.staple import UNIX

SKEW = limits.CLOCK_SKEW_SECONDS


def head_of(provider: Provider, seq: int, mark: int, *, expires: int = UNIX + 3600) -> HeadNews:
    """A head that the provider signed; other marks make other heads."""
    head = Head(seq, bytes(32), bytes([mark]) * 32, 1, UNIX, expires)
    return HeadNews(sign(provider.key, head), provider.chain, None)


def holding(provider: Provider, *, later: int = 5) -> Catalogue:
    """A catalogue that holds a newer head than those of the fork."""
    catalogue = Catalogue(certified())
    provider.put("h1")
    news = provider.news(UNIX + later)
    catalogue.consider(news, unix=UNIX + later)
    catalogue.apply(provider.public, news.head, provider.own.entries_after(0), unix=UNIX + later)
    assert catalogue.records == 1
    return catalogue


def test_a_proof_counts_though_both_its_heads_are_old() -> None:
    mesh = Mesh(4)
    for number in (1, 2, 3):
        mesh.link(0, number)
    mesh.run(5)
    alice = Provider("alice", 20001)
    alice.put("h1")
    mesh.publish(0, alice)
    mesh.run(1)
    assert {machine.catalogue.records for machine in mesh.machines} == {1}
    old = alice.own.seq - 100
    mesh.feed(2, ev.NewsReceived(mesh.keys[1], (head_of(alice, old, 1), head_of(alice, old, 2))))
    mesh.run(1)
    assert {machine.catalogue.records for machine in mesh.machines} == {0}
    assert len(mesh.digests()) == 1


def test_a_quarantine_ends_with_its_later_head_and_the_provider_is_back() -> None:
    alice = Provider("alice", 20001)
    catalogue = holding(alice)
    pair = (head_of(alice, UNIX, 1, expires=UNIX + 3600), head_of(alice, UNIX, 2, expires=UNIX + 60))
    # one of the two has expired by now: it proves the fork all the same
    assert catalogue.consider_fork(pair, unix=UNIX + 60 + 2 * SKEW) is Standing.FORKED
    alice.put("h2")
    back = UNIX + 3600 + SKEW + 1
    assert catalogue.consider(alice.news(back), unix=back) is Standing.KNOWN
    assert catalogue.expire(unix=back - 2) == []
    assert catalogue.expire(unix=back) == [alice.public]
    with pytest.raises(Expired):  # whoever still has the proof cannot begin it anew
        catalogue.consider_fork(pair, unix=back)
    news = alice.news(back)
    assert catalogue.consider(news, unix=back) is Standing.LAGGING
    catalogue.apply(alice.public, news.head, alice.own.entries_after(0), unix=back)
    assert catalogue.records == 2


def test_what_proves_nothing_harms_nobody() -> None:
    alice, mallory = Provider("alice", 20001), Provider("mallory", 20002)
    catalogue = holding(alice)
    one = head_of(alice, UNIX, 1)
    other = head_of(alice, UNIX, 2)
    by_mallory = sign(mallory.key, Head(UNIX, bytes(32), bytes(32), 1, UNIX, UNIX + 3600))
    borrowed = HeadNews(msgspec.structs.replace(by_mallory, key=alice.public), alice.chain, None)
    for pair in ((one, one), (one, head_of(alice, UNIX + 1, 2))):
        assert catalogue.consider_fork(pair, unix=UNIX) is None
    refused: list[tuple[tuple[HeadNews, HeadNews], type[WireError]]] = [
        ((one, borrowed), BadSignature),
        ((borrowed, one), BadSignature),
        ((one, HeadNews(msgspec.structs.replace(other.head, signature=bytes(64)), (), None)), BadSignature),
        ((HeadNews(one.head, chain_of("mallory", "cn.r3301.20002"), None), other), BrokenChain),
    ]
    for pair, error in refused:
        with pytest.raises(error):
            catalogue.consider_fork(pair, unix=UNIX)
    assert catalogue.records == 1
    assert catalogue.replica(alice.public) is not None


def test_two_heads_that_follow_each_other_are_taken_one_by_one() -> None:
    mesh = Mesh(2)
    mesh.link(0, 1)
    alice = Provider("alice", 20001)
    alice.put("h1")
    first = alice.news()
    alice.put("h2")
    second = alice.news()
    mesh.feed(0, ev.NewsReceived(mesh.keys[1], (first, second)))
    replica = mesh.machines[0].catalogue.replica(alice.public)
    assert replica is not None
    assert replica.newest == second.head
    assert not [effect for _, effect in mesh.effects if isinstance(effect, ev.Refuse)]


def test_a_proof_is_never_cut_in_two() -> None:
    catalogue = Catalogue(certified())
    providers = [Provider(f"p{number}", 20000 + number) for number in range(limits.NEWS_MAX)]
    for number, provider in enumerate(providers):
        if number % 3:
            catalogue.consider_fork((head_of(provider, UNIX, 1), head_of(provider, UNIX, 2)), unix=UNIX)
        else:
            provider.put("h1")
            news = provider.news()
            catalogue.consider(news, unix=UNIX)
            catalogue.apply(provider.public, news.head, provider.own.entries_after(0), unix=UNIX)
    pages = [page.news for page in pack_news(catalogue, [provider.public for provider in providers])]
    again = [some for page in pages for step in in_steps(page, 3) for some in by_provider(step)]
    assert [len(some) for some in again] == [2 if number % 3 else 1 for number in range(len(providers))]
    other = Catalogue(certified())
    for some in again:
        if len(some) == 2:
            assert other.consider_fork(some, unix=UNIX) is Standing.FORKED
