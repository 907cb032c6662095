"""Plots and the page of `docs/experiments`, from the JSON files alone."""

import json
from pathlib import Path
from textwrap import fill
from typing import Any, Final

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from ioc_testnet.sim.core_page import draw_gossip, draw_membership, tell_gossip, tell_membership
from ioc_testnet.sim.markdown import COLOURS, row_of, table_of

_DPI: Final = 110


def write_page(out: Path) -> None:
    """Draw what there is and write `README.md`."""
    parts = ["# Experiments", "", _INTRODUCTION]
    for name, (title, draw, tell) in _PARTS.items():
        path = out / f"{name}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text(encoding="utf-8"))
        figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
        draw(axes, result)
        axes.grid(alpha=0.3)
        figure.savefig(out / f"{name}.png", dpi=_DPI, metadata={"Software": None})
        plt.close(figure)
        parts += [f"## {title}", "", f"![{title}]({name}.png)", "", tell(result), ""]
        parts += ["| Threshold | value | at least | |", "|---|---|---|---|"]
        parts += [f"| {each['what']} | {each['value']} | {each['least']} | {'held' if each['held'] else '**missed**'} |"
                  for each in result["thresholds"]]  # fmt: skip
        parts.append("")
    (out / "README.md").write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")


_INTRODUCTION: Final = """Made by `ioc-testnet sim experiments --out docs/experiments`; every figure is of a run, and
beside each plot lies the JSON with the exact command of each run. The nodes are the real machines with their real
cryptography, in virtual time, from one seed (`ioc-testnet sim dht --help`). Tables start *warm*: an oracle fills them
with what a settled node knows, under the table's own rules.

*Success*: a read gave a verified record, not older than what this reader saw before. *Replica recall*: of the 20 live
servers nearest to a key, which share of the honest ones holds the record after a put. *Churn*: so many of all servers,
malicious or not, are dead in everyone's tables, from one moment on. *Asked*: servers asked per read.
"""


def _draw_resilience(axes: Axes, result: dict[str, Any]) -> None:
    mixed = sorted(
        (row for row in result["rows"] if row["kind"] == "mixed"), key=lambda row: row["malicious"]
    )
    shares = [100 * row["malicious"] for row in mixed]
    axes.plot(shares, [row["success"] for row in mixed], "o-", color=COLOURS[0], label="success, mixed")
    axes.plot(
        shares,
        [row["replica_recall"] for row in mixed],
        "s--",
        color=COLOURS[2],
        label="replica recall, mixed",
    )
    for kind, colour in (("lying", COLOURS[1]), ("inventing", COLOURS[3])):
        rows = [row for row in result["rows"] if row["kind"] == kind]
        axes.plot([100 * row["malicious"] for row in rows], [row["success"] for row in rows], "^", color=colour,
                  label=f"success, {kind}")  # fmt: skip
    axes.set(
        xlabel="malicious servers, %", ylabel="share", title="2,000 servers, 30 % of them dead in all tables"
    )
    axes.set_ylim(min(0.9, *(row["replica_recall"] for row in mixed)) - 0.02, 1.005)
    axes.legend()


def _tell_resilience(result: dict[str, Any]) -> str:
    rows = [
        row_of(f"{row['malicious']:.0%} {row['kind']}", row["trials"], f"{row['success']:.4f}", f"{row['newest']:.4f}",
             f"{row['replica_recall']:.4f}", f"{row['hops_p50']} / {row['hops_p99']}", row["messages_per_lookup"],
             f"{row['latency_p50_ms']:.0f} / {row['latency_p99_ms']:.0f}", f"{row['seconds']:.0f}")
        for row in result["rows"]
    ]  # fmt: skip
    head = "malicious | reads | success | of them newest | recall | hops p50 / p99 | asked | ms p50 / p99 | run took s"
    return table_of(head, rows)


def _draw_sybils(axes: Axes, result: dict[str, Any]) -> None:
    for count, colour in zip(sorted({row["sybils"] for row in result["rows"]}), COLOURS, strict=False):
        rows = [row for row in result["rows"] if row["sybils"] == count]
        groups = [row["groups"] for row in rows]
        axes.plot(groups, [row["dht"] for row in rows], "o-", color=colour, label=f"{count} Sybils, ours")
        axes.plot(groups, [row["bucket_rule_only"] for row in rows], "x:", color=colour,
                  label=f"{count} Sybils, 2 per /24 and bucket only")  # fmt: skip
    races = {row["groups"]: row["race"] for row in result["rows"]}
    axes.plot(sorted(races), [races[each] for each in sorted(races)], "--", color="black", lw=1, zorder=5,
              label="race with two core nodes")  # fmt: skip
    axes.axvline(20, color="grey", lw=0.8, ls="--")
    axes.text(20.4, 0.5, "k = 20: the caps' prediction", rotation=90, va="center", fontsize=8, color="grey")
    axes.set(xlabel="/24s that the attacker has", ylabel="success",
             title=f"Sybils right beside one key, {result['nodes']} honest servers")  # fmt: skip
    axes.legend(fontsize=7, loc="center right")


def _tell_sybils(result: dict[str, Any]) -> str:
    rows = [
        row_of(r["sybils"], r["groups"], r["dht"], r["bucket_rule_only"], r["race"]) for r in result["rows"]
    ]
    note = (
        "Keys are ground as long as it takes on average until all Sybils lie nearer to the key than honest servers; "
        "one or two of those still stand among them, so that exactly 20 Sybils need not fill all 20 places. The record "
        "is put and read after they came. They store nothing and tell only of each other. "
        '"Ours" also chooses at most '
        "one replica holder per /24 (as long as there are enough), so an attacker needs 20 of them. py-libp2p's rule "
        "is modelled by our table with that choice switched off: beside a key all Sybils fall into one bucket, so the "
        "table's own further cap (3 per table) hardly matters. The race is arithmetic and not a run: a resolve that "
        "races the DHT and two core nodes fails only if all three do, and an honest core node answers from its own "
        "verified catalogue, in which Sybils of the DHT have no part."
    )
    return (
        fill(note, 118) + "\n\n" + table_of("Sybils | /24s | DHT alone, ours | bucket rule only | race", rows)
    )


