"""Holders that lie, readers that hang, strangers that throw garbage."""

import os
import random
import socket
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.lowlevel
import trio.testing

from ioc_node.bulk import fetching, serving
from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.endpoint import open_channel
from ioc_node.bulk.engines import load_engine
from ioc_node.bulk.firstpacket import RetryTokens, parse_long_header
from ioc_node.bulk.frames import receive_message, send_message
from ioc_node.bulk.quic import Channel, ChannelBroken
from ioc_node.bulk.tickets import make_claim
from ioc_node.bulk.transfers import open_bulk
from ioc_node.errors import PeerUnreachable
from ioc_wire.bulk import (
    BULK_VERSION,
    Accept,
    Challenge,
    ChunkRange,
    Claim,
    Credit,
    Endpoint,
    Hashes,
    Hello,
    Ticket,
    Want,
    WantHashes,
    blob_id_of,
    chunk_hash,
    encode_chunk_header,
    ticket_digest,
)
from ioc_wire.errors import BlobCorrupt, Malformed, ReplayedProof, TooLarge, WireError, WrongPeer
from ioc_wire.signed import public_bytes

from .conftest import ALICE, BOB, CAROL, MIB, open_rogue, pattern

HOSTS = ["127.0.0.1"]
DATA = pattern(3 * MIB)
CHUNKS = tuple(chunk_hash(DATA[at : at + MIB]) for at in range(0, 3 * MIB, MIB))
BLOB = blob_id_of(len(DATA), CHUNKS)

Story = Callable[[Channel], Awaitable[None]]


def ticket_for(port: int, size: int | None = None) -> Ticket:
    endpoints = (Endpoint("127.0.0.1", port),)
    return Ticket(bytes(32), BLOB, public_bytes(ALICE), public_bytes(BOB), 2**40, size, endpoints)


def lying(tell: Story) -> Story:
    async def converse(channel: Channel) -> None:
        await receive_message(channel, Hello)
        await send_message(channel, Challenge(bytes(32)))
        await receive_message(channel, Claim)
        await tell(channel)
        await trio.sleep_forever()

    return converse


async def tell_hashes(channel: Channel) -> None:
    await send_message(channel, Accept(len(DATA), 3))
    await receive_message(channel, WantHashes)
    await send_message(channel, Hashes(0, CHUNKS))
    await receive_message(channel, Want)


async def tell_flipped_bit(channel: Channel) -> None:
    await tell_hashes(channel)
    await channel.send_all(encode_chunk_header(0, MIB) + DATA[:MIB])
    await channel.send_all(encode_chunk_header(1, MIB) + DATA[MIB : 2 * MIB - 1] + b"\0")


async def tell_wrong_size(channel: Channel) -> None:
    await send_message(channel, Accept(len(DATA), 2))


async def tell_wrong_hashes(channel: Channel) -> None:
    await send_message(channel, Accept(len(DATA), 3))
    await send_message(channel, Hashes(0, CHUNKS[::-1]))


async def tell_endless_hashes(channel: Channel) -> None:
    await send_message(channel, Accept(len(DATA), 3))
    while True:
        await send_message(channel, Hashes(0, (bytes(32),) * 1000))


async def tell_short_chunk(channel: Channel) -> None:
    await tell_hashes(channel)
    await channel.send_all(encode_chunk_header(0, 5) + b"short")


async def tell_other_chunk(channel: Channel) -> None:
    await tell_hashes(channel)
    await channel.send_all(encode_chunk_header(2, MIB) + DATA[2 * MIB :])


async def tell_endless_frame(channel: Channel) -> None:
    await tell_hashes(channel)
    await channel.send_all(b"\0\xff\xff\xff\xff")


async def tell_nonsense(channel: Channel) -> None:
    await channel.send_all(b"\x04\x00\x00\x00\x03abc")


@pytest.mark.parametrize(
    ("tell", "expected"),
    [
        (tell_flipped_bit, BlobCorrupt),
        (tell_wrong_size, BlobCorrupt),
        (tell_wrong_hashes, BlobCorrupt),
        (tell_endless_hashes, BlobCorrupt),
        (tell_short_chunk, BlobCorrupt),
        (tell_other_chunk, BlobCorrupt),
        (tell_endless_frame, TooLarge),
        (tell_nonsense, Malformed),
    ],
)
async def test_a_lying_holder_is_found_out(
    bob_store: BlobStore, tell: Story, expected: type[WireError]
) -> None:
    async with open_rogue(lying(tell)) as port, open_bulk(bob_store, BOB) as bob:
        with trio.fail_after(10), pytest.raises(expected):
            await bob.fetch(ticket_for(port))
        kept = await bob_store.resume(BLOB)
        assert (kept.bytes_present if kept else 0) == (MIB if tell is tell_flipped_bit else 0)
        if kept:
            kept.close()
    assert not bob_store.has(BLOB)


