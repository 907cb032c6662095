"""One pass of a demand over the table: what each condition removes, its nearest miss, and the cheapest of the rest.

Kinds of row are sifted first. Where few rows are of a kind that can serve, these are looked at one by one; else the
table is gone through in blocks, column after column, and a condition that a whole block meets costs nothing. The
nearest misses are looked for in a second pass, where somebody wants to know them.
"""

from collections.abc import Callable, Generator, Iterator
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ioc_node.market.columns import Table
from ioc_node.market.conditions import (
    REASON_CHARS_MAX,
    Amounts,
    Condition,
    kind_conditions,
    row_conditions,
)
from ioc_node.market.expressions import Where
from ioc_node.market.kinds import Mask, Rows
from ioc_node.market.pricing import accelerators_milli, cores_milli
from ioc_wire.market import Cursor, Demand, Removal

BLOCK_ROWS: Final = 1 << 16
"""Rows looked at between two pauses: about a millisecond."""
SPARSE: Final = 8
"""Where fewer than one in so many rows are left, they are looked at one by one."""
_ROUNDED: Final = 1 + 1e-9


class _Miss(NamedTuple):
    """The nearest of those removed so far: the larger amount, then the smaller tie."""

    amount: int
    tie: int
    row: int

    def is_nearer_than(self, other: "_Miss | None") -> bool:
        return other is None or (self.amount, -self.tie) > (other.amount, -other.tie)


class _Removed:
    """What one condition has removed."""

    def __init__(self, condition: Condition, *, of_kind: bool) -> None:
        self.condition = condition
        self.of_kind = of_kind
        self.count = 0
        self.miss: _Miss | None = None


