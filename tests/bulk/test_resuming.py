"""What an earlier attempt left is verified again while what it lacks arrives."""

import threading
from collections.abc import Sequence

import pytest
import trio

from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.gathering import Source
from ioc_node.bulk.partial import PartialBlob
from ioc_node.bulk.transfers import BulkEndpoint, open_bulk
from ioc_node.errors import PeerUnreachable
from ioc_wire.bulk import format_blob_id

from .conftest import ALICE, BOB, MIB, pattern

SIZE = 12 * MIB + 7
DATA = pattern(SIZE)


async def leave(alice: BlobStore, bob: BlobStore, chunks: Sequence[int]) -> bytes:
    """Alice has the blob, Bob some chunks of it from an earlier attempt."""
    info = await alice.add_bytes(DATA)
    partial = await bob.begin(info)
    for index in chunks:
        await partial.write_chunk(index, DATA[index * MIB : (index + 1) * MIB])
    partial.close()
    return info.blob


def source(alice: BulkEndpoint, bob: BulkEndpoint, blob: bytes) -> Source:
    return Source(alice.issue_ticket(blob, bob.public_key, hosts=["127.0.0.1"]))


async def test_new_chunks_arrive_before_the_old_are_verified(
    alice_store: BlobStore, bob_store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = await leave(alice_store, bob_store, range(6))
    arrived = threading.Event()
    recheck = PartialBlob.recheck_some_sync

    def recheck_late(partial: PartialBlob, indexes: Sequence[int]) -> list[int]:
        assert arrived.wait(20)
        return recheck(partial, indexes)

    monkeypatch.setattr(PartialBlob, "recheck_some_sync", recheck_late)
    data = bob_store.folder / "partial" / f"{format_blob_id(blob)}.data"
    with data.open("r+b") as file:  # one of the old chunks is spoiled
        file.seek(2 * MIB + 5)
        file.write(b"no")
    with trio.fail_after(30):
        async with open_bulk(alice_store, ALICE) as alice, open_bulk(BlobStore(bob_store.folder), BOB) as bob:
            report = await bob.gather([source(alice, bob, blob)], on_progress=lambda *_: arrived.set())
            assert bob.store.path(blob).read_bytes() == DATA
    assert (report.bytes_resumed, report.bytes_moved) == (5 * MIB, SIZE - 5 * MIB)


@pytest.mark.parametrize("spoiled", [False, True])
async def test_all_was_here_and_the_holder_is_gone(
    alice_store: BlobStore, bob_store: BlobStore, monkeypatch: pytest.MonkeyPatch, spoiled: bool
) -> None:
    monkeypatch.setattr("ioc_node.bulk.gathering.ATTEMPTS_MAX", 1)
    blob = await leave(alice_store, bob_store, range(13))
    if spoiled:
        data = bob_store.folder / "partial" / f"{format_blob_id(blob)}.data"
        with data.open("r+b") as file:
            file.write(b"no")
    with trio.fail_after(30):
        async with open_bulk(BlobStore(bob_store.folder), BOB) as bob:
            async with open_bulk(alice_store, ALICE) as alice:
                gone = source(alice, bob, blob)
            if spoiled:
                with pytest.raises(PeerUnreachable):
                    await bob.gather([gone])
            else:
                report = await bob.gather([gone])
                assert (report.bytes_resumed, report.bytes_moved) == (SIZE, 0)
