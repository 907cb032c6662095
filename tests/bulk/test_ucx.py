"""Blobs over UCX between real processes: TCP and shared memory, death on either side, and peers that do wrong."""

import ctypes
import gc
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from ioc_node.bulk import offloading
from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.offload import Capability, OffloadSource
from ioc_node.bulk.offloads import ucx
from ioc_node.bulk.offloads.ucx import UcxDescriptor, UcxOffload, holding, reading, trial
from ioc_node.bulk.offloads.ucx import library as ucp
from ioc_node.bulk.offloads.ucx.conversation import MESSAGES_WAITING_MAX, UcxConversation, open_conversation
from ioc_node.bulk.offloads.ucx.messages import decode as decode_message
from ioc_node.bulk.offloads.ucx.messages import own_nonce, receive, send
from ioc_node.bulk.offloads.ucx.settings import UcxSettings, rdma_devices
from ioc_node.bulk.offloads.ucx.trial import try_in_child
from ioc_node.bulk.offloads.ucx.worker import UcxBroken
from ioc_node.bulk.tickets import make_claim
from ioc_node.bulk.transfers import BulkEndpoint, open_bulk
from ioc_node.errors import ConfigError
from ioc_wire import limits
from ioc_wire.bulk import (
    BULK_VERSION,
    Accept,
    Challenge,
    ChunkRange,
    Claim,
    Endpoint,
    Hashes,
    Hello,
    OffloadDescriptor,
    Ticket,
    Want,
    WantHashes,
    ticket_digest,
)
from ioc_wire.codec import decode, encode
from ioc_wire.errors import (
    BlobCorrupt,
    Malformed,
    ReplayedProof,
    TicketRefused,
    TooLarge,
    WireError,
    WrongPeer,
)
from ioc_wire.signed import public_bytes

from .conftest import ALICE, BOB, CAROL, MIB, pattern
from .holder import make_offload
from .test_processes import ROOT, SIZE, SMALL, prepare, start_holder
from .test_processes import holding as holding_process

TCP = "ucx:tcp"
SHARED = "ucx:tcp,sm"
QUICK = Capability(True, "quick", mb_s=5000.0, set_up_seconds=0.0)


def with_descriptor(ticket: Ticket, payload: bytes) -> Ticket:
    fields = {name: getattr(ticket, name) for name in Ticket.__struct_fields__}
    return Ticket(**(fields | {"offloads": (OffloadDescriptor("ucx", payload),)}))


@pytest.mark.parametrize(("transports", "used"), [(TCP, "tcp/lo"), (SHARED, "/memory")])
async def test_two_processes(tmp_path: Path, bob_store: BlobStore, transports: str, used: str) -> None:
    info = await prepare(tmp_path, SMALL)
    async with (
        holding_process(tmp_path, "qh3", transports) as (holder, _),
        open_bulk(bob_store, BOB, offloads=[make_offload(transports, tmp_path)]) as bob,
    ):
        report = await bob.fetch(holder.ticket)
    assert report.transport == "ucx"
    assert report.reason.startswith("both ends have it, ")
    assert used in report.reason
    assert bob.counters.bytes_received == 0  # nothing by QUIC
    assert not bob.counters.offload_fallbacks
    assert bob_store.path(info.blob).read_bytes() == pattern(SMALL)


