"""Runs WebAssembly programs (WASI preview 1) inside this process, behind wasmtime's sandbox.

A program sees its own folder as `.`, its arguments and its variables; there is no other file, no network,
no process. It runs in a worker thread (wasmtime gives Python's lock back while it runs), so several run
truly in parallel.

What is bounded, and how exactly:
- fuel and memory: by wasmtime, exactly. A program that is refused memory sees an allocation fail and
  usually gives up; it is said to be out of memory when it failed with (nearly) all of its allowance in use.
- wall time and cancellation: by the engine's epoch, within milliseconds; a sleeping program is woken. Only
  a single host call that takes long (a very large read or write) is waited for.
- disk: the folder is measured every `WATCH_SECONDS` and once more at the end. What a program writes between
  two looks is not bounded; a run that ends over its bound never ends well.

What is measured: CPU time of the worker thread while the program runs (compiling is not charged), and
linear memory, which never shrinks: memory used is its final size, charged for the whole run.
"""

import dataclasses
import importlib.metadata
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import trio
from wasmtime import (
    ExitTrap,
    Func,
    Instance,
    InstancePre,
    Memory,
    Module,
    Store,
    Trap,
    TrapCode,
    WasiConfig,
    WasmtimeError,
)

from ioc_node.errors import ExecutorUnavailable, NodeError
from ioc_node.executors.engine import Engines, Image, Slot, one_line
from ioc_node.executors.executor import (
    EXIT_UNKNOWN,
    BadProgram,
    Capability,
    Ending,
    FolderUnusable,
    Outcome,
    Report,
    Usage,
    Work,
)
from ioc_node.executors.folder import check_folder, measure_folder, watch_folder
from ioc_node.executors.output import Bell, Mailbox, TaskOutput

RUNS_MAX: Final = 64
"""Programs at one time; more wait for a thread."""
TABLE_ELEMENTS_MAX: Final = 1 << 20
_PROBE: Final = '(module (memory (export "memory") 1) (func (export "_start")))'


@dataclass(frozen=True, slots=True)
class _Run:
    """What the worker thread found out. `ending` is None where the program was stopped from outside."""

    ending: Ending | None
    exit_status: int
    reason: str
    core_ns: int = 0
    memory_bytes: int = 0


class WasmExecutor:
    """Executor of runtime `wasm`. One object serves all tasks of a node, so that compiled programs are
    shared."""

    runtime: ClassVar[str] = "wasm"

    def __init__(self) -> None:
        self._engines = Engines()
        self._threads = trio.CapacityLimiter(RUNS_MAX)

    def probe(self) -> Capability:
        """Compile and run an empty program."""
        try:
            slot = self._engines.take(metered=False)
            with Store(slot.engine) as store:
                store.set_epoch_deadline(1)
                start = Instance(store, Module(slot.engine, _PROBE), []).exports(store)["_start"]
                assert isinstance(start, Func)
                start(store)
            self._engines.give_back(slot)
        except (WasmtimeError, Trap) as error:
            raise ExecutorUnavailable(f"wasmtime does not work here: {one_line(error)}") from None
        return Capability(
            self.runtime, f"wasmtime {importlib.metadata.version('wasmtime')}", "WASI preview 1"
        )

    async def run(self, work: Work, report: Report) -> Outcome:
        """See `Executor.run`."""
        program = work.program
        if program is None:
            raise BadProgram("runtime wasm needs a program file; a command alone is not enough")
        work = dataclasses.replace(work, folder=check_folder(work.folder))
        metered = work.bounds.fuel is not None
        image = await self._compile(program, metered)
        slot = self._engines.take(metered=metered)
        try:
            ready = slot.load(image)
            return await self._supervise(slot, ready, work, report)
        finally:
            self._engines.give_back(slot)

    async def _compile(self, program: Path, metered: bool) -> Image:
        def compiled() -> Image:
            return self._engines.compile(program, metered)

        # When cancelled, the thread goes on alone; all that it can still do is fill the cache.
        return await trio.to_thread.run_sync(compiled, abandon_on_cancel=True, limiter=self._threads)

    async def _supervise(self, slot: Slot, ready: InstancePre, work: Work, report: Report) -> Outcome:
        """Run the program in a thread while its clock, its folder and its output are watched."""
        bell = Bell()
        mailbox = Mailbox(bell.ring)
        output = TaskOutput(mailbox, work.bounds.log_bytes_max)
        stopped_by: list[tuple[Ending, str]] = []
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_pump, bell, mailbox, report)
            nursery.start_soon(_stop_on_cancel, slot)
            nursery.start_soon(_watch_clock, slot, work, stopped_by)
            nursery.start_soon(_watch_disk, slot, work, stopped_by)
            run = await trio.to_thread.run_sync(_run, slot, ready, work, output, limiter=self._threads)
            nursery.cancel_scope.cancel()
        wall_ms = round((trio.current_time() - started) * 1000)
        mailbox.empty_into(report)
        await trio.lowlevel.checkpoint_if_cancelled()
        if isinstance(run, NodeError):
            raise run
        ending, status, reason = run.ending, run.exit_status, run.reason
        if ending is None:
            ending, reason = stopped_by[0]
        excess = (await trio.to_thread.run_sync(measure_folder, work.folder)).excess(work.bounds.disk_mib)
        if excess is not None:
            ending, reason = Ending.OUT_OF_DISK, excess
        return Outcome(ending, status, reason, _usage(run, wall_ms))


