"""Membership machines in virtual time: messages are lost, nodes stall as overloaded ones do, some crash.

A node that stalls does nothing meanwhile: what comes, and what it wanted to be woken for, waits until it goes on.
"""

import hashlib
import heapq
import itertools
import math
import random
import struct
from collections.abc import Callable
from typing import Final

from ioc_node.core import membership_events as ev
from ioc_node.core.checked import CheckedSignatures
from ioc_node.core.membership import Membership
from ioc_node.core.membership_events import Settings, State
from ioc_node.core.trust import Trust
from ioc_testnet.sim.latency import Latency
from ioc_testnet.sim.population import NETWORK, UNIX, derived, key_of
from ioc_wire.codec import encode
from ioc_wire.market import Contact
from ioc_wire.signed import public_bytes

CHECKED_MAX: Final = 1 << 17
_TRACED: Final = struct.Struct(">dII")

Note = Callable[["MemberNode", ev.Effect], None]


class MemberNode:
    """A machine in its place."""

    __slots__ = ("alive", "contact", "index", "key", "machine", "slow", "stalled_until", "wakes")

    def __init__(self, index: int, machine: Membership, contact: Contact) -> None:
        self.index, self.machine, self.contact, self.key = index, machine, contact, contact.key
        self.alive = True
        self.slow = False
        self.stalled_until = 0.0
        self.wakes = math.inf


class MemberWorld:
    """All nodes, and what is on its way. `loss` is the share of messages that is lost."""

    def __init__(self, count: int, settings: Settings, latency: Latency, *, seed: int, loss: float) -> None:
        self.now = 0.0
        self.loss = loss
        self.messages = self.message_bytes = 0
        self.on_effect: Note = lambda node, effect: None
        self._latency = latency
        self._chance = derived(seed, "network")
        self._heap: list[tuple[float, int, MemberNode, ev.Event]] = []
        self._order = itertools.count()
        self._trace = hashlib.sha256()
        latency.place(count, derived(seed, "places"))
        trust = Trust(
            network_id=NETWORK,
            admission="open",
            roots=(),
            checked=CheckedSignatures(size_max=CHECKED_MAX),
        )
        self.nodes = [self._make(index, settings, trust, seed) for index in range(count)]
        self.numbers = {node.key: node.index for node in self.nodes}

    def _make(self, index: int, settings: Settings, trust: Trust, seed: int) -> MemberNode:
        key = key_of(derived(seed, "member", index))
        contact = Contact(public_bytes(key), f"10.{index >> 8}.{index & 255}.1", 4000)
        chance: random.Random = derived(seed, "machine", index)
        machine = Membership(key, contact, (), trust, chance, unix_offset=UNIX, settings=settings)
        return MemberNode(index, machine, contact)

    def trace_hash(self) -> str:
        """SHA-256 over everything that was sent so far, in hexadecimal."""
        return self._trace.hexdigest()

    def start(self, introduced: int) -> None:
        """All at once, each knowing some of those with smaller numbers."""
        for node in self.nodes:
            earlier = self.nodes[: node.index]
            known = self._chance.sample(earlier, min(introduced, len(earlier)))
            self.give(node, ev.Introduced(tuple(other.contact for other in known)))

    def is_one(self) -> bool:
        """Whether each living node holds all the others alive."""
        living = [node for node in self.nodes if node.alive]
        return all(
            node.machine.state(other.key) in (State.ALIVE, State.SUSPECT)
            for node in living
            for other in living
            if node is not other
        )

    def run(self, until: float) -> None:
        """Let everything happen up to this time."""
        while self._heap and self._heap[0][0] <= until:
            at, _, node, event = heapq.heappop(self._heap)
            self.now = max(self.now, at)
            if not node.alive:
                continue
            if node.stalled_until > self.now:
                self._at(node.stalled_until, node, event)
            elif not isinstance(event, ev.Tick):
                self.give(node, event)
            elif node.wakes <= self.now:
                node.wakes = math.inf
                self.give(node, event)
        self.now = until

    def give(self, node: MemberNode, event: ev.Event) -> None:
        """Tell a machine what happened, and carry out what follows."""
        for effect in node.machine.handle(event, now=self.now):
            self.on_effect(node, effect)
            if isinstance(effect, ev.Send):
                self._send(node, effect)
        due = max(node.machine.deadline(), self.now)
        if due < node.wakes:
            node.wakes = due
            self._at(due, node, ev.Tick())

    def _at(self, when: float, node: MemberNode, event: ev.Event) -> None:
        if when < math.inf:
            heapq.heappush(self._heap, (when, next(self._order), node, event))

    def _send(self, node: MemberNode, send: ev.Send) -> None:
        other = self.nodes[self.numbers[send.contact.key]]
        size = len(encode(send.message))
        self.messages += 1
        self.message_bytes += size
        self._trace.update(_TRACED.pack(self.now, node.index, other.index))
        if self._chance.random() >= self.loss:
            at = self.now + self._latency.one_way(node.index, other.index)
            self._at(at, other, ev.Received(node.key, send.message))
