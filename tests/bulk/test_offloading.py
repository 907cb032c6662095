"""Offloads that fail in every way there is: QUIC takes over with what arrived, and the reason is told and counted."""

import errno
import signal
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import trio

from ioc_node.bulk import offload, offloading
from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.counters import BulkCounters
from ioc_node.bulk.offload import (
    Capability,
    Landing,
    Offload,
    OffloadSource,
    OffloadUnusable,
    Reach,
    load_offloads,
)
from ioc_node.bulk.offloading import Offloads
from ioc_node.bulk.offloads import shm
from ioc_node.bulk.offloads.shm import ShmOffload
from ioc_node.bulk.tickets import TicketBook
from ioc_node.bulk.transfers import BulkEndpoint, TransferReport, open_bulk
from ioc_node.errors import StorageFull
from ioc_wire import limits
from ioc_wire.bulk import OffloadDescriptor
from ioc_wire.errors import BlobCorrupt, Malformed, TicketRefused
from ioc_wire.signed import public_bytes

from .conftest import ALICE, BOB, MIB, pattern
from .test_processes import SMALL, holding, prepare

SIZE = 6 * MIB + 5
ARRIVES = 2
"""Chunks that come before the trouble."""


class Courier:
    """A third party's road in this process: it copies from the holder's folder until its trouble starts."""

    name = "courier"

    def __init__(self, source: Path, trouble: Callable[[], None] | None = None) -> None:
        self._source = source
        self.trouble = trouble
        self.pulls = self.served = 0
        self.well = Capability(True, "well")
        self.hangs = False
        self.leaves_out = 0

    def probe(self) -> Capability:
        return Capability(True, "a folder", mb_s=5000.0, set_up_seconds=0.0)

    async def serve(self, source: OffloadSource) -> None:
        self.served += 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._break)

    async def _break(self) -> None:
        if self.served == 1:
            raise ValueError("a bug of a third party")
        await trio.sleep_forever()

    def export(self, blob: bytes) -> OffloadDescriptor | None:
        return OffloadDescriptor(self.name, b"")

    def reach(self, descriptor: OffloadDescriptor) -> Reach:
        return Reach(True, "a folder")

    async def pull(self, descriptor: OffloadDescriptor, into: Landing) -> str:
        self.pulls += 1
        holder = BlobStore(self._source)
        partial = await into.begin(await holder.info(into.ticket.blob))
        indexes = [
            at for each in partial.missing_ranges() for at in range(each.start, each.start + each.count)
        ]
        for index in indexes[: len(indexes) - self.leaves_out]:
            if index == ARRIVES and self.hangs:
                await trio.sleep_forever()
            if index == ARRIVES and self.trouble is not None:
                self.trouble()
            await partial.write_chunk(index, await holder.read_chunk(partial.info, index))
        return ""

    def health(self) -> Capability:
        return self.well

    def close(self) -> None:
        pass


def raising(error: Exception) -> Callable[[], None]:
    def trouble() -> None:
        raise error

    return trouble


async def fetch_by(
    courier: Offload, alice_store: BlobStore, bob_store: BlobStore
) -> tuple[TransferReport, BulkEndpoint]:
    info = await alice_store.add_bytes(pattern(SIZE))
    async with (
        open_bulk(alice_store, ALICE, offloads=[courier]) as alice,
        open_bulk(bob_store, BOB, offloads=[courier]) as bob,
    ):
        ticket = alice.issue_ticket(info.blob, public_bytes(BOB), hosts=["127.0.0.1"])
        report = await bob.fetch(ticket)
    assert bob_store.path(info.blob).read_bytes() == pattern(SIZE)
    return report, bob


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OffloadUnusable("the road is closed"), "unusable"),
        (OSError(errno.ECONNRESET, "the holder died"), "broken"),
        (BlobCorrupt("chunk 2"), "corrupt"),
        (Malformed("a frame"), "malformed"),
        (TicketRefused("wrong key"), "refused"),
        (ZeroDivisionError("a bug"), "fault"),
        (ExceptionGroup("a nursery", [OSError("the holder died")]), "broken"),
    ],
)
async def test_quic_brings_the_rest_of_what_an_offload_began(
    alice_store: BlobStore, bob_store: BlobStore, error: Exception, kind: str
) -> None:
    report, bob = await fetch_by(Courier(alice_store.folder, raising(error)), alice_store, bob_store)
    assert report.transport == "quic/qh3"
    leaf = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
    assert report.reason == f"courier failed: {leaf}"
    assert bob.counters.bytes_received == SIZE - ARRIVES * limits.CHUNK_BYTES  # the rest, and nothing twice
    assert bob.counters.fallback_kinds == {f"courier/{kind}": 1}
    (road,) = bob.offloads.own_roads(public_bytes(ALICE))
    assert (road.cooling_seconds > 0) is (kind != "refused")  # a refusal says nothing about the road


