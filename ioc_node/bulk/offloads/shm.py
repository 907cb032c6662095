"""Blobs between processes of one host, without a byte crossing the holder's process.

The holder listens on a Unix socket. A reader that finds itself on the same host (same boot ID, the socket
is visible in its mount namespace and answers with the instance nonce of the descriptor, and runs under
the same user) proves its ticket as it would over QUIC and receives two read-only descriptors: the blob's
file and its hash list. `shared_file.py` tells what it does with them.
"""

import array
import os
import secrets
import socket
import stat
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self, TypeVar

import msgspec
import structlog
import trio
from blake3 import blake3

from ioc_node.bulk.disk import FOLDER_MODE, read_at
from ioc_node.bulk.offload import Capability, Landing, OffloadSource, OffloadUnusable, Options, Reach
from ioc_node.bulk.offloads.shared_file import take_over
from ioc_node.errors import ConfigError, NodeError
from ioc_wire.bulk import (
    BULK_VERSION,
    FRAME_HEADER,
    Accept,
    BlobInfo,
    BulkMessage,
    Challenge,
    Claim,
    Hello,
    OffloadDescriptor,
    Refusal,
    chunk_count,
    decode_frame,
    decode_frame_header,
    encode_frame,
    ticket_digest,
)
from ioc_wire.codec import Digest, Message, ShortText, decode, encode
from ioc_wire.errors import Malformed, Unserved, WireError, error_of

NAME: Final = "shm"
PATH_BYTES_MAX: Final = 107
"""`sun_path` of unix(7), without its final zero."""
CLAIM_SECONDS: Final = 5.0
READERS_MAX: Final = 64
MESSAGE_BYTES_MAX: Final = 4096
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_CREDENTIALS: Final = struct.Struct("3i")

_log = structlog.get_logger()
_M = TypeVar("_M", bound=BulkMessage)


class ShmDescriptor(Message, frozen=True):
    """Payload of the offload descriptor `shm`: which socket, which instance behind it, and whether a reader may give
    the holder's file a name of its own. `tag` is made of these and of the host's boot ID, which stays secret: a holder
    on another host can't have a reader connect to a socket that it chose."""

    tag: Digest
    path: ShortText
    instance: Digest
    links: bool = True

    @classmethod
    def of(cls, boot: str, path: str, instance: bytes, links: bool = True) -> Self:
        """The descriptor that holds on the host with this boot ID."""
        return cls(
            blake3(b"ioc/1 shm" + encode((boot, path, instance, links))).digest(), path, instance, links
        )


class ShmOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table `[bulk.offload_options.shm]`; without `links` blobs are always copied."""

    links: bool = True


class ShmOffload:
    """The offload `shm`; its socket lives in `runtime_folder`, or in a short temporary folder."""

    name = NAME

    def __init__(self, runtime_folder: Path, options: Options | None = None) -> None:
        try:
            self._links = msgspec.convert(dict(options or {}), ShmOptions).links
        except msgspec.ValidationError as error:
            raise ConfigError(f"bulk.offload_options.shm: {error}") from None
        self._boot = boot_id()
        self._instance = secrets.token_bytes(32)
        self._temporary: Path | None = None
        runtime_folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        self._path = runtime_folder.absolute() / f"shm-{self._instance.hex()[:8]}.sock"
        if len(os.fsencode(self._path)) > PATH_BYTES_MAX:
            self._temporary = Path(tempfile.mkdtemp(prefix="ioc-shm-"))
            self._path = self._temporary / "s"
        self._listener: socket.socket | None = None

    def probe(self) -> Capability:
        """Usable on Linux with Unix sockets that fit their path limit."""
        if not self._boot:
            return Capability(False, "no boot ID to tell this host by")
        if not hasattr(socket, "SO_PEERCRED"):
            return Capability(False, "no SO_PEERCRED to tell a peer's user by")
        if len(os.fsencode(self._path)) > PATH_BYTES_MAX:
            return Capability(False, f"no socket path of at most {PATH_BYTES_MAX} bytes")
        return Capability(True, "same host", scope="host", mb_s=2000.0, set_up_seconds=0.003)

    def health(self) -> Capability:
        """A reader needs nothing but the holder's socket, which `reach` looks for."""
        return self.probe()

    def export(self, blob: bytes) -> OffloadDescriptor | None:
        """The same for every blob: the ticket says which one is meant."""
        try:
            self._listen()
        except OSError as error:
            _log.warning("shm_cannot_listen", path=str(self._path), error=str(error))
            return None
        payload = encode(ShmDescriptor.of(self._boot, str(self._path), self._instance, self._links))
        return OffloadDescriptor(NAME, payload)

    def _listen(self) -> socket.socket:
        if self._listener is None:
            _remove_left(self._path.parent)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                listener.bind(str(self._path))
                self._path.chmod(0o600)
                listener.listen(READERS_MAX)
            except OSError:
                listener.close()
                raise
            self._listener = listener
        return self._listener

    def close(self) -> None:
        """Remove the socket."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
        if self._temporary is not None:
            with suppress(OSError):
                self._temporary.rmdir()

    # -- the holder's side

    async def serve(self, source: OffloadSource) -> None:
        """Answer pulls until cancelled."""
        listener = trio.socket.from_stdlib_socket(self._listen())
        slots = trio.Semaphore(READERS_MAX)
        async with trio.open_nursery() as nursery:
            while True:
                await slots.acquire()
                peer, _ = await listener.accept()
                nursery.start_soon(self._answer, peer, slots, source)

    async def _answer(
        self, peer: trio.socket.SocketType, slots: trio.Semaphore, source: OffloadSource
    ) -> None:
        try:
            with peer, trio.move_on_after(CLAIM_SECONDS):
                _check_user(peer)
                await _send_all(peer, self._instance)
                try:
                    await self._serve_claim(peer, source)
                except WireError as error:
                    source.counters.refused += 1
                    await _send_all(peer, encode_frame(Refusal(error.code, error.detail[:200])))
        except (NodeError, OSError) as error:
            _log.debug("shm_reader_lost", error=str(error))
        finally:
            slots.release()

    async def _serve_claim(self, peer: trio.socket.SocketType, source: OffloadSource) -> None:
        hello = await _receive(peer, Hello)
        if hello.version != BULK_VERSION:
            raise Unserved(f"bulk protocol version {hello.version}")
        nonce = secrets.token_bytes(32)
        await _send_all(peer, encode_frame(Challenge(nonce)))
        claim = await _receive(peer, Claim)
        ticket = source.tickets.check(claim, digest=hello.ticket, nonce=nonce)
        info = await source.store.info(ticket.blob)
        path = source.store.path(ticket.blob)
        with _opened(path) as data, _opened(source.store.hashes_path(ticket.blob)) as hashes:
            descriptors = array.array("i", [data, hashes])
            frame = encode_frame(Accept(info.size, len(info.chunks)))
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors.tobytes())
            await peer.sendmsg([frame], [rights])
        source.counters.bytes_sent += info.size
        await peer.recv(1)  # until the reader is done: then its end is closed

    # -- the reader's side

    def reach(self, descriptor: OffloadDescriptor) -> Reach:
        """Whether the holder runs on this host and its socket can be seen from here."""
        where = decode(descriptor.payload, ShmDescriptor)
        if where != ShmDescriptor.of(self._boot, where.path, where.instance, where.links):
            return Reach(False, "another host")
        if not Path(where.path).is_socket():
            return Reach(False, "the holder's socket cannot be seen from here")
        return Reach(True, "same host")

    async def pull(self, descriptor: OffloadDescriptor, into: Landing) -> str:
        """Bring the missing chunks: shared, or copied by the kernel."""
        where = decode(descriptor.payload, ShmDescriptor)
        peer = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with peer:
            with trio.move_on_after(CLAIM_SECONDS) as scope:
                try:
                    await peer.connect(where.path)
                except OSError as error:
                    raise OffloadUnusable(f"the holder's socket: {error.strerror}") from None
                size, data, hashes = await self._claim(peer, where, into)
            if scope.cancelled_caught:
                raise OffloadUnusable("the holder's socket did not answer")
            try:
                info = await trio.to_thread.run_sync(_read_info, into.ticket.blob, size, data, hashes)
                return await take_over(await into.begin(info), data, links=self._links and where.links)
            finally:
                os.close(data)
                os.close(hashes)

    async def _claim(
        self, peer: trio.socket.SocketType, where: ShmDescriptor, into: Landing
    ) -> tuple[int, int, int]:
        _check_user(peer)
        if await _receive_exactly(peer, len(where.instance)) != where.instance:
            raise OffloadUnusable("another node answers at the holder's socket")
        await _send_all(peer, encode_frame(Hello(BULK_VERSION, ticket_digest(into.ticket.secret))))
        challenge = await _receive(peer, Challenge)
        await _send_all(peer, encode_frame(into.prove(challenge.nonce)))
        header, control, _, _ = await peer.recvmsg(
            FRAME_HEADER.size, socket.CMSG_SPACE(8), socket.MSG_CMSG_CLOEXEC
        )
        descriptors = _descriptors(control)
        try:
            header += await _receive_exactly(peer, FRAME_HEADER.size - len(header))
            accept = await _receive(peer, Accept, header)
            if len(descriptors) != 2:
                raise OffloadUnusable("the holder passed no descriptors")
        except BaseException:
            for each in descriptors:
                os.close(each)
            raise
        return accept.size, descriptors[0], descriptors[1]


def _read_info(blob: bytes, size: int, data: int, hashes: int) -> BlobInfo:
    for descriptor, length in ((data, size), (hashes, 32 * chunk_count(size))):
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size != length:
            raise OffloadUnusable("the holder passed something other than the blob's files")
    chunks = read_at(hashes, 32 * chunk_count(size), 0)
    return BlobInfo(blob, size, tuple(chunks[at : at + 32] for at in range(0, len(chunks), 32)))


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _remove_left(folder: Path) -> None:
    """Sockets that nobody listens at any more: a node that was killed removes nothing."""
    for path in folder.glob("shm-*.sock"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as look, suppress(OSError):
            look.setblocking(False)
            try:
                look.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()


def boot_id() -> str:
    """What tells this host from others until it starts anew; empty where the kernel doesn't say."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _check_user(peer: trio.socket.SocketType) -> None:
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(credentials)
    if user not in (os.geteuid(), 0):
        raise OffloadUnusable(f"the other end runs as user {user}")


def _descriptors(control: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


async def _send_all(peer: trio.socket.SocketType, data: bytes) -> None:
    while data:
        data = data[await peer.send(data) :]


async def _receive_exactly(peer: trio.socket.SocketType, count: int) -> bytes:
    received = b""
    while len(received) < count:
        more = await peer.recv(count - len(received))
        if not more:
            raise OffloadUnusable("the other end hung up")
        received += more
    return received


async def _receive(peer: trio.socket.SocketType, expected: type[_M], header: bytes = b"") -> _M:
    header = header or await _receive_exactly(peer, FRAME_HEADER.size)
    kind, length = decode_frame_header(header)
    if length > MESSAGE_BYTES_MAX:
        raise Malformed(f"frame of {length} bytes")
    message = decode_frame(kind, await _receive_exactly(peer, length))
    if isinstance(message, Refusal):
        raise error_of(message.code, message.detail)
    if not isinstance(message, expected):
        raise Malformed(f"expected {expected.__name__}, got {type(message).__name__}")
    return message
