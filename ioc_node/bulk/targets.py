"""Where gathered chunks go: into the store, or straight to whoever reads them."""

from collections.abc import AsyncIterator, Callable, Sequence

import trio

from ioc_node.bulk.buffers import ChunkBuffers
from ioc_node.bulk.gathering import Chunk, Rechecked
from ioc_node.bulk.offload import Landing
from ioc_node.bulk.partial import RECHECK_CHUNKS
from ioc_node.bulk.schedule import Schedule
from ioc_node.errors import UsageError
from ioc_wire import limits
from ioc_wire.bulk import BlobInfo, check_blob_info, check_chunk, chunk_count
from ioc_wire.errors import BlobCorrupt

OnProgress = Callable[[int, int], None]
"""Told `(bytes here, bytes of the blob)` after every chunk; must not raise."""


class DiskTarget:
    """A blob on its way into the store."""

    def __init__(self, landing: Landing, on_progress: OnProgress | None) -> None:
        self._landing = landing
        self._on_progress = on_progress
        self._buffers = ChunkBuffers()

    async def resume(self) -> BlobInfo | None:
        """What an earlier attempt left says what the blob is."""
        partial = await self._landing.resume_doubtful()
        return partial.info if partial is not None else None

    def check_size(self, size: int) -> None:
        """Raises `StorageFull` before anything was asked for."""
        self._landing.store.check_arrival(self._landing.ticket.blob, size)

    async def begin(self, info: BlobInfo) -> Schedule:
        """Reserve the room; raises `BlobCorrupt` for a wrong hash list, `StorageFull`."""
        partial = await self._landing.begin_doubtful(info)
        return Schedule(len(info.chunks), partial.absent_runs(), doubtful=partial.doubtful_runs())

    async def recheck(self, told: Rechecked) -> None:
        """Verify again what an earlier attempt left, while what it lacks arrives."""
        partial = self._landing.partial
        assert partial is not None
        for run in list(partial.doubtful_runs()):
            for at in range(0, len(run), RECHECK_CHUNKS):
                indexes = run[at : at + RECHECK_CHUNKS]
                told(indexes, await trio.to_thread.run_sync(partial.recheck_some_sync, indexes))
                if self._on_progress is not None:
                    self._on_progress(partial.bytes_present, partial.info.size)

    def room(self, length: int) -> memoryview:
        """A buffer that goes around."""
        return self._buffers.take(length)

    async def keep(self, chunks: Sequence[Chunk]) -> list[int]:
        """Verify and write; the indexes of those that were no good."""
        partial = self._landing.partial
        assert partial is not None
        here = partial.bytes_present
        spoiled = await trio.to_thread.run_sync(partial.keep_chunks_sync, chunks)
        for index, data in chunks:
            if index not in spoiled and self._on_progress is not None:
                here += len(data)
                self._on_progress(here, partial.info.size)
            self._buffers.give_back(data)
        return spoiled


class StreamTarget:
    """Bytes `start` … `stop - 1` of a blob, for one consumer that takes them in order.

    At most `ahead` chunks are here that were not taken: nothing further is asked for until they are.
    """

    def __init__(self, blob: bytes, start: int, stop: int | None, *, ahead: int) -> None:
        self.info: BlobInfo | None = None
        self.wake: Callable[[], None] = lambda: None
        """Called when more may be asked for."""
        self._blob = blob
        self._start = start
        self._stop = stop
        self._ahead = ahead
        self._ready: dict[int, memoryview] = {}
        self._schedule: Schedule | None = None
        self._changed = trio.lowlevel.ParkingLot()
        self._fault: Exception | None = None

    async def resume(self) -> BlobInfo | None:
        """Nothing is known yet."""
        return self.info

    def check_size(self, size: int) -> None:
        """Raises `UsageError` for bytes beyond the end."""
        check_range(self._start, self._stop, size)

    async def begin(self, info: BlobInfo) -> Schedule:
        """Raises `BlobCorrupt` for a wrong hash list."""
        if info.blob != self._blob:
            raise BlobCorrupt("the holder described another blob than the ticket's")
        self.info = await trio.to_thread.run_sync(check_blob_info, info)
        indexes = self.indexes
        self._schedule = Schedule(len(info.chunks), (indexes,), stop=indexes.start + self._ahead)
        self._changed.unpark_all()
        return self._schedule

    @property
    def indexes(self) -> range:
        """The chunks that the bytes are in."""
        assert self.info is not None
        start, stop = check_range(self._start, self._stop, self.info.size)
        return range(start // limits.CHUNK_BYTES, chunk_count(stop)) if start < stop else range(0)

    async def recheck(self, _told: Rechecked) -> None:
        """Nothing was here before."""

    def room(self, length: int) -> memoryview:
        """Memory that the consumer may keep."""
        return memoryview(bytearray(length))

    async def keep(self, chunks: Sequence[Chunk]) -> list[int]:
        """Verify; what is good waits for its turn."""
        assert self.info is not None
        spoiled = await trio.to_thread.run_sync(_spoiled, self.info, chunks)
        self._ready.update(chunk for chunk in chunks if chunk[0] not in spoiled)
        self._changed.unpark_all()
        return spoiled

    def fail(self, fault: Exception) -> None:
        """No more will come."""
        self._fault = fault
        self._changed.unpark_all()

    async def size(self) -> int:
        """Bytes of the whole blob, once they are known. Raises the fault of the gathering."""
        while self.info is None:
            if self._fault is not None:
                raise self._fault
            await self._changed.park()
        return self.info.size

    async def pieces(self) -> AsyncIterator[memoryview]:
        """The bytes in order, verified, a chunk or the part of one at a time. Raises the fault of the gathering."""
        start, stop = check_range(self._start, self._stop, await self.size())
        assert self._schedule is not None
        for index in self.indexes:
            while (data := self._ready.pop(index, None)) is None:
                if self._fault is not None:
                    raise self._fault
                await self._changed.park()
            self._schedule.advance(index + 1 + self._ahead)
            self.wake()
            yield cut(data, index, start, stop)


def cut(data: bytes | memoryview, index: int, start: int, stop: int) -> memoryview:
    """What of chunk `index` lies within bytes `start` … `stop - 1` of its blob."""
    begin = index * limits.CHUNK_BYTES
    return memoryview(data)[max(0, start - begin) : max(0, stop - begin)]


def check_range(start: int, stop: int | None, size: int) -> tuple[int, int]:
    """First byte and the one after the last, of a blob of `size` bytes; raises `UsageError` beyond its end."""
    end = size if stop is None else stop
    if not 0 <= start <= end <= size:
        span = f"bytes from {start} on" if stop is None else f"bytes {start} to {end}"
        raise UsageError(f"{span} are not within the blob's {size}")
    return start, end


def _spoiled(info: BlobInfo, chunks: Sequence[Chunk]) -> list[int]:
    found = []
    for index, data in chunks:
        try:
            check_chunk(info, index, data)
        except BlobCorrupt:
            found.append(index)
    return found
