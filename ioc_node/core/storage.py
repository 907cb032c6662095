"""The records that a server holds for others: bounded, newest version wins, expiry first, then distance.

Times here are seconds since 1970, because records carry such times. When the store is full, expired records
go first, then the one farthest from this node's ID; a record farther than all that is held is refused. A
tombstone is kept like the record whose place it takes, so that an older record cannot come back.
"""

import heapq
from bisect import bisect_left, insort
from collections import Counter, OrderedDict
from collections.abc import Collection
from typing import Final

from ioc_node.core.chance import Chance
from ioc_node.core.trust import Ended
from ioc_wire import limits
from ioc_wire.dht import HolderRecord
from ioc_wire.errors import OlderVersion, OverQuota
from ioc_wire.records import NamedRecord
from ioc_wire.signed import Signed

RECORDS_MAX: Final = 65536
"""About 1.5 KiB each."""
RECORDS_PER_PUBLISHER_MAX: Final = 8192
ENVELOPE_BYTES_MAX: Final = 144
"""Of a `Signed` record beside its payload."""
BLOBS_MAX: Final = 16384
HOLDERS_PER_BLOB_MAX: Final = 32
HOLDERS_PER_PUBLISHER_MAX: Final = 4096


class Held:
    """One stored record or tombstone."""

    __slots__ = ("chain_hash", "cid", "distance", "expires", "key", "order", "signed", "size")

    def __init__(
        self, key: bytes, signed: Signed, record: NamedRecord, chain_hash: bytes | None, distance: int
    ) -> None:
        self.key = key
        self.signed = signed
        self.size = len(signed.payload) + ENVELOPE_BYTES_MAX
        self.cid = record.cid
        self.order = record.order
        self.expires = record.expires
        self.chain_hash = chain_hash
        self.distance = distance


class RecordStore:
    """Records by key. The caller has verified everything that it puts in."""

    def __init__(
        self,
        own_id: bytes,
        *,
        records_max: int = RECORDS_MAX,
        per_publisher_max: int = RECORDS_PER_PUBLISHER_MAX,
    ) -> None:
        self.evicted = 0
        """Live records that had to make room for nearer ones."""
        self._own = int.from_bytes(own_id, "big")
        self._records_max = records_max
        self._per_publisher_max = per_publisher_max
        self._held: dict[bytes, Held] = {}
        self._distances: list[tuple[int, bytes]] = []
        self._expiries: list[tuple[int, bytes]] = []
        self._published: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: bytes, unix: float) -> Held | None:
        """The live record at `key`."""
        held = self._held.get(key)
        if held is not None and unix > held.expires + limits.CLOCK_SKEW_SECONDS:
            self._drop(held)
            return None
        return held

    def put(
        self, key: bytes, signed: Signed, record: NamedRecord, chain_hash: bytes | None, unix: float
    ) -> list[bytes]:
        """Keep a verified record; return the keys that had to make room.

        Raises `OlderVersion` or `OverQuota`. The same record again is a refresh, not an error.
        """
        known = self.get(key, unix)
        if known is not None:
            if record.order < known.order or (
                record.order == known.order and signed.payload != known.signed.payload
            ):
                held, offered = known.order[0], record.order[0]
                raise OlderVersion(f"{record.cid}: version {held} is held, {offered} was offered")
            self._drop(known)
        elif self._published[signed.key] >= self._per_publisher_max:
            raise OverQuota(f"{self._per_publisher_max} records of this publisher are held here")
        distance = int.from_bytes(key, "big") ^ self._own
        dropped = self._make_room(distance, unix)
        held_now = Held(key, signed, record, chain_hash, distance)
        self._held[key] = held_now
        self._published[signed.key] += 1
        insort(self._distances, (distance, key))
        heapq.heappush(self._expiries, (record.expires, key))
        return dropped

    def drop_expired(self, unix: float) -> list[bytes]:
        """Drop what has expired; return the keys."""
        dropped: list[bytes] = []
        while self._expiries and self._expiries[0][0] + limits.CLOCK_SKEW_SECONDS < unix:
            _, key = heapq.heappop(self._expiries)
            held = self._held.get(key)
            if held is not None and held.expires + limits.CLOCK_SKEW_SECONDS < unix:
                self._drop(held)
                dropped.append(key)
        if len(self._expiries) > 2 * len(self._held) + 64:
            self._expiries = [(held.expires, held.key) for held in self._held.values()]
            heapq.heapify(self._expiries)
        return dropped

    def drop_ended(self, ended: Ended) -> list[bytes]:
        """Drop what rests on what was revoked; return the keys."""
        gone = [held for held in self._held.values() if ended.ends(held.signed, held.chain_hash)]
        for held in gone:
            self._drop(held)
        return [held.key for held in gone]

    def _make_room(self, distance: int, unix: float) -> list[bytes]:
        if len(self._held) < self._records_max:
            return []
        dropped = self.drop_expired(unix)
        if len(self._held) >= self._records_max:
            farthest, key = self._distances[-1]
            if distance >= farthest:
                raise OverQuota("the store is full of records nearer to this node")
            self._drop(self._held[key])
            self.evicted += 1
            dropped.append(key)
        return dropped

    def _drop(self, held: Held) -> None:
        del self._held[held.key]
        del self._distances[bisect_left(self._distances, (held.distance, held.key))]
        publisher = held.signed.key
        self._published[publisher] -= 1
        if not self._published[publisher]:
            del self._published[publisher]


