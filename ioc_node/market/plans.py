"""What neither status nor time changes of a demand: which rows could ever serve it, and what removed the others.

It is found in the whole table once and kept while no row comes or goes: gateways ask for the same again and again,
while status changes by the second. Kinds of row are sifted first. Where few kinds can serve, their rows are looked at
one by one; else the extents in which they lie are gone through in blocks, column after column, and a condition that a
whole block meets costs nothing.
"""

from collections.abc import Generator, Iterator, Sequence
from typing import Final, NamedTuple, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from ioc_node.market.columns import Table
from ioc_node.market.conditions import Condition, amounts, standing
from ioc_node.market.expressions import Where
from ioc_node.market.kinds import Mask, Rows
from ioc_wire.market import Demand
from ioc_wire.tasks import Resources

V = TypeVar("V")

BLOCK_ROWS: Final = 1 << 17
"""Rows looked at between two pauses: about a millisecond."""
SPARSE: Final = 8
"""Where fewer than one in so many rows are left, they are looked at one by one."""
FEW_KINDS: Final = 256
EXPRESSION_BYTES_MAX: Final = 1 << 20
"""What an expression decided is kept with its plan up to this size: it grows with comparisons and with other people's
words."""
PLANS_MAX: Final = 32
"""At a million rows a plan has some 100 KiB, and never more than a MiB."""


class Block(NamedTuple):
    """Whole extents of the table, and which kinds in them can serve, by kind; None: all of them."""

    rows: slice
    serving: Mask | None


class Many(NamedTuple):
    """Rows of a slice of the table, which is of whole extents: a bit for each row, and how many they are."""

    rows: slice
    size: int
    bits: npt.NDArray[np.uint8]
    extents: slice

    def mask(self) -> Mask:
        """Which they are; the caller's to change."""
        return np.unpackbits(self.bits, count=self.rows.stop - self.rows.start).view(np.bool_)


class Few(NamedTuple):
    """The numbers of rows, and the extents in which they are."""

    rows: Rows
    extents: Rows


Part = Many | Few


class Removed(NamedTuple):
    """A condition, and how many rows it removed of those that the ones before it had left."""

    condition: Condition
    rows: int


class Ground:
    """What of a demand does not depend on its amounts: tasks that differ in cores or minutes alone have it together."""

    def __init__(self, demand: Demand, table: Table) -> None:
        """Raises `Malformed` for an expression that is none."""
        self.where = Where(demand.constraints.where, table)
        self.removed: list[Removed] = []
        self._demand = demand
        self._table = table

    def make(self) -> Generator[None, None, None]:
        """Decide everything, in steps; once, before anything else."""
        self.standing = yield from standing(self._demand, self._table)
        yield from self.where.decide()
        self._sift([*self.standing.kinds, *(yield from self.where.kind_conditions())])

    def _sift(self, conditions: Sequence[Condition]) -> None:
        """Find the kinds that can serve."""
        kinds = self._table.kinds
        every = slice(0, len(kinds))
        count = kinds.count[every]
        left: Mask = count > 0
        for condition in conditions:
            gone = left & ~condition.keeps(every)
            removed = 0
            if gone.any():
                removed = int(count[gone].sum())
                left ^= gone
            self.removed.append(Removed(condition, removed))
        self.kinds: Rows = np.flatnonzero(left)


class Plan:
    """Of one demand. Rows that neither it nor what is asked of them now removes can serve the demand."""

    def __init__(self, demand: Demand, table: Table, ground: Ground) -> None:
        self.fit = ground.standing.fit
        self.where = ground.where
        self.on_kinds = ground.removed
        self.on_rows: list[Removed] = []
        self.parts: list[Part] = []
        self._conditions = [*ground.standing.rows, *amounts(demand, table)]
        self._kinds = ground.kinds
        self._table = table

    def make(self) -> Generator[None, None, None]:
        """Go through the table in steps; once, before anything else."""
        sieve = _Sieve(self._conditions, self._table)
        for piece in pieces(self._table, self._kinds):
            yield
            part = sieve.of_block(piece) if isinstance(piece, Block) else sieve.of_rows(np.sort(piece))
            if part is not None:
                self.parts.append(part)
        self.parts = _joined(self.parts, self._table)
        self.on_rows = list(map(Removed, self._conditions, sieve.removed))


