"""The catalogue at national scale: 1,020,000 records of 136 providers, ours beside SQLite alone and DuckDB in one run.

`python -m bench.catalogue [--json] [--quick] [--records N] [--seed N] [--peers all|none|NAME,NAME]`. `--quick` takes
20,000 records. The population is synthetic and seeded (`bench.catalogue_records`); the first run signs it, which takes
minutes and is kept under `out/` for a day.

What is measured: two core nodes of `ioc_node.open_node` in processes of their own. One takes in all catalogues as their
providers' home; the other starts empty and fetches everything over its link (`full_sync_s` from the start of the node
to equal digests, imports left out; bytes are all that the TCP connection carried, both ways; `resident_mb` is the peak
of its process). Demand queries are asked of it at fixed times: `query_selective` and `query_broad` are the duration of
the call, undisturbed, where few demands are asked over and over (`query_*_cpu`: CPU time of the loop's thread, whoever
else is busy), `query_*_new` where none was asked before; `query_updates*` count from when the query was due, while
status arrives over the link, and are the worse of the two kinds. Then the one takes in sets of changes until the other
holds them: the time counts from the first head taken in, `extra_bytes` are what went over the wire above the changed
signed records.

SQLite (indexed, WAL) and DuckDB hold the same hosts in a process of their own, and are asked the same at fixed times,
with a thread that writes the status rows. Theirs are names and prices, ours signed records, verifiable and explained.
"""

import argparse
from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

from bench.catalogue_files import CHANGE_SETS, make
from bench.catalogue_measure import (
    HEADS,
    OURS,
    SYSTEMS,
    Load,
    Measurements,
    measure_heads,
    measure_nodes,
    measure_sql,
    measure_verification,
)
from bench.catalogue_records import RECORDS, SEED
from bench.peers.setup import is_made
from bench.report import Row, median, report

QUICK_RECORDS: Final = 20_000
QUICK_HEADS: Final = 700
LABELS: Final = {"sqlite": "SQLite alone (WAL)", "duckdb": "DuckDB"}
Unit = Literal["x", "s", "ms", "bytes", "MB", "%"]


class Figure(NamedTuple):
    """One row: of which samples (the worst of several kinds), which quantile, and the issue's target."""

    name: str
    unit: Unit
    samples: tuple[str, ...]
    share: float | None = None
    """None: the median of the runs."""
    target: float | None = None
    better: Literal["lower", "higher"] = "lower"
    scale: float = 1.0
    compared: bool = False
    """Whether SQLite and DuckDB have it too."""


def _query(name: str, samples: tuple[str, ...], share: float, target: float | None) -> Figure:
    return Figure(name, "ms", samples, share, target, scale=1000, compared=True)


def _changes() -> Iterator[Figure]:
    for count in sorted(set(CHANGE_SETS)):
        thousand = count == 1000
        yield Figure(f"sync_{count}_s", "s", (f"sync_{count}_s",), target=1 if thousand else None)
        name = f"sync_{count}_extra_bytes"
        yield Figure(name, "bytes", (name,), target=160_000 if thousand else None)


def _updates(rate: int) -> tuple[str, ...]:
    return (f"selective@{rate}.latency", f"broad@{rate}.latency")


def _cpu(kind: str, name: str, share: float) -> Figure:
    return Figure(f"query_{kind}_cpu_{name}_ms", "ms", (f"{kind}@0.cpu",), share, scale=1000)


FIGURES: Final = (
    Figure("verify_speedup", "x", ("verify_speedup",), target=40, better="higher"),
    Figure("full_sync_s", "s", ("full_sync_s",), target=60),
    Figure("full_sync_bytes_ratio", "x", ("full_sync_bytes_ratio",), target=1.2),
    Figure("resident_mb", "MB", ("resident_mb",), target=1000),
    *_changes(),
    _query("query_selective_p50_ms", ("selective@0.service",), 0.5, None),
    _query("query_selective_p99_ms", ("selective@0.service",), 0.99, 1),
    _query("query_broad_p50_ms", ("broad@0.service",), 0.5, None),
    _query("query_broad_p99_ms", ("broad@0.service",), 0.99, 10),
    *(
        Figure(f"query_{kind}_new_{name}_ms", "ms", (f"{kind}@new.service",), share, scale=1000)
        for kind in ("selective", "broad")
        for name, share in (("p50", 0.5), ("p99", 0.99))
    ),
    *(
        _cpu(kind, name, share)
        for kind in ("selective", "broad")
        for name, share in (("p50", 0.5), ("p99", 0.99))
    ),
    _query("query_updates1k_p99_ms", _updates(1000), 0.99, 10),
    _query("query_updates10k_p99_ms", _updates(10_000), 0.99, 10),
    Figure("status_delay_p99_ms", "ms", ("status_delay@10000",), 0.99, 60_000),
    Figure("loop_stall_sync_ms", "ms", ("loop_stall_sync_ms",), target=5),
    Figure("loop_stall_changes_ms", "ms", ("loop_stall_changes_ms",), 1.0, 5),
    Figure("loop_stall_query_ms", "ms", ("loop_stall_query_10000_ms",), target=5),
    Figure("heads_7000_cpu_percent", "%", ("heads_7000_cpu_percent",)),
)


