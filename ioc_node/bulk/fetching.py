"""The reader's side of the conversation described in `ioc_wire.bulk`: one connection to one holder."""

import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import groupby
from typing import Final

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.bulk.frames import receive_frame, receive_message, send_message
from ioc_node.bulk.meeting import Dialer
from ioc_node.bulk.quic import Channel, ChannelBroken
from ioc_node.bulk.schedule import WINDOW_MAX
from ioc_node.bulk.tickets import make_claim
from ioc_node.runtime.throttle import Lane
from ioc_wire import limits
from ioc_wire.bulk import (
    BULK_VERSION,
    CHUNK_FRAME,
    CHUNK_INDEX,
    FRAME_HEADER,
    Accept,
    Challenge,
    ChunkRange,
    Endpoint,
    Hashes,
    Hello,
    Missed,
    Refusal,
    Ticket,
    Want,
    WantHashes,
    WantSmall,
    chunk_count,
    chunk_length,
    decode_frame,
    decode_frame_header,
    format_blob_id,
    ticket_digest,
)
from ioc_wire.errors import BlobCorrupt, Malformed, WireError, error_of

RECEIVED_BYTES_MAX: Final = (WINDOW_MAX + 1) * limits.CHUNK_BYTES
STALL_SECONDS: Final = 15.0
"""A holder that owes something and sends nothing for so long is treated as gone."""
CHUNK_SECONDS_MAX: Final = 300.0
"""One that sends a little now and then, as it does under a low ceiling, has so long for a chunk."""

Room = Callable[[int], memoryview]
"""Memory for a chunk of so many bytes."""


class Reading:
    """A connection on which a ticket was claimed. Made by `open_reading`."""

    def __init__(self, channel: Channel, ticket: Ticket, scope: trio.CancelScope, lane: Lane) -> None:
        self.ticket = ticket
        self.size = 0
        self._channel = channel
        self._scope = scope
        self._lane = lane
        self._waiting: deque[int] = deque()
        """Chunks that ceilings do not let us ask for yet."""
        self._asked: deque[int] = deque()

    async def claim(self, key: Ed25519PrivateKey) -> None:
        """Show the ticket and prove that we are its reader."""
        ticket = self.ticket
        await send_message(self._channel, Hello(BULK_VERSION, ticket_digest(ticket.secret)))
        challenge = await receive_message(self._channel, Challenge)
        await send_message(self._channel, make_claim(ticket, key, challenge.nonce))
        accept = await receive_message(self._channel, Accept)
        if ticket.size is not None and accept.size != ticket.size:
            raise BlobCorrupt(f"the holder has {accept.size} bytes, the ticket is for {ticket.size}")
        if accept.chunks != chunk_count(accept.size):
            raise BlobCorrupt(f"{accept.size} bytes are not {accept.chunks} chunks")
        self.size = accept.size
        self.expect(False)

    def expect(self, something: bool) -> None:
        """Whether the holder owes us something now: then it has `STALL_SECONDS` for the next of it."""
        self._scope.deadline = trio.current_time() + STALL_SECONDS if something else math.inf

    async def receive_hashes(self) -> tuple[bytes, ...]:
        """The blob's chunk hashes, not yet checked against its name."""
        count = chunk_count(self.size)
        chunks: list[bytes] = []
        if count:
            await send_message(self._channel, WantHashes())
        while len(chunks) < count:
            self.expect(True)
            page = await receive_message(self._channel, Hashes)
            if page.start != len(chunks) or len(chunks) + len(page.digests) > count:
                raise BlobCorrupt("the hash list does not have the announced length")
            chunks.extend(page.digests)
        self.expect(False)
        return tuple(chunks)

    async def ask(self, indexes: Sequence[int]) -> None:
        """Ask for chunks; they arrive in this order, after those asked for before. Where a ceiling applies, the holder
        hears of each only when its turn has come."""
        self._waiting.extend(indexes)
        await self._ask_in_turn()

    async def _ask_in_turn(self) -> None:
        """Ask for as much as may come now; wait for a turn only while nothing else is on its way."""
        free: list[int] = []
        while self._waiting:
            size = chunk_length(self.size, self._waiting[0])
            if not self._lane.take_nowait(size):
                if free or self._asked:
                    break
                await self._lane.take(size)
            free.append(self._waiting.popleft())
        if free:
            await send_message(self._channel, Want(tuple(_ranges(free)), len(free)))
            self._asked.extend(free)

    async def receive_chunk(self, room: Room) -> tuple[int, memoryview]:
        """The next chunk that was asked for, of the right length, not yet verified, in memory that `room` gave."""
        await self._ask_in_turn()
        index, began = self._asked.popleft(), trio.current_time()
        await self._wait_for(FRAME_HEADER.size, began)
        kind, length = decode_frame_header(self._channel.take_nowait(FRAME_HEADER.size))
        await self._wait_for(length, began)
        if kind != CHUNK_FRAME:
            raise _not_a_chunk(kind, self._channel.take_nowait(length))
        (found,) = CHUNK_INDEX.unpack(self._channel.take_nowait(CHUNK_INDEX.size))
        length -= CHUNK_INDEX.size
        if found != index or length != chunk_length(self.size, index):
            blob = format_blob_id(self.ticket.blob)
            raise BlobCorrupt(f"asked for chunk {index} of {blob}, got {length} bytes of chunk {found}")
        data = room(length)
        self._channel.take_into_nowait(data)
        return index, data

    async def _wait_for(self, count: int, began: float) -> None:
        """Return when the next `count` bytes are here; wait for as long as something of them keeps coming."""
        while True:
            with trio.move_on_after(STALL_SECONDS):
                return await self._channel.wait_received(count)
            now = trio.current_time()
            if now - max(self._channel.data_at, began) >= STALL_SECONDS:
                raise ChannelBroken(f"{self._channel.peer[0]} sent nothing for {STALL_SECONDS:g} s")
            if now - began >= CHUNK_SECONDS_MAX:
                raise ChannelBroken(f"{self._channel.peer[0]} took {CHUNK_SECONDS_MAX:g} s for a chunk")

    async def ask_small(self, secrets: Sequence[bytes], size: int) -> None:
        """Ask for whole small blobs, of `size` bytes in all."""
        await self._lane.take(size)
        await send_message(self._channel, WantSmall(tuple(secrets)))

    async def receive_small(self, place: int, size: int) -> memoryview | WireError:
        """The small blob at `place` of a question, not yet verified, or why it does not come."""
        self.expect(True)
        try:
            found, data = _chunk_of(*await receive_frame(self._channel))
        except _NotThisOne as missed:
            if missed.place != place:
                raise Malformed(f"missed {missed.place} instead of {place}") from None
            return missed.error
        if found != place or len(data) != size:
            raise BlobCorrupt(f"asked for small blob {place} of {size} bytes, got {len(data)} of {found}")
        self.expect(False)
        return data


