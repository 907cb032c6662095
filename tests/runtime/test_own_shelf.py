"""The own catalogue on disk: whenever storing it stops, what is there is one whole log."""

import itertools
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path

import pytest
import trio

from ioc_node.core.own_catalogue import Commit, OwnCatalogue
from ioc_node.errors import StorageFull
from ioc_node.runtime import own_shelf
from ioc_node.runtime.own_shelf import OwnCatalogueShelf
from ioc_node.runtime.store import Store
from ioc_wire.codec import encode
from tests.core.gossip_staple import UNIX, Provider

HOSTS = [f"h{number}" for number in range(24)]


@pytest.fixture(autouse=True)
def short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_shelf, "STEP_ENTRIES", 8)
    monkeypatch.setattr(own_shelf, "GROUP_ENTRIES", 16)


class Killed(Exception):
    """What happens to the process."""


def killed_after(steps_max: int) -> Callable[[Generator[None, None, None]], Awaitable[None]]:
    """Runs steps, so many in all."""
    done = 0

    async def run(steps: Generator[None, None, None]) -> None:
        nonlocal done
        for _ in steps:
            done += 1
            if done == steps_max:
                raise Killed
            await trio.lowlevel.checkpoint()

    return run


def loaded(store: Store, alice: Provider) -> OwnCatalogue:
    """As after a restart."""
    own = OwnCatalogue(alice.key)
    OwnCatalogueShelf(store).load_own(own)
    return own


def committed(own: OwnCatalogue, unix: float) -> Commit:
    commit = own.commit(unix=unix)
    assert commit is not None
    return commit


async def test_wherever_storing_stops_one_log_or_the_other_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = Provider("alice", 20001)
    commits = [_changed(alice, version) for version in (1, 2)]
    seen: list[int] = []
    for steps in itertools.count(1):
        monkeypatch.setattr(own_shelf, "run_with_pauses", killed_after(steps))
        with Store(tmp_path / f"{steps}.db") as store:
            shelf = OwnCatalogueShelf(store)
            try:
                for commit in commits:
                    await shelf.save_own(commit)
            except Killed:
                killed = True
            else:
                killed = False
            again = loaded(store, alice)
            seen.append(again.seq)
            for commit in commits:
                if again.head == commit.head:
                    assert again.entries_after(0) == tuple(commit.log.entries)
        if not killed:
            break
    pages = len(HOSTS) // 8
    assert seen == [0] * pages + [UNIX + 1] * 2 * pages + [UNIX + 2] * (pages + 1)


def _changed(alice: Provider, version: int) -> Commit:
    alice.put(*HOSTS, version=version)
    alice.own.withdraw(alice.cid(f"h{version}"))
    return committed(alice.own, UNIX + version)


async def test_what_a_full_disk_did_not_take_is_stored_with_the_next_commit(tmp_path: Path) -> None:
    alice = Provider("alice", 20001)
    with Store(tmp_path / "node.db") as store:
        shelf = OwnCatalogueShelf(store)
        await shelf.save_own(_changed(alice, 1))
        ((pages,),) = store.fetch("PRAGMA page_count")
        store.execute(f"PRAGMA max_page_count = {pages + 1}")
        with pytest.raises(StorageFull):
            await shelf.save_own(_changed(alice, 2))
        store.execute("PRAGMA max_page_count = 100000")
        alice.put("h9", version=3)
        await shelf.save_own(committed(alice.own, UNIX + 3))
        assert store.fetch("SELECT count(*) FROM own_log") == [
            (len(HOSTS),)
        ]  # nothing that was replaced is left
        again = loaded(store, alice)
        assert (again.head, again.entries_after(0)) == (alice.own.head, alice.own.entries_after(0))


async def test_others_have_turns_while_it_is_stored(tmp_path: Path) -> None:
    alice, turns = Provider("alice", 20001), 0
    with Store(tmp_path / "node.db") as store:
        shelf = OwnCatalogueShelf(store)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def count() -> None:
                    nonlocal turns
                    while True:
                        turns += 1
                        await trio.lowlevel.checkpoint()

                nursery.start_soon(count)
                await shelf.save_own(_changed(alice, 1))
                scope.cancel()
        assert turns > 2


def test_a_log_that_an_older_version_stored_is_taken_up(tmp_path: Path) -> None:
    alice = Provider("alice", 20001)
    commit = _changed(alice, 1)
    with Store(tmp_path / "node.db") as store:
        store.require("own_catalogue", own_shelf._SCHEMA[:2])
        store.execute("INSERT INTO own_head VALUES (0, ?)", (encode(commit.head),))
        store.execute_many("INSERT INTO own_entries VALUES (?, ?)", enumerate(alice.own.entries_after(0)))
        again = loaded(store, alice)
    assert (again.head, again.entries_after(0)) == (alice.own.head, alice.own.entries_after(0))
