"""The offload of the guide, installed as a third party's package and found by its entry point."""

import subprocess
import sys
from pathlib import Path

import pytest

from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.offload import Offload, load_offloads
from ioc_node.bulk.transfers import open_bulk
from ioc_wire.errors import WrongPeer
from ioc_wire.signed import public_bytes

from .conftest import ALICE, BOB, CAROL, MIB, pattern

ROOT = Path(__file__).parents[2]
SIZE = 9 * MIB + 5


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the example is installed into, as `pip install examples/offload` does."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += [
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(folder),
        "examples/offload",
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)
    return folder


def load(folder: Path) -> Offload:
    (offload,), _ = load_offloads(folder, ["sendfile"], {"sendfile": {"host": "127.0.0.1"}})
    return offload


async def test_a_blob_comes_by_the_example(
    site: Path, alice_store: BlobStore, bob_store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(site)
    info = await alice_store.add_bytes(pattern(SIZE))
    partial = await bob_store.begin(info)
    await partial.write_chunk(4, await alice_store.read_chunk(info, 4))
    partial.close()
    async with (
        open_bulk(alice_store, ALICE, offloads=[load(tmp_path)]) as alice,
        open_bulk(bob_store, BOB, offloads=[load(tmp_path)]) as bob,
    ):
        report = await bob.fetch(alice.issue_ticket(info.blob, public_bytes(BOB), hosts=["127.0.0.1"]))
    assert (report.transport, report.reason) == ("sendfile", "TCP to 127.0.0.1")
    assert (report.bytes_resumed, report.bytes_moved) == (MIB, SIZE - MIB)
    assert not bob.counters.offload_fallbacks
    assert bob_store.path(info.blob).read_bytes() == pattern(SIZE)


async def test_the_example_asks_for_the_ticket(
    site: Path, alice_store: BlobStore, bob_store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(site)
    info = await alice_store.add_bytes(pattern(SIZE))
    async with (
        open_bulk(alice_store, ALICE, offloads=[load(tmp_path)]) as alice,
        open_bulk(bob_store, CAROL, offloads=[load(tmp_path)]) as carol,
    ):
        ticket = alice.issue_ticket(info.blob, public_bytes(BOB), hosts=["127.0.0.1"])
        with pytest.raises(WrongPeer):
            await carol.fetch(ticket)
    assert carol.counters.fallback_kinds == {"sendfile/unusable": 1}


def test_the_guide_shows_the_example_as_it_is() -> None:
    guide = (ROOT / "docs" / "offloads.md").read_text()
    for name in ("ioc_sendfile.py", "pyproject.toml"):
        assert f"[examples/offload/{name}](../examples/offload/{name})" in guide
