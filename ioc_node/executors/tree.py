"""Memory, CPU time and number of all processes below one, read from Linux's /proc while they run."""

import os
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") >> 10
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Tree:
    """A look at a process tree: how many processes, their proportional share of memory in KiB together, and the
    CPU seconds that they and those they waited for have used."""

    processes: int
    memory_kib: int
    core_seconds: float


def look_at_tree(root: int, processes_max: int) -> Tree:
    """Look at `root` and its descendants; stops counting above `processes_max`. Those that vanish count
    nothing."""
    pending = [root]
    processes = memory_kib = ticks = 0
    while pending and processes <= processes_max:
        process = pending.pop()
        pending += _children(process)
        memory_kib += _memory_kib(process)
        ticks += _cpu_ticks(process)
        processes += 1
    return Tree(processes, memory_kib, ticks / _TICKS_PER_SECOND)


def _children(process: int) -> list[int]:
    found: list[int] = []
    try:
        for thread in (_PROC / str(process) / "task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    except OSError:
        pass  # it ended while we looked
    return found


def _memory_kib(process: int) -> int:
    """Proportional set size (shared pages divided among who shares them), else the resident set size."""
    folder = _PROC / str(process)
    try:
        for line in (folder / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except OSError:
        pass
    try:
        return int((folder / "statm").read_text().split()[1]) * _PAGE_KIB
    except OSError:
        return 0


def _cpu_ticks(process: int) -> int:
    """User and system time of a process and of the children it waited for: fields 14 to 17 of proc(5) `stat`."""
    try:
        stat = (_PROC / str(process) / "stat").read_bytes()
    except OSError:
        return 0
    # The name in field 2 may hold anything, also blanks and parentheses; the fields after it are plain.
    return sum(map(int, stat[stat.rindex(b")") + 2 :].split()[11:15]))
