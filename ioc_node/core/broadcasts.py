"""Statements that ride on other messages, each a bounded number of times, the least told first."""

import heapq
import math
from typing import Final

from ioc_wire.codec import encode
from ioc_wire.membership import AliveNews, MemberNews
from ioc_wire.signed import Signed

NEWS_BYTES_MAX: Final = 1400
"""Statements on one message; one always fits, however long its chain."""
NEWS_COUNT_MAX: Final = 16
BROADCASTS_MAX: Final = 8192
"""Statements waiting; the most told goes first."""

Statement = AliveNews | Signed


class _Waiting:
    __slots__ = ("size", "statement", "told")

    def __init__(self, statement: Statement) -> None:
        self.statement, self.size, self.told = statement, len(encode(statement)), 0


class Broadcasts:
    """By member and accuser: a newer statement takes the place of the older."""

    def __init__(self, retransmits: int) -> None:
        self._retransmits = retransmits
        self._waiting: dict[tuple[bytes, bytes], _Waiting] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add_alive(self, key: bytes, news: AliveNews) -> None:
        """Tell of a member, and of no accusation against it any more."""
        for name in [name for name in self._waiting if name[0] == key]:
            del self._waiting[name]
        self._add((key, b""), news)

    def add_accused(self, key: bytes, accused: Signed) -> None:
        """Pass on an accusation."""
        self._add((key, accused.key), accused)

    def _add(self, name: tuple[bytes, bytes], statement: Statement) -> None:
        if len(self._waiting) >= BROADCASTS_MAX and name not in self._waiting:
            del self._waiting[max(self._waiting, key=lambda other: self._waiting[other].told)]
        self._waiting[name] = _Waiting(statement)

    def take(self, members: int, first: tuple[Statement, ...] = ()) -> MemberNews:
        """What the next message carries: `first`, then what fits. `members` sets how often each is told."""
        if not self._waiting and not first:
            return _NOTHING
        alive = [each for each in first if isinstance(each, AliveNews)]
        accused = [each for each in first if isinstance(each, Signed)]
        room = NEWS_BYTES_MAX - sum(len(encode(each)) for each in first)
        told_max = self._retransmits * math.ceil(math.log10(members + 1))
        candidates = heapq.nsmallest(
            NEWS_COUNT_MAX, self._waiting.items(), key=lambda item: (item[1].told, item[0])
        )
        for name, waiting in candidates:
            if waiting.statement in first or (waiting.size > room and (alive or accused)):
                continue
            room -= waiting.size
            waiting.told += 1
            if waiting.told >= told_max:
                del self._waiting[name]
            if isinstance(waiting.statement, Signed):
                accused.append(waiting.statement)
            else:
                alive.append(waiting.statement)
        return MemberNews(tuple(alive), tuple(accused))


_NOTHING: Final = MemberNews()
