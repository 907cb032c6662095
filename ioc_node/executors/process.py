"""Runs ordinary programs of this machine in a bubblewrap sandbox (`ioc_node.executors.sandbox` says what is
in it).

What is bounded, and how exactly:
- memory: the proportional memory of all its processes together, looked at every `LOOK_SECONDS`; one process
  can never have more data than twice the bound and 64 MiB.
- disk: no single file beyond the bound (the kernel refuses); all files together are measured every
  `WATCH_SECONDS` and once more at the end. What is written between two looks is not bounded.
- processes: `PROCESSES_MAX`, by the kernel where the node is not run by root, and looked at every
  `LOOK_SECONDS`.
- wall time and cancellation: the sandbox is killed whole, which takes milliseconds.

What is measured: CPU time of every process that ran in the sandbox (by the kernel, exactly); memory as
sampled, so that peaks between two looks are not seen.
"""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Final

import trio

from ioc_node.errors import ExecutorUnavailable
from ioc_node.executors.child import Child
from ioc_node.executors.executor import Capability, Ending, Outcome, Report, StreamName, Usage, Work
from ioc_node.executors.folder import check_folder, measure_folder, watch_folder
from ioc_node.executors.output import TaskOutput
from ioc_node.executors.sandbox import (
    FIRST,
    GROUPS,
    PROCESSES_MAX,
    USERS,
    command_of,
    rlimits,
    sandbox_arguments,
)
from ioc_node.executors.tree import Tree, look_at_tree

LOOK_SECONDS: Final = 0.1
LOOK_SECONDS_FIRST: Final = 0.01
"""The first looks come faster, so that short programs are seen too."""
CHUNK_BYTES: Final = 1 << 16
PROBE_SECONDS: Final = 10
_TOOLS: Final = {"bwrap": "bubblewrap", "prlimit": "util-linux", "taskset": "util-linux"}


class ProcessExecutor:
    """Executor of runtime `process`."""

    runtime: ClassVar[str] = "process"

    def __init__(self) -> None:
        self._running: Counter[int] = Counter(dict.fromkeys(sorted(os.sched_getaffinity(0)), 0))

    def probe(self) -> Capability:
        """Start a sandbox that does nothing. Blocks for some milliseconds."""
        if sys.platform != "linux":
            raise ExecutorUnavailable("runtime process needs Linux namespaces; this is another system")
        for tool, package in _TOOLS.items():
            if shutil.which(tool) is None:
                raise ExecutorUnavailable(f"{tool} is not installed; install the package {package}")
        with tempfile.TemporaryDirectory(prefix="ioc-probe-") as folder:
            work = Work(Path(folder), None, ("true",))
            with _prepared(work, [0]) as (command, descriptors):
                done = subprocess.run(
                    command, pass_fds=descriptors, capture_output=True, timeout=PROBE_SECONDS, check=False
                )
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
            raise ExecutorUnavailable(
                f"bubblewrap cannot make a sandbox here ({said[-1][:200]}); allow unprivileged user namespaces"
            )
        version = subprocess.run(["bwrap", "--version"], capture_output=True, text=True, check=False)
        return Capability(self.runtime, version.stdout.strip(), "no network, read-only system")

    async def run(self, work: Work, report: Report) -> Outcome:
        """See `Executor.run`."""
        work = dataclasses.replace(work, folder=check_folder(work.folder))
        with self._cpus(work.bounds.cores) as cpus:
            started = trio.current_time()
            status_read, status_write = os.pipe()
            try:
                with _prepared(work, cpus, status_write) as (command, descriptors):
                    child = Child(command, descriptors, (status_read, status_write))
            except BaseException:
                os.close(status_read)
                raise
            finally:
                os.close(status_write)
            run = _Run(work, child, TaskOutput(report, work.bounds.log_bytes_max))
            try:
                await run.supervise()
            finally:
                await child.aclose()
            return await run.outcome(trio.current_time() - started)

    @contextmanager
    def _cpus(self, cores: int) -> Iterator[list[int]]:
        """The least busy CPUs, as many as the work may use."""
        chosen = sorted(self._running, key=lambda cpu: (self._running[cpu], cpu))[: max(1, cores)]
        self._running.update(chosen)
        try:
            yield chosen
        finally:
            self._running.subtract(chosen)


