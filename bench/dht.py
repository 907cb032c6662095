"""Resolve and put in the DHT, ours beside libtorrent, OpenDHT, kademlia and libp2p on one machine, one after the other.

`python -m bench.dht [--json] [--quick] [--peers all|none|NAME,NAME]`. Every system stores values of 200 bytes from
random nodes and reads each from a random node: 50 and 200 nodes in one process, and 32 processes of one node each (rows
with `_32p`). Systems take turns, run by run; figures are medians over the runs.

What is compared: ours is signed (Ed25519, checked by all 20 holders and by the reader) and encrypted. libtorrent's
mutable items are Ed25519-signed and in clear, 8 holders; OpenDHT stores plain and RSA-2048-signed values, in clear, 8
holders; kademlia is unsigned and in clear, 20 holders; libp2p's streams are encrypted, its values unsigned. Ours and
kademlia count only readers that do not hold the record themselves; the others always ask the network.

What the rows mean: a get ends with the first valid record; an authoritative one after 3 fresh answers (libtorrent: when
the nearest 8 answered; OpenDHT: when the whole search ended). `resolves_per_s` is per second of CPU time of the whole
process with its 50 nodes: reader and servers share that core. The rest is told in `bench.dht_ours`.
"""

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

from bench.dht_ours import OURS, Samples
from bench.peers.setup import DHT_PEERS as PEERS
from bench.peers.setup import is_made, python_of
from bench.report import Row, median, report

SCRIPT_SECONDS_MAX: Final = 240
PEER_SECONDS_MAX: Final = 75
SLOW_SECONDS_MAX: Final = 120
"""For one run; a peer that takes longer, or fails, gets no further run on that network."""
SLOW: Final = frozenset({"libp2p"})
"""Takes minutes for what the others do in seconds: one run, few operations, not with `--quick`."""
MEMBERS: Final = frozenset({"libtorrent"})
"""Those that `bench.dht_processes` can run."""


class Figure(NamedTuple):
    """One row: from which network, from which samples, and the quantile of them (None for a single number)."""

    name: str
    unit: Literal["ms", "%", "1/s", "MB", "s"]
    better: Literal["lower", "higher"]
    network: Literal["50", "200", "32p"]
    samples: str
    share: float | None = None
    target: float | None = None


FIGURES: Final = (
    Figure("get_p50_50", "ms", "lower", "50", "get", 0.5, 0.29),
    Figure("get_p99_50", "ms", "lower", "50", "get", 0.99, 1.4),
    Figure("get_authoritative_p50_50", "ms", "lower", "50", "authoritative", 0.5, 0.45),
    Figure("put_p50_50", "ms", "lower", "50", "put", 0.5),
    Figure("get_p50_200", "ms", "lower", "200", "get", 0.5, 0.35),
    Figure("get_p99_200", "ms", "lower", "200", "get", 0.99, 1.4),
    Figure("put_p50_200", "ms", "lower", "200", "put", 0.5),
    Figure("get_p50_32p", "ms", "lower", "32p", "get", 0.5),
    Figure("get_p99_32p", "ms", "lower", "32p", "get", 0.99),
    Figure("put_p50_32p", "ms", "lower", "32p", "put", 0.5),
    Figure("hit_rate", "%", "higher", "50", "hits", None, 100.0),
    Figure("resolves_per_s", "1/s", "higher", "50", "resolves_per_s", None, 4000.0),
    Figure("cold_resolve_ms", "ms", "lower", "50", "cold", 0.5, 50.0),
    Figure("cold_start_ms", "ms", "lower", "50", "cold_start", 0.5),
    Figure("handshake_ms", "ms", "lower", "50", "handshake", 0.5),
    Figure("join_200_s", "s", "lower", "200", "join", None, 1.0),
    Figure("node_rss_mb", "MB", "lower", "200", "rss_mb", None, 1.0),
)
SCALES: Final = {"ms": 1000.0, "%": 100.0, "1/s": 1.0, "MB": 1.0, "s": 1.0}

LABELS: Final = (
    ("libtorrent (signed)", "libtorrent", ""),
    ("opendht (plain)", "opendht", ""),
    ("opendht (signed)", "opendht", "_signed"),
    ("kademlia (plain)", "kademlia", ""),
    ("libp2p (encrypted)", "libp2p", ""),
)
"""What a peer's rows are called, its environment, and the suffix of its samples."""


class Network(NamedTuple):
    """What is measured on one kind of network: how often, with how many operations, and which parts."""

    nodes: int
    runs: int
    operations: int
    parts: tuple[str, ...]
    peers: frozenset[str]


FULL: Final = {
    "50": Network(50, 3, 200, ("resolves", "handshake", "cold"), frozenset(PEERS)),
    "200": Network(200, 2, 150, ("join",), frozenset(PEERS) - SLOW),
    "32p": Network(32, 2, 100, (), MEMBERS),
}
QUICK: Final = {"50": Network(50, 1, 100, ("resolves", "handshake", "cold"), frozenset(PEERS) - SLOW)}


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def command_of(system: str, network: str) -> list[str]:
    """What measures a system: it takes NODES OPERATIONS SEED [PART ...] and prints samples as JSON."""
    if network == "32p":
        return [sys.executable, "-m", "bench.dht_processes", system]
    if system == OURS:
        return [sys.executable, "-m", "bench.dht_ours"]
    return [str(python_of(system)), str(Path(__file__).parent / "peers" / f"{system}_ring.py")]


