"""The query's table: one row per host record, one NumPy array per column, patched as gossip arrives.

What is the same for a whole rack is interned: a row holds the number of its *kind* (place, accelerators) and of its
*traits* (runtimes, services, architecture), and a condition on them is decided once per number instead of once per
row. A condition reads `table.kinds["shape"][kinds]` or `table["memory"][rows]`; `table.kinds_of(rows)` leads from one
to the other. Uses are counted, so that what no row refers to any more is freed.

Rows come into sight together: they are staged, a few at a time, and swapped for their predecessors at once.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from ioc_node.core.replica import HeldStatus
from ioc_node.market.pricing import prices_of
from ioc_wire.limits import STATUS_ROWS_MAX
from ioc_wire.records import Accelerator, ResourceRecord

GROUPS_MAX: Final = 8
"""Accelerator groups of one record, as the wire allows."""
QUANTITY_MAX: Final = 1 << 40
"""Larger quantities and prices are cut down to this, so that no sum of products leaves 64 bits or a double."""
MILLI_MAX: Final = (1 << 31) - 1
"""Free thousandths of one accelerator group are cut down to this."""

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
V = TypeVar("V")

_KIND: Final[dict[str, Any]] = {
    "reachable": np.bool_,
    "class": np.int32,
    "city": np.int32,
    "pool": np.int32,
    "shape": np.int32,
}
_ROW: Final[dict[str, Any]] = {
    "kind": np.int32,
    "traits": np.int32,
    "owner": np.int32,
    "slot": np.int32,
    "tie": np.uint64,
    "expires": np.int64,
    "cores": np.int64,
    "memory": np.int64,
    "disk": np.int64,
    "seconds": np.int64,
    "core_hour": np.int64,
    "accelerator_hour": np.int64,
    "gib_hour": np.int64,
    "task_price": np.int64,
    "fresh_until": np.float64,
    "free_cores": np.int64,
    "free_memory": np.int64,
    "queued": np.int64,
    "price_now": np.int64,
    "status_row": np.int32,
}


def tie_of(cid: str) -> int:
    """What orders equals, the same on every node: the first 64 bits of SHA-256 of the identifier."""
    return int.from_bytes(hashlib.sha256(cid.encode()).digest()[:8], "big")


class Interned(Generic[V]):
    """Distinct values with small numbers; a number is used again once nothing refers to it."""

    def __init__(self) -> None:
        self.values: list[V | None] = []
        self._numbers: dict[V, int] = {}
        self._uses: list[int] = []
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._numbers)

    def take(self, value: V) -> int:
        """The number of a value, referred to once more."""
        found = self._numbers.get(value)
        if found is None:
            if self._free:
                found = self._free.pop()
                self.values[found] = value
            else:
                found = len(self.values)
                self.values.append(value)
                self._uses.append(0)
            self._numbers[value] = found
        self._uses[found] += 1
        return found

    def release(self, number: int, times: int = 1) -> bool:
        """Refer to a number less often; whether it became free."""
        self._uses[number] -= times
        if self._uses[number]:
            return False
        value = self.values[number]
        assert value is not None
        del self._numbers[value]
        self.values[number] = None
        self._free.append(number)
        return True

    def test(self, accepts: Callable[[V], bool]) -> Mask:
        """Which values are accepted, to be indexed by a column."""
        found = (value is not None and accepts(value) for value in self.values)
        return np.fromiter(found, np.bool_, len(self.values))


class Kinds:
    """The distinct kinds, one column per attribute; `count` says how many rows in sight are of each."""

    def __init__(self) -> None:
        self.columns: dict[str, npt.NDArray[Any]] = {name: np.zeros(16, kind) for name, kind in _KIND.items()}
        self.count: npt.NDArray[np.int64] = np.zeros(16, np.int64)
        self.first: npt.NDArray[np.int64] = np.full(16, -1, np.int64)
        """The row in sight with the smallest tie; -1 where it has to be looked for."""
        self.classes: Interned[str] = Interned()
        self.cities: Interned[str] = Interned()
        self.pools: Interned[str] = Interned()
        self.shapes: Interned[tuple[Accelerator, ...]] = Interned()
        self._known: Interned[tuple[bool, str, tuple[Accelerator, ...]]] = Interned()

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self.columns[name]

    def __len__(self) -> int:
        """Numbers in use or free: the length that an array indexed by kind has to have."""
        return len(self._known.values)

    def take(self, record: ResourceRecord, reachable: bool) -> int:
        """The number of a record's kind, referred to once more."""
        key = (reachable, "/".join(record.cid.split("/")[:4]), record.accelerators)
        before = len(self._known)
        number = self._known.take(key)
        if len(self._known) > before:
            self._enter(number, key)
        return number

    def _enter(self, number: int, key: tuple[bool, str, tuple[Accelerator, ...]]) -> None:
        if number >= len(self.count):
            self.count = _longer(self.count, number + 1)
            self.first = _longer(self.first, number + 1)
            for name, column in self.columns.items():
                self.columns[name] = _longer(column, number + 1)
        self.count[number], self.first[number] = 0, -1
        reachable, pool, shape = key
        self.columns["reachable"][number] = reachable
        _, resource_class, city, *_ = pool.split("/")
        values = (resource_class, city, pool, shape)
        for (name, interned), value in zip(self._words(), values, strict=True):
            self.columns[name][number] = interned.take(value)

    def release(self, number: int, times: int = 1) -> bool:
        """Refer to a kind less often; whether it became free."""
        if not self._known.release(number, times):
            return False
        for name, interned in self._words():
            interned.release(int(self.columns[name][number]))
        return True

    def _words(self) -> tuple[tuple[str, Interned[Any]], ...]:
        return (
            ("class", self.classes),
            ("city", self.cities),
            ("pool", self.pools),
            ("shape", self.shapes),
        )


