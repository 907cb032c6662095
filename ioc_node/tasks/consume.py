"""The consumer's side of a task's story: journal, place, order, watch, settle, and pick up again after a restart.

`submit` returns when the task is in the journal; nothing was sent before. From there on the task belongs to the
node: its story runs in `Consumer.run`, ends in exactly one way, and is continued after a crash from whatever the
journal says. A provider that is lost costs an attempt, never the task.
"""

import random
import secrets
from collections.abc import Iterable
from typing import Any, Final

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.config import TasksConfig
from ioc_node.errors import PeerUnreachable, TaskFailed, UsageError
from ioc_node.metering.ledger import Ledger
from ioc_node.runtime.store import Store
from ioc_node.tasks.attempting import Attempting, Impossible, InputLost, Lost
from ioc_node.tasks.courier import Courier
from ioc_node.tasks.definition import TaskSpec, blobs_of, stage_spec
from ioc_node.tasks.exchange import BlobExchange, Connect, Find
from ioc_node.tasks.guard import contained_story
from ioc_node.tasks.handle import TaskHandle
from ioc_node.tasks.journal import AttemptRow, Journal, TaskRow
from ioc_node.tasks.keeper import Keeper
from ioc_node.tasks.live import LiveTask
from ioc_node.tasks.placing import Placing
from ioc_node.tasks.settling import Settling
from ioc_node.tasks.story import Ending, Source, now_ms
from ioc_wire.bulk import BlobId
from ioc_wire.errors import Unplaceable, WireError
from ioc_wire.signed import Signed, public_bytes
from ioc_wire.tasks import TaskDefinition, WorkflowDefinition, definition_bytes, format_task_id, task_id_of

STORIES_MAX: Final = 512
"""Tasks whose stories are told at the same time; more wait as QUEUED."""
SWEEP_SECONDS: Final = 60.0
ENDED_KEPT_MAX: Final = 256
"""Ended tasks that stay in memory with their events."""


