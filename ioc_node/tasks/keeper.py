"""Why blobs are on this disk: each is held for named reasons until a time, and removed when no reason is left.

A blob that was never held, such as one that was fetched to be read, is a copy that may go: it stays until room is
needed, and the one used longest ago goes first. What was held once is removed as soon as nothing holds it.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from ioc_node.bulk.blobs import BlobStore
from ioc_node.runtime.store import Store

BY_HAND: Final = b""
"""The reason of blobs that the operator added or pinned."""
DATASET: Final = b"dataset:"
"""Begins the reason of what belongs to a dataset; its point follows."""
EXPRESS: Final = b"express:"
"""Begins the reason of what was shipped here; the shipment's name follows."""
UNUSED_SECONDS: Final = 60.0
"""A copy that was used so lately is not taken away: whoever fetched it is about to read it."""
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


@dataclass(frozen=True)
class Collected:
    """What a collection removed, or would remove."""

    blobs: int
    bytes: int


def reason_text(reason: bytes) -> str:
    """Why a blob is held, in words."""
    if reason == BY_HAND:
        return "pinned"
    if reason.startswith(DATASET):
        return "dataset"
    if reason.startswith(EXPRESS):
        return "shipped here"
    return "task input" if len(reason) == 36 else "task"


class Keeper:
    """Holds on blobs, in the node's database. A reason is any bytes: a task's ID, or `BY_HAND`."""

    def __init__(self, store: Store, blobs: BlobStore) -> None:
        self._store = store
        self._blobs = blobs
        store.require("held_blobs", _SCHEMA)
        blobs.reclaim = self.reclaim

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

    def let_go(self, blob: bytes, reason: bytes) -> bool:
        """Hold a blob no longer for that reason; whether it was. It stays until it is swept or in the way."""
        held = self._store.fetch("SELECT 1 FROM held_blobs WHERE blob = ? AND reason = ?", (blob, reason))
        self._store.execute("DELETE FROM held_blobs WHERE blob = ? AND reason = ?", (blob, reason))
        return bool(held)

    def reasons(self, blob: bytes, now_ms: int) -> list[bytes]:
        """Why a blob is held now."""
        query = "SELECT reason FROM held_blobs WHERE blob = ? AND until_ms > ? ORDER BY reason"
        return [reason for (reason,) in self._store.fetch(query, (blob, now_ms))]

    def is_held_for(self, blob: bytes, beginning: bytes) -> bool:
        """Whether a blob is held for a reason that begins so."""
        beyond = beginning[:-1] + bytes([beginning[-1] + 1])
        query = "SELECT 1 FROM held_blobs WHERE blob = ? AND reason >= ? AND reason < ? AND until_ms >= ?"
        return bool(self._store.fetch(query, (blob, beginning, beyond, FOREVER_MS)))

    # -- copies that may go

    async def reclaim(self, bytes_needed: int) -> None:
        """Remove copies until so many bytes are free; those used longest ago first."""
        collected = await self.collect(bytes_max=bytes_needed)
        if collected.blobs:
            _log.info("copies_removed", count=collected.blobs, bytes=collected.bytes)

    async def collect(
        self, *, bytes_max: int | None = None, unused_seconds: float = UNUSED_SECONDS, dry_run: bool = False
    ) -> "Collected":
        """Remove what nothing holds and nobody used for so long, until `bytes_max` are freed: first what arrived of
        blobs that nobody is fetching any more, then copies, those used longest ago first.
        """
        blobs = total = 0
        before = time.time() - unused_seconds
        for blob, size in await self._blobs.list_abandoned(before):
            if bytes_max is not None and total >= bytes_max:
                break
            if not dry_run:
                await self._blobs.discard_partial(blob)
            blobs, total = blobs + 1, total + size
        for number, blob in enumerate(self._blobs.quota.by_use()):
            if number % 64 == 0:
                await trio.lowlevel.checkpoint()
            if bytes_max is not None and total >= bytes_max:
                break
            found = self._blobs.quota.size(blob)
            if found is None:
                continue  # removed meanwhile
            if self._blobs.quota.used_at(blob) > before:
                break  # and all that follow were used later
            if self.reasons(blob, int(time.time() * 1000)):
                continue
            if not dry_run and not await self._blobs.remove(blob):
                continue
            blobs, total = blobs + 1, total + found
        return Collected(blobs, total)

    async def sweep(self, now_ms: int) -> int:
        """Remove blobs that nothing holds any more. Returns how many."""
        removed = 0
        for blob in self.due(now_ms):
            self._store.execute("DELETE FROM held_blobs WHERE blob = ?", (blob,))
            removed += await self._blobs.remove(blob)
        if removed:
            _log.info("blobs_removed", count=removed)
        return removed
