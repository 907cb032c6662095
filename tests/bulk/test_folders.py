"""Files of a dataset go below their folder and nowhere else, whatever lies there already."""

import os
import stat
from pathlib import Path

import pytest
import trio

from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.folders import open_folder
from ioc_node.bulk.listing import add_pages, list_folder
from ioc_node.errors import StorageUnusable, UsageError
from ioc_wire.datasets import FileEntry, read_page
from ioc_wire.errors import BlobCorrupt, Malformed

from .conftest import MIB, pattern


async def entry_of(store: BlobStore, path: str, data: bytes, *, executable: bool = False) -> FileEntry:
    info = await store.add_bytes(data)
    return FileEntry(path, info.blob, info.size, executable)


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    return tmp_path / "inside"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "precious").write_text("precious")
    return folder


async def test_files_are_written_with_bounded_modes_and_nothing_else(
    bob_store: BlobStore, inside: Path
) -> None:
    small = await entry_of(bob_store, "a/b/small", b"small")
    large = await entry_of(bob_store, "a/large", pattern(2 * MIB + 7), executable=True)
    empty = await entry_of(bob_store, "empty", b"")
    with open_folder(inside, make=True) as folder:
        for entry in (small, large, empty):
            assert folder.state(entry) == "missing"
            folder.write(entry, bob_store)
            assert folder.state(entry) == "same"
        assert sorted(folder.names()) == ["a/b/small", "a/large", "empty"]
    assert (inside / "a/large").read_bytes() == pattern(2 * MIB + 7)
    modes = [stat.S_IMODE((inside / name).stat().st_mode) for name in ("a/b/small", "a/large")]
    assert modes == [0o644, 0o755]


@pytest.mark.parametrize("path", ["../outside/precious", "/etc/x", "a/../../outside/precious", "a\\b", "nul"])
async def test_a_path_that_leads_out_is_never_opened(
    bob_store: BlobStore, inside: Path, outside: Path, path: str
) -> None:
    entry = await entry_of(bob_store, path, b"evil")
    with open_folder(inside, make=True) as folder:
        for touch in (folder.state, lambda each: folder.write(each, bob_store)):
            with pytest.raises(Malformed):
                touch(entry)
    assert (outside / "precious").read_text() == "precious"
    assert list(inside.iterdir()) == []


async def test_links_in_the_folder_are_not_followed(
    bob_store: BlobStore, inside: Path, outside: Path
) -> None:
    inside.mkdir()
    (inside / "folder").symlink_to(outside)
    (inside / "file").symlink_to(outside / "precious")
    (inside / "dangling").symlink_to(outside / "new")
    through = await entry_of(bob_store, "folder/precious", b"evil")
    with open_folder(inside) as folder:
        assert folder.state(through) == "differs"
        with pytest.raises(UsageError, match="a link, or a file where a folder should be, is in the way"):
            folder.write(through, bob_store)
        for name in ("file", "dangling"):
            entry = await entry_of(bob_store, name, b"evil")
            assert folder.state(entry) == "differs"
            folder.write(entry, bob_store)  # the link itself is replaced
            assert not (inside / name).is_symlink()
            assert (inside / name).read_bytes() == b"evil"
        with pytest.raises(UsageError, match="is a link"):
            list(folder.files())
    assert {path.name: path.read_text() for path in outside.iterdir()} == {"precious": "precious"}


async def test_a_folder_that_becomes_a_link_meanwhile_leads_nowhere(
    bob_store: BlobStore, inside: Path, outside: Path
) -> None:
    first = await entry_of(bob_store, "sub/one", b"1")
    second = await entry_of(bob_store, "other/two", b"2")
    third = await entry_of(bob_store, "sub/three", b"3")
    with open_folder(inside, make=True) as folder:
        folder.write(first, bob_store)
        folder.write(second, bob_store)
        (inside / "sub").rename(inside / "moved")
        (inside / "sub").symlink_to(outside)
        with pytest.raises(UsageError, match="in the way"):
            folder.write(third, bob_store)
    assert [path.name for path in outside.iterdir()] == ["precious"]


