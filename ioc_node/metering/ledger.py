"""The ledger: receipts as both sides keep them, each once."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ioc_node.metering.receipts import KeptReceipt, open_receipt
from ioc_node.runtime.store import Store
from ioc_wire.codec import decode, encode
from ioc_wire.errors import BadReceipt, WireError
from ioc_wire.metering import UsageRecord
from ioc_wire.signed import Signed

PAGE_ROWS: Final = 256

_SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS receipts (
         id BLOB PRIMARY KEY, task BLOB NOT NULL, attempt INTEGER NOT NULL, provider BLOB NOT NULL,
         consumer BLOB NOT NULL, ended_ms INTEGER NOT NULL, wall_ms INTEGER NOT NULL, core_ms INTEGER NOT NULL,
         mib_ms INTEGER NOT NULL, bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL,
         cost_micro INTEGER NOT NULL, signed BLOB NOT NULL) WITHOUT ROWID""",
    "CREATE UNIQUE INDEX IF NOT EXISTS receipts_attempt ON receipts (task, attempt, provider)",
    "CREATE INDEX IF NOT EXISTS receipts_ended ON receipts (ended_ms, id)",
)
_SUMS: Final = "count(*), " + ", ".join(
    f"coalesce(sum({name}), 0)"
    for name in ("wall_ms", "core_ms", "mib_ms", "bytes_in", "bytes_out", "cost_micro")
)


@dataclass(frozen=True)
class Totals:
    """Sums over receipts, in the units of a usage record."""

    receipts: int
    wall_ms: int
    core_ms: int
    mib_ms: int
    bytes_in: int
    bytes_out: int
    cost_micro: int


@dataclass(frozen=True)
class Checked:
    """One receipt verified again: `usage` where both signatures hold, else `error` says what is wrong with it."""

    id: bytes
    usage: UsageRecord | None
    error: WireError | None = None


class Ledger:
    """Receipts in the node's database, found by ID, task or time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        store.require("receipts", _SCHEMA)

    def add(self, kept: KeptReceipt) -> bool:
        """Store a checked receipt; False where it was there. Joins a transaction that is open.

        Raises `BadReceipt` for a second, different receipt for the same attempt.
        """
        usage = kept.usage
        known = self._store.fetch(
            "SELECT id FROM receipts WHERE id = ? OR (task = ? AND attempt = ? AND provider = ?)",
            (kept.id, usage.task, usage.attempt, usage.provider),
        )
        if known:
            if known[0][0] != kept.id:
                raise BadReceipt(f"attempt {usage.attempt} of this task has another receipt already")
            return False
        self._store.execute(
            "INSERT INTO receipts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                kept.id,
                usage.task,
                usage.attempt,
                usage.provider,
                usage.consumer,
                usage.ended_ms,
                usage.wall_ms,
                usage.core_ms,
                usage.mib_ms,
                usage.bytes_in,
                usage.bytes_out,
                usage.cost_micro,
                encode(kept.signed),
            ),
        )
        return True

    def receipt(self, id: bytes) -> KeptReceipt | None:
        """One receipt, verified. Raises `BadReceipt` or another wire error where it was tampered with."""
        found = self._store.fetch("SELECT signed FROM receipts WHERE id = ?", (id,))
        return open_receipt(decode(found[0][0], Signed)) if found else None

    def receipts_of(self, task: bytes) -> list[KeptReceipt]:
        """Receipts for attempts of a task, first to last."""
        found = self._store.fetch("SELECT signed FROM receipts WHERE task = ? ORDER BY attempt", (task,))
        return [open_receipt(decode(signed, Signed)) for (signed,) in found]

    def latest(self, limit: int) -> list[Checked]:
        """The newest `limit` receipts, newest first, each verified."""
        found = self._store.fetch(
            "SELECT id, signed, attempt, core_ms, cost_micro FROM receipts ORDER BY ended_ms DESC, id DESC LIMIT ?",
            (limit,),
        )
        return [_check(id, signed, tuple(columns)) for id, signed, *columns in found]

    def totals(self, *, provider: bytes | None = None, consumer: bytes | None = None) -> Totals:
        """Sums over all receipts, or those of one provider or consumer."""
        (sums,) = self._store.fetch(
            f"SELECT {_SUMS} FROM receipts WHERE provider = coalesce(?, provider)"  # noqa: S608
            " AND consumer = coalesce(?, consumer)",
            (provider, consumer),
        )
        return Totals(*sums)

    def verify_all(self) -> Iterator[Checked]:
        """Every receipt with both its signatures checked again, oldest first. One takes about 0.5 ms: whoever
        goes through them on an event loop lets others in between."""
        return (_check(id, data, columns) for id, data, columns in self._all())

    def _all(self) -> Iterator[tuple[bytes, bytes, tuple[int, ...]]]:
        last: tuple[int, bytes] = (-1, b"")
        while True:
            page = self._store.fetch(
                "SELECT ended_ms, id, signed, attempt, core_ms, cost_micro FROM receipts"
                " WHERE (ended_ms, id) > (?, ?) ORDER BY ended_ms, id LIMIT ?",
                (*last, PAGE_ROWS),
            )
            if not page:
                return
            for ended_ms, id, signed, *columns in page:
                yield id, signed, tuple(columns)
                last = (ended_ms, id)


def _check(id: bytes, data: bytes, columns: tuple[int, ...]) -> Checked:
    try:
        kept = open_receipt(decode(data, Signed))
        if kept.id != id:
            raise BadReceipt("it is filed under another ID")
        if columns != (kept.usage.attempt, kept.usage.core_ms, kept.usage.cost_micro):
            raise BadReceipt("the figures beside it are not those that were signed")
    except WireError as error:
        return Checked(id, None, error)
    return Checked(id, kept.usage)
