"""A core node's catalogue on disk: crashes, a full disk, and readers that are slower than changes."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from ioc_node.core.catalogue import Catalogue, Standing
from ioc_node.core.steps import run_through
from ioc_node.errors import StorageFull
from ioc_node.runtime.catalogue_store import open_catalogue
from ioc_node.runtime.entry_pages import send_held
from ioc_node.runtime.store import Store
from ioc_wire.codec import Message
from ioc_wire.gossip import EntriesPage, HeadNews
from tests.core.gossip_staple import Provider, certified
from tests.core.staple import UNIX

ROOT = Path(__file__).parents[2]


def kill_again_and_again(path: Path, kills: int) -> dict[str, int]:
    """What the program says of it; that every restart found what had been saved, it checks itself."""
    command = [sys.executable, "-m", "tests.runtime.crashing_core", str(path), str(kills), "7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, int] = json.loads(done.stdout)
    return found


def test_a_core_node_killed_at_any_moment_reopens_with_heads_that_fit_their_entries(tmp_path: Path) -> None:
    found = kill_again_and_again(tmp_path / "catalogue.db", 12)
    assert found["kills"] == 12
    assert found["versions"] >= 12


@pytest.mark.slow
def test_hundreds_of_kills_lose_nothing_that_was_saved(tmp_path: Path) -> None:
    found = kill_again_and_again(tmp_path / "catalogue.db", 200)
    assert found["kills"] == 200
    assert found["in_checkpoint"] > 0


async def test_a_fork_is_remembered_over_a_restart(tmp_path: Path) -> None:
    alice, twin, bob = Provider("alice", 20001), Provider("alice", 20001), Provider("bob", 20002)
    for provider in (alice, twin, bob):
        provider.put("h1")
    twin.put("h2")
    both = (alice.news(), twin.news())
    with open_catalogue(tmp_path / "catalogue.db") as shelf:
        catalogue = Catalogue(certified(), book=shelf)
        for provider in (alice, bob):
            catalogue.consider(provider.news(), unix=UNIX)
            catalogue.apply(provider.public, provider.news().head, provider.own.entries_after(0), unix=UNIX)
        replicas = [catalogue.replica(provider.public) for provider in (alice, bob)]
        await shelf.save({one.provider: one.news() for one in replicas if one is not None})
        assert catalogue.consider(both[1], unix=UNIX) is Standing.FORKED
        digest = catalogue.digest()
        forked = catalogue.replica(alice.public)
        assert forked is not None
        await shelf.save({alice.public: forked.news()})
    with open_catalogue(tmp_path / "catalogue.db") as shelf:
        again = Catalogue(certified(), book=shelf)
        await shelf.load(again, unix=UNIX + 60)
        assert again.digest() == digest
        assert again.find(alice.cid("h1")) is None
        assert again.find(bob.cid("h1")) is not None
        alice.put("h3")
        assert again.consider(alice.news(UNIX + 60), unix=UNIX + 60) is Standing.KNOWN
        over = UNIX + 7 * 3600
        assert alice.public in again.expire(unix=over)
        await shelf.save({alice.public: ()})
        assert again.consider(alice.news(over), unix=over) is Standing.LAGGING


async def test_a_full_disk_loses_nothing_that_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alice = Provider("alice", 20001)
    alice.put(*(f"h{n}" for n in range(300)))
    news = alice.news()
    with open_catalogue(tmp_path / "catalogue.db") as shelf:
        catalogue = Catalogue(certified(), book=shelf)
        catalogue.consider(news, unix=UNIX)
        catalogue.apply(alice.public, news.head, alice.own.entries_after(0), unix=UNIX)
        shelf._store.execute("PRAGMA max_page_count = 1")
        with pytest.raises(StorageFull):
            await shelf.save({alice.public: [news]})
        assert catalogue.find(alice.cid("h1")) is not None
        shelf._store.execute("PRAGMA max_page_count = 100000")
        await shelf.save({alice.public: [news]})
    with Store(tmp_path / "catalogue.db") as store:
        assert store.fetch("SELECT count(*) FROM entries") == [(300,)]


async def test_a_slow_reader_gets_what_changed_meanwhile_as_well() -> None:
    alice = Provider("alice", 20001)
    alice.put(*(f"h{n}" for n in range(1200)))
    source, target = Catalogue(certified()), Catalogue(certified())

    def bring(unix: int, after: int) -> HeadNews:
        news = alice.news(unix)
        source.consider(news, unix=unix)
        source.apply(alice.public, news.head, alice.own.entries_after(after), unix=unix)
        return news

    target.consider(bring(UNIX, 0), unix=UNIX)
    intake = target.begin(alice.public)
    pages: list[EntriesPage] = []

    async def send(page: Message) -> None:
        assert isinstance(page, EntriesPage)
        pages.append(page)
        entries: Sequence[bytes] = page.entries
        run_through(intake.add(entries))
        await trio.lowlevel.checkpoint()
        if len(pages) in (1, 3):
            alice.own.withdraw(alice.cid(f"h{len(pages)}"))
            alice.put(f"new{len(pages)}")
            bring(UNIX + len(pages), UNIX + len(pages) - (1 if len(pages) == 1 else 2))

    await send_held(source, alice.public, 0, send)
    assert [page.last for page in pages] == [False] * (len(pages) - 1) + [True]
    closed = run_through(target.close(intake, pages[-1].head, unix=UNIX + 3))
    target.commit(intake, closed)
    assert target.digest() == source.digest()
    assert target.records == source.records == 1200
    assert target.find(alice.cid("h1")) is None
    assert target.find(alice.cid("new3")) is not None