def buffers_mapped() -> int:
    """Mappings like those of `Slots`."""
    return Path("/proc/self/maps").read_text().count("/dev/zero")


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Nobody collects garbage."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("size", [0, 1, MIB, MIB + 1])
async def test_every_size(
    tmp_path: Path, bob_store: BlobStore, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one process, where the two ends' workers take turns on one loop. Their buffers are gone at the end."""
    before = buffers_mapped()
    alice_store = BlobStore(tmp_path / "alice")
    info = await alice_store.add_bytes(pattern(size))
    monkeypatch.setattr(UcxOffload, "probe", lambda self: QUICK)
    async with (
        open_bulk(alice_store, ALICE, offloads=[make_offload(TCP, tmp_path)]) as alice,
        open_bulk(bob_store, BOB, offloads=[make_offload(TCP, tmp_path)]) as bob,
    ):
        report = await bob.fetch(alice.issue_ticket(info.blob, public_bytes(BOB), hosts=["127.0.0.1"]))
    assert buffers_mapped() == before
    assert report.transport == "ucx"
    assert bob_store.path(info.blob).read_bytes() == pattern(size)


@pytest.mark.parametrize("transports", [TCP, pytest.param(SHARED, marks=pytest.mark.slow)])
async def test_the_holder_is_killed_in_the_middle(
    tmp_path: Path, bob_store: BlobStore, transports: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offloading, "LOOK_SECONDS", 0.002)
    info = await prepare(tmp_path, SIZE)
    async with (
        holding_process(tmp_path, "qh3", transports) as (first, nursery),
        open_bulk(bob_store, BOB, offloads=[make_offload(transports, tmp_path)]) as bob,
    ):
        killed_at: list[int] = []

        def kill(here: int, _size: int) -> None:
            if not killed_at:
                killed_at.append(here)
                first.process.send_signal(signal.SIGKILL)

        second = first

        async def restart() -> None:
            nonlocal second
            await first.process.wait()
            second = await start_holder(nursery, tmp_path, first.port, "qh3")

        async def renew() -> Ticket:
            return second.ticket

        nursery.start_soon(restart)
        report = await bob.fetch(first.ticket, on_progress=kill, renew=renew)
    assert killed_at
    assert report.transport == "quic/qh3"
    assert "ucx failed: UCX: " in report.reason
    assert bob.counters.fallback_kinds == {"ucx/unusable": 1}
    assert 0 < bob.counters.bytes_received <= SIZE - killed_at[0]  # what came over UCX did not come again
    assert bob_store.path(info.blob).read_bytes() == pattern(SIZE)


async def test_a_reader_killed_in_the_middle_goes_on_later(tmp_path: Path, bob_store: BlobStore) -> None:
    info = await prepare(tmp_path, SIZE)
    async with holding_process(tmp_path, "qh3", TCP) as (holder, nursery):
        command = [sys.executable, "-m", "tests.bulk.reader", str(bob_store.folder), holder.ticket_hex, TCP]
        reader = await nursery.start(partial(trio.run_process, command, stdout=-1, check=False, cwd=ROOT))
        told = b""
        while b"\n" not in told:
            told += await reader.stdout.receive_some()
        reader.send_signal(signal.SIGKILL)
        await reader.wait()
        again = BlobStore(bob_store.folder)
        resumed = 0 if again.has(info.blob) else int(told.split()[0])
        async with open_bulk(again, BOB, offloads=[make_offload(TCP, tmp_path)]) as bob:
            report = await bob.fetch(holder.ticket)
    assert report.transport == "ucx"
    assert report.bytes_resumed >= resumed > 0
    assert report.bytes_moved == SIZE - report.bytes_resumed
    assert again.path(info.blob).read_bytes() == pattern(SIZE)


async def test_a_holder_that_is_stopped(
    tmp_path: Path, bob_store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "CLAIM_SECONDS", 0.3)
    await prepare(tmp_path, SMALL)
    async with (
        holding_process(tmp_path, "qh3", TCP) as (holder, nursery),
        open_bulk(bob_store, BOB, offloads=[make_offload(TCP, tmp_path)]) as bob,
    ):
        holder.process.send_signal(signal.SIGSTOP)

        async def go_on() -> None:
            while not bob.counters.offload_fallbacks:
                await trio.sleep(0.01)
            holder.process.send_signal(signal.SIGCONT)

        nursery.start_soon(go_on)
        report = await bob.fetch(holder.ticket)
    assert report.transport == "quic/qh3"
    assert "did not answer over UCX" in report.reason


@pytest.mark.parametrize(
    "trouble", ["nobody there", "another network", "nonsense", "another reader", "no such ticket"]
)
async def test_quic_takes_over(tmp_path: Path, bob_store: BlobStore, trouble: str) -> None:
    info = await prepare(tmp_path, SMALL)
    async with (
        holding_process(tmp_path, "qh3", TCP) as (holder, _),
        open_bulk(
            bob_store, CAROL if trouble == "another reader" else BOB, offloads=[make_offload(TCP, tmp_path)]
        ) as bob,
    ):
        ticket = holder.ticket
        if trouble == "nobody there":
            ticket = with_descriptor(ticket, encode(UcxDescriptor((Endpoint("127.0.0.1", 9),))))
        elif trouble == "another network":
            ticket = with_descriptor(ticket, encode(UcxDescriptor((Endpoint("192.0.2.1", 9),))))
        elif trouble == "nonsense":
            ticket = with_descriptor(ticket, b"\xc1")
        elif trouble == "no such ticket":
            fields = {name: getattr(ticket, name) for name in Ticket.__struct_fields__}
            ticket = Ticket(**(fields | {"secret": bytes(32)}))
        if trouble in ("another reader", "no such ticket"):
            with pytest.raises((WrongPeer, TicketRefused)):  # UCX refuses, QUIC is tried and refuses as well
                await bob.fetch(ticket)
        else:
            report = await bob.fetch(ticket)
            assert report.transport == "quic/qh3"
            assert bob_store.path(info.blob).read_bytes() == pattern(SMALL)
    kind = {"nobody there": "unusable", "nonsense": "malformed", "another network": None}.get(
        trouble, "refused"
    )
    assert bob.counters.fallback_kinds == ({f"ucx/{kind}": 1} if kind else {})


async def test_a_changed_byte_is_refused(tmp_path: Path, bob_store: BlobStore) -> None:
    info = await prepare(tmp_path, SMALL)
    path = BlobStore(tmp_path / "store").path(info.blob)
    async with (
        holding_process(tmp_path, "qh3", TCP) as (holder, _),
        open_bulk(bob_store, BOB, offloads=[make_offload(TCP, tmp_path)]) as bob,
    ):
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.seek(10 * MIB)
            file.write(b"\xff\xff")
        with pytest.raises(BlobCorrupt):
            await bob.fetch(holder.ticket)
    assert bob.counters.fallback_kinds == {"ucx/corrupt": 1}
    assert not bob_store.has(info.blob)


# -- a reader that is hostile


@asynccontextmanager
async def visiting(folder: Path) -> AsyncIterator[tuple[UcxConversation, Ticket, BulkEndpoint]]:
    """A conversation with Alice's holder side, nothing said yet, and Bob's ticket for a blob of 13 chunks."""
    store = BlobStore(folder / "alice")
    info = await store.add_bytes(pattern(SMALL))
    visitor = make_offload(TCP, folder)
    assert isinstance(visitor, UcxOffload)
    async with open_bulk(store, ALICE, offloads=[make_offload(TCP, folder)]) as alice:
        ticket = alice.issue_ticket(info.blob, public_bytes(BOB), hosts=["127.0.0.1"])
        (found,) = decode(ticket.offloads[0].payload, UcxDescriptor).endpoints
        with trio.fail_after(20):
            async with open_conversation(
                visitor._opened(), (found.host, found.port), shared_memory=False
            ) as conversation:
                yield conversation, ticket, alice
    visitor.close()


async def claim(
    conversation: UcxConversation, ticket: Ticket, nonce_of: Callable[[bytes], bytes] = own_nonce
) -> None:
    await send(conversation, Hello(BULK_VERSION, ticket_digest(ticket.secret)))
    challenge = await receive(conversation, Challenge)
    await send(conversation, make_claim(ticket, BOB, nonce_of(challenge.nonce)))
    await receive(conversation, Accept)


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (Want((ChunkRange(0, 9),), 9), TooLarge),
        (Want((ChunkRange(12, 2),), 2), Malformed),
        (Hello(BULK_VERSION, bytes(32)), Malformed),
        (b"", Malformed),
        (b"\x08\x00\x00\x00\x05abc", Malformed),
    ],
)
async def test_what_a_reader_may_not_ask(tmp_path: Path, act: object, error: type[WireError]) -> None:
    async with visiting(tmp_path) as (conversation, ticket, _):
        await claim(conversation, ticket)
        if isinstance(act, bytes):
            await conversation.send_message(act)
        else:
            await send(conversation, act)  # type: ignore[arg-type]
        with pytest.raises(error):
            decode_message(await conversation.receive_message())