@pytest.mark.parametrize("engine", ["qh3", "aioquic"])
async def test_a_holder_that_sends_without_end_is_cut_off(bob_store: BlobStore, engine: str) -> None:
    """Far more bytes than there was credit for must not pile up in the reader."""
    sent = 0

    async def flood(channel: Channel) -> None:
        nonlocal sent
        await channel.receive_exactly(2)
        while True:
            await channel.send_all(bytes(MIB))
            sent += MIB

    async with open_rogue(flood, engine) as port:
        loaded = load_engine("qh3", BOB)
        with trio.fail_after(20), pytest.raises(TooLarge, match="sent more than it was asked for"):  # noqa: PT012
            async with open_channel(
                loaded, "127.0.0.1", port, public_bytes(ALICE), received_bytes_max=2 * MIB
            ) as channel:
                await channel.send_all(b"go")
                await channel.receive_exactly(3 * MIB)
    assert sent < 16 * MIB


async def test_a_silent_holder_is_given_up(bob_store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "STALL_SECONDS", 0.1)
    monkeypatch.setattr("ioc_node.bulk.gathering.BACKOFF_SECONDS_MAX", 0.01)

    async def silence(channel: Channel) -> None:
        await trio.sleep_forever()

    async with open_rogue(silence) as port, open_bulk(bob_store, BOB) as bob:
        with trio.fail_after(10), pytest.raises(PeerUnreachable, match=r"sent nothing for 0\.1 s"):
            await bob.fetch(ticket_for(port))


async def test_a_silent_reader_is_hung_up_on(alice_store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "CLAIM_SECONDS", 0.2)
    async with open_bulk(alice_store, ALICE) as alice:
        with trio.fail_after(10), pytest.raises(ChannelBroken):  # noqa: PT012
            async with open_channel(
                load_engine("qh3", BOB), "127.0.0.1", alice.port, alice.public_key, received_bytes_max=MIB
            ) as channel:
                assert alice.plane.connections == 1
                await channel.receive_exactly(1)
        await trio.testing.wait_all_tasks_blocked()
        assert alice.plane.connections == 0


@pytest.mark.parametrize("engine", ["qh3", "aioquic"])
async def test_a_reader_that_stops_reading_bounds_the_holders_memory(engine: str) -> None:
    """The holder may buffer its bound of unacknowledged bytes, and not one slice more."""
    sent = 0
    bound = 0

    async def pour(channel: Channel) -> None:
        nonlocal sent, bound
        bound = channel.pipe.buffered_bytes_max
        await channel.receive_exactly(1)
        while True:
            await channel.send_all(bytes(channel.pipe.slice_bytes))
            sent += channel.pipe.slice_bytes

    async with open_rogue(pour, engine) as port:
        with trio.move_on_after(0.8):
            async with open_channel(
                load_engine("qh3", BOB), "127.0.0.1", port, public_bytes(ALICE), received_bytes_max=1 << 40
            ) as channel:
                channel.feed = lambda _received: None  # type: ignore[method-assign]  # deaf from now on
                await channel.send_all(b"x")
                await trio.sleep_forever()
    assert 0 < sent <= bound


async def test_credit_is_what_limits_an_honest_holder(alice_store: BlobStore) -> None:
    async with open_bulk(alice_store, ALICE) as alice:
        info = await alice_store.add_bytes(pattern(20 * MIB))
        ticket = alice.issue_ticket(info.blob, public_bytes(BOB), hosts=HOSTS)
        with trio.fail_after(10):
            async with claimed(alice.port, ticket) as channel:
                await send_message(channel, Want((ChunkRange(0, 20),), 2))
                await trio.sleep(0.3)
                assert alice.counters.bytes_sent == 2 * MIB
                await send_message(channel, Credit(1))
                await trio.sleep(0.2)
                assert alice.counters.bytes_sent == 3 * MIB


class claimed:
    """A reader's channel after its claim was accepted."""

    def __init__(self, port: int, ticket: Ticket) -> None:
        self._opened = open_channel(
            load_engine("qh3", BOB), "127.0.0.1", port, public_bytes(ALICE), received_bytes_max=32 * MIB
        )
        self._ticket = ticket

    async def __aenter__(self) -> Channel:
        channel = await self._opened.__aenter__()
        await send_message(channel, Hello(BULK_VERSION, ticket_digest(self._ticket.secret)))
        challenge = await receive_message(channel, Challenge)
        await send_message(channel, make_claim(self._ticket, BOB, challenge.nonce))
        await receive_message(channel, Accept)
        return channel

    async def __aexit__(self, *error: object) -> None:
        await self._opened.__aexit__(*error)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "message",
    [Want((ChunkRange(19, 2),), 2), Credit(64), Hello(BULK_VERSION, bytes(32))],
)
async def test_a_reader_that_breaks_the_rules_is_refused(
    alice_store: BlobStore, message: Want | Credit | Hello
) -> None:
    async with open_bulk(alice_store, ALICE) as alice:
        info = await alice_store.add_bytes(pattern(20 * MIB))
        ticket = alice.issue_ticket(info.blob, public_bytes(BOB), hosts=HOSTS)
        with trio.fail_after(10):
            async with claimed(alice.port, ticket) as channel:
                if isinstance(message, Credit):
                    await send_message(channel, message)
                await send_message(channel, message)
                with pytest.raises((TooLarge, Malformed)):
                    await receive_message(channel, Hashes)


