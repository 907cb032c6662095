"""What `ioc-testnet sim dht` does: run one simulation, show its figures."""

import gc
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import click

from ioc_node.cli.common import pairs, plain, print_json, span_text, stdout
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
