"""Why blobs are on this disk: each is held for named reasons until a time, and removed when no reason is left.

Only blobs that were held once are ever removed.
"""

from collections.abc import Iterable
from typing import Final

import structlog

from ioc_node.bulk.blobs import BlobStore
from ioc_node.runtime.store import Store

BY_HAND: Final = b""
"""The reason of blobs that the operator added."""
FOREVER_MS: Final = 1 << 62
SWEEP_BLOBS_MAX: Final = 256
"""Blobs that one sweep removes at most."""

_SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS held_blobs (
         blob BLOB NOT NULL, reason BLOB NOT NULL, until_ms INTEGER NOT NULL, PRIMARY KEY (blob, reason))
         WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS held_reason ON held_blobs (reason)",
    "CREATE INDEX IF NOT EXISTS held_until ON held_blobs (until_ms)",
)
_log = structlog.get_logger()


class Keeper:
    """Holds on blobs, in the node's database. A reason is any bytes: a task's ID, or `BY_HAND`."""

    def __init__(self, store: Store, blobs: BlobStore) -> None:
        self._store = store
        self._blobs = blobs
        store.require("held_blobs", _SCHEMA)

    def hold(self, blobs: Iterable[bytes], reason: bytes, until_ms: int = FOREVER_MS) -> None:
        """Hold `blobs` for `reason` until then, whatever was said for that reason before. Joins a transaction."""
        for blob in blobs:
            self._store.execute(
                "INSERT INTO held_blobs VALUES (?, ?, ?)"
                " ON CONFLICT (blob, reason) DO UPDATE SET until_ms = excluded.until_ms",
                (blob, reason, until_ms),
            )

    def hold_until(self, reason: bytes, until_ms: int) -> None:
        """Move the time of all that is held for `reason`; a time that is past lets it go."""
        self._store.execute("UPDATE held_blobs SET until_ms = ? WHERE reason = ?", (until_ms, reason))

    def due(self, now_ms: int) -> list[bytes]:
        """Blobs that nothing holds any more."""
        query = "SELECT blob FROM held_blobs GROUP BY blob HAVING max(until_ms) <= ? LIMIT ?"
        return [blob for (blob,) in self._store.fetch(query, (now_ms, SWEEP_BLOBS_MAX))]

    async def sweep(self, now_ms: int) -> int:
        """Remove blobs that nothing holds any more. Returns how many."""
        removed = 0
        for blob in self.due(now_ms):
            self._store.execute("DELETE FROM held_blobs WHERE blob = ?", (blob,))
            removed += await self._blobs.remove(blob)
        if removed:
            _log.info("blobs_removed", count=removed)
        return removed
