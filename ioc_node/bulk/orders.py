"""What one reader has asked for on its connection and may still be sent."""

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

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


class Batch(NamedTuple):
    """Chunks that were read, in the order in which they go out."""

    chunks: Sequence[tuple[int, memoryview]]
    buffers: list[bytearray]
    """What the chunks lie in."""


class Orders:
    """Filled by the frames of a reader, emptied by whoever serves a blob of `count` chunks."""

    def __init__(self, count: int) -> None:
        self.fault: WireError | None = None
        self.hashes_wanted = False
        self._count = count
        self._ranges: deque[ChunkRange] = deque()
        self._small: deque[Sequence[bytes]] = deque()
        self._credit = 0
        self._ready: deque[Batch] = deque()
        self._changed = trio.lowlevel.ParkingLot()

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
        self._changed.unpark_all()

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
        self._changed.unpark_all()

    async def wait(self) -> None:
        """Return when there is something to send, or a fault."""
        while not (self.fault is not None or self.hashes_wanted or self._small or self._ready):
            await self._changed.park()

    async def wait_for_chunks(self) -> None:
        """Return when chunks are to be read: they were asked for, and there is credit for them."""
        while not (self._ranges and self._credit):
            await self._changed.park()

    def put_ready(self, batch: Batch) -> None:
        """Chunks were read, the next that go out."""
        self._ready.append(batch)
        self._changed.unpark_all()

    def next_ready(self) -> Batch | None:
        """The next chunks to send."""
        return self._ready.popleft() if self._ready else None

    def next_small(self) -> Sequence[bytes]:
        """The secrets of the next batch of small blobs; none while there is none."""
        return self._small.popleft() if self._small else _NONE

    def next_indexes(self, count: int) -> list[int]:
        """The next chunks to read, at most `count`; their credit is used."""
        taken: list[int] = []
        while self._ranges and self._credit and len(taken) < count:
            first = self._ranges.popleft()
            step = min(first.count, self._credit, count - len(taken))
            taken.extend(range(first.start, first.start + step))
            self._credit -= step
            if step < first.count:
                self._ranges.appendleft(ChunkRange(first.start + step, first.count - step))
        return taken
