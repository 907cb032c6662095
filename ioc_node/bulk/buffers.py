"""Memory for chunks on their way to the disk, used again and again.

A buffer begins at a page, as a write that goes past the page cache demands (`direct.py`), and memory that was
used before costs nothing, where fresh pages cost more than copying into them does. A buffer that nobody gives back is
freed like any other memory.
"""

import mmap

from ioc_wire import limits


class ChunkBuffers:
    """Lends buffers of up to a chunk; what is not touched of one costs nothing. Whoever takes them bounds their
    number."""

    def __init__(self) -> None:
        self._spare: list[mmap.mmap] = []

    def take(self, length: int) -> memoryview:
        """The first `length` bytes of a buffer, with anything in them."""
        buffer = self._spare.pop() if self._spare else mmap.mmap(-1, limits.CHUNK_BYTES)
        return memoryview(buffer)[:length]

    def give_back(self, lent: memoryview) -> None:
        """The bytes that `take` gave room for are not looked at any more."""
        assert isinstance(lent.obj, mmap.mmap)
        self._spare.append(lent.obj)
