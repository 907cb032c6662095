"""What every bench prints: a table for people and, with `--json`, one JSON object as the last line.

`{"bench": …, "machine": {cpu, cores, python, versions}, "rows": [{name, unit, ours, peer, peer_name, ratio,
better, runs}]}`; figures are medians over `runs`, `ratio = ours / peer`, `peer` is null where there is none.
"""

import json
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

VERSIONS = (
    "trio",
    "msgspec",
    "cryptography",
    "aioquic",
    "qh3",
    "blake3",
    "wasmtime",
    "numpy",
    "trio-websocket",
)


@dataclass(frozen=True)
class Row:
    """One figure: ours beside the peer's, in `unit`; `better` says which direction is good."""

    name: str
    unit: str
    ours: float
    peer: float | None
    peer_name: str | None
    better: Literal["lower", "higher"]
    runs: int

    @property
    def ratio(self) -> float | None:
        """Ours divided by the peer's, or None without a peer."""
        return self.ours / self.peer if self.peer else None


def median(values: Iterable[float]) -> float:
    """The middle of the runs."""
    return statistics.median(values)


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def machine(extra: Iterable[str] = ()) -> dict[str, Any]:
    """What the figures were measured on; `extra` names further distributions whose version matters."""
    versions = {}
    for name in (*VERSIONS, *extra):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count() or 1,
        "python": platform.python_version(),
        "versions": versions,
    }


def report(bench: str, rows: Sequence[Row], *, as_json: bool, notes: Sequence[str] = ()) -> None:
    """Print the table, the notes, and as the very last line the JSON object where `as_json` asks for it."""
    about = machine()
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    table = Table(title=f"bench.{bench} on {about['cores']} cores, {about['cpu']}", title_justify="left")
    for column in ("figure", "ours", "peer", "ours/peer", "unit", "better", "runs", "peer is"):
        table.add_column(
            column, justify="right" if column in ("ours", "peer", "ours/peer", "runs") else "left"
        )
    for row in rows:
        table.add_row(
            row.name,
            _number(row.ours),
            _number(row.peer),
            _number(row.ratio),
            row.unit,
            row.better,
            str(row.runs),
            row.peer_name or "",
        )
    console.print(table)
    for note in notes:
        console.print(f"  {note}", markup=False, highlight=False)
    if as_json:
        print(
            json.dumps({"bench": bench, "machine": about, "rows": [_plain(row) for row in rows]}), flush=True
        )


def _plain(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "unit": row.unit,
        "ours": row.ours,
        "peer": row.peer,
        "peer_name": row.peer_name,
        "ratio": row.ratio,
        "better": row.better,
        "runs": row.runs,
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
