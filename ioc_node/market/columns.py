"""The query's table: one row per host record, one NumPy array per column, patched as gossip arrives.

What is the same for many hosts is interned (`ioc_node.market.kinds`). A condition reads `table.kinds["shape"][kinds]`
or `table["memory"][rows]`, with an array of row numbers or a slice; `table.kinds_of(rows)` leads from one to the other.

A row is staged out of sight and then swapped for its predecessor, so that a host that changes is never missing. Where
it lies depends on its accelerators (`ioc_node.market.extents`).
"""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from ioc_node.market.extents import EXTENT_ROWS, Extents
from ioc_node.market.kinds import Interned, Kinds, Mask, Rows, Traits, longer, pack_labels, reserved
from ioc_node.market.pricing import prices_of
from ioc_node.market.status_columns import GROUPS_MAX, ToldStatus
from ioc_wire.limits import STATUS_ROWS_MAX
from ioc_wire.records import ResourceRecord, StatusRow

QUANTITY_MAX: Final = 1 << 40
"""Larger quantities and prices are cut down to this, so that no sum of products leaves 64 bits or a double."""
COUNT_MAX: Final = (1 << 31) - 1
"""Thousandths of cores and of accelerators, MiB of memory and seconds are cut down to this: a narrow column is read
twice as fast."""
ROWS_RESERVED: Final = 1 << 22
"""Room that is there from the beginning, as address space: a column that is copied to grow holds everybody up."""

_ROW: Final[dict[str, Any]] = {
    "kind": np.int32,
    "traits": np.int32,
    "labels": np.int32,
    "owner": np.int32,
    "slot": np.int32,
    "tie": np.uint64,
    "expires": np.int64,
    "cores": np.int32,
    "memory": np.int32,
    "disk": np.int64,
    "seconds": np.int32,
    "core_hour": np.int64,
    "accelerator_hour": np.int64,
    "gib_hour": np.int64,
    "task_price": np.int64,
    "core_hour_now": np.int64,
    "fresh_until": np.float64,
    "free_cores": np.int32,
    "free_memory": np.int32,
    "queued": np.int64,
    "price_now": np.int64,
}
PRICES: Final = ("core_hour_now", "accelerator_hour", "gib_hour", "task_price")
_MAX: Final = {
    **dict.fromkeys(("cores", "memory", "seconds", "free_cores", "free_memory"), COUNT_MAX),
    **dict.fromkeys(("expires", "disk", "queued", "price_now"), QUANTITY_MAX),
    **dict.fromkeys(("core_hour", *PRICES), QUANTITY_MAX),
    "fresh_until": math.inf,
}
"""What is larger is cut down."""
_STATUS: Final = ("fresh_until", "free_cores", "free_memory", "queued", "price_now")
ZONED: Final = ("expires", "cores", "memory", "disk", "seconds", "fresh_until", *PRICES)
"""Columns of which the least is known by extent; rows that are free have the largest value there."""


def tie_of(cid: str) -> int:
    """What orders equals, the same on every node: the first 63 bits of SHA-256 of the identifier."""
    return int.from_bytes(hashlib.sha256(cid.encode()).digest()[:8], "big") >> 1


class Swapped(NamedTuple):
    """The rows that are gone, and the parts of the provider's slots in which some came for slots that had none."""

    gone: list[int]
    new_parts: list[int]


