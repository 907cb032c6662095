"""Workflows: a graph of tasks, each started as soon as its inputs exist, their outputs moving from provider to
provider.

The journal knows which task of the consumer stands for which task of the workflow, so that a restart continues with
what is done. An output that is lost with its holder is made again; any other failure ends the workflow and cancels
what still runs.
"""

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import structlog
import trio

from ioc_node.errors import TaskFailed, UsageError
from ioc_node.runtime.store import Store
from ioc_node.tasks.consume import SWEEP_SECONDS, Consumer
from ioc_node.tasks.definition import TaskSpec, blobs_of, check_workflow
from ioc_node.tasks.feed import Feed
from ioc_node.tasks.guard import contained_story
from ioc_node.tasks.handle import TaskHandle
from ioc_node.tasks.keeper import FOREVER_MS
from ioc_node.tasks.plan import Plan
from ioc_node.tasks.story import Ending, StoryEvent, now_ms
from ioc_wire.codec import decode, encode
from ioc_wire.signed import Signed
from ioc_wire.tasks import OutputBlob, State, TaskEvent, WorkflowDefinition, format_task_id, task_id_of

IN_FLIGHT_MAX: Final = 256
"""Tasks of one workflow that are submitted at the same time; more are ready and wait."""
RERUNS_MAX: Final = 3
"""How often one task is run again because its outputs were lost."""
WORKFLOW_BYTES_MAX: Final = 64 << 20
EVENTS_KEPT_MAX: Final = 4000
ENDED_KEPT_MAX: Final = 32
"""Ended workflows that stay in memory with their events."""
FORGOTTEN_AT_ONCE: Final = 8

_SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS workflows (
         workflow BLOB PRIMARY KEY, name TEXT NOT NULL, definition BLOB NOT NULL, submitted_ms INTEGER NOT NULL,
         state TEXT NOT NULL, text TEXT NOT NULL DEFAULT '', canceling INTEGER NOT NULL DEFAULT 0,
         ended_ms INTEGER) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS workflow_tasks (
         workflow BLOB NOT NULL, name TEXT NOT NULL, task BLOB NOT NULL, PRIMARY KEY (workflow, name))
         WITHOUT ROWID""",
)
_log = structlog.get_logger()


@dataclass(frozen=True)
class WorkflowEvent:
    """An event of the task called `name`, or of the workflow itself where `name` is empty."""

    name: str
    task: bytes
    story: StoryEvent


@dataclass(frozen=True)
class NamedOutput:
    """An output of one of the last tasks."""

    name: str
    output: OutputBlob


@dataclass(frozen=True)
class WorkflowResult:
    """A workflow that is COMPLETE: the outputs of the tasks that nobody reads, here now, and all receipts."""

    workflow: bytes
    outputs: tuple[NamedOutput, ...]
    receipts: tuple[Signed, ...]


class _Flow:
    """A workflow while its story is told."""

    def __init__(self, id: bytes, definition: WorkflowDefinition, submitted_ms: int) -> None:
        self.id = id
        self.definition = definition
        self.submitted_ms = submitted_ms
        self.plan = Plan(definition)
        self.state: State = "QUEUED"
        self.text = ""
        self.feed: Feed[WorkflowEvent] = Feed(kept_max=EVENTS_KEPT_MAX)
        self.cancel_wanted = trio.Event()
        self.ended = trio.Event()

    def enter(self, state: State, text: str = "") -> None:
        self.state = state
        self.text = text
        event = TaskEvent(self.feed.last + 1, now_ms(), "state", state, text=text)
        self.feed.append(WorkflowEvent("", self.id, StoryEvent(0, "", event)))

    def close(self) -> None:
        self.feed.close()
        self.ended.set()


class Workflows:
    """All workflows of this consumer. Stories are told while `run` runs."""

    def __init__(self, store: Store, consumer: Consumer) -> None:
        self._store = store
        self._consumer = consumer
        self._flows: dict[bytes, _Flow] = {}
        self._nursery: trio.Nursery | None = None
        store.require("workflows", _SCHEMA)

    # -- life

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Continue what has not ended, and tell the stories of new ones, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for (workflow,) in self._store.fetch("SELECT workflow FROM workflows WHERE ended_ms IS NULL"):
                self._begin(self._flows.get(workflow) or self._load(workflow))
            task_status.started()
            try:
                await self._tidy()
            finally:
                self._nursery = None

    async def _tidy(self) -> None:
        while True:
            with contained_story("workflows_tidy"):
                self.forget_before(now_ms() - self._consumer.retention_ms)
            await trio.sleep(SWEEP_SECONDS)

    def forget_before(self, ended_ms: int) -> int:
        """Forget workflows that ended before, with their tasks; receipts stay. Returns how many."""
        found = self._store.fetch(
            "SELECT workflow FROM workflows WHERE ended_ms < ? LIMIT ?", (ended_ms, FORGOTTEN_AT_ONCE)
        )
        for (workflow,) in found:
            with self._store.transaction():
                while self._consumer.forget_before(FOREVER_MS, workflow):
                    pass
                self._store.execute("DELETE FROM workflow_tasks WHERE workflow = ?", (workflow,))
                self._store.execute("DELETE FROM workflows WHERE workflow = ?", (workflow,))
            self._flows.pop(workflow, None)
        return len(found)

    def _begin(self, flow: _Flow) -> None:
        self._flows[flow.id] = flow
        if self._nursery is not None:
            self._nursery.start_soon(self._story, flow)

    def _load(self, workflow: bytes) -> _Flow:
        found = self._store.fetch(
            "SELECT definition, submitted_ms, state, text, canceling, ended_ms FROM workflows WHERE workflow = ?",
            (workflow,),
        )
        if not found:
            raise UsageError(
                f"there is no workflow {format_task_id(workflow)} here; `ioc-node tasks` lists them"
            )
        data, submitted_ms, state, text, canceling, ended_ms = found[0]
        definition = decode(data, WorkflowDefinition, size_max=WORKFLOW_BYTES_MAX)
        flow = _Flow(workflow, definition, submitted_ms)
        for name, task in self._store.fetch(
            "SELECT name, task FROM workflow_tasks WHERE workflow = ?", (workflow,)
        ):
            ending = self._consumer.handle(task).live.ending
            if ending is not None and ending.succeeded:
                flow.plan.finish(name, task, ending)
            elif ended_ms is None and (ending is None or not ending.lost):
                flow.plan.start(name, task)
        if canceling:
            flow.cancel_wanted.set()
        if ended_ms is not None:
            flow.enter(state, text)
            flow.close()
        return flow

    # -- what a program calls

    async def submit(self, task: TaskSpec | WorkflowDefinition) -> "WorkflowHandle":
        """Journal a workflow and begin its story. Raises `ConfigError`, `UsageError` or `StorageFull`."""
        spec = task if isinstance(task, TaskSpec) else TaskSpec.of(task)
        definition = await self._consumer.stage(spec)
        if not isinstance(definition, WorkflowDefinition):
            raise UsageError(f"{spec.source}: this is a single task; submit it as one")
        check_workflow(definition, spec.source)
        data = encode(definition)
        flow = _Flow(task_id_of(data, self._consumer.key, secrets.token_bytes(16)), definition, now_ms())
        with self._store.transaction(durable=True):
            self._store.execute(
                "INSERT INTO workflows (workflow, name, definition, submitted_ms, state) VALUES (?, ?, ?, ?, 'QUEUED')",
                (flow.id, definition.name, data, flow.submitted_ms),
            )
            self._consumer.hold(flow.id, (blob for each in definition.tasks for blob in blobs_of(each)))
        flow.enter("QUEUED")
        self._begin(flow)
        return WorkflowHandle(self, flow)

    def handle(self, workflow: bytes) -> "WorkflowHandle":
        """A handle on any workflow that the journal knows. Raises `UsageError`."""
        return WorkflowHandle(self, self._flows.get(workflow) or self._load(workflow))

    def knows(self, workflow: bytes) -> bool:
        """Whether this is the ID of a workflow here."""
        return bool(self._store.fetch("SELECT 1 FROM workflows WHERE workflow = ?", (workflow,)))

    def latest(self, limit: int) -> list["WorkflowHandle"]:
        """The newest `limit` workflows, newest first."""
        query = "SELECT workflow FROM workflows ORDER BY submitted_ms DESC LIMIT ?"
        return [self.handle(workflow) for (workflow,) in self._store.fetch(query, (limit,))]

    def cancel(self, workflow: bytes) -> None:
        """Ask for an early end. Raises `UsageError`."""
        flow = self._flows.get(workflow) or self._load(workflow)
        if not flow.ended.is_set():
            self._store.execute("UPDATE workflows SET canceling = 1 WHERE workflow = ?", (workflow,))
            flow.cancel_wanted.set()

    # -- the story

    async def _story(self, flow: _Flow) -> None:
        ending = Ending("SYSTEM_ERROR")
        with contained_story("workflow", workflow=format_task_id(flow.id)) as fault:
            ending = await self._tell(flow)
        if fault.text:
            ending = Ending("SYSTEM_ERROR", fault.text)
        with contained_story("workflow_ended", workflow=format_task_id(flow.id)):
            with self._store.transaction(durable=True):
                self._store.execute(
                    "UPDATE workflows SET state = ?, text = ?, ended_ms = ? WHERE workflow = ?",
                    (ending.state, ending.text, now_ms(), flow.id),
                )
            self._consumer.let_go(flow.id)
            if ending.succeeded:
                self._forget_between(flow)
        flow.enter(ending.state, ending.text)
        flow.close()
        kept = [each for each in self._flows.values() if each.ended.is_set()]
        for old in kept[: max(0, len(kept) - ENDED_KEPT_MAX)]:
            del self._flows[old.id]

    async def _tell(self, flow: _Flow) -> Ending:
        ending: Ending | None = None
        flow.enter("RUNNING")
        send, receive = trio.open_memory_channel[tuple[str, TaskHandle, Ending]](0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_all, flow)
            for name, task in flow.plan.running.items():
                nursery.start_soon(self._follow, flow, name, self._consumer.handle(task), send)
            while not flow.plan.complete and ending is None:
                for name, handle in self._submit_ready(flow):
                    nursery.start_soon(self._follow, flow, name, handle, send)
                if not flow.plan.running:  # nothing to wait for: it was cancelled between two tasks
                    ending = Ending("CANCELED", "cancelled by its owner")
                    break
                ending = self._take(flow, *await receive.receive())
            for task in flow.plan.running.values():
                self._consumer.cancel(task)
            while flow.plan.running:
                name, _, _ = await receive.receive()
                flow.plan.running.pop(name, None)
            nursery.cancel_scope.cancel()
        return ending or Ending("COMPLETE")

    def _submit_ready(self, flow: _Flow) -> list[tuple[str, TaskHandle]]:
        if flow.cancel_wanted.is_set():
            return []
        room = IN_FLIGHT_MAX - len(flow.plan.running)
        rows = []
        for name in list(flow.plan.ready())[: max(0, room)]:
            definition, sources = flow.plan.resolve(name)
            rows.append((name, self._consumer.new_row(definition, sources, flow.id)))
        if rows:
            with self._store.transaction(durable=True):
                for name, row in rows:
                    self._consumer.add_row(row)
                    self._store.execute(
                        "INSERT OR REPLACE INTO workflow_tasks VALUES (?, ?, ?)", (flow.id, name, row.task)
                    )
        for name, row in rows:
            flow.plan.start(name, row.task)
        return [(name, self._consumer.begin(row)) for name, row in rows]

    def _take(self, flow: _Flow, name: str, handle: TaskHandle, ending: Ending) -> Ending | None:
        """A task has ended; the workflow's own end, where that decides it."""
        if ending.succeeded:
            flow.plan.finish(name, handle.id, ending)
            return None
        producer = flow.plan.rerun(name, ending.lost) if ending.lost else None
        if producer is not None and flow.plan.reruns.get(producer, 0) <= RERUNS_MAX:
            _log.info("workflow_rerun", task=producer, reader=name, reason=ending.text)
            return None
        flow.plan.running.pop(name, None)
        if flow.cancel_wanted.is_set():
            return Ending("CANCELED", "cancelled by its owner")
        return Ending(ending.state, f"task {name!r} ended {ending.state}: {ending.text}")

    async def _follow(
        self,
        flow: _Flow,
        name: str,
        handle: TaskHandle,
        send: "trio.MemorySendChannel[tuple[str, TaskHandle, Ending]]",
    ) -> None:
        async for event in handle.events():
            flow.feed.append(WorkflowEvent(name, handle.id, event))
        await send.send((name, handle, await handle.wait()))

    async def _cancel_all(self, flow: _Flow) -> None:
        await flow.cancel_wanted.wait()
        flow.enter("CANCELING", "cancelled by its owner")
        for task in flow.plan.running.values():
            self._consumer.cancel(task)

    def _forget_between(self, flow: _Flow) -> None:
        sinks = set(flow.plan.sinks())
        for name, done in flow.plan.done.items():
            if name not in sinks:
                self._consumer.forget_outputs(self._consumer.handle(done.task).live)

    async def result(self, flow: _Flow) -> WorkflowResult:
        """See `WorkflowHandle.result`."""
        await flow.ended.wait()
        if flow.state != "COMPLETE":
            raise TaskFailed(
                f"workflow {flow.definition.name!r} ended {flow.state}" + f": {flow.text}" * bool(flow.text)
            )
        outputs: list[NamedOutput] = []
        for name in flow.plan.sinks():
            live = self._consumer.handle(flow.plan.done[name].task).live
            await self._consumer.fetch_outputs(live)
            assert live.ending is not None
            outputs += [NamedOutput(name, output) for output in live.ending.outputs]
        receipts = (
            self._consumer.receipt_of(self._consumer.handle(done.task).live)
            for done in flow.plan.done.values()
        )
        return WorkflowResult(flow.id, tuple(outputs), tuple(each for each in receipts if each is not None))