async def test_a_claim_that_was_signed_for_quic_is_no_good_here(tmp_path: Path) -> None:
    async with visiting(tmp_path) as (conversation, ticket, _):
        with pytest.raises(ReplayedProof):
            await claim(conversation, ticket, nonce_of=bytes)


async def test_nothing_is_sent_before_the_claim(tmp_path: Path) -> None:
    async with visiting(tmp_path) as (conversation, _, _):
        conversation.chunks_max = 8
        await send(conversation, Want((ChunkRange(0, 1),), 1))
        with pytest.raises(Malformed, match="expected Hello"):
            decode_message(await conversation.receive_message())


async def test_a_revoked_ticket_ends_a_transfer(tmp_path: Path) -> None:
    async with visiting(tmp_path) as (conversation, ticket, alice):
        await claim(conversation, ticket)
        alice.tickets.revoke(ticket.secret)
        await send(conversation, Want((ChunkRange(0, 1),), 1))
        with pytest.raises(TicketRefused):
            decode_message(await conversation.receive_message())


async def test_a_reader_that_fetches_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "IDLE_SECONDS", 0.2)
    async with visiting(tmp_path) as (conversation, ticket, _):
        await claim(conversation, ticket)
        conversation.chunks_max = 8
        await send(conversation, Want((ChunkRange(0, 8),), 8))
        with pytest.raises(UcxBroken, match="the other end is gone"):
            await conversation.receive_message()