async def test_an_offload_that_hangs_is_left(
    alice_store: BlobStore, bob_store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offloading, "STALL_SECONDS", 0.2)
    courier = Courier(alice_store.folder)
    courier.hangs = True
    report, bob = await fetch_by(courier, alice_store, bob_store)
    assert (report.transport, report.reason) == ("quic/qh3", "courier failed: nothing came for 0.2 s")
    assert bob.counters.bytes_received == SIZE - ARRIVES * limits.CHUNK_BYTES
    assert bob.counters.fallback_kinds == {"courier/stalled": 1}
    assert bob.offloads.lines() == ("courier: a folder; failed 1× (stalled 1)",)


async def test_an_offload_that_leaves_chunks_out(alice_store: BlobStore, bob_store: BlobStore) -> None:
    courier = Courier(alice_store.folder)
    courier.leaves_out = 1
    report, bob = await fetch_by(courier, alice_store, bob_store)
    assert report.reason == "courier failed: it left chunks out"
    assert bob.counters.bytes_received == SIZE % limits.CHUNK_BYTES
    assert bob.counters.fallback_kinds == {"courier/incomplete": 1}


async def test_a_full_disk_is_nobodys_fault(alice_store: BlobStore, bob_store: BlobStore) -> None:
    with pytest.raises(StorageFull):
        await fetch_by(Courier(alice_store.folder, raising(StorageFull("no space"))), alice_store, bob_store)


async def test_a_broken_offload_is_not_tried_each_time(alice_store: BlobStore, bob_store: BlobStore) -> None:
    courier = Courier(alice_store.folder, raising(OSError("gone")))
    blobs = [(await alice_store.add_bytes(pattern(SIZE + extra))).blob for extra in range(3)]
    async with (
        open_bulk(alice_store, ALICE, offloads=[courier]) as alice,
        open_bulk(bob_store, BOB, offloads=[courier]) as bob,
    ):
        reports = []
        for at, blob in enumerate(blobs):
            if at == 2:  # it has come back, and its time is over
                courier.trouble = None
                bob.offloads._standings._standings[(public_bytes(ALICE), "courier")].until = 0.0
            ticket = alice.issue_ticket(blob, public_bytes(BOB), hosts=["127.0.0.1"])
            reports.append(await bob.fetch(ticket))
    assert [report.transport for report in reports] == ["quic/qh3", "quic/qh3", "courier"]
    assert reports[1].reason == "courier: failed, tried again in 2 s: gone"
    assert courier.pulls == 2
    assert bob.counters.offload_fallbacks == {"courier": 1}


async def test_a_sick_offload_is_not_tried_nor_offered(alice_store: BlobStore, bob_store: BlobStore) -> None:
    sick, well = Courier(alice_store.folder), Courier(alice_store.folder)
    sick.well = Capability(False, "the cable is out")
    info = await alice_store.add_bytes(pattern(SIZE))
    async with (
        open_bulk(alice_store, ALICE, offloads=[well]) as alice,
        open_bulk(bob_store, BOB, offloads=[sick]) as bob,
    ):
        ticket = alice.issue_ticket(info.blob, public_bytes(BOB), hosts=["127.0.0.1"])
        report = await bob.fetch(ticket)
        back = bob.issue_ticket(info.blob, public_bytes(ALICE), hosts=["127.0.0.1"])
    assert (report.transport, report.reason) == ("quic/qh3", "courier: the cable is out")
    assert sick.pulls == 0
    assert not bob.counters.offload_fallbacks
    assert (len(ticket.offloads), len(back.offloads)) == (1, 0)


async def test_an_offload_that_stops_serving_is_started_again(
    alice_store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offloading, "COOL_SECONDS", 0.01)
    courier = Courier(alice_store.folder)
    async with open_bulk(alice_store, ALICE, offloads=[courier]):
        with trio.fail_after(5):
            while courier.served < 2:
                await trio.sleep(0.01)


async def test_progress_is_told_while_an_offload_pulls(
    alice_store: BlobStore, bob_store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offloading, "LOOK_SECONDS", 0.001)
    info = await alice_store.add_bytes(pattern(SIZE))
    courier = Courier(alice_store.folder)
    told: list[tuple[int, int]] = []
    async with (
        open_bulk(alice_store, ALICE, offloads=[courier]) as alice,
        open_bulk(bob_store, BOB, offloads=[courier]) as bob,
    ):
        ticket = alice.issue_ticket(info.blob, public_bytes(BOB), hosts=["127.0.0.1"])
        await bob.fetch(ticket, on_progress=lambda here, size: told.append((here, size)))
    assert told == sorted(told)
    assert told[-1] == (SIZE, SIZE)


