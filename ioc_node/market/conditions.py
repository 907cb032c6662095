"""The conditions of a demand, in the order in which they are held against the rows, each with its nearest miss.

What a place can never give is asked before what it has not got just now, so that a removal's name says whether
waiting would help (`cores` or `free cores`).
"""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ioc_node.market.accelerators import AcceleratorFit, Amounts
from ioc_node.market.columns import ZONED, Table, tie_of
from ioc_node.market.kinds import Mask, Rows, Traits
from ioc_node.market.pricing import cores_milli, format_micro
from ioc_wire.cid import prefix_covers
from ioc_wire.market import Demand

REASON_CHARS_MAX = 512
Deciding = Generator[None, None, list["Condition"]]
"""Steps in which what can be decided beforehand is, once for each interned value."""


class Condition(NamedTuple):
    """`keeps` says which rows pass (of an array of row numbers, or of a slice), or which kinds of row where it is one
    on `kinds`. Of what does not pass, the nearest miss has the largest of `amounts` (all the same where there are
    none), and `words` describes it. `floor` is a zoned column and the least that passes, where that is all of it.
    """

    name: str
    keeps: Callable[[Rows | slice], Mask]
    words: Callable[[int], str]
    amounts: Callable[[Rows], Amounts] | None = None
    floor: tuple[str, float] | None = None


class Standing(NamedTuple):
    """The conditions that neither status nor time changes, but those on amounts: on kinds of row (what a place is and
    can ever give), and on single rows (what a host is). `fit` is there where accelerators are wanted.
    """

    kinds: list[Condition]
    rows: list[Condition]
    fit: AcceleratorFit | None


def standing(demand: Demand, table: Table) -> Generator[None, None, Standing]:
    """They hold while no row of the table comes or goes."""
    fit = None
    if demand.resources.accelerators:
        fit = AcceleratorFit(table, demand.resources.accelerators)
        yield from fit.decide()
    kinds = yield from _places(demand, table)
    if fit is not None:
        kinds.append(Condition("accelerators", fit.ever, fit.miss, fit.amounts))
    words = yield from _words(demand, table)
    return Standing(kinds, words, fit)


def amounts(demand: Demand, table: Table) -> list[Condition]:
    """The conditions on how much a host can ever give."""
    resources, columns = demand.resources, table.columns
    return [
        _at_least(columns, "cores", "cores", cores_milli(demand), 1000, "cores"),
        _at_least(columns, "memory", "memory", resources.memory_mib, 1, "MiB of memory"),
        _at_least(columns, "disk", "disk", resources.disk_mib, 1, "MiB of disk"),
        _at_least(columns, "duration", "seconds", demand.wall_seconds, 1, "seconds that a task may run"),
    ]


def current(demand: Demand, table: Table, fit: AcceleratorFit | None, *, unix: float) -> list[Condition]:
    """The conditions on what a host can give now."""
    limits, columns = demand.constraints, table.columns
    found = [
        Condition(
            "record",
            lambda rows: table["expires"][rows] > unix,
            _text("has a record that has expired"),
            floor=("expires", int(unix) + 1),
        ),
        Condition(
            "status",
            lambda rows: table["fresh_until"][rows] > unix,
            _text("has not told its status of late"),
            floor=("fresh_until", math.nextafter(unix, math.inf)),
        ),
    ]
    if limits.price_micro_max is not None:
        found.append(_price(limits.price_micro_max, table))
    if fit is not None:
        found.append(Condition("free accelerators", fit.now, _text("has them, but not free now")))
    found.append(_at_least(columns, "free cores", "free_cores", cores_milli(demand), 1000, "cores free"))
    memory = demand.resources.memory_mib
    found.append(_at_least(columns, "free memory", "free_memory", memory, 1, "MiB of memory free"))
    return found


# -- where