async def test_what_is_in_the_way_is_one_line_and_stays(bob_store: BlobStore, inside: Path) -> None:
    (inside / "name").mkdir(parents=True)
    os.mkfifo(inside / "pipe")
    (inside / "file").write_text("a file")
    with open_folder(inside) as folder:
        assert folder.state(await entry_of(bob_store, "pipe", b"x")) == "differs"  # and does not hang
        for path in ("name", "file/below"):
            with pytest.raises(UsageError, match=f"cannot write '{path}' in "):
                folder.write(await entry_of(bob_store, path, b"x"), bob_store)
        with pytest.raises(UsageError, match="is no plain file"):
            list(folder.files())
    assert sorted(path.name for path in inside.iterdir()) == ["file", "name", "pipe"]
    with pytest.raises(UsageError, match="cannot open the folder"), open_folder(inside / "file"):
        pass


async def test_corrupt_bytes_leave_nothing_under_the_name(bob_store: BlobStore, inside: Path) -> None:
    entry = await entry_of(bob_store, "a", pattern(3 * MIB))
    path = bob_store.path(entry.blob)
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(2 * MIB)
        file.write(b"\xff\xfe")
    with open_folder(inside, make=True) as folder:
        with pytest.raises(BlobCorrupt):
            folder.write(entry, bob_store)
        assert list(folder.names()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small disk")
async def test_a_full_disk_leaves_nothing_under_the_name(bob_store: BlobStore, inside: Path) -> None:
    entry = await entry_of(bob_store, "a", pattern(3 * MIB))
    inside.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "ioc-test", str(inside)]
    if (await trio.run_process(command, check=False, capture_stderr=True)).returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        with open_folder(inside) as folder:
            with pytest.raises(StorageUnusable, match=r"no space left for a in .*make room"):
                folder.write(entry, bob_store)
            assert list(folder.names()) == []
    finally:
        await trio.run_process(["umount", str(inside)])


async def test_the_same_folder_gives_the_same_list(
    bob_store: BlobStore, alice_store: BlobStore, inside: Path
) -> None:
    inside.mkdir()
    for number in range(300):
        (inside / f"f{number:03}").write_bytes(pattern(number * 11))
    (inside / "z").mkdir()
    (inside / "z" / "large").write_bytes(pattern(200_000))
    (inside / "run.sh").write_text("#!")
    (inside / "run.sh").chmod(0o755)
    kept: list[bytes] = []
    entries = await list_folder(bob_store, inside, kept.extend)
    assert [entry.path for entry in entries] == sorted(entry.path for entry in entries)
    assert len(entries) == 302
    assert {entry.path for entry in entries if entry.executable} == {"run.sh"}
    assert set(kept) == {entry.blob for entry in entries} == set(bob_store.list_blobs())
    pages = await add_pages(bob_store, entries, kept.extend)
    assert pages == await add_pages(
        alice_store, await list_folder(alice_store, inside, kept.extend), kept.extend
    )
    data = await bob_store.read_bytes(pages[0].blob, bytes_max=MIB)
    assert read_page(data, pages[0]) == tuple(entries)


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["Read", "read"], "but for case"),
        (["a:b"], "one of"),
        (["con"], "device"),
        (["a\nb"], "control character"),
    ],
)
async def test_a_folder_that_cannot_be_a_dataset_is_one_line(
    bob_store: BlobStore, inside: Path, names: list[str], why: str
) -> None:
    inside.mkdir()
    for name in names:
        (inside / name).write_text(name)
    with pytest.raises(UsageError, match=f"cannot be a dataset: .*{why}") as caught:
        await list_folder(bob_store, inside, lambda _blobs: None)
    assert "\n" not in str(caught.value)
    assert bob_store.list_blobs() == []
