"""The records that a DHT server holds for others, in the node's database: a restart must not lose them.

Only what the DHT has verified and kept comes here. It is verified again when it is read back, so a row that was
tampered with is dropped there.
"""

import time
from collections.abc import Callable, Iterator
from typing import Final

import structlog
import trio

from ioc_node.core.events import Chain, RecordStored
from ioc_node.runtime.dht import Change
from ioc_node.runtime.store import Store
from ioc_wire.authority import chain_hash
from ioc_wire.codec import decode, encode
from ioc_wire.errors import WireError
from ioc_wire.records import named_payload
from ioc_wire.signed import Signed

PAGE_ROWS: Final = 256

_SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS dht_records (
         key BLOB PRIMARY KEY, record BLOB NOT NULL, chain BLOB, expires INTEGER NOT NULL) WITHOUT ROWID""",
    "CREATE TABLE IF NOT EXISTS dht_chains (name BLOB PRIMARY KEY, chain BLOB NOT NULL) WITHOUT ROWID",
)
_log = structlog.get_logger()


class RecordShelf:
    """A `RecordKeeper` in SQLite. A chain is stored once, however many records rest on it."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        store.require("dht_records", _SCHEMA)

    def load(self) -> Iterator[tuple[Signed, Chain]]:
        """What was kept and has not expired, page by page."""
        with self._store.transaction():
            self._store.execute("DELETE FROM dht_records WHERE expires < ?", (int(self._clock()),))
            self._store.execute(
                "DELETE FROM dht_chains WHERE name NOT IN (SELECT chain FROM dht_records WHERE chain IS NOT NULL)"
            )
        last = b""
        while page := self._store.fetch(
            "SELECT r.key, r.record, c.chain FROM dht_records r LEFT JOIN dht_chains c ON c.name = r.chain"
            " WHERE r.key > ? ORDER BY r.key LIMIT ?",
            (last, PAGE_ROWS),
        ):
            for key, record, chain in page:
                last = key
                try:
                    yield decode(record, Signed), () if chain is None else decode(chain, tuple[Signed, ...])
                except WireError as error:
                    _log.warning("stored_record_dropped", key=key.hex()[:16], error=str(error))
                    self._store.execute("DELETE FROM dht_records WHERE key = ?", (key,))

    async def save(self, changes: list[Change]) -> None:
        """Write what was stored and dropped, in order, all or none. Raises `StorageFull`."""
        await trio.lowlevel.checkpoint()
        with self._store.transaction():
            for change in changes:
                if isinstance(change, RecordStored):
                    self._put(change)
                else:
                    self._store.execute("DELETE FROM dht_records WHERE key = ?", (change.key,))

    def _put(self, change: RecordStored) -> None:
        name = chain_hash(change.chain) if change.chain else None
        expires = named_payload(change.record).expires
        if name is not None:
            self._store.execute(
                "INSERT OR IGNORE INTO dht_chains VALUES (?, ?)", (name, encode(tuple(change.chain)))
            )
        self._store.execute(
            "INSERT OR REPLACE INTO dht_records VALUES (?, ?, ?, ?)",
            (change.key, encode(change.record), name, expires),
        )