class _NotThisOne(Exception):
    def __init__(self, place: int, error: WireError) -> None:
        super().__init__(str(error))
        self.place = place
        self.error = error


def _chunk_of(kind: int, payload: bytes) -> tuple[int, memoryview]:
    if kind == CHUNK_FRAME:
        (found,) = CHUNK_INDEX.unpack_from(payload)
        return found, memoryview(payload)[CHUNK_INDEX.size :]
    raise _not_a_chunk(kind, payload)


def _not_a_chunk(kind: int, payload: bytes) -> Exception:
    message = decode_frame(kind, payload)
    if isinstance(message, Refusal):
        return error_of(message.code, message.detail)
    if isinstance(message, Missed):
        return _NotThisOne(message.place, error_of(message.code, message.detail))
    return Malformed(f"expected a chunk, got {type(message).__name__}")


@asynccontextmanager
async def open_reading(
    dialer: Dialer,
    endpoint: Endpoint,
    ticket: Ticket,
    key: Ed25519PrivateKey,
    lane: Lane,
    *,
    local: str | None = None,
) -> AsyncIterator[Reading]:
    """Connect to one endpoint of a ticket's holder, from the address `local`, and claim the ticket. What is asked for
    goes through `lane`.

    Raises `PeerUnreachable` (come back: the connection broke, then or later), `BlobCorrupt`, or the holder's refusal.
    """
    with trio.CancelScope() as scope:
        scope.deadline = trio.current_time() + STALL_SECONDS
        async with dialer.open(
            ticket, endpoint, received_bytes_max=RECEIVED_BYTES_MAX, local=local
        ) as channel:
            reading = Reading(channel, ticket, scope, lane)
            await reading.claim(key)
            yield reading
    if scope.cancelled_caught:
        raise ChannelBroken(f"{endpoint.host}:{endpoint.port} sent nothing for {STALL_SECONDS:g} s")


def _ranges(indexes: Sequence[int]) -> Iterator[ChunkRange]:
    for _, run in groupby(enumerate(indexes), key=lambda each: each[1] - each[0]):
        members = [index for _, index in run]
        yield ChunkRange(members[0], len(members))
