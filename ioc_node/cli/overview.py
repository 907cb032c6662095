"""`status`, `peers`, `overview`, `relayed` and `id`: the node, whom it knows, what a core node holds and passes on."""

import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console

from ioc_node import api
from ioc_node.cli.common import (
    ask,
    counted,
    pairs,
    plain,
    short,
    show,
    size_text,
    span_text,
    table,
    with_home,
)
from ioc_node.config import KEY_NAME
from ioc_node.runtime.keys import load_key
from ioc_wire.authority import CORE_ROLES
from ioc_wire.identity import format_node_id, node_id_of
from ioc_wire.signed import public_bytes

_SUMMED: Final = tuple(
    name for name in api.OverviewRow.__struct_fields__ if name not in ("node", "peak_gops", "head_issued")
)


@click.command()
@with_home
def status(home: Path, as_json: bool) -> None:
    """Show the running node at a glance: role, how joining stands, what it holds, and what it warns of."""
    found = ask(home, lambda node: node.status())
    show(as_json, status_facts(found), lambda console: render_status(console, found))


def status_facts(found: api.NodeStatus) -> dict[str, Any]:
    """All fields, keys and digests in hexadecimal."""
    facts: dict[str, Any] = {name: getattr(found, name) for name in found.__struct_fields__}
    facts["warnings"] = [{"about": warned.about, "text": warned.text} for warned in found.warnings]
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in facts.items()}


def render_status(console: Console, found: api.NodeStatus) -> None:
    """The facts an operator asks for first, then the warnings."""
    now = time.time()
    joined = f"{span_text(now - found.joined)} ago" if found.joined else "not yet"
    pairs(
        console,
        [
            ("node", found.node_id),
            ("role", f"{found.role}, network {found.network}"),
            ("reached", found.reached)
            if found.reached
            else ("listens", f"{found.host}:{found.port} (links, DHT), UDP {found.port + 1} (bulk)"),
            ("process", f"{found.pid}, up {span_text(now - found.started)}, version {found.version}"),
            ("bulk process", str(found.bulk_pid) if found.bulk_pid else ""),
            ("joined", f"{joined}; {found.bootstrap}" if found.bootstrap else joined),
            ("home core node", found.home_core),
            ("peers", f"{counted(found.servers_known, 'DHT server')} known, {counted(found.links, 'link')}"),
            ("identifiers", f"{found.identifiers} own, {found.records_stored} records kept for others"),
            ("catalogue", _catalogue_text(found)),
            ("digest", found.catalogue_digest.hex()[:16]),
            ("runtimes", ", ".join(found.runtimes)),
            ("tasks", f"{found.tasks_running} running, {counted(found.receipts, 'receipt')}"),
            ("blobs", f"{found.blobs}, {size_text(found.blob_bytes)}"),
            ("offloads", "; ".join(found.offloads)),
            ("moved", f"{size_text(found.bytes_in)} in, {size_text(found.bytes_out)} out"),
        ],
    )
    for warned in found.warnings:
        console.print(plain(f"warning: {warned.about}: {warned.text}"), style="yellow", soft_wrap=True)


def _catalogue_text(found: api.NodeStatus) -> str:
    """Only core nodes have one."""
    if found.role not in CORE_ROLES:
        return ""
    return f"{counted(found.catalogue_records, 'record')} of {counted(found.catalogue_providers, 'provider')}"


@click.command()
@with_home
def peers(home: Path, as_json: bool) -> None:
    """List the peers that the running node knows: their roles, where they are, and how far."""
    rows = ask(home, lambda node: node.peers())
    facts = [{name: getattr(row, name) for name in row.__struct_fields__} for row in rows]
    show(as_json, {"peers": facts}, lambda console: render_peers(console, rows))


def render_peers(console: Console, rows: tuple[api.PeerRow, ...]) -> None:
    """One line per peer, core nodes first."""
    made = table("peer", "roles", "address", "link", "table", "rtt", right=("rtt",), fold=("roles",))
    for row in sorted(rows, key=lambda row: (not row.roles, row.roles, row.port)):
        made.add_row(
            short(row.node_id),
            ", ".join(row.roles) or "-",
            f"{row.host}:{row.port}",
            "yes" if row.linked else "-",
            "yes" if row.in_table else "-",
            f"{row.rtt_ms:.1f} ms" if row.rtt_ms >= 0 else "-",
        )
    console.print(made if rows else "no peers are known yet; `ioc-node status` says how joining stands")


