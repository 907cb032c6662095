"""A provider's own catalogue: the log that it alone writes, and the heads and status batches that it signs.

Every identifier has a slot, for ever: a withdrawn one leaves a tombstone and gets its slot back when it returns. A
head commits to all slots. Its `seq` is the clock's seconds, or one more than the last where that is higher, so that a
provider restored from a backup or started without its state never signs a second head for one `seq` (a fork).

What is put and what is committed are kept apart: a commit is worked out in steps from what was there when it began, in
a `Log` of its own, and takes the place of the one before in one go. Whoever reads meanwhile reads one log or the other.
"""

import hashlib
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import compress, count, islice, repeat
from operator import gt
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.core.by_slot import BySlot
from ioc_node.core.steps import run_through
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


STEP_ENTRIES: Final = 64
"""Entries encoded and hashed between two pauses: about a millisecond."""
STEP_ROWS: Final = 4096
"""Status rows sorted by part between two pauses."""


class Log(NamedTuple):
    """What one head commits to: never changed, only replaced."""

    entries: Sequence[bytes] = ()
    """Encoded, by slot."""
    seqs: Sequence[int] = ()
    """The head with which each slot changed last."""
    tree: MerkleTree = MerkleTree()
    head: Head | None = None
    signed: Signed | None = None


class Commit(NamedTuple):
    """A new log, its head, and the slots that changed with it."""

    log: Log
    head: Signed
    seq: int
    slots: tuple[int, ...]


