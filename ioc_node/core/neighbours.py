"""A core node's neighbours in the tree: few, mutual, and replaced when they fall silent (HyParView's active view).

Source: Leitão, Pereira, Rodrigues, "HyParView", DSN 2007. The passive view is what is there already: the core nodes
that this node is linked with, and behind them the contact book, which links between core nodes and their membership
keep full. So nothing is shuffled.

Ours: a node chooses some neighbours itself and takes a bounded number of those that choose it, so that nobody is
surrounded by whoever asks most; one that has none at all is taken in place of another, but rarely.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ioc_node.core.chance import Chance
from ioc_wire.plumtree import IHave, Neighbour, Standing

CHOSEN: Final = 4
"""Neighbours that a node chooses itself."""
TAKEN_MAX: Final = 6
"""Neighbours at most that chose this node."""
LEAVES_MAX: Final = 16
"""Besides, nodes that replicate only a part: they pass nothing on that others wait for."""
ASK_SECONDS: Final = 2.0
"""How long an answer may take."""
REFUSED_SECONDS: Final = 10.0
"""How long one that refused, or did not answer, is not asked again."""
SHUN_SECONDS: Final = 60.0
"""How long one that fell silent as a neighbour is neither asked nor taken."""
PRESENT_SECONDS: Final = 5.0
"""Each neighbour hears something so often."""
SILENT_SECONDS: Final = 16.0
"""A neighbour that says nothing for so long is one no longer."""
URGED_SECONDS: Final = 10.0
"""How often another neighbour gives way to one that has none."""
CHECK_SECONDS: Final = 1.0

Said = tuple[bytes, Neighbour | IHave]


@dataclass(slots=True)
class _Neighbour:
    chosen: bool
    leaf: bool
    heard: float
    told: float


class Neighbours:
    """Those of one node, by key."""

    def __init__(self, chance: Chance) -> None:
        self._chance = chance
        self._known: dict[bytes, _Neighbour] = {}
        self._asked: dict[bytes, float] = {}
        self._refused: dict[bytes, float] = {}
        self._shunned: dict[bytes, float] = {}
        self._urged_at = 0.0
        self.check_at: float | None = None

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, peer: bytes) -> bool:
        return peer in self._known

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._known)

    def heard(self, peer: bytes, now: float) -> None:
        """A neighbour said something."""
        if known := self._known.get(peer):
            known.heard = now

    def told(self, peer: bytes, now: float) -> None:
        """A neighbour was told something."""
        if known := self._known.get(peer):
            known.told = now

    def gone(self, peer: bytes) -> None:
        """The link to it is down."""
        for table in (self._known, self._asked, self._refused, self._shunned):
            table.pop(peer, None)
        self.check_at = 0.0

    def part_from(self, peer: bytes, now: float, *, seconds: float = SHUN_SECONDS) -> list[Said]:
        """Be neighbours no longer, and not again for so long."""
        known = self._known.pop(peer, None)
        self._asked.pop(peer, None)
        self._shunned[peer] = now + seconds
        self.check_at = 0.0
        return [(peer, Neighbour("no"))] if known is not None else []

    def end(self) -> list[Said]:
        """All of it: everybody is told everything again."""
        told: list[Said] = [(peer, Neighbour("no")) for peer in self._known]
        self._known.clear()
        self._asked.clear()
        self.check_at = None
        return told

    def said(self, peer: bytes, standing: Standing, now: float, *, leaf: bool) -> list[Said]:
        """What a linked core node says of being neighbours, and the answers. `leaf`: it replicates only a part."""
        match standing:
            case "ask" | "urge":
                return self._take(peer, now, leaf=leaf, urged=standing == "urge")
            case "yes" if peer in self._known:
                self._known[peer].chosen |= self._asked.pop(peer, None) is not None
            case "yes" if self._asked.pop(peer, None) is not None:
                self._known[peer] = _Neighbour(chosen=True, leaf=leaf, heard=now, told=now)
            case "yes":
                return [(peer, Neighbour("no"))]  # it answered too late
            case "no":
                if self._asked.pop(peer, None) is not None or peer in self._known:
                    self._refused[peer] = now + REFUSED_SECONDS
                if self._known.pop(peer, None) is not None:
                    self.check_at = 0.0
        return []

    def _take(self, peer: bytes, now: float, *, leaf: bool, urged: bool) -> list[Said]:
        answers: list[Said] = []
        if peer not in self._known:
            taken = [key for key, one in self._known.items() if not one.chosen and one.leaf == leaf]
            if self._shunned.get(peer, now) > now:
                return [(peer, Neighbour("no"))]
            if len(taken) >= (LEAVES_MAX if leaf else TAKEN_MAX):
                if not urged or now < self._urged_at:
                    return [(peer, Neighbour("no"))]
                self._urged_at = now + URGED_SECONDS
                answers += self.part_from(taken[self._chance.randrange(len(taken))], now)
            self._known[peer] = _Neighbour(chosen=False, leaf=leaf, heard=now, told=now)
        return [*answers, (peer, Neighbour("yes"))]

    def pass_time(self, now: float, linked: Sequence[bytes]) -> list[Said]:
        """Drop who is silent, tell the others that this node is there, and ask some of `linked` where too few are."""
        self.check_at = now + CHECK_SECONDS
        told: list[Said] = []
        for peer in [peer for peer, until in self._asked.items() if until <= now]:
            del self._asked[peer]
            self._refused[peer] = now + REFUSED_SECONDS
        for table in (self._refused, self._shunned):
            for peer in [peer for peer, until in table.items() if until <= now]:
                del table[peer]
        for peer, known in list(self._known.items()):
            if now - known.heard > SILENT_SECONDS:
                told += self.part_from(peer, now)
            elif now - known.told >= PRESENT_SECONDS:
                known.told = now
                told.append((peer, IHave()))
        return told + self._ask(now, linked)

    def _ask(self, now: float, linked: Sequence[bytes]) -> list[Said]:
        self.check_at = now + CHECK_SECONDS
        lacking = CHOSEN - len(self._asked) - sum(one.chosen for one in self._known.values())
        if lacking <= 0:
            return []
        taboo = self._known.keys() | self._asked.keys() | self._refused.keys() | self._shunned.keys()
        free = [peer for peer in linked if peer not in taboo]
        asked = self._chance.sample(free, min(lacking, len(free)))
        self._asked.update(dict.fromkeys(asked, now + ASK_SECONDS))
        return [(peer, Neighbour("ask" if self._known else "urge")) for peer in asked]
