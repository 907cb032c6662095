"""What every runtime has in common: the work it is given, what it reports while running, and how it ended.

An executor runs one program in one folder. The caller stages the inputs into the folder before and takes
the outputs out afterwards (`ioc_node.executors.folder`), so an executor knows nothing of blobs, leases or
the network.

A program of any runtime may print lines of the form

    ioc:progress 0.35 optional text

on its standard output. They are taken as progress (0 to 1) and do not appear in the log.
"""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final, Literal, Protocol

from ioc_node.errors import ExecutorUnavailable, NodeError

ENTRY_POINTS: Final = "ioc_node.executors"
EXIT_UNKNOWN: Final = -1
"""Exit status of a program that did not come to exit by itself."""

StreamName = Literal["stdout", "stderr"]


class BadProgram(NodeError):
    """The program cannot be started as given: missing, of another format, or without an entry point."""


class FolderUnusable(NodeError):
    """The task's folder, or a file in it, is not what it should be."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What ends a program that uses more.

    `memory_mib` counts the program's memory, `disk_mib` everything in its folder with the staged inputs
    included. `fuel` counts WebAssembly instructions (about one each); other runtimes ignore it. Log bytes
    beyond `log_bytes_max` are dropped and counted; they do not end the program.
    """

    wall_seconds: float = 3600.0
    fuel: int | None = None
    memory_mib: int = 256
    disk_mib: int = 256
    log_bytes_max: int = 1 << 20
    cores: int = 1


@dataclass(frozen=True, slots=True)
class Work:
    """One program to run. It sees `folder` and nothing else; its standard input is empty.

    `argv` is the whole argument vector, `argv[0]` included. `program` is the file to run, or None where a
    runtime finds `argv[0]` by itself (a command of the system, runtime `process`).
    """

    folder: Path
    program: Path | None
    argv: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    bounds: Bounds = Bounds()


class Report(Protocol):
    """Told what a running program says. Called in the trio thread, between checkpoints: must not block or
    raise."""

    def progress(self, fraction: float, text: str) -> None:
        """`fraction` is within 0 and 1. A fast sequence is conflated to its latest."""
        ...

    def line(self, stream: StreamName, text: str) -> None:
        """One line without its end, at most `LOG_LINE_BYTES_MAX` bytes of UTF-8."""
        ...


class Ending(StrEnum):
    """Why a run is over. Cancellation is not among them: it leaves `run` as `trio.Cancelled`."""

    EXITED = "exited"
    TRAPPED = "trapped"
    OUT_OF_FUEL = "out_of_fuel"
    OUT_OF_MEMORY = "out_of_memory"
    OUT_OF_DISK = "out_of_disk"
    OUT_OF_PROCESSES = "out_of_processes"
    WALL_TIME = "wall_time"


@dataclass(frozen=True, slots=True)
class Usage:
    """Measured, in integers: milliseconds of wall clock and of CPU, MiB x milliseconds and peak MiB of
    memory."""

    wall_ms: int
    core_ms: int
    mib_ms: int
    peak_mib: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. `reason` is one line for a person. `exit_status` follows the shell: 128 + n for
    signal n, and `EXIT_UNKNOWN` where the program never got to exit."""

    ending: Ending
    exit_status: int
    reason: str
    usage: Usage

    @property
    def succeeded(self) -> bool:
        return self.ending is Ending.EXITED and self.exit_status == 0


@dataclass(frozen=True, slots=True)
class Capability:
    """What a working executor offers: `runtime` as named in task files, the version behind it, remarks."""

    runtime: str
    version: str
    detail: str = ""


class Executor(Protocol):
    """Runs programs of one runtime, several at a time."""

    runtime: str

    def probe(self) -> Capability:
        """Really try the sandbox once. Raises `ExecutorUnavailable` with the reason and what to do."""
        ...

    async def run(self, work: Work, report: Report) -> Outcome:
        """Run to the end. When cancelled, the program and everything it started is gone before this returns.

        Raises `BadProgram` where there is nothing that could be run and `FolderUnusable` for the folder.
        """
        ...


def load_executors() -> tuple[dict[str, Executor], dict[str, str]]:
    """Executors of the installed entry points that work here, by runtime, and the reason for each that does
    not."""
    available: dict[str, Executor] = {}
    missing: dict[str, str] = {}
    for point in sorted(importlib.metadata.entry_points(group=ENTRY_POINTS), key=lambda point: point.name):
        try:
            executor: Executor = point.load()()
            executor.probe()
        except (ImportError, AttributeError) as error:
            missing[point.name] = f"cannot be loaded from {point.value}: {error}"
        except ExecutorUnavailable as error:
            missing[point.name] = str(error)
        else:
            available[executor.runtime] = executor
    return available, missing