@click.command()
@with_home
def overview(home: Path, as_json: bool) -> None:
    """Show what this core node holds, per node prefix: providers and hosts (those that told their status of late, of
    all), identifiers, accelerators, what is free of them, and peak rates by precision."""
    found = ask(home, lambda node: node.overview())
    *rows, total = [
        {name: getattr(row, name) for name in row.__struct_fields__}
        for row in (*found.rows, sum_up(found.rows))
    ]
    for row in (*rows, total):
        row["peak_gops"] = dict(row["peak_gops"])
    facts = {"rows": rows, "total": total, "interest": found.interest, "made": found.made}
    show(as_json, facts, lambda console: render_overview(console, found))


def render_overview(console: Console, found: api.Overview) -> None:
    """One line per node prefix; peak rates by precision, which are never added together."""
    shares = ("cores\nfree", "accel-\nerators", "acc.\nfree")
    counts = ("pro-\nviders", "identi-\nfiers", "hosts", *shares, "newest\nhead")
    made = table(
        "node", *counts, "peak\nTFLOPS", right=counts, fold=("pro-\nviders", "hosts", "peak\nTFLOPS")
    )
    rows = (*found.rows, sum_up(found.rows)) if len(found.rows) > 1 else found.rows
    for row in rows:
        made.add_row(
            row.node,
            f"{row.connected} of {row.providers}",
            f"{row.identifiers:,}",
            f"{row.hosts_told:,} of {row.hosts:,}",
            _share(row.cores_free_milli, row.cores_told_milli),
            f"{row.accelerators:,}",
            _share(row.accelerators_free_milli, row.accelerators_told_milli),
            span_text(max(0.0, found.made - row.head_issued)),
            "\n".join(f"{name} {gops / 1000:,.0f}" for name, gops in row.peak_gops) or "-",
            end_section=len(found.rows) > 1 and row is found.rows[-1],
        )
    console.print(made if found.rows else "this core node holds nothing yet")
    if found.interest:
        console.print(
            plain(f"replicated here: {', '.join(found.interest)}; the rest is asked of other core nodes")
        )


def sum_up(rows: tuple[api.OverviewRow, ...]) -> api.OverviewRow:
    """All rows in one; each precision by itself."""
    peaks: Counter[str] = Counter()
    for row in rows:
        peaks.update(dict(row.peak_gops))
    sums = {name: sum(getattr(row, name) for row in rows) for name in _SUMMED}
    newest = max((row.head_issued for row in rows), default=0)
    return api.OverviewRow(node="all", peak_gops=tuple(sorted(peaks.items())), head_issued=newest, **sums)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"


@click.command()
@with_home
def relayed(home: Path, as_json: bool) -> None:
    """Show what this core node passed on for peers that cannot reach each other, per day and pair."""
    found = ask(home, lambda node: node.relayed())
    rows = [{name: getattr(row, name) for name in row.__struct_fields__} for row in found.rows]
    facts = {"circuits": found.circuits, "sessions": found.sessions, "port": found.port, "rows": rows}
    show(as_json, facts, lambda console: render_relayed(console, found))


def render_relayed(console: Console, found: api.Relayed) -> None:
    """One line per day and pair; what links carried, and blobs."""
    console.print(
        f"open now: {counted(found.circuits, 'circuit')}, {counted(found.sessions, 'relay')} on UDP {found.port}"
    )
    made = table("day", "caller", "target", "links", "blobs", right=("links", "blobs"))
    for row in found.rows:
        sizes = (size_text(row.circuit_bytes), size_text(row.datagram_bytes))
        made.add_row(row.day, short(row.caller), short(row.target), *sizes)
    if found.rows:
        console.print(made)


@click.command("id")
@with_home
def show_id(home: Path, as_json: bool) -> None:
    """Print the node ID and public key of this home folder; the node need not run."""
    key = public_bytes(load_key(home / KEY_NAME))
    node_id = format_node_id(node_id_of(key))

    def render(console: Console) -> None:
        pairs(console, [("node", node_id), ("public key", key.hex()), ("home", home)])

    show(as_json, {"node_id": node_id, "public_key": key.hex(), "home": str(home)}, render)
