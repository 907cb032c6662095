"""A bad line in user space: UDP datagrams between clients and one target, lost, late, out of order, twice, throttled.

`Lane` decides, without clock or socket, what becomes of each datagram of one direction; all its chance comes from one
seed. `Impaired` owns the sockets: one that clients talk to, and towards the target one per client, as a NAT has. What
waits is bounded in bytes, clients in number; what finds no room is dropped and counted, as routers do.
"""

import contextlib
import errno
import heapq
import itertools
import random
import socket
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

from ioc_node.errors import PortInUse, UsageError

Address = tuple[str, int]

QUEUE_BYTES_MAX: Final = 8 << 20
"""What may wait in one direction, all clients together."""
WAITING_OVERHEAD_BYTES: Final = 256
"""What a waiting datagram costs beside its bytes."""
CLIENTS_MAX: Final = 64
DATAGRAMS_PER_TURN: Final = 64
SOCKET_BUFFER_BYTES: Final = 4 << 20
_LOST_ON_THE_WAY: Final = frozenset(
    (errno.ECONNREFUSED, errno.EMSGSIZE, errno.ENETUNREACH, errno.EHOSTUNREACH)
)


@dataclass(frozen=True)
class Impairment:
    """What a line does to each datagram, in each direction. Shares are between 0 and 1."""

    loss: float = 0.0
    delay_ms: float = 0.0
    """One way: a round trip takes twice that."""
    jitter_ms: float = 0.0
    """Added to the delay, uniformly between 0 and this; what is overtaken comes out of order."""
    reorder: float = 0.0
    """Share that is held back for `reorder_ms` more."""
    reorder_ms: float = 5.0
    duplicate: float = 0.0
    rate_mbit_s: float = 0.0
    """0: as fast as it comes."""
    mtu_bytes: int = 65_507
    """Larger UDP payloads vanish without a word, as on a path whose routers send no ICMP."""
    queue_bytes_max: int = QUEUE_BYTES_MAX
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("loss", "reorder", "duplicate"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is a share between 0 and 1, not {getattr(self, name)}")
        for name in ("delay_ms", "jitter_ms", "reorder_ms", "rate_mbit_s", "mtu_bytes", "queue_bytes_max"):
            if not 0 <= getattr(self, name) < 1e9:
                raise UsageError(f"{name} cannot be {getattr(self, name)}")


@dataclass
class LaneCounters:
    """Datagrams of one direction."""

    passed: int = 0
    lost: int = 0
    duplicated: int = 0
    too_large: int = 0
    overflowed: int = 0


class Lane:
    """One direction of the line: datagram sizes and times in, times of delivery out."""

    def __init__(self, impairment: Impairment, name: str) -> None:
        self.counters = LaneCounters()
        self._line = impairment
        self._dice = random.Random(f"{impairment.seed} {name}")  # noqa: S311  # a simulation, not a secret
        self._busy_until = 0.0
        self._waiting_bytes = 0

    def take(self, size: int, now: float) -> list[float]:
        """When the copies of a datagram that came at `now` (seconds) are due; none: it is gone.

        Each copy counts against the queue until `leave` is told of it.
        """
        line, dice = self._line, self._dice
        if size > line.mtu_bytes:
            self.counters.too_large += 1
            return []
        if dice.random() < line.loss:
            self.counters.lost += 1
            return []
        copies = 2 if dice.random() < line.duplicate else 1
        self.counters.duplicated += copies - 1
        due = [self._due(size, now) for _ in range(copies) if self._has_room(size)]
        self.counters.passed += bool(due)
        return due

    def leave(self, size: int) -> None:
        """A copy has been delivered."""
        self._waiting_bytes -= size + WAITING_OVERHEAD_BYTES

    def _has_room(self, size: int) -> bool:
        waiting = self._waiting_bytes + size + WAITING_OVERHEAD_BYTES
        if waiting > self._line.queue_bytes_max:
            self.counters.overflowed += 1
            return False
        self._waiting_bytes = waiting
        return True

    def _due(self, size: int, now: float) -> float:
        line = self._line
        if line.rate_mbit_s:
            self._busy_until = max(self._busy_until, now) + size * 8e-6 / line.rate_mbit_s
            now = self._busy_until
        late_ms = line.delay_ms + self._dice.uniform(0, line.jitter_ms)
        if self._dice.random() < line.reorder:
            late_ms += line.reorder_ms
        return now + late_ms / 1000


class Impaired:
    """The line between whoever talks to `port` and the target."""

    def __init__(self, front: socket.socket, target: Address, impairment: Impairment) -> None:
        self.up = Lane(impairment, "up")
        self.down = Lane(impairment, "down")
        self._front = front
        self._target = target
        self._backs: OrderedDict[Address, socket.socket] = OrderedDict()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._sooner = trio.Event()
        self._nursery: trio.Nursery | None = None

    @property
    def port(self) -> int:
        """Where clients send to."""
        return int(self._front.getsockname()[1])

    async def serve(self) -> None:
        """Carry datagrams until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._deliver)
                while True:
                    await trio.lowlevel.wait_readable(self._front)
                    for data, client in _receive(self._front):
                        self._carry_up(data, client)
        finally:
            while self._backs:
                self._drop_oldest()

    def rebind(self) -> None:
        """What a NAT does that has restarted: from now on the target sees every client at another port."""
        while self._backs:
            self._drop_oldest()

    def _carry_up(self, data: bytes, client: Address) -> None:
        back = self._backs.get(client)
        if back is None:
            back = self._open_back(client)
        self._backs.move_to_end(client)
        self._carry(self.up, data, back, None)

    def _open_back(self, client: Address) -> socket.socket:
        if len(self._backs) >= CLIENTS_MAX:
            self._drop_oldest()
        back = _open_socket(self._front.family)
        back.connect(self._target)
        self._backs[client] = back
        assert self._nursery is not None
        self._nursery.start_soon(self._carry_down, back, client)
        return back

    def _drop_oldest(self) -> None:
        _, back = self._backs.popitem(last=False)
        trio.lowlevel.notify_closing(back)
        back.close()

    async def _carry_down(self, back: socket.socket, client: Address) -> None:
        with contextlib.suppress(trio.ClosedResourceError):
            while back.fileno() >= 0:
                await trio.lowlevel.wait_readable(back)
                for data, _ in _receive(back) if back.fileno() >= 0 else ():
                    self._carry(self.down, data, self._front, client)

    def _carry(self, lane: Lane, data: bytes, sock: socket.socket, client: Address | None) -> None:
        now = trio.current_time()

        def send() -> None:
            lane.leave(len(data))
            _send(sock, data, client)

        for due in lane.take(len(data), now):
            if due <= now:
                send()
                continue
            heapq.heappush(self._due, (due, next(self._order), send))
            if self._due[0][0] == due:
                self._sooner.set()

    async def _deliver(self) -> None:
        while True:
            deadline = self._due[0][0] if self._due else trio.current_time() + 3600
            with trio.move_on_at(deadline):
                await self._sooner.wait()
            self._sooner = trio.Event()
            now = trio.current_time()
            for _ in range(DATAGRAMS_PER_TURN):
                if not self._due or self._due[0][0] > now:
                    break
                heapq.heappop(self._due)[2]()
            await trio.lowlevel.checkpoint()


def _receive(sock: socket.socket) -> list[tuple[bytes, Address]]:
    received: list[tuple[bytes, Address]] = []
    with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
        for _ in range(DATAGRAMS_PER_TURN):
            data, address = sock.recvfrom(65_535)
            received.append((data, address))
    return received


def _send(sock: socket.socket, data: bytes, client: Address | None) -> None:
    try:
        if client is None:
            sock.send(data)
        else:
            sock.sendto(data, client)
    except BlockingIOError:
        pass  # the kernel's queue is full: lost, as on any line
    except OSError as error:
        # EBADF: the client's way was closed while this was on it
        if error.errno != errno.EBADF and error.errno not in _LOST_ON_THE_WAY:
            raise


def _open_socket(family: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setblocking(False)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
    return sock


@asynccontextmanager
async def open_impaired(
    target: Address, impairment: Impairment, *, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[Impaired]:
    """A bad line to `target`, carried until the block ends; port 0 takes a free one. Raises `PortInUse`."""
    front = _open_socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    with front:
        try:
            front.bind((host, port))
        except OSError as error:
            raise PortInUse(f"cannot listen on UDP {host}:{port}: {error.strerror}") from None
        impaired = Impaired(front, target, impairment)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(impaired.serve)
            yield impaired
            nursery.cancel_scope.cancel()
