"""What one reader has asked for on its connection and may still be sent."""

from collections import deque
from collections.abc import Sequence
from typing import Final

import trio

from ioc_wire.bulk import (
    CREDIT_CHUNKS_MAX,
    RANGES_WAITING_MAX,
    SMALL_BATCHES_WAITING_MAX,
    ChunkRange,
    Credit,
    Want,
    WantHashes,
    WantSmall,
)
from ioc_wire.errors import Malformed, TooLarge, WireError

_NONE: Final[Sequence[bytes]] = ()


class Orders:
    """Filled by the frames of a reader, emptied by whoever serves a blob of `count` chunks."""

    def __init__(self, count: int) -> None:
        self.fault: WireError | None = None
        self.hashes_wanted = False
        self._count = count
        self._ranges: deque[ChunkRange] = deque()
        self._small: deque[Sequence[bytes]] = deque()
        self._credit = 0
        self._changed = trio.Event()

    def take(self, message: object) -> None:
        """One frame from the reader. Raises `Malformed` or `TooLarge`."""
        match message:
            case WantHashes():
                self.hashes_wanted = True
            case Want():
                self._take_want(message)
            case Credit():
                self._add_credit(message.chunks)
            case WantSmall():
                if len(self._small) >= SMALL_BATCHES_WAITING_MAX:
                    raise TooLarge(f"more than {SMALL_BATCHES_WAITING_MAX} batches of small blobs at a time")
                self._small.append(message.secrets)
            case _:
                raise Malformed(f"{type(message).__name__} in the middle of a transfer")
        self._changed.set()

    def _take_want(self, want: Want) -> None:
        if any(each.start + each.count > self._count for each in want.ranges):
            raise Malformed(f"chunks beyond the {self._count} of the blob")
        if len(self._ranges) + len(want.ranges) > RANGES_WAITING_MAX:
            raise TooLarge(f"more than {RANGES_WAITING_MAX} ranges at a time")
        self._add_credit(want.credit)
        self._ranges.extend(want.ranges)

    def _add_credit(self, chunks: int) -> None:
        if self._credit + chunks > CREDIT_CHUNKS_MAX:
            raise TooLarge(f"credit for more than {CREDIT_CHUNKS_MAX} chunks")
        self._credit += chunks

    def fail(self, fault: WireError) -> None:
        """Nothing more is to be sent; the first fault stands."""
        self.fault = self.fault or fault
        self._changed.set()

    async def wait(self) -> None:
        """Return when there is something to send, and credit for it, or a fault."""
        while not (
            self.fault is not None or self.hashes_wanted or self._small or (self._ranges and self._credit)
        ):
            self._changed = trio.Event()
            await self._changed.wait()

    def next_small(self) -> Sequence[bytes]:
        """The secrets of the next batch of small blobs; none while there is none."""
        return self._small.popleft() if self._small else _NONE

    def next_indexes(self, count: int) -> list[int]:
        """The next chunks to send, at most `count`; their credit is used."""
        taken: list[int] = []
        while self._ranges and self._credit and len(taken) < count:
            first = self._ranges.popleft()
            step = min(first.count, self._credit, count - len(taken))
            taken.extend(range(first.start, first.start + step))
            self._credit -= step
            if step < first.count:
                self._ranges.appendleft(ChunkRange(first.start + step, first.count - step))
        return taken
