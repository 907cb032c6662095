"""One UDP socket under trio, for drivers: receive in batches, send without waiting.

A datagram that cannot be sent now is dropped and counted, as the network would; protocols here repeat what
matters.
"""

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

from ioc_node.core.challenge import Address
from ioc_node.errors import ConfigError, PortInUse

BATCH_MAX: Final = 64
"""Datagrams taken in before other tasks run."""
BUFFER_BYTES: Final = 4 << 20
_READ_BYTES: Final = 2048
_MAPPED: Final = "::ffff:"


class DatagramSocket:
    """A bound UDP socket. Addresses are `(host, port)`; an IPv6 socket speaks IPv4 too and hides the
    mapping.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.unsent = 0
        self._socket = sock
        self._descriptor = sock.fileno()
        self._mapped = sock.family == socket.AF_INET6
        bound = sock.getsockname()
        self.address: Address = (bound[0], bound[1])

    def send_nowait(self, data: bytes, address: Address) -> None:
        """Send, or count the datagram as lost."""
        try:
            if self._mapped and ":" not in address[0]:
                address = (_MAPPED + address[0], address[1])
            self._socket.sendto(data, address)
        except OSError:
            self.unsent += 1

    async def receive_batch(self) -> list[tuple[bytes, Address]]:
        """Wait for datagrams; return those that are there, at most `BATCH_MAX`."""
        await trio.lowlevel.wait_readable(self._descriptor)
        batch: list[tuple[bytes, Address]] = []
        receive = self._socket.recvfrom
        try:
            while len(batch) < BATCH_MAX:
                data, address = receive(_READ_BYTES)
                batch.append((data, self._plain(address) if self._mapped else address))
        except BlockingIOError:
            pass
        except OSError as error:
            # Some systems report here that an earlier datagram was refused by its target.
            if error.errno not in (errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOBUFS, errno.ENOMEM):
                raise
        return batch

    @staticmethod
    def _plain(address: tuple[str, int, int, int]) -> Address:
        return (address[0].removeprefix(_MAPPED), address[1])


@contextmanager
def open_datagrams(host: str, port: int) -> Iterator[DatagramSocket]:
    """Bind a UDP socket to an IP address; port 0 takes a free one.

    Raises `PortInUse`, or `ConfigError` for an address that this machine cannot bind.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            sock.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortInUse(
                    f"UDP port {port} on {host} is in use: stop its owner or choose another port"
                ) from None
            reason = error.strerror or str(error)
            raise ConfigError(f"cannot listen on UDP {host}:{port}: {reason}") from None
        yield DatagramSocket(sock)
