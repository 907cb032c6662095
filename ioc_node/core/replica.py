"""One provider's catalogue as another node holds it: the newest head seen, and the newest head held with its entries.

The two differ while entries are on their way. Entries are never trusted one by one: the Merkle root over all of them
must be the one that the head signs, which costs hashing instead of an Ed25519 check per record. An entry that is
vouched for in this way may still claim what its provider does not own; it stays a leaf, but is not *alive*: it is not
offered, resolved or counted.
"""

import hashlib
from collections.abc import Sequence
from typing import Final, NamedTuple

from ioc_node.core.tree import MerkleTree
from ioc_wire import limits
from ioc_wire.authority import Grant, check_names
from ioc_wire.cid import parse_cid
from ioc_wire.codec import decode
from ioc_wire.errors import BadIdentifier, BadSignature, Malformed, TooLarge, WireError, WrongRoot
from ioc_wire.gossip import HeadNews, HeadRow
from ioc_wire.merkle import leaf_hash
from ioc_wire.records import CatalogueEntry, Head, ResourceRecord, StatusBatch, decode_entry
from ioc_wire.signed import Signed

FORKED: Final = bytes(32)
"""Stands for the head's hash of a quarantined provider in head vectors."""


def head_hash(signed: Signed) -> bytes:
    """What `Head.previous` and head vectors name a head by: the SHA-256 of its payload."""
    return hashlib.sha256(signed.payload).digest()


class Seen(NamedTuple):
    """A head that was verified: as it came, parsed, and its hash."""

    news: HeadNews
    head: Head
    hash: bytes


class HeldStatus(NamedTuple):
    """A provider's newest status batch. It counts until `fresh_until` (seconds since 1970, by this node's clock)."""

    signed: Signed
    batch: StatusBatch
    fresh_until: float


class Refused(NamedTuple):
    """An entry or a row that is left out, while the rest goes on: `what` it is, and why."""

    what: str
    error: WireError


class Applied(NamedTuple):
    """What a fetch changed. An empty one changed nothing (the head was known)."""

    slots: tuple[int, ...] = ()
    refused: tuple[Refused, ...] = ()