class _Run:
    """One running sandbox and what is known of it."""

    def __init__(self, work: Work, child: Child, output: TaskOutput) -> None:
        self._work = work
        self._child = child
        self._output = output
        self._stopped_by: tuple[Ending, str] | None = None
        self._peak_kib = 0
        self._kib_seconds = 0.0
        self._core_seconds = 0.0
        self._looked_at = trio.current_time()

    async def supervise(self) -> None:
        """Until the program has ended, by itself or stopped by one of its bounds."""
        async with trio.open_nursery() as watchers:
            watchers.start_soon(self._watch_clock)
            watchers.start_soon(self._watch_disk)
            watchers.start_soon(self._watch_tree)
            async with trio.open_nursery() as readers:
                readers.start_soon(self._read, "stdout", self._child.stdout)
                readers.start_soon(self._read, "stderr", self._child.stderr)
                await self._child.wait()
            watchers.cancel_scope.cancel()
        self._output.close()

    async def outcome(self, seconds: float) -> Outcome:
        ended = await self._child.wait()
        ending, reason = self._stopped_by or _ending_of(ended.status)
        fill = await trio.to_thread.run_sync(measure_folder, self._work.folder)
        if (excess := fill.excess(self._work.bounds.disk_mib)) is not None:
            ending, reason = Ending.OUT_OF_DISK, excess
        wall_ms = round(seconds * 1000)
        usage = Usage(
            wall_ms=wall_ms,
            core_ms=round(max(ended.core_seconds, self._core_seconds) * 1000),
            mib_ms=round(self._kib_seconds * 1000 / 1024) or wall_ms,
            peak_mib=max(1, -(-self._peak_kib // 1024)),
        )
        return Outcome(ending, ended.status, reason, usage)

    async def _stop(self, ending: Ending, reason: str) -> None:
        if self._stopped_by is None:
            self._stopped_by = ending, reason
            if self._child.first is not None:
                self._note(look_at_tree(self._child.first, PROCESSES_MAX))
        await self._child.kill()

    async def _read(self, name: StreamName, stream: trio.lowlevel.FdStream) -> None:
        while chunk := await stream.receive_some(CHUNK_BYTES):
            self._output.feed(name, bytes(chunk))

    async def _watch_clock(self) -> None:
        await trio.sleep(self._work.bounds.wall_seconds)
        await self._stop(
            Ending.WALL_TIME, f"stopped after its wall time of {self._work.bounds.wall_seconds:g} s"
        )

    async def _watch_disk(self) -> None:
        await self._stop(
            Ending.OUT_OF_DISK, await watch_folder(self._work.folder, self._work.bounds.disk_mib)
        )

    async def _watch_tree(self) -> None:
        if not await self._child.find_first() or self._child.first is None:
            return
        allowed_mib = self._work.bounds.memory_mib
        pause = LOOK_SECONDS_FIRST
        while True:
            await trio.sleep(pause)
            pause = min(2 * pause, LOOK_SECONDS)
            tree = await trio.to_thread.run_sync(look_at_tree, self._child.first, PROCESSES_MAX)
            self._note(tree)
            if tree.memory_kib > allowed_mib << 10:
                used_mib = tree.memory_kib >> 10
                await self._stop(
                    Ending.OUT_OF_MEMORY, f"out of memory: {used_mib} of {allowed_mib} MiB in use"
                )
            if tree.processes > PROCESSES_MAX:
                await self._stop(Ending.OUT_OF_PROCESSES, f"more than {PROCESSES_MAX} processes")

    def _note(self, tree: Tree) -> None:
        now = trio.current_time()
        self._kib_seconds += tree.memory_kib * (now - self._looked_at)
        self._looked_at = now
        self._peak_kib = max(self._peak_kib, tree.memory_kib)
        self._core_seconds = max(self._core_seconds, tree.core_seconds)


def _ending_of(status: int) -> tuple[Ending, str]:
    if status == 128 + signal.SIGXFSZ:
        return Ending.OUT_OF_DISK, "wrote a file larger than its disk allowance"
    if 128 < status <= 128 + signal.SIGRTMAX:
        try:
            name = signal.Signals(status - 128).name
        except ValueError:
            name = f"number {status - 128}"
        return Ending.TRAPPED, f"ended by signal {name}"
    return Ending.EXITED, f"exited with status {status}"


@contextmanager
def _prepared(
    work: Work, cpus: list[int], status_fd: int | None = None
) -> Iterator[tuple[list[str], tuple[int, ...]]]:
    """The command that starts the sandbox and the descriptors it inherits, open as long as the context.

    Arguments travel in a file without a name: the task's variables do not show in the list of processes.
    """
    command, program = command_of(work)
    descriptors: list[int] = []
    try:
        users, groups = _memory_file(USERS, descriptors), _memory_file(GROUPS, descriptors)
        program_fd = None
        if program is not None:
            program_fd = os.open(program, os.O_RDONLY | os.O_CLOEXEC)
            descriptors.append(program_fd)
        arguments = sandbox_arguments(work, users_fd=users, groups_fd=groups, program_fd=program_fd)
        if status_fd is not None:
            arguments += ["--json-status-fd", str(status_fd)]
        listed = _memory_file(b"".join(argument.encode() + b"\0" for argument in arguments), descriptors)
        pinned = ["taskset", "--cpu-list", ",".join(map(str, cpus))]
        inside = [*pinned, *rlimits(work.bounds), *FIRST, *command]
        bwrap = shutil.which("bwrap") or "bwrap"
        yield [bwrap, "--args", str(listed), "--", *inside], tuple(descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _memory_file(content: bytes, descriptors: list[int]) -> int:
    descriptor = os.memfd_create("ioc-sandbox", os.MFD_CLOEXEC)
    descriptors.append(descriptor)
    os.write(descriptor, content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
