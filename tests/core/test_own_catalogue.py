"""A provider's own catalogue is committed in steps: each head is over what was there at one moment."""

from collections.abc import Callable, Generator, Iterator

import pytest

from ioc_node.core.catalogue import Catalogue
from ioc_node.core.own_catalogue import STEP_ENTRIES, Commit, OwnCatalogue
from ioc_wire import limits
from ioc_wire.records import StatusBatch, StatusRow
from ioc_wire.signed import verify
from tests.core.gossip_staple import UNIX, Provider, certified

HOSTS = [f"h{number}" for number in range(3 * STEP_ENTRIES + 5)]


def commit_in_steps(
    own: OwnCatalogue, unix: float, at: int = -1, change: Callable[[], object] = lambda: None
) -> Commit:
    """Work a commit out; before step number `at`, `change` something. It is not taken."""
    stepping = Stepping(own.committing(unix=unix))
    for number, _ in enumerate(stepping):
        if number == at:
            change()
    assert isinstance(stepping.result, Commit)
    return stepping.result


class Stepping:
    """Steps, and their result once they are done."""

    def __init__(self, steps: Generator[None, None, object]) -> None:
        self.result: object = None
        self._steps = steps

    def __iter__(self) -> Iterator[None]:
        yield
        self.result = yield from self._steps


def said(commit: Commit | None) -> tuple[object, ...]:
    assert commit is not None
    return commit.head, commit.seq, commit.slots


def held(provider: Provider, catalogue: Catalogue | None = None) -> Catalogue:
    """What a core node that had taken in nothing, or the catalogue before, has of it now."""
    catalogue = catalogue or Catalogue(certified())
    replica = catalogue.replica(provider.public)
    after = replica.held_seq if replica is not None else 0
    news = provider.news(provider.own.seq)
    catalogue.consider(news, unix=UNIX)
    catalogue.apply(provider.public, news.head, provider.own.entries_after(after), unix=UNIX)
    return catalogue


def test_steps_sign_what_one_go_does() -> None:
    alice, twin = Provider("alice", 20001), Provider("alice", 20001)
    for unix, hosts, version in ((UNIX, HOSTS, 1), (UNIX + 1, HOSTS[5:9], 2), (UNIX + 2, [*HOSTS, "new"], 3)):
        for one in (alice, twin):
            one.put(*hosts, version=version)
            one.own.withdraw(one.cid("h7"))
        commit = commit_in_steps(alice.own, unix)
        alice.own.take(commit)
        assert said(commit) == said(twin.own.commit(unix=unix))
        assert alice.own.entries_after(0) == twin.own.entries_after(0)
        assert alice.own.entries_after(unix - 1) == twin.own.entries_after(unix - 1)


@pytest.mark.parametrize("at", range(7))
def test_what_changes_in_the_middle_comes_with_the_next_head(at: int) -> None:
    alice, twin = Provider("alice", 20001), Provider("alice", 20001)
    for one in (alice, twin):
        one.put(*HOSTS)

    def change() -> None:
        alice.put(HOSTS[0], HOSTS[-1], "new", version=2)
        alice.own.withdraw(alice.cid(HOSTS[70]))
        alice.put(HOSTS[70], version=3)
        alice.own.withdraw(alice.cid(HOSTS[1]))
        assert alice.own.head is None  # nothing of it is shown yet
        assert alice.own.entries_after(0) == ()

    commit = commit_in_steps(alice.own, UNIX, at, change)
    assert alice.own.head is None
    alice.own.take(commit)
    if at:  # before the first step nothing has begun
        assert said(commit) == said(twin.own.commit(unix=UNIX))
        assert alice.own.entries_after(0) == twin.own.entries_after(0)
    core = held(alice)
    alice.own.commit(unix=UNIX + 1)
    core = held(alice, core)
    assert core.find(alice.cid(HOSTS[1])) is None
    assert core.records == len(alice.own.records()) == len(HOSTS)
    for host, version in ((HOSTS[0], 2), (HOSTS[-1], 2), ("new", 2), (HOSTS[70], 3), (HOSTS[2], 1)):
        found = core.find(alice.cid(host))
        assert found == alice.own.record(alice.cid(host))
        twin.put(host, version=version)
        assert found == twin.own.record(twin.cid(host))


def test_a_commit_that_was_given_up_is_in_the_next_one() -> None:
    alice = Provider("alice", 20001)
    alice.put(*HOSTS)
    steps = alice.own.committing(unix=UNIX)
    next(steps)
    next(steps)
    alice.put(HOSTS[0], version=2)
    steps.close()
    commit = alice.own.commit(unix=UNIX)
    assert commit is not None
    assert commit.slots == tuple(range(len(HOSTS)))
    assert held(alice).find(alice.cid(HOSTS[0])) == alice.own.record(alice.cid(HOSTS[0]))
    assert alice.own.commit(unix=UNIX) is None


def test_a_reader_gets_the_log_that_was_shown_when_it_began() -> None:
    alice = Provider("alice", 20001)
    alice.put(*HOSTS)
    alice.own.commit(unix=UNIX)
    before, reading = alice.own.entries_after(0), alice.own.reading_after(0)
    assert next(reading) == before[0]
    alice.put(*HOSTS, "new", version=2)
    alice.own.commit(unix=UNIX + 1)
    assert (before[0], *reading) == before != alice.own.entries_after(0)


def test_status_is_of_the_moment_when_its_signing_began() -> None:
    own = Provider("alice", 20001).own
    rows = [StatusRow(slot, 1000, 1) for slot in range(2 * limits.STATUS_ROWS_MAX + 1)]
    stepping = Stepping(own.signing_status(rows, unix=UNIX))
    asked = tuple(rows)
    for number, _ in enumerate(stepping):
        if number == 1:
            rows[:] = []
    assert isinstance(stepping.result, list)
    batches = [verify(signed, StatusBatch) for signed in stepping.result]
    assert tuple(row for batch in batches for row in batch.rows) == asked
    assert [batch.part for batch in batches] == [0, 1, 2]
    assert [verify(one, StatusBatch).rows for one in own.sign_status(rows, unix=UNIX)] == [(), (), ()]
