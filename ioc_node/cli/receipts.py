"""`receipts`: what was used, signed by the provider and countersigned by the consumer."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ioc_node import api
from ioc_node.cli.common import (
    ask,
    counted,
    money_text,
    plain,
    short,
    show,
    size_text,
    span_text,
    table,
    with_home,
)
from ioc_node.cli.story import short_task
from ioc_node.errors import TaskFailed
from ioc_wire.express import EXPRESS_CID
from ioc_wire.identity import format_node_id, node_id_of
from ioc_wire.metering import UsageRecord, format_receipt_id
from ioc_wire.tasks import format_task_id


@click.command()
@click.option("--verify", is_flag=True, help="Check all, not only the newest; exit with 5 if one is bad.")
@with_home
def receipts(home: Path, verify: bool, as_json: bool) -> None:
    """List the receipts of this node, newest first; both signatures of each are checked."""
    found = ask(home, lambda node: node.receipts(verify=verify))
    facts = {
        "receipts": [receipt_facts(row) for row in found.rows],
        "total": found.total,
        "verified": sum(not row.fault for row in found.rows),
    }
    show(as_json, facts, lambda console: render_receipts(console, found))
    bad = [row for row in found.rows if row.fault]
    if verify and bad:
        first = bad[0]
        raise TaskFailed(
            f"{len(bad)} of {len(found.rows)} receipts are bad; the first is "
            f"{short(format_receipt_id(first.receipt))}: {first.fault}"
        )


def receipt_facts(row: api.ReceiptRow) -> dict[str, Any]:
    """One receipt for programs: integers of base units. One that is no good has no usage, but a fault."""
    facts: dict[str, Any] = {
        "receipt": format_receipt_id(row.receipt),
        "side": row.side,
        "verified": not row.fault,
        "fault": row.fault,
    }
    usage = row.usage
    if usage is not None:
        numbers = (
            "attempt",
            "cid",
            "state",
            "wall_ms",
            "core_ms",
            "mib_ms",
            "bytes_in",
            "bytes_out",
            "cost_micro",
        )
        facts |= {name: getattr(usage, name) for name in numbers}
        facts |= {
            "task": format_task_id(usage.task),
            "provider": format_node_id(node_id_of(usage.provider)),
            "consumer": format_node_id(node_id_of(usage.consumer)),
        }
    return facts


def _provider(usage: UsageRecord) -> str:
    """The prefix of whoever provided; of a shipment its receiver."""
    if usage.cid == EXPRESS_CID:
        return f"{short(format_node_id(node_id_of(usage.provider)))} {EXPRESS_CID}"
    return usage.cid.removeprefix("ioc:").partition("/")[0][:20]


def render_receipts(console: Console, found: api.Receipts, *, shown: int = api.ROWS_MAX) -> None:
    """What each attempt used and cost, for the newest `shown`; the sums are of all."""
    if not found.rows:
        console.print("no receipts yet")
        return
    right = ("core", "wall", "moved", "cost")
    made = table("receipt", "task", *right, "provider", right=right, fold=("provider",))
    for row in found.rows[:shown]:
        usage = row.usage
        receipt = short(format_receipt_id(row.receipt))
        if usage is None:
            made.add_row(receipt, "-", "-", "-", "-", "-", plain(f"BAD: {row.fault}"), style="red")
            continue
        made.add_row(
            receipt,
            short_task(usage.task)[:8],
            f"{usage.core_ms} ms",
            span_text(usage.wall_ms / 1000),
            size_text(usage.bytes_in + usage.bytes_out),
            money_text(usage.cost_micro),
            plain(_provider(usage)),
        )
    console.print(made)
    if len(found.rows) > shown:
        console.print(f"… and {len(found.rows) - shown} more", style="dim")
    cost = sum(row.usage.cost_micro for row in found.rows if row.usage is not None)
    good = sum(not row.fault for row in found.rows)
    console.print(
        f"{counted(found.total, 'receipt')}; {good} of {len(found.rows)} verified with both signatures"
    )
    which = "in all" if len(found.rows) == found.total else f"of the {len(found.rows)} newest"
    console.print(f"cost {which}: {money_text(cost)}", style="dim")
