"""Disks that are full or cannot be written, and readers that ask for more than anybody may."""

import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.frames import receive_frame, send_message
from ioc_node.bulk.gathering import Source
from ioc_node.bulk.quic import Channel, ChannelBroken
from ioc_node.bulk.transfers import BulkEndpoint, open_bulk
from ioc_node.errors import StorageFull, StorageUnusable
from ioc_wire.bulk import (
    CHUNK_FRAME,
    RANGES_MAX,
    SMALL_BATCHES_WAITING_MAX,
    BlobInfo,
    ChunkRange,
    Refusal,
    Want,
    WantSmall,
    decode_frame,
)
from ioc_wire.errors import Expired, TicketRefused, TooLarge, error_of

from .conftest import ALICE, BOB, CAROL, MIB, pattern
from .test_hostile import claimed

HOSTS = ["127.0.0.1"]
DATA = pattern(3 * MIB + 5)
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small disk")


@asynccontextmanager
async def small_disk(size: str) -> AsyncIterator[Path]:
    """A file system of this size, unmounted at the end."""
    with tempfile.TemporaryDirectory(prefix="ioc-disk-") as folder:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "ioc-test", folder]
        if (await trio.run_process(command, check=False, capture_stderr=True)).returncode:
            pytest.skip("cannot mount a small disk here")
        try:
            yield Path(folder)
        finally:
            await trio.run_process(["umount", folder])


async def hold(alice: BulkEndpoint, sizes: Sequence[int]) -> list[BlobInfo]:
    return [await alice.store.add_bytes(pattern(size)) for size in sizes]


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@root_only
async def test_a_full_disk_ends_a_fetch_with_one_line_and_nothing_under_a_name(
    alice_store: BlobStore,
) -> None:
    async with (
        small_disk("2m") as disk,
        open_bulk(alice_store, ALICE) as alice,
        open_bulk(BlobStore(disk / "blobs"), BOB) as bob,
    ):
        large, small = await hold(alice, (len(DATA), 60_000))
        with trio.fail_after(20):
            for _ in range(2):  # the second finds what the first left: nothing
                ticket = alice.issue_ticket(large.blob, bob.public_key, hosts=HOSTS)
                with pytest.raises(StorageFull) as caught:
                    await bob.fetch(ticket)
                assert "No space left on device" in one_line(caught)
                assert "make room and try again" in one_line(caught)
            assert bob.store.list_blobs() == bob.store.list_partials() == []
            assert bob.store.bytes_total == 0
            await bob.fetch(alice.issue_ticket(small.blob, bob.public_key, hosts=HOSTS))
            fillers = await hold(alice, [62_000 + number for number in range(60)])
            tickets = [alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS) for info in fillers]
            with pytest.raises(StorageFull, match="No space left on device"):
                await bob.fetch_small(tickets)
        for blob in bob.store.list_blobs():
            assert bob.store.path(blob).read_bytes() == alice_store.path(blob).read_bytes()
        assert list((disk / "blobs" / "incoming").iterdir()) == []
        alice_names = {path.name for path in (alice_store.folder / "complete").iterdir()}
        assert {path.name for path in (disk / "blobs" / "complete").iterdir()} <= alice_names


