"""One provider's catalogue as another node holds it: the newest head seen, and the newest head held with its entries.

The two differ while entries are on their way. Entries are never trusted one by one: the Merkle root over all of them
must be the one that the head signs, which costs hashing instead of an Ed25519 check per record. An entry that is
vouched for in this way may still claim what its provider does not own; it stays a leaf, but is not *alive*: it is not
offered, resolved or counted. The entries themselves lie in an `EntryBook`.
"""

import hashlib
from typing import Final, NamedTuple

from ioc_node.core.intake import Base, Intake, Refused
from ioc_node.core.slots import SlotTable
from ioc_node.core.tree import MerkleTree
from ioc_wire import limits
from ioc_wire.authority import Grant
from ioc_wire.cid import self_certified_prefix
from ioc_wire.codec import decode
from ioc_wire.gossip import HeadNews, HeadRow
from ioc_wire.market import Contact
from ioc_wire.records import Head, StatusBatch
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
    """The newest status batch for one part of a provider's slots. It counts until `fresh_until` (seconds since 1970, by
    this node's clock). Its rows stay encoded: a million of them as objects would slow down every garbage collection.
    """

    signed: Signed
    seq: int
    expires: int
    fresh_until: float

    @property
    def batch(self) -> StatusBatch:
        """Decoded anew at each call."""
        return decode(self.signed.payload, StatusBatch)


class Applied(NamedTuple):
    """What a fetch changed. An empty one changed nothing (the head was known)."""

    slots: tuple[int, ...] = ()
    refused: tuple[Refused, ...] = ()


class Replica:
    """State of one provider. Changed only by `Catalogue`."""

    def __init__(self, provider: bytes, grant: Grant | None = None) -> None:
        self.provider = provider
        self._own_prefix = self_certified_prefix(provider)
        self.grant = grant
        self.announced: Seen | None = None
        self.held: Seen | None = None
        self.statuses: dict[int, HeldStatus] = {}
        """By part."""
        self.fork: tuple[Seen, Seen] | None = None
        self.prefixes: set[str] = set()
        self._marked: tuple[Seen | None, tuple[Seen, Seen] | None, bytes] = (None, None, b"")
        """The mark, and the head or fork that it is of."""
        self.base = Base(0, SlotTable(), MerkleTree())

    @property
    def prefix(self) -> str:
        """Where its names lie: the prefix that it was granted, its self-certified one where it was granted none."""
        return self.grant.prefix if self.grant is not None else self._own_prefix

    @property
    def contact(self) -> Contact | None:
        """Where the provider takes links, as the news of its head says."""
        return self.held.news.contact if self.held is not None else None

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
    def status_seq(self) -> int:
        """That of the newest status batch, 0 where there is none."""
        return max((held.seq for held in self.statuses.values()), default=0)

    def status_of(self, slot: int) -> HeldStatus | None:
        """The newest batch that has the status of a slot, if any."""
        return self.statuses.get(slot // limits.STATUS_ROWS_MAX)

    @property
    def slots(self) -> int:
        """Entries that are held, tombstones among them."""
        return len(self.base.table)

    @property
    def living(self) -> int:
        """Identifiers that are offered and resolved."""
        return self.base.table.living

    def news(self) -> tuple[HeadNews, ...]:
        """What to tell others of this provider: the head held, or the two heads that prove a fork."""
        if self.fork is not None:
            return (self.fork[0].news, self.fork[1].news)
        return (self.held.news,) if self.held is not None else ()

    def ends(self) -> float:
        """When nothing of this provider counts any more (seconds since 1970); after a fork: both of its heads."""
        seen = [seen for seen in self.fork or (self.announced, self.held) if seen is not None]
        last = max((one.head.expires for one in seen), default=0)
        return min(last, self.grant.not_after) if self.grant is not None else last

    def row(self) -> HeadRow | None:
        """This provider in a head vector; None while nothing of it is held."""
        if self.fork is not None:
            return HeadRow(self.provider, self.seq, FORKED, 0)
        if self.held is None:
            return None
        return HeadRow(self.provider, self.held.head.seq, self.held.hash, self.status_seq)

    def mark(self) -> bytes:
        """Its part of a catalogue's digest, 72 bytes: provider, seq, head hash; empty while nothing of it is held."""
        held, fork = self.held, self.fork
        if self._marked[0] is not held or self._marked[1] is not fork:
            self._marked = held, fork, self._made_mark()
        return self._marked[2]

    def _made_mark(self) -> bytes:
        if self.fork is not None:
            return self.provider + bytes(8) + FORKED
        if self.held is None:
            return b""
        return self.provider + self.held.head.seq.to_bytes(8, "big") + self.held.hash

    def is_alive(self, slot: int) -> bool:
        return self.base.table.is_alive(slot)

    def living_slots(self) -> list[int]:
        return self.base.table.living_slots()

    def slots_after(self, seq: int) -> list[int]:
        """The slots that changed after head `seq`, in order; all for 0."""
        return self.base.table.after(seq) if seq < self.held_seq else []

    def accept_same_root(self) -> bool:
        """Hold the announced head if it commits to the very entries that are held already."""
        seen, held = self.announced, self.held
        if seen is None or held is None or seen.head.seq <= held.head.seq:
            return False
        if (seen.head.root, seen.head.slots) != (held.head.root, held.head.slots):
            return False
        self.held = seen
        return True

    def commit(self, intake: Intake, target: Seen) -> Applied:
        """Hold `target` with the entries of an intake that was closed with its head."""
        self.base = Base(self.base.version + 1, intake.table, intake.tree)
        self.prefixes |= intake.prefixes
        self.held = target
        return Applied(intake.changed, intake.refused)

    def clear(self) -> None:
        """Forget everything that is held."""
        self.base = Base(self.base.version + 1, SlotTable(), MerkleTree())
        self.prefixes.clear()
        self.held = None
        self.statuses.clear()
