"""`bulletin list` and `bulletin publish`: what core nodes announce to everybody."""

import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ioc_node import api
from ioc_node.cli.common import ask, plain, short, show, span_text, with_home
from ioc_wire.bulletins import Bulletin, BulletinNews, Level, bulletin_name
from ioc_wire.identity import format_node_id, node_id_of
from ioc_wire.signed import verify


@click.group()
def bulletin() -> None:
    """Read what core nodes announce, or, on a core node, publish something."""


@bulletin.command("list")
@with_home
def list_bulletins(home: Path, as_json: bool) -> None:
    """List the bulletins that hold now, the newest first; on other than core nodes those of a linked core node."""
    _show(as_json, ask(home, lambda node: node.bulletins()))


@bulletin.command()
@click.option("--title", required=True, help="At most 120 characters.")
@click.option("--text", default="", help="At most 2000 characters, in one line.")
@click.option("--about", default="", help="Prefix that it is about (default: the whole network).")
@click.option("--level", type=click.Choice(["info", "warning"]), default="info", show_default=True)
@click.option("--days", type=click.FloatRange(0, 30, min_open=True), default=7.0, show_default=True)
@with_home
def publish(home: Path, title: str, text: str, about: str, level: Level, days: float, as_json: bool) -> None:
    """Sign a bulletin with this core node's key and tell it to everybody."""
    message = api.PublishBulletin(title, text, about, level, max(1, int(days * 86400)))
    _show(as_json, ask(home, lambda node: node.publish_bulletin(message)))


def _show(as_json: bool, found: api.Bulletins) -> None:
    rows = [bulletin_facts(news) for news in found.news]
    show(as_json, {"bulletins": rows}, lambda console: render_bulletins(console, rows))


def bulletin_facts(news: BulletinNews) -> dict[str, Any]:
    """What a bulletin says and who says so."""
    said = verify(news.statement, Bulletin)
    facts: dict[str, Any] = {name: getattr(said, name) for name in said.__struct_fields__}
    node_id = format_node_id(node_id_of(news.statement.key))
    return {"name": bulletin_name(news.statement).hex(), "node_id": node_id, **facts}


def render_bulletins(console: Console, rows: list[dict[str, Any]]) -> None:
    """Each with a line of who, about what and for how long."""
    now = time.time()
    for row in rows:
        style = "bold yellow" if row["level"] == "warning" else "bold"
        console.print(plain(f"{row['level']}: {row['title']}"), style=style, soft_wrap=True)
        if row["text"]:
            console.print(plain(row["text"]), soft_wrap=True)
        about = f"about {row['about']}, " if row["about"] else ""
        told = f"{about}by {short(row['node_id'])}, for {span_text(max(0.0, row['expires'] - now))} more"
        console.print(plain(told), style="dim", soft_wrap=True)
    if not rows:
        console.print("no bulletins")
