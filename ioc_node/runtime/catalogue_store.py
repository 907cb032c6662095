"""The catalogues of all providers, as a core node holds them, in a database of their own.

Entries don't stay in memory: the catalogue puts them here and reads them back. What is put waits in memory for the
next save, which writes all that waits in one transaction, in a thread with its own connection: the event loop never
waits for the disk. A head is written with its entries, so that a crash at any moment leaves, of each provider, one
state that fits together.

What is read back is verified like everything from the network (head, chain, root): a provider whose rows don't fit
together any more is dropped here and fetched again from others.
"""

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import structlog
import trio

from ioc_node.core.by_slot import BySlot
from ioc_node.core.catalogue import Catalogue
from ioc_node.core.slots import SLOT_BITS
from ioc_node.runtime.pauses import run_with_pauses
from ioc_node.runtime.store import Store
from ioc_wire import limits
from ioc_wire.codec import decode, encode
from ioc_wire.errors import WireError
from ioc_wire.gossip import HeadNews
from ioc_wire.identity import format_node_id, node_id_of

log = structlog.get_logger()

_SCHEMA: Final = (
    "CREATE TABLE providers (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE)",
    """CREATE TABLE heads (
         provider INTEGER NOT NULL, part INTEGER NOT NULL, news BLOB NOT NULL,
         PRIMARY KEY (provider, part)) WITHOUT ROWID""",
    "CREATE TABLE entries (id INTEGER PRIMARY KEY, entry BLOB NOT NULL)",
)
"""`entries.id` is `provider << SLOT_BITS | slot`."""
BATCH_ENTRIES: Final = 512
UNSAVED_BYTES_MAX: Final = 64 << 20
"""Nothing more is fetched while so much waits to be written."""
_INSERT: Final = """INSERT OR REPLACE INTO entries
    SELECT value->>0, substr(?1, value->>1, value->>2) FROM json_each(?2)"""
"""Hundreds of rows in one step of SQLite, which runs without the interpreter's lock: a thread that took the lock for
each row would wait for the event loop each time."""


_RANGE: Final = "SELECT id, entry FROM entries WHERE id BETWEEN ? AND ?"
_CHOSEN: Final = "SELECT id, entry FROM entries WHERE id IN (SELECT value FROM json_each(?))"


@dataclass(slots=True)
class _Unsaved:
    """Changes of one provider: slots from `floor` on go, then `entries` come."""

    entries: BySlot[bytes] = field(default_factory=BySlot)
    floor: int = 1 << SLOT_BITS
    size: int = 0
    """Bytes of the entries, at most."""

    def over(self, older: "_Unsaved") -> "_Unsaved":
        """Both in one, this one being the later."""
        both = BySlot({slot: data for slot, data in older.entries.items() if slot < self.floor})
        both.update(self.entries)
        return _Unsaved(both, min(self.floor, older.floor), self.size + older.size)


