"""Experiments with core nodes: how news spreads between them, and how often they suspect each other wrongly."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ioc_testnet.sim.gossip import GossipOptions, GossipSimulation
from ioc_testnet.sim.membership import KINDS, MembershipOptions, simulate_membership
from ioc_testnet.sim.simulation import Progress
from ioc_testnet.sim.thresholds import threshold

FEW, MANY = GossipOptions(nodes=50), GossipOptions(nodes=500)
UNTREED: Final = GossipOptions(nodes=500, tree=False, partition_seconds=0)
"""The control: what every core node did before there was a tree."""


def gossip(latency: str | None, progress: Progress) -> dict[str, Any]:
    """Heads and status between 50 and 500 core nodes of which a fifth is silent, through a partition."""
    rows = []
    for options in (FEW, MANY, UNTREED):
        row = GossipSimulation(options, progress=progress).run()
        progress(f"{row['head_99_p99_s']} s, {row['copies_per_head']} copies: {row['command']}")
        rows.append({"nodes": options.nodes, "silent": options.silent, "tree": options.tree, **row})
    return told_gossip(rows)


def told_gossip(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The result, from the figures of the three runs."""
    few, many, untreed = rows
    thresholds = [
        threshold(
            f"{row['nodes']} core nodes: share of heads that 99 % have within 2 s",
            row["within_2s_share"],
            0.99,
        )
        for row in (few, many)
    ]
    thresholds += [
        threshold(
            f"{row['nodes']} core nodes: seconds left of one anti-entropy interval when healed",
            row["compare_s"] - row["healed_s"],
            0.0,
        )
        for row in (few, many)
    ]
    spared = untreed["copies_per_head"] / many["copies_per_head"]
    thresholds.append(threshold("500 core nodes: times fewer copies than ten at random", spared, 4.0))
    return {"experiment": "gossip", "rows": list(rows), "thresholds": thresholds}


def membership(latency: str | None, progress: Progress) -> dict[str, Any]:
    """False suspicions per node-hour with and without Lifeguard."""
    return told_membership(simulate_membership(MembershipOptions(), progress=progress))


def told_membership(found: Mapping[str, Any]) -> dict[str, Any]:
    """The result, from the figures of one run."""
    swim, ours = found["swim"], found["ours"]
    key = "false_suspicions_of_healthy_per_node_hour"
    return {
        "experiment": "membership",
        **found,
        "thresholds": [
            threshold(
                "share of SWIM's false deaths spared", _spared(swim, ours, "false_deaths_per_node_hour"), 0.5
            ),
            threshold(
                "share of SWIM's false suspicions of healthy nodes spared", _spared(swim, ours, key), 0.5
            ),
            *(
                threshold(f"crashes noticed, {kind}", found[kind]["crash_noticed_share"], 1.0)
                for kind in KINDS
            ),
        ],
    }


def _spared(before: Mapping[str, Any], after: Mapping[str, Any], key: str) -> float:
    return 1 - float(after[key]) / float(before[key]) if before[key] else 0.0
