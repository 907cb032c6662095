"""The control socket: how programs on this host talk to a running node.

A Unix socket in the home folder, mode 0600, for the same user and root only (checked again by SO_PEERCRED), with
the same streams as a link between nodes but no handshake. A lock file beside it says which process owns the home
folder; the kernel releases it however that process ends, so a socket file left behind is known to be dead.
"""

import fcntl
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import structlog
import trio

from ioc_node.errors import NodeError, PeerUnreachable
from ioc_node.runtime.driver import open_background
from ioc_node.runtime.link_handlers import Handlers
from ioc_node.runtime.link_mux import Link, LinkSettings, PeerIdentity
from ioc_node.runtime.link_transport import StreamTransport
from ioc_wire.identity import NodeId
from ioc_wire.links import BodyCodec

log = structlog.get_logger()

SOCKET_NAME: Final = "control.sock"
LOCK_NAME: Final = "node.lock"
CONTROL_LINKS_MAX: Final = 64
BACKLOG: Final = 64
# Nothing gets lost between two processes of one host: a heartbeat would only mistake a stopped one for a dead one.
_SETTINGS: Final = LinkSettings(heartbeat_seconds=3600.0, stall_seconds=300.0)
_LOCAL: Final = PeerIdentity(key=b"", node_id=NodeId(b""), roles=())


@contextmanager
def lock_home(home: Path) -> Iterator[None]:
    """Own a home folder. Raises `NodeError` naming the process that owns it already."""
    path = home / LOCK_NAME
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise NodeError(f"home folder {home} cannot be used: {error.strerror}") from None
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(file, 32, 0).decode(errors="replace").strip() or "unknown"
            raise NodeError(f"another node is running on {home} (pid {owner}): stop it first") from None
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        yield
        os.ftruncate(file, 0)
    finally:
        os.close(file)


@asynccontextmanager
async def open_control_server(home: Path, codec: BodyCodec, handlers: Handlers) -> AsyncIterator[None]:
    """Own the home folder and answer its control socket until the block ends.

    Raises `NodeError` where another node runs on this home folder.
    """
    with lock_home(home):
        listener = await _listen(home)
        async with open_background() as nursery:
            server = _ControlServer(codec, handlers, nursery)
            nursery.start_soon(server.serve, listener)
            try:
                yield
            finally:
                (home / SOCKET_NAME).unlink(missing_ok=True)
                with trio.CancelScope(shield=True):
                    await server.close()
                nursery.cancel_scope.cancel()
                listener.close()


@asynccontextmanager
async def open_control(home: Path, codec: BodyCodec) -> AsyncIterator[Link]:
    """A link to the node that runs on `home`. Raises `PeerUnreachable` where none does."""
    stream = await _connect(home)
    link = Link(
        StreamTransport(stream), _LOCAL, codec=codec, handlers=Handlers(), settings=_SETTINGS, dialed=True
    )
    async with open_background() as nursery:
        nursery.start_soon(link.run)
        try:
            yield link
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):  # else Cancelled would take the place of what left the block
                await trio.aclose_forcefully(stream)


class _ControlServer:
    def __init__(self, codec: BodyCodec, handlers: Handlers, nursery: trio.Nursery) -> None:
        self._codec = codec
        self._handlers = handlers
        self._nursery = nursery
        self._links: set[Link] = set()

    async def serve(self, listener: trio.socket.SocketType) -> None:
        while True:
            try:
                connection, _ = await listener.accept()
            except OSError as error:
                log.warning("control_accept_failed", error=error.strerror)
                await trio.sleep(0.1)  # out of file descriptors, most likely: some will come free
                continue
            if len(self._links) >= CONTROL_LINKS_MAX or not _is_ours(connection):
                connection.close()
                continue
            self._nursery.start_soon(self._run, trio.SocketStream(connection))

    async def _run(self, stream: trio.SocketStream) -> None:
        link = Link(
            StreamTransport(stream), _LOCAL, codec=self._codec, handlers=self._handlers, settings=_SETTINGS
        )
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)
            await trio.aclose_forcefully(stream)

    async def close(self) -> None:
        """Let answers that are written still go out, such as the one to the request to stop."""
        for link in self._links:
            link.close_nowait("the node is stopping")
        with trio.move_on_after(_SETTINGS.close_seconds):
            for link in list(self._links):
                await link.closed.wait()


@contextmanager
def _reachable(home: Path) -> Iterator[str]:
    """A name of the socket that is short enough, whatever the folder's: a socket address holds 107 bytes."""
    folder = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{SOCKET_NAME}"
    finally:
        os.close(folder)


async def _listen(home: Path) -> trio.socket.SocketType:
    (home / SOCKET_NAME).unlink(missing_ok=True)  # we hold the lock: whoever made it is gone
    listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _reachable(home) as name:
            await listener.bind(name)
        (home / SOCKET_NAME).chmod(0o600)  # nobody can connect before `listen`
    except OSError as error:
        listener.close()
        raise NodeError(f"control socket {home / SOCKET_NAME} cannot be made: {error.strerror}") from None
    listener.listen(BACKLOG)
    return listener


async def _connect(home: Path) -> trio.SocketStream:
    connection = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _reachable(home) as name:
            await connection.connect(name)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        connection.close()
        raise PeerUnreachable(
            f"no node is running on {home}: start it with `ioc-node --home {home} up`"
        ) from None
    except OSError as error:
        connection.close()
        raise PeerUnreachable(f"the node on {home} cannot be asked: {error.strerror}") from None
    except trio.Cancelled:
        connection.close()
        raise
    return trio.SocketStream(connection)


def _is_ours(connection: trio.socket.SocketType) -> bool:
    size = struct.calcsize("3i")
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    if uid in (os.geteuid(), 0):
        return True
    log.warning("control_refused", uid=uid)
    return False