def _draw_sweep(axes: Axes, result: dict[str, Any]) -> None:
    one, planned = result["per_record"], result["planned"]
    labels = ["lookups", "messages with records"]
    axes.bar([0, 1], [one["lookups"], planned["writes"]], width=0.35, color=COLOURS[1], label="one by one")
    axes.bar(
        [0.38, 1.38],
        [planned["lookups"], planned["record_messages"]],
        width=0.35,
        color=COLOURS[0],
        label="sweep",
    )
    for x, value in ((0, one["lookups"]), (0.38, planned["lookups"]), (1, planned["writes"]),
                     (1.38, planned["record_messages"])):  # fmt: skip
        axes.text(x, value, f"{value:,}", ha="center", va="bottom", fontsize=9)
    axes.set_yscale("log")
    axes.set_xticks([0.19, 1.19], labels)
    axes.set_ylabel("number")
    axes.margins(y=0.15)
    axes.set_title(
        f"{result['records']:,} identifiers, {result['providers']} providers, {result['servers']} servers"
    )
    axes.legend()


def _tell_sweep(result: dict[str, Any]) -> str:
    one, planned, check = result["per_record"], result["planned"], result["check"]
    costs = (
        f"{result['records']:,} identifiers of {result['providers']} providers on {result['servers']} servers, each on "
        f"20 of them. The planner that the nodes use counts {planned['lookups']:,} lookups in {planned['sweeps']} "
        f"sweeps, against {one['lookups']:,} with one lookup per record: {result['fewer_lookups']:.2%} fewer; and "
        f"{planned['record_messages']:,} messages with records against {planned['writes']:,}. Put one by one on the "
        f"real machine a record took {one['requests_per_record']:.1f} requests, which would be {one['requests']:,} in "
        "all. Providers are clients with bucketed tables here; with a full table a sweep needs no lookup."
    )
    checked = (
        f"Checked on the real machines with {check['providers']} providers and {check['records']:,} records: "
        f"{check['real_lookups']:,} lookups where the planner says {check['planned_lookups']:,}, {check['missed']} "
        f"records missed, {check['replicas_held']:.2%} of all replicas in place afterwards; "
        f"{check['real_requests']:,} requests in all, those of the lookups counted in, of which "
        f"{check['planned_record_messages']:,} were planned to carry up to {check['records_per_message']} records each."
    )
    return f"{fill(costs, 118)}\n\n{fill(checked, 118)}\n"


def _draw_latency(axes: Axes, result: dict[str, Any]) -> None:
    rows = result["rows"]
    places = range(len(rows))
    for offset, key, label, colour in (
        (-0.3, "one_hop_p50_ms", "one hop to the quickest holder, median", COLOURS[2]),
        (-0.1, "latency_p50_ms", "read, median", COLOURS[0]),
        (0.1, "one_hop_p99_ms", "one hop, p99", "#9fcfb0"),
        (0.3, "latency_p99_ms", "read, p99", COLOURS[1]),
    ):
        bars = axes.bar(
            [place + offset for place in places],
            [row[key] for row in rows],
            width=0.19,
            color=colour,
            label=label,
        )
        axes.bar_label(bars, fmt="{:.0f}", fontsize=8)
    axes.set_xticks(list(places), [f"{row['nodes']:,} servers" for row in rows])
    axes.set_ylabel("ms")
    axes.margins(y=0.12)
    axes.set_title(
        "Reads by nodes that met nobody before" + (", PlanetLab round trips" if result["matrix"] else "")
    )
    axes.legend(fontsize=8)


def _tell_latency(result: dict[str, Any]) -> str:
    rows = [
        row_of(f"{r['nodes']:,}", f"{r['success']:.4f}", f"{r['hops_p50']} / {r['hops_p99']}", r["messages_per_lookup"],
             f"{r['latency_p50_ms']:.0f} / {r['latency_p99_ms']:.0f}",
             f"{r['one_hop_p50_ms']:.0f} / {r['one_hop_p99_ms']:.0f}",
             f"{r['seconds']:.0f}", f"{r['memory_mb']:,.0f}")
        for r in result["rows"]
    ]  # fmt: skip
    source = "the 490 x 490 PlanetLab matrix" if result["matrix"] else "one constant round trip"
    note = (
        f"Round trips are {source}; nodes are dealt out to its rows. The one-hop ideal is the round trip to the "
        "quickest holder, for a reader that knows which one that is and has a session with it. Readers here mostly "
        "have no session yet, and a handshake costs one more round trip per server met. The last column is the "
        "process's peak memory so far."
    )
    head = "servers | success | hops p50 / p99 | asked | read ms p50 / p99 | one hop ms p50 / p99 | run took s | MB"
    return fill(note, 118) + "\n\n" + table_of(head, rows)


_PARTS: Final = {
    "resilience": ("Churn and malice", _draw_resilience, _tell_resilience),
    "sybils": ("Sybils beside a key", _draw_sybils, _tell_sybils),
    "sweep": ("Publishing by sweep", _draw_sweep, _tell_sweep),
    "latency": ("Latency", _draw_latency, _tell_latency),
    "gossip": ("News between core nodes", draw_gossip, tell_gossip),
    "membership": ("False suspicions", draw_membership, tell_membership),
}
