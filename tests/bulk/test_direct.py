"""Large blobs are written past the page cache, where disk and memory are made for it."""

import errno
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from ioc_node.bulk import direct
from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.buffers import ChunkBuffers
from ioc_node.bulk.direct import BLOCK, DirectWriter
from ioc_node.bulk.gathering import Source
from ioc_node.bulk.transfers import open_bulk
from ioc_node.errors import StorageFull

from .conftest import ALICE, BOB, MIB, pattern

SIZE = 5 * MIB + 7
DATA = pattern(SIZE)


@pytest.fixture
def wrote(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Every file is large enough; tells of each write how many pieces went past the cache, and how many there were."""
    told: list[tuple[int, int]] = []
    write = DirectWriter._write_direct

    def tell(self: DirectWriter, pieces: Sequence[bytes | memoryview], offset: int) -> int:
        told.append((write(self, pieces, offset), len(pieces)))
        return told[-1][0]

    monkeypatch.setattr(direct, "SIZE_MIN", 0)
    monkeypatch.setattr(DirectWriter, "_write_direct", tell)
    return told


async def test_a_fetched_blob_goes_past_the_page_cache(
    alice_store: BlobStore, bob_store: BlobStore, wrote: list[tuple[int, int]]
) -> None:
    info = await alice_store.add_bytes(DATA)
    with trio.fail_after(30):
        async with open_bulk(alice_store, ALICE) as alice, open_bulk(bob_store, BOB) as bob:
            await bob.gather([Source(alice.issue_ticket(info.blob, bob.public_key, hosts=["127.0.0.1"]))])
    assert bob_store.path(info.blob).read_bytes() == DATA
    past, pieces = map(sum, zip(*wrote, strict=True))
    assert (past, pieces) == (5, 6)  # not the last chunk, of seven bytes


async def test_memory_that_begins_anywhere_is_written_as_ever(
    bob_store: BlobStore, wrote: list[tuple[int, int]]
) -> None:
    info = await BlobStore(bob_store.folder.with_name("other")).add_bytes(DATA)
    partial = await bob_store.begin(info)
    odd = memoryview(mmap.mmap(-1, MIB + BLOCK))[1 : MIB + 1]
    for index in range(6):
        data = DATA[index * MIB : (index + 1) * MIB]
        odd[: len(data)] = data
        await partial.write_chunk(index, odd[: len(data)])
    await partial.finish()
    assert bob_store.path(info.blob).read_bytes() == DATA
    assert [pieces for _, pieces in wrote] == [1] * 6  # some file systems take it past the cache all the same


async def test_a_disk_without_it(bob_store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def refuse(path: str | Path, flags: int, *args: int, **more: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return opened(path, flags, *args, **more)

    monkeypatch.setattr(direct, "SIZE_MIN", 0)
    monkeypatch.setattr(os, "open", refuse)
    info = await BlobStore(bob_store.folder.with_name("other")).add_bytes(DATA)
    partial = await bob_store.begin(info)
    for index in range(6):
        await partial.write_chunk(index, DATA[index * MIB : (index + 1) * MIB])
    await partial.finish()
    assert bob_store.path(info.blob).read_bytes() == DATA


async def test_a_disk_that_is_full(bob_store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_self: DirectWriter, _pieces: Sequence[bytes | memoryview], _offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(direct, "SIZE_MIN", 0)
    monkeypatch.setattr(DirectWriter, "_write_direct", full)
    info = await BlobStore(bob_store.folder.with_name("other")).add_bytes(DATA)
    partial = await bob_store.begin(info)
    try:
        with pytest.raises(StorageFull, match="no space left"):
            await partial.write_chunk(0, DATA[:MIB])
        assert not partial.is_present(0)
    finally:
        partial.close()


@pytest.mark.parametrize("size", [0, 7, MIB, SIZE, 12 * MIB])
async def test_a_file_written_from_a_blob(
    alice_store: BlobStore, tmp_path: Path, wrote: list[tuple[int, int]], size: int
) -> None:
    info = await alice_store.add_bytes(pattern(size))
    await alice_store.export(info.blob, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == pattern(size)
    assert sum(past for past, _ in wrote) == size // MIB


async def test_small_files_are_not_worth_it(alice_store: BlobStore, tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        writer = DirectWriter(file.fileno(), direct.SIZE_MIN - 1)
        assert writer._direct < 0
        writer.write([b"abc", b"de"], 0)
        writer.close()
    assert (tmp_path / "file").read_bytes() == b"abcde"


def test_buffers_go_around() -> None:
    buffers = ChunkBuffers()
    first, second = buffers.take(MIB), buffers.take(7)
    first[:3] = b"abc"
    buffers.give_back(first)
    again = buffers.take(3)
    assert (bytes(again), len(second)) == (b"abc", 7)
