"""The holder's side of the conversation described in `ioc_wire.bulk`."""

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import structlog
import trio

from ioc_node.bulk.counters import BulkCounters
from ioc_node.bulk.frames import receive_first, receive_frame, receive_message, refuse, send_message
from ioc_node.bulk.orders import Batch, Orders
from ioc_node.bulk.quic import FINISH_SECONDS, Channel, ChannelBroken
from ioc_node.bulk.shelf import BlobShelf
from ioc_node.bulk.supply import Supply
from ioc_node.bulk.tickets import TicketBook
from ioc_node.runtime.throttle import Lane, Throttle
from ioc_wire.bulk import (
    BULK_VERSION,
    HASHES_PER_FRAME_MAX,
    Accept,
    BlobInfo,
    Call,
    Challenge,
    Claim,
    Hashes,
    Hello,
    Missed,
    Ticket,
    decode_frame,
    encode_chunk_header,
    encode_frame,
    ticket_digest,
)
from ioc_wire.errors import Malformed, TicketRefused, Unserved, WireError

CLAIM_SECONDS: Final = 10.0
"""A reader that has not claimed a ticket by then is a silent peer."""
SEND_BYTES: Final = 1 << 20
"""Small blobs are gathered up to so many bytes before they are sent."""

_log = structlog.get_logger()


