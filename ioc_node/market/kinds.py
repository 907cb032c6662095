"""What is the same for many hosts, kept once: kinds of host (place, accelerators) and traits (software, processor).

A row of the query's table holds the number of its kind and of its traits, so that a condition on them is decided once
per number instead of once per row. Uses are counted: what no row refers to any more is freed.
"""

import mmap
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from ioc_wire.records import Accelerator, ResourceRecord

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
V = TypeVar("V")

STEP_VALUES: Final = 1024
"""Interned values that are decided upon between two pauses."""

_KIND: Final[dict[str, Any]] = {
    "reachable": np.bool_,
    "class": np.int32,
    "city": np.int32,
    "pool": np.int32,
    "shape": np.int32,
}
_NO_ROWS: Final = np.zeros(0, np.int32)


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

    def measuring(self, measure: Callable[[V], int]) -> Generator[None, None, Rows]:
        """A number for every value (0 where a number is free), to be indexed by a column; in steps."""
        found = np.zeros(len(self.values), np.int64)
        for start in range(0, len(found), STEP_VALUES):
            values = self.values[start : start + STEP_VALUES]
            found[start : start + STEP_VALUES] = [
                measure(value) if value is not None else 0 for value in values
            ]
            yield
        return found

    def testing(self, accepts: Callable[[V], bool]) -> Generator[None, None, Mask]:
        """Which values are accepted, likewise."""
        return (yield from self.measuring(accepts)).astype(np.bool_)


class Kinds:
    """The distinct kinds, one column per attribute. `rows` are those in sight, by kind; `count` says how many."""

    def __init__(self) -> None:
        self.rows: list[npt.NDArray[np.int32]] = [_NO_ROWS] * 16
        self.columns: dict[str, npt.NDArray[Any]] = {name: np.zeros(16, kind) for name, kind in _KIND.items()}
        self.count: npt.NDArray[np.int64] = np.zeros(16, np.int64)
        self.first: npt.NDArray[np.int64] = np.full(16, -1, np.int64)
        """The row in sight with the smallest tie; -1 where there is none."""
        self.living = 0
        """Rows in sight, of all kinds."""
        self.classes: Interned[str] = Interned()
        self.cities: Interned[str] = Interned()
        self.pools: Interned[str] = Interned()
        self.shapes: Interned[tuple[Accelerator, ...]] = Interned()
        self._known: Interned[str] = Interned()
        """Reachable, number of the shape, and pool, in one text: a dict of tuples would be young, and gone through by
        garbage collections, whenever one is added."""

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self.columns[name]

    def __len__(self) -> int:
        """Numbers in use or free: the length that an array indexed by kind has to have."""
        return len(self._known.values)

    def take(self, record: ResourceRecord, reachable: bool) -> int:
        """The number of a record's kind, referred to once more."""
        shape = self.shapes.take(record.accelerators)
        pool = "/".join(record.cid.split("/")[:4])
        before = len(self._known)
        number = self._known.take(f"{reachable:d} {shape} {pool}")
        if len(self._known) > before:
            self._enter(number, reachable, pool, shape)
        else:
            self.shapes.release(shape)
        return number

    def _enter(self, number: int, reachable: bool, pool: str, shape: int) -> None:
        if number >= len(self.count):
            self.count = longer(self.count, number + 1)
            self.first = longer(self.first, number + 1)
            self.rows += [_NO_ROWS] * (len(self.count) - len(self.rows))
            for name, column in self.columns.items():
                self.columns[name] = longer(column, number + 1)
        self.put_rows(number, _NO_ROWS, -1)
        _, resource_class, city, *_ = pool.split("/")
        self.columns["reachable"][number] = reachable
        self.columns["class"][number] = self.classes.take(resource_class)
        self.columns["city"][number] = self.cities.take(city)
        self.columns["pool"][number] = self.pools.take(pool)
        self.columns["shape"][number] = shape

    def put_rows(self, number: int, rows: npt.NDArray[np.int32], first: int) -> None:
        """The rows of a kind that are in sight now, and which of them has the smallest tie."""
        self.living += len(rows) - int(self.count[number])
        self.rows[number], self.count[number], self.first[number] = rows, len(rows), first

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
    """What software and processor a host offers, and how it is managed."""

    runtimes: tuple[str, ...]
    services: tuple[str, ...]
    architecture: str
    cpu_model: str = ""
    offloads: tuple[str, ...] = ()
    management: str = ""


Labels = tuple[tuple[str, str], ...]


def pack_labels(labels: Labels) -> bytes:
    """As they are interned: racks are many, and bytes are nothing to a garbage collection."""
    return msgspec.msgpack.encode(labels)


def unpack_labels(packed: bytes) -> Labels:
    return msgspec.msgpack.decode(packed, type=Labels)


def reserved(shape: int | tuple[int, int], kind: Any) -> npt.NDArray[Any]:
    """Zeros that cost memory where they are written, in small pages. NumPy would ask for pages of 2 MiB; thirty columns
    that are given one each, because a row is entered, hold everybody up for 15 ms or more.
    """
    dtype = np.dtype(kind)
    room = mmap.mmap(-1, int(np.prod(shape)) * dtype.itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without large pages
        room.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(room, dtype).reshape(shape)


def longer(column: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    """A copy with room for `count` along the last axis, and a quarter more."""
    room = max(count, column.shape[-1] * 5 // 4)
    copy = np.zeros((*column.shape[:-1], room), column.dtype)
    copy[..., : column.shape[-1]] = column
    return copy
