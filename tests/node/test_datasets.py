"""Datasets between nodes: added, found in the DHT, fetched whole and in part, shared on, compared, withdrawn."""

import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trio.lowlevel
from msgspec import structs

import ioc_node
from ioc_node.bulk.plane.parent import ChildPlane
from ioc_node.config import BulkConfig
from ioc_node.errors import RequestRefused, UsageError
from ioc_wire.bulk import format_blob_id
from ioc_wire.codec import encode
from ioc_wire.datasets import DatasetVersion, FileEntry, Page, dataset_point, encode_page
from ioc_wire.errors import Malformed, NotFound, Revoked
from ioc_wire.signed import sign
from tests.node.conftest import MakeHome


@dataclass
class Town:
    """A core node; Alice has a dataset, Bob and Carol want it."""

    core: ioc_node.Node
    alice: ioc_node.Node
    bob: ioc_node.Node
    carol: ioc_node.Node


@pytest.fixture
async def town(make_home: MakeHome) -> AsyncIterator[Town]:
    core_config = make_home("core", "regional")
    first = (f"127.0.0.1:{core_config.port}",)
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(ioc_node.open_node(core_config))]
        for name in ("alice", "bob", "carol"):
            config = make_home(name, "consumer", bootstrap=first)
            nodes.append(await stack.enter_async_context(ioc_node.open_node(config)))
        with trio.fail_after(20):
            for node in nodes[1:]:
                await node.wait_joined()
            yield Town(*nodes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    dice = random.Random(1)
    made = tmp_path / "terrain"
    for number in range(40):
        path = made / f"tiles/{number % 4}/t{number:03}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dice.randbytes(100 + number * 50))
    (made / "large.bin").write_bytes(dice.randbytes(1_500_000))
    (made / "README").write_text("terrain")
    return made


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def test_a_dataset_goes_from_node_to_node_whole_and_in_part(
    town: Town, folder: Path, tmp_path: Path
) -> None:
    added = await town.alice.datasets.add("terrain", folder, announce=True)
    assert (added.row.version, added.row.files, added.new) == (1, 42, True)
    assert added.announced_to >= 1
    name = added.row.dataset

    part = await town.bob.datasets.get(name, tmp_path / "part", path="tiles/2/t002.bin")
    assert tree(tmp_path / "part") == {"tiles/2/t002.bin": (folder / "tiles/2/t002.bin").read_bytes()}
    assert part.bytes_moved == 200
    assert len(town.bob.bulk.store.list_blobs()) == 2, "the page and the file"

    whole = await town.bob.datasets.get(name, tmp_path / "whole")
    assert tree(tmp_path / "whole") == tree(folder)
    assert (whole.written, whole.same) == (42, 0)
    again = await town.bob.datasets.get(name, tmp_path / "whole")
    assert (again.written, again.same, again.bytes_moved) == (0, 42, 0)

    shown = await town.carol.datasets.show(name, "tiles/1")
    assert shown.matching == 10
    assert shown.row.blob == added.row.blob
    assert (await town.carol.datasets.show(format_blob_id(added.row.blob))).matching == 42
    with pytest.raises(NotFound, match=r"'tiles/9' in dataset"):
        await town.carol.datasets.show(name, "tiles/9")
    with pytest.raises(UsageError, match=r"is '\.\.'"):
        await town.carol.datasets.show(name, "../x")


async def test_a_folder_with_other_contents_is_not_written_over_unasked(
    town: Town, folder: Path, tmp_path: Path
) -> None:
    name = (await town.alice.datasets.add("terrain", folder, announce=True)).row.dataset
    target = tmp_path / "target"
    target.mkdir()
    (target / "README").write_text("mine")
    (target / "own").write_text("mine")
    with pytest.raises(UsageError, match=r"1 files in .* are there with other contents, such as 'README'"):
        await town.bob.datasets.get(name, target)
    assert tree(target) == {"README": b"mine", "own": b"mine"}
    compared = await town.bob.datasets.compare(name, target)
    assert (compared.changed, compared.extra, len(compared.missing)) == (("README",), ("own",), 41)
    await town.bob.datasets.get(name, target, replace=True)
    assert tree(target) == {**tree(folder), "own": b"mine"}
    compared = await town.bob.datasets.compare(name, target)
    assert (compared.same, compared.differences, compared.extra) == (42, 1, ("own",))


async def test_a_bulk_process_that_is_killed_is_no_fault_of_the_holder(
    town: Town, folder: Path, tmp_path: Path, make_home: MakeHome
) -> None:
    """Its only holder, which has used up the tickets or not, is asked again."""
    name = (await town.alice.datasets.add("terrain", folder, announce=True)).row.dataset
    config = make_home("dave", "consumer", bootstrap=(f"127.0.0.1:{town.core.config.port}",))
    async with ioc_node.open_node(structs.replace(config, bulk=BulkConfig(offloads=()))) as dave:
        await dave.wait_joined()

        async def kill() -> None:
            plane = dave.bulk.plane
            assert isinstance(plane, ChildPlane)
            while not dave.bulk.store.list_blobs():  # the page
                await trio.lowlevel.checkpoint()
            os.kill(pid := plane.pid, signal.SIGSTOP)
            while not plane.process.link or not plane.process.link.streams:  # the files
                await trio.lowlevel.checkpoint()
            os.kill(pid, signal.SIGKILL)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill)
            await dave.datasets.get(name, tmp_path / "to-dave")
    assert tree(tmp_path / "to-dave") == tree(folder)


