"""Core nodes stapled together in memory: gossip machines, a wire that may lose, a clock that jumps."""

import heapq
import itertools
import random
from collections.abc import Callable, Mapping
from types import MappingProxyType

from ioc_node.core import gossip_events as ev
from ioc_node.core.catalogue import Catalogue
from ioc_node.core.gossip import Gossip
from ioc_node.core.interest import EVERYTHING, Interest
from ioc_node.core.linking import ROOM, Room
from ioc_node.core.own_catalogue import OwnCatalogue
from ioc_node.core.packing import pack_news
from ioc_node.core.trust import Trust
from ioc_wire.authority import Delegation
from ioc_wire.gossip import HeadNews, HeadsAnnounced, PeersKnown, StatusAnnounced
from ioc_wire.market import Contact
from ioc_wire.plumtree import Graft, IHave, Neighbour, Prune
from ioc_wire.records import StatusRow
from ioc_wire.signed import Signed, public_bytes, sign
from tests.core.staple import UNIX, key_of, record_of

ROOT = key_of("root")
DELAY_SECONDS = 0.01


def certified() -> Trust:
    return Trust(network_id=bytes(32), admission="certified", roots={public_bytes(ROOT)})


def chain_of(name: str, prefix: str, until: int = UNIX + 86400) -> tuple[Signed, ...]:
    return (sign(ROOT, Delegation(public_bytes(key_of(name)), prefix, ("provider",), UNIX - 10, until)),)


class Provider:
    """A provider of the prefix `cn.NODE.NUMBER`; its head travels by hand."""

    def __init__(self, name: str, number: int, node: str = "r3301") -> None:
        self.name, self.key = name, key_of(name)
        self.public = public_bytes(self.key)
        self.prefix = f"cn.{node}.{number}"
        self.chain = chain_of(name, self.prefix)
        self.own = OwnCatalogue(self.key)

    def cid(self, host: str) -> str:
        return f"ioc:{self.prefix}/gen/3301/az1/{host}"

    def put(self, *hosts: str, version: int = 1) -> None:
        for host in hosts:
            self.own.put(record_of(self.key, self.cid(host), version), unix=UNIX)

    def news(self, unix: float = UNIX) -> HeadNews:
        self.own.commit(unix=unix)
        assert self.own.head is not None
        return HeadNews(self.own.head, self.chain, None)

    def status(self, *free_milli: int, unix: float = UNIX) -> Signed:
        rows = [StatusRow(i, free, 1) for i, free in enumerate(free_milli)]
        return self.own.sign_status(rows, unix=unix)[0]


