"""What carries the frames of a link: a WebSocket between nodes, a length-prefixed byte stream on one host.

A transport moves whole messages. Whatever ends it (the peer's close, a protocol violation below, the network)
surfaces as `TransportBroken` with one line; nothing else escapes.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, TypeVar

import trio
import trio_websocket
from wsproto.utilities import ProtocolError

from ioc_node.errors import NodeError
from ioc_wire import limits
from ioc_wire.errors import WireError

RECEIVE_BYTES: Final = 64 << 10
WEBSOCKET_QUEUE_MESSAGES: Final = 2
RESOURCE: Final = "/ioc/1"

_T = TypeVar("_T")
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)


class TransportBroken(Exception):
    """The connection cannot carry anything more; `str()` says why."""


class TransportClosed(TransportBroken):
    """The peer said goodbye."""


class FrameTransport(Protocol):
    """Whole messages of at most LINK_FRAME_BYTES_MAX, in order, both ways. One sender and one receiver at a time."""

    async def send(self, data: bytes) -> None: ...

    async def receive(self) -> bytes: ...

    async def aclose(self) -> None: ...


class StreamTransport:
    """Frames over a byte stream, each after its length in four bytes, big-endian."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def send(self, data: bytes) -> None:
        try:
            await self._stream.send_all(len(data).to_bytes(4, "big") + data)
        except _GONE as error:
            raise TransportBroken(f"connection lost ({error})") from None

    async def receive(self) -> bytes:
        size = int.from_bytes(await self._take(4), "big")
        if size > limits.LINK_FRAME_BYTES_MAX:
            raise TransportBroken(
                f"a frame of {size} bytes is announced, {limits.LINK_FRAME_BYTES_MAX} are allowed"
            )
        return await self._take(size)

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)

    async def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            try:
                data = await self._stream.receive_some(RECEIVE_BYTES)
            except _GONE as error:
                raise TransportBroken(f"connection lost ({error})") from None
            if not data:
                raise TransportBroken("closed by the peer")
            self._buffer += data
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken


class WebSocketTransport:
    """Frames as binary WebSocket messages (RFC 6455)."""

    def __init__(self, connection: trio_websocket.WebSocketConnection, reader: "_Reader") -> None:
        self._connection = connection
        self._reader = reader

    async def send(self, data: bytes) -> None:
        try:
            await self._connection.send_message(data)
        except (trio_websocket.ConnectionClosed, ProtocolError, *_GONE) as error:
            raise self._broken(error) from None

    async def receive(self) -> bytes:
        try:
            message = await self._connection.get_message()
        except (trio_websocket.ConnectionClosed, *_GONE) as error:
            raise self._broken(error) from None
        if not isinstance(message, bytes):
            raise TransportBroken("a text message came, frames are binary")
        return message

    async def aclose(self) -> None:
        """Say goodbye; returns when the peer has done so too, or was never able to."""
        try:
            await self._connection.aclose(1000)
        except (trio_websocket.ConnectionClosed, ProtocolError, *_GONE):
            return  # already as closed as it can be

    def _broken(self, error: BaseException) -> TransportBroken:
        if self._reader.failure:
            return TransportBroken(self._reader.failure)
        closed = self._connection.closed
        if closed is None:
            return TransportBroken(f"connection lost ({error})")
        if closed.code == 1000:
            return TransportClosed("closed by the peer")
        return TransportBroken(f"connection lost ({closed.reason or closed.name})")


class _Reader:
    """Stands in for the nursery in which trio-websocket starts its one reading task.

    The library lets that task raise at whoever owns the nursery when the peer misbehaves in certain moments, and
    says nothing when the connection ends during the opening handshake. Here the first becomes one line and the
    second ends the wait.
    """

    def __init__(self, nursery: trio.Nursery, opening: trio.CancelScope) -> None:
        self._nursery = nursery
        self._opening = opening
        self.failure = ""

    def start_soon(self, read: Callable[[], Awaitable[None]], *_: Any) -> None:
        self._nursery.start_soon(self._run, read)

    async def _run(self, read: Callable[[], Awaitable[None]]) -> None:
        try:
            await read()
        except (
            trio_websocket.HandshakeError,
            trio_websocket.ConnectionClosed,
            ProtocolError,
            *_GONE,
        ) as error:
            self.failure = f"WebSocket protocol error ({str(error) or type(error).__name__})"
        except (AssertionError, AttributeError, RuntimeError, ValueError) as error:
            # Garbage that the WebSocket libraries did not foresee: the connection's end, not the node's.
            self.failure = f"WebSocket protocol error ({type(error).__name__})"
        self._opening.cancel()


async def run_websocket(
    stream: trio.abc.Stream, host: str | None, use: Callable[[WebSocketTransport], Awaitable[_T]]
) -> _T:
    """Open a WebSocket on `stream` (as client towards `host`; as server where it is None) and `use` it.

    Raises `TransportBroken`, or the wire or node error that `use` raises. The stream is closed afterwards in any case.
    """
    failure: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                result = await use(await _open_websocket(nursery, stream, host))
            except (WireError, NodeError, TransportBroken) as error:
                failure = error  # raised below: the nursery would wrap it in a group
            finally:
                nursery.cancel_scope.cancel()
    finally:
        await trio.aclose_forcefully(stream)
    if failure is not None:
        raise failure
    return result


async def _open_websocket(
    nursery: trio.Nursery, stream: trio.abc.Stream, host: str | None
) -> WebSocketTransport:
    client: Any = trio_websocket.wrap_client_stream  # typed for sockets and for real nurseries only
    server: Any = trio_websocket.wrap_server_stream
    bounds = {
        "message_queue_size": WEBSOCKET_QUEUE_MESSAGES,
        "max_message_size": limits.LINK_FRAME_BYTES_MAX,
        "receive_buffer_size": RECEIVE_BYTES,
    }
    with trio.CancelScope() as opening:
        reader = _Reader(nursery, opening)
        try:
            if host is not None:
                connection = await client(reader, stream, host, RESOURCE, **bounds)
            else:
                request = await server(reader, stream, **bounds)
                connection = await request.accept()
        except (
            trio_websocket.HandshakeError,
            trio_websocket.ConnectionClosed,
            ProtocolError,
            *_GONE,
        ) as error:
            raise TransportBroken(f"WebSocket handshake failed ({error})") from None
        return WebSocketTransport(connection, reader)
    raise TransportBroken(reader.failure or "closed during the WebSocket handshake")
