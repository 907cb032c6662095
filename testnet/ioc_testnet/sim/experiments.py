"""The experiments whose results lie in `docs/experiments`: each is a list of runs, thresholds, and a plot (`page`).

`EXPERIMENTS` maps names to functions that return `{"experiment", "rows", "thresholds", …}`, figures of runs only.
"""

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ioc_testnet.sim.core_experiments import gossip, membership
from ioc_testnet.sim.options import SimOptions
from ioc_testnet.sim.simulation import Progress, Simulation
from ioc_testnet.sim.sweeps import compare_sweeps
from ioc_testnet.sim.thresholds import threshold

Experiment = Callable[[str | None, Progress], dict[str, Any]]

RESILIENCE: Final = SimOptions(nodes=2000, churn=0.3, records=200, updates=0.5, trials=3000)
SYBILS: Final = SimOptions(nodes=120, trials=30)
SYBIL_COUNTS: Final = (20, 45, 100)
SYBIL_GROUPS: Final = (1, 5, 8, 10, 12, 15, 19, 20, 25, 35, 50)
CORE_NODES: Final = 2
LATENCY_SIZES: Final = (500, 2000, 10_000)
_KEPT: Final = (
    "success", "replica_recall", "newest", "hops_p50", "hops_p99", "messages_per_lookup", "messages_per_lookup_max",
    "latency_p50_ms", "latency_p99_ms", "one_hop_p50_ms", "one_hop_p99_ms", "bytes_per_node", "seconds", "memory_mb",
    "nodes", "churn", "malicious", "kind", "trials", "faults", "trace_hash", "command",
)  # fmt: skip


def simulate(options: SimOptions, progress: Progress) -> dict[str, Any]:
    """One run's figures, as far as experiments keep them."""
    gc.collect()  # the run before this one: its nodes refer to each other
    figures = Simulation(options, progress=progress).run()
    progress(
        f"success {figures['success']:.4f}, recall {figures['replica_recall']:.4f}: {figures['command']}"
    )
    # Where the matrix lies on this machine is nobody else's business.
    figures["command"] = figures["command"].replace(options.latency, Path(options.latency).name)
    return {name: figures[name] for name in _KEPT}


def resilience(latency: str | None, progress: Progress) -> dict[str, Any]:
    """Reads while 30 % of all servers are dead in everyone's tables, by the share of malicious ones."""
    runs = [(0.0, "mixed", 300), (0.2, "mixed", 3000), (0.5, "mixed", 3000), (0.2, "lying", 600),
            (0.5, "lying", 300), (0.2, "inventing", 300)]  # fmt: skip
    rows = [
        simulate(replace(RESILIENCE, malicious=share, kind=kind, trials=trials), progress)  # type: ignore[arg-type]
        for share, kind, trials in runs
    ]
    return {
        "experiment": "resilience",
        "rows": rows,
        "thresholds": [
            threshold("success, 30 % churn + 20 % malicious", rows[1]["success"], 0.999),
            threshold("success, 30 % churn + 50 % malicious", rows[2]["success"], 0.99),
            threshold("replica recall, 30 % churn + 20 % malicious", rows[1]["replica_recall"], 0.95),
        ],
    }


def sybils(latency: str | None, progress: Progress) -> dict[str, Any]:
    """Sybils right beside one key, by how many /24s their attacker has, under our rules and under py-libp2p's."""
    rows: list[dict[str, Any]] = []
    for count in SYBIL_COUNTS:
        for groups in [each for each in SYBIL_GROUPS if each <= count]:
            found = {
                diverse: simulate(replace(SYBILS, sybils=count, groups=groups, diverse=diverse), progress)[
                    "success"
                ]
                for diverse in (True, False)
            }
            # A race is lost only if every runner loses. A core node's answer comes from its own copy of the catalogue
            # and is verified; Sybils of the DHT have no part in it, so an honest core node that lives always has it.
            rows.append({
                "sybils": count, "groups": groups, "dht": found[True], "bucket_rule_only": found[False],
                "race": 1.0 if CORE_NODES else found[True],
            })  # fmt: skip
    held = [row for row in rows if row["groups"] < 20]
    return {
        "experiment": "sybils",
        "rows": rows,
        "nodes": SYBILS.nodes,
        "trials": SYBILS.trials,
        "thresholds": [
            threshold(
                "DHT alone, fewer than 20 groups (the caps' prediction)", min(r["dht"] for r in held), 1.0
            ),
            threshold("race with two core nodes, all groups", min(r["race"] for r in rows), 1.0),
        ],
    }


def sweep(latency: str | None, progress: Progress) -> dict[str, Any]:
    """Publishing 1.02 M identifiers from 136 providers on 500 servers, by sweep and one by one."""
    found = compare_sweeps(progress)
    fewer = 1 - found["planned"]["lookups"] / found["per_record"]["lookups"]
    check = found["check"]
    drift = abs(check["real_lookups"] / check["planned_lookups"] - 1)
    return {
        "experiment": "sweep",
        **found,
        "fewer_lookups": round(fewer, 6),
        "thresholds": [
            threshold("share of lookups saved", fewer, 0.97),
            threshold("agreement of the real machines' lookups with the plan", 1 - drift, 0.8),
            threshold("replicas that hold their record after the real sweeps", check["replicas_held"], 0.99),
        ],
    }


def latency(latency: str | None, progress: Progress) -> dict[str, Any]:
    """Reads with measured round trips, by the size of the network."""
    options = SimOptions(records=200, updates=0.0, trials=1000, latency=latency or "constant:135")
    rows = [simulate(replace(options, nodes=size), progress) for size in LATENCY_SIZES]
    return {
        "experiment": "latency",
        "rows": rows,
        "matrix": latency is not None,
        "thresholds": [threshold(f"success, {row['nodes']:,} nodes", row["success"], 1.0) for row in rows],
    }


EXPERIMENTS: Final[dict[str, Experiment]] = {
    "resilience": resilience,
    "sybils": sybils,
    "sweep": sweep,
    "latency": latency,
    "gossip": gossip,
    "membership": membership,
}
