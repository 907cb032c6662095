"""The conditions of a demand, in the order in which they are held against the rows, each with its nearest miss.

What a place can never give is asked before what it has not got just now, so that a removal's name says whether
waiting would help (`cores` or `free cores`).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ioc_node.market.columns import GROUPS_MAX, Mask, Rows, Table
from ioc_node.market.pricing import cores_milli, format_micro
from ioc_wire.cid import prefix_covers
from ioc_wire.market import Demand
from ioc_wire.records import Accelerator
from ioc_wire.tasks import AcceleratorDemand

REASON_CHARS_MAX = 512


class Condition(NamedTuple):
    """`keeps` says which rows pass; `miss` describes the nearest of those that did not."""

    name: str
    keeps: Callable[[Rows], Mask]
    miss: Callable[[Rows], str]


def conditions_of(demand: Demand, table: Table, *, unix: float) -> Iterator[Condition]:
    """Every condition that `demand` sets, and those that all rows have to meet."""
    yield Condition("address", lambda rows: table["reachable"][rows], _text(table, "has no address"))
    yield Condition(
        "record", lambda rows: table["expires"][rows] > unix, _text(table, "has a record that has expired")
    )
    yield from _places(demand, table)
    yield from _words(demand, table)
    wanted = demand.resources.accelerators
    if wanted:
        fits = AcceleratorFit(table, wanted)
        yield Condition("accelerators", fits.ever, fits.miss)
    resources = demand.resources
    yield _at_least(table, "cores", "cores", cores_milli(demand), 1000, "cores")
    yield _at_least(table, "memory", "memory", resources.memory_mib, 1, "MiB of memory")
    yield _at_least(table, "disk", "disk", resources.disk_mib, 1, "MiB of disk")
    yield _at_least(table, "duration", "seconds", demand.wall_seconds, 1, "seconds that a task may run")
    yield Condition(
        "status",
        lambda rows: table["fresh_until"][rows] > unix,
        _text(table, "has not told its status of late"),
    )
    if demand.constraints.price_micro_max is not None:
        yield _price(demand.constraints.price_micro_max, table)
    if wanted:
        yield Condition("free accelerators", fits.now, _text(table, "has them, but not free now"))
    yield _at_least(table, "free cores", "free_cores", cores_milli(demand), 1000, "cores free")
    yield _at_least(table, "free memory", "free_memory", resources.memory_mib, 1, "MiB of memory free")


# -- where


def _places(demand: Demand, table: Table) -> Iterator[Condition]:
    limits = demand.constraints
    if limits.resource_class:
        yield _pool(
            table,
            "class",
            lambda pool: pool.split("/")[1] == limits.resource_class,
            f"not {limits.resource_class}",
        )
    if limits.allow:
        yield _named(table, "allow", limits.allow, allowed=True)
    if limits.deny:
        yield _named(table, "deny", limits.deny, allowed=False)
    if limits.cities:
        cities = frozenset(limits.cities)
        yield _pool(
            table, "city", lambda pool: pool.split("/")[2] in cities, f"not in {', '.join(limits.cities)}"
        )


def _pool(table: Table, name: str, accepts: Callable[[str], bool], wrong: str) -> Condition:
    return Condition(
        name, lambda rows: table.pools.test(accepts)[table["pool"][rows]], _text(table, f"is {wrong}")
    )


def _named(table: Table, name: str, items: Sequence[str], *, allowed: bool) -> Condition:
    """Prefixes (`cn.r3301`) and beginnings of identifiers (`ioc:cn.r3301.20004/ai`), both label by label."""
    prefixes = [item for item in items if not item.startswith("ioc:")]
    areas = [
        item.rstrip("/") for item in items if item.startswith("ioc:") and item.rstrip("/").count("/") <= 3
    ]
    hosts = {item.rstrip("/") for item in items if item.startswith("ioc:")} - set(areas)

    def covered(pool: str) -> bool:
        prefix = pool.removeprefix("ioc:").partition("/")[0]
        if any(prefix_covers(item, prefix) for item in prefixes):
            return True
        return any(pool == area or pool.startswith(f"{area}/") for area in areas)

    def keeps(rows: Rows) -> Mask:
        mask: Mask = table.pools.test(covered)[table["pool"][rows]]
        if hosts:
            mask |= np.fromiter((table.cids[row] in hosts for row in rows), np.bool_, len(rows))
        return mask if allowed else ~mask

    what = ", ".join(items)[:120]
    return Condition(name, keeps, _text(table, f"is {'outside of' if allowed else 'within'} {what}"))


# -- what it is


def _words(demand: Demand, table: Table) -> Iterator[Condition]:
    runtimes, services = frozenset(demand.runtimes), frozenset(demand.constraints.services)
    architectures = frozenset(demand.constraints.architectures)
    if runtimes:
        yield Condition(
            "runtimes",
            lambda rows: table.runtimes.test(lambda value: runtimes <= set(value))[table["runtimes"][rows]],
            lambda rows: _runtimes_miss(table, rows, runtimes),
        )
    if architectures:
        yield Condition(
            "architecture",
            lambda rows: table.architectures.test(lambda value: value in architectures)[
                table["architecture"][rows]
            ],
            lambda rows: _architecture_miss(table, rows, architectures),
        )
    if services:
        yield Condition(
            "services",
            lambda rows: table.services.test(lambda value: services <= set(value))[table["services"][rows]],
            _text(table, f"lacks one of {', '.join(sorted(services))}"),
        )


def _runtimes_miss(table: Table, rows: Rows, wanted: frozenset[str]) -> str:
    lacking = np.array([-len(wanted - set(value)) for value in table.runtimes.values], np.int64)
    row = _closest(table, rows, lacking[table["runtimes"][rows]])
    there = ", ".join(table.runtimes.values[table["runtimes"][row]]) or "none"
    return f"{table.cids[row]} has {there}, not {', '.join(sorted(wanted))}"


def _architecture_miss(table: Table, rows: Rows, wanted: frozenset[str]) -> str:
    row = _closest(table, rows, None)
    there = table.architectures.values[table["architecture"][row]]
    return f"{table.cids[row]} has {there}, not {' or '.join(sorted(wanted))}"


# -- how much


def _at_least(table: Table, name: str, column: str, least: int, unit: int, words: str) -> Condition:
    def miss(rows: Rows) -> str:
        amounts = table[column][rows]
        row = _closest(table, rows, amounts)
        return (
            f"{table.cids[row]} has {int(table[column][row]) / unit:.12g} of the {least / unit:.12g} {words}"
        )

    return Condition(name, lambda rows: table[column][rows] >= least, miss)


def core_hour_now(table: Table, rows: Rows) -> npt.NDArray[np.int64]:
    """Price of a core-hour: the status row's where it names one, else the record's."""
    now = table["price_now"][rows]
    chosen: npt.NDArray[np.int64] = np.where(now > 0, now, table["core_hour"][rows])
    return chosen


def _price(most: int, table: Table) -> Condition:
    def miss(rows: Rows) -> str:
        prices = core_hour_now(table, rows)
        row = _closest(table, rows, -prices)
        price = int(core_hour_now(table, np.array([row]))[0])
        return f"{table.cids[row]} costs {format_micro(price)} per core-hour, at most {format_micro(most)} is paid"

    return Condition("price", lambda rows: core_hour_now(table, rows) <= most, miss)


class AcceleratorFit:
    """Which rows have the accelerators of a demand, ever and now: whole numbers of thousandths, taken group by group.

    A group serves an item alone, and only whole devices unless it is shared. Precisions are never mixed.
    """

    def __init__(self, table: Table, wanted: tuple[AcceleratorDemand, ...]) -> None:
        self._table = table
        self._wanted = wanted
        self._groups = {
            number: groups
            for number, shape in enumerate(table.shapes.values)
            if all(
                groups := [[g for g, there in enumerate(shape) if _serves(there, item)] for item in wanted]
            )
        }

    def ever(self, rows: Rows) -> Mask:
        return self._fits(rows, now=False)

    def now(self, rows: Rows) -> Mask:
        return self._fits(rows, now=True)

    def miss(self, rows: Rows) -> str:
        """The row that has most of the first item's kind."""
        item = self._wanted[0]
        most = [_most(shape, item) for shape in self._table.shapes.values]
        counts = np.array(most, np.int64)[self._table["shape"][rows]]
        row = _closest(self._table, rows, counts)
        there = most[self._table["shape"][row]]
        kind = " or ".join(item.models) or item.type
        return f"{self._table.cids[row]} has {there} of the {item.count_milli / 1000:g} {kind} accelerators"

    def _fits(self, rows: Rows, *, now: bool) -> Mask:
        table = self._table
        fits: Mask = np.zeros(len(rows), np.bool_)
        shapes = table["shape"][rows]
        for number in np.unique(shapes):
            groups = self._groups.get(int(number))
            if groups is None:
                continue
            chosen = np.flatnonzero(shapes == number)
            total = np.zeros(GROUPS_MAX, np.int64)
            shape = table.shapes.values[number]
            total[: len(shape)] = [min(there.count, 1 << 30) * 1000 for there in shape]
            left = np.tile(total, (len(chosen), 1))
            if now:
                left = np.minimum(left, table.free_accelerators[rows[chosen]])
            fits[chosen] = self._take(left, groups)
        return fits

    def _take(self, left: npt.NDArray[np.int64], groups: list[list[int]]) -> Mask:
        served: Mask = np.ones(len(left), np.bool_)
        for item, candidates in zip(self._wanted, groups, strict=True):
            taken: Mask = np.zeros(len(left), np.bool_)
            for group in candidates:
                can = ~taken & (left[:, group] >= item.count_milli)
                left[can, group] -= item.count_milli
                taken |= can
            served &= taken
        return served


def _serves(there: Accelerator, item: AcceleratorDemand) -> bool:
    if there.type != item.type or (item.models and there.model not in item.models):
        return False
    if there.memory_mib < item.memory_mib_min or (there.sharing == "exclusive" and item.count_milli % 1000):
        return False
    if item.tflops_min <= 0:
        return True
    peak = there.int8_gops if item.precision == "int8" else dict(there.peak).get(item.precision, 0)
    return peak >= item.tflops_min * 1000


def _most(shape: tuple[Accelerator, ...], item: AcceleratorDemand) -> int:
    return max((there.count for there in shape if _serves(there, item)), default=0)


# -- the nearest miss


def _closest(table: Table, rows: Rows, amounts: npt.NDArray[np.int64] | Sequence[int] | None) -> int:
    """The row with the largest amount; of several the one whose identifier has the smallest hash, on every node."""
    if amounts is not None:
        values = np.asarray(amounts)
        rows = rows[values == values.max()]
    return int(rows[np.argmin(table["tie"][rows])])


def _text(table: Table, words: str) -> Callable[[Rows], str]:
    return lambda rows: f"{table.cids[_closest(table, rows, None)]} {words}"
