"""Gossip machines in virtual time, with links between them that take time, are cut, and are dialed again.

One heap holds all that is going to happen. What goes over a link keeps its order; each message is added to the trace,
so that the same seed and code give the same `trace_hash`. Bytes are those of the messages themselves: a link's own
framing and encryption are not counted, nor is left out what a real link leaves out (a chain that was told before).
"""

import hashlib
import heapq
import itertools
import math
import struct
from collections.abc import Callable
from functools import partial
from typing import Final

from ioc_node.core import gossip_events as ev
from ioc_node.core.gossip import Gossip
from ioc_node.core.packing import pack_news
from ioc_testnet.sim.latency import Latency
from ioc_testnet.sim.population import UNIX
from ioc_wire.codec import Message, encode
from ioc_wire.gossip import (
    CompareHeads,
    HeadsAnnounced,
    HeadsCompared,
    HeadsPage,
    PeersKnown,
    StatusAnnounced,
)
from ioc_wire.market import Contact
from ioc_wire.plumtree import Graft, IHave, Neighbour, Prune

_TRACED: Final = struct.Struct(">dIII")
LINK_LOST_SECONDS: Final = 15.0
"""Until both ends notice that nothing comes over a link any more."""
FETCH_STALL_SECONDS: Final = 20.0
HANDSHAKE_WAYS: Final = 4
"""One-way delays until a dialed link is up: TCP and the link's own greeting."""
ENTRIES_HEAD_BYTES: Final = 256

Call = Callable[[], None]


class GossipNode:
    """A machine in its place. A silent one listens, and says nothing."""

    __slots__ = ("alive", "contact", "index", "key", "links", "machine", "side", "silent", "wakes")

    def __init__(self, index: int, machine: Gossip, contact: Contact) -> None:
        self.index, self.machine, self.contact, self.key = index, machine, contact, contact.key
        self.links: set[int] = set()
        self.alive = True
        self.silent = False
        self.side = 0
        self.wakes = math.inf