class Serving:
    """What this holder serves: the blobs of a store, to those with a ticket."""

    def __init__(
        self, store: BlobShelf, tickets: TicketBook, counters: BulkCounters, throttle: Throttle
    ) -> None:
        self._store = store
        self._tickets = tickets
        self._counters = counters
        self._throttle = throttle
        self.on_call: Callable[[Channel, bytes], Awaitable[None]] = _expect_none
        """Has connections whose dialing side is a holder that was asked to call; see `meeting`."""

    async def converse(self, channel: Channel) -> None:
        """One reader's connection, from its Hello to its end."""
        try:
            with trio.move_on_after(CLAIM_SECONDS) as scope:
                first = await receive_first(channel)
                ticket = await self._claimed(channel, first) if isinstance(first, Hello) else None
            if scope.cancelled_caught:
                return None
            if ticket is None:
                assert isinstance(first, Call)
                return await self.on_call(channel, first.call)
            info = await self._store.info(ticket.blob)
            await send_message(channel, Accept(info.size, len(info.chunks)))
            await self._serve(channel, ticket, info)
        except ChannelBroken:
            return None  # how every transfer ends: the reader has what it wanted, or will come back
        except WireError as error:
            self._counters.refused += 1
            _log.info("bulk_refused", peer=channel.peer[0], why=str(error))
            await refuse(channel, error)

    async def _claimed(self, channel: Channel, hello: Hello) -> Ticket:
        if hello.version != BULK_VERSION:
            raise Unserved(f"bulk protocol version {hello.version}")
        nonce = secrets.token_bytes(32)
        await send_message(channel, Challenge(nonce))
        claim = await receive_message(channel, Claim)
        await self._tickets.prepare((ticket_digest(claim.secret),))
        return self._tickets.check(claim, digest=hello.ticket, nonce=nonce)

    async def _serve(self, channel: Channel, ticket: Ticket, info: BlobInfo) -> None:
        orders = Orders(len(info.chunks))
        supply = Supply(self._store, info, orders)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supply.run)
            nursery.start_soon(self._deliver, channel, ticket, info, orders, supply, nursery.cancel_scope)
            try:
                while True:
                    kind, payload = await receive_frame(channel)
                    orders.take(decode_frame(kind, payload))
            except WireError as error:
                orders.fail(error)  # the frame that is being sent ends first: the refusal must be readable
                await trio.sleep(FINISH_SECONDS)
            except ChannelBroken:
                pass
            nursery.cancel_scope.cancel()
        if orders.fault is not None:
            raise orders.fault

    async def _deliver(
        self,
        channel: Channel,
        ticket: Ticket,
        info: BlobInfo,
        orders: Orders,
        supply: Supply,
        scope: trio.CancelScope,
    ) -> None:
        try:
            with self._throttle.open(ticket.reader, self._tickets.traffic_of(ticket), ticket.blob) as lane:
                while True:
                    await orders.wait()
                    if orders.fault is not None:
                        break
                    if orders.hashes_wanted:
                        orders.hashes_wanted = False
                        await _send_hashes(channel, info)
                    elif secrets := orders.next_small():
                        await self._send_small(channel, ticket.reader, secrets, orders)
                    elif batch := orders.next_ready():
                        await self._send_chunks(channel, ticket, batch, orders, lane)
                        supply.give_back(batch)
        except WireError as error:
            orders.fail(error)
        except ChannelBroken:
            pass
        scope.cancel()

    async def _send_chunks(
        self, channel: Channel, ticket: Ticket, batch: Batch, orders: Orders, lane: Lane
    ) -> None:
        for index, data in batch.chunks:
            if not self._tickets.is_good(ticket):
                raise TicketRefused("it was revoked or has expired")
            if orders.fault is not None:
                return
            await channel.send_all(encode_chunk_header(index, len(data)))
            await _send_in_turn(channel, data, lane, orders)
            self._counters.bytes_sent += len(data)

    async def _send_small(
        self, channel: Channel, reader: bytes, secrets: Sequence[bytes], orders: Orders
    ) -> None:
        await self._tickets.prepare([ticket_digest(secret) for secret in secrets])
        found = [self._ticket_of(secret, reader) for secret in secrets]
        blobs = [each.blob for each in found if isinstance(each, Ticket)]
        read = await self._store.read_small(blobs)
        await self._tickets.use_up(
            [secret for secret, each in zip(secrets, found, strict=True) if _is_given(each, read)]
        )
        frames = bytearray()
        for place, each in enumerate(found):
            data = read[each.blob] if isinstance(each, Ticket) else each
            if isinstance(data, bytes) and data:
                frames += encode_chunk_header(place, len(data)) + data
                self._counters.bytes_sent += len(data)
            else:
                error = data if isinstance(data, WireError) else Malformed("an empty blob needs no transfer")
                self._counters.refused += 1
                frames += encode_frame(Missed(place, error.code, error.detail[:200]))
            if len(frames) >= SEND_BYTES:
                await self._send_frames(channel, reader, bytes(frames), orders)
                frames.clear()
        await self._send_frames(channel, reader, bytes(frames), orders)

    async def _send_frames(self, channel: Channel, reader: bytes, frames: bytes, orders: Orders) -> None:
        with self._throttle.open(reader, "interactive", None) as lane:
            await _send_in_turn(channel, frames, lane, orders)

    def _ticket_of(self, secret: bytes, reader: bytes) -> Ticket | WireError:
        try:
            return self._tickets.find(secret, reader)
        except WireError as error:
            return error


def _is_given(found: Ticket | WireError, read: Mapping[bytes, bytes | WireError]) -> bool:
    return isinstance(found, Ticket) and isinstance(read[found.blob], bytes)


async def _expect_none(_channel: Channel, _call: bytes) -> None:
    raise TicketRefused("no call is expected here")


async def _send_in_turn(channel: Channel, data: bytes | memoryview, lane: Lane, orders: Orders) -> None:
    """Send as the ceilings allow: a piece at a time while there are any, and the rest at once when all is over."""
    if not lane.is_limited:
        lane.count(len(data))
        await channel.send_all(data)
        return
    for piece in lane.pieces(data):
        if orders.fault is None:
            await lane.take(len(piece))
        await channel.send_all(piece)


async def _send_hashes(channel: Channel, info: BlobInfo) -> None:
    for start in range(0, len(info.chunks), HASHES_PER_FRAME_MAX):
        await send_message(channel, Hashes(start, info.chunks[start : start + HASHES_PER_FRAME_MAX]))
