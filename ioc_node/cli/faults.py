"""The one place where an exception becomes an exit code and one clear line on stderr.

Exit codes: 0 done, 1 a bug or this machine's fault (port, key file, disk), 2 usage, 3 unreachable, 4 refused,
5 failed, 130 interrupted, 143 terminated. A bug prints one line too, and where its traceback was written; with
`IOC_DEBUG=1` the traceback itself.
"""

import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import click

from ioc_bootstrap.addresses import BadAddress
from ioc_bootstrap.network import NetworkFileError
from ioc_node.errors import NodeError
from ioc_wire.errors import BadIdentifier, BadTask, Malformed, NotFound, RemoteFault, WireError, Withdrawn

INTERRUPTED: Final = 130
USAGE: Final = 2
REFUSED: Final = 4
FAILED: Final = 5
BROKEN_PIPE: Final = 128 + signal.SIGPIPE
_EXPECTED: Final = (NodeError, WireError, NetworkFileError, BadAddress, click.ClickException)
_PLACES: Final = {
    "--home": "before the command: ioc-node --home FOLDER status",
    "--json": "behind the command: ioc-node status --json",
}
"""Options that a command line has, where it has them."""
_CLICK_SAYS: Final = {
    "is not a valid float range": "is no number",
    "is not a valid integer range": "is no whole number",
}
_WIRE_CODES: Final[dict[type[WireError], int]] = {
    RemoteFault: FAILED,
    BadIdentifier: USAGE,
    NotFound: FAILED,
    Withdrawn: FAILED,
}


class Fault(NamedTuple):
    """What an operator is told: one line (empty: nothing) and the exit code. `bug` is ours."""

    line: str
    exit_code: int
    bug: BaseException | None = None


def run_group(group: click.Group, args: Sequence[str] | None, name: str) -> int:
    """Run a command line to its end and return the exit code; nothing escapes as a traceback."""
    words = list(sys.argv[1:] if args is None else args)
    try:
        result = group.main(words, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return USAGE
    except BaseException as error:  # noqa: BLE001 - this is where every one of them becomes a line
        fault = explain(error)
        _print(fault, words)
        return fault.exit_code
    return result if isinstance(result, int) else 0


def explain(error: BaseException) -> Fault:
    """The line and exit code for an exception, also for a group: a bug in it wins, then the first expected error."""
    leaves = list(_leaves(error))
    for leaf in leaves:
        if not isinstance(leaf, (*_EXPECTED, KeyboardInterrupt, click.Abort, BrokenPipeError, SystemExit)):
            return Fault(f"internal error: {type(leaf).__name__}: {_one_line(leaf)}", 1, error)
    for leaf in leaves:
        if isinstance(leaf, _EXPECTED):
            return Fault(_one_line(_words(leaf)), exit_code_of(leaf))
    first = leaves[0]
    if isinstance(first, SystemExit):
        return Fault("", first.code if isinstance(first.code, int) else 1)
    if isinstance(first, BrokenPipeError):
        # Whoever read our output has gone; a second failure while Python closes stdout would be noise.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Fault("", BROKEN_PIPE)
    return Fault("interrupted", INTERRUPTED)


def exit_code_of(error: BaseException) -> int:
    """2 usage, 3 unreachable, 4 refused, 5 failed, 1 anything else."""
    if isinstance(error, NodeError):
        return error.exit_code
    if isinstance(error, WireError):
        return _WIRE_CODES.get(type(error), REFUSED)
    return USAGE


def _words(error: BaseException) -> str:
    if isinstance(error, click.NoSuchOption) and error.option_name in _PLACES:
        return f"{error.option_name} belongs {_PLACES[error.option_name]}"
    if isinstance(error, click.UsageError) and error.ctx is not None:
        text = error.format_message().rstrip(".")
        for theirs, ours in _CLICK_SAYS.items():
            text = text.replace(theirs, ours)
        return f"{text} (see {error.ctx.command_path} --help)"
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, RemoteFault | Malformed | BadTask) and error.detail:
        return error.detail  # the node's own words are already a whole line
    return str(error)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _print(fault: Fault, words: Sequence[str]) -> None:
    line = fault.line
    if fault.bug is not None:
        if os.environ.get("IOC_DEBUG"):
            traceback.print_exception(fault.bug)
        else:
            line += f" (a bug in ioc-node; its traceback is in {_write_crash(fault.bug, words)})"
    if not line:
        return
    try:
        if "--json" in words:
            click.echo(json.dumps({"error": line, "exit_code": fault.exit_code}))
        click.echo(f"error: {line}" if fault.exit_code != INTERRUPTED else line, err=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write_crash(error: BaseException, words: Sequence[str]) -> Path:
    """Append the traceback to `crash.log` of the home folder, or of the folder for temporary files."""
    home = Path(words[words.index("--home") + 1]) if "--home" in words[:-1] else None
    text = "".join(traceback.format_exception(error))
    for folder in (home, Path(tempfile.gettempdir())):
        if folder is None or not folder.is_dir():
            continue
        path = folder / ("crash.log" if folder == home else f"ioc-node-crash-{os.getpid()}.log")
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{' '.join(words)}\n{text}\n")
        except OSError:
            continue
        return path
    return Path(os.devnull)