class Traits(NamedTuple):
    """What software and processor a host offers."""

    runtimes: tuple[str, ...]
    services: tuple[str, ...]
    architecture: str


class Table:
    """Rows are reused when their record goes; `live` says which are in sight."""

    def __init__(self) -> None:
        self.kinds = Kinds()
        self.live: Mask = np.zeros(64, np.bool_)
        self.columns: dict[str, npt.NDArray[Any]] = {name: np.zeros(64, kind) for name, kind in _ROW.items()}
        self.free_accelerators: npt.NDArray[np.int32] = np.zeros((64, GROUPS_MAX), np.int32)
        self.owners: Interned[bytes] = Interned()
        self.traits: Interned[Traits] = Interned()
        self.version = 0
        """Grows when rows come into sight or go out of it."""
        self._used = 0
        self._free: list[int] = []
        self._rows: dict[bytes, npt.NDArray[np.int32]] = {}
        """Provider to row by slot, -1 where there is none."""

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self.columns[name]

    def __len__(self) -> int:
        """Rows used so far, in sight or not."""
        return self._used

    @property
    def living(self) -> int:
        """Rows in sight."""
        return int(self.kinds.count.sum())

    def kinds_of(self, rows: Rows) -> npt.NDArray[np.int32]:
        found: npt.NDArray[np.int32] = self.columns["kind"][rows]
        return found

    def owner_of(self, row: int) -> tuple[bytes, int]:
        """Provider and slot of a row in sight."""
        provider = self.owners.values[self.columns["owner"][row]]
        assert provider is not None
        return provider, int(self.columns["slot"][row])

    # -- rows

    def stage(self, provider: bytes, records: Iterable[tuple[int, ResourceRecord, bool]]) -> list[int]:
        """Enter rows out of sight: slot, record, and whether it can be reached. Returns their numbers."""
        rows: list[int] = []
        for slot, record, reachable in records:
            row = self._free.pop() if self._free else self._used
            self._used = max(self._used, row + 1)
            self._grow(self._used)
            values = (
                self.kinds.take(record, reachable),
                self.traits.take(Traits(record.runtimes, record.services, record.cpu.architecture)),
                self.owners.take(provider),
                slot,
                tie_of(record.cid),
                _bounded(record.expires),
                _bounded(record.cpu.cores) * 1000,
                _bounded(record.memory_mib),
                _bounded(record.storage_mib),
                _bounded(record.task_seconds_max),
                *map(_bounded, prices_of(record.prices)),
                0.0,
            )
            for name, value in zip(_ROW, values, strict=False):
                self.columns[name][row] = value
            rows.append(row)
        return rows

    def unstage(self, rows: Sequence[int]) -> None:
        """Forget rows that never came into sight."""
        self._release(np.array(rows, np.int64))

    def swap(self, provider: bytes, slots: Sequence[int] | None, staged: Sequence[int]) -> None:
        """Take the rows of these slots (None: all of the provider's) out of sight, and bring `staged` in, at once."""
        known = self._rows.get(provider, np.zeros(0, np.int32))
        rows = np.array(staged, np.int64)
        new_slots = self.columns["slot"][rows]
        count = max(len(known), int(new_slots.max()) + 1 if len(rows) else 0)
        mine = np.full(count, -1, np.int32)
        mine[: len(known)] = known
        gone = np.arange(len(known)) if slots is None else np.array([n for n in slots if n < len(known)], int)
        old = mine[gone].astype(np.int64)
        old = old[old >= 0]
        mine[gone] = -1
        mine[new_slots] = rows
        self._hide(old)
        self._show(rows)
        self.version += 1
        if (mine >= 0).any():
            self._rows[provider] = mine
        else:
            self._rows.pop(provider, None)

    def _hide(self, rows: Rows) -> None:
        kinds = self.kinds_of(rows)
        self.live[rows] = False
        np.subtract.at(self.kinds.count, kinds, 1)
        self.kinds.first[kinds[self.kinds.first[kinds] == rows]] = -1
        self._release(rows)

    def _show(self, rows: Rows) -> None:
        firsts = self._firsts_of(rows)
        kinds, ties = self.kinds_of(firsts), self.columns["tie"]
        known = self.kinds.first[kinds]
        first = (self.kinds.count[kinds] == 0) | ((known >= 0) & (ties[firsts] < ties[known]))
        self.kinds.first[kinds[first]] = firsts[first]
        self.live[rows] = True
        np.add.at(self.kinds.count, self.kinds_of(rows), 1)

    def _firsts_of(self, rows: Rows) -> Rows:
        """Of each kind among `rows` the one with the smallest tie."""
        ordered = rows[np.argsort(self.columns["tie"][rows])]
        _, at = np.unique(self.kinds_of(ordered), return_index=True)
        return ordered[at]

    def first_rows(self, kinds: Rows) -> Rows:
        """The row in sight with the smallest tie, of each of these kinds."""
        unknown = kinds[self.kinds.first[kinds] < 0]
        if len(unknown):
            sought = np.zeros(len(self.kinds), np.bool_)
            sought[unknown] = True
            used = slice(0, self._used)
            rows = np.flatnonzero(self.live[used] & sought[self.columns["kind"][used]])
            firsts = self._firsts_of(rows)
            self.kinds.first[self.kinds_of(firsts)] = firsts
        found: Rows = self.kinds.first[kinds]
        return found

    def _release(self, rows: Rows) -> None:
        self.columns["fresh_until"][rows] = 0
        uses: tuple[tuple[str, Kinds | Interned[Any]], ...] = (
            ("kind", self.kinds),
            ("traits", self.traits),
            ("owner", self.owners),
        )
        for name, interned in uses:
            numbers, times = np.unique(self.columns[name][rows], return_counts=True)
            for number, used in zip(numbers.tolist(), times.tolist(), strict=True):
                interned.release(number, used)
        self._free.extend(rows.tolist())

    def _grow(self, count: int) -> None:
        if count <= len(self.live):
            return
        self.live = _longer(self.live, count)
        for name, column in self.columns.items():
            self.columns[name] = _longer(column, count)
        self.free_accelerators = _longer(self.free_accelerators, count)

    # -- status

    def set_status(self, provider: bytes, part: int, status: HeldStatus | None) -> None:
        """Patch the changing columns of one part of a provider's slots from its newest batch; the last of two lines for
        a slot counts.
        """
        first = part * STATUS_ROWS_MAX
        mine = self._rows.get(provider, np.zeros(0, np.int32))[first : first + STATUS_ROWS_MAX]
        if not len(mine):
            return
        self.columns["fresh_until"][mine[mine >= 0]] = 0
        if status is None:
            return
        lines = status.batch.rows
        offsets = (line.slot - first for line in lines)
        places = np.fromiter((n if 0 <= n < len(mine) else len(mine) for n in offsets), np.int64, len(lines))
        rows = np.append(mine, np.int32(-1))[places].astype(np.int64)
        known = np.flatnonzero(rows >= 0)
        rows = rows[known]
        patch = self.columns
        patch["fresh_until"][rows] = status.fresh_until
        patch["status_row"][rows] = known
        for column, values in (
            ("free_cores", (line.free_cores_milli for line in lines)),
            ("free_memory", (line.free_memory_mib for line in lines)),
            ("queued", (line.queued for line in lines)),
            ("price_now", (line.price_micro for line in lines)),
        ):
            bounded = np.fromiter(map(_bounded, values), np.int64, len(lines))
            patch[column][rows] = bounded[known]
        free = np.zeros((len(lines), GROUPS_MAX), np.int32)
        for n, line in enumerate(lines):
            if groups := line.free_accelerators_milli:
                free[n, : len(groups)] = [min(milli, MILLI_MAX) for milli in groups]
        self.free_accelerators[rows] = free[known]


def _longer(column: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    room = max(count, len(column) * 5 // 4)
    longer = np.zeros((room, *column.shape[1:]), column.dtype)
    longer[: len(column)] = column
    return longer


def _bounded(value: int) -> int:
    return min(value, QUANTITY_MAX)
