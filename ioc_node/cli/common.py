"""What all commands share: the options, the question to a running node, and how an answer is shown."""

import functools
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import click
import trio
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ioc_node.client import RemoteNode, open_remote
from ioc_node.config import home_folder
from ioc_node.errors import UsageError
from ioc_wire.identity import format_node_id

P = ParamSpec("P")
T = TypeVar("T")

SHORT_CHARS: Final = 10
"""Characters of a task, blob, receipt or node ID in a table: enough to be unique, and to be typed back in."""

Render = Callable[[Console], None]


def with_home(command: Callable[..., T]) -> Callable[..., T]:
    """Pass the home folder as the first argument, and `as_json`."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
    @click.pass_obj
    @functools.wraps(command)
    def wrapped(home: Path | None, /, *args: Any, **kwargs: Any) -> T:
        return command(home_folder(home), *args, **kwargs)

    return wrapped


def ask(home: Path, question: Callable[[RemoteNode], Awaitable[T]]) -> T:
    """Connect to the node that runs from `home` and return what `question(node)` returns."""

    async def run() -> T:
        async with open_remote(home) as node:
            return await question(node)

    return trio.run(run)


def show(as_json: bool, facts: Mapping[str, Any], render: Render) -> None:
    """Print the answer for people, or the facts as one line of JSON."""
    if as_json:
        print_json(facts)
    else:
        render(stdout())


def print_json(facts: Mapping[str, Any]) -> None:
    click.echo(json.dumps(facts, ensure_ascii=False))


def stdout() -> Console:
    return Console(highlight=False)


def table(*columns: str, title: str = "", right: Iterable[str] = (), fold: Iterable[str] = ()) -> Table:
    """A table in this program's look. Columns in `right` hold numbers; those in `fold` may break over lines."""
    made = Table(
        title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    right, fold = set(right), set(fold)
    for column in columns:
        made.add_column(
            column,
            justify="right" if column in right else "left",
            no_wrap=column not in fold,
            overflow="fold",
        )
    return made


def pairs(console: Console, rows: Iterable[tuple[str, object]]) -> None:
    """Facts one below the other, names in a column of their own; empty ones are left out."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        if value not in ("", None, ()):
            grid.add_row(name, value if isinstance(value, Text) else Text(str(value)))
    console.print(grid)


def plain(value: object) -> Text:
    """Text that may contain brackets: rich reads those as markup in a bare string."""
    return Text(str(value))


def short(identity: str) -> str:
    return identity[:SHORT_CHARS]


def short_node(node_id: bytes) -> str:
    return short(format_node_id(node_id))


def size_text(size: float) -> str:
    """Bytes in the largest unit that leaves at least one digit before the point."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def counted(number: int, noun: str) -> str:
    """`1 file`, `2,000 files`: a number with its noun, whose plural takes an s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def speed_text(moved: float, seconds: float) -> str:
    """Megabytes (10^6) per second, kilobytes where it is less than a tenth; `-` where nothing moved."""
    if not moved or seconds <= 0:
        return "-"
    rate = moved / seconds
    return f"{rate / 1e6:,.1f} MB/s" if rate >= 1e5 else f"{rate / 1e3:,.1f} kB/s"


def moved_text(moved: int, seconds: float) -> str:
    """`13.1 KiB at 0.7 MB/s`, or that nothing moved."""
    return f"{size_text(moved)} at {speed_text(moved, seconds)}" if moved else "nothing"


def span_text(seconds: float) -> str:
    """A duration: `340 ms`, `12 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    for unit, below, rest in (("d", "h", 3600), ("h", "min", 60), ("min", "s", 1)):
        whole = {"d": 86400, "h": 3600, "min": 60}[unit]
        if seconds >= whole:
            left = int(seconds % whole) // rest
            return (
                f"{int(seconds // whole)} {unit} {left} {below}"
                if left
                else f"{int(seconds // whole)} {unit}"
            )
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def money_text(micro: int) -> str:
    """Millionths of the network's currency as a plain number."""
    return f"{micro / 1e6:.6f}".rstrip("0").rstrip(".") or "0"


def unabbreviate(word: str, candidates: Iterable[str], what: str, *, listed_by: str = "") -> str:
    """The one candidate that begins with `word`. Raises `UsageError` for none, or for several. `listed_by` is the
    command that lists them, where it is not called as they are."""
    found = sorted({candidate for candidate in candidates if candidate.startswith(word)})
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError(
            f"no {what} begins with {word!r}; the IDs known here are listed by `ioc-node {listed_by or f'{what}s'}`"
        )
    several = ", ".join(candidate[: len(word) + 4] for candidate in found[:4])
    raise UsageError(f"{len(found)} {what}s begin with {word!r} ({several}); type more of the ID")
