"""Catalogues in the node's database: what a core node holds of all providers, and what a provider has of its own.

What is read back is verified like everything from the network (head, chain, root): a provider whose rows don't fit
together any more is dropped here and fetched again from others.
"""

from collections.abc import Iterable, Mapping
from typing import Final

import structlog
import trio

from ioc_node.core.catalogue import Catalogue
from ioc_node.core.own_catalogue import Commit, OwnCatalogue
from ioc_node.runtime.store import Store
from ioc_wire.codec import decode, encode
from ioc_wire.errors import WireError
from ioc_wire.gossip import HeadNews
from ioc_wire.identity import format_node_id, node_id_of
from ioc_wire.signed import Signed

log = structlog.get_logger()

_SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS catalogue_heads (
         provider BLOB NOT NULL, part INTEGER NOT NULL, news BLOB NOT NULL,
         PRIMARY KEY (provider, part)) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS catalogue_entries (
         provider BLOB NOT NULL, slot INTEGER NOT NULL, entry BLOB NOT NULL,
         PRIMARY KEY (provider, slot)) WITHOUT ROWID""",
)
_OWN: Final = b"own"
"""Stands for this node's own log in the column `provider`, whose other values are keys of 32 bytes."""


class CatalogueShelf:
    """Stores one provider per transaction, so that head and entries always belong together."""

    def __init__(self, store: Store) -> None:
        self._store = store
        store.require("catalogue", _SCHEMA)

    async def load(self, catalogue: Catalogue, *, unix: float) -> None:
        """Take up everything that can still be believed; remove the rest."""
        for (provider,) in self._store.fetch(
            "SELECT DISTINCT provider FROM catalogue_heads WHERE provider != ?", (_OWN,)
        ):
            await trio.lowlevel.checkpoint()
            try:
                news = [decode(bytes(row), HeadNews) for row in self._heads(provider)]
                catalogue.restore(news, self._entries(provider), unix=unix)
            except WireError as error:
                name = format_node_id(node_id_of(provider))[:11] if len(provider) == 32 else "?"
                log.warning("stored_catalogue_dropped", provider=name, error=str(error))
                self._remove(provider)

    async def save(self, catalogue: Catalogue, changes: Mapping[bytes, Iterable[int] | None]) -> None:
        """Store what `catalogue` holds now of these providers: the entries in these slots, all for None."""
        for provider, slots in changes.items():
            await trio.lowlevel.checkpoint()
            replica = catalogue.replica(provider)
            news = replica.news() if replica is not None else ()
            if replica is None or not news:
                self._remove(provider)
                continue
            count = len(replica.entries)
            chosen = range(count) if slots is None else [slot for slot in slots if slot < count]
            self._write(
                provider,
                [encode(one) for one in news],
                [(slot, replica.entries[slot]) for slot in chosen],
                count,
            )

    async def save_own(self, own: OwnCatalogue, commit: Commit) -> None:
        """Store the provider's own log as of `commit`."""
        await trio.lowlevel.checkpoint()
        self._write(
            _OWN, [encode(commit.head)], [(slot, own.entry(slot)) for slot in commit.slots], own.slots
        )

    def load_own(self, own: OwnCatalogue) -> bool:
        """Take up the provider's own log; False, and begin a new one, where there is none that fits together."""
        try:
            for row in self._heads(_OWN):
                own.restore(decode(bytes(row), Signed), self._entries(_OWN))
                return True
        except WireError as error:
            log.warning("own_catalogue_dropped", error=str(error))
            self._remove(_OWN)
        return False

    def _heads(self, provider: bytes) -> list[bytes]:
        query = "SELECT news FROM catalogue_heads WHERE provider = ? ORDER BY part LIMIT 2"
        return [news for (news,) in self._store.fetch(query, (provider,))]

    def _entries(self, provider: bytes) -> list[bytes]:
        query = "SELECT entry FROM catalogue_entries WHERE provider = ? ORDER BY slot"
        return [bytes(entry) for (entry,) in self._store.fetch(query, (provider,))]

    def _remove(self, provider: bytes) -> None:
        with self._store.transaction():
            self._store.execute("DELETE FROM catalogue_heads WHERE provider = ?", (provider,))
            self._store.execute("DELETE FROM catalogue_entries WHERE provider = ?", (provider,))

    def _write(
        self, provider: bytes, news: list[bytes], entries: list[tuple[int, bytes]], count: int
    ) -> None:
        with self._store.transaction():
            self._store.execute("DELETE FROM catalogue_heads WHERE provider = ?", (provider,))
            self._store.execute_many(
                "INSERT INTO catalogue_heads VALUES (?, ?, ?)",
                [(provider, part, one) for part, one in enumerate(news)],
            )
            self._store.execute_many(
                "INSERT OR REPLACE INTO catalogue_entries VALUES (?, ?, ?)",
                [(provider, slot, entry) for slot, entry in entries],
            )
            self._store.execute(
                "DELETE FROM catalogue_entries WHERE provider = ? AND slot >= ?", (provider, count)
            )
