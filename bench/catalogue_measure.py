"""The measuring half of `bench.catalogue`: what is done with the population, and the samples that it leaves."""

import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from bench.catalogue_files import Made, make
from bench.catalogue_nodes import CoreNode, Homes, open_core_node
from bench.catalogue_queries import DEMANDS, hosts_file, sql_of
from bench.peers.setup import python_of
from ioc_node.core.tree import MerkleTree
from ioc_wire.merkle import leaf_hash
from ioc_wire.records import Head, decode_entry
from ioc_wire.signed import signed_bytes, verify, verify_bytes

OURS: Final = "ours"
SYSTEMS: Final = ("sqlite", "duckdb")
RATES: Final = (0, 1000, 10_000)
"""Status rows per second while queries are asked."""
CHECKED: Final = 20_000
"""Records whose signatures are checked one by one: enough to know what one costs."""
PARTS: Final = 10
"""Into so many parts the checks are cut, taking turns with the roots: both see the same machine."""
PEER_SECONDS_MAX: Final = 600
HEADS: Final = 7000
HEADS_SECONDS: Final = 60.0
RECORDS_PER_HEAD: Final = 8
INDEXES: Final = (("model", "class", "free_gpus"), ("model", "city", "free_gpus"), ("fp16", "gpus"))
"""What a person would index for these queries in SQLite; the planner chooses."""
Samples = dict[str, list[float]]


class Load:
    """How many queries of a kind, and how far apart (seconds): at most a third of the machine is asked for."""

    def __init__(self, quick: bool) -> None:
        self.counts = {"selective": 200, "broad": 40} if quick else {"selective": 1000, "broad": 200}
        self.intervals = {"selective": 0.02, "broad": 0.05} if quick else {"selective": 0.02, "broad": 0.1}
        self.sql_counts = {"selective": 100, "broad": 20} if quick else {"selective": 200, "broad": 30}
        self.sql_intervals = {"selective": 0.02, "broad": 0.1} if quick else {"selective": 0.05, "broad": 1.0}


class Measurements:
    """Samples by system and name, and remarks."""

    def __init__(self, made: Made, load: Load) -> None:
        self.made = made
        self.load = load
        self.samples: dict[str, Samples] = {OURS: defaultdict(list)}
        self.matches: dict[str, dict[str, list[int]]] = {OURS: {}}
        self.notes: list[str] = []

    def add(self, name: str, *values: float, system: str = OURS) -> None:
        self.samples.setdefault(system, defaultdict(list))[name].extend(values)


# -- verification


