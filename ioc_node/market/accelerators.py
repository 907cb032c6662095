"""Which hosts have the accelerators of a demand, ever and now: whole thousandths, taken group by group.

A group serves an item alone, and only whole devices unless it is shared. What few groups serve is taken first, then
what is large. Precisions are never mixed. What a shape (the groups of a host) can ever give is decided once per shape.
"""

from collections.abc import Generator
from itertools import chain
from typing import Final

import numpy as np
import numpy.typing as npt

from ioc_node.market.columns import Table
from ioc_node.market.kinds import Interned, Mask, Rows
from ioc_node.market.leases import is_wanted, peaks_of
from ioc_node.market.status_columns import GROUPS_MAX
from ioc_wire.records import Accelerator
from ioc_wire.tasks import AcceleratorDemand

Amounts = npt.NDArray[np.int64]
Groups = tuple[tuple[int, ...], ...]
"""For each item those groups that can serve it."""

DEVICES_MAX: Final = 1 << 30
STEP_SHAPES: Final = 128


class AcceleratorFit:
    """Of one demand. Run `decide` first; shapes must not come or go afterwards."""

    def __init__(self, table: Table, wanted: tuple[AcceleratorDemand, ...]) -> None:
        self._table = table
        self._wanted = wanted
        self._patterns: Interned[Groups] = Interned()
        shapes = len(table.kinds.shapes.values)
        self._pattern_of = np.full(shapes, -1, np.int32)
        self._totals: Amounts = np.zeros((GROUPS_MAX, shapes), np.int64)
        self._most: Amounts = np.zeros(shapes, np.int64)
        """Devices of the largest group that serves the first item."""
        self._ever: Mask = np.zeros(shapes, np.bool_)
        self._only: int | None = None
        """The group that alone can serve the only item, in whatever shape."""

    def decide(self) -> Generator[None, None, None]:
        """Which shapes can serve, in steps."""
        for number, shape in enumerate(self._table.kinds.shapes.values):
            groups = tuple(
                tuple(g for g, there in enumerate(shape or ()) if _serves(there, item))
                for item in self._wanted
            )
            if all(groups):
                assert shape is not None
                self._pattern_of[number] = self._patterns.take(groups)
                self._totals[: len(shape), number] = [min(one.count, DEVICES_MAX) * 1000 for one in shape]
            self._most[number] = max((shape[g].count for g in groups[0]), default=0) if shape else 0
            if number % STEP_SHAPES == STEP_SHAPES - 1:
                yield
        self._ever = self._fits(np.arange(len(self._ever)), None)
        serving = {groups for groups in self._patterns.values if groups is not None}
        if len(serving) == 1 and len(self._wanted) == 1:
            ((only, *others),) = serving.pop()
            self._only = only if not others else None

    def ever(self, kinds: Rows | slice) -> Mask:
        """Which kinds have them at all."""
        return self._ever.take(self._table.kinds["shape"][kinds], mode="clip")

    def now(self, rows: Rows | slice) -> Mask:
        """Which rows have them free, of rows whose kind has them."""
        if self._only is not None:
            free = self._table.free_accelerators[self._only][rows]
            there: Mask = free >= self._wanted[0].count_milli
            return there
        return self._fits(self._table.kinds["shape"][self._table.kinds_of(rows)], rows)

    def amounts(self, kinds: Rows) -> Amounts:
        """How many of the first item's kind there are."""
        found: Amounts = self._most[self._table.kinds["shape"][kinds]]
        return found

    def miss(self, kind: int) -> str:
        item = self._wanted[0]
        there = self._most[self._table.kinds["shape"][kind]]
        words = f"{' or '.join(item.models) or item.type} accelerators"
        if item.memory_mib_min:
            words += f" of {item.memory_mib_min} MiB"
        if item.tflops_min > 0:
            unit = "TOPS" if item.precision == "int8" else "TFLOPS"
            words += f" with {item.tflops_min:.12g} {unit} in {item.precision}"
        return f"has {there} of the {item.count_milli / 1000:.12g} {words}"

    def _fits(self, shapes: npt.NDArray[np.integer], rows: Rows | slice | None) -> Mask:
        """Which of these shapes fit with what is free in `rows`, or with all that they have."""
        patterns = self._pattern_of[shapes]
        fits: Mask = np.zeros(len(shapes), np.bool_)
        for number in np.flatnonzero(np.bincount(patterns[patterns >= 0])).tolist():
            groups = self._patterns.values[number]
            assert groups is not None
            chosen = np.flatnonzero(patterns == number)
            left = self._totals[:, shapes[chosen]]
            for group in set(chain(*groups)) if rows is not None else ():
                free = self._table.free_accelerators[group][rows]
                np.minimum(left[group], free[chosen], out=left[group])
            fits[chosen] = self._take(left, groups)
        return fits

    def _take(self, left: Amounts, groups: Groups) -> Mask:
        served: Mask = np.ones(left.shape[1], np.bool_)
        pairs = zip(self._wanted, groups, strict=True)
        for item, candidates in sorted(pairs, key=lambda pair: (len(pair[1]), -pair[0].count_milli)):
            taken: Mask = np.zeros(left.shape[1], np.bool_)
            for group in candidates:
                can = ~taken & (left[group] >= item.count_milli)
                left[group, can] -= item.count_milli
                taken |= can
            served &= taken
        return served


def _serves(there: Accelerator, item: AcceleratorDemand) -> bool:
    if there.sharing == "exclusive" and item.count_milli % 1000:
        return False
    return is_wanted(there, item, peaks_of(there))
