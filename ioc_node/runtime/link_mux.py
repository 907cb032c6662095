"""Many streams over one connection: the part of a link that is the same on a WebSocket and on the control socket.

One task reads and never waits for anybody but the peer; one task writes; one beats the heart; one gives notices to
whoever takes them; one per served stream. A consumer that does not read is held by its stream's credit alone.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Generic, NoReturn, TypeVar, overload

import structlog
import trio

from ioc_node.errors import PeerUnreachable
from ioc_node.runtime.link_flow import ByteBudget, FrameQueue, OpenedStream, ServedStream
from ioc_node.runtime.link_handlers import Entry, Handlers, contained
from ioc_node.runtime.link_heart import Heart, Pace
from ioc_node.runtime.link_transport import FrameTransport, TransportBroken, TransportClosed
from ioc_wire import limits, links
from ioc_wire.authority import Grant
from ioc_wire.codec import Message, encode
from ioc_wire.errors import Busy, Malformed, RemoteFault, Unserved, WireError, error_of
from ioc_wire.identity import NodeId, format_node_id
from ioc_wire.signed import Signed

log = structlog.get_logger()

M = TypeVar("M", bound=Message)

NOTICES_WAITING_MAX: Final = 256
LINK_BYTES_MAX: Final = 32 << 20
"""Bytes of one link's messages that wait here: requests being answered, answers not yet sent or not yet read,
notices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSettings:
    """This implementation's choices; none of them is protocol."""

    handshake_seconds: float = 5.0
    """From a connection's first byte to the link, after which it is dropped."""
    dial_seconds: float = 10.0
    heartbeat_seconds: float = 15.0
    """A peer that was silent for so long is sent a heartbeat."""
    heartbeats_missed_max: int = 4
    """Silent for so many intervals in a row, a link is given up. Never fewer than two: one lost moment is nothing."""
    stall_seconds: float = 60.0
    """One frame that the peer does not take in for so long ends the link."""
    close_seconds: float = 1.0
    links_max: int = 1024
    half_open_max: int = 128
    stream_credit: int = 32
    """Items that may wait on a stream that is not read."""
    bytes_max: int = 256 << 20
    """Bytes waiting on all links together, see LINK_BYTES_MAX."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerIdentity:
    """Whom a link leads to, as far as it was proved.

    `key` is proved always. `roles` are granted by `grant` where the network is certified, and only claimed where it
    is open and `grant` is None. `endpoint` is where the peer says that it takes links, or None.
    """

    key: bytes
    node_id: NodeId
    roles: tuple[str, ...] = ()
    grant: Grant | None = None
    chain: tuple[Signed, ...] = ()
    endpoint: tuple[str, int] | None = None

    @property
    def name(self) -> str:
        """Short text for log lines and tables."""
        return format_node_id(self.node_id)[:11] if self.node_id else "local"


class Link:
    """One connection to one peer. Made by `open_links`, or by `open_control` on one host."""

    def __init__(
        self,
        transport: FrameTransport,
        peer: PeerIdentity,
        *,
        codec: links.BodyCodec,
        handlers: Handlers,
        settings: LinkSettings,
        budget: ByteBudget | None = None,
        dialed: bool = False,
        relayed: bool = False,
    ) -> None:
        self.peer = peer
        self.dialed = dialed
        """Whether this node opened the connection."""
        self.relayed = relayed
        """Whether the connection is a circuit through a core node."""
        self.closed = trio.Event()
        self.close_reason = ""
        self.said_goodbye = False
        """Whether one end closed it in order: it did not break."""
        self.notices_dropped = 0
        self.opened_at = trio.current_time()
        self._transport = transport
        self._codec = codec
        self._handlers = handlers
        self._settings = settings
        self._budget = ByteBudget(LINK_BYTES_MAX, budget)
        self._queue = FrameQueue()
        self._opened: dict[int, OpenedStream] = {}
        self._served: dict[int, ServedStream] = {}
        self._last_opened = 0
        self._last_served = 0
        usual = Pace(settings.heartbeat_seconds, settings.heartbeats_missed_max)
        self.heart = Heart(usual, lambda: self._push(links.Heartbeat()))
        self._notices_in, self._notices_out = trio.open_memory_channel[tuple[Message, int]](
            NOTICES_WAITING_MAX
        )
        self._scope = trio.CancelScope()
        self._nursery: trio.Nursery | None = None

    def __repr__(self) -> str:
        state = f"closed: {self.close_reason}" if self.closed.is_set() else f"{self.streams} streams"
        return f"<Link to {self.peer.name}, {state}>"

    @property
    def streams(self) -> int:
        """Streams in progress, both ways."""
        return len(self._opened) + len(self._served)

    # -- asking

    @overload
    async def request(self, message: Message) -> Message: ...

    @overload
    async def request(self, message: Message, expected: type[M]) -> M: ...

    async def request(self, message: Message, expected: type[Message] = Message) -> Message:
        """The peer's answer, of type `expected`.

        Raises the `WireError` that the peer answered, `Malformed` for an answer of another type, or
        `PeerUnreachable` when the link is down or breaks meanwhile. Cancelled, it cancels the answer at the peer.
        """
        stream = await self._open(message, credit=1)
        try:
            body = await stream.next_body()
            if body is None:
                raise RemoteFault(f"{type(message).__name__} was answered with nothing")
            return self._decode_as(body, expected)
        finally:
            self._leave(stream)

    @overload
    @asynccontextmanager
    def open_stream(self, message: Message) -> "AsyncIterator[ItemStream[Message]]": ...

    @overload
    @asynccontextmanager
    def open_stream(self, message: Message, expected: type[M]) -> "AsyncIterator[ItemStream[M]]": ...

    @asynccontextmanager
    async def open_stream(
        self, message: Message, expected: type[Message] = Message
    ) -> "AsyncIterator[ItemStream[Any]]":
        """Iterate over the items of the peer's answer; raises as `request` does. Leaving cancels it at the peer."""
        stream = await self._open(message, credit=self._settings.stream_credit)
        try:
            yield ItemStream(self, stream, expected)
        finally:
            self._leave(stream)

    def notify_nowait(self, message: Message) -> bool:
        """Send one way. False, and not sent, when the link is down or too much is waiting to be sent on it."""
        if self.closed.is_set() or self._queue.closed or self._queue.full:
            return False
        return self._queue.append(encode(links.Notify(self._codec.encode(message))))

    async def aclose(self) -> None:
        """Send what is queued, say goodbye, and end every stream."""
        self.close_nowait("closed by this node")
        await self.closed.wait()

    def close_nowait(self, reason: str) -> None:
        """As `aclose`, without waiting for the end."""
        self.said_goodbye = self.said_goodbye or not self.close_reason
        self.close_reason = self.close_reason or reason
        self._queue.close()

    def drop_nowait(self, reason: str) -> None:
        """End the link at once, without a goodbye; what is queued is lost."""
        self._break(reason)

    # -- life

    async def run(self) -> None:
        """Serve the link until it breaks, is closed or cancelled. Called once, by whoever made the link."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._beat)
                    nursery.start_soon(self._pass_notices)
                    await self._read()
        finally:
            self._finish()

    def _finish(self) -> None:
        self.close_reason = self.close_reason or "this node is stopping"
        self._queue.close()
        self.closed.set()
        for stream in self._opened.values():
            stream.end(PeerUnreachable(f"the link to {self.peer.name} broke: {self.close_reason}"))
        self._notices_in.close()
        self._budget.detach()

    def _break(self, reason: str) -> None:
        self.close_reason = self.close_reason or reason
        self._scope.cancel()

    def _lose(self, error: TransportBroken) -> None:
        self.said_goodbye = self.said_goodbye or isinstance(error, TransportClosed)
        self._break(str(error))

    async def _write(self) -> None:
        while (frame := await self._queue.take()) is not None:
            with trio.move_on_after(self._settings.stall_seconds) as stall:
                try:
                    await self._transport.send(frame)
                except TransportBroken as error:
                    return self._lose(error)
            if stall.cancelled_caught:
                return self._break(f"the peer took in nothing for {self._settings.stall_seconds:.0f} s")
        with trio.move_on_after(self._settings.close_seconds):
            await self._transport.aclose()
        self._break("closed by this node")
        return None

    async def _beat(self) -> None:
        self._break(await self.heart.beat())

    async def _read(self) -> None:
        while True:
            try:
                data = await self._transport.receive()
                self.heart.hear()
                self._dispatch(links.decode_frame(data))
            except TransportBroken as error:
                return self._lose(error)
            except WireError as error:
                log.info("link_violated", peer=self.peer.name, error=str(error))
                return self._break(f"the peer broke the protocol: {error}")

    def _dispatch(self, frame: links.Frame) -> None:
        match frame:
            case links.OpenStream():
                self._on_open(frame)
            case links.Item(number, body):
                self._on_item(number, body)
            case links.EndStream(number, body):
                self._asked(number, lambda stream: stream.end(body=body))
            case links.FailStream(number, code, detail):
                self._asked(number, lambda stream: stream.end(error_of(code, detail)))
            case links.CancelStream(number):
                if served := self._served.get(number):
                    served.scope.cancel()
            case links.Credit(number, count):
                if served := self._served.get(number):
                    served.grant(count)
            case links.Notify(body):
                self._on_notice(body)
            case links.Heartbeat():
                self._push(links.HeartbeatAck())
            case links.HeartbeatAck():
                self.heart.hear_answer()

    # -- the asking side of a stream

    async def _open(self, message: Message, credit: int) -> OpenedStream:
        body = self._codec.encode(message)
        await self._queue.wait_room()
        self._check_open()
        if len(self._opened) >= limits.LINK_STREAMS_MAX:
            raise Busy(f"{limits.LINK_STREAMS_MAX} streams are open to {self.peer.name}")
        self._last_opened += 1
        stream = OpenedStream(self._last_opened, credit, self._budget)
        self._opened[stream.number] = stream
        self._push(links.OpenStream(stream.number, credit, body))
        return stream

    def _leave(self, stream: OpenedStream) -> None:
        self._opened.pop(stream.number, None)
        stream.discard()
        if not stream.ended:
            self._push(links.CancelStream(stream.number))
            stream.end()

    def _asked(self, number: int, tell: Any) -> None:
        if number > self._last_opened or number == 0:
            raise Malformed(f"answer on stream {number}, which was never opened")
        if stream := self._opened.get(number):  # else it was left: the answer crossed our cancellation
            tell(stream)

    def _on_item(self, number: int, body: bytes) -> None:
        def deliver(stream: OpenedStream) -> None:
            try:
                stream.deliver(body)
            except Busy as error:
                self._push(links.CancelStream(number))
                stream.end(error)

        self._asked(number, deliver)

    def _credit(self, stream: OpenedStream) -> None:
        if count := stream.credit_due():
            self._push(links.Credit(stream.number, count))

    def _decode_as(self, body: bytes, expected: type[M]) -> M:
        message = self._codec.decode(body)
        if not isinstance(message, expected):
            raise Malformed(f"expected {expected.__name__}, got {type(message).__name__}")
        return message

    # -- the answering side of a stream

    def _on_open(self, frame: links.OpenStream) -> None:
        if frame.stream <= self._last_served:
            raise Malformed(f"stream {frame.stream} is opened after {self._last_served}")
        self._last_served = frame.stream
        try:
            if len(self._served) >= limits.LINK_STREAMS_MAX:
                raise Busy(f"{limits.LINK_STREAMS_MAX} requests are being answered")
            message = self._codec.decode(frame.body)
            entry = self._handlers.find(type(message))
            if entry is None:
                raise Unserved(type(message).__name__)
            if not self._budget.acquire(len(frame.body)):
                raise Busy("too many bytes of requests are being answered")
        except WireError as error:
            self._push(_failure(frame.stream, error))
            return
        served = ServedStream(frame.stream, frame.credit, len(frame.body))
        self._served[served.number] = served
        assert self._nursery is not None
        self._nursery.start_soon(self._serve, served, message, entry)

    async def _serve(self, served: ServedStream, message: Message, entry: Entry) -> None:
        try:
            with contained(type(message).__name__, self.peer.name) as outcome, served.scope:
                await self._answer(served, message, entry)
            if outcome.failure is not None:
                await self._queue.wait_room()
                self._push(_failure(served.number, outcome.failure))
        finally:
            del self._served[served.number]
            self._budget.release(served.size)

    async def _answer(self, served: ServedStream, message: Message, entry: Entry) -> None:
        async def send(item: Message) -> None:
            body = self._codec.encode(item)
            with self._waiting(body):
                await served.take_credit()
                await self._queue.wait_room()
                self._push(links.Item(served.number, body))

        body = b""
        # A peer that asks and does not read finds its next questions unanswered, not answered and waiting in memory.
        await self._queue.wait_drained()
        if entry.streams:
            await entry.answer(self, message, send)
        else:
            body = self._codec.encode(await entry.answer(self, message))
        with self._waiting(body):
            await self._queue.wait_room()
            self._push(links.EndStream(served.number, body))

    @contextmanager
    def _waiting(self, body: bytes) -> Iterator[None]:
        """Count an answer that waits to be sent; raises `Busy` where too much of that waits already."""
        if not self._budget.acquire(len(body)):
            raise Busy("answers are not read fast enough")
        try:
            yield
        finally:
            self._budget.release(len(body))

    # -- notices

    def _on_notice(self, body: bytes) -> None:
        message = self._codec.decode(body)
        if not self._budget.acquire(len(body)):
            self.notices_dropped += 1
            return
        try:
            self._notices_in.send_nowait((message, len(body)))
        except trio.WouldBlock:
            self._budget.release(len(body))
            self.notices_dropped += 1

    async def _pass_notices(self) -> None:
        async for message, size in self._notices_out:
            kind = type(message)
            take = self._handlers.find_notice(kind)
            with contained(kind.__name__, self.peer.name):
                if take is not None and (taking := take(self, message)) is not None:
                    await taking
            self._budget.release(size)

    # -- sending

    def _push(self, frame: links.Frame) -> None:
        if not self._queue.append(encode(frame)):
            self._break("the peer does not read")

    def _check_open(self) -> None:
        if self.closed.is_set() or self._queue.closed:
            self._raise_closed()

    def _raise_closed(self) -> NoReturn:
        raise PeerUnreachable(f"the link to {self.peer.name} is down: {self.close_reason or 'closed'}")


class ItemStream(Generic[M]):
    """The items of an answer, as they come."""

    def __init__(self, link: Link, stream: OpenedStream, expected: type[M]) -> None:
        self._link = link
        self._stream = stream
        self._expected = expected

    def __aiter__(self) -> "ItemStream[M]":
        return self

    async def __anext__(self) -> M:
        body = await self._stream.next_body()
        if body is None:
            raise StopAsyncIteration
        self._link._credit(self._stream)
        return self._link._decode_as(body, self._expected)


def _failure(number: int, error: WireError) -> links.FailStream:
    return links.FailStream(number, error.code, error.detail[: links.DETAIL_CHARS_MAX])
