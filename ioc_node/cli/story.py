"""The story of tasks as it comes in, on a screen: a live table on a terminal, one line per event in a pipe."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from ioc_node import api
from ioc_node.cli.common import plain, short, size_text, table
from ioc_node.client import RemoteNode
from ioc_wire.errors import Malformed
from ioc_wire.metering import UsageRecord
from ioc_wire.signed import verify
from ioc_wire.tasks import ENDED, TaskEvent, format_task_id

LIVE_ROWS_MAX: Final = 14
COLORS: Final = {
    "COMPLETE": "green",
    "RUNNING": "cyan",
    "INITIALIZING": "cyan",
    "EXECUTOR_ERROR": "red",
    "SYSTEM_ERROR": "red",
    "CANCELED": "yellow",
    "CANCELING": "yellow",
    "UNKNOWN": "yellow",
    "PREEMPTED": "yellow",
}


@dataclass
class Chapter:
    """One task of the story, as far as it is told."""

    task: bytes
    name: str
    state: str = "QUEUED"
    place: str = ""
    attempt: int = 0
    fraction_milli: int = 0
    text: str = ""


@dataclass
class Story:
    """All tasks that were heard of, in the order in which they were."""

    chapters: dict[bytes, Chapter] = field(default_factory=dict)
    state: str = "QUEUED"
    """Of the workflow, where it is one."""

    def tell(self, news: api.TaskNews) -> str:
        """Take in one event; returns the line that a person reads in a log of it ("" where there is none)."""
        event = news.event
        if not news.name:  # of the workflow itself
            self.state = event.state if event.change == "state" else self.state
            return ""
        chapter = self.chapters.setdefault(news.task, Chapter(news.task, news.name))
        chapter.place = news.place or chapter.place
        chapter.attempt = max(chapter.attempt, news.attempt)
        if event.change == "state":
            chapter.state = event.state
            chapter.text = event.text
            if event.state == "COMPLETE":
                chapter.fraction_milli = 1000
        elif event.change == "progress":
            chapter.fraction_milli = event.fraction_milli
            chapter.text = event.text or chapter.text
        return line_of(news, chapter)

    @property
    def ended(self) -> int:
        return sum(chapter.state in ENDED for chapter in self.chapters.values())

    def render(self) -> RenderableType:
        """The tasks that are under way, and the latest that ended, as a table that fits a screen."""
        chapters = list(self.chapters.values())
        if len(chapters) > LIVE_ROWS_MAX:
            going = [chapter for chapter in chapters if chapter.state not in ENDED]
            going.sort(key=lambda chapter: chapter.state == "QUEUED")
            ended = [chapter for chapter in chapters if chapter.state in ENDED]
            chapters = (ended[len(ended) - max(0, LIVE_ROWS_MAX - len(going)) :] + going)[:LIVE_ROWS_MAX]
        made = table("task", "state", "progress", "place", fold=("place",))
        for chapter in chapters:
            made.add_row(
                plain(chapter.name),
                state_text(chapter.state, chapter.attempt),
                ProgressBar(1000, chapter.fraction_milli, width=14),
                plain(chapter.place or chapter.text or "-"),
            )
        made.caption = f"{self.ended} of {len(self.chapters)} tasks have ended"
        made.caption_justify = "left"
        return made


def state_text(state: str, attempt: int = 0) -> Text:
    """A state in its colour; a second attempt is said."""
    text = Text(state, style=COLORS.get(state, ""))
    return text.append(f" #{attempt}", style="dim") if attempt > 1 else text


def line_of(news: api.TaskNews, chapter: Chapter) -> str:
    """One event as one line; progress has none, it would be too many."""
    event = news.event
    if event.change == "log":
        mark = {"stdout": "|", "stderr": "!"}.get(event.stream, "-")  # else it is a node that says something
        return f"{chapter.name} {mark} {event.text.rstrip()}"
    if event.change == "state":
        where = f" at {chapter.place}" if chapter.place and event.state == "INITIALIZING" else ""
        attempt = f" (attempt {news.attempt})" if news.attempt > 1 and event.state == "INITIALIZING" else ""
        reason = f": {event.text}" if event.text else ""
        return f"{chapter.name}: {event.state}{where}{attempt}{reason}"
    if event.change == "transfer":
        return f"{chapter.name}: {event.text}" if event.text else ""
    if event.change == "usage" and event.usage is not None:
        return f"{chapter.name}: {usage_line(event)}"
    return ""


def usage_line(event: TaskEvent) -> str:
    """What an attempt used, in one line."""
    assert event.usage is not None
    try:
        usage = verify(event.usage, UsageRecord)
    except Malformed:
        return "usage that cannot be read"
    moved = f"{size_text(usage.bytes_in)} in, {size_text(usage.bytes_out)} out"
    return f"used {usage.core_ms} core-ms in {usage.wall_ms} ms, {moved}"


def news_facts(news: api.TaskNews) -> dict[str, Any]:
    """One event for programs."""
    event = news.event
    return {
        "task": format_task_id(news.task),
        "name": news.name,
        "attempt": news.attempt,
        "place": news.place,
        "seq": event.seq,
        "time_ms": event.time_ms,
        "change": event.change,
        "state": event.state,
        "fraction": event.fraction_milli / 1000,
        "text": event.text,
        "stream": event.stream,
    }


@contextmanager
def live_story(console: Console, story: Story, *, logs: bool = True) -> "Iterator[Screen]":
    """Show a story while it is told: live where the console is a terminal, else line by line."""
    if not console.is_terminal:
        yield Screen(console, story, None, logs)
        return
    with Live(get_renderable=story.render, console=console, refresh_per_second=8, transient=True) as live:
        yield Screen(console, story, live, logs)


class Screen:
    """Where a story is shown. Made by `live_story`."""

    def __init__(self, console: Console, story: Story, live: Live | None, logs: bool) -> None:
        self._console = console
        self._story = story
        self._live = live
        self._logs = logs

    def tell(self, news: api.TaskNews) -> None:
        """Take in one event and show it."""
        line = self._story.tell(news)
        if line and (self._live is None or (self._logs and news.event.change == "log")):
            self._console.print(plain(line), soft_wrap=True)


async def follow_on(console: Console, node: RemoteNode, task: bytes, *, logs: bool = True) -> Story:
    """Show the story of a task or workflow on `console` until it has ended; on a terminal `logs` may be left out."""
    story = Story()
    with live_story(console, story, logs=logs) as screen:
        async with node.follow(task) as news:
            async for one in news:
                screen.tell(one)
    return story


def short_task(task: bytes) -> str:
    return short(format_task_id(task))