class Table:
    """Rows are reused when their record goes; `live` says which are in sight."""

    def __init__(self, extent_rows: int = EXTENT_ROWS) -> None:
        self.kinds = Kinds()
        self.extents = Extents(extent_rows)
        self.live: Mask = reserved(ROWS_RESERVED, np.bool_)
        self.columns: dict[str, npt.NDArray[Any]] = {
            name: reserved(ROWS_RESERVED, kind) for name, kind in _ROW.items()
        }
        self.free_accelerators: npt.NDArray[np.int32] = reserved((GROUPS_MAX, ROWS_RESERVED), np.int32)
        """Thousandths, by group and row."""
        self.owners: Interned[bytes] = Interned()
        self.traits: Interned[Traits] = Interned()
        self.labels: Interned[bytes] = Interned()
        self._least: dict[str, npt.NDArray[np.float64]] = dict.fromkeys(ZONED, np.zeros(0))
        self._least_of_all = dict.fromkeys(ZONED, math.inf)
        self._rows: dict[bytes, npt.NDArray[np.int32]] = {}
        """Provider to row by slot, -1 where there is none."""
        self.generation = 0
        """Raised whenever rows are staged, or come into sight or go out of it."""

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self.columns[name]

    def __len__(self) -> int:
        """Rows that there are, in sight or not."""
        return self.extents.rows

    @property
    def living(self) -> int:
        """Rows in sight."""
        return self.kinds.living

    def slots_of(self, provider: bytes) -> int:
        """One more than the highest slot of which there is, or was, a row in sight."""
        return len(self._rows.get(provider, ()))

    def has_at_least(self, column: str, least: float, extents: Rows | slice) -> bool:
        """Whether all rows in sight of these extents have so much, as far as is known without a look at them. Of the
        zoned columns only.
        """
        return self.all_have(column, least) or bool(self._least[column][extents].min() >= least)

    def all_have(self, column: str, least: float) -> bool:
        """The same, of all rows in sight."""
        return self._least_of_all[column] >= least

    def least_of(self, column: str) -> npt.NDArray[np.float64]:
        """The least of a zoned column in each extent; where no row is, more than any row has."""
        return self._least[column]

    def extents_in(self, block: slice) -> slice:
        """Those of a block, which is of whole ones."""
        step = self.extents.extent_rows
        return slice(block.start // step, block.stop // step)

    def extents_of(self, rows: Rows) -> Rows:
        """Those in which these rows are."""
        found: Rows = np.flatnonzero(np.bincount(rows // self.extents.extent_rows))
        return found  # np.unique imports a module for 8 ms at its first call

    def kinds_of(self, rows: Rows | slice) -> npt.NDArray[np.int32]:
        found: npt.NDArray[np.int32] = self.columns["kind"][rows]
        return found

    def owner_of(self, row: int) -> tuple[bytes, int]:
        """Provider and slot of a row in sight."""
        return next(self.owners_of(np.array([row])))

    def owners_of(self, rows: Rows) -> Iterator[tuple[bytes, int]]:
        """Provider and slot of each of these rows in sight."""
        owners, slots = (self.columns[name][rows].tolist() for name in ("owner", "slot"))
        providers = cast("list[bytes]", self.owners.values)  # those that rows in sight refer to are there
        return zip(map(providers.__getitem__, owners), slots, strict=True)

    # -- rows

    def stage(self, provider: bytes, records: Iterable[tuple[int, ResourceRecord, bool]]) -> list[int]:
        """Enter rows out of sight: slot, record, and whether it can be reached. Returns their numbers."""
        self.generation += 1
        rows: list[int] = []
        lines: list[tuple[int, ...]] = []
        for slot, record, reachable in records:
            kind = self.kinds.take(record, reachable)
            rows.append(self.extents.take(int(self.kinds["shape"][kind])))
            lines.append(
                (
                    kind,
                    self.traits.take(_traits_of(record)),
                    self.labels.take(pack_labels(record.labels)),
                    self.owners.take(provider),
                    slot,
                    tie_of(record.cid),
                    record.expires,
                    record.cpu.cores * 1000,
                    record.memory_mib,
                    record.storage_mib,
                    record.task_seconds_max,
                    *prices_of(record.prices),
                )
            )
        self._grow()
        at = np.array(rows, np.int64)
        for name, values in zip(_ROW, zip(*lines, strict=True), strict=False):
            self._write(name, at, values)
        self.columns["core_hour_now"][at] = self.columns["core_hour"][at]
        self.columns["fresh_until"][at] = 0
        return rows

    def _write(self, name: str, rows: Rows, values: Sequence[int]) -> None:
        most = _MAX.get(name)
        numbers = np.array(values, np.int64)
        self.columns[name][rows] = np.minimum(numbers, most) if most is not None else numbers

    def unstage(self, rows: Sequence[int]) -> None:
        """Forget rows that never came into sight."""
        self._release(np.array(rows, np.int64))

    def swap(self, provider: bytes, slots: Sequence[int], staged: Sequence[int]) -> Swapped:
        """Take the rows of these slots out of sight and bring `staged`, which are for some of them, in, at once. A row
        keeps the status of the one that it takes the place of.
        """
        known = self._rows.get(provider, np.zeros(0, np.int32))
        rows, gone = np.array(staged, np.int64), np.array(slots, np.int64)
        new_slots = self.columns["slot"][rows]
        mine = np.full(max(len(known), int(new_slots.max(initial=-1)) + 1), -1, np.int32)
        mine[: len(known)] = known
        gone = gone[gone < len(known)]
        old = mine[gone].astype(np.int64)
        old = old[old >= 0]
        before = mine[new_slots].astype(np.int64)
        self._keep_status(before[before >= 0], rows[before >= 0])
        mine[gone] = -1
        mine[new_slots] = rows
        self._regroup(old, rows)
        self._release(old)
        self._find_least(np.concatenate([old, rows]), ZONED)
        if (mine >= 0).any():
            self._rows[provider] = mine
        else:
            self._rows.pop(provider, None)
        new_parts = set((new_slots[before < 0] // STATUS_ROWS_MAX).tolist())
        return Swapped(old.tolist(), sorted(new_parts))

    def _keep_status(self, before: Rows, after: Rows) -> None:
        for name in _STATUS:
            self.columns[name][after] = self.columns[name][before]
        self.free_accelerators[:, after] = self.free_accelerators[:, before]
        now = self.columns["price_now"][after]
        self.columns["core_hour_now"][after] = np.where(now > 0, now, self.columns["core_hour"][after])

    def _regroup(self, hidden: Rows, shown: Rows) -> None:
        """Bring rows out of sight and into it, kind by kind."""
        self.generation += 1
        self.live[hidden], self.live[shown] = False, True
        new = defaultdict(list)
        for number, row in zip(self.kinds_of(shown).tolist(), shown.tolist(), strict=True):
            new[number].append(row)
        left = set(self.kinds_of(hidden).tolist())
        kinds, ties = self.kinds, self.columns["tie"]
        for number in left | new.keys():
            rows = kinds.rows[number]
            if number in left:
                rows = rows[self.live[rows]]
            if number in new:
                rows = np.concatenate([rows, np.array(new[number], np.int32)])
            kinds.put_rows(number, rows, int(rows[ties[rows].argmin()]) if len(rows) else -1)

    def first_rows(self, kinds: Rows) -> Rows:
        """The row in sight with the smallest tie, of each of these kinds."""
        found: Rows = self.kinds.first[kinds]
        return found

    def _release(self, rows: Rows) -> None:
        for zoned in ZONED:
            self.columns[zoned][rows] = _MAX[zoned]
        uses: tuple[tuple[str, Kinds | Interned[Any]], ...] = (
            ("kind", self.kinds),
            ("traits", self.traits),
            ("labels", self.labels),
            ("owner", self.owners),
        )
        for name, interned in uses:
            for number, times in Counter(self.columns[name][rows].tolist()).items():
                interned.release(number, times)
        self.extents.give_back(rows.tolist())

    def _grow(self) -> None:
        begun, count = self.extents.take_begun(), len(self)
        if not begun:
            return
        if count > len(self.live):
            self.live = longer(self.live, count)
            self.free_accelerators = longer(self.free_accelerators, count)
            for name, column in self.columns.items():
                self.columns[name] = longer(column, count)
        more = np.full(len(self.extents.keys) - len(self._least["expires"]), math.inf)
        for name in ZONED:
            for rows in begun:
                self.columns[name][rows] = _MAX[name]
            self._least[name] = np.append(self._least[name], more)

    def _find_least(self, rows: npt.NDArray[Any], names: Sequence[str]) -> None:
        """The least of these columns, in the extents of these rows."""
        step = self.extents.extent_rows
        for extent in set((rows // step).tolist()):
            for name in names:
                self._least[name][extent] = self.columns[name][extent * step : (extent + 1) * step].min()
        for name in names:
            self._least_of_all[name] = float(self._least[name].min(initial=math.inf))

    # -- status

    def statuses_of(self, rows: Rows) -> Iterator[StatusRow]:
        """The status of each of these rows in sight."""
        columns, kinds = self.columns, self.kinds
        names = ("slot", "free_cores", "free_memory", "queued", "price_now")
        slots, cores, memory, queued, prices = (columns[name][rows].tolist() for name in names)
        shapes = [kinds.shapes.values[shape] or () for shape in kinds["shape"][self.kinds_of(rows)].tolist()]
        free = self.free_accelerators[: max(map(len, shapes), default=0), rows].T.tolist()
        groups = (tuple(devices[: len(shape)]) for devices, shape in zip(free, shapes, strict=True))
        return map(StatusRow, slots, cores, memory, groups, queued, prices)

    def set_status(self, provider: bytes, part: int, told: ToldStatus | None) -> None:
        """Patch the changing columns of one part of a provider's slots from its newest batch; the last of two lines for
        a slot counts.
        """
        first = part * STATUS_ROWS_MAX
        mine = self._rows.get(provider, np.zeros(0, np.int32))[first : first + STATUS_ROWS_MAX]
        if not len(mine):
            return
        there = mine[mine >= 0]
        self.columns["fresh_until"][there] = 0
        if told is not None:
            self._set_rows(mine, first, told)
        self._find_least(there, ("fresh_until", "core_hour_now"))

    def _set_rows(self, mine: npt.NDArray[np.int32], first: int, told: ToldStatus) -> None:
        places = told.columns["slot"] - first
        known = np.flatnonzero((places >= 0) & (places < len(mine)))
        rows = mine[places[known]].astype(np.int64)
        known, rows = known[rows >= 0], rows[rows >= 0]
        patch = self.columns
        patch["fresh_until"][rows] = told.fresh_until
        for column in ("free_cores", "free_memory", "queued", "price_now"):
            patch[column][rows] = np.minimum(told.columns[column], _MAX[column])[known]
        now = patch["price_now"][rows]
        patch["core_hour_now"][rows] = np.where(now > 0, now, patch["core_hour"][rows])
        self.free_accelerators[:, rows] = np.minimum(told.free, COUNT_MAX)[:, known]


def _traits_of(record: ResourceRecord) -> Traits:
    cpu = record.cpu
    return Traits(
        record.runtimes,
        record.services,
        cpu.architecture,
        cpu.model,
        record.network.offloads,
        record.management,
    )