async def test_readers_from_elsewhere_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UcxSettings, "trusts", lambda _self, _host: False)
    async with visiting(tmp_path) as (conversation, ticket, _):
        with pytest.raises(UcxBroken, match="the other end is gone"):
            await claim(conversation, ticket)


async def test_only_so_many_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ucx, "READERS_MAX", 0)
    async with visiting(tmp_path) as (conversation, ticket, _):
        with pytest.raises(UcxBroken, match="the other end is gone"):
            await claim(conversation, ticket)


async def test_what_a_peer_sends_unasked_is_bounded(tmp_path: Path) -> None:
    async with visiting(tmp_path) as (conversation, _, _):
        about = ucp.AmReceived(attributes=0)
        for _ in range(MESSAGES_WAITING_MAX + 1):
            conversation._take_message(None, 0, 0, 0, 0, ctypes.addressof(about))
        for _ in range(MESSAGES_WAITING_MAX):
            await conversation.receive_message()
        with pytest.raises(UcxBroken, match="more messages than were asked for"):
            await conversation.receive_message()


# -- a holder that is hostile


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        ("other bytes", "malformed message"),
        ("chunks nobody asked for", "more chunks than were asked for"),
        ("another chunk", "which was not asked for"),
        ("a short chunk", "which was not asked for"),
        ("a short hash list", "the hash list does not have the announced length"),
    ],
)
async def test_what_a_holder_may_not_do(
    tmp_path: Path, alice_store: BlobStore, bob_store: BlobStore, answer: str, failure: str
) -> None:
    """The rogue holder's UCX side lies, its QUIC side is honest: so the blob comes, and the lie is told."""
    info = await alice_store.add_bytes(pattern(SMALL))

    async def lie(conversation: UcxConversation, source: OffloadSource) -> None:
        await receive(conversation, Hello)
        if answer == "other bytes":
            await conversation.send_message(b"\xff\xff\xff")
        await send(conversation, Challenge(bytes(32)))
        await receive(conversation, Claim)
        if answer == "chunks nobody asked for":
            await conversation.send_chunk(0, 0, 5)
        await send(conversation, Accept(info.size, len(info.chunks)))
        await receive(conversation, WantHashes)
        if answer == "a short hash list":
            await send(conversation, Hashes(0, info.chunks[1:]))
            await send(conversation, Hashes(12, info.chunks[:2]))
        await send(conversation, Hashes(0, info.chunks))
        await receive(conversation, Want)
        await conversation.send_chunk(9 if answer == "another chunk" else 0, 0, limits.CHUNK_BYTES - 1)
        await conversation.receive_message()

    rogue = make_offload(TCP, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ucx, "serve_reader", lie)
        async with (
            open_bulk(alice_store, ALICE, offloads=[rogue]) as alice,
            open_bulk(bob_store, BOB, offloads=[make_offload(TCP, tmp_path)]) as bob,
        ):
            report = await bob.fetch(alice.issue_ticket(info.blob, public_bytes(BOB), hosts=["127.0.0.1"]))
    assert report.transport == "quic/qh3"
    assert failure in report.reason
    assert bob_store.path(info.blob).read_bytes() == pattern(SMALL)