class _Sieve:
    """Holds conditions on rows against them, and counts what each removed."""

    def __init__(self, conditions: Sequence[Condition], table: Table) -> None:
        self.removed = [0] * len(conditions)
        self._conditions = conditions
        self._table = table

    def of_block(self, block: Block) -> Part | None:
        """What is left of a block."""
        rows, extents = block.rows, self._table.extents_in(block.rows)
        mask = rows_in(self._table, block)
        left = int(np.count_nonzero(mask))
        for number, condition in enumerate(self._conditions):
            if left * SPARSE <= len(mask):
                return self.of_rows(np.flatnonzero(mask) + rows.start, number)
            if condition.floor is not None and self._table.has_at_least(*condition.floor, extents):
                continue
            mask &= condition.keeps(rows)
            before, left = left, int(np.count_nonzero(mask))
            self.removed[number] += before - left
        if left * SPARSE <= len(mask):
            return self.of_rows(np.flatnonzero(mask) + rows.start, len(self._conditions))
        return Many(rows, left, np.packbits(mask), extents)

    def of_rows(self, rows: Rows, first: int = 0) -> Few | None:
        """What the conditions from `first` on leave of these rows."""
        for number, condition in enumerate(self._conditions[first:], first):
            kept = rows[condition.keeps(rows)]
            self.removed[number] += len(rows) - len(kept)
            rows = kept
        return Few(rows, self._table.extents_of(rows)) if len(rows) else None


def _joined(parts: Sequence[Part], table: Table) -> list[Part]:
    """The same with as few parts of single rows as may be: each costs something, however small it is."""
    joined: list[Part] = [part for part in parts if isinstance(part, Many)]
    few = [part.rows for part in parts if isinstance(part, Few)]
    rows: Rows = np.concatenate([np.zeros(0, np.int64), *few])
    step = max(BLOCK_ROWS // SPARSE, 1)
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        joined.append(Few(some, table.extents_of(some)))
    return joined


def pieces(table: Table, kinds: Rows) -> Iterator[Rows | Block]:
    """The rows of these kinds: their numbers if they are few, or else blocks of the table in which they are."""
    every = table.kinds
    if len(kinds) <= FEW_KINDS and int(every.count[kinds].sum()) * SPARSE <= len(table):
        yield from _rows_of(table, kinds)
        return
    serving = np.zeros(len(every), np.bool_)
    serving[kinds] = True
    shapes = np.zeros(len(every.shapes.values), np.bool_)
    shapes[every["shape"][kinds]] = True
    others = (every.count[: len(every)] > 0) & ~serving
    mixed = bool(shapes[every["shape"][: len(every)][others]].any())
    for rows, pure in table.extents.runs(np.flatnonzero(shapes).tolist(), BLOCK_ROWS):
        yield Block(rows, serving if mixed or not pure else None)


def _rows_of(table: Table, kinds: Rows) -> Iterator[Rows]:
    every, step = table.kinds, max(BLOCK_ROWS // SPARSE, 1)
    ends = np.flatnonzero(np.diff(np.cumsum(every.count[kinds]) // step)) + 1
    for part in np.split(kinds, ends):
        if len(part):
            yield np.concatenate([every.rows[number] for number in part.tolist()]).astype(np.int64)


def rows_in(table: Table, block: Block) -> Mask:
    """Which rows of a block are in sight and of a kind that can serve."""
    mask: Mask = table.live[block.rows].copy()
    if block.serving is not None:
        mask &= block.serving.take(table["kind"][block.rows], mode="clip")
    return mask


class Plans:
    """Those of the demands asked last."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._generation = table.generation
        self._plans: dict[Demand, Plan] = {}
        """By what `_standing_part` leaves; the one asked last at the end. Grounds by what `_without_amounts` leaves."""
        self._grounds: dict[Demand, Ground] = {}

    def taking(self, demand: Demand) -> Generator[None, None, Plan]:
        """The plan of a demand; in steps, where it has to be made. No row may come or go while that lasts. Raises
        `Malformed`.
        """
        if self._generation != self._table.generation:
            self._generation = self._table.generation
            self._plans.clear()
            self._grounds.clear()
        asked = _standing_part(demand)
        plan = self._plans.pop(asked, None)
        if plan is None:
            ground = yield from self._ground(_without_amounts(asked))
            plan = Plan(asked, self._table, ground)
            yield from plan.make()
        _keep(self._plans, asked, plan, plan.where)
        return plan

    def _ground(self, asked: Demand) -> Generator[None, None, Ground]:
        ground = self._grounds.pop(asked, None)
        if ground is None:
            ground = Ground(asked, self._table)
            yield from ground.make()
        _keep(self._grounds, asked, ground, ground.where)
        return ground


def _keep(kept: dict[Demand, V], asked: Demand, value: V, where: Where) -> None:
    if where.bytes_held > EXPRESSION_BYTES_MAX:
        return
    if len(kept) >= PLANS_MAX:
        del kept[next(iter(kept))]
    kept[asked] = value


def _standing_part(demand: Demand) -> Demand:
    """The demand without what a plan does not depend on."""
    constraints = msgspec.structs.replace(
        demand.constraints, rtt_ms_max=None, price_micro_max=None, data_at=""
    )
    return msgspec.structs.replace(demand, constraints=constraints, gang=1)


def _without_amounts(demand: Demand) -> Demand:
    """The demand without what a ground does not depend on."""
    return Demand(Resources(accelerators=demand.resources.accelerators), demand.constraints, demand.runtimes)
