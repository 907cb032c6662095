"""The provider's side of a task's story: reserve, start, watch, cancel, settle; and what a restart makes of it.

One attempt goes: lease held → order verified, lease accepted and order journalled in one transaction → inputs staged
→ program run → outputs kept, usage signed, end journalled, lease ended, again in one transaction → last event told →
results kept until the receipt came and for a while longer. A node that was killed in between ends what it had
running as SYSTEM_ERROR when it starts again.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.config import TasksConfig
from ioc_node.market.leases import LeaseBook, cores_milli_of
from ioc_node.metering.ledger import Ledger
from ioc_node.metering.receipts import check_answers
from ioc_node.metering.usage import Meter
from ioc_node.runtime.link_handlers import Handlers, SendItem
from ioc_node.runtime.link_mux import Link
from ioc_node.runtime.store import Store
from ioc_node.tasks.definition import BLOB, blobs_of
from ioc_node.tasks.exchange import BlobExchange
from ioc_node.tasks.guard import contained_story
from ioc_node.tasks.keeper import Keeper
from ioc_node.tasks.running import WATCH_EVENTS_MAX, Running
from ioc_node.tasks.shelf import ProvidedRow, Shelf
from ioc_node.tasks.staging import Attempt, Ended, StagingFailed, Workshop, clear_folder
from ioc_node.tasks.story import now_ms
from ioc_wire.bulk import TicketIssued
from ioc_wire.codec import Message
from ioc_wire.errors import (
    BadReceipt,
    BadTask,
    Busy,
    Closing,
    LeaseTaken,
    NotOwner,
    Superseded,
    TaskUnknown,
)
from ioc_wire.market import (
    Lease,
    LeaseGranted,
    MeasureRtt,
    ReleaseLease,
    ReserveLease,
    RttMeasured,
)
from ioc_wire.signed import verify
from ioc_wire.tasks import (
    CancelTask,
    Done,
    GrantOutput,
    SettleTask,
    StartTask,
    TaskDefinition,
    TaskEvent,
    TaskOrder,
    TaskProgress,
    TaskStarted,
    WatchTask,
    format_task_id,
    open_order,
)

INPUTS_CACHED_SECONDS: Final = 3600
"""How long inputs stay after the last task that read them."""
TICK_SECONDS: Final = 1.0
SWEEP_SECONDS: Final = 60.0
STOP_SECONDS: Final = 3.0
REMEMBERED_MAX: Final = 1024
"""Ended attempts whose events are still in memory; of older ones only the last event can be had."""

_log = structlog.get_logger()


class Provider:
    """Serves leases and tasks to consumers. `serve_on` before links open, then `run`."""

    def __init__(
        self,
        *,
        key: Ed25519PrivateKey,
        home: Path,
        store: Store,
        book: LeaseBook,
        workshop: Workshop,
        exchange: BlobExchange,
        keeper: Keeper,
        ledger: Ledger,
        settings: TasksConfig,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._key = key
        self._folder = home / "tasks"
        self._store = store
        self._book = book
        self._workshop = workshop
        self._exchange = exchange
        self._keeper = keeper
        self._ledger = ledger
        self._settings = settings
        self._on_change = on_change
        self._shelf = Shelf(store)
        self._running: dict[tuple[bytes, int], Running] = {}
        self._nursery: trio.Nursery | None = None
        self._stopping = False
        self._watched = 0
        self._told = trio.lowlevel.ParkingLot()

    # -- life

    def serve_on(self, handlers: Handlers) -> None:
        """Register the answers to consumers' messages."""
        handlers.serve(ReserveLease, self._reserve)
        handlers.serve(ReleaseLease, self._release)
        handlers.serve(MeasureRtt, self._measure)
        handlers.serve(StartTask, self._start)
        handlers.serve_stream(WatchTask, self._watch)
        handlers.serve(CancelTask, self._cancel)
        handlers.serve(SettleTask, self._settle)
        handlers.serve(GrantOutput, self._grant)

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Recover what the last stop left, then run tasks until cancelled."""
        await self._recover()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await self._tick()
            finally:
                self._nursery = None

    async def stop(self) -> None:
        """Take no more, preempt what runs, and wait until its consumers were told, so that they place it elsewhere at
        once. At most `STOP_SECONDS`; what does not end by then is found interrupted at the next start."""
        self._stopping = True
        open_ = [running for running in self._running.values() if not running.feed.closed]
        for running in open_:
            running.preempt("the provider is stopping")
        with trio.move_on_after(STOP_SECONDS):
            while any(not running.feed.closed for running in open_) or self._watched:
                await self._told.park()

    async def _recover(self) -> None:
        for row in self._shelf.running():
            text = "the provider was restarted while the task ran"
            last = TaskEvent(1 << 40, now_ms(), "state", "SYSTEM_ERROR", text=text)
            with self._store.transaction():
                self._shelf.end(row.task, row.attempt, last, now_ms())
                self._keeper.hold_until(input_reason(row.task, row.attempt), now_ms())
            _log.warning("task_interrupted", task=format_task_id(row.task), attempt=row.attempt)
        for lease in self._book.accepted():
            self._book.end(lease.lease, time.time())
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in await trio.to_thread.run_sync(lambda: list(self._folder.iterdir())):
            await clear_folder(left)

    async def _tick(self) -> None:
        swept = trio.current_time()
        while True:
            await trio.sleep(TICK_SECONDS)
            with contained_story("provider_tick"):
                if self._book.expire(time.time()):
                    self._on_change()
                if trio.current_time() - swept >= SWEEP_SECONDS:
                    swept = trio.current_time()
                    retention_ms = int(self._settings.retention_seconds * 1000)
                    self._shelf.forget_before(now_ms() - retention_ms)
                    self._book.forget_ended(time.time())
                    await self._keeper.sweep(now_ms())

    # -- what others may ask about this side

    @property
    def tasks_running(self) -> int:
        return sum(not running.feed.closed for running in self._running.values())

    def rows(self, limit: int) -> list[ProvidedRow]:
        """The newest attempts made here; of those that run, with the state they are in."""
        rows = self._shelf.latest(limit)
        return [
            replace(row, state=running.state)
            if (running := self._running.get((row.task, row.attempt))) is not None
            else row
            for row in rows
        ]

    # -- leases

    async def _reserve(self, link: Link, message: ReserveLease) -> Message:
        if self._nursery is None or self._stopping:
            raise Closing()
        if len(self._book.accepted()) >= self._settings.running_max:
            raise Busy(f"{self._settings.running_max} tasks run here already")
        lease = self._book.reserve(message, link.peer.key, time.time())
        self._on_change()
        return LeaseGranted(lease)

    async def _release(self, link: Link, message: ReleaseLease) -> Message:
        if self._book.release(message.lease, link.peer.key, time.time()):
            self._on_change()
        return Done()

    async def _measure(self, link: Link, message: MeasureRtt) -> Message:
        return RttMeasured(self._book.used_milli())

    # -- starting

    async def _start(self, link: Link, message: StartTask) -> Message:
        if self._nursery is None or self._stopping:
            raise Closing()
        order = verify(message.order, TaskOrder)
        owner = link.peer.key
        if message.order.key != owner:
            raise NotOwner("the order is signed by another key than the link's")
        definition = open_order(order, owner)
        started = TaskStarted(order.task, order.attempt)
        if (known := self._shelf.row(order.task, order.attempt)) is not None:
            if known.lease != order.lease:
                raise LeaseTaken("this attempt was started under another lease")
            return started
        attempts = self._shelf.attempts(order.task)
        if any(row.attempt > order.attempt for row in attempts):
            raise Superseded(f"attempt {attempts[-1].attempt} was started here")
        self._check_order(order, definition)
        for row in attempts:
            self._cancel_attempt(row.task, row.attempt, "placed again")
        lease = self._take_order(order, owner, definition)
        self._nursery.start_soon(self._story, self._running_of(lease, definition, message, owner))
        return started

    def _check_order(self, order: TaskOrder, definition: TaskDefinition) -> None:
        runtime = definition.executor.runtime
        if runtime not in self._workshop.executors:
            offered = ", ".join(self._workshop.executors) or "none"
            raise BadTask(f"runtime {runtime!r} is not offered here (offered: {offered})")
        for item in definition.inputs:
            if not item.url.startswith(BLOB):
                raise BadTask(f"input {item.path!r}: expected a blob, not {item.url!r}")
        lease = next((lease for lease in self._book.held() if lease.lease == order.lease), None)
        if lease is None:
            return  # accepting says why
        wanted = definition.resources
        if (
            cores_milli_of(wanted.cores) > lease.cores_milli
            or wanted.memory_mib > lease.memory_mib
            or wanted.disk_mib > lease.disk_mib
            or sum(demand.count_milli for demand in wanted.accelerators) > sum(lease.accelerators_milli)
        ):
            raise BadTask("the definition asks for more than its lease promises")

    def _take_order(self, order: TaskOrder, owner: bytes, definition: TaskDefinition) -> Lease:
        needed = blobs_of(definition)
        taken = False
        try:
            with self._store.transaction():
                lease = self._book.accept(order.lease, owner, order.task, order.attempt, time.time())
                self._shelf.add(
                    ProvidedRow(
                        task=order.task,
                        attempt=order.attempt,
                        owner=owner,
                        lease=order.lease,
                        cid=lease.cid,
                        name=definition.name,
                        phase="running",
                        state="INITIALIZING",
                        started_ms=now_ms(),
                    )
                )
                self._keeper.hold(needed, input_reason(order.task, order.attempt))
            taken = True
        finally:
            if not taken:
                self._book.reload()
        return lease

    def _running_of(
        self, lease: Lease, definition: TaskDefinition, message: StartTask, owner: bytes
    ) -> Running:
        folder = self._folder / f"{format_task_id(lease.task)}-{lease.attempt}"
        attempt = Attempt(definition, lease, folder, message.tickets, Meter(started_ms=now_ms()))
        running = Running(attempt, owner)
        self._running[running.key] = running
        while len(self._running) > REMEMBERED_MAX:
            oldest = next((key for key, each in self._running.items() if each.feed.closed), None)
            if oldest is None:
                break
            del self._running[oldest]
        return running

    # -- the story itself

    async def _story(self, running: Running) -> None:
        attempt = running.attempt
        ended = Ended("CANCELED", "")
        with contained_story("attempt", task=format_task_id(attempt.lease.task)) as fault, running.scope:
            ended = await self._perform(running)
        if fault.text:
            ended = Ended("SYSTEM_ERROR", fault.text)
        elif running.scope.cancelled_caught:
            ended = running.cancelled
        with contained_story("attempt_cleared", task=format_task_id(attempt.lease.task)):
            await clear_folder(attempt.folder)
        self._finish(running, ended)

    async def _perform(self, running: Running) -> Ended:
        attempt = running.attempt
        running.enter("INITIALIZING")
        try:
            await self._workshop.stage(attempt, running.fetched)
            running.enter("RUNNING")
            return await self._workshop.run(attempt, running)
        except StagingFailed as error:
            return Ended("SYSTEM_ERROR", str(error))

    def _finish(self, running: Running, ended: Ended) -> None:
        lease = running.attempt.lease
        ended_ms = now_ms()
        usage = running.attempt.meter.close(lease, self._key, ended_ms=ended_ms, state=ended.state)
        last = running.last_event(ended, usage)
        retention_ms = int(self._settings.retention_seconds * 1000)
        with contained_story("attempt_ended", task=format_task_id(lease.task)), self._store.transaction():
            self._shelf.end(lease.task, lease.attempt, last, ended_ms)
            self._book.end(lease.lease, time.time())
            self._keeper.hold_until(
                input_reason(lease.task, lease.attempt), ended_ms + INPUTS_CACHED_SECONDS * 1000
            )
            self._keeper.hold((out.blob for out in ended.outputs), lease.task, ended_ms + retention_ms)
        running.finish(last)
        self._told.unpark_all()
        self._on_change()

    # -- watching and cancelling

    async def _watch(self, link: Link, message: WatchTask, send: SendItem) -> None:
        row = self._owned(message.task, message.attempt, link.peer.key)
        running = self._running.get((message.task, message.attempt))
        if running is None:
            assert row.last_event is not None
            await send(TaskProgress((row.last_event,)))
            return
        after = message.after_seq
        self._watched += 1
        try:
            while True:
                events, after = await running.feed.read(after, WATCH_EVENTS_MAX)
                if not events:
                    return
                await send(TaskProgress(tuple(events)))
        finally:
            self._watched -= 1
            self._told.unpark_all()

    async def _cancel(self, link: Link, message: CancelTask) -> Message:
        self._owned(message.task, message.attempt, link.peer.key)
        self._cancel_attempt(message.task, message.attempt, message.reason or "cancelled by its owner")
        return Done()

    def _cancel_attempt(self, task: bytes, attempt: int, reason: str) -> None:
        running = self._running.get((task, attempt))
        if running is not None and not running.feed.closed:
            running.cancel(reason)

    def _owned(self, task: bytes, attempt: int, owner: bytes) -> ProvidedRow:
        row = self._shelf.row(task, attempt)
        if row is None:
            raise TaskUnknown(f"attempt {attempt} of {format_task_id(task)}")
        if row.owner != owner:
            raise NotOwner("of this task")
        return row

    # -- outputs and receipts

    async def _grant(self, link: Link, message: GrantOutput) -> Message:
        if not self._shelf.has_output(message.task, link.peer.key, message.blob):
            raise TaskUnknown(f"{format_task_id(message.task)} has no such output here")
        return TicketIssued(self._exchange.issue(message.blob, message.reader))

    async def _settle(self, link: Link, message: SettleTask) -> Message:
        """The receipt is stored once; `forget` also lets the outputs go."""
        for row in self._shelf.attempts(message.task):
            if row.owner != link.peer.key or row.usage is None:
                continue
            try:
                kept = check_answers(message.receipt, row.usage)
            except BadReceipt:
                continue
            with self._store.transaction(durable=True):
                self._ledger.add(kept)
                self._shelf.settle(row.task, row.attempt)
                if message.forget:
                    self._keeper.hold_until(row.task, now_ms())
            return Done()
        raise BadReceipt("it answers no usage record that was made here")


def input_reason(task: bytes, attempt: int) -> bytes:
    """Why the inputs of an attempt are held."""
    return task + attempt.to_bytes(4, "big")
