"""One pass of a demand over the table: what each condition removes, its nearest miss, and the cheapest of the rest."""

from collections.abc import Callable, Generator, Iterator
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ioc_node.market.columns import Rows, Table
from ioc_node.market.conditions import (
    REASON_CHARS_MAX,
    Amounts,
    Condition,
    core_hour_now,
    kind_conditions,
    row_conditions,
)
from ioc_node.market.pricing import accelerators_milli, cores_milli
from ioc_wire.market import Demand, Removal

BLOCK_ROWS: Final = 1 << 16
"""Rows looked at between two pauses: one to two milliseconds."""


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
    """Of one demand, at `unix` seconds since 1970; the `count` cheapest rows are kept."""

    def __init__(self, demand: Demand, table: Table, *, unix: float, count: int) -> None:
        self.count = count
        self.considered = table.living
        self._table = table
        self._demand = demand
        self._unix = unix
        self._version = table.version
        self._removed: list[_Removed] = []
        self._best: Rows = np.zeros(0, np.int64)
        self._estimates: npt.NDArray[np.float64] = np.zeros(0)

    def run(self) -> Generator[None, None, bool]:
        """Go through the table in steps. False where rows came or went meanwhile: begin again."""
        serving = self._sift_kinds()
        conditions = list(row_conditions(self._demand, self._table, unix=self._unix))
        found = [_Removed(condition, of_kind=False) for condition in conditions]
        if not self.considered:
            return True
        for start in range(0, len(self._table), BLOCK_ROWS):
            yield
            if self._table.version != self._version:
                return False
            self._look_at_block(start, serving, found)
        self._removed += found
        return True

    # -- kinds

    def _sift_kinds(self) -> npt.NDArray[np.bool_]:
        """Which kinds can serve."""
        kinds = self._table.kinds
        serving = np.zeros(len(kinds), np.bool_)
        left = np.flatnonzero(kinds.count[: len(kinds)])
        for condition in kind_conditions(self._demand, self._table):
            if not len(left):
                break
            kept = condition.keeps(left)
            removed = left[~kept]
            if not len(removed):
                continue
            outcome = _Removed(condition, of_kind=True)
            outcome.count = int(kinds.count[removed].sum())
            self._note_miss(outcome, self._table.first_rows(_largest(condition, removed)), 0)
            self._removed.append(outcome)
            left = left[kept]
        serving[left] = True
        return serving

    # -- rows

    def _look_at_block(
        self,
        start: int,
        serving: npt.NDArray[np.bool_],
        found: list[_Removed],
    ) -> None:
        table = self._table
        end = min(start + BLOCK_ROWS, len(table))
        live, kinds = table.live[start:end], table["kind"][start:end]
        rows = np.flatnonzero(live & serving[kinds]) + start
        for outcome in found:
            if not len(rows):
                return
            kept = outcome.condition.keeps(rows)
            removed = rows[~kept]
            if len(removed):
                outcome.count += len(removed)
                amounts = outcome.condition.amounts
                most = int(amounts(removed).max()) if amounts is not None else 0
                self._note_miss(outcome, _largest(outcome.condition, removed), most)
                rows = rows[kept]
        self._keep_cheapest(rows)

    def _note_miss(self, outcome: _Removed, rows: Rows, amount: int) -> None:
        ties = self._table["tie"][rows]
        at = int(np.argmin(ties))
        miss = _Miss(amount, int(ties[at]), int(rows[at]))
        if miss.is_nearer_than(outcome.miss):
            outcome.miss = miss

    # -- the cheapest

    def _estimate(self, rows: Rows) -> npt.NDArray[np.float64]:
        """What the demand costs: in floating point, which is enough to choose candidates; their prices are then
        computed exactly.
        """
        table, demand = self._table, self._demand
        per_hour = core_hour_now(table, rows) * (cores_milli(demand) / 1000)
        if demand.resources.accelerators:
            per_hour += table["accelerator_hour"][rows] * (accelerators_milli(demand) / 1000)
        if demand.resources.memory_mib:
            per_hour += table["gib_hour"][rows] * (demand.resources.memory_mib / 1024)
        estimates: npt.NDArray[np.float64] = (
            per_hour * (demand.wall_seconds / 3600) + table["task_price"][rows]
        )
        return estimates

    def _keep_cheapest(self, rows: Rows) -> None:
        estimates = self._estimate(rows)
        if len(self._best) >= self.count:
            edge = self._estimates.max()
            worth = estimates <= edge
            rows, estimates = rows[worth], estimates[worth]
        rows, estimates = np.concatenate([self._best, rows]), np.concatenate([self._estimates, estimates])
        if len(rows) > self.count:
            edge = np.partition(estimates, self.count - 1)[self.count - 1]
            below, level = np.flatnonzero(estimates < edge), np.flatnonzero(estimates == edge)
            missing = self.count - len(below)
            if len(level) > missing:
                ties = self._table["tie"][rows[level]]
                level = level[np.argpartition(ties, missing - 1)[:missing]]
            chosen = np.concatenate([below, level])
            rows, estimates = rows[chosen], estimates[chosen]
        self._best, self._estimates = rows, estimates

    def cheapest(self) -> Rows:
        """The rows with the lowest estimates; among equals those with the smallest hash of their name."""
        return self._best

    # -- the others

    def removals(self, name_of: Callable[[int], str]) -> tuple[Removal, ...]:
        """What each condition removed, in order; `name_of` gives a row's identifier."""
        return tuple(self._told(name_of))

    def _told(self, name_of: Callable[[int], str]) -> Iterator[Removal]:
        for outcome in self._removed:
            if outcome.count and outcome.miss is not None:
                row = outcome.miss.row
                subject = int(self._table["kind"][row]) if outcome.of_kind else row
                nearest = f"{name_of(row)} {outcome.condition.words(subject)}"
                yield Removal(outcome.condition.name, outcome.count, nearest[:REASON_CHARS_MAX])


def _largest(condition: Condition, rows: Rows) -> Rows:
    """Those that come nearest to passing."""
    if condition.amounts is None:
        return rows
    amounts: Amounts = condition.amounts(rows)
    nearest: Rows = rows[amounts == amounts.max()]
    return nearest
