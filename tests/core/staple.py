"""Nodes stapled together in memory: no socket, no clock. `alice`, `bob` and `carol` are made by
`Network.add`.
"""

import heapq
import itertools
import math
import random
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.core.challenge import Address
from ioc_node.core.dht import DhtMachine
from ioc_node.core.events import DatagramReceived, Effect, OperationEnded, Tick
from ioc_node.core.session import SendDatagram
from ioc_node.core.trust import Admission, Trust
from ioc_wire.authority import Delegation, Role
from ioc_wire.records import Cpu, Place, ResourceRecord
from ioc_wire.signed import Signed, public_bytes, sign

UNIX = 1_800_000_000
NETWORK = bytes(range(32))
Filter = Callable[[bytes, Address, Address], list[bytes]]


def key_of(name: str) -> Ed25519PrivateKey:
    """A key that is always the same for a name."""
    return Ed25519PrivateKey.from_private_bytes(random.Random(name).randbytes(32))


def record_of(
    key: Ed25519PrivateKey,
    cid: str,
    version: int = 1,
    *,
    issued: int = UNIX,
    seconds: int = 86400,
    labels: tuple[tuple[str, str], ...] = (),
) -> Signed:
    """A small signed record."""
    record = ResourceRecord(
        cid=cid,
        version=version,
        issued=issued,
        expires=issued + seconds,
        type="node",
        place=Place("cn", cid.split("/")[2], "az1"),
        cpu=Cpu("x86_64", "test", 8, 16),
        memory_mib=1024,
        labels=labels,
    )
    return sign(key, record)


def delegate(
    issuer: Ed25519PrivateKey,
    subject: Ed25519PrivateKey,
    prefix: str,
    *roles: Role,
    until: int = UNIX + 86400,
) -> Signed:
    """One link of a chain."""
    return sign(issuer, Delegation(public_bytes(subject), prefix, roles, min(UNIX, until) - 1000, until))


class Network:
    """Virtual time, addresses and wires. `on_wire` may drop, repeat or change each datagram; `loss` and
    `jitter` draw from the network's own seed.
    """

    def __init__(self, seed: int = 1, *, delay: float = 0.01, jitter: float = 0.0, loss: float = 0.0) -> None:
        self.now = 0.0
        self.rng = random.Random(seed)
        self.delay, self.jitter, self.loss = delay, jitter, loss
        self.nodes: dict[Address, DhtMachine] = {}
        self.results: dict[tuple[Address, int], object] = {}
        self.effects: list[tuple[Address, Effect]] = []
        self.wire: list[tuple[bytes, Address, Address]] = []
        self.on_wire: Filter = lambda data, source, target: [data]
        self._queue: list[tuple[float, int, bytes, Address, Address]] = []
        self._numbers = itertools.count()

    def add(
        self,
        name: str,
        *,
        server: bool = True,
        admission: Admission = "open",
        roots: tuple[bytes, ...] = (),
        chain: tuple[Signed, ...] = (),
        network_id: bytes = NETWORK,
        address: Address | None = None,
        **options: int,
    ) -> Address:
        """A new node; returns its address."""
        number = len(self.nodes) + 1
        address = address or (f"10.{number >> 8}.{number & 255}.1", 4000)
        trust = Trust(network_id=network_id, admission=admission, roots=roots)
        self.nodes[address] = DhtMachine(
            key=key_of(name), trust=trust, chance=random.Random(f"{name} {self.rng.random()}"), unix_offset=UNIX,
            server=server, chain=chain, address=address, now=self.now, **options,
        )  # fmt: skip
        return address

    def do(self, address: Address, event: object) -> None:
        """Give one node an event; carry out the effects."""
        node = self.nodes.get(address)
        if node is None:
            return
        for effect in node.handle(event, now=self.now):  # type: ignore[arg-type]
            if isinstance(effect, SendDatagram):
                self.send(effect.data, address, effect.address)
            elif isinstance(effect, OperationEnded):
                assert (address, effect.operation) not in self.results, "an operation ended twice"
                self.results[address, effect.operation] = effect.result
            else:
                self.effects.append((address, effect))

    def send(self, data: bytes, source: Address, target: Address) -> None:
        """Put a datagram on the wire."""
        assert len(data) <= 1200
        self.wire.append((data, source, target))
        for copy in self.on_wire(data, source, target):
            if self.loss and self.rng.random() < self.loss:
                continue
            at = self.now + self.delay + self.jitter * self.rng.random()
            heapq.heappush(self._queue, (at, next(self._numbers), copy, source, target))

    def step(self, until: float) -> bool:
        """The next thing that happens before `until`; False if there is none."""
        ticks = [(node.deadline(), address) for address, node in self.nodes.items()]
        tick_at, ticker = min(ticks, default=(math.inf, ("", 0)))
        at = min(tick_at, self._queue[0][0] if self._queue else math.inf)
        if at > until:
            self.now = until
            return False
        self.now = max(self.now, at)
        if self._queue and self._queue[0][0] <= tick_at:
            _, _, data, source, target = heapq.heappop(self._queue)
            self.do(target, DatagramReceived(data, source))
        else:
            self.do(ticker, Tick())
            assert self.nodes[ticker].deadline() > self.now, "a tick must move the deadline"
        return True

    def run(self, seconds: float) -> None:
        """Let time pass."""
        until = self.now + seconds
        while self.step(until):
            pass

    def result(self, address: Address, event: object, seconds: float = 30.0) -> object:
        """Start an operation and run until it ends."""
        number = event.operation  # type: ignore[attr-defined]
        until = self.now + seconds
        self.results.pop((address, number), None)
        self.do(address, event)
        while (address, number) not in self.results:
            if not self.step(until):
                raise AssertionError(f"operation {number} did not end within {seconds} s")
        return self.results[address, number]
