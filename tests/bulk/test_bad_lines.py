"""Streams over lines that lose, delay, reorder, duplicate and cut: every byte arrives, whatever the engines."""

import contextlib
import hashlib
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
import trio.lowlevel

from ioc_node.bulk import endpoint
from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.endpoint import open_channel
from ioc_node.bulk.engines import load_engine
from ioc_node.bulk.quic import Channel
from ioc_node.bulk.transfers import open_bulk
from ioc_node.bulk.udp import Address
from ioc_testnet.impair import Impaired, Impairment, open_impaired
from ioc_wire.bulk import Endpoint
from ioc_wire.signed import public_bytes

from .conftest import ALICE, BOB, MIB, open_rogue, pattern

PAIRS = [("qh3", "qh3"), ("aioquic", "aioquic"), ("qh3", "aioquic"), ("aioquic", "qh3")]
WINDOW = 64 << 10
ETHERNET = 1452


@asynccontextmanager
async def pouring(
    line: Impairment, data: bytes, holder: str, reader: str
) -> AsyncIterator[tuple[Impaired, Channel]]:
    """A reader's channel over the line to a holder that sends `data` once asked."""

    async def pour(channel: Channel) -> None:
        await channel.receive_exactly(1)
        await channel.send_all(data)
        await channel.receive_exactly(1)

    async with open_rogue(pour, holder) as port, open_impaired(("127.0.0.1", port), line) as impaired:
        loaded = load_engine(reader, BOB)  # type: ignore[arg-type]
        async with open_channel(
            loaded, "127.0.0.1", impaired.port, public_bytes(ALICE), received_bytes_max=2 * len(data)
        ) as channel:
            yield impaired, channel


async def carry(line: Impairment, size: int, holder: str, reader: str) -> Impaired:
    """Bring `size` bytes over the line; they must be the right ones."""
    data = pattern(size)
    with trio.fail_after(60):
        async with pouring(line, data, holder, reader) as (impaired, channel):
            await channel.send_all(b"!")
            got = b"".join(
                [await channel.receive_exactly(min(WINDOW, size - at)) for at in range(0, size, WINDOW)]
            )
            assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()
    return impaired


@pytest.mark.parametrize(("holder", "reader"), PAIRS)
async def test_half_a_percent_lost_on_a_long_line(holder: str, reader: str) -> None:
    line = Impairment(loss=0.005, delay_ms=50, mtu_bytes=ETHERNET, seed=3)
    impaired = await carry(line, 256 << 10, holder, reader)
    assert impaired.down.counters.passed > 180


@pytest.mark.parametrize(("holder", "reader"), PAIRS)
async def test_five_percent_lost(holder: str, reader: str) -> None:
    impaired = await carry(
        Impairment(loss=0.05, delay_ms=1, mtu_bytes=ETHERNET, seed=4), MIB // 2, holder, reader
    )
    assert impaired.down.counters.lost > 10


@pytest.mark.parametrize(("holder", "reader"), PAIRS)
async def test_out_of_order_and_twice(holder: str, reader: str) -> None:
    line = Impairment(jitter_ms=2, reorder=0.05, reorder_ms=4, duplicate=0.05, mtu_bytes=ETHERNET, seed=5)
    impaired = await carry(line, MIB, holder, reader)
    assert impaired.down.counters.duplicated > 20


@pytest.mark.slow
@pytest.mark.parametrize(("holder", "reader"), PAIRS)
@pytest.mark.parametrize("loss", [0.005, 0.05])
async def test_megabytes_over_a_lossy_long_line(holder: str, reader: str, loss: float) -> None:
    line = Impairment(loss=loss, delay_ms=50, jitter_ms=5, reorder=0.01, duplicate=0.01, mtu_bytes=ETHERNET)
    with trio.fail_after(600):
        await carry(line, 4 * MIB if loss < 0.01 else MIB, holder, reader)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["qh3", "aioquic"])
