"""Several holders at once, parts of blobs, streams, and many small ones over one connection."""

from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trio.testing

from ioc_node.bulk import schedule
from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.frames import receive_frame, receive_message, send_message
from ioc_node.bulk.gathering import BATCH_CHUNKS_MAX, Gathering, Source
from ioc_node.bulk.plane import local
from ioc_node.bulk.quic import Channel
from ioc_node.bulk.targets import StreamTarget
from ioc_node.bulk.transfers import BulkEndpoint, open_bulk
from ioc_node.errors import PeerUnreachable, UsageError
from ioc_wire.bulk import (
    Accept,
    BlobInfo,
    Challenge,
    Claim,
    Endpoint,
    Hashes,
    Hello,
    Ticket,
    Want,
    WantHashes,
    WantSmall,
    blob_id_of,
    chunk_hash,
    decode_frame,
    encode_chunk_header,
)
from ioc_wire.errors import BlobCorrupt, Expired, NotFound, TicketRefused, WrongPeer
from ioc_wire.signed import public_bytes

from .conftest import ALICE, BOB, CAROL, MIB, open_rogue, pattern

HOSTS = ["127.0.0.1"]
SIZE = 24 * MIB + 100
DATA = pattern(SIZE)
CHUNKS = tuple(chunk_hash(DATA[at : at + MIB]) for at in range(0, SIZE, MIB))
BLOB = blob_id_of(SIZE, CHUNKS)


@dataclass
class Town:
    """Alice and Carol hold the blob, Bob reads."""

    alice: BulkEndpoint
    carol: BulkEndpoint
    bob: BulkEndpoint

    def sources(self) -> list[Source]:
        return [source_of(self.alice, self.bob), source_of(self.carol, self.bob)]


def plane_of(bulk: BulkEndpoint) -> local.LocalPlane:
    assert isinstance(bulk.plane, local.LocalPlane)
    return bulk.plane


def source_of(holder: BulkEndpoint, reader: BulkEndpoint, blob: bytes = BLOB) -> Source:
    return Source(holder.issue_ticket(blob, reader.public_key, hosts=HOSTS))


def rogue_source(port: int) -> Source:
    """A holder with Alice's key, told as the test wants."""
    endpoints = (Endpoint("127.0.0.1", port),)
    return Source(Ticket(bytes(32), BLOB, public_bytes(ALICE), public_bytes(BOB), 2**40, SIZE, endpoints))


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    stores = [BlobStore(tmp_path / name) for name in ("alice", "carol", "bob")]
    async with (
        open_bulk(stores[0], ALICE) as alice,
        open_bulk(stores[1], CAROL) as carol,
        open_bulk(stores[2], BOB) as bob,
    ):
        for store in stores[:2]:
            await store.add_bytes(DATA)
        yield Town(alice, carol, bob)


async def test_two_holders_share_the_work(town: Town) -> None:
    with trio.fail_after(20):
        report = await town.bob.gather(town.sources())
    assert town.bob.store.path(BLOB).read_bytes() == DATA
    shares = dict(report.shares)
    assert set(shares) == {town.alice.public_key, town.carol.public_key}
    assert sum(shares.values()) == SIZE == report.bytes_moved
    assert min(shares.values()) >= 2 * MIB


async def lie_after_one_chunk(channel: Channel) -> None:
    want = await tell_hashes(channel)
    first = want.ranges[0].start
    await channel.send_all(encode_chunk_header(first, MIB) + DATA[first * MIB : (first + 1) * MIB])
    await channel.send_all(encode_chunk_header(first + 1, MIB) + bytes(MIB))
    await trio.sleep_forever()


async def tell_hashes(channel: Channel) -> Want:
    """Answer honestly up to the first Want."""
    await receive_message(channel, Hello)
    await send_message(channel, Challenge(bytes(32)))
    await receive_message(channel, Claim)
    await send_message(channel, Accept(SIZE, len(CHUNKS)))
    while not isinstance(message := decode_frame(*await receive_frame(channel)), Want):
        assert isinstance(message, WantHashes)
        await send_message(channel, Hashes(0, CHUNKS))
    return message


