"""Which chunk of a blob is asked of which connection.

Theory of operation. Every chunk is wanted, asked for, received, or kept (verified and in its place). Connections
take chunks from the front whenever they have room, so a quick one takes more than a slow one without anybody
deciding it. A connection's room follows its measured pace: about a second's worth, within bounds that keep all
connections together within `WINDOW_TOTAL`. When nothing is left to ask for, an idle connection takes over what a
slower one still owes, once per chunk; whichever copy comes first is kept. A connection that is `SLOW_RATIO` times
slower than the best is named by `laggard`, for its owner to drop. A reader that consumes in order moves `stop`
forward; nothing beyond it is asked for.

Pure state: time is an argument.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

WINDOW_MAX: Final = 16
"""Chunks that may be on their way on one connection."""
WINDOW_TOTAL: Final = 32
"""The same for all connections of one blob: what bounds a reader's memory."""
WINDOW_FIRST: Final = 4
WINDOW_SECONDS: Final = 1.0
SLOW_RATIO: Final = 16.0
SLOW_SECONDS: Final = 3.0
"""A connection is judged after so long."""
SMOOTHING: Final = 0.25
_WANTED, _ASKED, _RECEIVED, _KEPT = range(4)  # a new bytearray says: all wanted


@dataclass(eq=False)
class Pace:
    """What one connection owes, and how quickly it delivers."""

    owed: dict[int, float] = field(default_factory=dict)
    """Chunk index → when it was asked for, in order."""
    rate: float = 0.0
    """Chunks per second, smoothed; 0 before the first."""
    began: float = 0.0
    moved: float = 0.0
    """When it last delivered, or began to owe."""

    def rate_now(self, now: float) -> float:
        """The rate, no higher than what its silence allows."""
        if not self.owed:
            return self.rate
        silent = now - self.moved
        ceiling = 1.0 / silent if silent > 0 else math.inf
        return min(self.rate, ceiling) if self.rate else ceiling


class Schedule:
    """The chunks `wanted` of a blob of `count` chunks. Those in `doubtful` are here and being verified again: each ends
    as `kept` or `spoiled`, like one that was received."""

    def __init__(
        self,
        count: int,
        wanted: Iterable[range],
        *,
        doubtful: Iterable[range] = (),
        stop: int | None = None,
    ) -> None:
        self._state = bytearray([_KEPT]) * count
        for state, runs in ((_WANTED, wanted), (_RECEIVED, doubtful)):
            for each in runs:
                self._state[each.start : each.stop] = bytes((state,)) * len(each)
        self._left = count - self._state.count(_KEPT)
        self._first = 0
        self._stop = count if stop is None else stop
        self._paces: set[Pace] = set()

    @property
    def finished(self) -> bool:
        """Whether every wanted chunk was kept."""
        return self._left == 0

    @property
    def left(self) -> int:
        """Chunks that are not kept yet."""
        return self._left

    def join(self, now: float) -> Pace:
        """One more connection."""
        pace = Pace(began=now, moved=now)
        self._paces.add(pace)
        return pace

    def leave(self, pace: Pace) -> None:
        """A connection is over: others may be asked for what it owes."""
        self._paces.discard(pace)
        owed = list(pace.owed)
        pace.owed.clear()
        for index in owed:
            self._want_again(index)

    def advance(self, stop: int) -> None:
        """Chunks below `stop` may be asked for."""
        self._stop = max(self._stop, stop)

    def take(self, pace: Pace, now: float) -> list[int]:
        """Chunks to ask of this connection now, in this order; none while it has no room."""
        room = self._window(pace) - len(pace.owed)
        if pace.owed and room < min(4, self._window(pace) // 2):
            return []  # a few at a time: a question for each would cost as much as it saves
        taken = self._take_wanted(room)
        if not taken and not pace.owed:
            taken = self._take_over(pace, now)
        if taken and not pace.owed:
            pace.moved = now
        pace.owed.update(dict.fromkeys(taken, now))
        return taken

    def received(self, pace: Pace, index: int, now: float) -> bool:
        """A chunk came; whether it is the first copy of it."""
        pace.owed.pop(index, None)
        interval = max(now - pace.moved, 1e-6)
        pace.moved = now
        sample = 1.0 / interval
        # Chunks arrive in bursts: intervals are averaged, not rates.
        pace.rate = sample if not pace.rate else 1.0 / ((1 - SMOOTHING) / pace.rate + SMOOTHING * interval)
        if self._state[index] >= _RECEIVED:
            return False
        self._state[index] = _RECEIVED
        return True

    def kept(self, index: int) -> None:
        """A received chunk was verified and is in its place."""
        if self._state[index] != _KEPT:
            self._state[index] = _KEPT
            self._left -= 1

    def spoiled(self, index: int) -> None:
        """A received chunk was no good: it is wanted again."""
        if self._state[index] == _RECEIVED:
            self._state[index] = _ASKED
            self._want_again(index)

    def laggard(self, now: float) -> Pace | None:
        """A connection that is so slow beside another one that it had better be dropped."""
        if len(self._paces) < 2:
            return None
        quickest = max(self._paces, key=lambda pace: pace.rate_now(now) if pace.rate else 0.0)
        best = (
            quickest.rate_now(now) if quickest.rate else 0.0
        )  # silence for all alike makes nobody a laggard
        for pace in self._paces:
            judged = pace is not quickest and pace.owed and now - pace.began >= SLOW_SECONDS
            if judged and pace.rate_now(now) * SLOW_RATIO < best:
                return pace
        return None

    def _window(self, pace: Pace) -> int:
        bound = max(2, min(WINDOW_MAX, WINDOW_TOTAL // max(1, len(self._paces))))
        if not pace.rate:
            return min(WINDOW_FIRST, bound)
        return max(2, min(bound, math.ceil(pace.rate * WINDOW_SECONDS) + 2))

    def _take_wanted(self, room: int) -> list[int]:
        taken: list[int] = []
        while len(taken) < room:
            index = self._state.find(_WANTED, self._first, self._stop)
            if index < 0:
                self._first = min(self._stop, len(self._state))
                break
            self._state[index] = _ASKED
            self._first = index + 1
            taken.append(index)
        return taken

    def _take_over(self, pace: Pace, now: float) -> list[int]:
        """What a slower connection would bring later than this one could."""
        ours = 1.0 / pace.rate if pace.rate else 1.0
        for other in self._paces:
            rate = other.rate_now(now)
            for place, index in enumerate(other.owed, 1):
                asked_once = sum(index in each.owed for each in self._paces) == 1
                late = rate <= 0 or place / rate > 2 * ours + 0.1
                if other is not pace and asked_once and late and self._state[index] == _ASKED:
                    return [index]
        return []

    def _want_again(self, index: int) -> None:
        if self._state[index] == _ASKED and not any(index in pace.owed for pace in self._paces):
            self._state[index] = _WANTED
            self._first = min(self._first, index)