class Replica:
    """State of one provider. Changed only by `Catalogue`."""

    def __init__(self, provider: bytes) -> None:
        self.provider = provider
        self.grant: Grant | None = None
        self.announced: Seen | None = None
        self.held: Seen | None = None
        self.status: HeldStatus | None = None
        self.fork: tuple[Seen, Seen] | None = None
        self.entries: list[bytes] = []
        self._tree = MerkleTree()
        self._seqs: list[int] = []
        self._alive: dict[int, str] = {}
        self._slots: dict[str, int] = {}

    @property
    def lagging(self) -> bool:
        """Whether a newer head was seen than the one held."""
        if self.fork is not None or self.announced is None:
            return False
        return self.held is None or self.held.head.seq < self.announced.head.seq

    @property
    def newest(self) -> Signed | None:
        """The newest head seen, held or not."""
        return self.announced.news.head if self.announced is not None else None

    @property
    def seq(self) -> int:
        """The newest seq seen, held or not."""
        return self.announced.head.seq if self.announced is not None else 0

    @property
    def held_seq(self) -> int:
        return self.held.head.seq if self.held is not None else 0

    @property
    def living(self) -> int:
        """Identifiers that are offered and resolved."""
        return len(self._alive)

    def news(self) -> tuple[HeadNews, ...]:
        """What to tell others of this provider: the head held, or the two heads that prove a fork."""
        if self.fork is not None:
            return (self.fork[0].news, self.fork[1].news)
        return (self.held.news,) if self.held is not None else ()

    def ends(self) -> float:
        """When nothing of this provider counts any more (seconds since 1970)."""
        seen = [seen for seen in (self.announced, self.held, *(self.fork or ())) if seen is not None]
        last = max((one.head.expires for one in seen), default=0)
        return min(last, self.grant.not_after) if self.grant is not None else last

    def row(self) -> HeadRow | None:
        """This provider in a head vector; None while nothing of it is held."""
        status_seq = self.status.batch.seq if self.status is not None else 0
        if self.fork is not None:
            return HeadRow(self.provider, self.seq, FORKED, 0)
        if self.held is None:
            return None
        return HeadRow(self.provider, self.held.head.seq, self.held.hash, status_seq)

    def is_alive(self, slot: int) -> bool:
        return slot in self._alive

    def slot_of(self, cid: str) -> int | None:
        return self._slots.get(cid)

    def living_slots(self) -> list[int]:
        return sorted(self._alive)

    def entries_after(self, seq: int) -> tuple[bytes, ...]:
        """The entries that changed after head `seq`, in order of slot; all for 0."""
        if seq >= self.held_seq:
            return ()
        return tuple(
            self.entries[slot] for slot, changed in enumerate(self._seqs) if changed > seq or not seq
        )

    def accept_same_root(self) -> bool:
        """Hold the announced head if it commits to the very entries that are held already."""
        seen, held = self.announced, self.held
        if seen is None or held is None or seen.head.seq <= held.head.seq:
            return False
        if (seen.head.root, seen.head.slots) != (held.head.root, held.head.slots):
            return False
        self.held = seen
        return True

    def apply(self, target: Seen, entries: Sequence[bytes]) -> Applied:
        """Take in `entries` and hold `target`. Raises `WrongRoot` or `Malformed`, and nothing has changed then."""
        decoded: dict[int, CatalogueEntry] = {}
        raw: dict[int, bytes] = {}
        for data in entries:
            entry = decode_entry(data)
            if entry.slot >= target.head.slots or not 0 < entry.seq <= target.head.seq:
                raise Malformed(
                    f"slot {entry.slot} of head {entry.seq} does not fit the head over {target.head.slots}"
                )
            if entry.slot in decoded:
                raise Malformed(f"slot {entry.slot} came twice")
            decoded[entry.slot], raw[entry.slot] = entry, data
        leaves = {slot: leaf_hash(data) for slot, data in raw.items()}
        tree = self._tree.changed(leaves, target.head.slots)
        if tree is None:
            raise WrongRoot("entries are missing: the log has a gap")
        if tree.root != target.head.root:
            raise WrongRoot(f"{len(entries)} entries towards head {target.head.seq}")
        dropped = range(target.head.slots, len(self.entries))
        self._resize(target.head.slots)
        self._tree = tree
        for slot in [*dropped, *decoded]:
            self._bury(slot)
        refused = [
            fault for slot in sorted(decoded) if (fault := self._take(decoded[slot], raw[slot])) is not None
        ]
        self.held = target
        return Applied((*decoded, *dropped), tuple(refused))

    def clear(self) -> None:
        """Forget everything that is held."""
        self.entries, self._seqs = [], []
        self._alive, self._slots = {}, {}
        self._tree = MerkleTree()
        self.held = self.status = None

    def _resize(self, count: int) -> None:
        del self.entries[count:], self._seqs[count:]
        missing = count - len(self.entries)
        self.entries.extend([b""] * missing)
        self._seqs.extend([0] * missing)

    def _bury(self, slot: int) -> None:
        cid = self._alive.pop(slot, None)
        if cid is not None:
            del self._slots[cid]

    def _take(self, entry: CatalogueEntry, data: bytes) -> Refused | None:
        self.entries[entry.slot] = data
        self._seqs[entry.slot] = entry.seq
        if entry.record is None:
            return None
        try:
            check_entry(entry, entry.record, self.provider, self.grant)
            if entry.cid in self._slots:
                raise Malformed(f"{entry.cid} stands in slot {self._slots[entry.cid]} already")
        except WireError as error:
            return Refused(f"slot {entry.slot}", error)
        self._alive[entry.slot] = entry.cid
        self._slots[entry.cid] = entry.slot
        return None


def check_entry(entry: CatalogueEntry, signed: Signed, provider: bytes, grant: Grant | None) -> None:
    """All of a record but its signature, for which the head vouches, and its period, which the reader holds
    against its own clock. Raises the fault.
    """
    if signed.kind != ResourceRecord.kind or signed.key != provider:
        raise BadSignature(f"{entry.cid} is not signed by the provider of this catalogue")
    if len(signed.payload) + 128 > limits.RECORD_BYTES_MAX:
        raise TooLarge(f"{entry.cid}: {len(signed.payload)} bytes of payload")
    cid = parse_cid(entry.cid)
    check_names(cid.prefix, provider, grant)
    record = decode(signed.payload, ResourceRecord)
    if record.cid != entry.cid:
        raise BadIdentifier(f"the slot says {entry.cid}, its record {record.cid[:80]}")
    if record.place.city and record.place.city != cid.city:
        raise BadIdentifier(f"{entry.cid} stands in city {record.place.city!r}")
