"""A provider's own catalogue in the node's database: a head is stored, with its entries, before anybody sees it.

A large commit is stored in steps, each a transaction of its own. An entry is stored beside the one that it replaces,
under the `seq` of its head; the head itself comes last, and only then do the old entries go. Whatever is there when a
node starts again, the newest entry of each slot that is no newer than the stored head is the one that it commits to.
"""

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Final

import structlog
import trio

from ioc_node.core.own_catalogue import Commit, OwnCatalogue
from ioc_node.runtime.pauses import run_with_pauses
from ioc_node.runtime.store import Store
from ioc_wire.codec import decode, encode
from ioc_wire.errors import WireError
from ioc_wire.records import Head
from ioc_wire.signed import Signed, verify

log = structlog.get_logger()

STEP_ENTRIES: Final = 128
"""Entries stored between two pauses: about a millisecond."""
GROUP_ENTRIES: Final = 2048
"""Entries after which the database is brought up to its log."""

_SCHEMA: Final = (
    """CREATE TABLE own_head (part INTEGER PRIMARY KEY CHECK (part = 0), head BLOB NOT NULL)""",
    """CREATE TABLE own_entries (slot INTEGER PRIMARY KEY, entry BLOB NOT NULL)""",
    """CREATE TABLE own_log (slot INTEGER, seq INTEGER, entry BLOB NOT NULL, PRIMARY KEY (slot, seq))""",
    """INSERT INTO own_log SELECT slot, 0, entry FROM own_entries""",
    """DROP TABLE own_entries""",
)
_DROP_REPLACED: Final = """DELETE FROM own_log WHERE EXISTS (
    SELECT 1 FROM own_log AS new WHERE new.slot = own_log.slot AND new.seq > own_log.seq)"""


class OwnCatalogueShelf:
    """Head and entries always belong together."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._unsaved: tuple[int, ...] = ()
        """Slots of commits that were not stored to the end."""
        store.require("own_catalogue", _SCHEMA)

    async def save_own(self, commit: Commit) -> None:
        """Store the log as of `commit`. Raises `StorageFull`; what is missing then is stored with the next one."""
        missing = self._unsaved
        slots = self._unsaved = tuple(sorted({*missing, *commit.slots})) if missing else commit.slots
        groups = [slots[start : start + GROUP_ENTRIES] for start in range(0, len(slots), GROUP_ENTRIES)]
        await self._in_groups(groups, partial(self._put, commit))
        self._store.execute("INSERT OR REPLACE INTO own_head VALUES (0, ?)", (encode(commit.head),))
        self._unsaved = ()
        await self._in_groups(groups, partial(self._drop_before, commit.seq))

    async def _in_groups(
        self, groups: Sequence[Sequence[int]], change: Callable[[Sequence[int]], None]
    ) -> None:
        for number, group in enumerate(groups):
            await run_with_pauses(_by_page(group, change))
            if number:  # else SQLite would take the time for it in a step of this loop
                await trio.to_thread.run_sync(self._store.checkpoint)

    def _put(self, commit: Commit, slots: Sequence[int]) -> None:
        rows = [(slot, commit.seq, commit.log.entries[slot]) for slot in slots]
        self._store.execute_many("INSERT OR REPLACE INTO own_log VALUES (?, ?, ?)", rows)

    def _drop_before(self, seq: int, slots: Sequence[int]) -> None:
        self._store.execute_many(
            "DELETE FROM own_log WHERE slot = ? AND seq < ?", [(slot, seq) for slot in slots]
        )

    def load_own(self, own: OwnCatalogue) -> bool:
        """Take the log up; False, and begin a new one, where there is none that fits together."""
        try:
            for (head,) in self._store.fetch("SELECT head FROM own_head"):
                signed = decode(bytes(head), Signed)
                self._drop_others(verify(signed, Head).seq)
                rows = self._store.fetch("SELECT entry FROM own_log ORDER BY slot")
                own.restore(signed, [bytes(entry) for (entry,) in rows])
                return True
        except WireError as error:
            log.warning("own_catalogue_dropped", error=str(error))
        with self._store.transaction():
            self._store.execute("DELETE FROM own_head")
            self._store.execute("DELETE FROM own_log")
        return False

    def _drop_others(self, seq: int) -> None:
        """What was stored towards a head that was never stored, and what was replaced."""
        with self._store.transaction():
            self._store.execute("DELETE FROM own_log WHERE seq > ?", (seq,))
            self._store.execute(_DROP_REPLACED)


def _by_page(slots: Sequence[int], change: Callable[[Sequence[int]], None]) -> Generator[None, None, None]:
    for start in range(0, len(slots), STEP_ENTRIES):
        change(slots[start : start + STEP_ENTRIES])
        yield