class Consumer:
    """Tasks of this node's owner. Submit at any time; stories are told while `run` runs."""

    def __init__(
        self,
        *,
        key: Ed25519PrivateKey,
        store: Store,
        exchange: BlobExchange,
        keeper: Keeper,
        ledger: Ledger,
        find: Find,
        connect: Connect,
        settings: TasksConfig,
        rng: random.Random | None = None,
    ) -> None:
        self.key = public_bytes(key)
        rng = rng or random.Random()  # noqa: S311 - spreads load, keeps no secret
        self._store = store
        self._exchange = exchange
        self._keeper = keeper
        self._ledger = ledger
        self.retention_ms = int(settings.retention_seconds * 1000)
        """How long a task, and what it held here, is kept after its end."""
        self.journal = Journal(store)
        self._courier = Courier(self.journal, connect)
        self._settling = Settling(key, store, self.journal, ledger, self._courier)
        self._placing = Placing(self.key, self.journal, find, connect, rng)
        self._attempting = Attempting(
            key=key,
            journal=self.journal,
            exchange=exchange,
            connect=connect,
            lost_contact_seconds=settings.lost_contact_seconds,
            rng=rng,
        )
        self._live: dict[bytes, LiveTask] = {}
        self._room = trio.CapacityLimiter(STORIES_MAX)
        self._nursery: trio.Nursery | None = None

    # -- life

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Tell the stories of all tasks that have not ended, and of those submitted later, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for row in self.journal.unfinished():
                self._start(
                    LiveTask(row, self.journal) if row.task not in self._live else self._live[row.task]
                )
            nursery.start_soon(self._courier.run)
            task_status.started()
            try:
                await self._tidy()
            finally:
                self._nursery = None

    async def _tidy(self) -> None:
        while True:
            with contained_story("consumer_tidies"):
                self.forget_before(now_ms() - self.retention_ms)
                await self._keeper.sweep(now_ms())
            await trio.sleep(SWEEP_SECONDS)

    def forget_before(self, ended_ms: int, workflow: bytes | None = None) -> int:
        """Forget single tasks, or those of one workflow, that ended before; their receipts stay. Returns how many."""
        forgotten = self.journal.forget_before(ended_ms, workflow)
        for task in forgotten:
            self._live.pop(task, None)
        return len(forgotten)

    def _start(self, live: LiveTask) -> None:
        self._live[live.id] = live
        if self._nursery is not None:
            self._nursery.start_soon(self._story, live)

    # -- what a program calls

    async def stage(self, spec: TaskSpec) -> TaskDefinition | WorkflowDefinition:
        """The spec's definition with its local files in the store. Raises `UsageError` or `StorageFull`."""

        async def add_file(path: Any) -> BlobId:
            return BlobId((await self._exchange.blobs.add_file(path)).blob)

        return await stage_spec(spec, add_file)

    async def submit(self, task: TaskSpec | TaskDefinition) -> TaskHandle:
        """Journal a task and begin its story. Raises `ConfigError` or `UsageError` for one that cannot be meant, and
        `StorageFull`."""
        spec = task if isinstance(task, TaskSpec) else TaskSpec.of(task)
        definition = await self.stage(spec)
        if isinstance(definition, WorkflowDefinition):
            raise UsageError(f"{spec.source}: this is a workflow; submit it as one")
        return self.submit_staged(definition)

    def submit_staged(
        self, definition: TaskDefinition, *, sources: Iterable[Source] = (), workflow: bytes | None = None
    ) -> TaskHandle:
        """As `submit`, for a definition whose inputs are blobs already; those at other nodes are in `sources`."""
        row = self.new_row(definition, sources, workflow)
        with self._store.transaction(durable=True):
            self.add_row(row)
        return self.begin(row)

    def new_row(
        self, definition: TaskDefinition, sources: Iterable[Source], workflow: bytes | None
    ) -> TaskRow:
        """A journal row for a new task."""
        data, nonce = definition_bytes(definition), secrets.token_bytes(16)
        task = task_id_of(data, self.key, nonce)
        return TaskRow(task, definition.name, data, nonce, tuple(sources), workflow, now_ms())

    def add_row(self, row: TaskRow) -> None:
        """Journal a new task. Joins a transaction that is open."""
        self.journal.add(row)
        live = LiveTask(row, self.journal)
        self._keeper.hold(blobs_of(live.definition), row.task)

    def begin(self, row: TaskRow) -> TaskHandle:
        """Begin the story of a journalled task."""
        live = LiveTask(row, self.journal)
        live.enter("QUEUED")
        self._start(live)
        return TaskHandle(self, live)

    def handle(self, task: bytes) -> TaskHandle:
        """A handle on any task that the journal knows. Raises `UsageError`."""
        live = self._live.get(task)
        if live is None:
            row = self.journal.row(task)
            if row is None:
                raise UsageError(f"there is no task {format_task_id(task)} here; `ioc-node tasks` lists them")
            live = LiveTask(row, self.journal)
        return TaskHandle(self, live)

    def tasks(self, limit: int) -> list[LiveTask]:
        """The newest `limit` tasks, newest first."""
        rows = self.journal.latest(limit)
        return [self._live.get(row.task) or LiveTask(row, self.journal) for row in rows]

    def cancel(self, task: bytes) -> None:
        """Ask for an early end of a task. Raises `UsageError` where there is no such task."""
        live = self.handle(task).live
        if live.ending is None:
            self.journal.set_canceling(task)
            live.cancel_wanted.set()

    # -- the story

    async def _story(self, live: LiveTask) -> None:
        ending: Ending | None = None
        with contained_story("task", task=format_task_id(live.id)) as fault:
            async with self._room:
                ending = await self._tell(live)
        if ending is None:
            ending = Ending("SYSTEM_ERROR", fault.text)
        with contained_story("task_ended", task=format_task_id(live.id)):
            self._close(live, ending)
        self._placing.tell_freed()

    def _close(self, live: LiveTask, ending: Ending) -> None:
        self._settling.end(live, ending)
        self.let_go(live.id)
        live.finish(ending)
        kept = [each for each in self._live.values() if each.ending is not None]
        for old in kept[: max(0, len(kept) - ENDED_KEPT_MAX)]:
            del self._live[old.id]

    async def _tell(self, live: LiveTask) -> Ending:
        attempts = self.journal.attempts(live.id)
        row = attempts[-1] if attempts and attempts[-1].phase != "over" else None
        failed = {each.provider.key: None for each in attempts if each is not row}
        why = ""
        while True:
            if row is None:
                if live.cancel_wanted.is_set():
                    return Ending("CANCELED", "cancelled by its owner")
                if live.attempt >= live.definition.attempts:
                    return Ending("SYSTEM_ERROR", f"given up after {live.attempt} attempts; the last: {why}")
                placed = await self._place(live, frozenset(failed))
                if not isinstance(placed, AttemptRow):
                    return placed
                row = placed
            outcome = await self._attempting.carry_out(live, row)
            if isinstance(outcome, Impossible):
                self._settling.give_up(live, row, outcome.reason)
                return Ending("SYSTEM_ERROR", outcome.reason, lost=outcome.blob)
            if isinstance(outcome, Lost):
                why = outcome.reason
                self._settling.give_up(live, row, "superseded")
            elif outcome.state in ("SYSTEM_ERROR", "PREEMPTED"):
                why = outcome.text or outcome.state
                self.journal.set_phase(live.id, row.attempt, "over")
            else:
                row = self.journal.attempts(live.id)[-1]
                return self._settling.settle(live, row, outcome)
            live.enter("QUEUED", f"attempt {row.attempt} at {row.lease.cid} failed: {why}")
            failed[row.provider.key] = None
            row = None

    async def _place(self, live: LiveTask, avoid: frozenset[bytes]) -> AttemptRow | Ending:
        placed: list[AttemptRow | Ending] = []
        async with trio.open_nursery() as nursery:

            async def stop_when_cancelled() -> None:
                await live.cancel_wanted.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(stop_when_cancelled)
            try:
                placed.append(await self._placing.place(live, avoid))
            except Unplaceable as error:
                placed.append(Ending("SYSTEM_ERROR", f"cannot be placed because {error.detail}"))
            nursery.cancel_scope.cancel()
        return placed[0] if placed else Ending("CANCELED", "cancelled by its owner")

    # -- outputs

    def receipt_of(self, live: LiveTask) -> Signed | None:
        """The receipt of a task, None where there is none."""
        kept = self._ledger.receipt(live.receipt) if live.receipt is not None else None
        return None if kept is None else kept.signed

    async def fetch_outputs(self, live: LiveTask) -> None:
        """Bring the outputs of a task that is COMPLETE here. Raises `TaskFailed` or `StorageFull`."""
        ending = live.ending
        assert ending is not None
        missing = [output for output in ending.outputs if not self._exchange.blobs.has(output.blob)]
        self._keeper.hold(
            (output.blob for output in ending.outputs),
            live.id,
            now_ms() + self.retention_ms,
        )
        for output in missing:
            assert ending.holder is not None
            source = Source(output.blob, live.id, ending.holder)
            try:
                ticket = await self._attempting.request_output(source, self.key)
                await self._exchange.fetch(ticket)
            except (InputLost, PeerUnreachable, WireError) as error:
                raise TaskFailed(
                    f"output {output.path!r} of task {live.name!r} cannot be had: {error}"
                ) from None
        if missing:
            self._settling.forget_outputs(live)

    def hold(self, reason: bytes, blobs: Iterable[bytes]) -> None:
        """Keep blobs here until `let_go(reason)`. Joins a transaction that is open."""
        self._keeper.hold(blobs, reason)

    def let_go(self, reason: bytes) -> None:
        """What was held for `reason` may go after the retention time."""
        self._keeper.hold_until(reason, now_ms() + self.retention_ms)

    def forget_outputs(self, live: LiveTask) -> None:
        """Nobody needs the outputs at their provider any more."""
        self._settling.forget_outputs(live)
