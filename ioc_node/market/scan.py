"""One pass of a demand over the table: what each condition removes, its nearest miss, and the cheapest of the rest.

Kinds of row are sifted first. Where few kinds can serve, their rows are looked at one by one; else the extents in which
they lie are gone through in blocks, column after column, and a condition that a whole block meets costs nothing. The
nearest misses are looked for in a second pass, where somebody wants to know them.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ioc_node.market.accelerators import Amounts
from ioc_node.market.columns import QUANTITY_MAX, Table
from ioc_node.market.conditions import REASON_CHARS_MAX, Condition, conditions
from ioc_node.market.expressions import Where
from ioc_node.market.kinds import Mask, Rows
from ioc_node.market.owners import NamedOwners
from ioc_node.market.pricing import accelerators_milli, cores_milli
from ioc_wire.market import Cursor, Demand, Removal

BLOCK_ROWS: Final = 1 << 17
"""Rows looked at between two pauses: about a millisecond."""
SPARSE: Final = 8
"""Where fewer than one in so many rows are left, they are looked at one by one."""
FEW_KINDS: Final = 256
SAMPLE_ROWS: Final = 2048
"""The prices of so many are worked out before dearer rows are ruled out by a part of their price."""
_ROUNDED: Final = 1 + 1e-9


class _Miss(NamedTuple):
    """The nearest of those removed so far: the larger amount, then the smaller tie."""

    amount: int
    tie: int
    row: int

    def is_nearer_than(self, other: "_Miss | None") -> bool:
        return other is None or (self.amount, -self.tie) > (other.amount, -other.tie)


class _Block(NamedTuple):
    """Whole extents of the table, and which kinds in them can serve, by kind; None: all of them."""

    rows: slice
    serving: Mask | None


class _Removed:
    """What one condition has removed."""

    def __init__(self, condition: Condition, *, of_kind: bool) -> None:
        self.condition = condition
        self.of_kind = of_kind
        self.count = 0
        self.miss: _Miss | None = None


class Scan:
    """Of one demand, at `unix` seconds since 1970; the `count` cheapest rows are kept, of a page those that come
    `after` the one before. Where `providers` are named, only rows of theirs; `nearest_first` puts the rows of those
    named first before the cheaper ones. With a `count` of 0 only `examples` are kept. No rows may come or go while it
    lasts; their status may change. Raises `Malformed` for an expression that is none.
    """

    def __init__(
        self,
        demand: Demand,
        table: Table,
        *,
        unix: float,
        count: int,
        after: Cursor | None = None,
        providers: Sequence[bytes] | None = None,
        nearest_first: bool = False,
    ) -> None:
        self.considered = table.living
        self._table = table
        self._count = count
        self._after = after
        self._demand = demand
        self._unix = unix
        self._where = Where(demand.constraints.where, table)
        self._on_kinds: list[_Removed] = []
        self._on_rows: list[_Removed] = []
        self._named = NamedOwners(table, providers) if providers is not None else None
        self._order: _Price | NamedOwners = _Price(demand, table)
        if nearest_first and self._named is not None:
            self._order = self._named
        self._examples = np.full(0 if count else len(table.owners.values), -1, np.int64)
        self._best: Rows = np.zeros(0, np.int64)
        self._estimates: npt.NDArray[np.float64] = np.zeros(0)

    def run(self) -> Generator[None, None, None]:
        """Go through the table in steps."""
        on_kinds, on_rows = yield from conditions(self._demand, self._table, unix=self._unix)
        yield from self._where.prepare()
        on_kinds += self._where.kind_conditions()
        on_rows += self._where.row_conditions()
        if self._named is not None:
            on_rows.append(self._named.condition())
        self._on_kinds = [_Removed(one, of_kind=True) for one in on_kinds]
        self._on_rows = [_Removed(one, of_kind=False) for one in on_rows]
        for part in self._parts(self._sift_kinds()):
            yield
            if isinstance(part, _Block):
                self._look_at_block(part)
            else:
                self._look_at_rows(part, 0)

    def cheapest(self) -> Rows:
        """The rows with the lowest estimates; among equals those with the smallest hash of their name."""
        return self._best

    def examples(self) -> Rows:
        """One row of each provider that can serve the demand."""
        found: Rows = self._examples[self._examples >= 0]
        return found

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
        every = slice(0, len(kinds))
        count = kinds.count[every]
        left: Mask = count > 0
        for removed in self._on_kinds:
            gone = left & ~removed.condition.keeps(every)
            if gone.any():
                removed.count = int(count[gone].sum())
                left ^= gone
        return np.flatnonzero(left)

    def _parts(self, kinds: Rows) -> Iterator["Rows | _Block"]:
        """The rows to look at: numbers of those of these kinds if they are few, or else blocks of the table."""
        every, table = self._table.kinds, self._table
        if len(kinds) <= FEW_KINDS and int(every.count[kinds].sum()) * SPARSE <= len(table):
            yield from self._rows_of(kinds)
            return
        serving = np.zeros(len(every), np.bool_)
        serving[kinds] = True
        shapes = np.zeros(len(every.shapes.values), np.bool_)
        shapes[every["shape"][kinds]] = True
        others = (every.count[: len(every)] > 0) & ~serving
        mixed = bool(shapes[every["shape"][: len(every)][others]].any())
        for rows, pure in table.extents.runs(np.flatnonzero(shapes).tolist(), BLOCK_ROWS):
            yield _Block(rows, serving if mixed or not pure else None)

    def _rows_of(self, kinds: Rows) -> Iterator[Rows]:
        every, step = self._table.kinds, max(BLOCK_ROWS // SPARSE, 1)
        ends = np.flatnonzero(np.diff(np.cumsum(every.count[kinds]) // step)) + 1
        for part in np.split(kinds, ends):
            if len(part):
                yield np.concatenate([every.rows[number] for number in part.tolist()]).astype(np.int64)

    # -- rows

    def _rows_in(self, block: "_Block") -> Mask:
        """Those in sight that are of a kind that can serve."""
        table = self._table
        mask: Mask = table.live[block.rows].copy()
        if block.serving is not None:
            mask &= block.serving.take(table["kind"][block.rows], mode="clip")
        return mask

    def _look_at_block(self, block: "_Block") -> None:
        table, rows = self._table, block.rows
        mask = self._rows_in(block)
        left = int(np.count_nonzero(mask))
        for number, removed in enumerate(self._on_rows):
            if left * SPARSE <= len(mask):
                self._look_at_rows(np.flatnonzero(mask) + rows.start, number)
                return
            floor = removed.condition.floor
            if floor is not None and table.has_at_least(*floor, rows):
                continue
            mask &= removed.condition.keeps(rows)
            still = int(np.count_nonzero(mask))
            removed.count += left - still
            left = still
        if len(self._best) < self._count:
            sample = np.flatnonzero(mask)[:SAMPLE_ROWS]
            self._keep_cheapest(sample + rows.start)
            mask[sample] = False
        if 0 < self._count <= len(self._best):
            self._order.rule_out(mask, rows, self._best, float(self._estimates.max()))
        self._keep_cheapest(np.flatnonzero(mask) + rows.start)

    def _look_at_rows(self, rows: Rows, first: int) -> None:
        for removed in self._on_rows[first:]:
            if not len(rows):
                return
            kept = rows[removed.condition.keeps(rows)]
            removed.count += len(rows) - len(kept)
            rows = kept
        self._keep_cheapest(rows)

    def _keep_cheapest(self, rows: Rows) -> None:
        if not len(rows):
            return
        if not self._count:
            self._examples[self._table["owner"][rows]] = rows
            return
        estimates = self._order.estimate(rows)
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
        for part in self._parts(left):
            yield
            rows = np.flatnonzero(self._rows_in(part)) + part.rows.start if isinstance(part, _Block) else part
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
        self._largest: str | None = None

    def estimate(self, rows: Rows) -> npt.NDArray[np.float64]:
        """Millionths of the currency, of each row."""
        total = self._table["task_price"][rows].astype(np.float64)
        for column, weight in self._weights.items():
            total += self._table[column][rows] * weight
        return total

    def rule_out(self, mask: Mask, block: slice, best: Rows, edge: float) -> None:
        """Clear rows of a block that one part of the price alone, the largest in `best`, makes dearer than `edge`."""
        if not self._weights:
            return
        if self._largest is None:
            parts = {name: self._table[name][best].sum() * weight for name, weight in self._weights.items()}
            self._largest = max(parts, key=lambda name: float(parts[name]))
        most = min(edge / self._weights[self._largest] * _ROUNDED, QUANTITY_MAX)
        mask &= self._table[self._largest][block] <= int(most)


def _largest(condition: Condition, rows: Rows) -> Rows:
    """Those that come nearest to passing."""
    if condition.amounts is None:
        return rows
    amounts: Amounts = condition.amounts(rows)
    nearest: Rows = rows[amounts == amounts.max()]
    return nearest
