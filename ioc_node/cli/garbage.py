"""`blobs`, `pin`, `unpin` and `gc`: what is kept on this node, and what may go."""

import time
from pathlib import Path

import click
from rich.console import Console

from ioc_node import api
from ioc_node.cli.blobs import BLOB_CHARS, whole_name
from ioc_node.cli.common import ask, counted, show, size_text, span_text, table, with_home
from ioc_node.client import RemoteNode
from ioc_node.tasks.keeper import UNUSED_SECONDS
from ioc_wire.bulk import format_blob_id, parse_blob_id


@click.command()
@with_home
def blobs(home: Path, as_json: bool) -> None:
    """List the blobs that are here: those that something holds, and copies that go when room is needed."""
    found = ask(home, lambda node: node.blobs())
    facts = {
        "blobs": [
            {
                "blob": format_blob_id(row.blob),
                "size": row.size,
                "held": list(row.held),
                "shared": row.shared,
                "used": round(row.used, 3),
            }
            for row in found.rows
        ],
        "total": found.total,
        "bytes_total": found.bytes_total,
        "bytes_max": found.bytes_max,
    }

    def render(console: Console) -> None:
        made = table("blob", "size", "stays because", "shared", "last used", right=("size",))
        for row in found.rows:
            made.add_row(
                format_blob_id(row.blob)[:10],
                size_text(row.size),
                ", ".join(row.held) or "it is a copy that may go",
                "yes" if row.shared else "no",
                span_text(time.time() - row.used) + " ago",
            )
        console.print(made if found.rows else "no blobs are here")
        limit = f" of {size_text(found.bytes_max)}" if found.bytes_max else ""
        console.print(f"{counted(found.total, 'blob')}, {size_text(found.bytes_total)}{limit}", style="dim")

    show(as_json, facts, render)


@click.command()
@click.argument("blob")
@with_home
def pin(home: Path, blob: str, as_json: bool) -> None:
    """Hold BLOB, which is here, until it is unpinned. It is not shared by that: `add` does so."""
    _set_pinned(home, blob, True, as_json)


@click.command()
@click.argument("blob")
@with_home
def unpin(home: Path, blob: str, as_json: bool) -> None:
    """Hold BLOB no longer, and no longer give it out. Its copy goes when room is needed, or with `gc`."""
    _set_pinned(home, blob, False, as_json)


def _set_pinned(home: Path, word: str, pinned: bool, as_json: bool) -> None:
    if len(word) == BLOB_CHARS:
        parse_blob_id(word)

    async def change(node: RemoteNode) -> str:
        name = await whole_name(node, word)
        await node.pin(parse_blob_id(name), pinned=pinned)
        return name

    name = ask(home, change)
    told = f"{name} is {'pinned' if pinned else 'not pinned any more'}"
    show(as_json, {"blob": name, "pinned": pinned}, lambda console: console.print(told, soft_wrap=True))


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option(
    "--unused",
    type=click.FloatRange(min=0),
    default=UNUSED_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="Leave what was used within so long.",
)
@with_home
def gc(home: Path, dry_run: bool, unused: float, as_json: bool) -> None:
    """Remove copies of blobs that nothing holds, and what is left of fetches that were given up.

    This happens by itself when room is needed, for the copies used longest ago.
    """

    async def collect(node: RemoteNode) -> api.Collected:
        return await node.collect_garbage(unused, dry_run=dry_run)

    done = ask(home, collect)
    told = (
        f"{'would remove' if dry_run else 'removed'} {counted(done.blobs, 'blob')}, {size_text(done.bytes)}"
    )
    show(
        as_json,
        {"blobs": done.blobs, "bytes": done.bytes, "dry_run": dry_run},
        lambda console: console.print(told),
    )