class OwnCatalogue:
    """Not thread-safe; one owner. Times named `unix` are seconds since 1970."""

    def __init__(self, key: Ed25519PrivateKey, *, head_seconds: int = HEAD_SECONDS) -> None:
        self._key = key
        self.key = public_bytes(key)
        self._head_seconds = min(head_seconds, limits.HEAD_SECONDS_MAX)
        self._records: list[Signed | None] = []
        self._cids: list[str] = []
        self._slots: dict[str, int] = {}
        self._dirty: set[int] = set()
        self._committing: set[int] = set()
        """Slots of the commit that is being worked out; they stay here until it is taken."""
        self._before: dict[int, Signed | None] = {}
        """Their records as of its beginning, where those have changed since."""
        self._log = Log()
        self._status_seq = 0
        self._parts: set[int] = set()

    @property
    def head(self) -> Signed | None:
        """The newest signed head, None before the first commit."""
        return self._log.signed

    @property
    def seq(self) -> int:
        return self._log.head.seq if self._log.head is not None else 0

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

    def any_cid(self) -> str:
        """Of a living identifier; empty where there is none."""
        return next((cid for cid, record in zip(self._cids, self._records, strict=True) if record), "")

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
        if self._records[slot] != record:
            self._change(slot, record)
        return slot

    def withdraw(self, cid: str) -> bool:
        """Leave a tombstone; False where the identifier is not here. Takes effect with `commit`."""
        slot = self.slot_of(cid)
        if slot is None:
            return False
        self._change(slot, None)
        return True

    def _change(self, slot: int, record: Signed | None) -> None:
        if slot in self._committing:
            self._before.setdefault(slot, self._records[slot])
        self._records[slot] = record
        self._dirty.add(slot)

    def renews_at(self) -> float:
        """When the head should be signed anew although nothing changed (seconds since 1970)."""
        head = self._log.head
        return head.issued + self._head_seconds / 2 if head is not None else 0.0

    def commit(self, *, unix: float, anew: bool = False, after: int = 0) -> Commit | None:
        """`committing` and `take` in one go."""
        commit = run_through(self.committing(unix=unix, anew=anew, after=after))
        if commit is not None:
            self.take(commit)
        return commit

    def committing(
        self, *, unix: float, anew: bool = False, after: int = 0
    ) -> Generator[None, None, Commit | None]:
        """Sign a new head, in steps, if anything changed, the last one is half over, it is to be told `anew`, or its
        number is not above `after`; else None.

        It must be stored before it is shown to anybody, which `take` does. What is put or withdrawn between two steps
        belongs to the next commit; so does all of this one where it is never taken.
        """
        log = self._log
        stands = log.head is not None and not (self._dirty or self._committing or anew)
        if stands and unix < self.renews_at() and self.seq > after:
            return None
        seq = max(self.seq + 1, int(unix), after + 1)
        changed, self._dirty = self._dirty, set()
        changed |= self._committing
        self._committing, self._before = changed, {}
        fresh = len(self._cids) - len(log.entries)
        slots = tuple(sorted(changed))
        yield
        entries, seqs = [*log.entries, *[b""] * fresh], [*log.seqs, *[0] * fresh]
        leaves: BySlot[bytes] = BySlot()
        yield
        for done, slot in enumerate(slots, 1):
            record = self._before[slot] if slot in self._before else self._records[slot]
            seqs[slot] = seq
            entries[slot] = entry_bytes(CatalogueEntry(slot, seq, self._cids[slot], record))
            leaves[slot] = leaf_hash(entries[slot])
            if done % STEP_ENTRIES == 0:
                yield
        tree = yield from log.tree.changing(leaves, len(entries))
        assert tree is not None
        yield from leaves.emptying()
        previous = hashlib.sha256(log.signed.payload).digest() if log.signed is not None else FIRST
        expires = int(unix) + self._head_seconds
        head = Head(seq, previous, tree.root, len(entries), int(unix), expires)
        signed = sign(self._key, head)
        return Commit(Log(entries, seqs, tree, head, signed), signed, seq, slots)

    def take(self, commit: Commit) -> None:
        """Show what was committed, and stored, from now on."""
        assert commit.seq > self.seq, "one commit at a time"
        self._log = commit.log
        self._committing, self._before = set(), {}

    def entry(self, slot: int) -> bytes:
        """The encoded entry as of the last commit."""
        return self._log.entries[slot]

    def entries_after(self, seq: int) -> tuple[bytes, ...]:
        """The entries that changed after head `seq`, in order of slot; all for 0."""
        return tuple(self.reading_after(seq))

    def reading_after(self, seq: int) -> Iterator[bytes]:
        """`entries_after`, one by one: all of the log that is shown now, whatever is committed meanwhile."""
        log = self._log
        slots = compress(count(), map(gt, log.seqs, repeat(seq)))
        return map(log.entries.__getitem__, slots)

    def sign_status(
        self, rows: Iterable[StatusRow], *, unix: float, status_seconds: int = STATUS_SECONDS
    ) -> list[Signed]:
        """`signing_status` in one go."""
        return run_through(self.signing_status(rows, unix=unix, status_seconds=status_seconds))

    def signing_status(
        self, rows: Iterable[StatusRow], *, unix: float, status_seconds: int = STATUS_SECONDS
    ) -> Generator[None, None, list[Signed]]:
        """Status rows, as they are now, in signed batches, good for `status_seconds`: one for each part of the slots
        that has rows or had some the last time. In steps.
        """
        self._status_seq = max(self._status_seq + 1, int(unix * 1000))
        seq, issued = self._status_seq, int(unix)
        expires = issued + min(status_seconds, limits.STATUS_SECONDS_MAX)
        parts: defaultdict[int, list[StatusRow]] = defaultdict(list)
        waiting = iter(tuple(rows))
        while step := tuple(islice(waiting, STEP_ROWS)):
            for row in step:
                parts[row.slot // limits.STATUS_ROWS_MAX].append(row)
            yield
        signed = []
        for part in sorted(parts.keys() | self._parts):
            batch = StatusBatch(seq, issued, expires, tuple(parts.get(part, ())), part)
            signed.append(sign(self._key, batch))
            yield
        self._parts = set(parts)
        return signed

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
        self._records = [entry.record for entry in decoded]
        self._cids = [entry.cid for entry in decoded]
        self._slots = {cid: slot for slot, cid in enumerate(self._cids)}
        self._log = Log(list(entries), [entry.seq for entry in decoded], tree, parsed, head)
