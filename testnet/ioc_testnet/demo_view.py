"""How the demonstration looks: tables that fit 80 columns, progress where there is a terminal."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ioc_node import api
from ioc_node.cli.common import plain, short, size_text, span_text, speed_text, table
from ioc_node.cli.finding import render_found
from ioc_node.cli.identifiers import render_trace
from ioc_node.cli.story import Story, state_text
from ioc_node.client import RemoteNode
from ioc_testnet.commands import node_id_text
from ioc_testnet.network import Testnet, TestnetNode
from ioc_testnet.terrain import Tile
from ioc_wire.bulk import format_blob_id
from ioc_wire.market import Demand
from ioc_wire.records import ResourceRecord
from ioc_wire.signed import verify
from ioc_wire.tasks import ENDED

ROLES: Final = ("national", "regional", "industry", "provider", "consumer")
ROWS_SHOWN: Final = 12


@contextmanager
def counting(console: Console, total: int, what: str) -> Iterator[Callable[[TestnetNode], None]]:
    """A bar that grows with each node that is told to it; on a terminal only."""
    if not console.is_terminal:
        yield lambda node: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(what, total=total)

        def count(node: TestnetNode) -> None:
            progress.update(bar, advance=1, description=f"{what}: {node.name}")

        yield count


def names_of(net: Testnet) -> dict[str, str]:
    """Node ID → name of each node of the network."""
    return {node_id_text(node): node.name for node in net}


def render_registered(console: Console, rows: Sequence[tuple[TestnetNode, api.RegisteredRow]]) -> None:
    """Identifiers, who registered them, how many nodes keep them."""
    made = table("provider", "identifier", "version", "kept by", right=("version",), fold=("identifier",))
    for node, row in rows:
        kept = f"{row.stored} nodes" + (f", {len(row.refused)} refused" if row.refused else "")
        made.add_row(node.name, plain(row.cid), str(row.version), kept)
    console.print(made)


def render_resolved(console: Console, net: Testnet, found: api.Resolved) -> None:
    """One identifier: what it is, who answered, in how many hops, how long it took."""
    record = verify(found.record, ResourceRecord)
    holder = names_of(net).get(found.holder, short(found.holder))
    hops = f"{found.hops} hop{'s' * (found.hops != 1)}"
    console.print(
        plain(
            f"answered by {holder} ({found.source}) in {hops}, {found.asked} asked, {found.elapsed_ms:.1f} ms: "
            f"{record.cpu.cores} cores {record.cpu.architecture}, {size_text(record.memory_mib << 20)}, "
            f"runtimes {', '.join(record.runtimes) or 'none'}"
        )
    )
    if found.trace:
        render_trace(console, found)


def render_cut(console: Console, tiles: Sequence[Tile]) -> None:
    """How large the pieces are."""
    sizes = [len(tile.data) for tile in tiles]
    console.print(f"{len(tiles)} tiles of {size_text(min(sizes))} to {size_text(max(sizes))}")


def demand_text(demand: Demand, policy: str) -> str:
    """A demand in words."""
    needs = demand.resources
    runtimes = ", ".join(demand.runtimes)
    return (
        f"demand: {needs.cores:g} core, {needs.memory_mib} MiB memory, {needs.disk_mib} MiB disk, runtime {runtimes}, "
        f"policy {policy}"
    )


def render_offers(console: Console, found: api.Found) -> None:
    """Ranked offers with reasons and route."""
    render_found(console, found)


async def follow_briefly(console: Console, node: RemoteNode, workflow: bytes) -> Story:
    """Follow a workflow with one line per task that has ended: for a pipe, where a live table makes no sense."""
    story = Story()
    async with node.follow(workflow) as news:
        async for one in news:
            story.tell(one)
            chapter = story.chapters.get(one.task)
            if chapter is not None and one.event.change == "state" and one.event.state in ENDED:
                line = f"{story.ended:3d} {chapter.name}: {chapter.state} at {chapter.place or '-'}"
                console.print(plain(line), soft_wrap=True)
    return story


def render_transfers(
    console: Console, net: Testnet, rows: Sequence[tuple[TestnetNode, api.TransferRow]]
) -> None:
    """Blobs that moved: from whom to whom, how fast, over which transport and why."""
    names = names_of(net)
    made = table(
        "blob", "from", "to", "size", "speed", "transport", right=("size", "speed"), fold=("transport",)
    )
    moved = sorted((pair for pair in rows if pair[1].bytes_moved), key=lambda pair: -pair[1].bytes_moved)
    for node, row in moved[:ROWS_SHOWN]:
        made.add_row(
            format_blob_id(row.blob)[:10],
            names.get(row.holder, short(row.holder)),
            node.name,
            size_text(row.size),
            speed_text(row.bytes_moved, row.seconds),
            plain(row.transport),
        )
    if moved:
        console.print(made)
    total = sum(row.bytes_moved for _, row in moved)
    seconds = sum(row.seconds for _, row in moved)
    more = f"; the {ROWS_SHOWN} largest are shown" if len(moved) > ROWS_SHOWN else ""
    console.print(
        f"{len(moved)} transfers, {size_text(total)}, {speed_text(total, seconds)} on average{more}"
    )
    reasons = {(row.transport, row.reason) for _, row in moved if row.reason}
    for transport, reason in sorted(reasons)[:4]:
        console.print(plain(f"  {transport}: {reason.removeprefix(f'{transport}: ')}"), style="dim")


def render_tasks(console: Console, rows: Sequence[api.TaskRow]) -> None:
    """Every task with state and place, and how many ran where."""
    made = table("task", "state", "place", "took", right=("took",), fold=("place",))
    ordered = sorted(rows, key=lambda row: (row.name != "join", row.state == "COMPLETE", row.name))
    for row in ordered[: 2 * ROWS_SHOWN]:
        took = span_text((row.ended_ms - row.submitted_ms) / 1000) if row.ended_ms else "-"
        made.add_row(
            plain(row.name), state_text(row.state, row.attempt), plain(row.place or row.reason), took
        )
    console.print(made)
    if len(rows) > 2 * ROWS_SHOWN:
        console.print(f"… and {len(rows) - 2 * ROWS_SHOWN} more", style="dim")
    places = [row.place for row in rows if row.place]
    for place in sorted(set(places)):
        console.print(plain(f"  {places.count(place):3d} at {place}"), style="dim")
