"""What a node keeps in memory of each slot of a catalogue, packed: 24 bytes beside the tree's 64.

The names are a sorted array of `hash << SLOT_BITS | slot`, so that an identifier is found by bisection. 47 bits of
hash may collide: whoever finds a slot holds its entry against the name. The hash is Python's own, keyed anew in each
process, so that nobody outside can make names that collide. Hashes are kept by slot too, so that a few changes among
many slots cost what they are.
"""

from array import array
from bisect import bisect_left, insort
from collections.abc import Generator, Iterable, Iterator, Mapping
from itertools import chain
from typing import Final

from ioc_node.core.steps import run_through

SLOT_BITS: Final = 17
SLOTS_MAX: Final = 65536
"""Of one provider."""
_SLOT_MASK: Final = (1 << SLOT_BITS) - 1
_HASH_MASK: Final = (1 << 64 - SLOT_BITS) - 1
assert SLOTS_MAX <= _SLOT_MASK


STEP_SLOTS: Final = 1024
"""Slots and names worked through between two pauses: about a millisecond."""
_FEW: Final = 64
"""Where fewer than one in so many names come and go, each is taken out or put in by itself."""


class SlotTable:
    """Immutable; `changed` makes the next one. A slot is *alive* while its identifier is offered and resolved."""

    __slots__ = ("_hashes", "_names", "_seqs")

    def __init__(
        self,
        seqs: "array[int] | None" = None,
        hashes: "array[int] | None" = None,
        names: "array[int] | None" = None,
    ) -> None:
        self._seqs = seqs if seqs is not None else array("Q")
        self._hashes = hashes if hashes is not None else array("Q")
        """Of the name, by slot; 0 where it is not alive."""
        self._names = names if names is not None else array("Q")

    def __len__(self) -> int:
        return len(self._seqs)

    @property
    def living(self) -> int:
        return len(self._names)

    def is_alive(self, slot: int) -> bool:
        return slot < len(self._hashes) and self._hashes[slot] > 0

    def alive_from(self, first: int, count: int) -> list[bool]:
        """Whether each slot is alive, of at most so many from `first` on."""
        return list(map(bool, self._hashes[first : first + count]))

    def living_slots(self) -> list[int]:
        return [slot for slot, name in enumerate(self._hashes) if name]

    def after(self, seq: int) -> list[int]:
        """Slots that changed after head `seq`, in order; all for 0."""
        return [slot for slot, changed in enumerate(self._seqs) if changed > seq or not seq]

    def candidates(self, cid: str) -> Iterator[int]:
        """Living slots that may hold `cid`: nearly always the one that does, or none."""
        sought = _hash_of(cid)
        at = bisect_left(self._names, sought << SLOT_BITS)
        while at < len(self._names) and self._names[at] >> SLOT_BITS == sought:
            yield self._names[at] & _SLOT_MASK
            at += 1

    def changed(self, seqs: Mapping[int, int], names: Mapping[int, str], count: int) -> "SlotTable":
        """The table of `count` slots after those in `seqs` changed, of which those in `names` are alive."""
        return run_through(self.changing(seqs, names, count))

    def changing(
        self, seqs: Mapping[int, int], names: Mapping[int, str], count: int
    ) -> "Generator[None, None, SlotTable]":
        """`changed` in steps of STEP_SLOTS."""
        new_seqs, hashes = _resized(self._seqs, count), _resized(self._hashes, count)
        yield
        gone: set[int] = set()
        fresh = array("Q")
        for done, slot in enumerate(chain(seqs, range(count, len(self))), 1):
            before = self._hashes[slot] if slot < len(self) else 0
            name, seq = names.get(slot), seqs.get(slot)
            after = _hash_of(name) if name is not None else 0
            if seq is not None:
                new_seqs[slot], hashes[slot] = seq, after
            if before and before != after:
                gone.add(before << SLOT_BITS | slot)
            if after and after != before:
                fresh.append(after << SLOT_BITS | slot)
            if done % STEP_SLOTS == 0:
                yield
        yield
        return SlotTable(new_seqs, hashes, (yield from self._renamed(gone, fresh)))

    def _renamed(self, gone: set[int], fresh: "array[int]") -> "Generator[None, None, array[int]]":
        if not gone and not fresh:
            return self._names
        if (len(gone) + len(fresh)) * _FEW > len(self._names):
            return (yield from _sorted(chain(self._names, fresh), gone, len(self._names) + len(fresh)))
        names = self._names[:]
        for name in gone:
            del names[bisect_left(names, name)]
        for name in fresh:
            insort(names, name)
        return names


def _sorted(names: Iterable[int], without: set[int], count: int) -> "Generator[None, None, array[int]]":
    """About `count` names in order, bucket by bucket: hashes fill them evenly."""
    bits = (count // STEP_SLOTS).bit_length()
    buckets = [array("Q") for _ in range(1 << bits)]
    for done, name in enumerate(names, 1):
        if name not in without:
            buckets[name >> 64 - bits].append(name)
        if done % STEP_SLOTS == 0:
            yield
    found = array("Q")
    for bucket in buckets:
        found.extend(sorted(bucket))
        yield
    return found


def _hash_of(cid: str) -> int:
    """Never 0."""
    return hash(cid) & _HASH_MASK or 1


def _resized(values: "array[int]", count: int) -> "array[int]":
    resized = values[:count]
    resized.frombytes(bytes((count - len(resized)) * resized.itemsize))
    return resized