async def test_a_liar_is_dropped_and_counted_and_what_was_right_stays(town: Town) -> None:
    async with open_rogue(lie_after_one_chunk) as port:
        liar = rogue_source(port)
        with trio.fail_after(20), pytest.raises(BlobCorrupt, match="chunk 1 of b"):
            await town.bob.gather([liar])
        assert liar.bytes_kept == MIB
        assert (town.bob.counters.liars, town.bob.counters.corrupt_chunks) == (1, 1)
        assert not town.bob.store.has(BLOB)
        await town.bob.store.discard_partial(BLOB)
        liar = rogue_source(port)
        with trio.fail_after(20):
            report = await town.bob.gather([liar, source_of(town.carol, town.bob)])
    assert isinstance(liar.fault, BlobCorrupt)
    assert report.bytes_resumed == 0
    assert town.bob.store.path(BLOB).read_bytes() == DATA


async def test_a_wrong_hash_list_of_one_holder_does_not_matter(town: Town) -> None:
    async def lie_about_hashes(channel: Channel) -> None:
        await receive_message(channel, Hello)
        await send_message(channel, Challenge(bytes(32)))
        await receive_message(channel, Claim)
        await send_message(channel, Accept(SIZE, len(CHUNKS)))
        await send_message(channel, Hashes(0, CHUNKS[::-1]))
        await trio.sleep_forever()

    async with open_rogue(lie_about_hashes) as port:
        with trio.fail_after(20):
            report = await town.bob.gather([rogue_source(port), source_of(town.carol, town.bob)])
    assert report.shares == ((town.carol.public_key, SIZE),)


async def test_a_holder_that_falls_silent_is_not_waited_for(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "SLOW_SECONDS", 0.3)

    async def fall_silent(channel: Channel) -> None:
        await tell_hashes(channel)
        await trio.sleep_forever()

    async with open_rogue(fall_silent) as port:
        with trio.fail_after(10):  # far less than the 15 s after which silence alone is an end
            report = await town.bob.gather([rogue_source(port), source_of(town.carol, town.bob)])
    assert report.shares == ((town.carol.public_key, SIZE),)


async def test_a_laggard_is_called_again_when_the_others_fail(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "SLOW_SECONDS", 0.0)
    monkeypatch.setattr(schedule, "SLOW_RATIO", 1e-9)  # whoever owes anything lags

    with trio.fail_after(20):
        report = await town.bob.gather(town.sources())
    assert report.bytes_moved == SIZE
    assert town.bob.counters.laggards > 0


async def test_a_blob_removed_while_it_is_served_ends_that_transfer_with_the_reason(town: Town) -> None:
    async def remove(here: int) -> None:
        if here >= 2 * MIB:
            await town.alice.store.remove(BLOB)

    def told(here: int, _size: int) -> None:
        if here >= 2 * MIB and town.alice.store.has(BLOB):
            town.alice.store.quota.remove(BLOB)

    with trio.fail_after(20), pytest.raises(NotFound, match=r"was removed here|is not here"):
        await town.bob.gather([source_of(town.alice, town.bob)], on_progress=told)
    await town.alice.store.add_bytes(DATA)
    first = source_of(town.alice, town.bob)
    await town.alice.store.remove(BLOB)
    with trio.fail_after(20):
        report = await town.bob.gather([first, source_of(town.carol, town.bob)])
    assert isinstance(first.fault, NotFound)
    assert report.bytes_resumed >= 2 * MIB
    assert town.bob.store.path(BLOB).read_bytes() == DATA


async def test_when_all_fail_the_last_reason_is_told(town: Town) -> None:
    refused = [source_of(town.alice, town.bob), source_of(town.carol, town.bob)]
    town.alice.tickets.revoke_readers({town.bob.public_key})
    town.carol.tickets.revoke_readers({town.bob.public_key})
    with trio.fail_after(20), pytest.raises(TicketRefused):
        await town.bob.gather(refused)
    assert all(isinstance(each.fault, TicketRefused) for each in refused)


async def test_a_large_blob_takes_several_connections(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "CONNECTION_BYTES", 8 * MIB)
    most = 0

    def told(_here: int, _size: int) -> None:
        nonlocal most
        most = max(most, town.alice.plane.connections)

    with trio.fail_after(20):
        await town.bob.gather([source_of(town.alice, town.bob)], on_progress=told)
    assert most == 3
    assert town.bob.store.path(BLOB).read_bytes() == DATA


# -- parts, and streams