def measure_verification(measurements: Measurements) -> None:
    """Head and root of every catalogue, as a node takes one up cold, and the signatures of a sample: CPU time of both,
    which does not depend on who else is busy.
    """
    made = measurements.made
    seconds = checked_seconds = 0.0
    records = checked = 0
    step = max(1, made.population.providers // PARTS)
    for number in range(made.population.providers):
        news, entries = made.catalogue(number)
        began = time.thread_time()
        head = verify(news.head, Head)
        tree = MerkleTree().changed(
            {slot: leaf_hash(data) for slot, data in enumerate(entries)}, len(entries)
        )
        assert tree is not None
        assert tree.root == head.root
        seconds += time.thread_time() - began
        records += len(entries)
        if number % step == 0:
            signed = [record for data in entries[: CHECKED // PARTS] if (record := decode_entry(data).record)]
            began = time.thread_time()
            for one in signed:
                data = signed_bytes(one.domain, one.kind, one.payload)
                verify_bytes(one.key, one.signature, data, one.kind)
            checked_seconds += time.thread_time() - began
            checked += len(signed)
    each, root_each = checked_seconds / checked, seconds / records
    measurements.add("verify_speedup", each / root_each)
    measurements.notes.append(
        f"verified by head and root: {records} records, {root_each * 1e6:.2f} us each; one Ed25519 check:"
        f" {each * 1e6:.1f} us (sample of {checked})"
    )


# -- two core nodes


def measure_nodes(measurements: Measurements) -> None:
    """A fresh core node beside one that holds everything: full sync, queries, changes."""
    made = measurements.made
    with _homes(made) as homes:
        holder_home, address = homes.make("holder")
        fresh_home, _ = homes.make("fresh", bootstrap=address)
        with open_core_node(holder_home, made) as holder:
            filled = holder.ask("fill")
            holder.ask("settle")
            with open_core_node(fresh_home, made) as fresh:
                _full_sync(measurements, fresh, filled)
                _ask(measurements, holder, fresh)
                for index, count in enumerate(made.change_sets):
                    _sync_changes(measurements, holder, fresh, index, count)


@contextmanager
def _homes(made: Made) -> Iterator[Homes]:
    with tempfile.TemporaryDirectory(prefix="bench-catalogue-") as folder:
        yield Homes(Path(folder), made)


def _say(text: str) -> None:
    print(f"bench.catalogue: {text}", file=sys.stderr, flush=True)


def _in_sync(node: CoreNode, digest: str) -> float:
    """When `node` held what has that digest. Raises `RuntimeError` where it never did."""
    at: float | None = node.ask("when", digest=digest)["at"]
    if at is None:
        raise RuntimeError("two core nodes did not come to hold the same")
    return at


def _full_sync(measurements: Measurements, fresh: CoreNode, filled: dict[str, Any]) -> None:
    at = _in_sync(fresh, filled["digest"])
    gauge = fresh.ask("gauge")
    measurements.add("full_sync_s", at - fresh.began)
    received = gauge["received"] + gauge["sent"]
    measurements.add("full_sync_bytes_ratio", received / measurements.made.totals.record_bytes)
    measurements.add("resident_mb", gauge["peak_mb"])
    _note_stall(measurements, "loop_stall_sync_ms", "full sync", gauge)
    _say(f"full sync {at - fresh.began:.1f} s, {gauge['peak_mb']:.0f} MB")


def _sync_changes(
    measurements: Measurements, holder: CoreNode, fresh: CoreNode, index: int, count: int
) -> None:
    for node in (fresh, holder):
        node.ask("settle")
    before = fresh.ask("gauge")
    holder.ask("load", index=index)
    taken = holder.ask("take")
    seconds = _in_sync(fresh, taken["digest"]) - taken["began"]
    after = fresh.ask("gauge")
    moved = after["received"] + after["sent"] - before["received"] - before["sent"]
    measurements.add(f"sync_{count}_s", seconds)
    measurements.add(f"sync_{count}_extra_bytes", moved - measurements.made.change_totals[index].record_bytes)
    measurements.add("loop_stall_changes_ms", _longest(after)[1])
    _say(f"{count} changes: {seconds:.3f} s, {moved} bytes")


def _longest(gauge: dict[str, Any], clock: str = "steps_ms") -> tuple[str, float]:
    """The longest step of the loop and whose it was; the bench's own do not count."""
    steps = {name: took for name, took in gauge[clock].items() if not name.startswith("__main__")}
    return max(steps.items(), key=lambda item: item[1], default=("nobody", 0.0))


def _note_stall(measurements: Measurements, name: str, when: str, gauge: dict[str, Any]) -> None:
    task, took = _longest(gauge)
    cpu_task, cpu = _longest(gauge, "steps_cpu_ms")
    measurements.add(name, took)
    measurements.notes.append(
        f"longest step of the loop, {when}: {took:.1f} ms, {task}; in CPU time: {cpu:.1f} ms, {cpu_task}"
    )


def _ask(measurements: Measurements, holder: CoreNode, fresh: CoreNode) -> None:
    told = holder.ask("status")["rows"]
    for node in (holder, fresh):
        node.ask("settle")
    measurements.notes.append(f"status rows: {told}")
    for rate in RATES:
        if rate:
            fresh.ask("delays")
            holder.ask("updates", rate=rate)
            time.sleep(1)
        fresh.ask("gauge")
        for kind in DEMANDS:
            asked = _query(measurements, fresh, kind, f"{kind}@{rate}", new=False)
            if not rate:
                measurements.matches[OURS][kind] = asked["matches"]
                _query(measurements, fresh, kind, f"{kind}@new", new=True)
        _note_stall(
            measurements, f"loop_stall_query_{rate}_ms", f"queries at {rate} rows/s", fresh.ask("gauge")
        )
        if rate:
            holder.ask("calm")
            measurements.add(f"status_delay@{rate}", *fresh.ask("delays")["delays_ms"])
        _say(f"queries asked at {rate} status rows/s")


def _query(
    measurements: Measurements, node: CoreNode, kind: str, name: str, *, new: bool
) -> dict[str, list[float]]:
    load = measurements.load
    asked: dict[str, list[float]] = node.ask(
        "query", kind=kind, count=load.counts[kind], interval=load.intervals[kind], new=new
    )
    for what in ("service", "latency", "cpu"):
        measurements.add(f"{name}.{what}", *asked[what])
    return asked


# -- SQLite and DuckDB


def measure_sql(measurements: Measurements, system: str) -> None:
    """The same questions of the same hosts; a failure is a note."""
    load = measurements.load
    with tempfile.TemporaryDirectory(prefix="bench-catalogue-") as folder:
        orders = {
            "hosts": str(hosts_file(measurements.made)),
            "database": str(Path(folder) / "hosts.db"),
            "indexes": INDEXES,
            "queries": {kind: sql_of(kind) for kind in DEMANDS},
            "counts": load.sql_counts,
            "intervals": load.sql_intervals,
            "rates": [rate for rate in RATES if rate],
        }
        (Path(folder) / "orders.json").write_text(json.dumps(orders))
        python = str(python_of(system)) if system == "duckdb" else sys.executable
        script = Path(__file__).parent / "peers" / "catalogue_sql.py"
        command = [python, str(script), system, str(Path(folder) / "orders.json")]
        try:
            done = subprocess.run(
                command, check=True, capture_output=True, timeout=PEER_SECONDS_MAX, text=True
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            measurements.notes.append(f"{system} failed: {error}")
            return
    answer = json.loads(done.stdout.splitlines()[-1])
    measurements.matches[system] = answer.pop("matches")
    measurements.notes.append(
        f"{system} {answer.pop('version')} loaded the hosts in {answer.pop('load_seconds'):.1f} s"
    )
    for name, samples in answer.items():
        for what, values in samples.items():
            measurements.add(f"{name}.{what}", *values, system=system)
    _say(f"{system} asked")


# -- heads


def measure_heads(
    measurements: Measurements, *, providers: int = HEADS, seconds: float = HEADS_SECONDS
) -> None:
    """What it costs a core node that every provider renews its head within `seconds`."""
    folder = measurements.made.folder.parent
    made = make(records=providers * RECORDS_PER_HEAD, providers=providers, folder=folder)
    with _homes(made) as homes:
        holder_home, address = homes.make("holder")
        fresh_home, _ = homes.make("fresh", bootstrap=address)
        with open_core_node(holder_home, made) as holder:
            filled = holder.ask("fill")
            holder.ask("settle")
            with open_core_node(fresh_home, made) as fresh:
                _in_sync(fresh, filled["digest"])
                for node in (fresh, holder):
                    node.ask("settle")
                fresh.ask("unwatch")
                holder.ask("sign_heads")
                before = fresh.ask("gauge")
                renewed = holder.ask("renew", seconds=seconds)
                after = fresh.ask("gauge")
    share = (after["cpu_seconds"] - before["cpu_seconds"]) / (after["at"] - before["at"])
    measurements.add("heads_7000_cpu_percent", 100 * share)
    measurements.notes.append(
        f"{providers} heads renewed in {seconds:.0f} s: {100 * share:.1f} % of a core where they arrive,"
        f" {100 * renewed['cpu_share']:.1f} % where they are published"
    )
