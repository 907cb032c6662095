"""The query's table: one row per host record, one NumPy array per column, patched as gossip arrives.

What is the same for many hosts is interned (`ioc_node.market.kinds`). A condition reads `table.kinds["shape"][kinds]`
or `table["memory"][rows]`, with an array of row numbers or a slice; `table.kinds_of(rows)` leads from one to the other.

A row is staged out of sight and then swapped for its predecessor, so that a host that changes is never missing.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ioc_node.core.replica import HeldStatus
from ioc_node.market.kinds import Interned, Kinds, Mask, Rows, Traits, longer, pack_labels
from ioc_node.market.pricing import prices_of
from ioc_wire.limits import STATUS_ROWS_MAX
from ioc_wire.records import ResourceRecord, StatusRow

GROUPS_MAX: Final = 8
"""Accelerator groups of one record, as the wire allows."""
QUANTITY_MAX: Final = 1 << 40
"""Larger quantities and prices are cut down to this, so that no sum of products leaves 64 bits or a double."""
MILLI_MAX: Final = (1 << 31) - 1
"""Free thousandths of one accelerator group are cut down to this."""
ROWS_RESERVED: Final = 1 << 21
"""Room that is there from the beginning, as address space: a column that is copied to grow holds everybody up."""
ZONE_ROWS: Final = 1 << 14
"""Rows for which the smallest value of a column is known together."""

_ROW: Final[dict[str, Any]] = {
    "kind": np.int32,
    "traits": np.int32,
    "labels": np.int32,
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
    "core_hour_now": np.int64,
    "fresh_until": np.float64,
    "free_cores": np.int64,
    "free_memory": np.int64,
    "queued": np.int64,
    "price_now": np.int64,
}
_QUANTITIES: Final = frozenset(
    {
        *("expires", "cores", "memory", "disk", "seconds"),
        *("core_hour", "accelerator_hour", "gib_hour", "task_price"),
    }
)
_NONE: Final = (0,) * GROUPS_MAX
_STATUS: Final = ("fresh_until", "free_cores", "free_memory", "queued", "price_now")
ZONED: Final = ("expires", "cores", "memory", "disk", "seconds")


def tie_of(cid: str) -> int:
    """What orders equals, the same on every node: the first 63 bits of SHA-256 of the identifier."""
    return int.from_bytes(hashlib.sha256(cid.encode()).digest()[:8], "big") >> 1


class Swapped(NamedTuple):
    """The rows that are gone, and how many came for slots that had none."""

    gone: list[int]
    new: int


class Table:
    """Rows are reused when their record goes; `live` says which are in sight."""

    def __init__(self) -> None:
        self.kinds = Kinds()
        self.live: Mask = np.zeros(ROWS_RESERVED, np.bool_)
        self.columns: dict[str, npt.NDArray[Any]] = {
            name: np.zeros(ROWS_RESERVED, kind) for name, kind in _ROW.items()
        }
        self.free_accelerators: npt.NDArray[np.int32] = np.zeros((GROUPS_MAX, ROWS_RESERVED), np.int32)
        """Thousandths, by group and row."""
        self.owners: Interned[bytes] = Interned()
        self.traits: Interned[Traits] = Interned()
        self.labels: Interned[bytes] = Interned()
        self._least: dict[str, Rows] = {
            name: np.full(ROWS_RESERVED // ZONE_ROWS + 1, QUANTITY_MAX, np.int64) for name in ZONED
        }
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

    def slots_of(self, provider: bytes) -> int:
        """One more than the highest slot of which there is, or was, a row in sight."""
        return len(self._rows.get(provider, ()))

    def has_at_least(self, column: str, least: int, start: int, end: int) -> bool:
        """Whether all rows in sight from `start` to before `end` have so much, as far as is known without a look at
        them. Of the zoned columns only.
        """
        zones = self._least[column][start // ZONE_ROWS : (end - 1) // ZONE_ROWS + 1]
        return bool((zones >= least).all())

    def kinds_of(self, rows: Rows | slice) -> npt.NDArray[np.int32]:
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
        lines: list[tuple[int, ...]] = []
        for slot, record, reachable in records:
            rows.append(self._free.pop() if self._free else self._used)
            self._used = max(self._used, rows[-1] + 1)
            lines.append(
                (
                    self.kinds.take(record, reachable),
                    self.traits.take(_traits_of(record)),
                    self.labels.take(pack_labels(record.labels)),
                    self.owners.take(provider),
                    slot,
                    tie_of(record.cid),
                    record.expires,
                    record.cpu.cores,
                    record.memory_mib,
                    record.storage_mib,
                    record.task_seconds_max,
                    *prices_of(record.prices),
                )
            )
        self._grow(self._used)
        at = np.array(rows, np.int64)
        for (name, kind), values in zip(_ROW.items(), zip(*lines, strict=True), strict=False):
            column = np.array(values, np.int64).astype(kind)
            self.columns[name][at] = np.minimum(column, QUANTITY_MAX) if name in _QUANTITIES else column
        self.columns["cores"][at] *= 1000
        self.columns["core_hour_now"][at] = self.columns["core_hour"][at]
        self.columns["fresh_until"][at] = 0
        return rows

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
        if (mine >= 0).any():
            self._rows[provider] = mine
        else:
            self._rows.pop(provider, None)
        return Swapped(old.tolist(), int(np.count_nonzero(before < 0)))

    def _keep_status(self, before: Rows, after: Rows) -> None:
        for name in _STATUS:
            self.columns[name][after] = self.columns[name][before]
        self.free_accelerators[:, after] = self.free_accelerators[:, before]
        now = self.columns["price_now"][after]
        self.columns["core_hour_now"][after] = np.where(now > 0, now, self.columns["core_hour"][after])

    def _regroup(self, hidden: Rows, shown: Rows) -> None:
        """Bring rows out of sight and into it, kind by kind."""
        self.live[hidden], self.live[shown] = False, True
        for name, least in self._least.items():
            np.minimum.at(least, shown // ZONE_ROWS, self.columns[name][shown])
        came = shown[np.argsort(self.kinds_of(shown), kind="stable")]
        numbers, starts = np.unique(self.kinds_of(came), return_index=True)
        new = dict(zip(numbers.tolist(), np.split(came.astype(np.int32), starts[1:]), strict=bool(len(came))))
        left = set(np.unique(self.kinds_of(hidden)).tolist())
        kinds, ties = self.kinds, self.columns["tie"]
        for number in left | new.keys():
            rows = kinds.rows[number]
            if number in left:
                rows = rows[self.live[rows]]
            if number in new:
                rows = np.concatenate([rows, new[number]])
            kinds.put_rows(number, rows, int(rows[ties[rows].argmin()]) if len(rows) else -1)

    def first_rows(self, kinds: Rows) -> Rows:
        """The row in sight with the smallest tie, of each of these kinds."""
        found: Rows = self.kinds.first[kinds]
        return found

    def _release(self, rows: Rows) -> None:
        self.columns["fresh_until"][rows] = 0
        uses: tuple[tuple[str, Kinds | Interned[Any]], ...] = (
            ("kind", self.kinds),
            ("traits", self.traits),
            ("labels", self.labels),
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
        self.live = longer(self.live, count)
        for name, column in self.columns.items():
            self.columns[name] = longer(column, count)
        self.free_accelerators = longer(self.free_accelerators, count)
        zones = len(self.live) // ZONE_ROWS + 1
        for name, least in self._least.items():
            self._least[name] = np.append(least, np.full(zones - len(least), QUANTITY_MAX, np.int64))

    # -- status

    def statuses_of(self, rows: Rows) -> Iterator[StatusRow]:
        """The status of each of these rows in sight."""
        columns, kinds = self.columns, self.kinds
        names = ("slot", "free_cores", "free_memory", "queued", "price_now")
        slots, cores, memory, queued, prices = (columns[name][rows].tolist() for name in names)
        free = self.free_accelerators[:, rows].T.tolist()
        shapes = (kinds.shapes.values[shape] or () for shape in kinds["shape"][self.kinds_of(rows)].tolist())
        groups = (tuple(devices[: len(shape)]) for devices, shape in zip(free, shapes, strict=True))
        return map(StatusRow, slots, cores, memory, groups, queued, prices)

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
        for column, values in (
            ("free_cores", [line.free_cores_milli for line in lines]),
            ("free_memory", [line.free_memory_mib for line in lines]),
            ("queued", [line.queued for line in lines]),
            ("price_now", [line.price_micro for line in lines]),
        ):
            patch[column][rows] = np.minimum(np.array(values, np.int64), QUANTITY_MAX)[known]
        now = patch["price_now"][rows]
        patch["core_hour_now"][rows] = np.where(now > 0, now, patch["core_hour"][rows])
        groups = [line.free_accelerators_milli for line in lines]
        free = np.array([(*one, *_NONE[len(one) :]) for one in groups], np.int64).reshape(-1, GROUPS_MAX)
        self.free_accelerators[:, rows] = np.minimum(free, MILLI_MAX)[known].T


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