class Measurements:
    """The samples of all runs, by system and network, and what went wrong on the way."""

    def __init__(self, systems: Sequence[str]) -> None:
        self.systems = systems
        self.samples: dict[tuple[str, str], list[Samples]] = defaultdict(list)
        self.notes: list[str] = []
        self._failed: set[tuple[str, str]] = set()

    def take(self, name: str, network: Network, *, quick: bool) -> None:
        """Measure everybody on one kind of network, in turns."""
        for run in range(network.runs):
            for system in self.systems:
                if system == OURS or (system in network.peers and not (system in SLOW and run)):
                    parts = () if quick and system != OURS else network.parts
                    arguments = [str(network.nodes), str(network.operations), str(run), *parts]
                    self._run(system, name, [*command_of(system, name), *arguments])

    def _run(self, system: str, network: str, command: list[str]) -> None:
        """One run; a peer's failure is a note, ours ends the bench."""
        if (system, network) in self._failed:
            return
        print(f"bench.dht: {system}, {network}", file=sys.stderr, flush=True)
        seconds_max = SLOW_SECONDS_MAX if system in SLOW else PEER_SECONDS_MAX
        seconds_max = SCRIPT_SECONDS_MAX if system == OURS else seconds_max
        try:
            done = subprocess.run(command, check=True, capture_output=True, timeout=seconds_max, text=True)
            self.samples[system, network].append(json.loads(done.stdout.splitlines()[-1]))
        except (subprocess.SubprocessError, ValueError, IndexError) as error:
            if system == OURS:
                raise
            self._failed.add((system, network))
            said = (error.stderr if isinstance(error, subprocess.CalledProcessError) else None) or str(error)
            self.notes.append(f"{system} failed ({network}): {said.strip().splitlines()[-1]}")

    def figure(self, figure: Figure, system: str, suffix: str = "") -> float | None:
        """The median over the runs, in the figure's unit, or None where that was not measured."""
        name = figure.samples + suffix
        if name not in ("hits",) and suffix and name not in ("get_signed", "put_signed"):
            return None
        values = [
            run[name] if figure.share is None else quantile(run[name], figure.share)
            for run in self.samples.get((system, figure.network), [])
            if run.get(name)
        ]
        return SCALES[figure.unit] * median(values) if values else None


def rows_of(measurements: Measurements) -> list[Row]:
    """Each figure once per peer that has it, or once alone."""
    rows = []
    for figure in FIGURES:
        own = measurements.figure(figure, OURS)
        if own is None:
            continue
        runs = len(measurements.samples[OURS, figure.network])
        beside = [
            (label, value)
            for label, system, suffix in LABELS
            if (value := measurements.figure(figure, system, suffix)) is not None
        ]
        for label, value in beside or [(None, None)]:
            rows.append(Row(figure.name, figure.unit, own, value, label, figure.better, runs))
    return rows


def targets_of(measurements: Measurements) -> Iterable[str]:
    """What the issue asks for and was not reached, or that all was."""
    missed = []
    for figure in FIGURES:
        own = measurements.figure(figure, OURS)
        if own is None or figure.target is None:
            continue
        if own > figure.target if figure.better == "lower" else own < figure.target:
            missed.append(f"{figure.name} {own:.4g} (target {figure.target:g} {figure.unit})")
    yield f"targets missed: {', '.join(missed)}" if missed else "all targets are met"


def systems_of(text: str) -> list[str]:
    """Ours and the peers named by `--peers`; raises `argparse.ArgumentTypeError`."""
    names = {"all": list(PEERS), "none": []}.get(text, text.split(","))
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no such peer: {', '.join(unknown)} (there are {', '.join(PEERS)})")
    return [OURS, *names]


def main() -> None:
    parser = argparse.ArgumentParser(description="DHT: resolve and put, ours beside others")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--quick", action="store_true", help="one short run with 50 nodes, in under a minute")
    parser.add_argument(
        "--peers",
        type=systems_of,
        default="all",
        metavar="all|none|NAME,NAME",
        help="whom to measure beside us",
    )
    options = parser.parse_args()
    made = [system for system in options.peers if system == OURS or is_made(system)]
    measurements = Measurements(made)
    for name, network in (QUICK if options.quick else FULL).items():
        measurements.take(name, network, quick=options.quick)
    missing = [name for name in options.peers if name not in made]
    if missing:
        measurements.notes.append(f"not installed: {', '.join(missing)} (make bench-peers)")
    notes = [*targets_of(measurements), *measurements.notes]
    report("dht", rows_of(measurements), as_json=options.json, notes=notes)


if __name__ == "__main__":
    main()
