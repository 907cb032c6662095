"""What a core node holds, summed up per node prefix (`cn.r3301`), for its operator.

A provider counts where its granted prefix lies. Peak rates of different precisions are never added together.
"""

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from ioc_node.api import OverviewRow
from ioc_node.core.catalogue import Catalogue
from ioc_node.market.columns import Table
from ioc_wire.records import Accelerator

PROVIDERS_STEP: Final = 128
ROWS_STEP: Final = 1 << 15

_FIXED: Final = (
    *("hosts", "hosts_told", "cores", "known", "free"),
    *("accelerators", "accelerators_told", "accelerators_free"),
)
"""Sums that are no peak rates."""

Sums = npt.NDArray[np.float64]


@dataclass
class _Tally:
    """Of one node prefix."""

    providers: int = 0
    connected: int = 0
    identifiers: int = 0
    head_issued: int = 0
    columns: dict[str, int] = field(default_factory=dict)


def summing(
    catalogue: Catalogue, table: Table, *, unix: float
) -> Generator[None, None, tuple[OverviewRow, ...]]:
    """One row per node prefix, in order, in steps; rows must not come into sight meanwhile."""
    tallies: dict[str, _Tally] = {}
    node_of: dict[bytes, str] = {}
    for number, provider in enumerate(catalogue.providers()):
        if number % PROVIDERS_STEP == 0:
            yield
        replica = catalogue.replica(provider)
        if replica is None or replica.held is None:
            continue
        node_of[provider] = ".".join(replica.prefix.split(".")[:2])
        tally = tallies.setdefault(node_of[provider], _Tally())
        tally.providers += 1
        tally.connected += any(status.fresh_until > unix for status in replica.statuses.values())
        tally.identifiers += replica.living
        tally.head_issued = max(tally.head_issued, replica.held.head.issued)
    names = list(tallies)
    for name, sums in (yield from _row_sums(table, names, node_of, unix)).items():
        for node, value in zip(names, sums, strict=True):
            tallies[node].columns[name] = round(float(value))
    return tuple(_row(node, tallies[node]) for node in sorted(names))


def _row_sums(
    table: Table, names: list[str], node_of: dict[bytes, str], unix: float
) -> Generator[None, None, dict[str, Sums]]:
    """Sums over hosts by node, one array per name."""
    numbers = {name: number for number, name in enumerate(names)}
    owners = [node_of.get(owner) if owner is not None else None for owner in table.owners.values]
    node_numbers = np.array([numbers.get(node, -1) if node else -1 for node in owners], np.int64)
    shapes = table.kinds.shapes.values
    precisions = sorted({name for shape in shapes for name in _peaks(shape or ())})
    yield
    per_shape = {"accelerators": np.array([sum(one.count for one in shape or ()) for shape in shapes], float)}
    for precision in precisions:
        per_shape[precision] = np.array([_peaks(shape or ()).get(precision, 0) for shape in shapes], float)
    found: dict[str, Sums] = {}
    for start in range(0, len(table), ROWS_STEP):
        yield
        rows = start + np.flatnonzero(table.live[start : min(start + ROWS_STEP, len(table))])
        node = node_numbers[table["owner"][rows]]
        rows, node = rows[node >= 0], node[node >= 0]
        fresh = table["fresh_until"][rows] > unix
        shape = table.kinds["shape"][table.kinds_of(rows)]
        devices = per_shape["accelerators"][shape]
        parts = {
            "hosts": np.ones(len(rows)),
            "cores": table["cores"][rows],
            "known": table["cores"][rows] * fresh,
            "free": np.minimum(table["free_cores"][rows], table["cores"][rows]) * fresh,
            "hosts_told": fresh,
            "accelerators_told": devices * fresh * 1000,
            "accelerators_free": np.minimum(
                table.free_accelerators[:, rows].sum(axis=0, dtype=np.int64), devices * 1000
            )
            * fresh,
            **{name: values[shape] for name, values in per_shape.items()},
        }
        for name, part in parts.items():
            sums: Sums = np.bincount(node, weights=part.astype(float), minlength=len(names)).astype(float)
            found[name] = found[name] + sums if name in found else sums
    return found


def _peaks(shape: tuple[Accelerator, ...]) -> dict[str, int]:
    """Billions of operations per second of all devices together, per precision."""
    peaks: dict[str, int] = {}
    for group in shape:
        for precision, gops in (*group.peak, *([("int8", group.int8_gops)] if group.int8_gops else [])):
            peaks[precision] = peaks.get(precision, 0) + group.count * gops
    return peaks


def _row(node: str, tally: _Tally) -> OverviewRow:
    columns = dict(tally.columns)
    fixed = {name: columns.pop(name, 0) for name in _FIXED}
    return OverviewRow(
        node=node,
        providers=tally.providers,
        connected=tally.connected,
        identifiers=tally.identifiers,
        hosts=fixed["hosts"],
        cores_milli=fixed["cores"],
        cores_told_milli=fixed["known"],
        cores_free_milli=fixed["free"],
        accelerators=fixed["accelerators"],
        peak_gops=tuple((name, value) for name, value in sorted(columns.items()) if value),
        head_issued=tally.head_issued,
        hosts_told=fixed["hosts_told"],
        accelerators_told_milli=fixed["accelerators_told"],
        accelerators_free_milli=fixed["accelerators_free"],
    )