async def test_a_blob_over_a_throttled_lossy_line(
    alice_store: BlobStore, bob_store: BlobStore, engine: str
) -> None:
    """Queue of the line shorter than the credit of the stream: what overflows is sent again."""
    line = Impairment(loss=0.005, delay_ms=10, rate_mbit_s=80, queue_bytes_max=256 << 10, mtu_bytes=ETHERNET)
    async with (
        open_bulk(alice_store, ALICE, engine=engine) as alice,  # type: ignore[arg-type]
        open_bulk(bob_store, BOB) as bob,
        open_impaired(("127.0.0.1", alice.port), line) as impaired,
    ):
        info = await alice_store.add_bytes(pattern(16 * MIB))
        ticket = alice.issue_ticket(info.blob, bob.public_key, hosts=["127.0.0.1"])
        with trio.fail_after(120):
            await bob.fetch(
                msgspec.structs.replace(ticket, endpoints=(Endpoint("127.0.0.1", impaired.port),))
            )
    assert bob_store.has(info.blob)


@pytest.mark.parametrize("engine", ["qh3", "aioquic"])
@pytest.mark.parametrize(
    ("mtu", "found"), [(9000, 8952), (1452, 1452), (1400, 1392), (1240, 1232), (1200, 1200)]
)
async def test_datagrams_are_as_large_as_the_path_carries(engine: str, mtu: int, found: int) -> None:
    size = 256 << 10
    impaired = await carry(Impairment(mtu_bytes=mtu), size, engine, "qh3")
    datagrams = impaired.down.counters.passed
    assert size / found < datagrams < size / found * 1.15 + 30


@pytest.mark.parametrize(("mtu", "found"), [(9000, 8952), (1452, 1452), (1240, 1232)])
@pytest.mark.parametrize(("holder", "reader"), PAIRS)
async def test_who_calls_sends_as_large_datagrams(holder: str, reader: str, mtu: int, found: int) -> None:
    """A holder that nobody can dial calls its reader: then it is the client that sends the bulk."""
    size = 256 << 10
    arrived = trio.Event()
    got = []

    async def swallow(channel: Channel) -> None:
        got.append(await channel.receive_exactly(size))
        arrived.set()
        await channel.receive_exactly(1)

    async with (
        open_rogue(swallow, holder) as port,
        open_impaired(("127.0.0.1", port), Impairment(mtu_bytes=mtu)) as impaired,
        open_channel(
            load_engine(reader, BOB),  # type: ignore[arg-type]
            "127.0.0.1",
            impaired.port,
            public_bytes(ALICE),
            received_bytes_max=MIB,
        ) as channel,
    ):
        with trio.fail_after(20):
            await channel.send_all(pattern(size))
            await arrived.wait()
    assert got == [pattern(size)]
    assert size / found < impaired.up.counters.passed < size / found * 1.2 + 40


