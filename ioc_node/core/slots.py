"""What a node keeps in memory of each slot of a catalogue, packed: 17 bytes beside the tree's 64.

The names are a sorted array of `hash << SLOT_BITS | slot`, so that an identifier is found by bisection. 47 bits of
hash may collide: whoever finds a slot holds its entry against the name. The hash is Python's own, keyed anew in each
process, so that nobody outside can make names that collide.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

SLOT_BITS: Final = 17
SLOTS_MAX: Final = 65536
"""Of one provider."""
_SLOT_MASK: Final = (1 << SLOT_BITS) - 1
_HASH_MASK: Final = (1 << 64 - SLOT_BITS) - 1
assert SLOTS_MAX <= _SLOT_MASK


class SlotTable:
    """Immutable; `changed` makes the next one. A slot is *alive* while its identifier is offered and resolved."""

    __slots__ = ("_alive", "_names", "_seqs")

    def __init__(
        self, seqs: "array[int] | None" = None, alive: bytes = b"", names: "array[int] | None" = None
    ) -> None:
        self._seqs = seqs if seqs is not None else array("Q")
        self._alive = alive
        self._names = names if names is not None else array("Q")

    def __len__(self) -> int:
        return len(self._seqs)

    @property
    def living(self) -> int:
        return len(self._names)

    def is_alive(self, slot: int) -> bool:
        return slot < len(self._alive) and self._alive[slot] == 1

    def alive_from(self, first: int, count: int) -> bytes:
        """1 for each slot that is alive, of at most so many from `first` on."""
        return self._alive[first : first + count]

    def living_slots(self) -> list[int]:
        return [slot for slot, alive in enumerate(self._alive) if alive]

    def after(self, seq: int) -> list[int]:
        """Slots that changed after head `seq`, in order; all for 0."""
        return [slot for slot, changed in enumerate(self._seqs) if changed > seq or not seq]

    def candidates(self, cid: str) -> Iterator[int]:
        """Living slots that may hold `cid`: nearly always the one that does, or none."""
        sought = hash(cid) & _HASH_MASK
        at = bisect_left(self._names, sought << SLOT_BITS)
        while at < len(self._names) and self._names[at] >> SLOT_BITS == sought:
            yield self._names[at] & _SLOT_MASK
            at += 1

    def changed(self, seqs: Mapping[int, int], names: Mapping[int, str], count: int) -> "SlotTable":
        """The table of `count` slots after those in `seqs` changed, of which those in `names` are alive."""
        new_seqs = self._seqs[:count]
        new_seqs.extend([0] * (count - len(new_seqs)))
        alive = bytearray(self._alive[:count].ljust(count, b"\0"))
        for slot, seq in seqs.items():
            new_seqs[slot] = seq
            alive[slot] = slot in names
        kept: Iterable[int] = (
            name for name in self._names if (slot := name & _SLOT_MASK) < count and slot not in seqs
        )
        fresh = (((hash(cid) & _HASH_MASK) << SLOT_BITS) | slot for slot, cid in names.items())
        return SlotTable(new_seqs, bytes(alive), array("Q", sorted((*kept, *fresh))))