async def test_versions_follow_each_other_and_old_ones_stay(town: Town, folder: Path, tmp_path: Path) -> None:
    first = await town.alice.datasets.add("terrain", folder, announce=True)
    assert not (await town.alice.datasets.add("terrain", folder, announce=True)).new
    before = tree(folder)
    (folder / "README").write_text("terrain, newer")
    (folder / "tiles/0/t000.bin").unlink()
    second = await town.alice.datasets.add("terrain", folder, announce=True)
    assert (second.row.version, second.row.files) == (2, 41)
    name = second.row.dataset
    assert (await town.bob.datasets.show(name)).row.version == 2
    await town.bob.datasets.get(name, tmp_path / "old", version=1)
    assert tree(tmp_path / "old") == before
    await town.bob.datasets.get(format_blob_id(first.row.blob), tmp_path / "by-blob")
    assert tree(tmp_path / "by-blob") == before
    await town.bob.datasets.get(name, tmp_path / "new")
    assert tree(tmp_path / "new") == tree(folder)
    with pytest.raises(NotFound, match="version 7 of dataset"):
        await town.bob.datasets.show(name, version=7)
    assert [row.version for row in town.alice.datasets.rows()] == [2, 1]


async def test_whoever_shares_it_serves_it_when_the_owner_is_gone(
    town: Town, folder: Path, tmp_path: Path
) -> None:
    name = (await town.alice.datasets.add("terrain", folder, announce=True)).row.dataset
    await town.bob.datasets.get(name, tmp_path / "to-bob", share=True)
    assert [row.own for row in town.bob.datasets.rows()] == [False]
    assert await town.alice.datasets.remove(name, None) == 1
    await town.alice.collect_garbage(0)
    # what nothing holds any more is swept, which a running node does by itself
    await town.alice.shared.keeper.sweep(1 << 61)
    assert town.alice.bulk.store.list_blobs() == []
    await town.carol.datasets.get(name, tmp_path / "to-carol")
    assert tree(tmp_path / "to-carol") == tree(folder)
    assert town.bob.bulk.counters.bytes_sent > 1_500_000
    assert town.alice.bulk.counters.bytes_sent <= 1_600_000


async def test_what_is_removed_is_withdrawn_and_refused(town: Town, folder: Path, tmp_path: Path) -> None:
    added = await town.alice.datasets.add("terrain", folder, announce=True)
    point = dataset_point(town.alice.identity.node_id, "terrain")
    assert await town.bob.shared.sources.holders(point)
    await town.alice.datasets.remove("terrain", None)
    with pytest.raises((NotFound, RequestRefused)):
        await town.bob.datasets.get(added.row.dataset, tmp_path / "late")
    while True:  # the withdrawal ends the announcement, give or take the clocks' tolerance
        held, _ = town.core.dht.machine.holders.get(point, 1e12, 9, town.core.dht.machine.chance)
        if not held:
            break
        await trio.sleep(0.02)
    with pytest.raises(NotFound):
        await town.alice.datasets.remove("terrain", None)
    with pytest.raises(NotFound):
        await town.bob.datasets.show(f"{town.alice.identity.name}/nothing")


