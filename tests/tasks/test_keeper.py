"""What may be removed, in which order, and what never is."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from ioc_node.bulk.blobs import BlobStore
from ioc_node.errors import StorageFull
from ioc_node.runtime.store import open_store
from ioc_node.tasks.keeper import BY_HAND, DATASET, Keeper, reason_text
from ioc_wire.bulk import BlobId, BlobInfo, blob_id_of, chunk_hash

KIB = 1 << 10
HOUR = 3600.0


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs", bytes_max=100 * KIB)


@pytest.fixture
def keeper(tmp_path: Path, blobs: BlobStore) -> Iterator[Keeper]:
    with open_store(tmp_path / "node.db") as store:
        yield Keeper(store, blobs)


async def add(blobs: BlobStore, letter: str, *, hours_ago: float) -> BlobId:
    """A blob of 20 KiB that was last used so long ago."""
    info = await blobs.add_bytes(letter.encode() * 20 * KIB)
    used = time.time() - hours_ago * HOUR
    os.utime(blobs.path(info.blob), (used, used))
    blobs.quota.touch(info.id, used)
    return info.id


async def test_the_copy_used_longest_ago_makes_room_and_what_is_held_stays(
    keeper: Keeper, blobs: BlobStore
) -> None:
    pinned = await add(blobs, "a", hours_ago=9)
    oldest, older, of_task = [await add(blobs, c, hours_ago=h) for c, h in (("b", 8), ("c", 7), ("d", 6))]
    ended = await add(blobs, "e", hours_ago=5)
    keeper.hold((pinned,), BY_HAND)
    keeper.hold((of_task,), b"t" * 32)
    keeper.hold((ended,), b"u" * 32, until_ms=1)
    new = await blobs.add_bytes(b"f" * 20 * KIB)
    assert blobs.list_blobs() == sorted([pinned, older, of_task, ended, new.id])
    assert not blobs.has(oldest)
    await blobs.info(older)  # used now: not the next to go
    await blobs.add_bytes(b"g" * 20 * KIB)
    assert blobs.has(older)
    assert not blobs.has(ended)
    assert blobs.has(pinned)
    assert blobs.has(of_task)


async def test_a_store_full_of_what_is_held_or_in_use_says_so(keeper: Keeper, blobs: BlobStore) -> None:
    held = [await add(blobs, letter, hours_ago=9) for letter in "abcd"]
    keeper.hold(held, BY_HAND)
    fresh = await add(blobs, "e", hours_ago=0)
    with pytest.raises(StorageFull, match="remove some or raise the limit"):
        await blobs.add_bytes(b"f" * 20 * KIB)
    assert blobs.list_blobs() == sorted([*held, fresh])


async def test_what_comes_from_others_makes_room_too(keeper: Keeper, blobs: BlobStore) -> None:
    for letter in "abcde":
        await add(blobs, letter, hours_ago=2)
    data = b"x" * 30 * KIB
    info = BlobInfo(blob_id_of(len(data), (chunk_hash(data),)), len(data), (chunk_hash(data),))
    partial = await blobs.begin(info)
    await partial.write_chunk(0, data)
    await partial.finish()
    assert blobs.has(info.blob)
    await blobs.keep_small({blob_id_of(3, (chunk_hash(b"abc"),)): b"abc"})
    assert blobs.bytes_total <= 100 * KIB


async def test_collecting_by_hand_takes_copies_and_abandoned_parts_but_first_only_counts(
    keeper: Keeper, blobs: BlobStore
) -> None:
    held = await add(blobs, "a", hours_ago=1)
    keeper.hold((held,), BY_HAND)
    copy = await add(blobs, "b", hours_ago=1)
    data = b"x" * 10 * KIB
    info = BlobInfo(blob_id_of(len(data), (chunk_hash(data),)), len(data), (chunk_hash(data),))
    (await blobs.begin(info)).close()
    fetched = await keeper.collect(unused_seconds=0, dry_run=True)
    assert (fetched.blobs, fetched.bytes) == (2, 30 * KIB)
    assert blobs.has(copy)
    async with blobs.lock_of(info.blob):  # somebody is fetching it
        assert (await keeper.collect(unused_seconds=0)).blobs == 1
    assert blobs.list_partials() == [info.blob]
    assert (await keeper.collect(unused_seconds=60)).blobs == 0
    assert (await keeper.collect(unused_seconds=0)).bytes == 10 * KIB
    assert blobs.list_blobs() == [held]
    assert blobs.list_partials() == []
    assert blobs.bytes_total == 20 * KIB


async def test_last_uses_are_known_after_a_restart(keeper: Keeper, blobs: BlobStore, tmp_path: Path) -> None:
    second = await add(blobs, "a", hours_ago=2)
    first = await add(blobs, "b", hours_ago=3)
    again = BlobStore(tmp_path / "blobs", bytes_max=100 * KIB)
    assert list(again.quota.by_use()) == [first, second]
    assert again.bytes_total == 40 * KIB
    await again.read_chunk(await again.info(first), 0)
    assert list(BlobStore(tmp_path / "blobs").quota.by_use()) == [second, first]


async def test_whoever_wants_to_know_hears_that_a_blob_is_gone(keeper: Keeper, blobs: BlobStore) -> None:
    gone: list[bytes] = []
    blobs.on_gone = gone.append
    blob = await add(blobs, "a", hours_ago=1)
    keeper.hold((blob,), BY_HAND)
    assert keeper.reasons(blob, 1) == [BY_HAND]
    assert keeper.let_go(blob, BY_HAND)
    assert not keeper.let_go(blob, BY_HAND)
    await keeper.collect(unused_seconds=0)
    await trio.lowlevel.checkpoint()
    assert gone == [blob]


def test_reasons_in_words() -> None:
    reasons = (BY_HAND, DATASET + bytes(32), bytes(32), bytes(36))
    assert [reason_text(each) for each in reasons] == ["pinned", "dataset", "task", "task input"]