@pytest.mark.parametrize(("holder", "reader"), [("qh3", "qh3"), ("aioquic", "aioquic")])
async def test_a_nat_that_rebinds_does_not_break_a_transfer(holder: str, reader: str) -> None:
    """The holder sees the reader at another port, validates it, and goes on (RFC 9000 section 9)."""
    data = pattern(MIB)
    with trio.fail_after(30):
        async with pouring(Impairment(delay_ms=1), data, holder, reader) as (impaired, channel):
            await channel.send_all(b"!")
            first = await channel.receive_exactly(MIB // 4)
            impaired.rebind()
            channel.ping()  # a reader of chunks grants credit now and then; here it is the ping that is heard
            rest = await channel.receive_exactly(MIB - MIB // 4)
    assert first + rest == data


@pytest.mark.parametrize(("holder", "reader"), [("qh3", "qh3"), ("aioquic", "aioquic")])
async def test_a_reader_goes_on_from_a_new_address(
    holder: str, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its old address is dead: nothing comes back there. It notices the silence and takes another."""
    monkeypatch.setattr(endpoint, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(endpoint, "REBIND_SECONDS", 0.2)
    data = pattern(MIB)
    connections = []

    async def pour(channel: Channel) -> None:
        connections.append(channel)
        await channel.receive_exactly(1)
        await channel.send_all(data)
        await channel.receive_exactly(1)

    async with open_rogue(pour, holder) as port:
        with trio.fail_after(20):
            async with open_channel(
                load_engine(reader, BOB),  # type: ignore[arg-type]
                "127.0.0.1",
                port,
                public_bytes(ALICE),
                received_bytes_max=2 * MIB,
            ) as channel:
                before = channel.udp.port
                receive = channel.udp.receive_nowait
                monkeypatch.setattr(channel.udp, "receive_nowait", lambda count: receive(count)[:0])
                await channel.send_all(b"!")
                assert await channel.receive_exactly(MIB) == data
                assert channel.udp.port != before
    assert len(connections) == 1


@pytest.mark.parametrize(("holder", "reader"), [("qh3", "qh3"), ("aioquic", "aioquic")])
async def test_an_address_that_was_not_validated_is_not_flooded(holder: str, reader: str) -> None:
    """Somebody sends a datagram of the reader's from another address: he gets three times its bytes, and no stream."""
    data = pattern(2 * MIB)
    diverted: list[bytes] = []
    with trio.fail_after(30), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.setblocking(False)
        async with pouring(Impairment(), data, holder, reader) as (line, channel):
            port = line._target[1]
            send = channel.udp.send_nowait

            def divert(datagrams: Sequence[bytes], address: Address) -> int:
                if len(diverted) < 3:
                    for each in datagrams:
                        stranger.sendto(each, ("127.0.0.1", port))
                        diverted.append(each)
                    return len(datagrams)
                return send(datagrams, address)

            await channel.send_all(b"!")
            first = await channel.receive_exactly(MIB)
            channel.udp.send_nowait = divert  # type: ignore[method-assign]
            rest = await channel.receive_exactly(MIB)
            heard = 0
            with contextlib.suppress(BlockingIOError):
                while True:
                    heard += len(stranger.recv(65_535))
    assert first + rest == data
    assert len(diverted) >= 3
    assert heard <= 3 * sum(map(len, diverted))


class Passes(trio.abc.Instrument):
    """How often any task ran."""

    def __init__(self) -> None:
        self.steps = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1


@pytest.mark.parametrize(
    ("holder", "reader"), [("qh3", "qh3"), pytest.param("aioquic", "aioquic", marks=pytest.mark.slow)]
)
async def test_idle_connections_cost_no_wakeups(holder: str, reader: str) -> None:
    passes = Passes()

    async def wait(channel: Channel) -> None:
        await channel.receive_exactly(1)

    async with (
        open_rogue(wait, holder) as port,
        open_channel(
            load_engine(reader, BOB),
            "127.0.0.1",
            port,
            public_bytes(ALICE),
            received_bytes_max=MIB,  # type: ignore[arg-type]
        ),
    ):
        await trio.sleep(1.0)  # the last acknowledgements of the handshake, and what its probes leave behind
        trio.lowlevel.add_instrument(passes)
        await trio.sleep(1.2)
        trio.lowlevel.remove_instrument(passes)
    assert passes.steps <= 2  # this task's own


async def test_the_loop_stays_responsive_while_four_streams_run() -> None:
    """Both ends of all four in one loop, so this is the worst case; the bound is loose because machines are busy."""
    late: list[float] = []
    passed = 0

    async def tick() -> None:
        while True:
            began = time.perf_counter()
            await trio.lowlevel.checkpoint()
            late.append(time.perf_counter() - began)

    async def pour(channel: Channel) -> None:
        await channel.receive_exactly(1)
        while True:
            await channel.send_all(bytes(MIB))

    async def drain(port: int) -> None:
        nonlocal passed
        async with open_channel(
            load_engine("qh3", BOB), "127.0.0.1", port, public_bytes(ALICE), received_bytes_max=32 * MIB
        ) as channel:
            await channel.send_all(b"!")
            while True:
                passed += len(await channel.receive_exactly(MIB))

    async with open_rogue(pour, "qh3") as port:
        with trio.move_on_after(2):
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(drain, port)
                await trio.sleep(0.5)
                nursery.start_soon(tick)
    late.sort()
    assert passed > 16 * MIB
    assert late[len(late) // 2] < 0.1