def quantile(values: list[float], share: float | None) -> float:
    """The value below which `share` of them lie; the median for None."""
    if share is None:
        return median(values)
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def value_of(measurements: Measurements, figure: Figure, system: str) -> tuple[float, int] | None:
    """A figure and how many samples it rests on; None where there are none."""
    samples = measurements.samples.get(system, {})
    lists = [samples[name] for name in figure.samples if samples.get(name)]
    if not lists:
        return None
    worst = max(quantile(values, figure.share) for values in lists)
    return worst * figure.scale, sum(map(len, lists))


def rows_of(measurements: Measurements) -> list[Row]:
    """Every figure that was measured: once beside each system that has it, or once alone."""
    rows = []
    for figure in FIGURES:
        own = value_of(measurements, figure, OURS)
        if own is None:
            continue
        beside: list[tuple[float | None, str | None]] = [
            (found[0], LABELS[system])
            for system in SYSTEMS
            if figure.compared and (found := value_of(measurements, figure, system)) is not None
        ]
        for value, label in beside or [(None, None)]:
            rows.append(Row(figure.name, figure.unit, own[0], value, label, figure.better, own[1]))
    return rows


def remarks_of(measurements: Measurements) -> Iterator[str]:
    """Targets that were missed, systems that found something else, and what was noted on the way."""
    missed = []
    for figure in FIGURES:
        own = value_of(measurements, figure, OURS)
        if own is None or figure.target is None:
            continue
        if own[0] > figure.target if figure.better == "lower" else own[0] < figure.target:
            missed.append(f"{figure.name} {own[0]:.4g} (target {figure.target:g} {figure.unit})")
    yield f"targets missed: {', '.join(missed)}" if missed else "all targets are met"
    for system, kinds in measurements.matches.items():
        for kind, counts in kinds.items():
            if system != OURS and counts != measurements.matches[OURS].get(kind):
                yield f"{system} found {counts} hosts for {kind}, ours {measurements.matches[OURS].get(kind)}"
    yield f"hosts found: {measurements.matches[OURS]}"
    yield from measurements.notes


def systems_of(text: str) -> tuple[str, ...]:
    """The systems named by `--peers`; raises `argparse.ArgumentTypeError`."""
    names = {"all": SYSTEMS, "none": ()}.get(text, tuple(text.split(",")))
    unknown = [name for name in names if name not in SYSTEMS]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"no such peer: {', '.join(unknown)} (there are {', '.join(SYSTEMS)})"
        )
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description="the catalogue at national scale, beside SQLite and DuckDB")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_RECORDS} records, in about two minutes")
    parser.add_argument("--records", type=int, help=f"{RECORDS} where nothing is said")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument(
        "--peers",
        type=systems_of,
        default="all",
        metavar="all|none|NAME,NAME",
        help="whom to measure beside us",
    )
    options = parser.parse_args()
    made = make(records=options.records or (QUICK_RECORDS if options.quick else RECORDS), seed=options.seed)
    measurements = Measurements(made, Load(options.quick))
    measure_verification(measurements)
    measure_nodes(measurements)
    for system in options.peers:
        if system == "duckdb" and not is_made(system):
            measurements.notes.append(f"not installed: {system} (make bench-peers)")
        else:
            measure_sql(measurements, system)
    measure_heads(measurements, providers=QUICK_HEADS if options.quick else HEADS)
    report("catalogue", rows_of(measurements), as_json=options.json, notes=list(remarks_of(measurements)))


if __name__ == "__main__":
    main()
