"""`resolve`: compute by its name."""

import time
from pathlib import Path
from typing import Any, Final, NoReturn

import click
import trio
from rich.console import Console

from ioc_node import api
from ioc_node.cli.common import (
    ask,
    money_text,
    pairs,
    plain,
    print_json,
    short,
    show,
    size_text,
    stdout,
    table,
    with_home,
)
from ioc_node.cli.faults import explain
from ioc_node.client import open_remote
from ioc_wire.cid import parse_cid
from ioc_wire.records import ResourceRecord, Tombstone, named_payload
from ioc_wire.signed import verify

ENDINGS: Final = {
    "stopped": "enough valid answers",
    "completed": "the nearest servers that live have all answered",
    "starved": "nobody answered, and nobody is left to ask",
    "cancelled": "a core node answered first",
}


@click.command()
@click.argument("cid")
@click.option(
    "--trace", is_flag=True, help="Show every question: whom, how long, what came back, why it ended."
)
@click.option("--min-version", default=0, help="Keep searching until the record is at least this new.")
@click.option("--watch", is_flag=True, help="Stay, and show each newer version as it comes, until Ctrl-C.")
@with_home
def resolve(home: Path, cid: str, trace: bool, min_version: int, watch: bool, as_json: bool) -> None:
    """Look up the signed record of identifier CID, such as ioc:cn.r3301.20004/ai/3301/az1/h7f3a."""
    parse_cid(cid)
    if watch:
        trio.run(_watch, home, cid, max(0, min_version - 1), as_json)
        return
    found = ask(home, lambda node: node.look_up(cid, version_min=min_version))
    if isinstance(found, api.Unresolved):
        _show_unresolved(found, trace, as_json)
        return
    facts = resolved_facts(found)

    def render(console: Console) -> None:
        render_resolved(console, found)
        if trace:
            render_trace(console, found)

    show(as_json, facts if trace else {**facts, "trace": None}, render)


async def _watch(home: Path, cid: str, version: int, as_json: bool) -> None:
    """One line, or one JSON object, per change."""
    console = stdout()
    async with open_remote(home) as node, node.watch(cid, version=version) as changes:
        async for change in changes:
            if as_json:
                print_json(change_facts(change))
            else:
                console.print(plain(change_line(change)), soft_wrap=True)


def change_facts(change: api.CidChanged) -> dict[str, Any]:
    """One change of a watched identifier, for programs."""
    record = named_payload(change.record)
    withdrawn = isinstance(record, Tombstone)
    facts = {"cid": record.cid, "version": record.version, "withdrawn": withdrawn, "holder": change.holder}
    facts |= {"key": change.record.key.hex(), "issued": record.issued, "expires": record.expires}
    return facts if isinstance(record, Tombstone) else {**facts, **_described(record)}


def change_line(change: api.CidChanged) -> str:
    """One change in words, with the time it was told at."""
    record = named_payload(change.record)
    told = f"told by {short(change.holder)}"
    begin = f"{time.strftime('%H:%M:%S')} {record.cid} version {record.version}"
    if isinstance(record, Tombstone):
        return f"{begin}: withdrawn, {told}"
    cores, memory = f"{record.cpu.cores} cores", size_text(record.memory_mib << 20)
    return f"{begin}: {record.type}, {cores}, {memory}, {told}"


def _show_unresolved(found: api.Unresolved, trace: bool, as_json: bool) -> NoReturn:
    """A failure, with the trace where it is wanted: in the one JSON object, or above the error."""
    error = found.fault()
    if not trace:
        raise error
    if not as_json:
        render_trace(stdout(), found)
        raise error
    fault = explain(error)
    print_json({"error": fault.line, "exit_code": fault.exit_code, **trace_facts(found)})
    click.echo(f"error: {fault.line}", err=True)
    raise click.exceptions.Exit(fault.exit_code)


def resolved_facts(found: api.Resolved) -> dict[str, Any]:
    """What was found, by whom, in how many hops, how long it took."""
    record = verify(found.record, ResourceRecord)
    return {
        "cid": record.cid,
        "version": record.version,
        "type": record.type,
        "holder": found.holder,
        "source": found.source,
        "hops": found.hops,
        "asked": found.asked,
        "elapsed_ms": round(found.elapsed_ms, 3),
        "key": found.record.key.hex(),
        "expires": record.expires,
        **_described(record),
        **trace_facts(found),
    }


def _described(record: ResourceRecord) -> dict[str, Any]:
    return {
        "cores": record.cpu.cores,
        "memory_mib": record.memory_mib,
        "runtimes": list(record.runtimes),
        "prices": {price.unit: price.micro for price in record.prices},
        "endpoints": [f"{at.host}:{at.port}" for at in record.endpoints],
        "accelerators": [f"{item.type}:{item.model}:{item.count}" for item in record.accelerators],
    }


def trace_facts(found: api.Resolved | api.Unresolved) -> dict[str, Any]:
    """Every question, and how the search in the DHT ended."""
    return {
        "ending": found.ending or None,
        "hedged_ms": round(found.hedged_ms, 3) if found.hedged_ms >= 0 else None,
        "trace": [{name: getattr(hop, name) for name in hop.__struct_fields__} for hop in found.trace],
    }


def render_resolved(console: Console, found: api.Resolved) -> None:
    """The record, and how it came."""
    record = verify(found.record, ResourceRecord)
    cpu = record.cpu
    hops = "no hop" if not found.hops else f"{found.hops} hop{'s' * (found.hops != 1)}"
    pairs(
        console,
        [
            ("identifier", record.cid),
            ("type", f"{record.type}, version {record.version}"),
            ("found", f"in {found.elapsed_ms:.1f} ms, {hops}, {found.asked} asked"),
            ("answered by", f"{found.holder} ({found.source})"),
            ("signed by", found.record.key.hex()),
            ("cpu", f"{cpu.cores} cores {cpu.architecture} {cpu.model}"),
            ("memory", size_text(record.memory_mib << 20)),
            ("accelerators", ", ".join(f"{item.count} {item.model}" for item in record.accelerators)),
            ("runtimes", ", ".join(record.runtimes)),
            ("price", ", ".join(f"{money_text(price.micro)} per {price.unit}" for price in record.prices)),
            ("endpoints", ", ".join(f"{at.host}:{at.port}" for at in record.endpoints)),
        ],
    )


def render_trace(console: Console, found: api.Resolved | api.Unresolved) -> None:
    """Whom the lookup asked, what came back, and why it ended."""
    if not found.trace:
        console.print("nobody was asked: the record is at hand")
        return
    made = table("round", "peer", "address", "took", "answer", right=("round", "took"), fold=("answer",))
    for hop in found.trace:
        took = f"{hop.rtt_ms:.1f} ms" if hop.rtt_ms >= 0 else "-"
        answer = hop.answer if hop.tries == 1 else f"{hop.answer} (asked {hop.tries} times)"
        round_ = str(hop.round) if hop.round else "core"
        made.add_row(round_, short(hop.node_id), f"{hop.host}:{hop.port}", took, plain(answer))
    console.print(made)
    if found.hedged_ms >= 0:
        console.print(
            plain(f"the first asked were slow: after {found.hedged_ms:.0f} ms others were asked too")
        )
    if found.ending:
        console.print(plain(f"search in the DHT {found.ending}: {ENDINGS[found.ending]}"))
