"""A provider's own catalogue in the node's database: a head is stored, with its entries, before anybody sees it."""

from typing import Final

import structlog
import trio

from ioc_node.core.own_catalogue import Commit, OwnCatalogue
from ioc_node.runtime.store import Store
from ioc_wire.codec import decode, encode
from ioc_wire.errors import WireError
from ioc_wire.signed import Signed

log = structlog.get_logger()

_SCHEMA: Final = (
    """CREATE TABLE own_head (part INTEGER PRIMARY KEY CHECK (part = 0), head BLOB NOT NULL)""",
    """CREATE TABLE own_entries (slot INTEGER PRIMARY KEY, entry BLOB NOT NULL)""",
)


class OwnCatalogueShelf:
    """Stores one commit per transaction, so that head and entries always belong together."""

    def __init__(self, store: Store) -> None:
        self._store = store
        store.require("own_catalogue", _SCHEMA)

    async def save_own(self, own: OwnCatalogue, commit: Commit) -> None:
        """Store the log as of `commit`. Raises `StorageFull`."""
        await trio.lowlevel.checkpoint()
        with self._store.transaction():
            self._store.execute("INSERT OR REPLACE INTO own_head VALUES (0, ?)", (encode(commit.head),))
            self._store.execute_many(
                "INSERT OR REPLACE INTO own_entries VALUES (?, ?)",
                [(slot, own.entry(slot)) for slot in commit.slots],
            )
            self._store.execute("DELETE FROM own_entries WHERE slot >= ?", (own.slots,))

    def load_own(self, own: OwnCatalogue) -> bool:
        """Take the log up; False, and begin a new one, where there is none that fits together."""
        try:
            for (head,) in self._store.fetch("SELECT head FROM own_head"):
                rows = self._store.fetch("SELECT entry FROM own_entries ORDER BY slot")
                own.restore(decode(bytes(head), Signed), [bytes(entry) for (entry,) in rows])
                return True
        except WireError as error:
            log.warning("own_catalogue_dropped", error=str(error))
            with self._store.transaction():
                self._store.execute("DELETE FROM own_head")
                self._store.execute("DELETE FROM own_entries")
        return False