class HolderStore:
    """Who holds which blob: several per blob, each for as long as it signed."""

    def __init__(self, *, blobs_max: int = BLOBS_MAX) -> None:
        self._blobs_max = blobs_max
        self._blobs: OrderedDict[bytes, dict[bytes, tuple[Signed, HolderRecord]]] = OrderedDict()
        self._published: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._blobs)

    def put(self, signed: Signed, holder: HolderRecord, unix: float) -> None:
        """Keep a verified announcement; raises `OlderVersion` or `OverQuota`."""
        self._expire(holder.blob, unix)
        holders = self._blobs.get(holder.blob, {})
        known = holders.get(signed.key)
        if known is not None and known[1].issued > holder.issued:
            raise OlderVersion("a newer announcement of this holder is held")
        if known is None:
            if self._published[signed.key] >= HOLDERS_PER_PUBLISHER_MAX:
                raise OverQuota(f"{HOLDERS_PER_PUBLISHER_MAX} announcements of this holder are held here")
            if len(holders) >= HOLDERS_PER_BLOB_MAX:
                raise OverQuota(f"{HOLDERS_PER_BLOB_MAX} holders of this blob are known here")
            if holder.blob not in self._blobs and len(self._blobs) >= self._blobs_max:
                self._forget(next(iter(self._blobs)))
            self._published[signed.key] += 1
        self._blobs.setdefault(holder.blob, holders)[signed.key] = (signed, holder)
        self._blobs.move_to_end(holder.blob)

    def get(self, blob: bytes, unix: float, count: int, chance: Chance) -> tuple[list[Signed], int]:
        """Up to `count` live announcements, drawn at random, and how many there are."""
        self._expire(blob, unix)
        found = [signed for signed, _ in self._blobs.get(blob, {}).values()]
        return (found if len(found) <= count else chance.sample(found, count)), len(found)

    def drop_expired(self, unix: float) -> None:
        """Drop what has expired; called now and then."""
        for blob in list(self._blobs):
            self._expire(blob, unix)

    def drop_of(self, keys: Collection[bytes]) -> None:
        """Drop the announcements of these holders."""
        if not keys or not any(self._published[key] for key in keys):
            return
        for blob, holders in list(self._blobs.items()):
            for key in keys:
                if holders.pop(key, None) is not None:
                    self._count_down(key)
            if not holders:
                del self._blobs[blob]

    def _expire(self, blob: bytes, unix: float) -> None:
        holders = self._blobs.get(blob)
        if holders is None:
            return
        for key in [k for k, (_, h) in holders.items() if unix > h.expires + limits.CLOCK_SKEW_SECONDS]:
            del holders[key]
            self._count_down(key)
        if not holders:
            del self._blobs[blob]

    def _forget(self, blob: bytes) -> None:
        for key in self._blobs.pop(blob):
            self._count_down(key)

    def _count_down(self, key: bytes) -> None:
        self._published[key] -= 1
        if not self._published[key]:
            del self._published[key]