async def test_a_holder_that_is_stopped_in_the_middle(
    tmp_path: Path, bob_store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shm, "CLAIM_SECONDS", 0.2)
    await prepare(tmp_path, SMALL)
    async with (
        holding(tmp_path, "qh3", "shm") as (holder, nursery),
        open_bulk(bob_store, BOB, offloads=[ShmOffload(tmp_path / "bob-run")]) as bob,
    ):
        holder.process.send_signal(signal.SIGSTOP)

        async def go_on() -> None:
            while not bob.counters.offload_fallbacks:
                await trio.sleep(0.01)
            holder.process.send_signal(signal.SIGCONT)

        nursery.start_soon(go_on)
        report = await bob.fetch(holder.ticket)
    assert report.transport == "quic/qh3"
    assert report.reason == "shm failed: the holder's socket did not answer"


class OtherName(Courier):
    name = "carrier"


class NoCapability(Courier):
    def probe(self) -> Capability:
        return None  # type: ignore[return-value]


class Unclosable(Courier):
    def probe(self) -> Capability:
        return Capability(False, "no pigeons")

    def close(self) -> None:
        raise OSError("it bites")


class ProbedOnce(Courier):
    """Its second probe fails, and all that is asked then."""

    def probe(self) -> Capability:
        self.pulls += 1
        if self.pulls > 1:
            raise OSError("the\npigeon sleeps")
        return Capability(True, "well")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (OtherName, "it calls itself 'carrier'"),
        (NoCapability, "its probe returned None"),
        (Unclosable, "no pigeons"),
        (ProbedOnce, ""),
    ],
)
def test_an_offload_of_others_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Courier], reason: str
) -> None:
    class Made(kind):  # type: ignore[misc,valid-type]
        def __init__(self, runtime_folder: Path, options: object) -> None:
            super().__init__(runtime_folder)

    monkeypatch.setattr(EntryPoint, "load", lambda _self: Made)
    monkeypatch.setattr(
        offload, "entry_points", lambda group: [EntryPoint("courier", "somewhere:Courier", group)]
    )
    loaded = load_offloads(tmp_path, ["courier"])
    if reason:
        assert loaded == ((), {"courier": reason})
    else:
        offloads = Offloads(loaded.usable, BulkCounters())
        assert offloads.lines() == ("courier: the pigeon sleeps",)
        assert offloads.export(b"b" * 32) == ()


@pytest.mark.parametrize(
    "exported", [OffloadDescriptor("courier", bytes(1025)), OffloadDescriptor("shm", b""), "over there"]
)
async def test_what_an_offload_puts_into_a_ticket_is_checked(
    alice_store: BlobStore, bob_store: BlobStore, monkeypatch: pytest.MonkeyPatch, exported: OffloadDescriptor
) -> None:
    """The reader would refuse the whole ticket."""
    courier = Courier(alice_store.folder)
    monkeypatch.setattr(courier, "export", lambda _blob: exported)
    monkeypatch.setattr(courier, "health", lambda: None)
    offloads = Offloads([courier], BulkCounters())
    assert offloads.export(b"b" * 32) == ()  # its health is no capability
    monkeypatch.setattr(courier, "health", courier.probe)
    assert offloads.export(b"b" * 32) == ()
    monkeypatch.setattr(courier, "reach", lambda _descriptor: None)
    ticket = TicketBook(public_bytes(ALICE)).issue(
        b"b" * 32, public_bytes(BOB), offloads=(OffloadDescriptor("courier", b""),)
    )
    assert offloads.choose(ticket).roads == ()


async def test_shm_that_stopped_again_and_again_still_serves(
    alice_store: BlobStore, bob_store: BlobStore, tmp_path: Path
) -> None:
    info = await alice_store.add_bytes(pattern(SIZE))
    road = ShmOffload(tmp_path / "alice-run")
    source = OffloadSource(alice_store, TicketBook(public_bytes(ALICE)), BulkCounters())
    for _ in range(shm.READERS_MAX):
        with trio.move_on_after(0.001):  # while it waits for a reader
            await road.serve(source)
    async with (
        open_bulk(alice_store, ALICE, offloads=[road]) as alice,
        open_bulk(bob_store, BOB, offloads=[ShmOffload(tmp_path / "bob-run")]) as bob,
    ):
        ticket = alice.issue_ticket(info.blob, public_bytes(BOB), hosts=["127.0.0.1"])
        with trio.fail_after(4):
            assert (await bob.fetch(ticket)).transport == "shm"


def test_only_named_offloads_are_loaded(tmp_path: Path) -> None:
    usable, refused = load_offloads(tmp_path / "a", ["shm", "telepathy"])
    assert [each.name for each in usable] == ["shm"]
    assert list(refused) == ["telepathy"]
    assert refused["telepathy"].startswith("no offload of that name is installed; there are shm, ucx")
    assert load_offloads(tmp_path / "b", []) == ((), {})
    assert not (tmp_path / "b").exists()
    usable, refused = load_offloads(tmp_path / "c", ["shm"], {"shm": {"speed": 9}})
    assert usable == ()
    assert "unknown field `speed`" in refused["shm"]
