"""Entries on their way into a catalogue: checked as they come, in steps, and held by nobody before their root is.

Nothing of a catalogue changes until `Catalogue.commit`. Entries may come more than once; the last one counts, so that
a sender whose catalogue changes while it sends only adds what changed.
"""

from collections.abc import Generator, Iterator, Sequence
from typing import Final, NamedTuple

from ioc_node.core.by_slot import BySlot
from ioc_node.core.entry_book import EntryBook
from ioc_node.core.slots import SlotTable
from ioc_node.core.tree import MerkleTree
from ioc_wire import limits
from ioc_wire.authority import Grant, check_names
from ioc_wire.cid import parse_cid
from ioc_wire.codec import decode
from ioc_wire.errors import BadIdentifier, BadSignature, Malformed, TooLarge, WireError, WrongRoot
from ioc_wire.merkle import leaf_hash
from ioc_wire.records import CatalogueEntry, Head, ResourceRecord, decode_entry
from ioc_wire.signed import Signed

STEP_ENTRIES: Final = 64
"""Entries checked between two pauses: about 2 ms."""

STEP_NAMES: Final = 512
"""Names held against those that there are, between two pauses."""

NAME_DICTS: Final = 64
"""Names are kept in so many: one for all would take milliseconds to grow, and to be freed."""


class Refused(NamedTuple):
    """An entry or a row that is left out, while the rest goes on: `what` it is, and why."""

    what: str
    error: WireError


class Base(NamedTuple):
    """The state of a replica that an intake adds to."""

    version: int
    table: SlotTable
    tree: MerkleTree


class Intake:
    """Entries of one provider. Made by `Catalogue.begin`, taken in by `Catalogue.commit`."""

    def __init__(
        self, provider: bytes, grant: Grant | None, base: Base, book: EntryBook, *, stored: bool
    ) -> None:
        """`stored`: the entries come from `book` itself and need not be kept."""
        self.provider = provider
        self.base = base
        self.entries: BySlot[bytes] = BySlot()
        self.size = 0
        """Bytes of the entries, as often as they came."""
        self.table = base.table
        self.tree = base.tree
        self.changed: tuple[int, ...] = ()
        self.refused: tuple[Refused, ...] = ()
        self.prefixes: set[str] = set()
        self._grant = grant
        self._book = book
        self._stored = stored
        self._leaves: BySlot[bytes] = BySlot()
        self._seqs: BySlot[int] = BySlot()
        self._names: BySlot[str] = BySlot()
        self._faults: dict[int, WireError] = {}
        self._slot_max = -1
        self._seq_max = 0

    def add(self, entries: Sequence[bytes]) -> Generator[None, None, None]:
        """Take some entries in, in steps. Raises `Malformed` or `TooLarge` for one that cannot be a leaf."""
        for start in range(0, len(entries), STEP_ENTRIES):
            for data in entries[start : start + STEP_ENTRIES]:
                self._add(data)
            yield

    def _add(self, data: bytes) -> None:
        entry = decode_entry(data)
        slot = entry.slot
        if not entry.seq:
            raise Malformed(f"slot {slot} says that it changed with head 0")
        if slot in self._seqs:
            self._faults.pop(slot, None)
            self._names.pop(slot, None)
        self._leaves[slot] = leaf_hash(data)
        self._seqs[slot] = entry.seq
        self._slot_max, self._seq_max = max(slot, self._slot_max), max(entry.seq, self._seq_max)
        if not self._stored:
            self.entries[slot] = data
            self.size += len(data)
        if entry.record is None:
            return
        try:
            self.prefixes.add(check_entry(entry, entry.record, self.provider, self._grant))
        except WireError as error:
            self._faults[slot] = error
        else:
            self._names[slot] = entry.cid

    def __len__(self) -> int:
        """Slots that entries have come for."""
        return len(self._seqs)

    def close(self, head: Head) -> Generator[None, None, None]:
        """Work out the state that `head` signs, in steps, and forget what was worked with. Raises `WrongRoot` or
        `Malformed`.
        """
        if self._slot_max >= head.slots or self._seq_max > head.seq:
            raise Malformed(f"slot {self._slot_max} does not fit head {head.seq} over {head.slots}")
        yield
        tree = yield from self.base.tree.changing(self._leaves, head.slots)
        if tree is None:
            raise WrongRoot("entries are missing: the log has a gap")
        if tree.root != head.root:
            raise WrongRoot(f"{len(self._seqs)} entries towards head {head.seq}")
        yield
        yield from self._refuse_twins()
        table = yield from self.base.table.changing(self._seqs, self._names, head.slots)
        self.tree, self.table = tree, table
        yield
        self.changed = (*self._seqs, *range(head.slots, len(self.base.table)))
        self.refused = tuple(Refused(f"slot {slot}", self._faults[slot]) for slot in sorted(self._faults))
        for worked in (self._leaves, self._names, self._seqs):
            yield from worked.emptying()

    def _refuse_twins(self) -> Iterator[None]:
        """An identifier has one slot: the first one that it was entered in."""
        taken: list[dict[str, int]] = [{} for _ in range(NAME_DICTS)]
        for done, slot in enumerate(self._names.in_order()):
            cid = self._names[slot]
            other = taken[hash(cid) % NAME_DICTS].setdefault(cid, slot)
            if other == slot:
                other = next(self._held_in(cid), slot)
            if other != slot:
                self._faults[slot] = Malformed(f"{cid} stands in slot {other} already")
                del self._names[slot]
            if done % STEP_NAMES == STEP_NAMES - 1:
                yield
        while taken:
            taken.pop()
            yield

    def _held_in(self, cid: str) -> Iterator[int]:
        for slot in self.base.table.candidates(cid):
            if slot not in self._seqs:
                yield from (
                    slot
                    for data in self._book.get_many(self.provider, [slot])
                    if decode_entry(data).cid == cid
                )


def check_entry(entry: CatalogueEntry, signed: Signed, provider: bytes, grant: Grant | None) -> str:
    """All of a record but its signature, for which the head vouches, and its period, which the reader holds
    against its own clock. Returns the identifier's prefix; raises the fault.
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
    return cid.prefix
