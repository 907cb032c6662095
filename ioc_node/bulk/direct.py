"""Writing a large file past the page cache: the disk takes the bytes from where they are (`open(2)`, `O_DIRECT`).

A large blob is rarely read again at once, and its way through the page cache costs a copy into pages that must be found
first, which push out what others use. With it the end of a transfer, which waits until all is on the disk, comes no
later: the disk works from the first chunk on.
"""

import errno
import os
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Final

SIZE_MIN: Final = 32 << 20
"""Smaller files are quickly written, and likely to be read soon."""
BLOCK: Final = 4096
"""What memory, offset and length are multiples of: enough for every disk in use."""


class DirectFile:
    """A file that is written past the page cache, beside a descriptor of it that is not."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, pieces: Sequence[bytes | memoryview], offset: int) -> int:
        """Write `pieces` one after the other from `offset`, a multiple of `BLOCK`; how many of them were written. The
        others are to be written the usual way: they, or this disk, are not made for it."""
        whole = list(takewhile(lambda piece: len(piece) % BLOCK == 0, pieces))
        try:
            written = os.pwritev(self._descriptor, whole, offset) if whole else 0
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            written = 0  # memory that does not begin at a block
        return len(whole) if written == sum(map(len, whole)) else 0

    def close(self) -> None:
        """Close it; the file stays."""
        os.close(self._descriptor)


def open_direct(path: Path, size: int) -> DirectFile | None:
    """A file of `size` bytes to be written so; None where that is not worth it, or not possible."""
    direct = getattr(os, "O_DIRECT", 0)
    if not direct or size < SIZE_MIN:
        return None
    try:
        return DirectFile(os.open(path, os.O_WRONLY | os.O_CLOEXEC | direct))
    except OSError:  # a file system without it
        return None
