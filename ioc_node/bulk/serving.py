"""The holder's side of the conversation described in `ioc_wire.bulk`."""

import secrets
from collections.abc import Iterator
from typing import Final

import structlog
import trio

from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.counters import BulkCounters
from ioc_node.bulk.frames import receive_frame, receive_message, refuse, send_message
from ioc_node.bulk.quic import Channel, ChannelBroken
from ioc_node.bulk.tickets import TicketBook
from ioc_wire.bulk import (
    BULK_VERSION,
    CREDIT_CHUNKS_MAX,
    HASHES_PER_FRAME_MAX,
    Accept,
    BlobInfo,
    Challenge,
    Claim,
    Credit,
    Hashes,
    Hello,
    Ticket,
    Want,
    WantHashes,
    decode_frame,
    encode_chunk_header,
)
from ioc_wire.errors import Malformed, TicketRefused, TooLarge, Unserved, WireError

CLAIM_SECONDS: Final = 10.0
"""A reader that has not claimed a ticket by then is a silent peer."""

_log = structlog.get_logger()


class Serving:
    """What this holder serves: the blobs of a store, to those with a ticket."""

    def __init__(self, store: BlobStore, tickets: TicketBook, counters: BulkCounters) -> None:
        self._store = store
        self._tickets = tickets
        self._counters = counters

    async def converse(self, channel: Channel) -> None:
        """One reader's connection, from its Hello to its end."""
        try:
            with trio.move_on_after(CLAIM_SECONDS) as scope:
                ticket = await self._claimed(channel)
            if scope.cancelled_caught:
                return
            info = await self._store.info(ticket.blob)
            await send_message(channel, Accept(info.size, len(info.chunks)))
            await self._serve(channel, ticket, info)
        except ChannelBroken:
            return  # how every transfer ends: the reader has what it wanted, or will come back
        except WireError as error:
            self._counters.refused += 1
            _log.info("bulk_refused", peer=channel.peer[0], why=str(error))
            await refuse(channel, error)

    async def _claimed(self, channel: Channel) -> Ticket:
        hello = await receive_message(channel, Hello)
        if hello.version != BULK_VERSION:
            raise Unserved(f"bulk protocol version {hello.version}")
        nonce = secrets.token_bytes(32)
        await send_message(channel, Challenge(nonce))
        claim = await receive_message(channel, Claim)
        return self._tickets.check(claim, digest=hello.ticket, nonce=nonce)

    async def _serve(self, channel: Channel, ticket: Ticket, info: BlobInfo) -> None:
        delivery = _Delivery(channel, info)
        fault: WireError | None = None
        async with trio.open_nursery() as nursery:
            try:
                nursery.start_soon(self._deliver, channel, ticket, delivery, nursery.cancel_scope)
                while True:
                    kind, payload = await receive_frame(channel)
                    delivery.take(decode_frame(kind, payload))
            except WireError as error:
                fault = error
            except ChannelBroken:
                pass
            nursery.cancel_scope.cancel()
        if fault is None:
            fault = delivery.fault
        if fault is not None:
            raise fault

    async def _deliver(
        self, channel: Channel, ticket: Ticket, delivery: "_Delivery", scope: trio.CancelScope
    ) -> None:
        try:
            while True:
                await delivery.wait()
                if delivery.hashes_wanted:
                    await delivery.send_hashes()
                    continue
                index = delivery.next_index()
                if not self._tickets.is_good(ticket):
                    raise TicketRefused("it was revoked or has expired")
                data = await self._store.read_chunk(delivery.info, index)
                await channel.send_all(encode_chunk_header(index, len(data)))
                await channel.send_all(data)
                self._counters.bytes_sent += len(data)
        except WireError as error:
            delivery.fault = error
        except ChannelBroken:
            pass
        scope.cancel()


class _Delivery:
    """What one reader has asked for and may still be sent."""

    def __init__(self, channel: Channel, info: BlobInfo) -> None:
        self.info = info
        self.fault: WireError | None = None
        self.hashes_wanted = False
        self._channel = channel
        self._indexes: Iterator[int] = iter(())
        self._next: int | None = None
        self._credit = 0
        self._changed = trio.Event()

    def take(self, message: object) -> None:
        """One frame from the reader."""
        match message:
            case WantHashes():
                self.hashes_wanted = True
            case Want():
                self._take_want(message)
            case Credit():
                if self._credit + message.chunks > CREDIT_CHUNKS_MAX:
                    raise TooLarge(f"credit for more than {CREDIT_CHUNKS_MAX} chunks")
                self._credit += message.chunks
            case _:
                raise Malformed(f"{type(message).__name__} in the middle of a transfer")
        self._changed.set()

    def _take_want(self, want: Want) -> None:
        if self._next is not None:
            raise Malformed("a second Want before the first was served")
        count = len(self.info.chunks)
        if any(each.start + each.count > count for each in want.ranges):
            raise Malformed(f"chunks beyond the {count} of the blob")
        self._indexes = (at for each in want.ranges for at in range(each.start, each.start + each.count))
        self._next = next(self._indexes, None)
        self._credit = want.credit

    async def wait(self) -> None:
        """Return when there is something to send and credit for it."""
        while not (self.hashes_wanted or (self._next is not None and self._credit > 0)):
            self._changed = trio.Event()
            await self._changed.wait()

    def next_index(self) -> int:
        """The next chunk to send; one credit less."""
        index = self._next
        assert index is not None
        self._next = next(self._indexes, None)
        self._credit -= 1
        return index

    async def send_hashes(self) -> None:
        """The whole hash list."""
        self.hashes_wanted = False
        chunks = self.info.chunks
        for start in range(0, len(chunks), HASHES_PER_FRAME_MAX):
            piece = chunks[start : start + HASHES_PER_FRAME_MAX]
            await send_message(self._channel, Hashes(start, piece))
