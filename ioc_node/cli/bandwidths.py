"""`bandwidth` and `bandwidth set`: what bulk data takes, and what it may take."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ioc_node import api
from ioc_node.cli.common import ask, plain, short, show, size_text, table, unabbreviate, with_home
from ioc_node.client import RemoteNode
from ioc_node.config import BandwidthConfig
from ioc_node.core.bandwidth import TRAFFIC
from ioc_node.errors import UsageError

NODE_ID_CHARS = 53
_KEYWORDS = ("", "each-peer", *TRAFFIC)


@click.group(invoke_without_command=True)
@with_home
@click.pass_context
def bandwidth(context: click.Context, home: Path, as_json: bool) -> None:
    """Show what moves now, the ceilings, the weights, and who uses what; or set them."""
    if context.invoked_subcommand is None:
        _show(as_json, ask(home, lambda node: node.bandwidth()))


@bandwidth.command("set")
@click.argument("changes", nargs=-1, required=True, metavar="WHAT=MB_S...")
@with_home
def set_bandwidth(home: Path, changes: tuple[str, ...], as_json: bool) -> None:
    """Set ceilings in MB/s (10^6 bytes), and weights, at once and until the node ends.

    WHAT is sending or receiving for the total, or one of these with .interactive, .task, .bulk, .each-peer or .NODE
    behind it; weight.task and the like is a weight. The value none takes a ceiling away: sending=100
    receiving.bulk=20 sending.each-peer=none weight.task=6.
    """
    parsed = [_parse(change) for change in changes]

    async def change_all(node: RemoteNode) -> api.BandwidthTold:
        return await node.set_bandwidth([await _named(node, change) for change in parsed])

    told = ask(home, change_all)
    _show(as_json, told)
    if not as_json:
        click.echo(
            "This holds until the node ends; to keep it, let config.toml say of bandwidth this and no more:\n"
        )
        click.echo(config_text(told) or "# nothing: these are the defaults")


def _parse(word: str) -> api.BandwidthChange:
    left, equals, right = word.partition("=")
    what, _, name = left.partition(".")
    if not equals or what not in ("sending", "receiving", "weight"):
        raise UsageError(f"{word!r} sets nothing: write sending=100, receiving.bulk=20, weight.task=6")
    try:
        value = None if right == "none" else float(right)
    except ValueError:
        raise UsageError(f"{word!r}: {right!r} is no number of MB/s, nor none") from None
    return api.BandwidthChange(what, name, value)  # type: ignore[arg-type]  # one of the three, see above


async def _named(node: RemoteNode, change: api.BandwidthChange) -> api.BandwidthChange:
    """With the whole node ID of a peer whose beginning was given."""
    if change.name in _KEYWORDS or change.what == "weight" or len(change.name) == NODE_ID_CHARS:
        return change
    told = await node.bandwidth()
    known = {row.node_id for row in await node.peers()}
    for side in (told.sending, told.receiving):
        known |= {use.node_id for use in side.uses} | side.peers_mb_s.keys()
    return api.BandwidthChange(change.what, unabbreviate(change.name, known, "peer"), change.value)


def _show(as_json: bool, told: api.BandwidthTold) -> None:
    show(as_json, bandwidth_facts(told), lambda console: render_bandwidth(console, told))


def bandwidth_facts(told: api.BandwidthTold) -> dict[str, Any]:
    """All of it for programs, rates in MB/s."""
    facts: dict[str, Any] = {"weights": told.weights}
    for name, side in (("sending", told.sending), ("receiving", told.receiving)):
        facts[name] = {each: getattr(side, each) for each in side.__struct_fields__}
        facts[name]["uses"] = [
            {each: getattr(use, each) for each in use.__struct_fields__} for use in side.uses
        ]
    return facts


def render_bandwidth(console: Console, told: api.BandwidthTold) -> None:
    """Totals and ceilings of both directions, then a line for each peer and class."""
    right = ("MB/s", "ceiling", "moved", "open", "waiting")
    made = table("direction", "class", "peer", *right, right=right)
    for name, side in (("sending", told.sending), ("receiving", told.receiving)):
        now = sum(use.mb_s for use in side.uses)
        moved = sum(use.bytes_moved for use in side.uses)
        made.add_row(name, "all", "all", _rate(now), _ceiling(side.mb_s), size_text(moved), "", "")
        for traffic, mb_s in side.classes_mb_s.items():
            now = sum(use.mb_s for use in side.uses if use.traffic == traffic)
            made.add_row("", traffic, "all", _rate(now), _ceiling(mb_s), "", "", "")
        if side.each_peer_mb_s is not None:
            made.add_row("", "all", "each", "", _ceiling(side.each_peer_mb_s), "", "", "")
        for peer, mb_s in side.peers_mb_s.items():
            now = sum(use.mb_s for use in side.uses if use.node_id == peer)
            made.add_row("", "all", short(peer), _rate(now), _ceiling(mb_s), "", "", "")
        for use in side.uses:
            counts = (str(use.transfers), str(use.waiting))
            rate, size = _rate(use.mb_s), size_text(use.bytes_moved)
            made.add_row("", use.traffic, short(use.node_id), rate, "", size, *counts, style="dim")
    console.print(made)
    shares = ", ".join(f"{traffic} {weight:g}" for traffic, weight in told.weights.items())
    console.print(plain(f"weights of transfers that wait for one ceiling: {shares}"))


def config_text(told: api.BandwidthTold) -> str:
    """What config.toml has to say for this to hold after a restart."""
    parts = []
    if told.weights != BandwidthConfig().weights:
        parts.append(
            ["[bandwidth.weights]", *(f"{name} = {weight:g}" for name, weight in told.weights.items())]
        )
    for name, side in (("sending", told.sending), ("receiving", told.receiving)):
        keys = [
            f"{key} = {value:g}"
            for key, value in (("mb_s", side.mb_s), ("each_peer_mb_s", side.each_peer_mb_s))
            if value is not None
        ]
        for key, values in (("classes_mb_s", side.classes_mb_s), ("peers_mb_s", side.peers_mb_s)):
            if values:
                inner = ", ".join(f"{each} = {value:g}" for each, value in values.items())
                keys.append(f"{key} = {{ {inner} }}")
        if keys:
            parts.append([f"[bandwidth.{name}]", *keys])
    return "\n\n".join("\n".join(lines) for lines in parts)


def _rate(mb_s: float) -> str:
    return f"{mb_s:,.2f}" if mb_s >= 0.005 else "-"


def _ceiling(mb_s: float | None) -> str:
    return "none" if mb_s is None else f"{mb_s:g}"
