"""Which rows of the query's table are for which hosts: runs of rows, each for hosts that are alike in one respect.

Rows come in extents of EXTENT_ROWS. All hosts of one extent have one key (the shape of their accelerators), so that a
demand that only few keys can serve looks at their extents and at no others, and what it looks at lies together: a key
is given as many extents in a row as it has already. The first KEYS_MAX keys have extents of their own; hosts of any
others share extents, under the key MIXED.
"""

from array import array
from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np

EXTENT_ROWS: Final = 1 << 12
KEYS_MAX: Final = 128
"""An extent that is nearly empty costs memory: so many keys at most have some."""
RESERVED_MIN: Final = 4
RESERVED_MAX: Final = 32
"""Extents that a key is given in a row. Until there are rows in them they cost address space only."""
MIXED: Final = -1
_VACANT: Final = -2


class Extents:
    """Rows that are free, by key."""

    def __init__(self, extent_rows: int = EXTENT_ROWS) -> None:
        self.extent_rows = extent_rows
        self.keys: list[int] = []
        """By number of the extent."""
        self._free: list[array[int]] = []
        """Rows by number of the extent."""
        self._open: dict[int, list[int]] = {MIXED: []}
        """Extents with free rows, by key; of a key with extents of its own, whether or not any has room."""
        self._reserved: dict[int, list[int]] = {}
        """Extents that nothing is in yet, by key."""
        self._vacant: list[int] = []
        """Extents that nothing is in any more."""
        self._counts: dict[int, int] = {}
        """Extents by key."""
        self._begun: list[slice] = []

    @property
    def rows(self) -> int:
        """How many there are, free or not."""
        return len(self.keys) * self.extent_rows

    def take(self, key: int) -> int:
        """A free row for a host with this key."""
        if key not in self._open:
            if len(self._open) > KEYS_MAX:
                key = MIXED
            else:
                self._open[key] = []
        extents = self._open[key]
        if not extents:
            extents.append(self._begin(key))
        row = self._free[extents[-1]].pop()
        if not self._free[extents[-1]]:
            extents.pop()
        return row

    def give_back(self, rows: Iterable[int]) -> None:
        """These rows are free again."""
        for row in rows:
            extent = row // self.extent_rows
            free = self._free[extent]
            free.append(row)
            if len(free) == 1:
                self._open[self.keys[extent]].append(extent)
            elif len(free) == self.extent_rows:
                self._end(extent)

    def take_begun(self) -> list[slice]:
        """The rows of extents that were begun since the last call."""
        begun, self._begun = self._begun, []
        return begun

    def runs(self, keys: Iterable[int], rows_max: int) -> Iterator[tuple[slice, bool]]:
        """The rows of the extents of these keys, and of those that are shared, in order, at most so many at once; and
        whether they are of these keys only.
        """
        wanted = {*keys, MIXED}
        start = 0
        while start < len(self.keys):
            if self.keys[start] not in wanted:
                start += 1
                continue
            pure, end = self.keys[start] != MIXED, start + 1
            last = min(len(self.keys), start + max(1, rows_max // self.extent_rows))
            while end < last and self.keys[end] in wanted and (self.keys[end] != MIXED) == pure:
                end += 1
            yield slice(start * self.extent_rows, end * self.extent_rows), pure
            start = end

    def _begin(self, key: int) -> int:
        reserved = self._reserved.setdefault(key, [])
        if reserved:
            extent = reserved.pop()
        elif self._vacant:
            extent = self._vacant.pop()
        else:
            extent = len(self.keys)
            count = min(max(self._counts.get(key, 0), RESERVED_MIN), RESERVED_MAX)
            self.keys += [_VACANT] * count
            self._free += [array("i")] * count
            reserved.extend(range(extent + count - 1, extent, -1))
        self._counts[key] = self._counts.get(key, 0) + 1
        self.keys[extent] = key
        first = extent * self.extent_rows
        rows = np.arange(first + self.extent_rows - 1, first - 1, -1, dtype=np.int32)
        self._free[extent] = array("i", rows.tobytes())
        self._begun.append(slice(first, first + self.extent_rows))
        return extent

    def _end(self, extent: int) -> None:
        key = self.keys[extent]
        self._open[key].remove(extent)
        self.keys[extent] = _VACANT
        self._free[extent] = array("i")
        self._vacant.append(extent)
        self._counts[key] -= 1
        if key != MIXED and not self._counts[key]:
            del self._open[key], self._counts[key]
            self._vacant += self._reserved.pop(key)