async def _pump(bell: Bell, mailbox: Mailbox, report: Report) -> None:
    while True:
        await bell.wait()
        mailbox.empty_into(report)


async def _stop_on_cancel(slot: Slot) -> None:
    """The worker thread cannot be cancelled; being cancelled itself is how this task learns that it should
    end."""
    try:
        await trio.sleep_forever()
    finally:
        slot.stop()


async def _watch_clock(slot: Slot, work: Work, stopped_by: list[tuple[Ending, str]]) -> None:
    await trio.sleep(work.bounds.wall_seconds)
    stopped_by.append((Ending.WALL_TIME, f"stopped after its wall time of {work.bounds.wall_seconds:g} s"))
    slot.stop()


async def _watch_disk(slot: Slot, work: Work, stopped_by: list[tuple[Ending, str]]) -> None:
    reason = await watch_folder(work.folder, work.bounds.disk_mib)
    stopped_by.append((Ending.OUT_OF_DISK, reason))
    slot.stop()


def _usage(run: _Run, wall_ms: int) -> Usage:
    return Usage(
        wall_ms=wall_ms,
        core_ms=-(-run.core_ns // 1_000_000),
        mib_ms=-(-run.memory_bytes * wall_ms >> 20),
        peak_mib=-(-run.memory_bytes >> 20),
    )


def _run(slot: Slot, ready: InstancePre, work: Work, output: TaskOutput) -> _Run | NodeError:
    """The worker thread: one instance from its birth to its end. An error is returned, so that no nursery
    wraps it."""
    try:
        return _live(slot, ready, work, output)
    except (BadProgram, FolderUnusable) as error:
        return error


def _live(slot: Slot, ready: InstancePre, work: Work, output: TaskOutput) -> _Run:
    with Store(slot.engine) as store:
        memory_max = work.bounds.memory_mib << 20
        store.set_limits(memory_max, TABLE_ELEMENTS_MAX, instances=1, tables=16, memories=1)
        if work.bounds.fuel is not None:
            store.set_fuel(work.bounds.fuel)
        store.set_wasi(_wasi(work, output))
        # Only now: a stop that came before must be seen in `stopped`, one that comes after advances this
        # epoch.
        store.set_epoch_deadline(1)
        if slot.stopped.is_set():
            return _Run(None, EXIT_UNKNOWN, "stopped before it began")
        before_ns = time.thread_time_ns()
        run, memory_bytes = _call(store, ready, work)
        core_ns = time.thread_time_ns() - before_ns
    if slot.interrupted:
        run = dataclasses.replace(run, ending=None)  # what it did after its sleep was cut short means nothing
    output.close()
    return dataclasses.replace(run, core_ns=core_ns, memory_bytes=memory_bytes)


def _wasi(work: Work, output: TaskOutput) -> WasiConfig:
    config = WasiConfig()
    name = work.program.name if work.program is not None else ""
    try:
        config.argv = list(work.argv) or [name]
        config.env = list(work.env.items())
        config.preopen_dir(str(work.folder), ".")
    except WasmtimeError as error:
        raise FolderUnusable(f"task folder {work.folder} cannot be opened: {one_line(error)}") from None
    config.stdout_custom = lambda chunk: output.feed("stdout", chunk)
    config.stderr_custom = lambda chunk: output.feed("stderr", chunk)
    return config


def _call(store: Store, ready: InstancePre, work: Work) -> tuple[_Run, int]:
    """Instantiate and call `_start`: how it ended, and the size of its memory in bytes."""
    memory: Memory | None = None
    try:
        exports = ready.instantiate(store).exports(store)
        found = exports.get("memory")
        memory = found if isinstance(found, Memory) else None
        start = exports.get("_start")
        if not isinstance(start, Func):
            raise BadProgram("the program exports no function _start: it is a library, not a command")
        start(store)
        run = _Run(Ending.EXITED, 0, "exited with status 0")
    except ExitTrap as error:
        run = _Run(Ending.EXITED, error.code, f"exited with status {error.code}")
    except Trap as error:
        run = _trapped(error, work)
    except WasmtimeError as error:
        text = one_line(error)
        refused = "exceeds memory limits" in text or "memory minimum size" in text
        ending = Ending.OUT_OF_MEMORY if refused else Ending.TRAPPED
        return _Run(ending, EXIT_UNKNOWN, f"could not be started: {text}"), 0
    used = memory.data_len(store) if memory is not None else 0
    return _blame_memory(run, used, work.bounds.memory_mib << 20), used


def _trapped(error: Trap, work: Work) -> _Run:
    if error.trap_code is TrapCode.INTERRUPT:
        return _Run(None, EXIT_UNKNOWN, "stopped")
    if error.trap_code is TrapCode.OUT_OF_FUEL:
        return _Run(Ending.OUT_OF_FUEL, EXIT_UNKNOWN, f"used up its {work.bounds.fuel} units of fuel")
    return _Run(Ending.TRAPPED, EXIT_UNKNOWN, f"trapped: {one_line(error)}")


def _blame_memory(run: _Run, used: int, allowed: int) -> _Run:
    """Rename a failure that came with the allowance (nearly) used up; wasmtime does not tell that it
    refused."""
    failed = run.ending is Ending.TRAPPED or (run.ending is Ending.EXITED and run.exit_status != 0)
    if not failed or allowed - used >= max(1 << 20, allowed // 8):
        return run
    reason = f"out of memory: {used >> 20} of {allowed >> 20} MiB in use when it {run.reason}"
    return dataclasses.replace(run, ending=Ending.OUT_OF_MEMORY, reason=reason)
