"""`receipts`: what was used, signed by the provider and countersigned by the consumer."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ioc_node import api
from ioc_node.cli.common import ask, money_text, plain, short, show, size_text, span_text, table, with_home
from ioc_node.cli.story import short_task
from ioc_node.errors import TaskFailed
from ioc_wire.identity import format_node_id, node_id_of
from ioc_wire.metering import format_receipt_id
from ioc_wire.tasks import format_task_id


@click.command()
@click.option("--verify", is_flag=True, help="Check both signatures of each; exit with 5 if one is bad.")
@with_home
def receipts(home: Path, verify: bool, as_json: bool) -> None:
    """List the receipts of this node, as consumer and as provider, newest first."""
    found = ask(home, lambda node: node.receipts(verify=verify))
    facts = {
        "receipts": [receipt_facts(row) for row in found.rows],
        "total": found.total,
        "verified": sum(not row.fault for row in found.rows) if verify else None,
    }
    show(as_json, facts, lambda console: render_receipts(console, found, verify=verify))
    bad = [row for row in found.rows if row.fault]
    if verify and bad:
        first = bad[0]
        raise TaskFailed(
            f"{len(bad)} of {len(found.rows)} receipts are bad; the first is "
            f"{short(format_receipt_id(first.receipt))}: {first.fault}"
        )


def receipt_facts(row: api.ReceiptRow) -> dict[str, Any]:
    """One receipt for programs: integers of base units."""
    usage = row.usage
    if usage is None:
        return {"receipt": format_receipt_id(row.receipt), "fault": row.fault}
    return {
        "receipt": format_receipt_id(row.receipt),
        "task": format_task_id(usage.task),
        "attempt": usage.attempt,
        "side": row.side,
        "provider": format_node_id(node_id_of(usage.provider)),
        "consumer": format_node_id(node_id_of(usage.consumer)),
        "cid": usage.cid,
        "state": usage.state,
        "wall_ms": usage.wall_ms,
        "core_ms": usage.core_ms,
        "mib_ms": usage.mib_ms,
        "bytes_in": usage.bytes_in,
        "bytes_out": usage.bytes_out,
        "cost_micro": usage.cost_micro,
        "fault": row.fault,
    }


def render_receipts(console: Console, found: api.Receipts, *, verify: bool, title: str = "") -> None:
    """What each attempt used and cost."""
    made = table(
        "receipt", "task", "core", "wall", "moved", "cost", "place", "checked", title=title,
        right=("core", "wall", "moved", "cost"), fold=("place", "checked"),
    )  # fmt: skip
    for row in found.rows:
        usage = row.usage
        if usage is None:
            made.add_row(short(format_receipt_id(row.receipt)), "", "", "", "", "", "", plain(row.fault))
            continue
        made.add_row(
            short(format_receipt_id(row.receipt)),
            short_task(usage.task)[:8],
            f"{usage.core_ms} ms",
            span_text(usage.wall_ms / 1000),
            size_text(usage.bytes_in + usage.bytes_out),
            money_text(usage.cost_micro),
            plain(usage.cid.removeprefix("ioc:")),
            "good",
        )
    if not found.rows:
        console.print("no receipts yet")
        return
    console.print(made)
    cost = sum(row.usage.cost_micro for row in found.rows if row.usage is not None)
    good = f", {sum(not row.fault for row in found.rows)} verified with both signatures" if verify else ""
    console.print(f"{found.total} receipts{good}, cost {money_text(cost)} in those shown", style="dim")
