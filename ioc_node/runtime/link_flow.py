"""Bounded flow on a link: the queue towards the peer, the two ends of a stream, and the bytes a peer may occupy.

Nothing here blocks the task that reads from the peer. What a peer may send is limited by the credit given to it;
what we send waits in one short queue that one task empties.
"""

from collections import deque
from typing import Final

import trio

from ioc_wire import limits
from ioc_wire.errors import Busy, Malformed

QUEUE_FRAMES_MAX: Final = 64
QUEUE_BYTES_MAX: Final = 1 << 20
FORCED_FRAMES_MAX: Final = 4 * limits.LINK_STREAMS_MAX
"""Frames that may wait beyond the queue's bound: refusals, cancellations and credit, which nobody waits to send."""


class FrameQueue:
    """Frames on their way out. Full, it makes senders wait; the writer takes one at a time."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._room = trio.lowlevel.ParkingLot()
        self._filled = trio.lowlevel.ParkingLot()
        self.closed = False

    @property
    def full(self) -> bool:
        return len(self._frames) >= QUEUE_FRAMES_MAX or self._bytes >= QUEUE_BYTES_MAX

    async def wait_room(self) -> None:
        """Returns when a frame may be appended, if that is done at once."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while self.full and not self.closed:
            await self._room.park()

    async def wait_drained(self) -> None:
        """As `wait_room`, for one who may append much later or never: the next in line need not wait for that."""
        await self.wait_room()
        if not self.full:
            self._room.unpark()

    def append(self, frame: bytes) -> bool:
        """Queue a frame, also beyond the bound; False if even that much is waiting already."""
        if len(self._frames) >= FORCED_FRAMES_MAX:
            return False
        self._frames.append(frame)
        self._bytes += len(frame)
        self._filled.unpark()
        if not self.full:
            self._room.unpark()
        return True

    async def take(self) -> bytes | None:
        """The next frame, or None when the queue was closed and is empty."""
        while not self._frames:
            if self.closed:
                return None
            await self._filled.park()
        frame = self._frames.popleft()
        self._bytes -= len(frame)
        if not self.full:
            self._room.unpark()
        return frame

    def close(self) -> None:
        """Nothing more will be appended by anyone who waits for room."""
        self.closed = True
        self._filled.unpark_all()
        self._room.unpark_all()


class ByteBudget:
    """How many bytes something may occupy; a budget can lie inside a larger one."""

    def __init__(self, bytes_max: int, parent: "ByteBudget | None" = None) -> None:
        self._bytes_max = bytes_max
        self._parent = parent
        self.bytes_held = 0

    def acquire(self, size: int) -> bool:
        """Take `size` bytes if they fit here and in the larger budget."""
        if self.bytes_held + size > self._bytes_max:
            return False
        if self._parent is not None and not self._parent.acquire(size):
            return False
        self.bytes_held += size
        return True

    def release(self, size: int) -> None:
        self.bytes_held -= size
        if self._parent is not None:
            self._parent.release(size)

    def detach(self) -> None:
        """Give everything back to the larger budget, and leave it."""
        if self._parent is not None:
            self._parent.release(self.bytes_held)
            self._parent = None


class OpenedStream:
    """A stream that we opened: items arrive here and wait until they are read."""

    def __init__(self, number: int, credit: int, budget: ByteBudget) -> None:
        self.number = number
        self._window = credit
        self._credit = credit
        self._budget = budget
        self._arrived: deque[bytes] = deque()
        self._changed = trio.lowlevel.ParkingLot()
        self._failure: Exception | None = None
        self.ended = False

    def deliver(self, body: bytes) -> None:
        """An item came. Raises `Malformed` if it was not credited, `Busy` if its bytes find no room."""
        if self._credit == 0:
            raise Malformed(f"item on stream {self.number} beyond its credit")
        if not self._budget.acquire(len(body)):
            raise Busy("answers are not read fast enough")
        self._credit -= 1
        self._arrived.append(body)
        self._changed.unpark()

    def end(self, failure: Exception | None = None, body: bytes = b"") -> None:
        """The answer is complete, or failed; items that arrived before can still be read."""
        if self.ended:
            return
        self.ended = True
        self._failure = failure
        if body and self._budget.acquire(len(body)):
            self._arrived.append(body)
        elif body:
            self._failure = Busy("answers are not read fast enough")
        self._changed.unpark_all()

    async def next_body(self) -> bytes | None:
        """The next item, or None after the last; raises the failure that ended the stream."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._arrived:
            if self.ended:
                if self._failure is not None:
                    raise self._failure
                return None
            await self._changed.park()
        body = self._arrived.popleft()
        self._budget.release(len(body))
        return body

    def credit_due(self) -> int:
        """Items to credit now: half a window at a time, so that credit costs few frames."""
        used = self._window - self._credit - len(self._arrived)
        if self.ended or used * 2 < self._window:
            return 0
        self._credit += used
        return used

    def discard(self) -> None:
        """Free what was never read."""
        for body in self._arrived:
            self._budget.release(len(body))
        self._arrived.clear()


class ServedStream:
    """A stream that the peer opened: our answer, which may run ahead by the credit the peer gave."""

    def __init__(self, number: int, credit: int, size: int) -> None:
        self.number = number
        self.size = size
        self.scope = trio.CancelScope()
        self._credit = credit
        self._credited = trio.lowlevel.ParkingLot()

    def grant(self, count: int) -> None:
        """More credit came; raises `Malformed` above the protocol's bound."""
        if self._credit + count > limits.LINK_STREAM_CREDIT_MAX:
            raise Malformed(f"credit of stream {self.number} above {limits.LINK_STREAM_CREDIT_MAX}")
        self._credit += count
        self._credited.unpark(count=count)

    async def take_credit(self) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        while self._credit == 0:
            await self._credited.park()
        self._credit -= 1
