"""One attempt on the provider's machine: its private folder, its inputs in, the program run, its outputs out."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from ioc_node.bulk.transfers import TransferReport
from ioc_node.errors import NodeError, StorageUnusable
from ioc_node.executors.executor import BadProgram, Bounds, Executor, FolderUnusable, Outcome, Report, Work
from ioc_node.executors.folder import open_output, remove_folder
from ioc_node.metering.usage import Meter
from ioc_node.tasks.definition import BLOB, blob_of, blobs_of
from ioc_node.tasks.exchange import BlobExchange
from ioc_wire.bulk import Ticket, format_blob_id
from ioc_wire.errors import WireError
from ioc_wire.market import Lease
from ioc_wire.tasks import OutputBlob, State, TaskDefinition

FETCHES_MAX: Final = 4
"""Inputs of one attempt that are fetched at the same time."""


class StagingFailed(NodeError):
    """An input did not arrive, or the folder could not be made. The program never ran."""


Fetched = Callable[[bytes, TransferReport], None]
"""Told of each input that arrived."""


@dataclass(frozen=True)
class Ended:
    """How an attempt ended; `outputs` only where it is COMPLETE."""

    state: State
    text: str = ""
    outputs: tuple[OutputBlob, ...] = ()


@dataclass
class Attempt:
    """One order being carried out."""

    definition: TaskDefinition
    lease: Lease
    folder: Path
    """The attempt's own; the program sees `folder/work` and nothing else."""
    tickets: tuple[Ticket, ...]
    meter: Meter

    @property
    def work_folder(self) -> Path:
        return self.folder / "work"