@pytest.mark.parametrize(
    ("start", "stop", "chunks"),
    [
        (0, 1, 1),
        (MIB - 1, MIB + 1, 2),
        (5 * MIB, 6 * MIB, 1),
        (SIZE - 7, None, 1),
        (3, 3, 0),
        (SIZE, None, 0),
    ],
)
async def test_a_range_costs_the_chunks_it_lies_in(
    town: Town, start: int, stop: int | None, chunks: int
) -> None:
    with trio.fail_after(20):
        async with town.bob.open_blob(town.sources(), start, stop) as pieces:
            read = b"".join([bytes(piece) async for piece in pieces])
    assert read == DATA[start:stop]
    sent = town.alice.counters.bytes_sent + town.carol.counters.bytes_sent
    assert sent <= chunks * MIB
    assert town.bob.store.list_blobs() == []
    assert town.bob.store.list_partials() == []


async def test_a_range_beyond_the_end_is_one_line(town: Town) -> None:
    with trio.fail_after(20):
        async with town.bob.open_blob(town.sources(), 0, SIZE + 1) as pieces:
            with pytest.raises(UsageError, match=f"are not within the blob's {SIZE}"):
                await anext(aiter(pieces))


async def test_a_slow_consumer_slows_the_holders_down(town: Town) -> None:
    with trio.fail_after(20):
        async with town.bob.open_blob([source_of(town.alice, town.bob)], ahead=3) as pieces:
            first = await anext(aiter(pieces))
            assert first == DATA[:MIB]
            await trio.sleep(0.3)
            assert town.alice.counters.bytes_sent <= 4 * MIB
            rest = [bytes(piece) async for piece in pieces]
    assert b"".join(rest) == DATA[MIB:]


async def test_a_stream_survives_a_liar_and_ends_with_a_reason(town: Town) -> None:
    async with open_rogue(lie_after_one_chunk) as port:
        with trio.fail_after(20):
            async with town.bob.open_blob([rogue_source(port), source_of(town.carol, town.bob)]) as pieces:
                assert b"".join([bytes(piece) async for piece in pieces]) == DATA
            async with town.bob.open_blob([rogue_source(port)]) as pieces:
                assert await anext(aiter(pieces)) == DATA[:MIB]
                with pytest.raises(BlobCorrupt):
                    await anext(aiter(pieces))


# -- small ones


@asynccontextmanager
async def two(tmp_path: Path) -> AsyncIterator[tuple[BulkEndpoint, BulkEndpoint]]:
    async with (
        open_bulk(BlobStore(tmp_path / "alice"), ALICE) as alice,
        open_bulk(BlobStore(tmp_path / "bob"), BOB) as bob,
    ):
        yield alice, bob


async def add_small(store: BlobStore, count: int) -> list[BlobInfo]:
    found = {}
    infos = []
    for number in range(count):
        data = b"%d " % number + pattern(number * 37 % 4000)
        chunks = (chunk_hash(data),)
        infos.append(BlobInfo(blob_id_of(len(data), chunks), len(data), chunks))
        found[infos[-1].blob] = data
    await store.keep_small(found)
    return infos


async def test_hundreds_of_small_blobs_come_over_one_connection(tmp_path: Path) -> None:
    async with two(tmp_path) as (alice, bob):
        infos = [*await add_small(alice.store, 600), await alice.store.add_bytes(b"")]
        tickets = [alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS) for info in infos]
        opened = 0
        welcome = alice.plane.listeners[0]._welcome

        def count(*args: object) -> Channel | None:
            nonlocal opened
            channel = welcome(*args)  # type: ignore[arg-type]
            opened += channel is not None
            return channel

        alice.plane.listeners[0]._welcome = count  # type: ignore[method-assign,assignment]
        with trio.fail_after(20):
            assert await bob.fetch_small(tickets) == {}
        assert opened == 1
        assert bob.store.list_blobs() == alice.store.list_blobs()
        for info in infos:
            assert bob.store.path(info.blob).read_bytes() == alice.store.path(info.blob).read_bytes()
        assert len(alice.tickets) == 1  # used up, but the empty one's
        with trio.fail_after(20):
            assert await bob.fetch_small(tickets) == {}  # they are here


