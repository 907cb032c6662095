"""A UDP socket that moves many datagrams per system call where the kernel can (Linux UDP GSO and GRO).

QUIC spends most of its time below us in single datagrams. With segmentation offload one `sendmsg` carries
up to 44 of 1452 bytes, and one `recvmsg` returns as many; without it every datagram is a call of its own.
"""

import contextlib
import errno
import socket
import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

import trio

from ioc_node.errors import PeerUnreachable, PortInUse

UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
MTU_DISCOVER: Final = {socket.AF_INET: (socket.IPPROTO_IP, 10), socket.AF_INET6: (socket.IPPROTO_IPV6, 23)}
ROUTE_MTU: Final = {socket.AF_INET: (socket.IPPROTO_IP, 14), socket.AF_INET6: (socket.IPPROTO_IPV6, 24)}
PMTUDISC_PROBE: Final = 3
"""Don't fragment, and leave it to us what the path carries (Linux `IP_PMTUDISC_PROBE`)."""
IP_UDP_HEADER_BYTES: Final = 48
ROUTE_MTU_MIN: Final = 1280
SOCKET_BUFFER_BYTES: Final = 4 << 20
SEGMENTS_MAX: Final = 44
SEND_BYTES_MAX: Final = 65_000
RECEIVES_PER_TURN: Final = 8
"""Buffers (of up to 64 KiB) taken in one turn, so that other tasks of the loop come between."""

_SEGMENT_SIZE: Final = struct.Struct("=H")
_GRO_SIZE: Final = struct.Struct("=i")
_OFFLOAD_REFUSED: Final = frozenset((errno.EIO, errno.EINVAL, errno.EOPNOTSUPP))
_DROPPED: Final = frozenset(
    (errno.EMSGSIZE, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EPERM, errno.ENOBUFS)
)

Address = tuple[str, int]
Received = tuple[bytes, int, Address]
"""Bytes, the size of the datagrams in them (the last may be shorter), where they came from."""


class UdpSocket:
    """One non-blocking UDP socket; `connected` ones have a single peer and hear of its absence at once."""

    def __init__(self, sock: socket.socket, *, connected: bool) -> None:
        self._sock = sock
        self._connected = connected
        sock.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
        with contextlib.suppress(OSError, KeyError):
            sock.setsockopt(*MTU_DISCOVER[sock.family], PMTUDISC_PROBE)
        self._enable(UDP_GRO, 1)
        self._segments = self._enable(UDP_SEGMENT, 0)

    def _enable(self, option: int, value: int) -> bool:
        try:
            self._sock.setsockopt(socket.IPPROTO_UDP, option, value)
        except OSError:
            return False
        return True

    def fileno(self) -> int:
        """The descriptor, for a process that is to have this socket too."""
        return self._sock.fileno()

    @property
    def port(self) -> int:
        """The local port."""
        return int(self._sock.getsockname()[1])

    @property
    def payload_bytes_max(self) -> int:
        """The largest datagram that the route's first hop carries, as far as the kernel knows (connected only)."""
        try:
            mtu = self._sock.getsockopt(*ROUTE_MTU[self._sock.family])
        except (OSError, KeyError):
            mtu = ROUTE_MTU_MIN
        return mtu - IP_UDP_HEADER_BYTES

    def receive_nowait(self, count: int = RECEIVES_PER_TURN) -> list[Received]:
        """What has arrived, at most `count` buffers; `OSError` when the peer's port is closed."""
        received: list[Received] = []
        try:
            for _ in range(count):
                data, control, _, address = self._sock.recvmsg(65535, 64)
                size = len(data)
                for level, kind, value in control:
                    if level == socket.IPPROTO_UDP and kind == UDP_GRO:
                        size = _GRO_SIZE.unpack_from(value)[0]
                received.append((data, size, address[:2]))
        except BlockingIOError:
            pass
        except ConnectionRefusedError:
            if self._connected:
                raise
        return received

    def send_nowait(self, datagrams: Sequence[bytes], address: Address) -> int:
        """Send in order; how many the kernel took. `OSError` only where the single peer cannot be reached."""
        sent = 0
        for batch in self._batches(datagrams):
            try:
                self._send_batch(batch, address)
            except BlockingIOError:
                return sent
            except ConnectionRefusedError:
                if self._connected:
                    raise
            except OSError as error:
                if error.errno in _OFFLOAD_REFUSED and len(batch) > 1:
                    self._segments = False
                    return sent + self.send_nowait(datagrams[sent:], address)
                if error.errno not in _DROPPED:
                    raise
            sent += len(batch)
        return sent

    def _send_batch(self, batch: Sequence[bytes], address: Address) -> None:
        target = None if self._connected else address
        if len(batch) == 1:
            self._sock.sendmsg(batch, [], 0, target)
            return
        segment = _SEGMENT_SIZE.pack(len(batch[0]))
        self._sock.sendmsg(batch, [(socket.IPPROTO_UDP, UDP_SEGMENT, segment)], 0, target)

    def _batches(self, datagrams: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
        if not self._segments:
            yield from ([datagram] for datagram in datagrams)
            return
        for start, stop in pairwise(_cuts(datagrams)):
            yield datagrams[start:stop]

    async def wait_readable(self) -> None:
        """Return when `receive_nowait` has something to say."""
        await trio.lowlevel.wait_readable(self._sock.fileno())

    async def wait_writable(self) -> None:
        """Return when the kernel takes datagrams again."""
        await trio.lowlevel.wait_writable(self._sock.fileno())

    def close(self) -> None:
        """Close the socket and wake whoever waits for it."""
        trio.lowlevel.notify_closing(self._sock.fileno())
        self._sock.close()


def _cuts(datagrams: Sequence[bytes]) -> list[int]:
    """Where to cut so that in each piece all but the last datagram have one size, as GSO demands."""
    if not datagrams:
        return [0]
    count = len(datagrams)
    sizes = list(map(len, datagrams))
    equal = sizes.count(sizes[0])
    if equal == count or (
        equal == count - 1 and sizes[-1] < sizes[0]
    ):  # nearly always: a full flight, or its end
        step = max(1, min(SEGMENTS_MAX, SEND_BYTES_MAX // max(sizes[0], 1)))
        return [*range(0, count, step), count]
    cuts = [0]
    start = total = 0
    for index, size in enumerate(sizes):
        full = index - start == SEGMENTS_MAX or total + size > SEND_BYTES_MAX
        if index > start and (full or size > sizes[start] or sizes[index - 1] < sizes[start]):
            cuts.append(index)
            start, total = index, 0
        total += size
    return [*cuts, count]


def open_udp(host: str, port: int) -> UdpSocket:
    """A socket bound to a local numeric address; port 0 takes a free one. Raises `PortInUse`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise PortInUse(f"cannot listen on UDP {host}:{port} for bulk data: {error.strerror}") from None
    return UdpSocket(sock, connected=False)


async def connect_udp(host: str, port: int, *, local: str | None = None) -> tuple[UdpSocket, Address]:
    """A socket that talks to one peer, and the peer's numeric address; from the address `local`, or as the kernel
    routes. Raises `PeerUnreachable`."""
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except OSError as error:
        raise PeerUnreachable(f"cannot resolve {host}: {error.strerror}") from None
    family, _, _, _, target = found[0]
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if local is not None:
            sock.bind((local, 0))
        sock.connect(target)
    except OSError as error:
        sock.close()
        way = f" from {local}" if local is not None else ""
        raise PeerUnreachable(f"no route{way} to {host}:{port}: {error.strerror}") from None
    return UdpSocket(sock, connected=True), (str(target[0]), int(target[1]))
