"""The conditions of a demand, in the order in which they are held against the rows, each with its nearest miss.

What a place can never give is asked before what it has not got just now, so that a removal's name says whether
waiting would help (`cores` or `free cores`).
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ioc_node.market.columns import GROUPS_MAX, ZONED, Table, tie_of
from ioc_node.market.kinds import Mask, Rows, Traits
from ioc_node.market.leases import is_wanted, peaks_of
from ioc_node.market.pricing import cores_milli, format_micro
from ioc_wire.cid import prefix_covers
from ioc_wire.market import Demand
from ioc_wire.records import Accelerator
from ioc_wire.tasks import AcceleratorDemand

REASON_CHARS_MAX = 512
Amounts = npt.NDArray[np.int64]
Free = npt.NDArray[np.int32]


class Condition(NamedTuple):
    """`keeps` says which rows pass (of an array of row numbers, or of a slice), or which kinds of row where it is one
    on `kinds`. Of what does not pass, the nearest miss has the largest of `amounts` (all the same where there are
    none), and `words` describes it. `floor` is a zoned column and the least that passes, where that is all of it.
    """

    name: str
    keeps: Callable[[Rows | slice], Mask]
    words: Callable[[int], str]
    amounts: Callable[[Rows], Amounts] | None = None
    floor: tuple[str, int] | None = None


def kind_conditions(demand: Demand, table: Table) -> Iterator[Condition]:
    """Conditions on kinds of row: what a place is and can ever give."""
    kinds = table.kinds
    yield Condition("address", lambda rows: kinds["reachable"][rows], _text("has no address"))
    yield from _places(demand, table)
    if demand.resources.accelerators:
        fits = AcceleratorFit(table, demand.resources.accelerators)
        yield Condition("accelerators", fits.ever, fits.miss, fits.amounts)


def row_conditions(demand: Demand, table: Table, *, unix: float) -> Iterator[Condition]:
    """Conditions on single rows: what a host can ever give, then what it can give now."""
    yield from _words(demand, table)
    limits, resources, columns = demand.constraints, demand.resources, table.columns
    yield _at_least(columns, "cores", "cores", cores_milli(demand), 1000, "cores")
    yield _at_least(columns, "memory", "memory", resources.memory_mib, 1, "MiB of memory")
    yield _at_least(columns, "disk", "disk", resources.disk_mib, 1, "MiB of disk")
    yield _at_least(columns, "duration", "seconds", demand.wall_seconds, 1, "seconds that a task may run")
    if any(map(_is_host, limits.allow)):
        yield _named(table, "allow", limits.allow, allowed=True)
    if any(map(_is_host, limits.deny)):
        yield _named(table, "deny", limits.deny, allowed=False)
    yield Condition(
        "record",
        lambda rows: table["expires"][rows] > unix,
        _text("has a record that has expired"),
        floor=("expires", int(unix) + 1),
    )
    yield Condition(
        "status", lambda rows: table["fresh_until"][rows] > unix, _text("has not told its status of late")
    )
    if limits.price_micro_max is not None:
        yield _price(limits.price_micro_max, table)
    if resources.accelerators:
        fits = AcceleratorFit(table, resources.accelerators)
        yield Condition("free accelerators", fits.now, _text("has them, but not free now"))
    yield _at_least(columns, "free cores", "free_cores", cores_milli(demand), 1000, "cores free")
    yield _at_least(columns, "free memory", "free_memory", resources.memory_mib, 1, "MiB of memory free")


# -- where


def _places(demand: Demand, table: Table) -> Iterator[Condition]:
    limits = demand.constraints
    if limits.resource_class:
        classes = table.kinds.classes.test(lambda value: value == limits.resource_class)
        yield Condition(
            "class",
            lambda rows: classes[table.kinds["class"][rows]],
            _text(f"is not {limits.resource_class}"),
        )
    if limits.allow and not any(map(_is_host, limits.allow)):
        yield _named(table, "allow", limits.allow, allowed=True)
    if limits.deny and not any(map(_is_host, limits.deny)):
        yield _named(table, "deny", limits.deny, allowed=False)
    if limits.cities:
        wanted = frozenset(limits.cities)
        cities = table.kinds.cities.test(lambda value: value in wanted)
        yield Condition(
            "city",
            lambda rows: cities[table.kinds["city"][rows]],
            _text(f"is not in {', '.join(limits.cities)}"),
        )


def _is_host(item: str) -> bool:
    return item.startswith("ioc:") and item.rstrip("/").count("/") > 3


def _named(table: Table, name: str, items: Sequence[str], *, allowed: bool) -> Condition:
    """Prefixes (`cn.r3301`) and beginnings of identifiers (`ioc:cn.r3301.20004/ai`), both label by label; a condition
    on kinds, unless single hosts are named.
    """
    prefixes = [item for item in items if not item.startswith("ioc:")]
    hosts = [tie_of(item.rstrip("/")) for item in items if _is_host(item)]
    areas = [item.rstrip("/") for item in items if item.startswith("ioc:") and not _is_host(item)]

    def covered(pool: str) -> bool:
        prefix = pool.removeprefix("ioc:").partition("/")[0]
        if any(prefix_covers(item, prefix) for item in prefixes):
            return True
        return any(pool == area or pool.startswith(f"{area}/") for area in areas)

    accepted = table.kinds.pools.test(covered)

    def keeps(rows: Rows | slice) -> Mask:
        kinds = table.kinds_of(rows) if hosts else rows
        mask: Mask = accepted[table.kinds["pool"][kinds]]
        if hosts:
            mask |= np.isin(table["tie"][rows], np.array(hosts, np.uint64))
        return mask if allowed else ~mask

    what = ", ".join(items)[:120]
    return Condition(name, keeps, _text(f"is {'outside of' if allowed else 'within'} {what}"))


# -- what it is


def _words(demand: Demand, table: Table) -> Iterator[Condition]:
    traits, column = table.traits, table.columns
    runtimes, services = frozenset(demand.runtimes), frozenset(demand.constraints.services)
    architectures = frozenset(demand.constraints.architectures)

    def of(row: int) -> Traits:
        found = traits.values[int(column["traits"][row])]
        assert found is not None
        return found

    if runtimes:
        lacking = np.array(
            [-len(runtimes - set(one.runtimes)) if one else 0 for one in traits.values], np.int64
        )
        yield Condition(
            "runtimes",
            lambda rows: lacking[column["traits"][rows]] == 0,
            lambda row: f"has {', '.join(of(row).runtimes) or 'none'}, not {', '.join(sorted(runtimes))}",
            lambda rows: lacking[column["traits"][rows]],
        )
    if architectures:
        known = traits.test(lambda one: one.architecture in architectures)
        yield Condition(
            "architecture",
            lambda rows: known[column["traits"][rows]],
            lambda row: f"has {of(row).architecture}, not {' or '.join(sorted(architectures))}",
        )
    if services:
        there = traits.test(lambda one: services <= set(one.services))
        yield Condition(
            "services",
            lambda rows: there[column["traits"][rows]],
            _text(f"lacks one of {', '.join(sorted(services))}"),
        )


# -- how much


def _at_least(
    columns: dict[str, npt.NDArray[np.int64]], name: str, column: str, least: int, unit: int, words: str
) -> Condition:
    return Condition(
        name,
        lambda rows: columns[column][rows] >= least,
        lambda row: f"has {int(columns[column][row]) / unit:.12g} of the {least / unit:.12g} {words}",
        lambda rows: columns[column][rows],
        (column, least) if column in ZONED else None,
    )


def _price(most: int, table: Table) -> Condition:
    def words(row: int) -> str:
        price = int(table["core_hour_now"][row])
        return f"costs {format_micro(price)} per core-hour, at most {format_micro(most)} is paid"

    return Condition(
        "price",
        lambda rows: table["core_hour_now"][rows] <= most,
        words,
        lambda rows: -table["core_hour_now"][rows],
    )


class AcceleratorFit:
    """Which rows have the accelerators of a demand, ever and now: whole numbers of thousandths, taken group by group.

    A group serves an item alone, and only whole devices unless it is shared. What few groups serve is taken first, then
    what is large. Precisions are never mixed.
    """

    def __init__(self, table: Table, wanted: tuple[AcceleratorDemand, ...]) -> None:
        self._table = table
        self._wanted = wanted
        shapes = [shape or () for shape in table.kinds.shapes.values]
        self._groups = {
            number: groups
            for number, shape in enumerate(shapes)
            if all(
                groups := [[g for g, there in enumerate(shape) if _serves(there, item)] for item in wanted]
            )
        }
        self._totals: Amounts = np.zeros((len(shapes), GROUPS_MAX), np.int64)
        self._serving: Mask = np.zeros((len(shapes), GROUPS_MAX), np.bool_)
        for number, groups in self._groups.items():
            there = [min(one.count, 1 << 30) * 1000 for one in shapes[number]]
            self._totals[number, : len(there)] = there
            self._serving[number, groups[0]] = True
        self._enough: Mask = (self._totals >= wanted[0].count_milli) & self._serving
        serving = np.flatnonzero(self._enough.any(axis=0)).tolist()
        self._only: int | None = serving[0] if len(wanted) == len(serving) == 1 else None
        """The group that alone can serve the only item, in whatever shape."""
        self._most = np.array([_most(shape, wanted[0]) for shape in shapes], np.int64)

    def ever(self, kinds: Rows | slice) -> Mask:
        """Which kinds have them at all."""
        return self._fits(self._table.kinds["shape"][kinds], None)

    def now(self, rows: Rows | slice) -> Mask:
        """Which rows have them free, of rows whose kind has them."""
        table = self._table
        if self._only is not None:
            there: Mask = table.free_accelerators[self._only][rows] >= self._wanted[0].count_milli
            return there
        shapes = table.kinds["shape"][table.kinds_of(rows)]
        return self._fits(shapes, lambda group: table.free_accelerators[group][rows])

    def amounts(self, kinds: Rows) -> Amounts:
        """How many of the first item's kind there are."""
        found: Amounts = self._most[self._table.kinds["shape"][kinds]]
        return found

    def miss(self, kind: int) -> str:
        item = self._wanted[0]
        there = self._most[self._table.kinds["shape"][kind]]
        words = " or ".join(item.models) or item.type
        return f"has {there} of the {item.count_milli / 1000:g} {words} accelerators"

    def _fits(self, shapes: npt.NDArray[np.int32], free: Callable[[int], Free] | None) -> Mask:
        if len(self._wanted) == 1:
            return self._fits_one(shapes, free)
        fits: Mask = np.zeros(len(shapes), np.bool_)
        for number in np.flatnonzero(np.bincount(shapes)).tolist():
            groups = self._groups.get(number)
            if groups is None:
                continue
            chosen = np.flatnonzero(shapes == number)
            left = np.tile(self._totals[number][:, np.newaxis], len(chosen))
            for group in set(chain(*groups)) if free is not None else ():
                assert free is not None
                np.minimum(left[group], free(group)[chosen], out=left[group])
            fits[chosen] = self._take(left, groups)
        return fits

    def _fits_one(self, shapes: npt.NDArray[np.int32], free: Callable[[int], Free] | None) -> Mask:
        """One item: any group that serves it alone will do, and all rows are asked at once."""
        fits: Mask = np.zeros(len(shapes), np.bool_)
        for group in np.flatnonzero(self._enough.any(axis=0)).tolist():
            can = self._enough[:, group][shapes]
            fits |= can if free is None else can & (free(group) >= self._wanted[0].count_milli)
        return fits

    def _take(self, left: npt.NDArray[np.int64], groups: list[list[int]]) -> Mask:
        served: Mask = np.ones(left.shape[1], np.bool_)
        pairs = zip(self._wanted, groups, strict=True)
        for item, candidates in sorted(pairs, key=lambda pair: (len(pair[1]), -pair[0].count_milli)):
            taken: Mask = np.zeros(left.shape[1], np.bool_)
            for group in candidates:
                can = ~taken & (left[group] >= item.count_milli)
                left[group, can] -= item.count_milli
                taken |= can
            served &= taken
        return served


def _serves(there: Accelerator, item: AcceleratorDemand) -> bool:
    if there.sharing == "exclusive" and item.count_milli % 1000:
        return False
    return is_wanted(there, item, peaks_of(there))


def _most(shape: tuple[Accelerator, ...], item: AcceleratorDemand) -> int:
    return max((there.count for there in shape if _serves(there, item)), default=0)


def _text(words: str) -> Callable[[int], str]:
    return lambda row: words
