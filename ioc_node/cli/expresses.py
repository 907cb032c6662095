"""`express send`, `list`, `show` and `cancel`: what is shipped to other nodes, and what is taken from them."""

import time
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ioc_node import api
from ioc_node.cli.common import (
    ask,
    money_text,
    pairs,
    plain,
    short,
    show,
    size_text,
    span_text,
    table,
    unabbreviate,
    with_home,
)
from ioc_node.client import RemoteNode
from ioc_node.errors import UsageError
from ioc_node.market.demand import seconds_of
from ioc_wire.bulk import format_blob_id
from ioc_wire.identity import base32, unbase32
from ioc_wire.metering import format_receipt_id


def format_shipment(shipment: bytes) -> str:
    """`s` and 52 characters of base32."""
    return "s" + base32(shipment)


@click.group()
def express() -> None:
    """Ship a blob or a dataset to a node by a deadline, for a price; the receipt says how many bytes it was."""


@express.command()
@click.argument("subject")
@click.option(
    "--to", required=True, metavar="NODE|PREFIX", help="A node ID, or a prefix for any provider there."
)
@click.option(
    "--within", default="1d", show_default=True, help="Seconds, or text such as 2h; it costs nothing later."
)
@click.option(
    "--price-max", default="0", show_default=True, help="The most it may cost, in the network's currency."
)
@with_home
def send(home: Path, subject: str, to: str, within: str, price_max: str, as_json: bool) -> None:
    """Ship SUBJECT, a blob or dataset that is here, and print the shipment's ID."""
    seconds = seconds_of("--within", within)
    message = api.SendShipment(subject, to, seconds, _micro(price_max))
    _show_one(as_json, ask(home, lambda node: node.ship(message)))


@express.command("list")
@with_home
def list_shipments(home: Path, as_json: bool) -> None:
    """List shipments, the newest first."""
    rows = ask(home, lambda node: node.shipments())
    show(
        as_json,
        {"shipments": [shipment_facts(row) for row in rows]},
        lambda console: render_list(console, rows),
    )


@express.command("show")
@click.argument("shipment")
@with_home
def show_shipment(home: Path, shipment: str, as_json: bool) -> None:
    """Show one shipment."""

    async def find(node: RemoteNode) -> api.ShipmentRow:
        return await node.shipment(await _whole(node, shipment))

    _show_one(as_json, ask(home, find))


@express.command()
@click.argument("shipment")
@with_home
def cancel(home: Path, shipment: str, as_json: bool) -> None:
    """Stop a shipment, from either side; nothing is paid for it."""

    async def stop(node: RemoteNode) -> api.ShipmentRow:
        return await node.cancel_shipment(await _whole(node, shipment))

    _show_one(as_json, ask(home, stop))


async def _whole(node: RemoteNode, word: str) -> bytes:
    known = {format_shipment(row.shipment): row.shipment for row in await node.shipments()}
    found = unabbreviate(word, known, "shipment", listed_by="express list")
    return known.get(found) or unbase32(found[1:])


def _micro(text: str) -> int:
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise UsageError(f"--price-max {text!r} is no number") from None
    if not 0 <= value <= 10**9:
        raise UsageError("--price-max has to be from 0 to 10^9")
    return int(value * 10**6)


def shipment_facts(row: api.ShipmentRow) -> dict[str, Any]:
    """One shipment for programs."""
    facts: dict[str, Any] = {name: getattr(row, name) for name in row.__struct_fields__}
    facts["shipment"] = format_shipment(row.shipment)
    facts["subject"] = format_blob_id(row.subject)
    facts["receipt"] = format_receipt_id(row.receipt) if row.receipt else ""
    return facts


def _show_one(as_json: bool, row: api.ShipmentRow) -> None:
    show(as_json, shipment_facts(row), lambda console: render_one(console, row))


def render_one(console: Console, row: api.ShipmentRow) -> None:
    """Everything about one shipment."""
    left = row.deadline - time.time()
    console.print(format_shipment(row.shipment), soft_wrap=True)
    pairs(
        console,
        [
            ("state", f"{row.state}{': ' + row.text if row.text else ''}"),
            ("what", f"{'dataset' if row.dataset else 'blob'} {format_blob_id(row.subject)}"),
            ("size", f"{size_text(row.size)}, {size_text(row.bytes_done)} of it moved"),
            ("to" if row.side == "sends" else "from", row.peer),
            ("deadline", f"in {span_text(left)}" if left > 0 else f"{span_text(-left)} ago"),
            ("expected", span_text(row.expected_seconds) if row.expected_seconds else ""),
            (
                "price",
                f"{money_text(row.price_micro_per_gb)} per GB, at most {money_text(row.price_max_micro)}",
            ),
            ("receipt", format_receipt_id(row.receipt) if row.receipt else ""),
        ],
    )


def render_list(console: Console, rows: tuple[api.ShipmentRow, ...]) -> None:
    """One line each."""
    right = ("size", "moved")
    made = table("shipment", "side", "what", *right, "peer", "state", "why", right=right)
    made.columns[7].no_wrap = False
    for row in rows:
        made.add_row(
            short(format_shipment(row.shipment)),
            row.side,
            "dataset" if row.dataset else "blob",
            size_text(row.size),
            size_text(row.bytes_done),
            short(row.peer),
            row.state,
            plain(row.text),
        )
    console.print(made if rows else "no shipments yet")
