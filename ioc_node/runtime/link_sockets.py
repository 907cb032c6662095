"""TCP and TLS below a link: listen, dial, shake hands; failures in words."""

import socket
import ssl

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


async def dial_tls(target: tuple[str, int], context: ssl.SSLContext) -> trio.SSLStream[trio.SocketStream]:
    """Connect and shake hands; raises `PeerUnreachable`."""
    where = f"{target[0]}:{target[1]}"
    try:
        stream = await trio.open_tcp_stream(*target)
    except OSError as error:
        cause = error.__cause__.exceptions[0] if isinstance(error.__cause__, ExceptionGroup) else error
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error)
        raise PeerUnreachable(f"no link to {where}: {reason}") from None
    tls = trio.SSLStream(stream, context, https_compatible=True)
    try:
        await tls.do_handshake()
    except (trio.BrokenResourceError, OSError) as error:
        await trio.aclose_forcefully(stream)
        raise PeerUnreachable(f"no link to {where}: TLS handshake failed") from error
    except trio.Cancelled:
        await trio.aclose_forcefully(stream)
        raise
    return tls


async def accept_tls(stream: trio.SocketStream, context: ssl.SSLContext) -> trio.SSLStream[trio.SocketStream]:
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
