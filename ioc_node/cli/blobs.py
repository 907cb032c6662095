"""`add` and `get`: files as blobs, named by what is in them."""

import secrets
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import click
import trio
from rich.console import Console

from ioc_node import api
from ioc_node.cli.common import (
    ask,
    counted,
    moved_text,
    pairs,
    plain,
    show,
    size_text,
    span_text,
    speed_text,
    table,
    unabbreviate,
    with_home,
)
from ioc_node.client import RemoteNode
from ioc_node.errors import UsageError
from ioc_wire.bulk import format_blob_id, parse_blob_id

BLOB_CHARS = 53


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--announce/--no-announce", default=True, help="Tell the DHT that this node holds it.")
@with_home
def add(home: Path, file: Path, announce: bool, as_json: bool) -> None:
    """Keep a copy of FILE as a blob, announce it, and print the blob's ID."""
    if not file.is_file():
        raise UsageError(f"{file} is not a file" if file.exists() else f"the file {file} does not exist")
    added = ask(home, lambda node: node.add(file, announce=announce))
    blob = format_blob_id(added.blob)
    facts = {
        "blob": blob,
        "size": added.size,
        "announced_to": added.announced_to,
        "elapsed_ms": round(added.elapsed_ms, 3),
    }

    def render(console: Console) -> None:
        console.print(blob, soft_wrap=True)
        told = f"announced to {counted(added.announced_to, 'node')}" if announce else "not announced"
        console.print(f"{size_text(added.size)}, {told}, {span_text(added.elapsed_ms / 1000)}", style="dim")

    show(as_json, facts, render)


@click.command()
@click.argument("blob")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, allow_dash=True),
    help="Where to write it; - is stdout.",
)
@click.option(
    "--range", "span", metavar="FROM-TO", help="Only these bytes, counted from 0, TO included: 0-99."
)
@with_home
def get(home: Path, blob: str, output: Path, span: str | None, as_json: bool) -> None:
    """Fetch BLOB from whoever holds it, verify every byte, and write it to a file or to stdout.

    To stdout, and with --range, bytes are passed on as they arrive and no copy is kept on the node.
    """
    if len(blob) == BLOB_CHARS:
        parse_blob_id(blob)
    start, stop = _parse_range(span)
    if str(output) == "-":
        if as_json:
            raise UsageError("--json and -o - both want stdout: write to a file")
        ask(home, lambda node: _pour(node, blob, start, stop, sys.stdout.buffer))
        return
    if output.is_dir():
        raise UsageError(f"{output} is a folder; name the file to write")
    if output.exists() and not output.is_file():
        raise UsageError(f"{output} is not a plain file; -o - writes to stdout")
    if not output.absolute().parent.is_dir():
        raise UsageError(f"the folder {output.absolute().parent} does not exist")
    if span is not None:
        size = ask(home, lambda node: _pour_into(node, blob, start, stop, output))
        show(
            as_json,
            {"blob": blob, "path": str(output), "size": size, "start": start},
            lambda console: console.print(f"wrote {output} ({size_text(size)})", markup=False),
        )
        return

    async def fetch(node: RemoteNode) -> api.Got:
        return await node.get(parse_blob_id(await whole_name(node, blob)), output)

    got = ask(home, fetch)
    facts = {
        "blob": format_blob_id(got.blob),
        "path": str(output),
        "size": got.size,
        "bytes_moved": got.bytes_moved,
        "seconds": round(got.seconds, 6),
        "transport": got.transport,
        "reason": got.reason,
        "holder": got.holder,
    }

    def render(console: Console) -> None:
        pairs(
            console,
            [
                ("wrote", f"{output} ({size_text(got.size)})"),
                ("moved", moved_text(got.bytes_moved, got.seconds)),
                ("over", f"{got.transport}: {got.reason}" if got.reason else got.transport),
                ("from", got.holder),
            ],
        )

    show(as_json, facts, render)


def _parse_range(span: str | None) -> tuple[int, int | None]:
    if span is None:
        return 0, None
    first, dash, last = span.partition("-")
    if not (dash and first.isdecimal() and (last.isdecimal() or not last)):
        raise UsageError(f"--range {span!r} is no range of bytes: write 0-99, or 100- for all from there on")
    start, stop = int(first), int(last) + 1 if last else None
    if stop is not None and stop <= start:
        raise UsageError(f"--range {span} ends before it begins")
    return start, stop


async def _pour(node: RemoteNode, word: str, start: int, stop: int | None, into: BinaryIO) -> int:
    """Write bytes as they come; a slow reader of `into` slows the holders down."""
    written = 0
    blob = parse_blob_id(await whole_name(node, word))
    async with node.open_blob(blob, start=start, stop=stop) as pieces:
        async for piece in pieces:
            await trio.to_thread.run_sync(into.write, piece)
            written += len(piece)
    await trio.to_thread.run_sync(into.flush)
    return written


async def _pour_into(node: RemoteNode, word: str, start: int, stop: int | None, path: Path) -> int:
    """The same into a file that has its name only when it is whole."""
    sibling = path.with_name(f".{secrets.token_hex(8)}.new")
    try:
        with sibling.open("xb") as file:
            written = await _pour(node, word, start, stop, file)
        sibling.replace(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            sibling.unlink(missing_ok=True)
    return written


async def whole_name(node: RemoteNode, word: str) -> str:
    """A blob ID that may be cut short where the node knows the blob: from transfers and outputs."""
    if len(word) == BLOB_CHARS:
        return word
    known = [format_blob_id(row.blob) for row in (await node.blobs()).rows]
    known += [format_blob_id(row.blob) for row in await node.transfers()]
    return unabbreviate(word, known, "blob")


def render_transfers(console: Console, rows: tuple[api.TransferRow, ...], *, title: str = "") -> None:
    """What moved, over which transport, how fast."""
    made = table("blob", "size", "speed", "transport", "from", "why", title=title, right=("size", "speed"))
    made.columns[5].no_wrap = False
    for row in rows:
        made.add_row(
            format_blob_id(row.blob)[:10],
            size_text(row.size),
            speed_text(row.bytes_moved, row.seconds),
            row.transport,
            row.holder[:10],
            plain(row.reason),
        )
    console.print(made if rows else "nothing was moved")
