"""Blobs shared by hand: what the DHT is told of them when they come, go, and come back."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from ioc_node import sharing
from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.transfers import open_bulk
from ioc_node.core.events import PutReport
from ioc_node.errors import UsageError
from ioc_node.runtime.dht import Dht
from ioc_node.runtime.store import Store
from ioc_node.runtime.whereabouts import Whereabouts
from ioc_node.sharing import SharedBlobs
from ioc_node.tasks.keeper import Keeper
from ioc_wire.bulk import BlobId
from ioc_wire.errors import BlobCorrupt, NotFound, OverQuota
from tests.runtime.dht_nodes import key_of, open_dhts


async def joined() -> None:
    await trio.lowlevel.checkpoint()


@asynccontextmanager
async def open_shared(folder: Path) -> AsyncIterator[tuple[SharedBlobs, Dht, Store]]:
    """What node0 shares, and the DHT as another node sees it."""
    key = key_of("node0")
    blobs = BlobStore(folder / "blobs")
    async with open_dhts(2) as (own, other), open_bulk(blobs, key) as bulk:
        with Store(folder / "node.db") as store:
            where = Whereabouts(bulk.public_key, "127.0.0.1", 7400, outbound_only=False)
            yield SharedBlobs(store, bulk, own, Keeper(store, blobs), where), other, store


async def holders(dht: Dht, blob: bytes) -> int:
    """How many announce a blob for longer than a moment: a withdrawal is an announcement that ends at once."""
    try:
        found = await dht.holders(blob)
    except NotFound:
        return 0
    return sum(record.expires - record.issued > 60 for _, record in found.holders)


async def test_a_blob_that_was_let_go_and_added_again_is_found(tmp_path: Path) -> None:
    """Many blobs were let go before it, so that its withdrawal waits until after it came back."""
    (tmp_path / "file").write_bytes(b"text")
    async with open_shared(tmp_path) as (shared, other, _), trio.open_nursery() as nursery:
        added = await shared.add(tmp_path / "file", announce=True)
        shared.pin(added.blob, pinned=False)
        await shared.add(tmp_path / "file", announce=True)
        nursery.start_soon(shared.keep_withdrawn, joined)
        await trio.sleep(0.1)
        assert await holders(other, added.blob) == 1
        nursery.cancel_scope.cancel()


async def test_a_blob_that_was_let_go_is_not_announced_again(tmp_path: Path) -> None:
    """All blobs are announced one after the other, which takes hours where they are many; it was let go meanwhile."""
    async with open_shared(tmp_path) as (shared, other, _), trio.open_nursery() as nursery:
        blobs = []
        for number in range(2):
            (tmp_path / "file").write_bytes(bytes(number))
            blobs.append((await shared.add(tmp_path / "file", announce=False)).blob)
        first, second = sorted(blobs)
        nursery.start_soon(shared.keep_announced, joined)
        while not await holders(other, first):
            shared.pin(second, pinned=False) if shared.is_shared(second) else None
        await trio.sleep(0.1)
        assert await holders(other, second) == 0
        nursery.cancel_scope.cancel()


async def test_what_could_not_be_announced_is_announced_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link through which an outbound-only node is reached comes up after it has joined; then servers refuse."""
    monkeypatch.setattr(sharing, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(sharing, "FAILED_SECONDS", 0.01)
    (tmp_path / "file").write_bytes(b"text")
    async with open_shared(tmp_path) as (shared, other, _), trio.open_nursery() as nursery:
        blob = (await shared.add(tmp_path / "file", announce=False)).blob
        contact, announce = shared._where.contact, shared._dht.announce
        monkeypatch.setattr(shared._where, "contact", lambda: None)
        nursery.start_soon(shared.keep_announced, joined)
        await trio.sleep(0.03)
        monkeypatch.setattr(shared._where, "contact", contact)
        refused = 0

        async def refuse(*_args: object, **_options: object) -> PutReport:
            nonlocal refused
            refused += 1
            raise OverQuota("no more")

        monkeypatch.setattr(shared._dht, "announce", refuse)
        with trio.fail_after(5):
            while not refused:
                await trio.sleep(0.01)
            monkeypatch.setattr(shared._dht, "announce", announce)
            while not await holders(other, blob):
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


async def test_a_blob_that_changed_on_disk_is_set_aside_though_the_database_cannot_be_written(
    tmp_path: Path,
) -> None:
    """It is no reason to end the node."""
    (tmp_path / "file").write_bytes(b"text")
    async with open_shared(tmp_path) as (shared, _, store):
        added = await shared.add(tmp_path / "file", announce=False)
        path = tmp_path / "blobs/complete"
        (found,) = path.iterdir()
        found.chmod(0o600)
        found.write_bytes(b"tixt")
        store.execute("PRAGMA query_only=ON")
        with pytest.raises(BlobCorrupt):
            await shared.get(added.blob, tmp_path / "copy", None)  # type: ignore[arg-type]  # it is here
        await trio.sleep(0.01)
        assert not shared.is_shared(added.blob)


async def test_bytes_in_order_come_from_eight_holders_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A popular blob has dozens of holders; those after the first group were connected to as well."""
    async with open_shared(tmp_path) as (shared, _, _):
        asked: list[int] = []

        async def find(*_: object) -> list[list[int]]:
            return [[1, 2, 3], [4, 5, 6], [7, 8, 9], [10]]

        @asynccontextmanager
        async def open_blob(sources: list[int], *_: object) -> AsyncIterator[None]:
            asked.extend(sources)
            yield

        monkeypatch.setattr(shared.sources, "find", find)
        monkeypatch.setattr(shared._bulk, "open_blob", open_blob)
        async with shared.open_blob(b"b" * 32, None):  # type: ignore[arg-type]
            assert asked == [1, 2, 3, 4, 5, 6, 7, 8]


async def test_a_blob_that_goes_while_blobs_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that reads it finds it changed, and sets it aside."""
    (tmp_path / "file").write_bytes(b"text")
    async with open_shared(tmp_path) as (shared, _, _store):
        blob = BlobId((await shared.add(tmp_path / "file", announce=False)).blob)
        quota = shared._bulk.store.quota
        monkeypatch.setattr(quota, "by_use", lambda: iter([blob, BlobId(b"g" * 32)]))
        assert [row.blob for row in shared.rows()] == [blob]
        assert quota.used_at(BlobId(b"g" * 32)) == 0


@pytest.mark.parametrize("name", ["pipe", "folder"])
async def test_what_is_no_plain_file_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    async with open_shared(tmp_path) as (shared, _, _store):
        with trio.fail_after(5), pytest.raises(UsageError, match="not a plain file"):
            await shared.add(tmp_path / name, announce=False)
