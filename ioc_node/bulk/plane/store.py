"""A node's blobs as the process that moves them sees them: the disk says which there are, the node what has room."""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from ioc_node.bulk.arrivals import Arrivals
from ioc_node.bulk.partial import INFO_SUFFIX
from ioc_node.bulk.shelf import TOUCHED_SECONDS, BlobShelf
from ioc_wire.bulk import BlobId

TOUCHED_MAX: Final = 4096


class DiskIndex:
    """A `ShelfIndex` that looks at the disk each time: the node adds and removes there without a word."""

    def __init__(self) -> None:
        self.shelf: BlobShelf | None = None
        self.on_touch: Callable[[BlobId], None] = lambda _blob: None
        """Told of a blob's use, once in `TOUCHED_SECONDS`."""
        self._touched: OrderedDict[BlobId, float] = OrderedDict()

    def __contains__(self, blob: BlobId) -> bool:
        return self.size(blob) is not None

    def size(self, blob: BlobId) -> int | None:
        """See `ShelfIndex`."""
        assert self.shelf is not None
        return self.shelf.find_size(blob)

    def touch(self, blob: BlobId, used: float) -> float:
        """See `ShelfIndex`."""
        before = self._touched.get(blob, 0.0)
        if used - before > TOUCHED_SECONDS:
            self._touched.pop(blob, None)  # to the end, in steps that other threads may come between
            self._touched[blob] = used
            while len(self._touched) > TOUCHED_MAX:
                self._touched.popitem(last=False)
            self.on_touch(blob)
        return before

    def remove(self, blob: BlobId) -> bool:
        """See `ShelfIndex`: the node knows whether it is news."""
        self._touched.pop(blob, None)
        return True


class PlaneStore(Arrivals):
    """The folder of a node's `BlobStore`, in another process. `reserve` asks the node for room and raises
    `StorageFull`; what became of it the node sees on the disk (`BlobStore.settle`)."""

    def __init__(self, folder: Path, reserve: Callable[[bytes, int], Awaitable[None]]) -> None:
        self.index = DiskIndex()
        super().__init__(folder, self.index)
        self.index.shelf = self
        self._reserve = reserve

    def check_arrival(self, blob: bytes, size: int) -> None:
        """Told when the blob begins."""

    async def _reserve_arrival(self, blob: bytes, size: int) -> None:
        await self._reserve(blob, size)

    def _is_reserved(self, name: str) -> bool:
        return (self._partial / (name + INFO_SUFFIX)).exists()

    def _reserve_sync(self, name: str, size: int, what: str) -> None:
        """Small blobs: the node reserved the room of all of them before it asked for them."""

    def _release_sync(self, name: str) -> None:
        pass

    def _arrived_sync(self, blob: BlobId, size: int) -> None:
        self.index.touch(blob, time.time())
