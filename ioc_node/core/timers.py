"""Calls at later times, in order; cancelled ones cost nothing when their time comes."""

import heapq
import itertools
import math
from collections.abc import Callable, Iterator

from ioc_node.core.session import Outbox

Timed = Callable[[float, Outbox], None]


class Timer:
    """One call to come."""

    __slots__ = ("call",)

    def __init__(self, call: Timed) -> None:
        self.call: Timed | None = call

    def cancel(self) -> None:
        """It will not be called."""
        self.call = None


class Timers:
    """A heap of them."""

    __slots__ = ("_heap", "_numbers")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()

    def add(self, at: float, call: Timed) -> Timer:
        """Call at this time."""
        timer = Timer(call)
        heapq.heappush(self._heap, (at, next(self._numbers), timer))
        return timer

    def deadline(self) -> float:
        """When the next call is due; `math.inf` without one."""
        heap = self._heap
        while heap and heap[0][2].call is None:
            heapq.heappop(heap)
        return heap[0][0] if heap else math.inf

    def due(self, now: float) -> Iterator[Timed]:
        """The calls whose time has come; they may add others."""
        while self.deadline() <= now:
            call = heapq.heappop(self._heap)[2].call
            if call is not None:
                yield call
