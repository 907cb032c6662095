"""A provider's own catalogue: the log that it alone writes, and the heads and status batches that it signs.

Every identifier has a slot, for ever: a withdrawn one leaves a tombstone and gets its slot back when it returns. A
head commits to all slots. Its `seq` is the clock's seconds, or one more than the last where that is higher, so that a
provider restored from a backup or started without its state never signs a second head for one `seq` (a fork).
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.core.tree import MerkleTree
from ioc_wire import limits
from ioc_wire.errors import OverQuota, WrongRoot
from ioc_wire.merkle import leaf_hash
from ioc_wire.records import (
    CatalogueEntry,
    Head,
    StatusBatch,
    StatusRow,
    decode_entry,
    entry_bytes,
    verify_record,
)
from ioc_wire.signed import Signed, public_bytes, sign, verify

HEAD_SECONDS: Final = 6 * 3600
"""How long a head is good for; it is renewed when half of that has passed."""
STATUS_SECONDS: Final = 30
"""How long a status batch is good for: a provider that is silent for so long is not offered any more."""
SLOTS_MAX: Final = 65536
FIRST: Final = bytes(32)


class Commit(NamedTuple):
    """A new head, and the slots that changed with it."""

    head: Signed
    seq: int
    slots: tuple[int, ...]


class OwnCatalogue:
    """Not thread-safe; one owner. Times named `unix` are seconds since 1970."""

    def __init__(self, key: Ed25519PrivateKey, *, head_seconds: int = HEAD_SECONDS) -> None:
        self._key = key
        self.key = public_bytes(key)
        self._head_seconds = min(head_seconds, limits.HEAD_SECONDS_MAX)
        self._entries: list[bytes] = []
        self._records: list[Signed | None] = []
        self._cids: list[str] = []
        self._seqs: list[int] = []
        self._slots: dict[str, int] = {}
        self._dirty: set[int] = set()
        self._tree = MerkleTree()
        self._signed: Signed | None = None
        self._head: Head | None = None
        self._status_seq = 0
        self._parts: set[int] = set()

    @property
    def head(self) -> Signed | None:
        """The newest signed head, None before the first commit."""
        return self._signed

    @property
    def seq(self) -> int:
        return self._head.seq if self._head is not None else 0

    @property
    def slots(self) -> int:
        return len(self._cids)

    def slot_of(self, cid: str) -> int | None:
        """The slot of a living identifier; status rows refer to it."""
        slot = self._slots.get(cid)
        return slot if slot is not None and self._records[slot] is not None else None

    def record(self, cid: str) -> Signed | None:
        slot = self._slots.get(cid)
        return self._records[slot] if slot is not None else None

    def records(self) -> dict[str, Signed]:
        """Every living identifier with its signed record, in order of slot."""
        return {cid: record for cid, record in zip(self._cids, self._records, strict=True) if record}

    def put(self, record: Signed, *, unix: float) -> int:
        """Enter or replace the record of an identifier, signed by this catalogue's key; returns its slot.

        Takes effect with `commit`. Raises what `verify_record` raises, and `OverQuota` when all slots are used.
        """
        parsed, _ = verify_record(record, now=unix)
        if record.key != self.key:
            raise WrongRoot(f"{parsed.cid} is signed by another key than the catalogue's")
        slot = self._slots.get(parsed.cid)
        if slot is None:
            if len(self._cids) >= SLOTS_MAX:
                raise OverQuota(f"{SLOTS_MAX} identifiers in one catalogue")
            slot = len(self._cids)
            self._slots[parsed.cid] = slot
            self._cids.append(parsed.cid)
            self._records.append(None)
            self._seqs.append(0)
            self._entries.append(b"")
        if self._records[slot] != record:
            self._records[slot] = record
            self._dirty.add(slot)
        return slot

    def withdraw(self, cid: str) -> bool:
        """Leave a tombstone; False where the identifier is not here. Takes effect with `commit`."""
        slot = self.slot_of(cid)
        if slot is None:
            return False
        self._records[slot] = None
        self._dirty.add(slot)
        return True

    def renews_at(self) -> float:
        """When the head should be signed anew although nothing changed (seconds since 1970)."""
        return self._head.issued + self._head_seconds / 2 if self._head is not None else 0.0

    def commit(self, *, unix: float, anew: bool = False, after: int = 0) -> Commit | None:
        """Sign a new head if anything changed, the last one is half over, it is to be told `anew`, or its number is not
        above `after`; else None.

        It must be stored before it is shown to anybody.
        """
        stands = self._head is not None and not (self._dirty or anew) and unix < self.renews_at()
        if stands and self.seq > after:
            return None
        seq = max(self.seq + 1, int(unix), after + 1)
        slots = tuple(sorted(self._dirty))
        for slot in slots:
            self._seqs[slot] = seq
            entry = CatalogueEntry(slot, seq, self._cids[slot], self._records[slot])
            self._entries[slot] = entry_bytes(entry)
        leaves = {slot: leaf_hash(self._entries[slot]) for slot in slots}
        tree = self._tree.changed(leaves, len(self._entries))
        assert tree is not None
        self._tree = tree
        previous = hashlib.sha256(self._signed.payload).digest() if self._signed is not None else FIRST
        expires = int(unix) + self._head_seconds
        self._head = Head(seq, previous, tree.root, len(self._entries), int(unix), expires)
        self._signed = sign(self._key, self._head)
        self._dirty.clear()
        return Commit(self._signed, seq, slots)

    def entry(self, slot: int) -> bytes:
        """The encoded entry as of the last commit."""
        return self._entries[slot]

    def entries_after(self, seq: int) -> tuple[bytes, ...]:
        """The entries that changed after head `seq`, in order of slot; all for 0."""
        return tuple(self._entries[slot] for slot, changed in enumerate(self._seqs) if 0 < changed > seq)

    def sign_status(
        self, rows: Iterable[StatusRow], *, unix: float, status_seconds: int = STATUS_SECONDS
    ) -> list[Signed]:
        """Status rows in signed batches, good for `status_seconds`: one for each part of the slots that has rows or
        had some the last time.
        """
        self._status_seq = max(self._status_seq + 1, int(unix * 1000))
        seconds = min(status_seconds, limits.STATUS_SECONDS_MAX)
        parts: defaultdict[int, list[StatusRow]] = defaultdict(list)
        for row in rows:
            parts[row.slot // limits.STATUS_ROWS_MAX].append(row)
        told, self._parts = parts.keys() | self._parts, set(parts)
        issued = int(unix)
        batches = (
            StatusBatch(self._status_seq, issued, issued + seconds, tuple(parts.get(part, ())), part)
            for part in sorted(told)
        )
        return [sign(self._key, batch) for batch in batches]

    def restore(self, head: Signed, entries: Sequence[bytes]) -> None:
        """Take up a stored state. Raises `WrongRoot` (or why an entry or the head is bad) and stays empty then."""
        parsed = verify(head, Head)
        if head.key != self.key or len(entries) != parsed.slots:
            raise WrongRoot(f"{len(entries)} stored entries, the head was signed over {parsed.slots}")
        decoded = [decode_entry(data) for data in entries]
        tree = MerkleTree().changed({i: leaf_hash(data) for i, data in enumerate(entries)}, len(entries))
        if tree is None or tree.root != parsed.root:
            raise WrongRoot("the stored entries")
        if any(entry.slot != slot for slot, entry in enumerate(decoded)):
            raise WrongRoot("stored entries are out of order")
        self._entries = list(entries)
        self._records = [entry.record for entry in decoded]
        self._cids = [entry.cid for entry in decoded]
        self._seqs = [entry.seq for entry in decoded]
        self._slots = {cid: slot for slot, cid in enumerate(self._cids)}
        self._tree, self._head, self._signed = tree, parsed, head
