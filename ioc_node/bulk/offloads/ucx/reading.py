"""The reader's side of a UCX conversation: chunks are fetched into registered memory, verified, and kept."""

from collections.abc import Iterator
from typing import Final

import trio

from ioc_node.bulk.offload import Landing, OffloadUnusable
from ioc_node.bulk.offloads.ucx.conversation import OfferedChunk, UcxConversation
from ioc_node.bulk.offloads.ucx.messages import WINDOW, decode, own_nonce, receive, send
from ioc_node.bulk.partial import PartialBlob
from ioc_wire.bulk import (
    BULK_VERSION,
    Accept,
    BlobInfo,
    Challenge,
    ChunkRange,
    Hashes,
    Hello,
    Want,
    WantHashes,
    chunk_count,
    chunk_length,
    ticket_digest,
)
from ioc_wire.errors import BlobCorrupt, Malformed

CLAIM_SECONDS: Final = 5.0
PIECE: Final = 4
"""Chunks asked for at once, so that the next ones are on their way while these are verified."""


async def pull_blob(conversation: UcxConversation, into: Landing) -> str:
    """Bring every missing chunk; the transports that UCX used. Raises `OffloadUnusable` or a `WireError`."""
    with trio.move_on_after(CLAIM_SECONDS) as scope:
        accept = await _claim(conversation, into)
    if scope.cancelled_caught:
        raise OffloadUnusable(f"the holder did not answer over UCX within {CLAIM_SECONDS:g} s")
    partial = await _begin(conversation, into, accept)
    transports = conversation.transports
    while not partial.complete:
        await _Pull(conversation, partial).run(partial.missing_ranges())
    return transports


async def _claim(conversation: UcxConversation, into: Landing) -> Accept:
    await send(conversation, Hello(BULK_VERSION, ticket_digest(into.ticket.secret)))
    challenge = await receive(conversation, Challenge)
    await send(conversation, into.prove(own_nonce(challenge.nonce)))
    return await receive(conversation, Accept)


async def _begin(conversation: UcxConversation, into: Landing, accept: Accept) -> PartialBlob:
    ticket = into.ticket
    if accept.chunks != chunk_count(accept.size) or ticket.size not in (None, accept.size):
        raise BlobCorrupt(f"the holder announced {accept.size} bytes in {accept.chunks} chunks")
    partial = await into.resume()
    if partial is not None:
        if partial.info.size != accept.size:
            raise BlobCorrupt(f"the holder has {accept.size} bytes of a blob of {partial.info.size}")
        return partial
    into.store.check_arrival(ticket.blob, accept.size)
    chunks: list[bytes] = []
    if accept.chunks:
        await send(conversation, WantHashes())
    while len(chunks) < accept.chunks:
        page = await receive(conversation, Hashes)
        if page.start != len(chunks) or not page.digests or len(chunks) + len(page.digests) > accept.chunks:
            raise BlobCorrupt("the hash list does not have the announced length")
        chunks.extend(page.digests)
    return await into.begin(BlobInfo(ticket.blob, accept.size, tuple(chunks)))


class _Pull:
    """The missing chunks of some ranges, a window of them at a time."""

    def __init__(self, conversation: UcxConversation, partial: PartialBlob) -> None:
        self._conversation = conversation
        self._partial = partial
        self._expected: set[int] = set()
        self._landed = trio.Event()
        conversation.chunks_max = WINDOW

    async def run(self, ranges: tuple[ChunkRange, ...]) -> None:
        """Ask and fetch until all are here."""
        pieces = _pieces(ranges)
        piece = next(pieces, None)
        offers = 0
        async with trio.open_nursery() as nursery:
            while piece is not None or self._expected:
                while piece is not None and len(self._expected) + piece.count <= WINDOW:
                    self._expected.update(range(piece.start, piece.start + piece.count))
                    offers += piece.count
                    await send(self._conversation, Want((piece,), piece.count))
                    piece = next(pieces, None)
                if offers:
                    chunk = await self._conversation.next_chunk()
                    if chunk is None:
                        message = decode(await self._conversation.receive_message())
                        raise Malformed(f"{type(message).__name__} in the middle of a transfer")
                    self._check(chunk)
                    offers -= 1
                    nursery.start_soon(self._land, chunk, await self._conversation.slots.take())
                else:
                    self._landed = trio.Event()
                    await self._landed.wait()

    def _check(self, chunk: OfferedChunk) -> None:
        length = chunk_length(self._partial.info.size, chunk.index)
        if chunk.index not in self._expected or chunk.length != length:
            raise BlobCorrupt(f"{chunk.length} bytes of chunk {chunk.index}, which was not asked for")

    async def _land(self, chunk: OfferedChunk, slot: int) -> None:
        slots = self._conversation.slots
        await self._conversation.fetch_chunk(chunk, slot)
        with slots.view(slot, chunk.length) as data:
            await self._partial.write_chunk(chunk.index, data)
        slots.give_back(slot)
        self._expected.discard(chunk.index)
        self._landed.set()


def _pieces(ranges: tuple[ChunkRange, ...]) -> Iterator[ChunkRange]:
    for each in ranges:
        stop = each.start + each.count
        for start in range(each.start, stop, PIECE):
            yield ChunkRange(start, min(PIECE, stop - start))
