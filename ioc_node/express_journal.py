"""Shipments in the node's database: what this node sends, and what it takes from others."""

from dataclasses import dataclass
from typing import Final, Literal

from ioc_node.runtime.store import Store
from ioc_wire.codec import decode, encode
from ioc_wire.express import ShipmentOrder
from ioc_wire.market import Contact
from ioc_wire.signed import Signed, verify

Side = Literal["sends", "takes"]
State = Literal["offered", "moving", "delivered", "late", "failed", "disputed", "cancelled"]
ENDED_KEPT_MAX: Final = 10_000
"""Shipments that are over and still listed; receipts stay in the ledger."""

_SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS shipments (
         id BLOB PRIMARY KEY, side TEXT NOT NULL, peer BLOB NOT NULL, signed_order BLOB NOT NULL, terms BLOB,
         state TEXT NOT NULL, had INTEGER NOT NULL, bytes_done INTEGER NOT NULL, usage BLOB, receipt BLOB,
         text TEXT NOT NULL, made_ms INTEGER NOT NULL, ended_ms INTEGER) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS shipments_ended ON shipments (ended_ms)",
)
_COLUMNS: Final = (
    "id, side, peer, signed_order, terms, state, had, bytes_done, usage, receipt, text, made_ms, ended_ms"
)


@dataclass(frozen=True)
class Shipment:
    """One row. `peer` is the other side; `had`: bytes of it that the receiver had before; `bytes_done`: bytes that it
    fetched and verified since."""

    id: bytes
    side: Side
    peer: Contact
    signed: Signed
    order: ShipmentOrder
    terms: Signed | None
    state: State
    had: int
    bytes_done: int
    usage: Signed | None
    receipt: bytes | None
    text: str
    made_ms: int
    ended_ms: int | None


class ExpressJournal:
    """The table."""

    def __init__(self, store: Store) -> None:
        store.require("shipments", _SCHEMA)
        self._store = store

    def add(
        self,
        id: bytes,
        side: Side,
        peer: Contact,
        signed: Signed,
        terms: Signed | None,
        *,
        had: int,
        made_ms: int,
    ) -> None:
        """Write a shipment down before anything is promised."""
        state: State = "offered" if terms is None else "moving"
        row = (id, side, encode(peer), encode(signed), _encoded(terms), state, had, made_ms)
        with self._store.transaction(durable=True):
            self._store.execute(
                f"INSERT INTO shipments ({_COLUMNS})"  # noqa: S608
                " VALUES (?, ?, ?, ?, ?, ?, ?, 0, NULL, NULL, '', ?, NULL)",
                row,
            )
            self._store.execute(
                "DELETE FROM shipments WHERE id IN (SELECT id FROM shipments WHERE ended_ms IS NOT NULL"
                " ORDER BY ended_ms DESC LIMIT -1 OFFSET ?)",
                (ENDED_KEPT_MAX,),
            )

    def drop(self, id: bytes) -> None:
        """Forget an offer that was not taken."""
        self._store.execute("DELETE FROM shipments WHERE id = ? AND state = 'offered'", (id,))

    def accepted(self, id: bytes, terms: Signed) -> None:
        """The receiver has given its terms."""
        with self._store.transaction(durable=True):
            self._store.execute(
                "UPDATE shipments SET terms = ?, state = 'moving' WHERE id = ? AND state = 'offered'",
                (encode(terms), id),
            )

    def moved(self, id: bytes, size: int) -> None:
        """So many bytes more were verified and kept."""
        self._store.execute("UPDATE shipments SET bytes_done = bytes_done + ? WHERE id = ?", (size, id))

    def measured(self, id: bytes, usage: Signed, size: int) -> None:
        """All is here: this is what it comes to. It is written down before it is told."""
        with self._store.transaction(durable=True):
            self._store.execute(
                "UPDATE shipments SET usage = ?, bytes_done = ? WHERE id = ?", (encode(usage), size, id)
            )

    def end(
        self,
        id: bytes,
        state: State,
        now_ms: int,
        *,
        text: str = "",
        receipt: bytes | None = None,
        size: int | None = None,
    ) -> None:
        """It is over; one that was over stays as it was. Joins a transaction."""
        self._store.execute(
            "UPDATE shipments SET state = ?, ended_ms = ?, text = ?, receipt = ?, bytes_done = coalesce(?, bytes_done)"
            " WHERE id = ? AND ended_ms IS NULL",
            (state, now_ms, text[:200], receipt, size, id),
        )

    def note(self, id: bytes, text: str) -> None:
        """Why it does not go on just now."""
        self._store.execute(
            "UPDATE shipments SET text = ? WHERE id = ? AND text != ?", (text[:200], id, text[:200])
        )

    def row(self, id: bytes) -> Shipment | None:
        found = self._store.fetch(f"SELECT {_COLUMNS} FROM shipments WHERE id = ?", (id,))  # noqa: S608
        return _shipment(found[0]) if found else None

    def open(self, side: Side) -> list[Shipment]:
        """Those that are not over."""
        query = f"SELECT {_COLUMNS} FROM shipments WHERE side = ? AND ended_ms IS NULL ORDER BY made_ms"  # noqa: S608
        return [_shipment(row) for row in self._store.fetch(query, (side,))]

    def latest(self, limit: int) -> list[Shipment]:
        """The newest first."""
        query = f"SELECT {_COLUMNS} FROM shipments ORDER BY made_ms DESC LIMIT ?"  # noqa: S608
        return [_shipment(row) for row in self._store.fetch(query, (limit,))]


def _encoded(signed: Signed | None) -> bytes | None:
    return None if signed is None else encode(signed)


def _decoded(data: bytes | None) -> Signed | None:
    return None if data is None else decode(data, Signed)


def _shipment(row: tuple) -> Shipment:  # type: ignore[type-arg]
    id, side, peer, order, terms, state, had, done, usage, receipt, text, made_ms, ended_ms = row
    signed = decode(order, Signed)
    return Shipment(
        id,
        side,
        decode(peer, Contact),
        signed,
        verify(signed, ShipmentOrder),
        _decoded(terms),
        state,
        had,
        done,
        _decoded(usage),
        receipt,
        text,
        made_ms,
        ended_ms,
    )
