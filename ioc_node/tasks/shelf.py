"""The provider's journal: orders it has taken, and how they ended."""

from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from ioc_node.runtime.store import Store
from ioc_wire.codec import decode, encode
from ioc_wire.signed import Signed
from ioc_wire.tasks import State, TaskEvent

Phase = Literal["running", "ended", "settled"]

_SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS provided (
         task BLOB NOT NULL, attempt INTEGER NOT NULL, owner BLOB NOT NULL, lease BLOB NOT NULL, cid TEXT NOT NULL,
         name TEXT NOT NULL, phase TEXT NOT NULL, state TEXT NOT NULL, started_ms INTEGER NOT NULL, ended_ms INTEGER,
         last_event BLOB, usage BLOB, PRIMARY KEY (task, attempt)) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS provided_phase ON provided (phase, ended_ms)",
    "CREATE INDEX IF NOT EXISTS provided_started ON provided (started_ms)",
    """CREATE TABLE IF NOT EXISTS provided_outputs (
         task BLOB NOT NULL, attempt INTEGER NOT NULL, blob BLOB NOT NULL, PRIMARY KEY (task, attempt, blob))
         WITHOUT ROWID""",
)
_COLUMNS: Final = (
    "task, attempt, owner, lease, cid, name, phase, state, started_ms, ended_ms, last_event, usage"
)


@dataclass(frozen=True)
class ProvidedRow:
    """One attempt that this node took on for `owner` (a public key)."""

    task: bytes
    attempt: int
    owner: bytes
    lease: bytes
    cid: str
    name: str
    phase: Phase
    state: State
    started_ms: int
    ended_ms: int | None = None
    last_event: TaskEvent | None = None
    usage: Signed | None = None


class Shelf:
    """Tables of the provider's side in the node's database."""

    def __init__(self, store: Store) -> None:
        self._store = store
        store.require("provided", _SCHEMA)

    def add(self, row: ProvidedRow) -> None:
        """An order was taken. Joins a transaction that is open."""
        self._store.execute(
            "INSERT INTO provided (task, attempt, owner, lease, cid, name, phase, state, started_ms)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                row.task,
                row.attempt,
                row.owner,
                row.lease,
                row.cid,
                row.name,
                row.phase,
                row.state,
                row.started_ms,
            ),
        )

    def end(self, task: bytes, attempt: int, last: TaskEvent, ended_ms: int) -> None:
        """Write how an attempt ended, with its outputs. Joins a transaction that is open."""
        usage = None if last.usage is None else encode(last.usage)
        self._store.execute(
            "UPDATE provided SET phase = 'ended', state = ?, ended_ms = ?, last_event = ?, usage = ?"
            " WHERE task = ? AND attempt = ?",
            (last.state, ended_ms, encode(last), usage, task, attempt),
        )
        for output in last.outputs:
            self._store.execute(
                "INSERT OR IGNORE INTO provided_outputs VALUES (?, ?, ?)", (task, attempt, output.blob)
            )

    def settle(self, task: bytes, attempt: int) -> None:
        self._store.execute(
            "UPDATE provided SET phase = 'settled' WHERE task = ? AND attempt = ?", (task, attempt)
        )

    def row(self, task: bytes, attempt: int) -> ProvidedRow | None:
        query = f"SELECT {_COLUMNS} FROM provided WHERE task = ? AND attempt = ?"  # noqa: S608
        found = self._store.fetch(query, (task, attempt))
        return _row(found[0]) if found else None

    def attempts(self, task: bytes) -> list[ProvidedRow]:
        """All attempts of a task that were made here."""
        query = f"SELECT {_COLUMNS} FROM provided WHERE task = ? ORDER BY attempt"  # noqa: S608
        return [_row(found) for found in self._store.fetch(query, (task,))]

    def running(self) -> list[ProvidedRow]:
        """Attempts without an end; after a start of the node: those that its last stop interrupted."""
        query = f"SELECT {_COLUMNS} FROM provided WHERE phase = 'running'"  # noqa: S608
        return [_row(found) for found in self._store.fetch(query)]

    def latest(self, limit: int) -> list[ProvidedRow]:
        """The newest `limit` attempts, newest first."""
        query = f"SELECT {_COLUMNS} FROM provided ORDER BY started_ms DESC LIMIT ?"  # noqa: S608
        return [_row(found) for found in self._store.fetch(query, (limit,))]

    def has_output(self, task: bytes, owner: bytes, blob: bytes) -> bool:
        """Whether `blob` is an output of a task that `owner` had run here."""
        return bool(
            self._store.fetch(
                "SELECT 1 FROM provided_outputs JOIN provided USING (task, attempt)"
                " WHERE task = ? AND blob = ? AND owner = ?",
                (task, blob, owner),
            )
        )

    def forget_before(self, ended_ms: int) -> int:
        """Drop attempts that ended before. Returns how many."""
        old = self._store.fetch(
            "SELECT task, attempt FROM provided WHERE phase != 'running' AND ended_ms < ?", (ended_ms,)
        )
        with self._store.transaction():
            for key in old:
                self._store.execute("DELETE FROM provided_outputs WHERE task = ? AND attempt = ?", key)
                self._store.execute("DELETE FROM provided WHERE task = ? AND attempt = ?", key)
        return len(old)


def _row(found: tuple[Any, ...]) -> ProvidedRow:
    row = ProvidedRow(*found)
    return replace(
        row,
        last_event=None if found[10] is None else decode(found[10], TaskEvent),
        usage=None if found[11] is None else decode(found[11], Signed),
    )
