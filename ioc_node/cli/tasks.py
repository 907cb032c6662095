"""`tasks`, `logs`, `cancel` and `result`: what becomes of tasks that were submitted."""

import time
from pathlib import Path
from typing import Any, Final

import click
import trio
from rich.console import Console

from ioc_node import api
from ioc_node.cli.common import (
    ask,
    plain,
    print_json,
    short,
    show,
    span_text,
    stdout,
    table,
    unabbreviate,
    with_home,
)
from ioc_node.cli.outcome import render_result, require_complete, result_facts
from ioc_node.cli.story import Story, news_facts, short_task, state_text
from ioc_node.client import RemoteNode, open_remote
from ioc_wire.tasks import format_task_id, parse_task_id

ID_CHARS: Final = 53
ROWS_SHOWN: Final = 40
_SIDES: Final = {"provider": " (for {})", "workflow": " (workflow)"}


@click.command()
@click.option("--all", "every", is_flag=True, help=f"Show all, not only the newest {ROWS_SHOWN}.")
@with_home
def tasks(home: Path, every: bool, as_json: bool) -> None:
    """List the tasks of this node: those it submitted, and those it runs for others; newest first."""
    rows = ask(home, lambda node: node.tasks())
    shown = rows if every else rows[:ROWS_SHOWN]

    def render(console: Console) -> None:
        render_tasks(console, shown)
        if len(shown) < len(rows):
            console.print(f"{len(rows) - len(shown)} older ones: ioc-node tasks --all", style="dim")

    show(as_json, {"tasks": [task_facts(row) for row in rows]}, render)


def task_facts(row: api.TaskRow) -> dict[str, Any]:
    """One task for programs."""
    facts = {name: getattr(row, name) for name in row.__struct_fields__}
    facts["task"] = format_task_id(row.task)
    facts["workflow"] = format_task_id(row.workflow) if row.workflow else None
    return facts


def render_tasks(console: Console, rows: tuple[api.TaskRow, ...], *, title: str = "") -> None:
    """State and place of each task."""
    made = table(
        "task", "name", "state", "place", "took", title=title, right=("took",), fold=("name", "place")
    )
    for row in rows:
        end = row.ended_ms / 1000 if row.ended_ms else time.time()
        where = row.place or row.reason or "-"
        made.add_row(
            short_task(row.task),
            plain(f"{row.name}{_SIDES.get(row.side, '').format(row.peer[:10])}"),
            state_text(row.state, row.attempt),
            plain(where),
            span_text(end - row.submitted_ms / 1000),
        )
    console.print(made if rows else "no tasks; submit one with `ioc-node submit FILE`")


@click.command()
@click.argument("task")
@click.option("--follow", "-f", is_flag=True, help="Stay until the task has ended.")
@with_home
def logs(home: Path, task: str, follow: bool, as_json: bool) -> None:
    """Print what TASK wrote and what happened to it, from its beginning on."""
    trio.run(_logs, home, task, follow, as_json)


async def _logs(home: Path, word: str, follow: bool, as_json: bool) -> None:
    story = Story()
    events: list[dict[str, Any]] = []
    console = stdout()
    async with open_remote(home) as node:
        task = await whole_task(node, word)
        async with node.follow(task, follow=follow) as news:
            async for one in news:
                line = story.tell(one)
                if as_json:
                    events.append(news_facts(one))
                elif line:
                    console.print(plain(line), soft_wrap=True)
    if as_json:
        print_json({"task": format_task_id(task), "events": events})


@click.command()
@click.argument("task")
@with_home
def cancel(home: Path, task: str, as_json: bool) -> None:
    """Cancel TASK, or all tasks of a workflow. One that has ended already stays as it is."""

    async def question(node: RemoteNode) -> tuple[bytes, str]:
        found = await whole_task(node, task)
        ended = next((row.state for row in await node.tasks() if row.task == found and row.ended_ms), "")
        if not ended:
            await node.cancel(found)
        return found, ended

    found, ended = ask(home, question)
    name = format_task_id(found)
    told = f"{short(name)} had ended already: {ended}" if ended else f"canceled {short(name)}"
    show(as_json, {"task": name, "canceled": not ended}, lambda console: console.print(told))


@click.command()
@click.argument("task")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the outputs into this folder.")
@with_home
def result(home: Path, task: str, output: Path | None, as_json: bool) -> None:
    """Wait until TASK has ended, fetch its outputs, and exit with 5 unless it is COMPLETE."""

    async def question(node: RemoteNode) -> api.Result:
        return await node.result(await whole_task(node, task), folder=output)

    ended = ask(home, question)
    show(as_json, result_facts(ended), lambda console: render_result(console, ended))
    require_complete(ended, short_task(ended.task))


async def whole_task(node: RemoteNode, word: str) -> bytes:
    """The task or workflow whose ID begins with `word`. Raises `UsageError`, `Malformed`."""
    if len(word) == ID_CHARS:
        return parse_task_id(word)
    known: list[str] = []
    for row in await node.tasks():
        known += [format_task_id(task) for task in (row.task, row.workflow) if task]
    return parse_task_id(unabbreviate(word, known, "task"))
