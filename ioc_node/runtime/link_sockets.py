"""TCP and TLS below a link: listen, dial, shake hands; failures in words."""

import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import trio

from ioc_node.errors import PeerUnreachable, PortInUse, UsageError
from ioc_node.runtime.link_transport import TransportBroken


async def open_listener(host: str, port: int) -> trio.SocketListener:
    """One listener on `host`; raises `PortInUse`, or `UsageError` for a host that is none of this machine."""
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        if isinstance(error, socket.gaierror):
            raise UsageError(f"cannot listen on {host}: {error.strerror}") from None
        reason = error.strerror or str(error)
        raise PortInUse(f"TCP port {port} on {host} cannot be used: {reason}; set another port") from None
    for extra in listeners[1:]:
        await extra.aclose()
    return listeners[0]


Opened = TypeVar("Opened", bound=trio.abc.Stream)


@dataclass(frozen=True, slots=True)
class Way:
    """How a peer is dialed: `open` gives the bare connection, or raises `PeerUnreachable`. `address` is where the peer
    takes links, None where it takes none (a circuit)."""

    name: str
    open: Callable[[], Awaitable[trio.abc.Stream]]
    address: tuple[str, int] | None = None


def way_to(target: tuple[str, int]) -> Way:
    """By TCP."""
    return Way(f"{target[0]}:{target[1]}", lambda: dial_tcp(target), target)


async def dial_tcp(target: tuple[str, int]) -> trio.SocketStream:
    """Connect; raises `PeerUnreachable`."""
    try:
        return await trio.open_tcp_stream(*target)
    except OSError as error:
        cause = error.__cause__.exceptions[0] if isinstance(error.__cause__, ExceptionGroup) else error
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error)
        raise PeerUnreachable(f"no link to {target[0]}:{target[1]}: {reason}") from None


async def dial_tls(way: Way, context: ssl.SSLContext) -> trio.SSLStream[trio.abc.Stream]:
    """Connect and shake hands; raises `PeerUnreachable`."""
    stream = await way.open()
    tls = trio.SSLStream(stream, context, https_compatible=True)
    try:
        await tls.do_handshake()
    except (trio.BrokenResourceError, OSError) as error:
        await trio.aclose_forcefully(stream)
        cause = str(error.__cause__ or error) if way.address is None else "TLS handshake failed"
        raise PeerUnreachable(f"no link to {way.name}: {cause}") from error
    except trio.Cancelled:
        await trio.aclose_forcefully(stream)
        raise
    return tls


async def accept_tls(stream: Opened, context: ssl.SSLContext) -> trio.SSLStream[Opened]:
    """The accepting side's handshake; raises `TransportBroken`."""
    tls = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
    try:
        await tls.do_handshake()
    except (trio.BrokenResourceError, OSError) as error:
        raise TransportBroken(f"TLS handshake failed ({error.__cause__ or error})") from None
    return tls


def remote_host(stream: trio.SocketStream) -> str:
    """The address that a connection comes from."""
    try:
        return str(stream.socket.getpeername()[0])
    except OSError:
        return "?"
