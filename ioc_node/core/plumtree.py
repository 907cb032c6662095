"""Plumtree: news goes along a tree of eager neighbours; the others are told that it is there, and mend the tree.

Source: Leitão, Pereira, Rodrigues, "Epidemic Broadcast Trees", SRDS 2007. Every neighbour begins eager. Who is told
what it has prunes the link: news no longer goes over it, only its name (IHave), gathered over a moment. Who hears of
news by name only, and does not get it in time, grafts: it is told by whoever named it, and that link is eager again.
So one swallowing neighbour costs one time-out, once.

Ours: news is state, of which the newest counts, so that a graft is answered from what is held. A node that replicates
only a part is a *leaf*: it has one eager link at most, because not all news goes through it. Promises are counted: who
names what it does not tell is soon not listened to.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from ioc_node.core.rates import Rate
from ioc_wire import limits
from ioc_wire.codec import Message
from ioc_wire.plumtree import Graft, IHave, Mark, Prune

LAZY_SECONDS: Final = 0.1
"""How long names are gathered."""
GRAFT_SECONDS: Final = 0.4
"""How long named news may take to come by itself: several hops along the tree."""
GRAFT_AGAIN_SECONDS: Final = 0.3
"""How long the answer to a graft may take, until the next one that named it is asked."""
SOURCES_MAX: Final = 8
"""Neighbours remembered that named one piece of news."""
PROMISES_MAX: Final = 512
"""Pieces of news that one neighbour named and that are awaited."""
BROKEN_MAX: Final = 8
"""Promises that a neighbour breaks one after the other before it is given up."""
QUEUE_MAX: Final = 8192
"""Names waiting for one neighbour; what comes beyond that is left to comparing."""
MARKS_PER_SECOND: Final = 1024.0
MARKS_BURST: Final = 16384.0
"""Names of one neighbour that are looked at."""
GRAFTED_PER_SECOND: Final = 128.0
GRAFTED_BURST: Final = 2048.0
"""News told to one neighbour because it grafts."""

Item = tuple[bytes, int]
"""Provider and part, as in a `Mark`: news of which the newest seq counts."""
Told = tuple[bytes, Message]
"""To whom, and what."""


@dataclass(slots=True)
class _Branch:
    eager: bool
    queue: dict[Item, int] = field(default_factory=dict)
    flush_at: float | None = None
    promises: int = 0
    broken: int = 0
    marks: Rate = field(default_factory=lambda: Rate(MARKS_PER_SECOND, MARKS_BURST))
    grafts: Rate = field(default_factory=lambda: Rate(GRAFTED_PER_SECOND, GRAFTED_BURST))


@dataclass(slots=True)
class _Missing:
    due: float
    sources: dict[bytes, int] = field(default_factory=dict)
    """Who named it, in order, and the seq."""
    asked: bytes | None = None


class Plumtree:
    """The tree's links of one node. `leaf`: not all news comes through it."""

    def __init__(self, *, leaf: bool = False) -> None:
        self._leaf = leaf
        self._branches: dict[bytes, _Branch] = {}
        self._missing: dict[Item, _Missing] = {}
        self._graft_at: float | None = None
        self.liars: list[bytes] = []
        """Neighbours that broke too many promises, to be given up by the caller, who empties this."""

    @property
    def eager(self) -> list[bytes]:
        return [peer for peer, branch in self._branches.items() if branch.eager]

    @property
    def neighbours(self) -> list[bytes]:
        return list(self._branches)

    @property
    def awaited(self) -> int:
        """Pieces of news that were named and have not come."""
        return len(self._missing)

    def add(self, peer: bytes) -> None:
        """A new neighbour."""
        if peer not in self._branches:
            self._branches[peer] = _Branch(eager=not self._leaf or not self.eager)

    def remove(self, peer: bytes) -> None:
        """No longer a neighbour."""
        if self._branches.pop(peer, None) is None:
            return
        for item, missing in list(self._missing.items()):
            missing.sources.pop(peer, None)
            if missing.asked == peer:
                missing.asked = None
            if not missing.sources:
                del self._missing[item]

    # -- news

    def spread(
        self, item: Item, seq: int, sender: bytes | None, tells: Callable[[bytes], bool], now: float
    ) -> list[bytes]:
        """News is held here: whom to tell. The others for whom `tells` holds will hear its name."""
        known = self._missing.get(item)
        named = known.sources if known is not None else {}
        told = []
        for peer, branch in self._branches.items():
            if peer == sender or not tells(peer) or named.get(peer, -1) >= seq:
                continue
            if branch.eager:
                told.append(peer)
            elif item in branch.queue or len(branch.queue) < QUEUE_MAX:
                branch.queue[item] = seq
                branch.flush_at = branch.flush_at or now + LAZY_SECONDS
        self._resolve(item, seq)
        return told

    def came(self, peer: bytes, item: Item, seq: int) -> list[Told]:
        """`peer` was the first to tell: news comes from there."""
        self._resolve(item, seq)
        branch = self._branches.get(peer)
        if branch is None:
            return []
        branch.broken = 0
        branch.eager = True
        others = [other for other in self.eager if other != peer] if self._leaf else []
        return [told for other in others for told in self.came_again(other)]

    def came_again(self, peer: bytes) -> list[Told]:
        """`peer` told what had come before."""
        branch = self._branches.get(peer)
        if branch is None:
            return []
        branch.eager = False
        return [(peer, Prune())]

    def _resolve(self, item: Item, seq: int) -> None:
        missing = self._missing.get(item)
        if missing is None:
            return
        for peer in [peer for peer, named in missing.sources.items() if named <= seq]:
            self._drop_source(missing, peer)
        if not missing.sources:
            del self._missing[item]

    def _drop_source(self, missing: _Missing, peer: bytes) -> None:
        del missing.sources[peer]
        if missing.asked == peer:
            missing.asked = None
        if branch := self._branches.get(peer):
            branch.promises -= 1

    # -- what neighbours say

    def pruned(self, peer: bytes) -> None:
        """A neighbour wants names only."""
        if branch := self._branches.get(peer):
            branch.eager = False

    def named(self, peer: bytes, marks: Sequence[Mark], lacks: Callable[[Mark], bool], now: float) -> None:
        """A neighbour holds these; `lacks` says of which this node was told nothing yet."""
        branch = self._branches.get(peer)
        if branch is None:
            return
        for mark in marks:
            if not branch.marks.take(now):
                return
            item = (mark.provider, mark.part)
            if branch.queue.get(item, mark.seq + 1) <= mark.seq:
                del branch.queue[item]
            if lacks(mark):
                self._await(peer, branch, item, mark.seq, now)

    def _await(self, peer: bytes, branch: _Branch, item: Item, seq: int, now: float) -> None:
        missing = self._missing.get(item)
        sources = missing.sources if missing is not None else {}
        if peer in sources:
            sources[peer] = max(sources[peer], seq)
            return
        if branch.promises >= PROMISES_MAX or len(sources) >= SOURCES_MAX:
            return
        if missing is None:
            missing = self._missing[item] = _Missing(now + GRAFT_SECONDS)
            self._graft_at = min(self._graft_at or missing.due, missing.due)
        missing.sources[peer] = seq
        branch.promises += 1

    def grafted(self, peer: bytes, marks: Sequence[Mark], now: float) -> list[Item]:
        """A neighbour wants to be told from now on: first of these."""
        branch = self._branches.get(peer)
        if branch is None:
            return []
        branch.eager = True
        return [(mark.provider, mark.part) for mark in marks if branch.grafts.take(now)]

    # -- time

    def deadline(self) -> float | None:
        times = [branch.flush_at for branch in self._branches.values() if branch.flush_at is not None]
        return min([*times, self._graft_at] if self._graft_at is not None else times, default=None)

    def pass_time(self, now: float) -> list[Told]:
        """Names that were gathered, and grafts that are due."""
        told: list[Told] = []
        for peer, branch in self._branches.items():
            if branch.flush_at is not None and now >= branch.flush_at:
                told += [(peer, IHave(page)) for page in _pages(branch.queue)]
                branch.queue, branch.flush_at = {}, None
        if self._graft_at is not None and now >= self._graft_at:
            told += self._graft(now)
        return told

    def _graft(self, now: float) -> list[Told]:
        asked: defaultdict[bytes, dict[Item, int]] = defaultdict(dict)
        for item, missing in list(self._missing.items()):
            if missing.due > now:
                continue
            if missing.asked is not None:
                self._break(missing, missing.asked)
            if not missing.sources:
                del self._missing[item]
                continue
            missing.asked = next(iter(missing.sources))
            missing.due = now + GRAFT_AGAIN_SECONDS
            asked[missing.asked][item] = missing.sources[missing.asked]
        self._graft_at = min((missing.due for missing in self._missing.values()), default=None)
        for peer in asked:
            self._branches[peer].eager = True
        return [(peer, Graft(page)) for peer, items in asked.items() for page in _pages(items)]

    def _break(self, missing: _Missing, peer: bytes) -> None:
        self._drop_source(missing, peer)
        if branch := self._branches.get(peer):
            branch.broken += 1
            branch.eager = False
            if branch.broken == BROKEN_MAX:
                self.liars.append(peer)


def _pages(items: dict[Item, int]) -> list[tuple[Mark, ...]]:
    marks = [Mark(provider, part, seq) for (provider, part), seq in items.items()]
    return [tuple(marks[start : start + limits.NEWS_MAX]) for start in range(0, len(marks), limits.NEWS_MAX)]
