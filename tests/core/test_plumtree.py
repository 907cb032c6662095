"""The tree of one node: who is told, who is told names only, and how it mends."""

import random

from ioc_node.core.plumtree import (
    BROKEN_MAX,
    GRAFT_AGAIN_SECONDS,
    GRAFT_SECONDS,
    GRAFTED_BURST,
    LAZY_SECONDS,
    PROMISES_MAX,
    QUEUE_MAX,
    SOURCES_MAX,
    Item,
    Plumtree,
)
from ioc_wire import limits
from ioc_wire.plumtree import Graft, IHave, Mark, Prune

ALICE, BOB, CAROL = b"a" * 32, b"b" * 32, b"c" * 32
NEWS: Item = (b"p" * 32, 0)


def tree(*peers: bytes, leaf: bool = False) -> Plumtree:
    made = Plumtree(leaf=leaf)
    for peer in peers:
        made.add(peer)
    return made


def mark(seq: int, provider: bytes = NEWS[0]) -> Mark:
    return Mark(provider, 0, seq)


def everybody(peer: bytes) -> bool:
    return True


def lacks(one: Mark) -> bool:
    return True


def test_all_are_eager_at_first_and_who_tells_again_is_pruned() -> None:
    one = tree(ALICE, BOB, CAROL)
    assert one.came(ALICE, NEWS, 1) == []
    assert one.spread(NEWS, 1, ALICE, everybody, 0) == [BOB, CAROL]
    assert one.came_again(BOB) == [(BOB, Prune())]
    assert one.spread(NEWS, 2, ALICE, everybody, 1) == [CAROL]
    assert one.deadline() == 1 + LAZY_SECONDS
    assert one.pass_time(1 + LAZY_SECONDS) == [(BOB, IHave((mark(2),)))]
    assert one.deadline() is None


def test_names_are_gathered_and_only_the_newest_is_said() -> None:
    one = tree(ALICE)
    one.pruned(ALICE)
    for seq in range(1, 6):
        one.spread(NEWS, seq, None, everybody, 0)
    assert one.pass_time(1) == [(ALICE, IHave((mark(5),)))]
    one.spread(NEWS, 6, None, everybody, 1)
    one.named(ALICE, [mark(6)], lambda m: False, 1)  # it says so itself meanwhile
    assert one.pass_time(2) == []


def test_what_does_not_come_is_grafted_from_one_after_the_other() -> None:
    one = tree(ALICE, BOB, CAROL)
    one.pruned(BOB)
    one.pruned(CAROL)
    one.named(BOB, [mark(3)], lacks, 0)
    one.named(CAROL, [mark(3)], lacks, 0.1)
    assert one.pass_time(GRAFT_SECONDS - 0.01) == []
    assert one.pass_time(GRAFT_SECONDS) == [(BOB, Graft((mark(3),)))]
    assert BOB in one.eager
    assert one.pass_time(GRAFT_SECONDS + GRAFT_AGAIN_SECONDS) == [(CAROL, Graft((mark(3),)))]
    assert one.eager == [ALICE, CAROL]  # Bob broke his promise
    one.came(CAROL, NEWS, 3)
    assert one.awaited == 0
    assert one.pass_time(1) == []
    assert one.deadline() is None


def test_news_that_comes_in_time_is_not_grafted() -> None:
    one = tree(ALICE, BOB)
    one.named(BOB, [mark(3)], lacks, 0)
    one.came(ALICE, NEWS, 3)
    assert one.pass_time(10) == []


def test_a_name_from_the_future_does_not_hide_what_there_is() -> None:
    one = tree(ALICE, BOB)
    one.named(ALICE, [mark(2**62)], lacks, 0)
    one.named(BOB, [mark(4)], lacks, 0)
    assert one.pass_time(GRAFT_SECONDS) == [(ALICE, Graft((mark(2**62),)))]
    assert one.pass_time(1) == [(BOB, Graft((mark(4),)))]


def test_who_names_what_it_does_not_tell_is_given_up() -> None:
    one = tree(ALICE)
    for number in range(BROKEN_MAX):
        one.named(ALICE, [mark(1, bytes([number]) * 32)], lacks, 0)
    one.pass_time(GRAFT_SECONDS)
    assert one.liars == []
    one.pass_time(GRAFT_SECONDS + GRAFT_AGAIN_SECONDS)
    assert one.liars == [ALICE]
    assert one.awaited == 0


def test_promises_sources_names_and_grafts_are_bounded() -> None:
    chance = random.Random(1)
    one = tree(ALICE)
    many = [mark(1, chance.randbytes(32)) for _ in range(2 * PROMISES_MAX)]
    one.named(ALICE, many, lacks, 0)
    assert one.awaited == PROMISES_MAX
    (first, *pages) = [message for _, message in one.pass_time(1)]
    assert isinstance(first, Graft)
    assert len(first.news) == limits.NEWS_MAX
    assert len(pages) == PROMISES_MAX // limits.NEWS_MAX - 1
    granted = [one.grafted(ALICE, many, 0) for _ in range(5)]
    assert sum(map(len, granted)) == GRAFTED_BURST
    others = [bytes([number]) * 32 for number in range(SOURCES_MAX + 2)]
    crowd = tree(*others)
    for other in others:
        crowd.named(other, [mark(1)], lacks, 0)
        crowd.pruned(other)
    crowd.came(others[0], NEWS, 1)
    assert crowd.awaited == 0
    for _ in range(QUEUE_MAX + 10):
        crowd.spread((chance.randbytes(32), 0), 1, None, lambda peer: peer == others[1], 0)
    names = [message for peer, message in crowd.pass_time(1) if peer == others[1]]
    assert sum(len(message.news) for message in names if isinstance(message, IHave)) == QUEUE_MAX


def test_strangers_say_nothing_that_counts() -> None:
    one = tree(ALICE)
    one.named(BOB, [mark(1)], lacks, 0)
    one.pruned(BOB)
    assert one.grafted(BOB, [mark(1)], 0) == []
    assert one.came(BOB, NEWS, 1) == one.came_again(BOB) == []
    assert (one.awaited, one.eager) == (0, [ALICE])


def test_a_neighbour_that_goes_takes_its_promises_along() -> None:
    one = tree(ALICE, BOB)
    one.named(ALICE, [mark(1), mark(1, b"q" * 32)], lacks, 0)
    one.named(BOB, [mark(1)], lacks, 0)
    one.pass_time(GRAFT_SECONDS)
    one.remove(ALICE)
    assert one.awaited == 1
    assert one.pass_time(1) == [(BOB, Graft((mark(1),)))]


def test_a_leaf_has_one_eager_link() -> None:
    one = tree(ALICE, BOB, CAROL, leaf=True)
    assert one.eager == [ALICE]
    assert one.came(BOB, NEWS, 1) == [(ALICE, Prune())]
    assert one.eager == [BOB]
