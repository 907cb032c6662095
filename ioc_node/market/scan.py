"""One pass of a demand over the table: what each condition removes, its nearest miss, and the cheapest of the rest.

What stands (`ioc_node.market.plans`) is looked up; what hosts can give now is asked of the rows that it leaves, column
after column. The nearest misses are looked for in a second pass, where somebody wants to know them.
"""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ioc_node.market.accelerators import Amounts
from ioc_node.market.columns import QUANTITY_MAX, Table
from ioc_node.market.conditions import REASON_CHARS_MAX, Condition, current
from ioc_node.market.kinds import Mask, Rows
from ioc_node.market.owners import NamedOwners
from ioc_node.market.plans import SPARSE, Block, Many, Part, Plans, pieces, rows_in
from ioc_node.market.pricing import ROUNDED, accelerators_milli, cores_milli
from ioc_wire.market import Cursor, Demand, Removal

SAMPLE_ROWS: Final = 2048
"""The prices of so many are worked out before dearer rows are ruled out by a part of their price."""
_NO_ROWS: Final[Rows] = np.zeros(0, np.int64)
_NO_ESTIMATES: Final[npt.NDArray[np.float64]] = np.zeros(0)


class _Miss(NamedTuple):
    """The nearest of those removed so far: the larger amount, then the smaller tie."""

    amount: int
    tie: int
    row: int

    def is_nearer_than(self, other: "_Miss | None") -> bool:
        return other is None or (self.amount, -self.tie) > (other.amount, -other.tie)


class _Removed:
    """What one condition has removed."""

    def __init__(self, condition: Condition, count: int = 0, *, of_kind: bool = False) -> None:
        self.condition = condition
        self.of_kind = of_kind
        self.count = count
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
        plans: Plans,
        *,
        unix: float,
        count: int,
        after: Cursor | None = None,
        providers: Sequence[bytes] | None = None,
        nearest_first: bool = False,
    ) -> None:
        self.considered = table.living
        self._table = table
        self._plans = plans
        self._count = count
        self._after = after
        self._demand = demand
        self._unix = unix
        self._on_kinds: list[_Removed] = []
        self._on_rows: list[_Removed] = []
        """What stands, then what is asked for now."""
        self._named = NamedOwners(table, providers) if providers is not None else None
        self._order: _Price | NamedOwners = _Price(demand, table)
        if nearest_first and self._named is not None:
            self._order = self._named
        self._examples = _NO_ROWS if count else np.full(len(table.owners.values), -1, np.int64)
        self._best, self._estimates = _NO_ROWS, _NO_ESTIMATES

    def run(self) -> Generator[None, None, None]:
        """Go through the table in steps."""
        plan = yield from self._plans.taking(self._demand)
        now = current(self._demand, self._table, plan.fit, unix=self._unix)
        now += yield from plan.where.row_conditions()
        if self._named is not None:
            now.append(self._named.condition())
        self._on_kinds = [_Removed(*one, of_kind=True) for one in plan.on_kinds]
        asked = list(map(_Removed, now))
        self._on_rows = [*(_Removed(*one) for one in plan.on_rows), *asked]
        for part in plan.parts:
            yield
            self._look_at(part, [one for one in asked if not self._is_met(one.condition, part)])

    def cheapest(self) -> tuple[Rows, list[float]]:
        """The rows with the lowest estimates, and these, in order; among equals those with the smallest hash of their
        name."""
        order = np.argsort(self._estimates, kind="stable")
        return self._best[order], self._estimates[order].tolist()

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

    # -- rows

    def _is_met(self, condition: Condition, part: Part) -> bool:
        """Whether all rows of a part pass, as far as is known without a look at them."""
        return condition.floor is not None and self._table.has_at_least(*condition.floor, part.extents)

    def _look_at(self, part: Part, asked: Sequence[_Removed]) -> None:
        if isinstance(part, Many):
            self._look_at_block(part, asked)
        else:
            self._look_at_rows(part.rows, asked)

    def _look_at_block(self, block: Many, asked: Sequence[_Removed]) -> None:
        mask, rows, left = block.mask(), block.rows, block.size
        for number, removed in enumerate(asked):
            if left * SPARSE <= len(mask):
                self._look_at_rows(np.flatnonzero(mask) + rows.start, asked[number:])
                return
            mask &= removed.condition.keeps(rows)
            before, left = left, int(np.count_nonzero(mask))
            removed.count += before - left
        if len(self._best) < self._count:
            sample = np.flatnonzero(mask)[:SAMPLE_ROWS]
            self._keep_cheapest(sample + rows.start)
            mask[sample] = False
        if 0 < self._count <= len(self._best):
            self._order.rule_out(mask, block, self._best, float(self._estimates.max()))
        self._keep_cheapest(np.flatnonzero(mask) + rows.start)

    def _look_at_rows(self, rows: Rows, asked: Sequence[_Removed]) -> None:
        for removed in asked:
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
        for piece in pieces(self._table, left):
            yield
            self._look_for_misses(self._rows_of(piece))

    def _rows_of(self, piece: Rows | Block) -> Rows:
        if isinstance(piece, Block):
            found: Rows = np.flatnonzero(rows_in(self._table, piece)) + piece.rows.start
            return found
        return piece

    def _look_for_misses(self, rows: Rows) -> None:
        for removed in self._on_rows:
            if not len(rows):
                return
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
        self._others: npt.NDArray[np.float64] = _NO_ESTIMATES
        """The least that all parts of the price but the largest come to, by extent."""

    def estimate(self, rows: Rows) -> npt.NDArray[np.float64]:
        """Millionths of the currency, of each row."""
        total = self._table["task_price"][rows].astype(np.float64)
        for column, weight in self._weights.items():
            total += self._table[column][rows] * weight
        return total

    def rule_out(self, mask: Mask, block: Many, best: Rows, edge: float) -> None:
        """Clear rows of a block that one part of the price, the largest in `best`, makes dearer than `edge`, whatever
        the others come to.
        """
        if not self._weights:
            return
        if self._largest is None:
            parts = {name: self._table[name][best].sum() * weight for name, weight in self._weights.items()}
            self._largest = max(parts, key=lambda name: float(parts[name]))
            self._others = self._table.least_of("task_price")
            for name in self._weights.keys() - {self._largest}:
                self._others = self._others + self._table.least_of(name) * self._weights[name]
        left = edge * ROUNDED - float(self._others[block.extents].min())
        most = min(left / self._weights[self._largest], QUANTITY_MAX)
        mask &= self._table[self._largest][block.rows] <= math.floor(most)


def _largest(condition: Condition, rows: Rows) -> Rows:
    """Those that come nearest to passing."""
    if condition.amounts is None:
        return rows
    amounts: Amounts = condition.amounts(rows)
    nearest: Rows = rows[amounts == amounts.max()]
    return nearest