class Mesh:
    """Machines, and what is on its way between them. `passes(source, target, message)` may lose notices; `linked`
    says which pairs have a link."""

    def __init__(
        self,
        count: int,
        seed: int = 1,
        *,
        dial: bool = True,
        room: Room = ROOM,
        interests: Mapping[int, Interest] = MappingProxyType({}),
    ) -> None:
        self.now = 0.0
        self.machines: list[Gossip] = []
        self.keys: list[bytes] = []
        self.linked: set[frozenset[int]] = set()
        self.passes: Callable[[int, int, object], bool] = lambda source, target, message: True
        self.cut: Callable[[int, int], bool] = lambda source, target: False
        self.effects: list[tuple[int, ev.Effect]] = []
        self.notices = 0
        self._dial = dial
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        for number in range(count):
            key = public_bytes(key_of(f"core{number}"))
            self.keys.append(key)
            chance = random.Random(seed + number)
            catalogue = Catalogue(certified(), interest=interests.get(number, EVERYTHING))
            machine = Gossip(key, catalogue, chance, unix_offset=UNIX, room=room)
            self.machines.append(machine)

    def contact(self, number: int) -> Contact:
        return Contact(self.keys[number], "127.0.0.1", 1000 + number)

    def link(self, a: int, b: int) -> None:
        if frozenset((a, b)) in self.linked or self.cut(a, b):
            return
        self.linked.add(frozenset((a, b)))
        for one, other in ((a, b), (b, a)):
            interests = self.machines[one].catalogue.interests
            interests.told[self.keys[other]] = self.machines[other].catalogue.interests.own
        self.feed(a, ev.LinkUp(self.keys[b], True, self.contact(b)))
        self.feed(b, ev.LinkUp(self.keys[a], True, self.contact(a)))

    def unlink(self, a: int, b: int) -> None:
        if frozenset((a, b)) in self.linked:
            self.linked.discard(frozenset((a, b)))
            self.feed(a, ev.LinkDown(self.keys[b]))
            self.feed(b, ev.LinkDown(self.keys[a]))

    def partition(self, *islands: set[int]) -> None:
        where = {number: island for island, members in enumerate(islands) for number in members}
        self.cut = lambda a, b: where.get(a) != where.get(b)
        for pair in [tuple(pair) for pair in self.linked]:
            if self.cut(*pair):
                self.unlink(*pair)

    def heal(self) -> None:
        self.cut = lambda a, b: False

    def publish(self, home: int, provider: Provider) -> None:
        self.feed(home, ev.NewsReceived(None, (provider.news(UNIX + self.now),)))
        entries = provider.own.entries_after(0)
        assert provider.own.head is not None
        self.feed(home, ev.EntriesFetched(None, provider.public, 0, provider.own.head, entries))

    def feed(self, number: int, event: ev.Event) -> None:
        for effect in self.machines[number].handle(event, now=self.now):
            self.effects.append((number, effect))
            self._perform(number, effect)

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while True:
            deadlines = [(max(machine.deadline(), self.now), n) for n, machine in enumerate(self.machines)]
            tick_at, number = min(deadlines)
            message_at = self._queue[0][0] if self._queue else float("inf")
            if min(tick_at, message_at) > until:
                self.now = until
                return
            if message_at <= tick_at:
                self.now, _, deliver = heapq.heappop(self._queue)
                deliver()
            else:
                self.now = tick_at
                self.feed(number, ev.Tick())
                assert self.machines[number].deadline() > self.now

    def digests(self) -> set[bytes]:
        return {machine.catalogue.digest() for machine in self.machines}

    def _later(self, deliver: Callable[[], None]) -> None:
        # Links keep order, and so does an equal delay for all.
        heapq.heappush(self._queue, (self.now + DELAY_SECONDS, next(self._order), deliver))

    def _perform(self, source: int, effect: ev.Effect) -> None:
        match effect:
            case ev.Dial(contact):
                target = self.keys.index(contact.key)
                if self._dial:
                    self._later(lambda: self.link(source, target))
            case ev.Notify(peer, message):
                target = self.keys.index(peer)
                self.notices += 1
                if self.passes(source, target, message):
                    self._later(lambda: self._notice(source, target, message))
            case ev.Fetch(peer, provider, after_seq):
                target = self.keys.index(peer)
                self._later(lambda: self._fetch(source, target, provider, after_seq))
            case ev.FetchNews(peer, providers, status_seqs):
                target = self.keys.index(peer)
                known = dict(zip(providers, status_seqs, strict=True))
                self._later(lambda: self._fetch_news(source, target, known))
            case ev.Compare(peer):
                target = self.keys.index(peer)
                self._later(lambda: self._compare(source, target))

    def _up(self, a: int, b: int) -> bool:
        return frozenset((a, b)) in self.linked

    def _notice(self, source: int, target: int, message: object) -> None:
        if not self._up(source, target):
            return
        sender = self.keys[source]
        match message:
            case HeadsAnnounced(news):
                self.feed(target, ev.NewsReceived(sender, news))
            case StatusAnnounced(batches):
                self.feed(target, ev.StatusReceived(sender, batches))
            case PeersKnown(core, tree):
                self.feed(target, ev.PeersReceived(sender, core, tree))
            case Neighbour() | IHave() | Graft() | Prune():
                self.feed(target, ev.TreeReceived(sender, message))

    def _fetch(self, source: int, target: int, provider: bytes, after_seq: int) -> None:
        replica = self.machines[target].catalogue.replica(provider)
        peer = self.keys[target]
        if not self._up(source, target) or replica is None or replica.held is None:
            self.feed(source, ev.FetchFailed(peer, provider))
            return
        head = replica.held.news.head
        catalogue = self.machines[target].catalogue
        entries = tuple(catalogue.entries(provider, replica.slots_after(after_seq)))
        self._later(lambda: self.feed(source, ev.EntriesFetched(peer, provider, after_seq, head, entries)))

    def _fetch_news(self, source: int, target: int, known: dict[bytes, int]) -> None:
        if self._up(source, target):
            for page in pack_news(self.machines[target].catalogue, known, known):
                self.feed(source, ev.NewsReceived(self.keys[target], page.news))
                self.feed(source, ev.StatusReceived(self.keys[target], page.statuses))

    def _compare(self, source: int, target: int) -> None:
        if self._up(source, target):
            mine, other = self.machines[source].catalogue, self.machines[target].catalogue
            common = mine.interests.common(self.keys[target])
            differs = mine.digest(common) != other.digest(common)
            rows = other.vector(common) if differs else ()
            self.feed(source, ev.VectorReceived(self.keys[target], rows, differs))
