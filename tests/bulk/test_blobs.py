"""The store on disk: nothing half-written is ever complete, nothing changed is ever served."""

import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.partial import PartialBlob
from ioc_node.errors import StorageFull, UsageError
from ioc_wire.bulk import BlobInfo, ChunkRange, blob_id_of, chunk_hash, format_blob_id
from ioc_wire.errors import BlobCorrupt, NotFound

from .conftest import MIB, pattern

BIG = pattern(3 * MIB + 17)


async def test_bytes_and_files_get_the_same_name(bob_store: BlobStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(BIG)
    info = await bob_store.add_file(source)
    assert await bob_store.add_bytes(BIG) == info
    assert bob_store.has(info.blob)
    assert bob_store.list_blobs() == [info.blob]
    assert bob_store.bytes_total == len(BIG)
    assert bob_store.path(info.blob).read_bytes() == BIG
    assert bob_store.path(info.blob).stat().st_mode & 0o777 == 0o444
    assert await bob_store.read_bytes(info.blob, bytes_max=len(BIG)) == BIG
    await bob_store.export(info.blob, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == BIG


async def test_blobs_survive_a_restart_and_can_be_removed(bob_store: BlobStore) -> None:
    info = await bob_store.add_bytes(b"hello")
    again = BlobStore(bob_store.folder)
    assert await again.info(info.blob) == info
    assert await again.remove(info.blob)
    assert not await again.remove(info.blob)
    with pytest.raises(NotFound):
        again.path(info.blob)
    assert BlobStore(bob_store.folder).list_blobs() == []


async def test_the_empty_blob_is_a_blob(bob_store: BlobStore, tmp_path: Path) -> None:
    info = await bob_store.add_bytes(b"")
    await bob_store.export(info.blob, tmp_path / "empty")
    assert (tmp_path / "empty").read_bytes() == b""


async def test_a_copy_takes_the_place_of_plain_files_only(bob_store: BlobStore, tmp_path: Path) -> None:
    info = await bob_store.add_bytes(b"hello")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="pipe: not a plain file"):
        await bob_store.export(info.blob, tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
    longest = tmp_path / ("n" * 255)
    await bob_store.export(info.blob, longest)
    assert longest.read_bytes() == b"hello"


async def test_a_missing_file_is_one_line(bob_store: BlobStore, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*nowhere: No such file"):
        await bob_store.add_file(tmp_path / "nowhere")


@pytest.mark.parametrize("offset", [0, MIB + 5, len(BIG) - 1])
async def test_a_flipped_bit_on_disk_is_refused_and_set_aside(
    bob_store: BlobStore, tmp_path: Path, offset: int
) -> None:
    info = await bob_store.add_bytes(BIG)
    flip_bit(bob_store.path(info.blob), offset)
    with pytest.raises(BlobCorrupt):
        await bob_store.export(info.blob, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    assert not bob_store.has(info.blob)
    assert list((bob_store.folder / "corrupt").iterdir())


async def test_a_changed_hash_list_is_refused(bob_store: BlobStore) -> None:
    info = await bob_store.add_bytes(BIG)
    flip_bit(bob_store.hashes_path(info.blob), 40)
    again = BlobStore(bob_store.folder)
    with pytest.raises(BlobCorrupt):
        await again.info(info.blob)
    assert not again.has(info.blob)


async def test_a_partial_blob_is_verified_again_when_taken_up(bob_store: BlobStore) -> None:
    info = info_of(BIG)
    partial = await bob_store.begin(info)
    for index in (0, 2):
        await partial.write_chunk(index, BIG[index * MIB : (index + 1) * MIB])
    with pytest.raises(BlobCorrupt):
        await partial.write_chunk(1, BIG[:MIB])
    assert partial.missing_ranges() == (ChunkRange(1, 1), ChunkRange(3, 1))
    partial.close()
    flip_bit(bob_store.folder / "partial" / f"{name_of(info)}.data", 2 * MIB + 9)

    again = BlobStore(bob_store.folder)
    assert again.list_partials() == [info.blob]
    assert not again.has(info.blob)
    taken = await again.resume(info.blob)
    assert taken is not None
    assert taken.bytes_present == MIB
    assert taken.missing_ranges() == (ChunkRange(1, 3),)
    for index in (1, 2, 3):
        await taken.write_chunk(index, BIG[index * MIB : (index + 1) * MIB])
    await taken.finish()
    assert again.path(info.blob).read_bytes() == BIG
    assert again.list_partials() == []
    assert list((again.folder / "partial").iterdir()) == []


async def test_the_quota_holds_for_all_ways_in(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "small", bytes_max=2 * MIB)
    await store.add_bytes(pattern(MIB))
    with pytest.raises(StorageFull, match="only 1048576 of the 2097152"):
        await store.add_bytes(BIG)
    with pytest.raises(StorageFull):
        await store.begin(info_of(BIG))
    (tmp_path / "big").write_bytes(BIG)
    with pytest.raises(StorageFull):
        await store.add_file(tmp_path / "big")
    assert store.bytes_total == MIB
    assert len(store.list_blobs()) == 1
    assert list((store.folder / "incoming").iterdir()) == []
    partial = await store.begin(info_of(pattern(MIB - 1)))
    assert store.bytes_total == 2 * MIB - 1
    partial.close()
    await store.discard_partial(partial.info.blob)
    assert store.bytes_total == MIB


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """The kernel refuses longer files, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


async def test_a_disk_that_takes_no_more_is_told_in_one_line(bob_store: BlobStore, tmp_path: Path) -> None:
    kept = await bob_store.add_bytes(pattern(MIB))
    with file_size_limit(2 * MIB):
        with pytest.raises(StorageFull, match=r"no space left for .* make room"):
            await bob_store.add_bytes(BIG)
        with pytest.raises(StorageFull, match="no space left for"):
            await bob_store.begin(info_of(BIG))
    assert bob_store.list_blobs() == [kept.blob]
    assert bob_store.bytes_total == MIB
    assert list((bob_store.folder / "incoming").iterdir()) == []
    assert list((bob_store.folder / "partial").iterdir()) == []
    big = await bob_store.add_bytes(BIG)
    with file_size_limit(2 * MIB), pytest.raises(StorageFull):
        await bob_store.export(big.blob, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small disk")
async def test_a_full_disk_is_told_in_one_line() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = ["mount", "-t", "tmpfs", "-o", "size=2m", "ioc-test", folder]
        mounted = await trio.run_process(command, check=False, capture_stderr=True)
        if mounted.returncode:
            pytest.skip("cannot mount a small disk here")
        try:
            store = BlobStore(Path(folder) / "blobs")
            with pytest.raises(StorageFull, match="No space left on device"):
                await store.add_bytes(BIG)
            with pytest.raises(StorageFull):
                await store.begin(info_of(BIG))
            assert store.list_blobs() == []
            assert await store.add_bytes(pattern(MIB))
        finally:
            await trio.run_process(["umount", folder])


def test_a_killed_writer_leaves_nothing_complete(tmp_path: Path) -> None:
    script = (
        "import sys, trio, os, signal\n"
        "from pathlib import Path\n"
        "from ioc_node.bulk.blobs import BlobStore\n"
        "from ioc_node.bulk import blobs\n"
        "store = BlobStore(Path(sys.argv[1]))\n"
        "blobs.BlobStore._place = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "trio.run(store.add_bytes, b'x' * 3_000_000)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path / "store")], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert list((tmp_path / "store" / "incoming").iterdir())
    store = BlobStore(tmp_path / "store")
    assert store.list_blobs() == []
    assert list((tmp_path / "store" / "incoming").iterdir()) == []


def info_of(data: bytes) -> BlobInfo:
    chunks = tuple(chunk_hash(data[at : at + MIB]) for at in range(0, len(data), MIB))
    return BlobInfo(blob_id_of(len(data), chunks), len(data), chunks)


def name_of(info: BlobInfo) -> str:
    return format_blob_id(info.blob)


def flip_bit(path: Path, offset: int) -> None:
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_beginning_that_fails_leaves_no_descriptors(
    bob_store: BlobStore, alice_store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk has no room for one more file, or whoever wanted the blob is gone."""
    info = await alice_store.add_bytes(BIG)
    (bob_store.folder / "partial" / f"{format_blob_id(info.blob)}.marks").mkdir()
    before = open_descriptors()
    with pytest.raises(IsADirectoryError):
        await bob_store.begin(info)
    (bob_store.folder / "partial" / f"{format_blob_id(info.blob)}.marks").rmdir()
    assert open_descriptors() == before
    open_sync = PartialBlob.open_sync
    with trio.CancelScope() as scope:
        monkeypatch.setattr(
            PartialBlob,
            "open_sync",
            lambda partial: (open_sync(partial), trio.from_thread.run_sync(scope.cancel)),
        )
        await bob_store.begin(info)
    assert scope.cancelled_caught
    assert open_descriptors() == before
