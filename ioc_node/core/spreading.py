"""Whom to tell of heads and status: everybody in a full mesh, the tree's eager neighbours where there are too many.

The mesh says whether it is too wide for everybody to tell everybody (`Mesh.wide`). Then a node keeps a few neighbours
(`neighbours`) and tells along a tree between them (`plumtree`). Until it has some, it tells a few at random.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from ioc_node.core.catalogue import Catalogue
from ioc_node.core.chance import Chance
from ioc_node.core.gossip_events import Notify
from ioc_node.core.mesh import DISBELIEVE_SECONDS, Mesh
from ioc_node.core.neighbours import Neighbours
from ioc_node.core.packing import in_steps, pack_statuses
from ioc_node.core.plumtree import Item, Plumtree
from ioc_node.core.rates import RateTable
from ioc_node.core.replica import HeldStatus
from ioc_wire import limits
from ioc_wire.codec import Message
from ioc_wire.gossip import HeadNews, HeadsAnnounced
from ioc_wire.plumtree import Graft, IHave, Mark, Neighbour, Prune, Standing, TreeMessage
from ioc_wire.signed import Signed

NEIGHBOURS_MIN: Final = 2
"""With fewer a node tells some at random instead: the only one might swallow all."""
ASKED_PER_SECOND: Final = 1.0
ASKED_BURST: Final = 16.0
"""How often one peer is listened to that speaks of being neighbours."""
HEAD: Final = 0
"""The part of an item that is a head; status of part n of the slots is n + 1."""
_STEP: Final = limits.NEWS_MAX // 2


class Spreading:
    """Of one core node; everything is returned as what to send."""

    def __init__(self, catalogue: Catalogue, mesh: Mesh, chance: Chance) -> None:
        self._catalogue, self._mesh = catalogue, mesh
        self._leaf = not catalogue.interests.own.is_everything
        self.neighbours = Neighbours(chance)
        self.tree = Plumtree(leaf=self._leaf)
        self._asked = RateTable(ASKED_PER_SECOND, ASKED_BURST)

    # -- news that is held here

    def heads(self, sender: bytes | None, provider: bytes, now: float) -> list[Notify]:
        """The head of a provider is held: tell it on."""
        replica = self._catalogue.replica(provider)
        assert replica is not None
        told = self._whom(sender, [((provider, HEAD), replica.held_seq)], now)
        message = HeadsAnnounced(replica.news())
        return [Notify(peer, message) for peer in told]

    def statuses(self, sender: bytes | None, parts: Iterable[tuple[bytes, int]], now: float) -> list[Notify]:
        """The status of these providers' parts is held: tell it on."""
        batches = {(provider, part + 1): held for provider, part in parts
                   if (held := self._status(provider, part)) is not None}  # fmt: skip
        told = self._whom(sender, [(item, held.seq) for item, held in batches.items()], now)
        return [
            Notify(peer, message)
            for peer, items in told.items()
            for message in pack_statuses(batches[item].signed for item in items)
        ]

    def forked(self, provider: bytes) -> list[Notify]:
        """A provider signed two heads for one seq: everybody is told both at once."""
        replica = self._catalogue.replica(provider)
        assert replica is not None
        message = HeadsAnnounced(replica.news())
        return [Notify(peer, message) for peer in self._mesh.cores if self._tells(peer, provider)]

    def _status(self, provider: bytes, part: int) -> HeldStatus | None:
        replica = self._catalogue.replica(provider)
        return replica.statuses.get(part) if replica is not None else None

    def _whom(
        self, sender: bytes | None, items: Sequence[tuple[Item, int]], now: float
    ) -> dict[bytes, list[Item]]:
        """Whom to tell of which."""
        told: defaultdict[bytes, list[Item]] = defaultdict(list)
        if self._mesh.wide and len(self.neighbours) >= NEIGHBOURS_MIN:
            for item, seq in items:
                for peer in self.tree.spread(item, seq, sender, self._tells_of(item[0]), now):
                    told[peer].append(item)
                    self.neighbours.told(peer, now)
            return told
        checked = items[0][0][0] if items and items[0][0][1] == HEAD else None
        for peer in self._mesh.spread_to(sender, checked, now):
            wanted = [item for item, _ in items if self._tells(peer, item[0])]
            if wanted:
                told[peer] = wanted
        return told

    def _tells(self, peer: bytes, provider: bytes) -> bool:
        """Whether `peer` is told of this provider."""
        replica = self._catalogue.replica(provider)
        return (
            peer in self._mesh.peers
            and replica is not None
            and self._catalogue.interests.is_told(peer, replica.prefix)
        )

    def _tells_of(self, provider: bytes) -> Callable[[bytes], bool]:
        return lambda peer: self._tells(peer, provider)

    # -- what others tell

    def came(self, peer: bytes | None, item: Item, seq: int, now: float, *, first: bool) -> list[Notify]:
        """`peer` told news; whether it was the first to do so."""
        if peer is None or peer not in self.neighbours:
            return []
        self.neighbours.heard(peer, now)
        return self._sent(self.tree.came(peer, item, seq) if first else self.tree.came_again(peer), now)

    def came_status(self, peer: bytes | None, signed: Signed, part: int | None, now: float) -> list[Notify]:
        """`peer` told a status batch: it was news of this part, or (None) known."""
        if peer is None or peer not in self.neighbours:
            return []
        if part is None or (held := self._status(signed.key, part)) is None:
            return self.came(peer, (signed.key, HEAD), 0, now, first=False)
        return self.came(peer, (signed.key, part + 1), held.seq, now, first=True)

    def received(self, peer: bytes, message: TreeMessage, now: float) -> list[Notify]:
        """A message of the tree."""
        known = self._mesh.peers.get(peer)
        if known is None or not known.core:
            return []
        self.neighbours.heard(peer, now)
        match message:
            case Neighbour(standing):
                return self._on_neighbour(peer, standing, now)
            case IHave(marks):
                self.tree.named(peer, marks, self._lacks, now)
            case Graft(marks):
                return self._sent([(peer, one) for one in self._grafted(peer, marks, now)], now)
            case Prune():
                self.tree.pruned(peer)
        return []

    def _on_neighbour(self, peer: bytes, standing: Standing, now: float) -> list[Notify]:
        if not self._asked.take(peer, now):
            return []
        known = self._mesh.peers[peer]
        leaf = not self._replicates_all(peer)
        if not self._mesh.wide or known.disbelieved_until > now or (leaf and self._leaf):
            return [Notify(peer, Neighbour("no"))] if standing in ("ask", "urge") else []
        answers = self.neighbours.said(peer, standing, now, leaf=leaf)
        self._follow()
        return self._sent(answers, now)

    def _replicates_all(self, peer: bytes) -> bool:
        told = self._catalogue.interests.told.get(peer)
        return told is None or told.is_everything

    def _lacks(self, mark: Mark) -> bool:
        """Whether this node was told nothing yet of such news."""
        replica = self._catalogue.replica(mark.provider)
        if replica is None:
            return mark.part == HEAD
        if replica.fork is not None:
            return False
        if mark.part == HEAD:
            return replica.seq < mark.seq
        held = replica.statuses.get(mark.part - 1)
        return held is None or held.seq < mark.seq

    def _grafted(self, peer: bytes, marks: Sequence[Mark], now: float) -> list[Message]:
        heads: list[HeadNews] = []
        statuses: list[Signed] = []
        for provider, part in self.tree.grafted(peer, marks, now):
            replica = self._catalogue.replica(provider)
            if replica is None or not self._tells(peer, provider):
                continue
            if part == HEAD:
                heads += replica.news()
            elif (held := replica.statuses.get(part - 1)) is not None:
                statuses.append(held.signed)
        pages = [HeadsAnnounced(some) for some in in_steps(heads, _STEP)]
        return [*pages, *pack_statuses(statuses)]

    def gone(self, peer: bytes) -> None:
        """The link to `peer` is down."""
        self.neighbours.gone(peer)
        self._follow()

    # -- time

    def deadline(self) -> float | None:
        if not self._mesh.wide:
            return None if not len(self.neighbours) else 0.0
        at = self.tree.deadline()
        check_at = self.neighbours.check_at or 0.0
        return check_at if at is None else min(at, check_at)

    def pass_time(self, now: float) -> list[Notify]:
        if not self._mesh.wide:
            return self._end(now) if len(self.neighbours) else []
        told: list[tuple[bytes, Message]] = list(self.tree.pass_time(now))
        for liar in self.tree.liars:
            self._mesh.peers[liar].disbelieved_until = now + DISBELIEVE_SECONDS
            told += self.neighbours.part_from(liar, now, seconds=DISBELIEVE_SECONDS)
        self.tree.liars.clear()
        if now >= (self.neighbours.check_at or 0.0):
            linked = [peer for peer in self._mesh.cores if self._replicates_all(peer)]
            told += self.neighbours.pass_time(now, linked)
            self._follow()
        return self._sent(told, now)

    def _end(self, now: float) -> list[Notify]:
        told = self.neighbours.end()
        self._follow()
        return self._sent(told, now)

    def _follow(self) -> None:
        """The tree grows between neighbours."""
        for peer in self.tree.neighbours:
            if peer not in self.neighbours:
                self.tree.remove(peer)
        for peer in self.neighbours:
            self.tree.add(peer)

    def _sent(self, told: Sequence[tuple[bytes, Message]], now: float) -> list[Notify]:
        for peer, _ in told:
            self.neighbours.told(peer, now)
        return [Notify(peer, message) for peer, message in told]