class Workshop:
    """Carries out attempts with the executors and blobs of this node."""

    def __init__(self, exchange: BlobExchange, executors: Mapping[str, Executor]) -> None:
        self._blobs = exchange.blobs
        self._exchange = exchange
        self.executors = executors

    # -- inputs

    async def stage(self, attempt: Attempt, fetched: Fetched) -> None:
        """Fetch what is missing and lay out the folder. Raises `StagingFailed`."""
        await trio.to_thread.run_sync(_make_folders, attempt.folder)
        await self._fetch_missing(attempt, fetched)
        for item in attempt.definition.inputs:
            await self._lay(item.url, attempt.work_folder / item.path, f"input {item.path!r}")

    async def _fetch_missing(self, attempt: Attempt, fetched: Fetched) -> None:
        tickets = {ticket.blob: ticket for ticket in attempt.tickets}
        missing = [blob for blob in blobs_of(attempt.definition) if not self._blobs.has(blob)]
        for blob in missing:
            if blob not in tickets:
                raise StagingFailed(f"there is no ticket for {name_of(blob, attempt.definition)}")
        faults: list[str] = []
        room = trio.Semaphore(FETCHES_MAX)
        async with trio.open_nursery() as nursery:
            for blob in missing:
                await room.acquire()
                if faults:
                    break
                nursery.start_soon(self._fetch, tickets[blob], attempt, fetched, faults, room)
        if faults:
            raise StagingFailed(faults[0])

    async def _fetch(
        self,
        ticket: Ticket,
        attempt: Attempt,
        fetched: Fetched,
        faults: list[str],
        room: trio.Semaphore,
    ) -> None:
        try:
            moved = await self._exchange.fetch(ticket)
        except (WireError, NodeError, OSError) as error:
            faults.append(f"{name_of(ticket.blob, attempt.definition)} could not be fetched: {error}")
        else:
            attempt.meter.add_transfer_in(moved.bytes_moved)
            fetched(ticket.blob, moved)
        finally:
            room.release()

    async def _lay(self, url: str, path: Path, what: str) -> None:
        try:
            await trio.to_thread.run_sync(_make_parents, path)
            await self._blobs.export(blob_of(url), path)
        except (WireError, NodeError, OSError) as error:
            raise StagingFailed(f"{what} could not be laid out: {error}") from None

    # -- the program

    async def run(self, attempt: Attempt, report: Report) -> Ended:
        """Run the program to its end and take its outputs. Raises `StagingFailed` where it could not be started."""
        work = await self._work(attempt)
        executor = self.executors[attempt.definition.executor.runtime]
        started = time.monotonic_ns()
        charged = False
        try:
            outcome = await executor.run(work, report)
            charged = True
        except BadProgram as error:
            return Ended("EXECUTOR_ERROR", str(error))
        except FolderUnusable as error:
            raise StagingFailed(str(error)) from None
        finally:
            if (
                not charged
            ):  # cancelled or broken: the lease was held all the same, but no core time is claimed
                wall_ms = (time.monotonic_ns() - started) // 1_000_000
                attempt.meter.add_run(attempt.lease, core_ms=0, mib_ms=0, wall_ms=wall_ms)
        used = outcome.usage
        attempt.meter.add_run(attempt.lease, core_ms=used.core_ms, mib_ms=used.mib_ms, wall_ms=used.wall_ms)
        return await self._collect(attempt, outcome)

    async def _work(self, attempt: Attempt) -> Work:
        definition = attempt.definition
        step = definition.executor
        program: Path | None = None
        argv = step.command
        if step.program.startswith(BLOB):
            blob = blob_of(step.program)
            if step.runtime == "wasm":
                program = self._blobs.path(blob)
            else:
                program = attempt.folder / "program"
                await self._lay(step.program, program, "the program")
                program.chmod(0o500)
            argv = argv or (definition.name,)
        elif step.program:
            argv = (step.program, *argv)
        bounds = Bounds(
            wall_seconds=definition.limits.wall_seconds,
            fuel=definition.limits.fuel,
            memory_mib=definition.resources.memory_mib,
            disk_mib=definition.resources.disk_mib,
            log_bytes_max=definition.limits.log_bytes,
            cores=math.ceil(definition.resources.cores),
        )
        return Work(attempt.work_folder, program, argv, dict(step.env), bounds)

    # -- outputs

    async def _collect(self, attempt: Attempt, outcome: Outcome) -> Ended:
        if not outcome.succeeded:
            return Ended("EXECUTOR_ERROR", outcome.reason)
        kept: list[OutputBlob] = []
        for output in attempt.definition.outputs:
            try:
                kept.append(await self._keep(attempt, output.path))
            except FolderUnusable as error:
                missing = not (attempt.work_folder / output.path).exists()
                text = f"output {output.path!r} was never written" if missing else str(error)
                return Ended("EXECUTOR_ERROR", text)
            except StorageUnusable as error:
                return Ended("SYSTEM_ERROR", f"output {output.path!r} could not be kept: {error}")
        attempt.meter.add_outputs(sum(output.size for output in kept))
        return Ended("COMPLETE", outcome.reason, tuple(kept))

    async def _keep(self, attempt: Attempt, path: str) -> OutputBlob:
        # The store is given what was opened without following links, not a name that could lead elsewhere.
        with await trio.to_thread.run_sync(open_output, attempt.work_folder, path) as opened:
            info = await self._blobs.add_file(Path(f"/proc/self/fd/{opened.fileno()}"))
        return OutputBlob(path, info.blob, info.size)


def name_of(blob: bytes, definition: TaskDefinition) -> str:
    """What a blob is to a task, for people."""
    url = BLOB + format_blob_id(blob)
    for item in definition.inputs:
        if item.url == url:
            return f"input {item.path!r}"
    return "the program"


async def clear_folder(folder: Path) -> None:
    """Remove an attempt's folder with everything in it, whatever modes are on it."""
    await trio.to_thread.run_sync(remove_folder, folder)


def _make_folders(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "work").mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StagingFailed(f"the task's folder {folder} cannot be made: {error.strerror}") from None


def _make_parents(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