class Scan:
    """Of one demand, at `unix` seconds since 1970; the `count` cheapest rows are kept, of a page those that come
    `after` the one before. No rows may come or go while it lasts; their status may change. Raises `Malformed` for an
    expression that is none.
    """

    def __init__(
        self, demand: Demand, table: Table, *, unix: float, count: int, after: Cursor | None = None
    ) -> None:
        self.considered = table.living
        self._table = table
        self._count = count
        self._after = after
        self._where = Where(demand.constraints.where, table)
        on_kinds = (*kind_conditions(demand, table), *self._where.kind_conditions())
        on_rows = (*row_conditions(demand, table, unix=unix), *self._where.row_conditions())
        self._on_kinds = [_Removed(one, of_kind=True) for one in on_kinds]
        self._on_rows = [_Removed(one, of_kind=False) for one in on_rows]
        self._price = _Price(demand, table)
        self._best: Rows = np.zeros(0, np.int64)
        self._estimates: npt.NDArray[np.float64] = np.zeros(0)

    def run(self) -> Generator[None, None, None]:
        """Go through the table in steps."""
        yield from self._where.prepare()
        kinds = self._sift_kinds()
        serving = self._serving(kinds)
        yield
        for rows in self._parts(kinds):
            if isinstance(rows, slice):
                self._look_at_block(rows, serving)
            else:
                self._look_at_rows(rows, 0)
            yield

    def cheapest(self) -> Rows:
        """The rows with the lowest estimates; among equals those with the smallest hash of their name."""
        return self._best

    @property
    def cursor(self) -> Cursor | None:
        """Where the next page begins; None where fewer rows were left than one holds."""
        if len(self._best) < self._count:
            return None
        dearest = float(self._estimates.max())
        return Cursor(dearest, int(self._table["tie"][self._best[self._estimates == dearest]].max()))

    @property
    def matching(self) -> int:
        """How many rows can serve the demand."""
        return self.considered - sum(each.count for each in (*self._on_kinds, *self._on_rows))

    # -- kinds

    def _sift_kinds(self) -> Rows:
        """The kinds that can serve."""
        kinds = self._table.kinds
        left = np.flatnonzero(kinds.count[: len(kinds)])
        for removed in self._on_kinds:
            if not len(left):
                break
            kept = removed.condition.keeps(left)
            removed.count = int(kinds.count[left[~kept]].sum())
            left = left[kept]
        return left

    def _serving(self, kinds: Rows) -> Mask | None:
        """Which kinds are among these, to be indexed by kind; None where all rows in sight are of one of them."""
        every = self._table.kinds
        if int(every.count[kinds].sum()) == self.considered:
            return None
        serving = np.zeros(len(every), np.bool_)
        serving[kinds] = True
        return serving

    def _parts(self, kinds: Rows) -> Iterator[Rows | slice]:
        """The rows to look at: numbers of those of these kinds if they are few, or else slices of the table."""
        every, rows = self._table.kinds, len(self._table)
        if int(every.count[kinds].sum()) * SPARSE > rows:
            yield from (slice(start, min(start + BLOCK_ROWS, rows)) for start in range(0, rows, BLOCK_ROWS))
            return
        step = max(BLOCK_ROWS // SPARSE, 1)
        ends = np.flatnonzero(np.diff(np.cumsum(every.count[kinds]) // step)) + 1
        for part in np.split(kinds, ends):
            if len(part):
                yield np.concatenate([every.rows[number] for number in part.tolist()]).astype(np.int64)

    # -- rows

    def _look_at_block(self, block: slice, serving: Mask | None) -> None:
        table = self._table
        mask: Mask = table.live[block].copy()
        if serving is not None:
            mask &= serving[table["kind"][block]]
        left = int(np.count_nonzero(mask))
        for number, removed in enumerate(self._on_rows):
            if left * SPARSE <= block.stop - block.start:
                self._look_at_rows(np.flatnonzero(mask) + block.start, number)
                return
            floor = removed.condition.floor
            if floor is not None and table.has_at_least(*floor, block.start, block.stop):
                continue
            mask &= removed.condition.keeps(block)
            still = int(np.count_nonzero(mask))
            removed.count += left - still
            left = still
        if len(self._best) >= self._count:
            self._price.rule_out(mask, block, self._best, float(self._estimates.max()))
        self._keep_cheapest(np.flatnonzero(mask) + block.start)

    def _look_at_rows(self, rows: Rows, first: int) -> None:
        for removed in self._on_rows[first:]:
            if not len(rows):
                return
            kept = rows[removed.condition.keeps(rows)]
            removed.count += len(rows) - len(kept)
            rows = kept
        self._keep_cheapest(rows)

    def _keep_cheapest(self, rows: Rows) -> None:
        estimates = self._price.estimate(rows)
        if self._after is not None:
            ties, edge = self._table["tie"][rows], self._after.estimate
            later = (estimates > edge) | ((estimates == edge) & (ties > self._after.tie))
            rows, estimates = rows[later], estimates[later]
        if len(self._best) >= self._count:
            worth = estimates <= self._estimates.max()
            rows, estimates = rows[worth], estimates[worth]
        rows, estimates = np.concatenate([self._best, rows]), np.concatenate([self._estimates, estimates])
        if len(rows) > self._count:
            edge = np.partition(estimates, self._count - 1)[self._count - 1]
            below, level = np.flatnonzero(estimates < edge), np.flatnonzero(estimates == edge)
            missing = self._count - len(below)
            if len(level) > missing:
                ties = self._table["tie"][rows[level]]
                level = level[np.argpartition(ties, missing - 1)[:missing]]
            chosen = np.concatenate([below, level])
            rows, estimates = rows[chosen], estimates[chosen]
        self._best, self._estimates = rows, estimates

    # -- the others

    def explain(self) -> Generator[None, None, None]:
        """Look, in steps, for the nearest miss of every condition that removed any; after `run`."""
        kinds = self._table.kinds
        left = np.flatnonzero(kinds.count[: len(kinds)])
        for removed in self._on_kinds:
            kept = removed.condition.keeps(left)
            if removed.count:
                self._note_miss(removed, self._table.first_rows(_largest(removed.condition, left[~kept])), 0)
            left = left[kept]
        yield
        serving = self._serving(left)
        for part in self._parts(left):
            rows = self._rows_in(part, serving) if isinstance(part, slice) else part
            for removed in self._on_rows:
                if not len(rows):
                    break
                if not removed.count:
                    continue
                mask = removed.condition.keeps(rows)
                if not mask.all():
                    amounts, gone = removed.condition.amounts, rows[~mask]
                    most = int(amounts(gone).max()) if amounts is not None else 0
                    self._note_miss(removed, _largest(removed.condition, gone), most)
                    rows = rows[mask]
            yield

    def _rows_in(self, block: slice, serving: Mask | None) -> Rows:
        mask = self._table.live[block]
        if serving is not None:
            mask = mask & serving[self._table["kind"][block]]
        rows: Rows = np.flatnonzero(mask) + block.start
        return rows

    def _note_miss(self, removed: _Removed, rows: Rows, amount: int) -> None:
        ties = self._table["tie"][rows]
        at = int(np.argmin(ties))
        miss = _Miss(amount, int(ties[at]), int(rows[at]))
        if miss.is_nearer_than(removed.miss):
            removed.miss = miss

    def removals(self, name_of: Callable[[int], str]) -> tuple[Removal, ...]:
        """What each condition removed, in order; `name_of` gives a row's identifier, for the nearest miss."""
        return tuple(self._told(name_of))

    def _told(self, name_of: Callable[[int], str]) -> Iterator[Removal]:
        for removed in (*self._on_kinds, *self._on_rows):
            if not removed.count:
                continue
            nearest = ""
            if removed.miss is not None:
                row = removed.miss.row
                subject = int(self._table["kind"][row]) if removed.of_kind else row
                nearest = f"{name_of(row)} {removed.condition.words(subject)}"
            yield Removal(removed.condition.name, removed.count, nearest[:REASON_CHARS_MAX])


class _Price:
    """What the demand costs on a row: in floating point, which is enough to choose candidates; their prices are then
    computed exactly.
    """

    def __init__(self, demand: Demand, table: Table) -> None:
        hours = demand.wall_seconds / 3600
        self._table = table
        weights = {
            "core_hour_now": cores_milli(demand) / 1000 * hours,
            "accelerator_hour": accelerators_milli(demand) / 1000 * hours,
            "gib_hour": demand.resources.memory_mib / 1024 * hours,
        }
        self._weights = {column: weight for column, weight in weights.items() if weight}

    def estimate(self, rows: Rows) -> npt.NDArray[np.float64]:
        """Millionths of the currency, of each row."""
        total = self._table["task_price"][rows].astype(np.float64)
        for column, weight in self._weights.items():
            total += self._table[column][rows] * weight
        return total

    def rule_out(self, mask: Mask, block: slice, best: Rows, edge: float) -> None:
        """Clear rows of a block that the largest part of the price alone makes dearer than `edge`."""
        if self._weights:
            shares = {name: self._table[name][best].sum() * weight for name, weight in self._weights.items()}
            column = max(shares, key=lambda name: float(shares[name]))
            mask &= self._table[column][block] <= edge / self._weights[column] * _ROUNDED


def _largest(condition: Condition, rows: Rows) -> Rows:
    """Those that come nearest to passing."""
    if condition.amounts is None:
        return rows
    amounts: Amounts = condition.amounts(rows)
    nearest: Rows = rows[amounts == amounts.max()]
    return nearest
