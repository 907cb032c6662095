"""The reader's side of the conversation described in `ioc_wire.bulk`."""

from collections.abc import Callable, Iterator
from typing import Final

import trio

from ioc_node.bulk.counters import BulkCounters
from ioc_node.bulk.endpoint import open_channel
from ioc_node.bulk.engines import Engine
from ioc_node.bulk.frames import receive_frame, receive_message, send_message
from ioc_node.bulk.offload import Landing
from ioc_node.bulk.partial import PartialBlob
from ioc_node.bulk.quic import Channel, ChannelBroken
from ioc_wire import limits
from ioc_wire.bulk import (
    BULK_VERSION,
    CHUNK_FRAME,
    CHUNK_INDEX,
    Accept,
    BlobInfo,
    Challenge,
    ChunkRange,
    Credit,
    Endpoint,
    Hashes,
    Hello,
    Refusal,
    Want,
    WantHashes,
    chunk_count,
    chunk_length,
    decode_frame,
    format_blob_id,
    ticket_digest,
)
from ioc_wire.errors import BlobCorrupt, Malformed, error_of

CREDIT_CHUNKS: Final = 16
CREDIT_STEP: Final = 4
RECEIVED_BYTES_MAX: Final = (CREDIT_CHUNKS + 1) * limits.CHUNK_BYTES
STALL_SECONDS: Final = 15.0
"""A holder that sends nothing for so long is treated as gone."""

Progress = Callable[[int], None]
"""Told the length of every chunk that was verified and kept."""


class QuicFetch:
    """One attempt to bring the missing chunks of a blob from one endpoint of its holder."""

    def __init__(self, engine: Engine, landing: Landing, counters: BulkCounters, progress: Progress) -> None:
        self._engine = engine
        self._landing = landing
        self._counters = counters
        self._progress = progress
        self._scope = trio.CancelScope()

    async def run(self, endpoint: Endpoint) -> None:
        """Fetch until every chunk is here.

        Raises `PeerUnreachable` (come back: what arrived is kept), `BlobCorrupt`, `StorageFull`, or the
        holder's refusal.
        """
        holder = self._landing.ticket.holder
        with self._scope as scope:
            self._alive()
            async with open_channel(
                self._engine, endpoint.host, endpoint.port, holder, received_bytes_max=RECEIVED_BYTES_MAX
            ) as channel:
                await self._converse(channel)
        if scope.cancelled_caught:
            raise ChannelBroken(f"{endpoint.host}:{endpoint.port} sent nothing for {STALL_SECONDS:g} s")

    def _alive(self) -> None:
        self._scope.deadline = trio.current_time() + STALL_SECONDS

    async def _converse(self, channel: Channel) -> None:
        ticket = self._landing.ticket
        await send_message(channel, Hello(BULK_VERSION, ticket_digest(ticket.secret)))
        challenge = await receive_message(channel, Challenge)
        await send_message(channel, self._landing.prove(challenge.nonce))
        accept = await receive_message(channel, Accept)
        partial = await self._begin(channel, accept)
        while ranges := partial.missing_ranges():
            await self._fill(channel, partial, ranges)

    async def _begin(self, channel: Channel, accept: Accept) -> PartialBlob:
        ticket = self._landing.ticket
        if ticket.size is not None and accept.size != ticket.size:
            raise BlobCorrupt(f"the holder has {accept.size} bytes, the ticket is for {ticket.size}")
        if accept.chunks != chunk_count(accept.size):
            raise BlobCorrupt(f"{accept.size} bytes are not {accept.chunks} chunks")
        partial = await self._landing.resume()
        self._alive()
        if partial is not None:
            if partial.info.size != accept.size:
                raise BlobCorrupt(f"the holder has {accept.size} bytes of {format_blob_id(ticket.blob)}")
            return partial
        self._landing.store.check_space(ticket.blob, accept.size)
        chunks = await self._receive_hashes(channel, accept.chunks)
        partial = await self._landing.begin(BlobInfo(ticket.blob, accept.size, tuple(chunks)))
        self._alive()
        return partial

    async def _receive_hashes(self, channel: Channel, count: int) -> list[bytes]:
        chunks: list[bytes] = []
        if count:
            await send_message(channel, WantHashes())
        while len(chunks) < count:
            page = await receive_message(channel, Hashes)
            self._alive()
            if page.start != len(chunks) or len(chunks) + len(page.digests) > count:
                raise BlobCorrupt("the hash list does not have the announced length")
            chunks.extend(page.digests)
        return chunks

    async def _fill(self, channel: Channel, partial: PartialBlob, ranges: tuple[ChunkRange, ...]) -> None:
        await send_message(channel, Want(ranges, CREDIT_CHUNKS))
        ungranted = sum(each.count for each in ranges) - CREDIT_CHUNKS
        taken = 0
        for index in _indexes(ranges):
            data = await self._receive_chunk(channel, partial.info, index)
            try:
                await partial.write_chunk(index, data)
            except BlobCorrupt:
                self._counters.corrupt_chunks += 1
                raise
            self._alive()
            self._counters.bytes_received += len(data)
            self._progress(len(data))
            taken += 1
            if taken == CREDIT_STEP and ungranted > 0:
                await send_message(channel, Credit(taken))
                ungranted -= taken
                taken = 0
            elif taken == CREDIT_STEP:
                taken = 0

    async def _receive_chunk(self, channel: Channel, info: BlobInfo, index: int) -> memoryview:
        kind, payload = await receive_frame(channel)
        if kind != CHUNK_FRAME:
            message = decode_frame(kind, payload)
            if isinstance(message, Refusal):
                raise error_of(message.code, message.detail)
            raise Malformed(f"expected a chunk, got {type(message).__name__}")
        data = memoryview(payload)[CHUNK_INDEX.size :]
        (found,) = CHUNK_INDEX.unpack_from(payload)
        if found != index or len(data) != chunk_length(info.size, index):
            raise BlobCorrupt(
                f"asked for chunk {index} of {format_blob_id(info.blob)}, got {len(data)} bytes of chunk {found}"
            )
        return data


def _indexes(ranges: tuple[ChunkRange, ...]) -> Iterator[int]:
    for each in ranges:
        yield from range(each.start, each.start + each.count)