class CatalogueShelf:
    """The `EntryBook` of a core node, and where its heads survive a restart. Owns `store`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        store.require("catalogue", _SCHEMA)
        self._reader = store.open_reader()
        self._ids = {bytes(key): int(row) for row, key in store.fetch("SELECT id, key FROM providers")}
        self._unsaved: dict[bytes, _Unsaved] = {}
        self._writing: dict[bytes, _Unsaved] = {}
        self._bytes = 0
        self._saved = trio.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._reader.close()
        self._store.close()

    # -- the book

    def get_many(self, provider: bytes, slots: Sequence[int]) -> list[bytes]:
        """See `EntryBook`. Reads of a few hundred entries take about a millisecond."""
        found: dict[int, bytes] = {}
        missing = list(slots)
        for layer in (self._unsaved.get(provider), self._writing.get(provider)):
            if layer is not None:
                found.update((slot, layer.entries[slot]) for slot in missing if slot in layer.entries)
                missing = [slot for slot in missing if slot not in found and slot < layer.floor]
        if missing and (number := self._ids.get(provider)) is not None:
            found.update(self._read(number, missing))
        return [found[slot] for slot in slots if slot in found]

    def put(self, provider: bytes, entries: BySlot[bytes], count: int, *, size: int) -> None:
        """See `EntryBook`."""
        self._note(provider, _Unsaved(entries, count, size))

    def drop(self, provider: bytes) -> None:
        """See `EntryBook`."""
        self._note(provider, _Unsaved(floor=0))

    def _note(self, provider: bytes, change: _Unsaved) -> None:
        known = self._unsaved.get(provider)
        self._unsaved[provider] = change.over(known) if known is not None else change
        self._bytes += change.size

    def _read(self, number: int, slots: list[int]) -> Iterable[tuple[int, bytes]]:
        first = number << SLOT_BITS
        if slots[-1] - slots[0] == len(slots) - 1:
            rows = self._reader.fetch(_RANGE, (first + slots[0], first + slots[-1]))
        else:
            rows = self._reader.fetch(_CHOSEN, (json.dumps([first + slot for slot in slots]),))
        return ((row - first, bytes(entry)) for row, entry in rows)

    async def wait_for_room(self) -> None:
        """Return once less than UNSAVED_BYTES_MAX waits to be written."""
        while self._bytes > UNSAVED_BYTES_MAX:
            await self._saved.wait()

    # -- persistence

    async def load(self, catalogue: Catalogue, *, unix: float) -> None:
        """Take up everything that can still be believed; remove the rest."""
        for provider in list(self._ids):
            try:
                news = [decode(bytes(row), HeadNews) for row in self._heads(provider)]
                await self._restore(catalogue, provider, news, unix)
            except WireError as error:
                name = format_node_id(node_id_of(provider))[:11] if len(provider) == 32 else "?"
                log.warning("stored_catalogue_dropped", provider=name, error=str(error))
                catalogue.drop(provider)
                self.drop(provider)
        gone = {provider: () for provider in self._unsaved if catalogue.replica(provider) is None}
        await self.save(gone)

    async def _restore(
        self, catalogue: Catalogue, provider: bytes, news: list[HeadNews], unix: float
    ) -> None:
        if len(news) != 1:
            if news:
                catalogue.consider_fork(news, unix=unix)
            return
        catalogue.consider(news[0], unix=unix)
        intake = catalogue.begin(provider, stored=True)
        count = catalogue.slots_announced(provider)
        for start in range(0, count, BATCH_ENTRIES):
            slots = range(start, min(start + BATCH_ENTRIES, count))
            await run_with_pauses(intake.add(self.get_many(provider, slots)))
        target = await run_with_pauses(catalogue.close(intake, news[0].head, unix=unix))
        catalogue.commit(intake, target)

    def _heads(self, provider: bytes) -> list[bytes]:
        query = "SELECT news FROM heads WHERE provider = ? ORDER BY part LIMIT 2"
        return [news for (news,) in self._reader.fetch(query, (self._ids[provider],))]

    async def save(self, news: Mapping[bytes, Sequence[HeadNews]]) -> None:
        """Store the newest heads of these providers (none: it is forgotten) with their entries, in one transaction.

        Raises `StorageFull`; what waited waits on then.
        """
        self._writing = {provider: self._unsaved.pop(provider, _Unsaved()) for provider in news}
        self._bytes = sum(one.size for one in self._unsaved.values())
        for provider in news:
            if provider not in self._ids:
                self._ids[provider] = max(self._ids.values(), default=0) + 1
        heads = {provider: [encode(one) for one in newest] for provider, newest in news.items()}
        written = False
        try:
            await trio.to_thread.run_sync(functools.partial(self._write, heads, self._writing))
            written = True
        finally:
            changes, self._writing = self._writing, {}
            for provider, older in ({} if written else changes).items():
                newer = self._unsaved.pop(provider, _Unsaved())
                self._note(provider, newer.over(older))
            self._saved.set()
            self._saved = trio.Event()
        for change in changes.values():
            await run_with_pauses(change.entries.emptying())
        for provider, newest in heads.items():
            if not newest and provider not in self._unsaved:
                del self._ids[provider]

    def _write(self, heads: Mapping[bytes, list[bytes]], changes: Mapping[bytes, _Unsaved]) -> None:
        store = self._store
        with store.transaction():
            for provider, newest in heads.items():
                number = self._ids[provider]
                store.execute("DELETE FROM heads WHERE provider = ?", (number,))
                if not newest:
                    store.execute("DELETE FROM providers WHERE id = ?", (number,))
                    _delete_from(store, number, 0)
                    continue
                store.execute("INSERT OR IGNORE INTO providers VALUES (?, ?)", (number, provider))
                store.execute_many(
                    "INSERT INTO heads VALUES (?, ?, ?)",
                    [(number, part, one) for part, one in enumerate(newest)],
                )
                _delete_from(store, number, changes[provider].floor)
                _insert(store, number, changes[provider].entries)


def open_catalogue(path: Path) -> CatalogueShelf:
    """The catalogue's database at `path`, for a `with` block; raises as `Store` does."""
    return CatalogueShelf(Store(path))


def _delete_from(store: Store, number: int, slot: int) -> None:
    first, end = (number << SLOT_BITS) + slot, (number + 1) << SLOT_BITS
    if first < end:
        store.execute("DELETE FROM entries WHERE id >= ? AND id < ?", (first, end))


def _insert(store: Store, number: int, entries: Mapping[int, bytes]) -> None:
    slots = sorted(entries)
    for start in range(0, len(slots), BATCH_ENTRIES):
        batch = slots[start : start + BATCH_ENTRIES]
        rows, at = [], 1
        for slot in batch:
            rows.append(((number << SLOT_BITS) + slot, at, len(entries[slot])))
            at += len(entries[slot])
        store.execute(_INSERT, (b"".join(entries[slot] for slot in batch), json.dumps(rows)))


assert BATCH_ENTRIES <= limits.PAGE_ENTRIES_MAX