async def test_each_small_blob_is_refused_by_itself(tmp_path: Path) -> None:
    async with two(tmp_path) as (alice, bob):
        infos = await add_small(alice.store, 6)
        large = await alice.store.add_bytes(pattern(100_000))
        tickets = [alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS) for info in (*infos, large)]
        await alice.store.remove(infos[1].blob)
        alice.tickets.revoke(tickets[2].secret)
        stolen = alice.issue_ticket(infos[3].blob, public_bytes(CAROL), hosts=HOSTS)
        tickets[3] = stolen
        tickets[4] = alice.tickets.issue(
            infos[4].blob, bob.public_key, seconds=-1, size=infos[4].size, endpoints=tickets[4].endpoints
        )
        path = alice.store.path(infos[5].blob)
        path.chmod(0o600)
        path.write_bytes(b"x" * infos[5].size)
        with trio.fail_after(20):
            missed = await bob.fetch_small(tickets)
        assert bob.store.list_blobs() == [infos[0].blob]
        kinds = [type(missed[ticket.blob]) for ticket in tickets[1:6]]
        assert kinds == [NotFound, TicketRefused, WrongPeer, Expired, BlobCorrupt]
        assert "no small blob" in str(missed[large.blob])
        assert not alice.store.has(infos[5].blob)


async def test_a_small_blob_with_other_bytes_is_found_out(tmp_path: Path) -> None:
    async def lie(channel: Channel) -> None:
        await receive_message(channel, Hello)
        await send_message(channel, Challenge(bytes(32)))
        await receive_message(channel, Claim)
        await send_message(channel, Accept(4, 1))
        await receive_message(channel, WantSmall)
        await channel.send_all(encode_chunk_header(0, 4) + b"good")
        await channel.send_all(encode_chunk_header(1, 4) + b"evil")
        await trio.sleep_forever()

    async with open_rogue(lie) as port, open_bulk(BlobStore(tmp_path / "bob"), BOB) as bob:
        endpoints = (Endpoint("127.0.0.1", port),)
        tickets = [
            Ticket(
                bytes(32),
                blob_id_of(4, (chunk_hash(data),)),
                public_bytes(ALICE),
                bob.public_key,
                2**40,
                4,
                endpoints,
            )
            for data in (b"good", b"best")
        ]
        with trio.fail_after(10), pytest.raises(BlobCorrupt):
            await bob.fetch_small(tickets)
        assert bob.store.list_blobs() == [tickets[0].blob]
        assert bob.counters.liars == 1


async def test_small_blobs_of_nobody_are_unreachable(tmp_path: Path) -> None:
    async with two(tmp_path) as (alice, bob):
        info = (await add_small(alice.store, 1))[0]
        ticket = alice.issue_ticket(info.blob, bob.public_key, hosts=())
        with pytest.raises(PeerUnreachable, match="names no endpoint"):
            await bob.fetch_small([ticket])


async def test_what_a_dropped_connection_could_not_hand_over_is_asked_for_again(town: Town) -> None:
    """A connection is dropped as a laggard, or with its source, while its newest chunk waits for the disk."""
    gathering = Gathering(
        plane_of(town.bob).dialer,
        BOB,
        [source_of(town.alice, town.bob)],
        StreamTarget(BLOB, 0, None, ahead=64),
        town.bob.counters,
        connections=lambda _size: 1,
        throttle=town.bob.throttles.receiving,
    )
    asked: deque[int] = deque()

    class Ready:
        """A connection on which everything that is asked for is here at once."""

        async def ask(self, indexes: Sequence[int]) -> None:
            asked.extend(indexes)

        async def receive_chunk(self, _room: object) -> tuple[int, memoryview]:
            return asked.popleft(), memoryview(b"x")

    gathering._schedule = plan = schedule.Schedule(40, [range(40)])
    pace = plan.join(0.0)
    with trio.move_on_after(0.1):  # until it waits, since nobody puts anything away
        await gathering._read_chunks(gathering.sources[0], Ready(), plan, pace, "path")  # type: ignore[arg-type]
    plan.leave(pace)
    handed_over = {gathering._waiting.receive_nowait()[1][0] for _ in range(BATCH_CHUNKS_MAX)}
    again = plan.join(1.0)
    wanted: set[int] = set()
    while taken := plan.take(again, 1.0):
        wanted.update(taken)
        for index in taken:
            plan.received(again, index, 1.0)
    assert wanted == set(range(40)) - handed_over
