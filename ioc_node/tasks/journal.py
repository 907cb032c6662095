"""The consumer's journal: every task, lease, event and pending message, written before anything is sent.

A restart reads it and continues: tasks that have not ended are told on from the attempt that they were in, and
errands (settlements, cancellations, leases to give back) are delivered until they were acknowledged.
"""

from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from ioc_node.runtime.store import Store
from ioc_node.tasks.story import Ending, Source, StoryEvent
from ioc_wire.codec import Message, decode, encode
from ioc_wire.market import Contact, Lease
from ioc_wire.messages import NODE_CODEC
from ioc_wire.signed import Signed
from ioc_wire.tasks import State

EVENTS_KEPT_MAX: Final = 1000
"""Events of one task that are kept; the oldest go first."""
EVENTS_DROPPED: Final = 64
FORGOTTEN_AT_ONCE: Final = 256
ERRANDS_MAX: Final = 100_000
"""Messages that wait for providers which cannot be reached; the oldest go first."""

AttemptPhase = Literal["leased", "started", "over"]

_SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS tasks (
         task BLOB PRIMARY KEY, name TEXT NOT NULL, definition BLOB NOT NULL, nonce BLOB NOT NULL,
         sources BLOB NOT NULL, workflow BLOB, submitted_ms INTEGER NOT NULL, state TEXT NOT NULL,
         text TEXT NOT NULL DEFAULT '', attempt INTEGER NOT NULL DEFAULT 0, canceling INTEGER NOT NULL DEFAULT 0,
         ended_ms INTEGER, ending BLOB, receipt BLOB) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS tasks_submitted ON tasks (submitted_ms)",
    "CREATE INDEX IF NOT EXISTS tasks_open ON tasks (submitted_ms) WHERE ended_ms IS NULL",
    """CREATE TABLE IF NOT EXISTS attempts (
         task BLOB NOT NULL, attempt INTEGER NOT NULL, provider BLOB NOT NULL, lease BLOB NOT NULL,
         phase TEXT NOT NULL, ordered_ms INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (task, attempt)) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS task_events (
         task BLOB NOT NULL, seq INTEGER NOT NULL, event BLOB NOT NULL, PRIMARY KEY (task, seq)) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS errands (
         id INTEGER PRIMARY KEY, provider BLOB NOT NULL, body BLOB NOT NULL, written_ms INTEGER NOT NULL)""",
    "CREATE INDEX IF NOT EXISTS errands_provider ON errands (provider, id)",
    "CREATE INDEX IF NOT EXISTS tasks_ended ON tasks (workflow, ended_ms) WHERE ended_ms IS NOT NULL",
)


@dataclass(frozen=True)
class TaskRow:
    """A task as the journal knows it. `definition` are the bytes that its ID covers."""

    task: bytes
    name: str
    definition: bytes
    nonce: bytes
    sources: tuple[Source, ...]
    workflow: bytes | None
    submitted_ms: int
    state: State = "QUEUED"
    text: str = ""
    attempt: int = 0
    canceling: bool = False
    ended_ms: int | None = None
    ending: Ending | None = None
    receipt: bytes | None = None


@dataclass(frozen=True)
class AttemptRow:
    """One attempt: where it was placed, under which lease, and how far it came."""

    task: bytes
    attempt: int
    provider: Contact
    signed_lease: Signed
    lease: Lease
    phase: AttemptPhase
    ordered_ms: int = 0


@dataclass(frozen=True)
class Errand:
    """A message that a provider must get sooner or later."""

    id: int
    provider: Contact
    message: Message
    written_ms: int


_COLUMNS: Final = (
    "task, name, definition, nonce, sources, workflow, submitted_ms, state, text, attempt, canceling, ended_ms, ending,"
    " receipt"
)