class GossipWorld:
    """All nodes, the links between them, and what is on its way."""

    def __init__(self, latency: Latency) -> None:
        self.now = 0.0
        self.nodes: list[GossipNode] = []
        self.parted = False
        self.messages = self.message_bytes = self.heads_told = self.heads_heard = 0
        """`heads_told` to anybody, `heads_heard` told to nodes that are not silent."""
        self.tree = True
        """Whether messages get through by which neighbours in the tree are found."""
        self.on_effect: Callable[[GossipNode, ev.Effect], None] = lambda node, effect: None
        self._latency = latency
        self._numbers: dict[bytes, int] = {}
        self._heap: list[tuple[float, int, Call]] = []
        self._order = itertools.count()
        self._trace = hashlib.sha256()
        self._encoded: tuple[Message | None, int] = (None, 0)

    def add(self, machine: Gossip, contact: Contact) -> GossipNode:
        """Give a machine a place; it runs from now on."""
        node = GossipNode(len(self.nodes), machine, contact)
        self.nodes.append(node)
        self._numbers[contact.key] = node.index
        return node

    def number(self, key: bytes) -> int:
        """Of the node with this key."""
        return self._numbers[key]

    def trace_hash(self) -> str:
        """SHA-256 over everything that was sent so far, in hexadecimal."""
        return self._trace.hexdigest()

    def call_at(self, at: float, call: Call) -> None:
        heapq.heappush(self._heap, (at, next(self._order), call))

    def run(self, until: float) -> None:
        """Let everything happen up to this time."""
        while self._heap and self._heap[0][0] <= until:
            self.now, _, call = heapq.heappop(self._heap)
            call()
        self.now = until

    # -- machines

    def feed(self, node: GossipNode, event: ev.Event) -> None:
        """Tell a machine what happened, and carry out what follows."""
        for effect in node.machine.handle(event, now=self.now):
            self.on_effect(node, effect)
            self._perform(node, effect)
        deadline = max(node.machine.deadline(), self.now)
        if deadline < node.wakes:
            node.wakes = deadline
            self.call_at(deadline, lambda: self._tick(node, deadline))

    def _tick(self, node: GossipNode, at: float) -> None:
        if node.wakes != at:
            return  # it was told to wake earlier since
        node.wakes = math.inf
        if node.alive:
            self.feed(node, ev.Tick())

    def _perform(self, node: GossipNode, effect: ev.Effect) -> None:
        match effect:
            case ev.Dial(contact):
                self._dial(node, self.nodes[self._numbers[contact.key]])
            case ev.Notify(peer, message):
                if not node.silent:
                    self._notify(node, self._peer(peer), message)
            case ev.Fetch(peer, provider, after_seq):
                self._fetch(node, self._peer(peer), provider, after_seq)
            case ev.FetchNews(peer, providers, status_seqs):
                self._fetch_news(node, self._peer(peer), dict(zip(providers, status_seqs, strict=True)))
            case ev.Compare(peer):
                self._compare(node, self._peer(peer))

    def _peer(self, key: bytes) -> GossipNode:
        return self.nodes[self._numbers[key]]

    # -- links

    def link(self, a: GossipNode, b: GossipNode) -> None:
        """A link comes up, if nothing stands in the way."""
        if a is b or b.index in a.links or not (a.alive and b.alive) or self._is_cut(a, b):
            return
        a.links.add(b.index)
        b.links.add(a.index)
        self.feed(a, ev.LinkUp(b.key, True, b.contact))
        self.feed(b, ev.LinkUp(a.key, True, a.contact))

    def unlink(self, a: GossipNode, b: GossipNode) -> None:
        if b.index in a.links:
            a.links.discard(b.index)
            b.links.discard(a.index)
            self.feed(a, ev.LinkDown(b.key))
            self.feed(b, ev.LinkDown(a.key))

    def part(self) -> None:
        """Nothing passes between the sides from now on; links between them are noticed to be lost later."""
        self.parted = True
        self.call_at(self.now + LINK_LOST_SECONDS, self._lose_links)

    def _lose_links(self) -> None:
        for node in self.nodes:
            for index in sorted(node.links):
                if self._is_cut(node, self.nodes[index]):
                    self.unlink(node, self.nodes[index])

    def _is_cut(self, a: GossipNode, b: GossipNode) -> bool:
        return self.parted and a.side != b.side

    def _dial(self, node: GossipNode, other: GossipNode) -> None:
        ways = HANDSHAKE_WAYS * self._latency.one_way(node.index, other.index)
        self.call_at(self.now + ways, lambda: self.link(node, other))

    # -- messages

    def _send(self, source: GossipNode, target: GossipNode, size: int, arrive: Call) -> None:
        self.messages += 1
        self.message_bytes += size
        self._trace.update(_TRACED.pack(self.now, source.index, target.index, size))

        def deliver() -> None:
            if target.index in source.links and not self._is_cut(source, target):
                arrive()

        self.call_at(self.now + self._latency.one_way(source.index, target.index), deliver)

    def _size(self, message: Message) -> int:
        known, size = self._encoded
        if known is not message:
            size = len(encode(message))
            self._encoded = (message, size)
        return size

    def _notify(self, node: GossipNode, other: GossipNode, message: Message) -> None:
        match message:
            case HeadsAnnounced(news):
                self.heads_told += len(news)
                self.heads_heard += 0 if other.silent else len(news)
                event: ev.Event = ev.NewsReceived(node.key, news)
            case StatusAnnounced(batches):
                event = ev.StatusReceived(node.key, batches)
            case PeersKnown(core, tree):
                event = ev.PeersReceived(node.key, core, tree)
            case Neighbour() if not self.tree:
                return
            case Neighbour() | IHave() | Graft() | Prune():
                event = ev.TreeReceived(node.key, message)
            case _:
                raise AssertionError(f"a notice that the simulator does not know: {type(message).__name__}")
        self._send(node, other, self._size(message), lambda: self.feed(other, event))

    def _fetch(self, node: GossipNode, other: GossipNode, provider: bytes, after_seq: int) -> None:
        failed = ev.FetchFailed(other.key, provider)

        def answer() -> None:
            replica = other.machine.catalogue.replica(provider)
            if other.silent:
                return self.call_at(self.now + FETCH_STALL_SECONDS, lambda: self.feed(node, failed))
            if replica is None or replica.held is None:
                return self._send(other, node, 32, lambda: self.feed(node, failed))
            head = replica.held.news.head
            entries = tuple(other.machine.catalogue.entries(provider, replica.slots_after(after_seq)))
            fetched = ev.EntriesFetched(other.key, provider, after_seq, head, entries)
            size = ENTRIES_HEAD_BYTES + sum(map(len, entries))
            return self._send(other, node, size, lambda: self.feed(node, fetched))

        self._send(node, other, 48, answer)

    def _fetch_news(self, node: GossipNode, other: GossipNode, known: dict[bytes, int]) -> None:
        def answer() -> None:
            for page in pack_news(other.machine.catalogue, known, known) if not other.silent else ():
                self._send(other, node, self._size(page), partial(hear, page))

        def hear(page: HeadsPage) -> None:
            self.feed(node, ev.NewsReceived(other.key, page.news))
            self.feed(node, ev.StatusReceived(other.key, page.statuses))

        self._send(node, other, 8 + 41 * len(known), answer)

    def _compare(self, node: GossipNode, other: GossipNode) -> None:
        mine = node.machine.catalogue.digest()

        def answer() -> None:
            if other.silent:
                return
            digest = other.machine.catalogue.digest()
            rows = other.machine.catalogue.vector() if digest != mine else ()
            told = ev.VectorReceived(other.key, rows, differs=digest != mine)
            self._send(other, node, self._size(HeadsCompared(digest, rows)), lambda: self.feed(node, told))

        self._send(node, other, self._size(CompareHeads(mine)), answer)


def unix(now: float) -> float:
    """Seconds since 1970 in the simulated world."""
    return UNIX + now
