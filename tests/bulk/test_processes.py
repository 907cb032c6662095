"""Real processes that are killed, and real processes that share memory."""

import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from ioc_node.bulk import endpoint, gathering, schedule
from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.offload import load_offloads
from ioc_node.bulk.offloads.shm import ShmDescriptor, ShmOffload, boot_id
from ioc_node.bulk.transfers import open_bulk
from ioc_wire.bulk import BlobInfo, OffloadDescriptor, Ticket
from ioc_wire.codec import decode, encode
from ioc_wire.errors import BlobCorrupt, WrongPeer
from ioc_wire.signed import public_bytes

from .conftest import BOB, CAROL, MIB, pattern

SIZE = 32 * MIB + 5
SMALL = 12 * MIB + 5
ROOT = Path(__file__).parents[2]


async def prepare(folder: Path, size: int) -> BlobInfo:
    return await BlobStore(folder / "store").add_bytes(pattern(size))


class Holder:
    def __init__(self, process: trio.Process, port: int, ticket: Ticket, line: str) -> None:
        self.process = process
        self.port = port
        self.ticket = ticket
        self.ticket_hex = line


async def start_holder(nursery: trio.Nursery, folder: Path, port: int, engine: str, *more: str) -> Holder:
    command = [sys.executable, "-m", "tests.bulk.holder", str(folder), str(port), engine]
    command += [public_bytes(BOB).hex(), *more]
    process = await nursery.start(partial(trio.run_process, command, stdout=-1, check=False, cwd=ROOT))
    line = b""
    while not line.endswith(b"\n"):
        more_bytes = await process.stdout.receive_some()
        assert more_bytes, "the holder did not start"
        line += more_bytes
    found, ticket = line.split()
    return Holder(process, int(found), decode(bytes.fromhex(ticket.decode()), Ticket), ticket.decode())


@asynccontextmanager
async def holding(
    folder: Path, engine: str = "qh3", *more: str, seconds: float = 30
) -> AsyncIterator[tuple[Holder, trio.Nursery]]:
    with trio.fail_after(seconds):
        async with trio.open_nursery() as nursery:
            holder = await start_holder(nursery, folder, 0, engine, *more)
            yield holder, nursery
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("engine", ["qh3", pytest.param("aioquic", marks=pytest.mark.slow)])
async def test_a_transfer_survives_the_holders_death(
    tmp_path: Path, bob_store: BlobStore, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "WINDOW_MAX", 4)  # so that most of the blob is not yet on its way,
    monkeypatch.setattr(gathering, "BATCH_CHUNKS_MAX", 1)  # nor waiting to be written
    monkeypatch.setattr(endpoint, "QUIET_SECONDS", 0.2)
    monkeypatch.setattr(endpoint, "SILENT_SECONDS_MAX", 0.8)
    info = await prepare(tmp_path, SMALL)
    async with holding(tmp_path, engine) as (first, nursery), open_bulk(bob_store, BOB) as bob:
        killed_at: list[int] = []

        def kill_early(here: int, _size: int) -> None:
            if not killed_at and here >= 3 * MIB:
                killed_at.append(here)
                first.process.send_signal(signal.SIGKILL)

        async def renew() -> Ticket:
            await restarted.wait()
            return second.ticket

        second = first
        restarted = trio.Event()

        async def restart() -> None:
            nonlocal second
            await first.process.wait()
            second = await start_holder(nursery, tmp_path, first.port, engine)
            restarted.set()

        nursery.start_soon(restart)
        report = await bob.fetch(first.ticket, on_progress=kill_early, renew=renew)
    assert killed_at
    assert report.bytes_moved == SMALL
    assert bob.counters.reconnections > 0
    assert bob.counters.bytes_received == SMALL  # nothing came twice
    assert bob_store.path(info.blob).read_bytes() == pattern(SMALL)


async def test_what_a_killed_reader_had_is_not_fetched_again(tmp_path: Path, bob_store: BlobStore) -> None:
    info = await prepare(tmp_path, SIZE)
    async with holding(tmp_path) as (holder, nursery):
        command = [sys.executable, "-m", "tests.bulk.reader", str(bob_store.folder), holder.ticket_hex]
        reader = await nursery.start(partial(trio.run_process, command, stdout=-1, check=False, cwd=ROOT))
        told = b""
        while told.count(b"\n") < 8:
            told += await reader.stdout.receive_some()
        reader.send_signal(signal.SIGKILL)
        await reader.wait()
        again = BlobStore(bob_store.folder)
        assert not again.has(info.blob)
        async with open_bulk(again, BOB) as bob:
            report = await bob.fetch(holder.ticket)
    assert 8 * MIB <= report.bytes_resumed < SIZE
    assert report.bytes_moved == SIZE - report.bytes_resumed == bob.counters.bytes_received
    assert again.path(info.blob).read_bytes() == pattern(SIZE)


