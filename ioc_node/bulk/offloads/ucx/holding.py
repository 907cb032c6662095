"""The holder's side of a UCX conversation: nothing of a blob enters registered memory before a ticket is proved."""

import os
import secrets
from typing import Final

import trio

from ioc_node.bulk.offload import OffloadSource
from ioc_node.bulk.offloads.ucx.conversation import UcxConversation
from ioc_node.bulk.offloads.ucx.messages import WINDOW, decode, own_nonce, receive, send
from ioc_node.bulk.offloads.ucx.worker import UcxBroken
from ioc_wire import limits
from ioc_wire.bulk import (
    BULK_VERSION,
    HASHES_PER_FRAME_MAX,
    Accept,
    BlobInfo,
    Challenge,
    Claim,
    Hashes,
    Hello,
    Refusal,
    Ticket,
    Want,
    WantHashes,
    chunk_length,
)
from ioc_wire.errors import BlobCorrupt, Malformed, TicketRefused, TooLarge, Unserved, WireError

CLAIM_SECONDS: Final = 5.0
IDLE_SECONDS: Final = 20.0
"""A reader that asks for nothing, or fetches nothing that it asked for, for so long is left."""


async def serve_reader(conversation: UcxConversation, source: OffloadSource) -> None:
    """Answer one reader until it is done. Raises `UcxBroken`, which is how every conversation ends."""
    try:
        with trio.move_on_after(CLAIM_SECONDS) as scope:
            ticket = await _claimed(conversation, source)
        if scope.cancelled_caught:
            return
        info = await source.store.info(ticket.blob)
        await send(conversation, Accept(info.size, len(info.chunks)))
        descriptor = os.open(source.store.path(ticket.blob), os.O_RDONLY | os.O_CLOEXEC)
        try:
            await _serve(conversation, source, ticket, info, descriptor)
        finally:
            os.close(descriptor)
    except WireError as error:
        source.counters.refused += 1
        await send(conversation, Refusal(error.code, error.detail[:200]))
        with trio.move_on_after(CLAIM_SECONDS):
            await conversation.receive_message()  # until it is gone: so the refusal arrives


async def _claimed(conversation: UcxConversation, source: OffloadSource) -> Ticket:
    hello = await receive(conversation, Hello)
    if hello.version != BULK_VERSION:
        raise Unserved(f"bulk protocol version {hello.version}")
    nonce = secrets.token_bytes(32)
    await send(conversation, Challenge(nonce))
    claim = await receive(conversation, Claim)
    return source.tickets.check(claim, digest=hello.ticket, nonce=own_nonce(nonce))


async def _serve(
    conversation: UcxConversation, source: OffloadSource, ticket: Ticket, info: BlobInfo, descriptor: int
) -> None:
    delivery = _Delivery(conversation, source, info, descriptor)
    fault: WireError | None = None
    async with trio.open_nursery() as nursery:
        try:
            while True:
                with trio.move_on_after(IDLE_SECONDS) as scope:
                    message = decode(await conversation.receive_message())
                if scope.cancelled_caught:
                    raise UcxBroken("the reader asks for nothing")
                match message:
                    case WantHashes():
                        await _send_hashes(conversation, info)
                    case Want():
                        for index in delivery.take(message):
                            if not source.tickets.is_good(ticket):
                                raise TicketRefused("it was revoked or has expired")
                            slot = await delivery.load(index)
                            nursery.start_soon(delivery.send, index, slot)
                    case _:
                        raise Malformed(f"{type(message).__name__} in the middle of a transfer")
        except WireError as error:
            fault = error
            nursery.cancel_scope.cancel()
    if fault is not None:
        raise fault


class _Delivery:
    """The chunks that one reader has asked for and has not fetched."""

    def __init__(
        self, conversation: UcxConversation, source: OffloadSource, info: BlobInfo, descriptor: int
    ) -> None:
        self._conversation = conversation
        self._source = source
        self._info = info
        self._descriptor = descriptor
        self._under_way = 0

    def take(self, want: Want) -> list[int]:
        """The chunks that are asked for. Raises `TooLarge` or `Malformed`."""
        if sum(each.count for each in want.ranges) > WINDOW - self._under_way:
            raise TooLarge(f"more than {WINDOW} chunks asked for at a time")
        if any(each.start + each.count > len(self._info.chunks) for each in want.ranges):
            raise Malformed(f"chunks beyond the {len(self._info.chunks)} of the blob")
        indexes = [index for each in want.ranges for index in range(each.start, each.start + each.count)]
        self._under_way += len(indexes)
        return indexes

    async def load(self, index: int) -> int:
        """Read a chunk from disk into a slot; which one."""
        slot = await self._conversation.slots.take()
        view = self._conversation.slots.view(slot, chunk_length(self._info.size, index))
        await trio.to_thread.run_sync(_read, self._descriptor, view, index * limits.CHUNK_BYTES)
        return slot

    async def send(self, index: int, slot: int) -> None:
        """Offer it and wait until it was fetched."""
        length = chunk_length(self._info.size, index)
        with trio.move_on_after(IDLE_SECONDS) as scope:
            await self._conversation.send_chunk(index, slot, length)
        if scope.cancelled_caught:
            raise UcxBroken("the reader does not fetch what it asked for")
        self._source.counters.bytes_sent += length
        self._conversation.slots.give_back(slot)
        self._under_way -= 1


def _read(descriptor: int, view: memoryview, offset: int) -> None:
    with view:
        at = 0
        while at < len(view):
            with view[at:] as rest:
                count = os.preadv(descriptor, [rest], offset + at)
            if not count:
                raise BlobCorrupt("the blob's file has become shorter")
            at += count


async def _send_hashes(conversation: UcxConversation, info: BlobInfo) -> None:
    for start in range(0, len(info.chunks), HASHES_PER_FRAME_MAX):
        await send(conversation, Hashes(start, info.chunks[start : start + HASHES_PER_FRAME_MAX]))
