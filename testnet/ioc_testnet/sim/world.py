"""Virtual time, addresses and wires for thousands of machines.

One heap holds all that is going to happen: datagrams arriving, ticks and calls of the scenario. A machine that wants
to be woken earlier than it said before gets another entry; entries that are out of date are recognised when they come
up and put back, so nothing is ever searched for. Everything that goes over the wire is added to the trace, in order:
the same seed and code give the same `trace_hash`.
"""

import hashlib
import heapq
import math
import random
import struct
from collections.abc import Callable
from typing import Any, Final

from ioc_node.core.challenge import Address
from ioc_node.core.dht import DhtMachine
from ioc_node.core.events import DatagramReceived, Event, OperationEnded, RecordStored, Tick
from ioc_node.core.session import SendDatagram
from ioc_testnet.sim.latency import Latency
from ioc_wire.limits import DATAGRAM_BYTES_MAX

_TRACED: Final = struct.Struct(">dIIH")
_NOBODY: Final = 0xFFFFFFFF
REORDER_SECONDS: Final = 0.2
"""A reordered datagram, or the second of two, comes up to so much later."""

Call = Callable[[], None]
Ended = Callable[[object, float], None]
"""Called with an operation's result and the time."""


class SimNode:
    """A machine in its place. `kind` is empty for the honest."""

    __slots__ = (
        "address",
        "alive",
        "index",
        "kind",
        "machine",
        "number",
        "received",
        "sent",
        "side",
        "waiting",
        "wakes",
    )

    def __init__(self, index: int, machine: DhtMachine, address: Address, kind: str) -> None:
        self.index = index
        self.machine = machine
        self.address = address
        self.kind = kind
        self.alive = True
        self.side = 0
        self.wakes = math.inf
        self.number = 0
        self.waiting: dict[int, Ended] = {}
        self.sent = self.received = 0


class Faults:
    """What the wires do to datagrams: shares between 0 and 1. `parted` drops all between nodes of different sides."""

    __slots__ = ("duplicate", "loss", "parted", "reorder")

    def __init__(self, loss: float, duplicate: float, reorder: float) -> None:
        self.loss, self.duplicate, self.reorder = loss, duplicate, reorder
        self.parted = False


class World:
    """All nodes and all that is under way between them."""

    def __init__(self, latency: Latency, faults: Faults, chance: random.Random) -> None:
        self.now = 0.0
        self.nodes: list[SimNode] = []
        self.faults = faults
        self.datagrams = self.datagram_bytes = self.events = 0
        self.on_stored: Callable[[SimNode, RecordStored, float], None] = lambda node, effect, now: None
        self._latency = latency
        self._chance = chance
        self._by_address: dict[Address, SimNode] = {}
        self._heap: list[tuple[float, int, SimNode | None, Any, Address | None]] = []
        self._count = 0
        self._trace = hashlib.sha256()

    def add(self, machine: DhtMachine, address: Address, kind: str = "") -> SimNode:
        """Give a machine a place; it runs from now on."""
        node = SimNode(len(self.nodes), machine, address, kind)
        self.nodes.append(node)
        self._by_address[address] = node
        self._wake(node)
        return node

    def at(self, address: Address) -> SimNode | None:
        """Who has this address."""
        return self._by_address.get(address)

    def trace_hash(self) -> str:
        """SHA-256 over everything that was sent so far, in hexadecimal."""
        return self._trace.hexdigest()

    def call_at(self, at: float, call: Call) -> None:
        """Something of the scenario's happens then."""
        self._count += 1
        heapq.heappush(self._heap, (at, self._count, None, call, None))

    def start(self, node: SimNode, build: Callable[[int], Event], ended: Ended) -> int:
        """Begin an operation on a node; return its number."""
        number = node.number
        node.number += 1
        node.waiting[number] = ended
        self.feed(node, build(number))
        return number

    def feed(self, node: SimNode, event: Event) -> None:
        """Give a node an event and carry out what follows from it."""
        effects = node.machine.handle(event, now=self.now)
        for effect in effects:
            if type(effect) is SendDatagram:
                self.send(node, effect.data, effect.address)
            elif type(effect) is OperationEnded:
                ended = node.waiting.pop(effect.operation, None)
                if ended is not None:
                    ended(effect.result, self.now)
            elif type(effect) is RecordStored:
                self.on_stored(node, effect, self.now)
        self._wake(node)

    def send(self, source: SimNode, data: bytes, address: Address) -> None:
        """Put a datagram on the wire; the wires' faults are drawn here."""
        assert len(data) <= DATAGRAM_BYTES_MAX
        self.datagrams += 1
        self.datagram_bytes += len(data)
        source.sent += len(data)
        target = self._by_address.get(address)
        index = _NOBODY if target is None else target.index
        self._trace.update(_TRACED.pack(self.now, source.index, index, len(data)) + data)
        if target is None:
            return
        faults = self.faults
        if faults.parted and source.side != target.side:
            return
        chance = self._chance
        if faults.loss and chance.random() < faults.loss:
            return
        at = self.now + self._latency.one_way(source.index, index)
        if faults.reorder and chance.random() < faults.reorder:
            at += REORDER_SECONDS * chance.random()
        self._count += 1
        heapq.heappush(self._heap, (at, self._count, target, data, source.address))
        if faults.duplicate and chance.random() < faults.duplicate:
            self._count += 1
            later = at + REORDER_SECONDS * chance.random()
            heapq.heappush(self._heap, (later, self._count, target, data, source.address))

    def run(self, until: float, done: Callable[[], bool] | None = None) -> bool:
        """Let time pass; stops early, and returns True, when `done()` holds."""
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= until:
            if done is not None and done():
                return True
            at, _, node, what, source = pop(heap)
            self.now = at
            self.events += 1
            if node is None:
                what()
            elif source is None:
                self._tick(node, at)
            elif node.alive:
                node.received += len(what)
                self.feed(node, DatagramReceived(what, source))
        if done is not None and done():
            return True
        self.now = max(self.now, until)
        return False

    def _tick(self, node: SimNode, at: float) -> None:
        if at != node.wakes:
            return
        node.wakes = math.inf
        if not node.alive:
            return
        if node.machine.deadline() <= at:
            self.feed(node, Tick())
            assert node.machine.deadline() > at, "a tick must move the deadline"
        else:
            self._wake(node)

    def _wake(self, node: SimNode) -> None:
        deadline = max(node.machine.deadline(), self.now)
        if deadline < node.wakes:
            node.wakes = deadline
            self._count += 1
            heapq.heappush(self._heap, (deadline, self._count, node, None, None))