async def test_two_processes_of_one_host_share_memory(tmp_path: Path, bob_store: BlobStore) -> None:
    info = await prepare(tmp_path, SMALL)
    offloads, refused = load_offloads(tmp_path / "bob-run")
    assert [offload.name for offload in offloads] == ["shm"]
    assert list(refused) == ["ucx"]  # installed, but no interface is named
    async with (
        holding(tmp_path, "qh3", "shm") as (holder, _),
        open_bulk(bob_store, BOB, offloads=offloads) as bob,
    ):
        report = await bob.fetch(holder.ticket)
    assert (report.transport, report.reason) == ("shm", "same host, shared")
    assert bob.counters.bytes_received == 0
    assert bob_store.path(info.blob).read_bytes() == pattern(SMALL)
    held = BlobStore(tmp_path / "store")
    assert bob_store.path(info.blob).samefile(held.path(info.blob))  # not a byte was copied
    await held.remove(info.blob)
    assert bob_store.path(info.blob).read_bytes() == pattern(SMALL)  # each has a name of its own
    assert not list((bob_store.folder / "partial").iterdir())
    assert not list((tmp_path / "bob-run").iterdir())


@pytest.mark.parametrize(
    "trouble", ["socket gone", "another host", "another socket", "another instance", "nonsense", "no offload"]
)
async def test_quic_takes_over_where_shared_memory_fails(
    tmp_path: Path, bob_store: BlobStore, trouble: str
) -> None:
    info = await prepare(tmp_path, SMALL)
    roads = [] if trouble == "no offload" else [ShmOffload(tmp_path / "bob-run")]
    async with (
        holding(tmp_path, "qh3", "shm") as (holder, _),
        open_bulk(bob_store, BOB, offloads=roads) as bob,
    ):
        where = decode(holder.ticket.offloads[0].payload, ShmDescriptor)
        if trouble == "socket gone":
            await trio.Path(where.path).unlink()
        elif trouble == "another host":
            where = ShmDescriptor.of("elsewhere", where.path, where.instance)
        elif trouble == "another socket":  # what a holder far away may make of a descriptor that it was given
            where = ShmDescriptor(where.tag, "/run/another.sock", where.instance)
        elif trouble == "another instance":
            where = ShmDescriptor.of(boot_id(), where.path, bytes(32))
        payload = b"\xc1" if trouble == "nonsense" else encode(where)
        ticket = holder.ticket
        fields = {name: getattr(ticket, name) for name in Ticket.__struct_fields__}
        report = await bob.fetch(Ticket(**(fields | {"offloads": (OffloadDescriptor("shm", payload),)})))
    assert report.transport == "quic/qh3"
    assert "shm" in report.reason
    if trouble in ("another host", "another socket"):
        assert report.reason == "shm: another host"
    assert boot_id().encode() not in holder.ticket.offloads[0].payload
    tried = trouble in ("another instance", "nonsense")
    assert bob.counters.offload_fallbacks["shm"] == tried
    assert sum(bob.counters.fallback_kinds.values()) == tried
    assert bob_store.path(info.blob).read_bytes() == pattern(SMALL)


async def test_shared_memory_asks_for_the_ticket_too(tmp_path: Path) -> None:
    await prepare(tmp_path, SMALL)
    carol_store = BlobStore(tmp_path / "carol")
    async with (
        holding(tmp_path, "qh3", "shm") as (holder, _),
        open_bulk(carol_store, CAROL, offloads=[ShmOffload(tmp_path / "carol-run")]) as carol,
    ):
        with pytest.raises(WrongPeer):  # shm refuses, QUIC is tried and refuses as well
            await carol.fetch(holder.ticket)
    assert carol.counters.offload_fallbacks["shm"] == 1


async def test_a_long_runtime_folder_still_gets_a_socket(tmp_path: Path, alice_store: BlobStore) -> None:
    offload = ShmOffload(tmp_path / ("x" * 120))
    assert offload.probe().usable
    descriptor = offload.export(bytes(32))
    assert descriptor is not None
    assert len(descriptor.payload) < 256
    offload.close()


@pytest.mark.parametrize("links", [True, False])
async def test_a_changed_byte_in_the_shared_file_is_refused(
    tmp_path: Path, bob_store: BlobStore, links: bool
) -> None:
    info = await prepare(tmp_path, SMALL)
    path = BlobStore(tmp_path / "store").path(info.blob)
    async with (
        holding(tmp_path, "qh3", "shm") as (holder, _),
        open_bulk(bob_store, BOB, offloads=[ShmOffload(tmp_path / "bob-run", {"links": links})]) as bob,
    ):
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.seek(10 * MIB)
            file.write(b"\xff\xff")
        with pytest.raises(BlobCorrupt):
            await bob.fetch(holder.ticket)
    assert bob.counters.offload_fallbacks["shm"] == 1
    assert not bob_store.has(info.blob)
    partial = await bob_store.resume(info.blob)
    assert partial is not None
    if links:  # what QUIC brought before it met the byte
        assert partial.bytes_present <= 10 * MIB
    else:
        assert partial.bytes_present == 10 * MIB  # what was copied before is kept
    partial.close()