class WorkflowHandle:
    """One workflow: follow it, wait for it, cancel it."""

    def __init__(self, workflows: Workflows, flow: _Flow) -> None:
        self._workflows = workflows
        self._flow = flow

    @property
    def id(self) -> bytes:
        return self._flow.id

    @property
    def name(self) -> str:
        return self._flow.definition.name

    @property
    def state(self) -> State:
        return self._flow.state

    @property
    def text(self) -> str:
        """Why it is in that state, where there is more to say."""
        return self._flow.text

    @property
    def submitted_ms(self) -> int:
        return self._flow.submitted_ms

    def tasks(self) -> dict[str, TaskHandle | None]:
        """Every task by name, None for one that was not submitted yet."""
        plan = self._flow.plan
        known = {**plan.running, **{name: done.task for name, done in plan.done.items()}}
        consumer = self._workflows._consumer
        return {
            task.name: consumer.handle(known[task.name]) if task.name in known else None
            for task in self._flow.definition.tasks
        }

    async def events(self, *, follow: bool = True) -> AsyncIterator[WorkflowEvent]:
        """Events of all tasks since this node started to tell them (the newest 4000), then those that come."""
        after = 0
        while True:
            if follow:
                found, after = await self._flow.feed.read(after)
            else:
                found, after = self._flow.feed.read_nowait(after)
            if not found:
                return
            for event in found:
                yield event

    async def wait(self) -> State:
        """Wait for the end, whatever it is."""
        await self._flow.ended.wait()
        return self._flow.state

    async def result(self) -> WorkflowResult:
        """Wait for the end and bring the outputs of the last tasks here. Raises `TaskFailed` or `StorageFull`."""
        return await self._workflows.result(self._flow)

    async def cancel(self) -> None:
        """Ask for an early end. Returns at once, see `wait`."""
        self._workflows.cancel(self.id)