def _places(demand: Demand, table: Table) -> Deciding:
    limits, kinds = demand.constraints, table.kinds
    found = [Condition("address", lambda rows: kinds["reachable"][rows], _text("has no address"))]
    if limits.resource_class:
        classes = yield from kinds.classes.testing(lambda value: value == limits.resource_class)
        words = _text(f"is not {limits.resource_class}")
        found.append(Condition("class", lambda rows: classes.take(kinds["class"][rows], mode="clip"), words))
    for name, items, allowed in _named(demand, of_hosts=False):
        found.append((yield from _within(table, name, items, allowed=allowed)))
    if limits.cities:
        wanted = frozenset(limits.cities)
        cities = yield from kinds.cities.testing(lambda value: value in wanted)
        words = _text(f"is not in {', '.join(limits.cities)}")
        found.append(Condition("city", lambda rows: cities.take(kinds["city"][rows], mode="clip"), words))
    return found


def _named(demand: Demand, *, of_hosts: bool) -> Iterator[tuple[str, Sequence[str], bool]]:
    """What is allowed and what is not: where single hosts are named it is a condition on rows, else one on kinds."""
    limits = demand.constraints
    for name, items, allowed in (("allow", limits.allow, True), ("deny", limits.deny, False)):
        if items and any(map(_is_host, items)) == of_hosts:
            yield name, items, allowed


def _is_host(item: str) -> bool:
    return item.startswith("ioc:") and item.rstrip("/").count("/") > 3


def _within(
    table: Table, name: str, items: Sequence[str], *, allowed: bool
) -> Generator[None, None, Condition]:
    """Prefixes (`cn.r3301`) and beginnings of identifiers (`ioc:cn.r3301.20004/ai`), both label by label."""
    prefixes = [item for item in items if not item.startswith("ioc:")]
    hosts = [tie_of(item.rstrip("/")) for item in items if _is_host(item)]
    areas = [item.rstrip("/") for item in items if item.startswith("ioc:") and not _is_host(item)]

    @cache
    def covers(prefix: str) -> bool:
        return any(prefix_covers(item, prefix) for item in prefixes)

    def covered(pool: str) -> bool:
        if covers(pool.removeprefix("ioc:").partition("/")[0]):
            return True
        return any(pool == area or pool.startswith(f"{area}/") for area in areas)

    accepted = yield from table.kinds.pools.testing(covered)

    def keeps(rows: Rows | slice) -> Mask:
        kinds = table.kinds_of(rows) if hosts else rows
        mask: Mask = accepted[table.kinds["pool"][kinds]]
        if hosts:
            mask |= np.isin(table["tie"][rows], np.array(hosts, np.uint64))
        return mask if allowed else ~mask

    what = ", ".join(items)[:120]
    return Condition(name, keeps, _text(f"is {'outside of' if allowed else 'within'} {what}"))


# -- what it is


def _words(demand: Demand, table: Table) -> Deciding:
    traits, column = table.traits, table.columns
    runtimes, services = frozenset(demand.runtimes), frozenset(demand.constraints.services)
    architectures = frozenset(demand.constraints.architectures)
    found: list[Condition] = []

    def of(row: int) -> Traits:
        known = traits.values[int(column["traits"][row])]
        assert known is not None
        return known

    def add(name: str, accepted: Mask, words: Callable[[int], str]) -> None:
        found.append(Condition(name, lambda rows: accepted.take(column["traits"][rows], mode="clip"), words))

    if runtimes:
        lacking = yield from traits.measuring(lambda one: -len(runtimes - set(one.runtimes)))
        all_there = lacking == 0
        add(
            "runtimes",
            all_there,
            lambda row: f"has {', '.join(of(row).runtimes) or 'none'}, not {', '.join(sorted(runtimes))}",
        )
        found[-1] = found[-1]._replace(amounts=lambda rows: lacking[column["traits"][rows]])
    if architectures:
        known = yield from traits.testing(lambda one: one.architecture in architectures)
        wanted = " or ".join(sorted(architectures))
        add("architecture", known, lambda row: f"has {of(row).architecture}, not {wanted}")
    if services:
        there = yield from traits.testing(lambda one: services <= set(one.services))
        add("services", there, _text(f"lacks one of {', '.join(sorted(services))}"))
    for name, items, allowed in _named(demand, of_hosts=True):
        found.append((yield from _within(table, name, items, allowed=allowed)))
    return found


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


def _text(words: str) -> Callable[[int], str]:
    return lambda row: words