class Journal:
    """Tables of the consumer's side in the node's database."""

    def __init__(self, store: Store) -> None:
        self._store = store
        store.require("tasks", _SCHEMA)

    # -- tasks

    def add(self, row: TaskRow) -> None:
        """Write a new task. Joins a transaction that is open, which should be durable."""
        self._store.execute(
            "INSERT INTO tasks (task, name, definition, nonce, sources, workflow, submitted_ms, state)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                row.task,
                row.name,
                row.definition,
                row.nonce,
                encode(row.sources),
                row.workflow,
                row.submitted_ms,
                row.state,
            ),
        )

    def row(self, task: bytes) -> TaskRow | None:
        found = self._store.fetch(f"SELECT {_COLUMNS} FROM tasks WHERE task = ?", (task,))  # noqa: S608
        return _row(found[0]) if found else None

    def unfinished(self) -> list[TaskRow]:
        """Tasks that have not ended, oldest first."""
        query = f"SELECT {_COLUMNS} FROM tasks WHERE ended_ms IS NULL ORDER BY submitted_ms"  # noqa: S608
        return [_row(found) for found in self._store.fetch(query)]

    def latest(self, limit: int) -> list[TaskRow]:
        """The newest `limit` tasks, newest first."""
        query = f"SELECT {_COLUMNS} FROM tasks ORDER BY submitted_ms DESC LIMIT ?"  # noqa: S608
        return [_row(found) for found in self._store.fetch(query, (limit,))]

    def set_state(self, task: bytes, state: State, text: str) -> None:
        """Only of a task that has not ended: an end is for good."""
        self._store.execute(
            "UPDATE tasks SET state = ?, text = ? WHERE task = ? AND ended_ms IS NULL", (state, text, task)
        )

    def set_canceling(self, task: bytes) -> None:
        self._store.execute("UPDATE tasks SET canceling = 1 WHERE task = ? AND ended_ms IS NULL", (task,))

    def end(self, task: bytes, ending: Ending, ended_ms: int, receipt: bytes | None) -> bool:
        """Write how a task ended; False where it had ended before. The caller brings the transaction."""
        return bool(
            self._store.fetch(
                "UPDATE tasks SET state = ?, text = ?, ended_ms = ?, ending = ?, receipt = ?"
                " WHERE task = ? AND ended_ms IS NULL RETURNING 1",
                (ending.state, ending.text, ended_ms, encode(ending), receipt, task),
            )
        )

    def forget_before(self, ended_ms: int, workflow: bytes | None = None) -> list[bytes]:
        """Drop tasks that ended before, with their attempts and events: single ones, or those of one workflow. Returns
        which, at most `FORGOTTEN_AT_ONCE`. Receipts stay, and so do errands that wait."""
        found = self._store.fetch(
            "SELECT task FROM tasks WHERE workflow IS ? AND ended_ms < ? LIMIT ?",
            (workflow, ended_ms, FORGOTTEN_AT_ONCE),
        )
        with self._store.transaction():
            for row in found:
                for table in ("tasks", "attempts", "task_events"):
                    self._store.execute(f"DELETE FROM {table} WHERE task = ?", row)  # noqa: S608
        return [task for (task,) in found]

    # -- attempts

    def add_attempt(self, provider: Contact, signed: Signed, lease: Lease) -> None:
        """A lease was granted; from now on this is the task's attempt."""
        with self._store.transaction():
            self._store.execute(
                "INSERT OR REPLACE INTO attempts (task, attempt, provider, lease, phase) VALUES (?, ?, ?, ?, 'leased')",
                (lease.task, lease.attempt, encode(provider), encode(signed)),
            )
            self._store.execute("UPDATE tasks SET attempt = ? WHERE task = ?", (lease.attempt, lease.task))

    def set_phase(self, task: bytes, attempt: int, phase: AttemptPhase) -> None:
        self._store.execute(
            "UPDATE attempts SET phase = ? WHERE task = ? AND attempt = ?", (phase, task, attempt)
        )

    def set_ordered(self, task: bytes, attempt: int, ordered_ms: int) -> None:
        """Written before the order is sent, so that after a crash the provider is asked about it."""
        self._store.execute(
            "UPDATE attempts SET phase = 'started', ordered_ms = ? WHERE task = ? AND attempt = ?",
            (ordered_ms, task, attempt),
        )

    def attempts(self, task: bytes) -> list[AttemptRow]:
        """All attempts of a task, first to last."""
        query = "SELECT task, attempt, provider, lease, phase, ordered_ms FROM attempts WHERE task = ? ORDER BY attempt"
        return [_attempt(*found) for found in self._store.fetch(query, (task,))]

    def leases(self) -> list[AttemptRow]:
        """Attempts whose lease was neither used up nor given back: the consumer's side of the lease journal."""
        query = (
            "SELECT task, attempt, provider, lease, phase, ordered_ms FROM attempts WHERE phase != 'over'"
            " ORDER BY task, attempt"
        )
        return [_attempt(*found) for found in self._store.fetch(query)]

    # -- events

    def add_event(self, task: bytes, event: StoryEvent) -> None:
        """Append; beyond `EVENTS_KEPT_MAX` the oldest are dropped, some at a time."""
        seq = event.event.seq
        self._store.execute("INSERT OR REPLACE INTO task_events VALUES (?, ?, ?)", (task, seq, encode(event)))
        if seq > EVENTS_KEPT_MAX and seq % EVENTS_DROPPED == 0:
            self._store.execute(
                "DELETE FROM task_events WHERE task = ? AND seq <= ?", (task, seq - EVENTS_KEPT_MAX)
            )

    def events(self, task: bytes) -> list[StoryEvent]:
        query = "SELECT event FROM task_events WHERE task = ? ORDER BY seq"
        return [decode(event, StoryEvent) for (event,) in self._store.fetch(query, (task,))]

    # -- errands

    def add_errand(self, provider: Contact, message: Message, written_ms: int) -> None:
        with self._store.transaction():
            self._store.execute(
                "INSERT INTO errands (provider, body, written_ms) VALUES (?, ?, ?)",
                (encode(provider), NODE_CODEC.encode(message), written_ms),
            )
            self._store.execute(
                "DELETE FROM errands WHERE id <= (SELECT max(id) FROM errands) - ?", (ERRANDS_MAX,)
            )

    def errand_providers(self) -> list[Contact]:
        """Providers that something waits for."""
        found = self._store.fetch("SELECT DISTINCT provider FROM errands")
        return [decode(provider, Contact) for (provider,) in found]

    def errands(self, provider: Contact, limit: int) -> list[Errand]:
        """The oldest `limit` errands to one provider."""
        query = "SELECT id, body, written_ms FROM errands WHERE provider = ? ORDER BY id LIMIT ?"
        return [
            Errand(id, provider, NODE_CODEC.decode(body), written_ms)
            for id, body, written_ms in self._store.fetch(query, (encode(provider), limit))
        ]

    def drop_errand(self, id: int) -> None:
        self._store.execute("DELETE FROM errands WHERE id = ?", (id,))


def _row(found: tuple[Any, ...]) -> TaskRow:
    row = TaskRow(*found)
    return replace(
        row,
        sources=decode(found[4], tuple[Source, ...]),
        canceling=bool(row.canceling),
        ending=None if found[12] is None else decode(found[12], Ending),
    )


def _attempt(
    task: bytes, attempt: int, provider: bytes, lease: bytes, phase: AttemptPhase, ordered_ms: int
) -> AttemptRow:
    signed = decode(lease, Signed)  # verified before it was written down
    return AttemptRow(
        task, attempt, decode(provider, Contact), signed, decode(signed.payload, Lease), phase, ordered_ms
    )
