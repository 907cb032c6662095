"""A bounded list of numbered events that any number of listeners read at their own pace.

Whoever appends never waits for a listener: one that is too slow misses the oldest events, never the last. Progress
in a row is conflated, so that it does not push log lines out.
"""

from collections import deque
from collections.abc import Iterable
from typing import Final, Generic, TypeVar

import trio

EVENTS_KEPT_MAX: Final = 1000

E = TypeVar("E")


class Feed(Generic[E]):
    """Events with rising numbers from 1 on, perhaps with gaps; the newest `kept_max` are kept."""

    def __init__(self, past: Iterable[tuple[int, E]] = (), *, kept_max: int = EVENTS_KEPT_MAX) -> None:
        self._events: deque[tuple[int, E]] = deque(past, maxlen=kept_max)
        self._last = self._events[-1][0] if self._events else 0
        self._conflated = False
        self._news = trio.lowlevel.ParkingLot()
        self._closed = False

    @property
    def last(self) -> int:
        """Number of the newest event, 0 before there is one."""
        return self._last

    @property
    def closed(self) -> bool:
        return self._closed

    def append(self, event: E, *, conflate: bool = False) -> None:
        """Add the event numbered `last + 1` and wake the listeners. Of several that may `conflate` in a row, only
        the latest is kept."""
        if conflate and self._conflated:
            self._events.pop()
        self._conflated = conflate
        self._last += 1
        self._events.append((self._last, event))
        self._news.unpark_all()

    def close(self) -> None:
        """Nothing follows."""
        self._closed = True
        self._news.unpark_all()

    def read_nowait(self, after: int, limit: int = EVENTS_KEPT_MAX) -> tuple[list[E], int]:
        """Up to `limit` events that follow number `after`, and the number of the last of them."""
        found: list[tuple[int, E]] = []
        for each in reversed(self._events):
            if each[0] <= after:
                break
            found.append(each)
        chosen = found[-limit:]
        return [event for _, event in reversed(chosen)], chosen[0][0] if chosen else after

    async def read(self, after: int, limit: int = EVENTS_KEPT_MAX) -> tuple[list[E], int]:
        """As `read_nowait`, but waits for at least one event; none means that the feed is closed and read."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            found, last = self.read_nowait(after, limit)
            if found or self._closed:
                return found, last
            await self._news.park()
