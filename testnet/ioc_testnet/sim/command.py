"""What `ioc-testnet sim dht`, `sim gossip` and `sim membership` do: run one simulation, show its figures."""

import gc
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

from ioc_node.cli.common import pairs, plain, print_json, span_text, stdout, table
from ioc_testnet.sim.gossip import GossipOptions, GossipSimulation
from ioc_testnet.sim.membership import KINDS, MembershipOptions, simulate_membership
from ioc_testnet.sim.nearness import run_nearness
from ioc_testnet.sim.options import SimOptions
from ioc_testnet.sim.simulation import Progress, Simulation

QUIET_SECONDS: Final = 3.0
"""A run that is over before this says nothing on the way."""


def run_sim_dht(options: SimOptions, *, as_json: bool) -> int:
    """Run it; a broken invariant is an error that says its name, the seed and the command that replays it."""
    with collected_rarely():
        figures = Simulation(options, progress=progress_on_stderr()).run()
    if as_json:
        print_json(figures)
    else:
        render_figures(figures)
    return 0


def run_sim_gossip(options: GossipOptions, *, as_json: bool) -> int:
    """Run it and show the figures."""
    with collected_rarely():
        figures = GossipSimulation(options, progress=progress_on_stderr()).run()
    if as_json:
        print_json(figures)
    else:
        render_gossip(figures)
    return 0


def run_sim_membership(options: MembershipOptions, *, as_json: bool) -> int:
    """Run it and show the figures."""
    with collected_rarely():
        figures = simulate_membership(options, progress=progress_on_stderr())
    if as_json:
        print_json(figures)
        return 0
    console = stdout()
    made = table(
        "", "false suspicions", "of healthy", "false deaths", "of healthy", "crash noticed", "p99", "B/s"
    )
    for name in KINDS:
        row = figures[name]
        noticed = [f"{row[key]:.0f} s" if row[key] is not None else "-"
                   for key in ("crash_noticed_p50_s", "crash_noticed_p99_s")]  # fmt: skip
        made.add_row(
            name, f"{row['false_suspicions_per_node_hour']:.2f}",
            f"{row['false_suspicions_of_healthy_per_node_hour']:.2f}", f"{row['false_deaths_per_node_hour']:.2f}",
            f"{row['false_deaths_of_healthy_per_node_hour']:.2f}", *noticed, f"{row['bytes_per_node_s']:.0f}",
        )  # fmt: skip
    console.print(made)
    console.print(
        plain(f"per node-hour, of {figures['node_hours']:g}; again: {figures['command']}"), soft_wrap=True
    )
    return 0


def run_sim_nearness(matrix: Path, *, core: int, seed: int, jitter: float, as_json: bool) -> int:
    """Run the experiment and print its figures."""
    figures = run_nearness(matrix, core=core, seed=seed, jitter=jitter)
    if as_json:
        print_json(figures)
        return 0
    console = stdout()
    made = table("within", "near", "precision", "recall", "pings p50", "p99", "all", "Vivaldi alone")
    for row in figures["rows"]:
        alone = f"{row['vivaldi_precision']:.1%} / {row['vivaldi_recall']:.1%}"
        made.add_row(
            f"{row['within_ms']} ms", f"{row['near_mean']:g}", f"{row['precision']:.1%}", f"{row['recall']:.1%}",
            str(row["probes_p50"]), str(row["probes_p99"]), str(row["probes_everybody"]), alone,
        )  # fmt: skip
    console.print(made)
    console.print(plain(f"again: {figures['command']}"), soft_wrap=True)
    return 0


def render_gossip(figures: dict[str, Any]) -> None:
    """The figures of a gossip simulation, one below the other."""
    console = stdout()
    rows = [
        ("99 % have a head", f"{figures['head_99_p50_s']:.2f} s median, {figures['head_99_p99_s']:.2f} s p99"),
        ("99 % have status", f"{figures['status_99_p99_s']:.2f} s p99"),
        ("reached", f"{figures['reached_share']:.2%} of the core nodes that speak"),
        ("copies per head", f"{figures['copies_per_head']:.2f} ({figures['sent_per_head']:.2f} sent)"),
        ("neighbours", f"{figures['neighbours_per_node']:.1f} of {figures['known_per_node']:.0f} known core nodes"),
        ("one network after", f"{figures['formed_s']:.1f} s; {figures['restarted_s']:.1f} s when all restart"),
        ("healed after", f"{figures['healed_s']:.1f} s (compared every {figures['compare_s']:.0f} s)"),
        ("traffic per node", f"{figures['bytes_per_node'] / 1000:,.0f} kB in {span_text(figures['virtual_seconds'])}"),
        ("it took", span_text(figures["seconds"])),
        ("trace", figures["trace_hash"]),
    ]  # fmt: skip
    pairs(console, rows)
    console.print(plain(f"again: {figures['command']}"), soft_wrap=True)


@contextmanager
def collected_rarely() -> Iterator[None]:
    """Millions of objects stay for the whole run: looking through them again and again for cycles takes longer than
    the run itself.
    """
    before = gc.get_threshold()
    gc.set_threshold(200_000, 50, 1000)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def progress_on_stderr(prefix: str = "") -> Progress:
    """Lines for somebody who waits, not for somebody who does not have to."""
    began = time.monotonic()

    def say(line: str) -> None:
        passed = time.monotonic() - began
        if passed > QUIET_SECONDS:
            click.echo(f"{passed:7.0f} s  {prefix}{line}", file=sys.stderr)

    return say


def render_figures(figures: dict[str, Any]) -> None:
    """The figures, one below the other."""
    console = stdout()
    checked = ", ".join(f"{name} ({count:,} times)" for name, count in figures["invariants"].items() if count)
    faults = ", ".join(f"{count} x {name}" for name, count in figures["faults"].items())
    asked_max = figures["messages_per_lookup_max"]
    rows = [
        ("nodes", f"{figures['nodes']:,} ({figures['start']} start), seed {figures['seed']}"),
        ("reads", f"{figures['trials']:,}: {figures['success']:.2%} succeeded, {figures['newest']:.2%} of them newest"),
        ("not found", faults),
        ("replica recall", f"{figures['replica_recall']:.2%}"),
        ("hops", f"{figures['hops_p50']} median, {figures['hops_p99']} p99"),
        ("latency", f"{figures['latency_p50_ms']:.0f} ms median, {figures['latency_p99_ms']:.0f} ms p99"),
        ("asked per lookup", f"{figures['messages_per_lookup']:.1f} servers, at most {asked_max}"),
        ("traffic per node", f"{figures['bytes_per_node'] / 1000:,.1f} kB in {span_text(figures['virtual_seconds'])}"),
        ("it took", f"{span_text(figures['seconds'])}, {figures['memory_mb']:,.0f} MB"),
        ("held", checked),
        ("trace", figures["trace_hash"]),
    ]  # fmt: skip
    pairs(console, rows)
    console.print(plain(f"again: {figures['command']}"), soft_wrap=True)