@root_only
async def test_a_disk_that_fills_up_on_the_way_keeps_what_came_for_later(
    alice_store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system that does not promise its blocks: the reservation says yes, the write says no."""
    monkeypatch.setattr("ioc_node.bulk.partial.reserve_space", lambda *_args: None)
    async with (
        small_disk("2m") as disk,
        open_bulk(alice_store, ALICE) as alice,
        open_bulk(BlobStore(disk / "blobs"), BOB) as bob,
    ):
        (info,) = await hold(alice, (len(DATA),))
        ticket = alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS)
        with trio.fail_after(20), pytest.raises(StorageFull, match="make room and try again"):
            await bob.fetch(ticket)
        assert not bob.store.has(info.blob)
        await trio.run_process(["mount", "-o", "remount,size=16m", str(disk)])
        with trio.fail_after(20):
            await bob.fetch(ticket)
        assert bob.store.path(info.blob).read_bytes() == DATA


@root_only
async def test_a_read_only_disk_ends_a_fetch_with_one_line(alice_store: BlobStore) -> None:
    async with (
        small_disk("16m") as disk,
        open_bulk(alice_store, ALICE) as alice,
        open_bulk(BlobStore(disk / "blobs"), BOB) as bob,
    ):
        large, small = await hold(alice, (len(DATA), 60_000))
        await trio.run_process(["mount", "-o", "remount,ro", str(disk)])
        tickets = [alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS) for info in (large, small)]
        with trio.fail_after(20):
            with pytest.raises(StorageUnusable, match=r"Read-only file system.*see to the folder") as caught:
                await bob.fetch(tickets[0])
            one_line(caught)
            with pytest.raises(StorageUnusable, match="Read-only file system"):
                await bob.fetch_small(tickets[1:])
            with pytest.raises(StorageUnusable, match="Read-only file system"):
                await bob.store.add_bytes(b"x")
        assert bob.store.list_blobs() == []


async def test_a_source_whose_ticket_ended_asks_for_another_and_the_rest_goes_on(
    alice_store: BlobStore, bob_store: BlobStore, tmp_path: Path
) -> None:
    async with (
        open_bulk(alice_store, ALICE) as alice,
        open_bulk(BlobStore(tmp_path / "carol"), CAROL) as carol,
        open_bulk(bob_store, BOB) as bob,
    ):
        (info,) = await hold(alice, (len(DATA),))
        await hold(carol, (len(DATA),))
        good = alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS)
        old = alice.tickets.issue(info.blob, bob.public_key, seconds=-1, endpoints=good.endpoints)
        revoked = carol.issue_ticket(info.blob, bob.public_key, hosts=HOSTS)
        carol.tickets.revoke(revoked.secret)

        async def renew() -> object:
            return good

        sources = [Source(old, renew), Source(revoked)]  # type: ignore[arg-type]
        with trio.fail_after(20):
            report = await bob.gather(sources)
        assert report.shares == ((alice.public_key, len(DATA)),)
        assert isinstance(sources[1].fault, TicketRefused)
        await bob.store.remove(info.blob)
        ended = alice.tickets.issue(info.blob, bob.public_key, seconds=-1, endpoints=good.endpoints)
        with trio.fail_after(20), pytest.raises(Expired):
            await bob.gather([Source(ended)])


async def refusal(channel: Channel) -> None:
    """Read up to the refusal, and raise it."""
    while True:
        kind, payload = await receive_frame(channel)
        if kind != CHUNK_FRAME and isinstance(message := decode_frame(kind, payload), Refusal):
            raise error_of(message.code, message.detail)


@pytest.mark.parametrize("what", ["ranges", "small batches"])
async def test_a_reader_that_asks_without_end_is_refused(alice_store: BlobStore, what: str) -> None:
    async with open_bulk(alice_store, ALICE) as alice:
        (info,) = await hold(alice, (20 * MIB,))
        ticket = alice.issue_ticket(info.blob, BOB.public_key().public_bytes_raw(), hosts=HOSTS)
        with trio.fail_after(10):
            async with claimed(alice.port, ticket) as channel:
                asked: Want | WantSmall = Want(
                    (ChunkRange(0, 20),) * RANGES_MAX, 1
                )  # nearly all of them wait for credit
                if what == "small batches":
                    asked = WantSmall((bytes(32),) * 256)
                with suppress(ChannelBroken):  # once it was refused
                    for _ in range(60 * SMALL_BATCHES_WAITING_MAX):
                        await send_message(channel, asked)
                with pytest.raises(TooLarge):
                    await refusal(channel)
