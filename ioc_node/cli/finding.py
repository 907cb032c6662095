"""`find`: compute by what is needed of it."""

from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.text import Text

from ioc_node import api
from ioc_node.cli.common import (
    ask,
    counted,
    money_text,
    plain,
    print_json,
    short,
    show,
    size_text,
    stdout,
    table,
    with_home,
)
from ioc_node.cli.demands import demand_from, demand_options
from ioc_node.errors import UsageError
from ioc_node.market.expression_fields import FIELDS
from ioc_wire.market import Cursor, Offer
from ioc_wire.records import ResourceRecord
from ioc_wire.signed import verify as verify_signature

EXIT_OMISSION: Final = 5
_NO_OFFER: Final = "no offer: nobody known here can serve this demand now"
_NO_MORE: Final = "no more offers: the page before was the last"


@click.command()
@demand_options
@click.option("--policy", default="cost", show_default=True, help="How to rank: cost or latency.")
@click.option("--limit", type=click.IntRange(1, 256), default=16, show_default=True, help="Offers at most.")
@click.option(
    "--page", is_flag=True, help="A page of all that match, cheapest first; says where the next begins."
)
@click.option("--after", default="", help="The page after this cursor, as the page before names it.")
@click.option("--explain", is_flag=True, help="Show what each condition left out, with its nearest miss.")
@click.option("--verify", is_flag=True, help="Ask two core nodes, and say if one leaves something out.")
@click.option("--fields", is_flag=True, help="List the fields of --where, with units, and stop.")
@with_home
def find(
    home: Path,
    policy: str,
    limit: int,
    page: bool,
    after: str,
    explain: bool,
    verify: bool,
    fields: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Ask the core nodes who could serve a demand. Shows ranked offers with reasons and route, and what was left
    out by which condition. For example: find --cores 4 --memory 8GiB --gpu gpu:h100:8 --within cn.r3301

    --where takes comparisons joined by and, or, not and parentheses: find --where 'tflops.fp16 >= 100 and not
    city in (3301, 3302)'."""
    if fields:
        show(as_json, {"fields": field_facts()}, render_fields)
        return
    cursor = parse_cursor(after) if after else Cursor(0.0, 0) if page else None
    demand = demand_from(**options)
    found = ask(
        home,
        lambda node: node.find(
            demand, policy=policy, limit=limit, explain=explain, after=cursor, verify=verify
        ),
    )
    if as_json:
        print_json(found_facts(found))
    else:
        render_found(stdout(), found, explain=explain, after=bool(after))
    if found.verdict is not None and found.verdict.omissions:
        click.get_current_context().exit(EXIT_OMISSION)


def field_facts() -> list[dict[str, Any]]:
    """The fields of an expression, with their units."""
    facts = [
        {"field": field.name, "of": field.unit or "words", "meaning": field.meaning}
        for field in FIELDS.values()
    ]
    return [*facts, {"field": "label.NAME", "of": "words", "meaning": "a label of the host"}]


def render_fields(console: Console) -> None:
    """One line per field."""
    made = table("field", "holds", "meaning", fold=("meaning",))
    for facts in field_facts():
        made.add_row(facts["field"], facts["of"], plain(facts["meaning"]))
    console.print(made)


def parse_cursor(text: str) -> Cursor:
    """What `cursor_text` wrote. Raises `UsageError`."""
    estimate, colon, tie = text.partition(":")
    try:
        found = Cursor(float.fromhex(estimate), int(tie, 16))
    except (ValueError, OverflowError):
        colon = ""
    if not colon or not 0 <= found.estimate <= 1e30 or not 0 <= found.tie < 1 << 63:
        raise UsageError(f"--after: {text!r} is no cursor; take it from the page before")
    return found


def cursor_text(cursor: Cursor) -> str:
    """A cursor as `--after` takes it."""
    return f"{cursor.estimate.hex()}:{cursor.tie:x}"


def found_facts(found: api.Found) -> dict[str, Any]:
    """Offers in order of rank, and the conditions that removed the others."""
    facts = {
        "offers": [
            offer_facts(offer, route) for offer, route in zip(found.found.offers, found.routes, strict=False)
        ],
        "considered": found.found.considered,
        "matching": found.found.matching,
        "removed": [
            {"condition": item.condition, "removed": item.removed, "nearest": item.nearest}
            for item in found.found.removals
        ],
        "answered_by": found.answered_by,
        "elapsed_ms": round(found.elapsed_ms, 3),
        "probes": {
            "pinged": found.probes.pinged,
            "known": found.probes.known,
            "matching_providers": found.probes.matching,
            "too_far_by_estimate": found.probes.far,
        },
        "catalogue_digest": found.found.digest.hex(),
        "cursor": cursor_text(found.found.cursor) if found.found.cursor is not None else None,
    }
    if (verdict := found.verdict) is not None:
        facts["verified"] = {
            "core_nodes": list(verdict.cores),
            "conclusive": verdict.conclusive,
            "comparisons": verdict.comparisons,
            "omissions": [{"core_node": item.core, "cid": item.cid} for item in verdict.omissions],
        }
    return facts


def offer_facts(offer: Offer, route: str) -> dict[str, Any]:
    """One offer: where, what is free, what it would cost, why it stands there."""
    record = verify_signature(offer.record, ResourceRecord)
    return {
        "cid": record.cid,
        "provider": f"{offer.provider.host}:{offer.provider.port}",
        "free_cores": offer.status.free_cores_milli / 1000,
        "free_memory_mib": offer.status.free_memory_mib,
        "accelerators": [
            {
                "type": group.type,
                "model": group.model,
                "count": group.count,
                "free": milli / 1000,
                "memory_mib": group.memory_mib,
            }
            for group, milli in zip(record.accelerators, offer.status.free_accelerators_milli, strict=False)
        ],
        "price_micro": offer.price_micro,
        "rtt_ms": offer.rtt_us / 1000 if offer.rtt_us >= 0 else None,
        "rtt_estimate": _estimate_facts(offer),
        "reasons": list(offer.reasons),
        "route": route,
    }


def free_text(facts: dict[str, Any]) -> str:
    """What is free at an offer, one line per kind."""
    lines = [f"{facts['free_cores']:.12g} cores", size_text(facts["free_memory_mib"] << 20)]
    lines += [f"{each['free']:.12g} of {each['count']} {each['model']}" for each in facts["accelerators"]]
    return "\n".join(lines)


def _estimate_facts(offer: Offer) -> dict[str, Any] | None:
    found = offer.estimate
    if found is None:
        return None
    return {
        "rtt_ms": found.rtt_us / 1000,
        "low_ms": found.low_us / 1000,
        "high_ms": found.high_us / 1000,
        "how": found.how,
        "core_nodes": found.over,
    }


def probes_text(probes: api.Probes) -> str:
    """`pinged 12 providers`, or `pinged 125 of 481 providers that can serve it; 356 are too far by estimate`;
    empty where nobody was."""
    if not probes.matching:
        return f"pinged {counted(probes.pinged, 'provider')}" if probes.pinged else ""
    text = f"pinged {probes.pinged} of {probes.matching} providers that can serve it"
    if probes.known:
        text += f"; {probes.known} measured a moment ago"
    return text + (f"; {probes.far} are too far by estimate" if probes.far else "")


def render_found(
    console: Console, found: api.Found, *, title: str = "", explain: bool = False, after: bool = False
) -> None:
    """Ranked offers, then the conditions that removed something; `after` the page before."""
    offers = found.found.offers
    if offers:
        made = table(
            "#", "offer, why it stands there, and the route", "free", "cost", title=title, right=("#", "cost")
        )
        made.columns[1].no_wrap = False
        for rank, (offer, route) in enumerate(zip(offers, found.routes, strict=False), 1):
            facts = offer_facts(offer, route)
            lines = Text(facts["cid"])
            reasons = [reason for reason in facts["reasons"] if not facts["route"].startswith(reason)]
            for line in (*reasons, facts["route"]):
                lines.append(f"\n  {line}", style="dim")
            made.add_row(str(rank), lines, free_text(facts), money_text(offer.price_micro))
        console.print(made)
    else:
        console.print(_NO_MORE if after else _NO_OFFER)
    (_render_removals if explain else _list_removals)(console, found)
    answered = (
        f"{found.found.considered} considered, {found.found.matching} match, answered by"
        f" {short(found.answered_by) or 'this node'} in {found.elapsed_ms:.1f} ms"
    )
    console.print(plain(answered), style="dim")
    if probed := probes_text(found.probes):
        console.print(plain(probed), style="dim")
    if found.found.cursor is not None:
        console.print(plain(f"next page: --after {cursor_text(found.found.cursor)}"), style="dim")
    if found.verdict is not None:
        _render_verdict(console, found.verdict)


def _list_removals(console: Console, found: api.Found) -> None:
    for item in found.found.removals:
        nearest = f"; nearest: {item.nearest}" if item.nearest else ""
        console.print(plain(f"left out {item.removed} by {item.condition}{nearest}"), style="dim")


def _render_removals(console: Console, found: api.Found) -> None:
    """How many hosts were left after each condition."""
    made = table("condition", "left out", "left", "nearest miss", right=("left out", "left"))
    made.columns[0].no_wrap = made.columns[3].no_wrap = False
    left = found.found.considered
    for item in found.found.removals:
        left = max(left - item.removed, 0)
        made.add_row(plain(item.condition), str(item.removed), str(left), plain(item.nearest or "-"))
    console.print(made)


def _render_verdict(console: Console, verdict: api.Verdict) -> None:
    both = " and ".join(short(name) or name for name in verdict.cores)
    for item in verdict.omissions:
        console.print(
            plain(f"OMISSION: core node {short(item.core) or item.core} leaves out {item.cid}"), style="red"
        )
    if not verdict.conclusive:
        why = "did not hold the same records while they were compared, nor did others that could be asked"
        console.print(plain(f"inconclusive: {both} {why}"))
    elif not verdict.omissions:
        console.print(plain(f"verified: {both} hold the same records and leave out nothing"))