async def test_a_revoked_owner_is_not_believed(town: Town, folder: Path) -> None:
    name = (await town.alice.datasets.add("terrain", folder, announce=True)).row.dataset
    town.bob.datasets.is_revoked = lambda key: key == town.alice.identity.public_key
    with pytest.raises(Revoked, match="the owner of dataset"):
        await town.bob.datasets.show(name)


@pytest.mark.parametrize(
    ("paths", "why"),
    [
        (["../evil"], "segment is"),
        (["A", "a"], "but for case"),
        (["a", "a/b"], "is a file"),
        (["b", "a"], "out of order"),
    ],
)
async def test_a_list_that_could_do_harm_writes_nothing(
    town: Town, tmp_path: Path, paths: list[str], why: str
) -> None:
    """Alice signs what no `add` would make."""
    store, datasets = town.alice.bulk.store, town.alice.datasets
    blob = (await store.add_bytes(b"evil")).blob
    page = (await store.add_bytes(encode_page([FileEntry(path, blob, 4) for path in paths]))).blob
    pages = (Page(paths[0], page, len(paths)),)
    signed = sign(town.alice.identity.key, DatasetVersion("evil", 1, 1, len(paths), 4 * len(paths), pages))
    reason = b"dataset:" + bytes(40)
    town.alice.shared.keeper.hold([blob, page], reason)
    await datasets._keep(signed, reason)
    await town.alice.shared.announce(dataset_point(town.alice.identity.node_id, "evil"))
    target = tmp_path / "deep" / "target"
    with pytest.raises(Malformed, match=why):
        await town.bob.datasets.get(f"{town.alice.identity.name}/evil", target)
    assert not target.exists() or tree(tmp_path / "deep") == {}
    assert not (tmp_path / "deep" / "evil").exists()
    assert encode(signed)


async def test_bad_names_and_folders_are_one_line(town: Town, folder: Path, tmp_path: Path) -> None:
    for name in ("", "UPPER", ".x", "a/b", "x" * 65):
        with pytest.raises(UsageError, match="is no name of a dataset"):
            await town.alice.datasets.add(name, folder, announce=False)
    (folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(UsageError, match="is a link"):
        await town.alice.datasets.add("terrain", folder, announce=False)
    with pytest.raises(UsageError, match="cannot open the folder"):
        await town.alice.datasets.add("terrain", tmp_path / "nowhere", announce=False)
    assert town.alice.datasets.rows() == ()
    with pytest.raises(UsageError, match="only a whole dataset can be shared"):
        await town.bob.datasets.get("x", tmp_path, path="a", share=True)


async def test_names_that_are_no_text_are_told_and_not_tripped_over(
    town: Town, folder: Path, tmp_path: Path
) -> None:
    await town.alice.datasets.add("terrain", folder, announce=False)
    (folder / "tiles" / "bad\udcff").write_text("x")
    compared = await town.alice.datasets.compare("terrain", folder)
    assert compared.extra == ("tiles/bad\ufffd",)
    assert encode(compared)
    with pytest.raises(UsageError, match="not Unicode text"):
        await town.alice.datasets.add("terrain", folder, announce=False)


async def test_a_number_is_given_once_also_when_two_are_added_together_or_one_was_removed(
    town: Town, folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "README").write_text("another terrain")
    numbers = []

    async def add(what: Path) -> None:
        numbers.append((await town.alice.datasets.add("terrain", what, announce=False)).row.version)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(add, folder)
        nursery.start_soon(add, other)
    assert sorted(numbers) == [1, 2]
    await town.alice.datasets.remove("terrain", 2)
    (other / "README").write_text("a third terrain")
    await add(other)
    assert numbers[-1] == 3, "others may hold the one that was removed"
    await town.alice.datasets.remove("terrain", None)
    await add(folder)
    assert numbers[-1] == 4
    assert [row.version for row in town.alice.datasets.rows()] == [4]
