"""The query's table: one row per host record, one NumPy array per column, patched as gossip arrives.

What is a word or a list of words (place, runtimes, accelerators, …) is interned: the column holds a number, and a
condition is decided once per distinct value instead of once per row.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from ioc_node.core.replica import HeldStatus
from ioc_node.market.pricing import prices_of
from ioc_wire.records import Accelerator, ResourceRecord

GROUPS_MAX: Final = 8
"""Accelerator groups of one record, as the wire allows."""
QUANTITY_MAX: Final = 1 << 40
"""Larger quantities and prices are cut down to this, so that no sum of products leaves 64 bits or a double."""

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
V = TypeVar("V")


class Interned(Generic[V]):
    """Distinct values of a column, numbered in order of appearance."""

    def __init__(self) -> None:
        self.values: list[V] = []
        self._numbers: dict[V, int] = {}

    def number(self, value: V) -> int:
        found = self._numbers.get(value)
        if found is None:
            found = self._numbers[value] = len(self.values)
            self.values.append(value)
        return found

    def test(self, accepts: Callable[[V], bool]) -> Mask:
        """Which values are accepted, to be indexed by a column."""
        return np.fromiter((accepts(value) for value in self.values), np.bool_, len(self.values))


_STATIC: Final[dict[str, Any]] = {
    "tie": np.uint64,
    "cores": np.int64,
    "memory": np.int64,
    "disk": np.int64,
    "seconds": np.int64,
    "expires": np.int64,
    "core_hour": np.int64,
    "accelerator_hour": np.int64,
    "gib_hour": np.int64,
    "task_price": np.int64,
    "reachable": np.bool_,
    "pool": np.int32,
    "runtimes": np.int32,
    "services": np.int32,
    "architecture": np.int32,
    "shape": np.int32,
}
_STATUS: Final[dict[str, Any]] = {
    "fresh_until": np.float64,
    "free_cores": np.int64,
    "free_memory": np.int64,
    "queued": np.int64,
    "price_now": np.int64,
    "status_row": np.int64,
}


class Table:
    """Rows are reused when their record goes; `live` says which count."""

    def __init__(self) -> None:
        self.live: Mask = np.zeros(64, np.bool_)
        self.columns: dict[str, npt.NDArray[Any]] = {
            name: np.zeros(64, kind) for name, kind in (_STATIC | _STATUS).items()
        }
        self.free_accelerators: npt.NDArray[np.int64] = np.zeros((64, GROUPS_MAX), np.int64)
        self.pools: Interned[str] = Interned()
        self.runtimes: Interned[tuple[str, ...]] = Interned()
        self.services: Interned[tuple[str, ...]] = Interned()
        self.architectures: Interned[str] = Interned()
        self.shapes: Interned[tuple[Accelerator, ...]] = Interned()
        self.cids: list[str] = []
        self.owners: list[tuple[bytes, int]] = []
        self.row_of: dict[bytes, dict[int, int]] = {}
        """Provider, then slot, to row."""
        self._free: list[int] = []

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self.columns[name]

    def living(self) -> Rows:
        return np.flatnonzero(self.live[: len(self.cids)])

    def put(self, provider: bytes, records: Sequence[tuple[int, ResourceRecord, bool]]) -> None:
        """Enter or replace rows of one provider: slot, record, and whether it can be reached."""
        if not records:
            return
        mine = self.row_of.setdefault(provider, {})
        rows = [self._row(mine, provider, slot, record.cid) for slot, record, _ in records]
        self._grow(len(self.cids))
        values = zip(*(self._static(record, reachable) for _, record, reachable in records), strict=True)
        for name, column in zip(_STATIC, values, strict=True):
            self.columns[name][rows] = np.array(column, dtype=_STATIC[name])
        self.live[rows] = True

    def remove(self, provider: bytes, slots: Sequence[int] | None) -> None:
        """Drop rows of one provider, all of them for None."""
        mine = self.row_of.get(provider, {})
        for slot in list(mine) if slots is None else slots:
            row = mine.pop(slot, None)
            if row is not None:
                self.live[row] = False
                self.columns["fresh_until"][row] = 0
                self._free.append(row)
        if not mine:
            self.row_of.pop(provider, None)

    def set_status(self, provider: bytes, status: HeldStatus | None) -> None:
        """Patch the changing columns of one provider from its newest batch."""
        mine = self.row_of.get(provider)
        if not mine:
            return
        self.columns["fresh_until"][list(mine.values())] = 0
        if status is None:
            return
        named = [
            (row, n) for n, line in enumerate(status.batch.rows) if (row := mine.get(line.slot)) is not None
        ]
        if not named:
            return
        last = dict(named)
        rows = list(last)
        lines = [status.batch.rows[n] for n in last.values()]
        patch = self.columns
        patch["fresh_until"][rows] = status.fresh_until
        patch["free_cores"][rows] = [_bounded(line.free_cores_milli) for line in lines]
        patch["free_memory"][rows] = [_bounded(line.free_memory_mib) for line in lines]
        patch["queued"][rows] = [_bounded(line.queued) for line in lines]
        patch["price_now"][rows] = [_bounded(line.price_micro) for line in lines]
        patch["status_row"][rows] = list(last.values())
        free = [
            line.free_accelerators_milli + (0,) * (GROUPS_MAX - len(line.free_accelerators_milli))
            for line in lines
        ]
        self.free_accelerators[rows] = free

    def _row(self, mine: dict[int, int], provider: bytes, slot: int, cid: str) -> int:
        row = mine.get(slot)
        if row is None:
            row = self._free.pop() if self._free else len(self.cids)
            mine[slot] = row
            if row == len(self.cids):
                self.cids.append(cid)
                self.owners.append((provider, slot))
        self.cids[row] = cid
        self.owners[row] = (provider, slot)
        return row

    def _grow(self, count: int) -> None:
        missing = count - len(self.live)
        if missing <= 0:
            return
        missing = max(missing, len(self.live))
        self.live = np.concatenate([self.live, np.zeros(missing, np.bool_)])
        for name, column in self.columns.items():
            self.columns[name] = np.concatenate([column, np.zeros(missing, column.dtype)])
        more = np.zeros((missing, GROUPS_MAX), np.int64)
        self.free_accelerators = np.concatenate([self.free_accelerators, more])

    def _static(self, record: ResourceRecord, reachable: bool) -> tuple[Any, ...]:
        prices = prices_of(record.prices)
        return (
            int.from_bytes(hashlib.sha256(record.cid.encode()).digest()[:8], "big"),
            _bounded(record.cpu.cores) * 1000,
            _bounded(record.memory_mib),
            _bounded(record.storage_mib),
            _bounded(record.task_seconds_max),
            _bounded(record.expires),
            *(_bounded(price) for price in prices),
            reachable,
            self.pools.number("/".join(record.cid.split("/")[:4])),
            self.runtimes.number(record.runtimes),
            self.services.number(record.services),
            self.architectures.number(record.cpu.architecture),
            self.shapes.number(record.accelerators),
        )


def _bounded(value: int) -> int:
    return min(value, QUANTITY_MAX)
