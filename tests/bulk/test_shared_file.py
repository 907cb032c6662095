"""A blob taken over from an open file: by a second name or by a copy, and never in a way that changes the file."""

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.offloads.shared_file import take_over
from ioc_node.bulk.offloads.shm import ShmOffload
from ioc_node.errors import ConfigError
from ioc_wire.bulk import BlobInfo

from .conftest import MIB, pattern

SIZE = 5 * MIB + 7


async def begun(alice_store: BlobStore) -> tuple[BlobInfo, int]:
    info = await alice_store.add_bytes(pattern(SIZE))
    return info, os.open(alice_store.path(info.blob), os.O_RDONLY)


@pytest.mark.parametrize(("links", "how"), [(True, "shared"), (False, "copied")])
async def test_both_ways_give_the_blob(
    alice_store: BlobStore, bob_store: BlobStore, links: bool, how: str
) -> None:
    info, source = await begun(alice_store)
    partial = await bob_store.begin(info)
    assert await take_over(partial, source, links=links) == how
    assert partial.complete
    await partial.finish()
    os.close(source)
    assert bob_store.path(info.blob).samefile(alice_store.path(info.blob)) is links
    assert bob_store.path(info.blob).stat().st_mode & 0o777 == 0o444
    assert await bob_store.read_bytes(info.blob, bytes_max=SIZE) == pattern(SIZE)
    assert not list((bob_store.folder / "partial").iterdir())


async def test_what_has_arrived_is_kept_and_the_rest_copied(
    alice_store: BlobStore, bob_store: BlobStore
) -> None:
    info, source = await begun(alice_store)
    partial = await bob_store.begin(info)
    await partial.write_chunk(1, await alice_store.read_chunk(info, 1))
    assert await take_over(partial, source, links=True) == "copied"
    assert partial.complete
    partial.close()
    os.close(source)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system than `tmp_path`."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        assert Path(folder).stat().st_dev != tmp_path.stat().st_dev
        yield Path(folder)


async def test_another_file_system_means_a_copy(alice_store: BlobStore, elsewhere: Path) -> None:
    store = BlobStore(elsewhere)
    info, source = await begun(alice_store)
    partial = await store.begin(info)
    assert await take_over(partial, source, links=True) == "copied"
    await partial.finish()
    os.close(source)
    assert await store.read_bytes(info.blob, bytes_max=SIZE) == pattern(SIZE)


async def test_whatever_comes_after_a_link_that_failed_leaves_the_file_alone(
    alice_store: BlobStore, bob_store: BlobStore
) -> None:
    info, source = await begun(alice_store)
    partial = await bob_store.begin(info)
    assert partial.link_sync(source)
    partial.verify_linked_sync(0, bytearray(MIB), source)
    partial.unlink_sync()
    assert partial.bytes_present == 0
    before = alice_store.path(info.blob).stat()
    for index in range(len(info.chunks)):
        await partial.write_chunk(index, await alice_store.read_chunk(info, index))
    await partial.finish()
    os.close(source)
    after = alice_store.path(info.blob).stat()
    assert (after.st_nlink, after.st_mtime_ns) == (1, before.st_mtime_ns)
    assert not bob_store.path(info.blob).samefile(alice_store.path(info.blob))


async def test_a_link_left_by_a_crash_is_not_taken_for_the_blob(
    alice_store: BlobStore, bob_store: BlobStore
) -> None:
    info, source = await begun(alice_store)
    partial = await bob_store.begin(info)
    assert partial.link_sync(source)
    partial.verify_linked_sync(0, bytearray(MIB), source)
    os.close(source)  # and nothing more: as if killed here
    again = BlobStore(bob_store.folder)
    resumed = await again.resume(info.blob)
    assert resumed is not None
    assert resumed.bytes_present == 0
    assert alice_store.path(info.blob).stat().st_nlink == 1
    resumed.close()
    partial.close()


async def test_a_deleted_file_is_copied(alice_store: BlobStore, bob_store: BlobStore) -> None:
    info, source = await begun(alice_store)
    await alice_store.remove(info.blob)  # its last name is gone, so no second one can be made
    partial = await bob_store.begin(info)
    assert await take_over(partial, source, links=True) == "copied"
    partial.close()
    os.close(source)


async def test_the_descriptor_gives_no_right_to_write(alice_store: BlobStore) -> None:
    _, source = await begun(alice_store)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(source, b"x", 0)
    with pytest.raises(OSError, match=r"Invalid argument|Bad file descriptor"):
        os.ftruncate(source, 0)
    os.close(source)


def test_options(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown field `speed`"):
        ShmOffload(tmp_path, {"speed": 9})
    with pytest.raises(ConfigError, match="Expected `bool`"):
        ShmOffload(tmp_path, {"links": "no"})


def test_what_a_killed_node_left_is_removed(tmp_path: Path) -> None:
    other = ShmOffload(tmp_path)
    assert other.export(b"b" * 32) is not None
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(tmp_path / "shm-00000000.sock"))
    road = ShmOffload(tmp_path)
    assert road.export(b"b" * 32) is not None
    assert {other._path, road._path} == set(tmp_path.iterdir())
    other.close()
    road.close()
    assert not list(tmp_path.iterdir())
