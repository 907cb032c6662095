"""The reader's side of the conversation described in `ioc_wire.bulk`: one connection to one holder."""

import math
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
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
from ioc_wire import limits
from ioc_wire.bulk import (
    BULK_VERSION,
    CHUNK_FRAME,
    CHUNK_INDEX,
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
    format_blob_id,
    ticket_digest,
)
from ioc_wire.errors import BlobCorrupt, Malformed, WireError, error_of

RECEIVED_BYTES_MAX: Final = (WINDOW_MAX + 1) * limits.CHUNK_BYTES
STALL_SECONDS: Final = 15.0
"""A holder that owes something and sends nothing for so long is treated as gone."""


class Reading:
    """A connection on which a ticket was claimed. Made by `open_reading`."""

    def __init__(self, channel: Channel, ticket: Ticket, scope: trio.CancelScope) -> None:
        self.ticket = ticket
        self.size = 0
        self._channel = channel
        self._scope = scope
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
        """Ask for chunks; they arrive in this order, after those asked for before."""
        await send_message(self._channel, Want(tuple(_ranges(indexes)), len(indexes)))
        self._asked.extend(indexes)

    async def receive_chunk(self) -> tuple[int, memoryview]:
        """The next chunk that was asked for, of the right length, not yet verified."""
        self.expect(True)
        index = self._asked.popleft()
        found, data = await self._receive()
        if found != index or len(data) != chunk_length(self.size, index):
            blob = format_blob_id(self.ticket.blob)
            raise BlobCorrupt(f"asked for chunk {index} of {blob}, got {len(data)} bytes of chunk {found}")
        self.expect(False)
        return index, data

    async def ask_small(self, secrets: Sequence[bytes]) -> None:
        """Ask for whole small blobs."""
        await send_message(self._channel, WantSmall(tuple(secrets)))

    async def receive_small(self, place: int, size: int) -> memoryview | WireError:
        """The small blob at `place` of a question, not yet verified, or why it does not come."""
        self.expect(True)
        try:
            found, data = await self._receive()
        except _NotThisOne as missed:
            if missed.place != place:
                raise Malformed(f"missed {missed.place} instead of {place}") from None
            return missed.error
        if found != place or len(data) != size:
            raise BlobCorrupt(f"asked for small blob {place} of {size} bytes, got {len(data)} of {found}")
        self.expect(False)
        return data

    async def _receive(self) -> tuple[int, memoryview]:
        kind, payload = await receive_frame(self._channel)
        if kind == CHUNK_FRAME:
            (found,) = CHUNK_INDEX.unpack_from(payload)
            return found, memoryview(payload)[CHUNK_INDEX.size :]
        message = decode_frame(kind, payload)
        if isinstance(message, Refusal):
            raise error_of(message.code, message.detail)
        if isinstance(message, Missed):
            raise _NotThisOne(message.place, error_of(message.code, message.detail))
        raise Malformed(f"expected a chunk, got {type(message).__name__}")


class _NotThisOne(Exception):
    def __init__(self, place: int, error: WireError) -> None:
        super().__init__(str(error))
        self.place = place
        self.error = error


@asynccontextmanager
async def open_reading(
    dialer: Dialer, endpoint: Endpoint, ticket: Ticket, key: Ed25519PrivateKey
) -> AsyncIterator[Reading]:
    """Connect to one endpoint of a ticket's holder and claim the ticket.

    Raises `PeerUnreachable` (come back: the connection broke, then or later), `BlobCorrupt`, or the holder's refusal.
    """
    with trio.CancelScope() as scope:
        scope.deadline = trio.current_time() + STALL_SECONDS
        async with dialer.open(ticket, endpoint, received_bytes_max=RECEIVED_BYTES_MAX) as channel:
            reading = Reading(channel, ticket, scope)
            await reading.claim(key)
            yield reading
    if scope.cancelled_caught:
        raise ChannelBroken(f"{endpoint.host}:{endpoint.port} sent nothing for {STALL_SECONDS:g} s")


def _ranges(indexes: Sequence[int]) -> Iterator[ChunkRange]:
    for _, run in groupby(enumerate(indexes), key=lambda each: each[1] - each[0]):
        members = [index for _, index in run]
        yield ChunkRange(members[0], len(members))
