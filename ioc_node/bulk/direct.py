"""Writing a large file past the page cache: the disk takes the bytes from where they are (`open(2)`, `O_DIRECT`).

A large blob is rarely read again at once, and its way through the page cache costs a copy into pages that must be found
first, which push out what others use. With it the end of a transfer, which waits until all is on the disk, comes no
later: the disk works from the first chunk on.
"""

import errno
import os
from collections.abc import Sequence
from itertools import takewhile
from typing import Final

from ioc_node.bulk.disk import write_all_at

SIZE_MIN: Final = 32 << 20
"""Smaller files are quickly written, and likely to be read soon."""
BLOCK: Final = 4096
"""What memory, offset and length are multiples of: enough for every disk in use."""


class DirectWriter:
    """Writes a file of `size` bytes, open as `descriptor`, past the page cache where that is worth it and possible: the
    usual way is for small files, file systems without it, and pieces that are not whole blocks."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self._direct = _open_direct(descriptor) if size >= SIZE_MIN else -1

    def write(self, pieces: Sequence[bytes | memoryview], offset: int) -> None:
        """Write all pieces, one after the other, from `offset` on, a multiple of `BLOCK`."""
        written = self._write_direct(pieces, offset) if self._direct >= 0 else 0
        if rest := pieces[written:]:
            write_all_at(self._descriptor, rest, offset + sum(map(len, pieces[:written])))

    def _write_direct(self, pieces: Sequence[bytes | memoryview], offset: int) -> int:
        """How many of the pieces were written."""
        whole = list(takewhile(lambda piece: len(piece) % BLOCK == 0, pieces))
        try:
            written = os.pwritev(self._direct, whole, offset) if whole else 0
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return 0  # memory that does not begin at a block
        return len(whole) if written == sum(map(len, whole)) else 0

    def close(self) -> None:
        """Close what was opened for it: not `descriptor`."""
        if self._direct >= 0:
            os.close(self._direct)
            self._direct = -1


def _open_direct(descriptor: int) -> int:
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError:  # a file system without it
        return -1