async def test_a_replayed_claim_is_refused(alice_store: BlobStore) -> None:
    async with open_bulk(alice_store, ALICE) as alice:
        info = await alice_store.add_bytes(b"secret")
        ticket = alice.issue_ticket(info.blob, public_bytes(BOB), hosts=HOSTS)
        recorded = make_claim(ticket, BOB, os.urandom(32))
        with trio.fail_after(10), pytest.raises(ReplayedProof):  # noqa: PT012
            async with open_channel(
                load_engine("qh3", CAROL), "127.0.0.1", alice.port, alice.public_key, received_bytes_max=MIB
            ) as channel:
                await send_message(channel, Hello(BULK_VERSION, ticket_digest(ticket.secret)))
                await receive_message(channel, Challenge)
                await send_message(channel, recorded)
                await receive_message(channel, Accept)
        assert alice.counters.refused == 1


async def test_an_impostor_at_the_holders_address_learns_nothing() -> None:
    heard: list[bytes] = []

    async def listen(channel: Channel) -> None:
        heard.append(await channel.receive_exactly(1))

    async with open_rogue(listen) as port:
        with trio.fail_after(10), pytest.raises(WrongPeer):
            async with open_channel(
                load_engine("qh3", BOB), "127.0.0.1", port, public_bytes(CAROL), received_bytes_max=MIB
            ):
                raise AssertionError("the wrong key was accepted")
    assert heard == []


@pytest.mark.parametrize("engine", ["qh3", "aioquic"])
async def test_garbage_by_the_ten_thousand_changes_nothing(
    alice_store: BlobStore, bob_store: BlobStore, engine: str
) -> None:
    dice = random.Random(7)
    async with (
        open_bulk(alice_store, ALICE, engine=engine) as alice,  # type: ignore[arg-type]
        open_bulk(bob_store, BOB) as bob,
    ):
        info = await alice_store.add_bytes(DATA)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, trio.fail_after(30):
            target = ("127.0.0.1", alice.port)
            for number in range(10_000):
                kind = number % 4
                head = (b"", b"\xc0\0\0\0\1\x08", b"\x40", b"\xc0\x1a\x2a\x3a\x4a\x08")[kind]
                sock.sendto(head + dice.randbytes(dice.choice((0, 1, 7, 40, 1200))), target)
                if number % 50 == 0:
                    await trio.lowlevel.checkpoint()
            assert alice.plane.connections == 0
            ticket = alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS)
            await bob.fetch(ticket)
    assert bob_store.has(info.blob)


async def test_a_first_packet_gets_a_retry_smaller_than_itself_and_leaves_no_state(
    alice_store: BlobStore,
) -> None:
    async with open_bulk(alice_store, ALICE) as alice:
        sock = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sock:
            initial = b"\xc0\0\0\0\1\x08" + b"d" * 8 + b"\x08" + b"s" * 8 + b"\0"
            await sock.sendto(initial.ljust(1200, b"\0"), ("127.0.0.1", alice.port))
            with trio.fail_after(5):
                answer, _ = await sock.recvfrom(2000)
            assert len(answer) < 200
            assert answer[0] & 0xF0 == 0xF0
            forged = b"\xc0\0\0\0\1\x08" + b"d" * 8 + b"\x08" + b"s" * 8 + b"\x20" + b"t" * 32
            await sock.sendto(forged.ljust(1200, b"\0"), ("127.0.0.1", alice.port))
            await trio.sleep(0.1)
        assert alice.plane.connections == 0


def test_retry_tokens_are_bound_and_short_lived() -> None:
    now = 0.0
    tokens = RetryTokens(clock=lambda: now)
    token = tokens.make(("10.0.0.1", 5), b"original", b"retryid.")
    assert tokens.open(token, ("10.0.0.1", 5), b"retryid.") == b"original"
    assert tokens.open(token, ("10.0.0.1", 6), b"retryid.") is None
    assert tokens.open(token, ("10.0.0.1", 5), b"another.") is None
    assert tokens.open(token[:-1] + bytes((token[-1] ^ 1,)), ("10.0.0.1", 5), b"retryid.") is None
    assert tokens.open(b"", ("10.0.0.1", 5), b"retryid.") is None
    now = 11.0
    assert tokens.open(token, ("10.0.0.1", 5), b"retryid.") is None


def test_any_bytes_are_a_header_or_none() -> None:
    dice = random.Random(3)
    for _ in range(2000):
        parse_long_header(dice.randbytes(dice.randrange(40)))
