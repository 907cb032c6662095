"""The parts of the page about core nodes: plots and words, from the JSON alone."""

from textwrap import fill
from typing import Any

from matplotlib.axes import Axes

from ioc_testnet.sim.markdown import COLOURS, row_of, table_of


def draw_gossip(axes: Axes, result: dict[str, Any]) -> None:
    rows = result["rows"]
    names = [_name(row) for row in rows]
    bars = axes.bar(names, [row["copies_per_head"] for row in rows], width=0.5, color=COLOURS[0])
    axes.bar_label(bars, fmt="{:.2f}", fontsize=9)
    axes.set_ylabel("copies of a head per core node")
    axes.margins(y=0.12)
    axes.set_title("A fifth of the core nodes silent")


def _name(row: dict[str, Any]) -> str:
    if row["nodes"] <= 64:
        return f"{row['nodes']}, full mesh"
    return f"{row['nodes']}, tree" if row["tree"] else f"{row['nodes']}, ten at random"


def tell_gossip(result: dict[str, Any]) -> str:
    rows = [
        row_of(
            _name(row), f"{row['reached_share']:.4f}", f"{row['head_99_p50_s']:.2f} / {row['head_99_p99_s']:.2f}",
            f"{row['status_99_p99_s']:.2f}", f"{row['copies_per_head']:.2f}", row["bytes_per_node_s"],
            f"{row['healed_s']:.1f}" if row["healed_s"] else "-", f"{row['restarted_s']:.1f}",
            f"{row['neighbours_per_node']:.1f}", row["tree_parts"], f"{row['known_per_node']:.0f}",
        )
        for row in result["rows"]
    ]  # fmt: skip
    words = (
        "A fifth of the core nodes falls silent: they keep their links, take everything and say nothing. Right after, "
        "providers change one after the other. *Until 99 %*: from when a head is held at its home until 99 % of the "
        "core nodes that speak hold it, entries included (600 where they never did); median and 99th percentile of the "
        "heads. *Healed*: after two halves were apart for ten minutes and changed, until all hold the same. *Parts*: "
        "into how many the tree falls among those that speak if only neighbours count, one minute after; *known*: core "
        "nodes in a node's book, of at most 256. One part and full books are why nothing is shuffled as in HyParView."
    )
    head = (
        "core nodes | reached | until 99 % s p50 / p99 | status p99 s | copies | B/s per node | healed s | "
        "all restart s | neighbours | parts | known"
    )
    return f"{fill(words, 118)}\n\n{table_of(head, rows)}"


KINDS = {"swim": "SWIM", "lifeguard": "SWIM + Lifeguard", "ours": "this node"}


def draw_membership(axes: Axes, result: dict[str, Any]) -> None:
    places = range(len(KINDS))
    for offset, key, label, colour in (
        (-0.2, "false_suspicions_of_healthy_per_node_hour", "suspicions of healthy nodes", COLOURS[0]),
        (0.2, "false_deaths_per_node_hour", "nodes held dead that lived", COLOURS[1]),
    ):
        bars = axes.bar([place + offset for place in places], [result[kind][key] for kind in KINDS], width=0.38,
                        color=colour, label=label)  # fmt: skip
        axes.bar_label(bars, fmt="{:.2f}", fontsize=9)
    axes.set_xticks(list(places), list(KINDS.values()))
    axes.set_ylabel("per node-hour")
    axes.set_title(
        f"{result['nodes']} core nodes, {result['slow']:.0%} stall, {result['loss']:.0%} of messages lost"
    )
    axes.legend(fontsize=8)


def tell_membership(result: dict[str, Any]) -> str:
    rows = [
        row_of(
            name, *(f"{result[kind][f'false_{what}_per_node_hour']:.2f}"
                    for what in ("suspicions", "suspicions_of_healthy", "deaths", "deaths_of_healthy")),
            f"{result[kind]['crash_noticed_p50_s']:.0f} / {result[kind]['crash_noticed_p99_s']:.0f}",
            f"{result[kind]['bytes_per_node_s']:.0f}",
        )
        for kind, name in KINDS.items()
    ]  # fmt: skip
    words = (
        f"{result['nodes']} core nodes, {result['node_hours']:g} node-hours each. {result['slow']:.0%} of them stall "
        f"again and again, for up to {result['stall_s']:g} s, with 20 s between two stalls on average; all kinds see "
        "the same stalls. Nobody dies meanwhile: every suspicion is false, one for each node that has it. A node that "
        "stalls is rightly missed; *of healthy* are those of nodes that never stall. At the end three crash: when the "
        "others hold them dead is the other side of the bargain."
    )
    head = "| suspicions | of healthy | deaths | of healthy | crash noticed s p50 / p99 | B/s per node"
    return f"{fill(words, 118)}\n\nPer node-hour:\n\n{table_of(head, rows)}"