# -- what the operator sets


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "name the interfaces"),
        ({"interfaces": ["nonesuch0"]}, "no interface nonesuch0 with an IPv4 address; there are "),
        ({"interfaces": "lo"}, "Expected `array`, got `str`"),
        ({"interfaces": ["lo"], "speed": 3}, "unknown field `speed`"),
        ({"interfaces": ["lo"], "transports": ["pigeon"]}, "Invalid enum value 'pigeon'"),
        ({"interfaces": ["lo"], "transports": ["sm"]}, "transports must contain tcp"),
        ({"interfaces": ["lo"], "networks": ["10.0.0.0/33"]}, "networks: '10.0.0.0/33'"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match="offload_options") as told:
        UcxSettings(options)
    assert words in str(told.value)


def test_who_is_trusted() -> None:
    attached = UcxSettings({"interfaces": ["lo"]})
    assert attached.trusts("127.0.0.9")
    assert not attached.trusts("10.1.2.3")
    assert not attached.trusts("example.org")
    named = UcxSettings({"interfaces": ["lo"], "networks": ["10.1.0.0/16"]})
    assert named.trusts("10.1.2.3")
    assert not named.trusts("127.0.0.1")
    assert attached.shares_memory("127.0.0.1")
    assert not UcxSettings({"interfaces": ["lo"], "transports": ["ib", "tcp"]}).shares_memory("127.0.0.1")


def test_rdma_devices_behind_interfaces(tmp_path: Path) -> None:
    for name in ("ib0/device/infiniband/mlx5_0/ports/1", "eth0/device", "rocep1/device/infiniband/mlx5_1"):
        (tmp_path / name).mkdir(parents=True)
    assert rdma_devices(["ib0", "eth0", "rocep1", "gone"], tmp_path) == ["mlx5_0:1", "mlx5_1:1"]


def test_no_library_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "libucp.so.0").write_bytes(b"no library")
    offload = UcxOffload(tmp_path, {"interfaces": ["lo"], "library": str(tmp_path / "libucp.so.0")})
    capability = offload.probe()
    assert not capability.usable
    assert "\n" not in capability.reason


# -- the trial before a node relies on it


@pytest.mark.parametrize("transports", [["tcp"], ["ib", "tcp", "sm"]])
async def test_a_trial_brings_a_chunk(
    transports: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trio.py").write_text("raise SystemExit('the working folder is nobody's library')")
    monkeypatch.chdir(tmp_path)
    assert await trio.to_thread.run_sync(try_in_child, {"interfaces": ["lo"], "transports": transports}) == ""


@pytest.mark.parametrize(
    ("child", "words"),
    [
        ("kill -SEGV $$", r"UCX crashed in a trial \(SIGSEGV\); look at its transports"),
        ("exec sleep 60", r"UCX did not end a trial within 0.2 s"),
        ("echo chatter; echo 'UCX: no device' >&2; exit 1", "^UCX: no device$"),
        ("exit 3", "a trial of UCX ended with 3"),
    ],
)
def test_a_trial_that_fails_is_told_and_the_node_lives(
    tmp_path: Path, child: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{child}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    if "sleep" in child:
        monkeypatch.setattr(trial, "CHILD_SECONDS", 0.2)
    capability = UcxOffload(tmp_path, {"interfaces": ["lo"]}).probe()
    assert not capability.usable
    assert re.search(words, capability.reason)
