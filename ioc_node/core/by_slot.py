"""What belongs to the slots of one catalogue, by slot, in chunks: no step with it is a long one.

A dict that has grown to tens of thousands of entries is copied to grow further, and frees them all in one go: either
takes many milliseconds.
"""

from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping, MutableMapping
from itertools import chain
from typing import Final, Generic, TypeVar

V = TypeVar("V")

CHUNK_BITS: Final = 11
"""A chunk has so many slots, as a power of two: a tenth of a millisecond to copy, or to free."""


class BySlot(MutableMapping[int, V], Generic[V]):
    """A dict of slots, cut into chunks."""

    __slots__ = ("_chunks",)

    def __init__(self, values: Mapping[int, V] | None = None) -> None:
        self._chunks: defaultdict[int, dict[int, V]] = defaultdict(dict)
        self.update(values or {})

    def __getitem__(self, slot: int) -> V:
        return self._chunk(slot)[slot]

    def __setitem__(self, slot: int, value: V) -> None:
        self._chunks[slot >> CHUNK_BITS][slot] = value

    def __delitem__(self, slot: int) -> None:
        del self._chunk(slot)[slot]

    def __contains__(self, slot: object) -> bool:
        return isinstance(slot, int) and slot in self._chunk(slot)

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self._chunks.values())

    def __len__(self) -> int:
        return sum(map(len, self._chunks.values()))

    def chunks(self) -> Iterable[Mapping[int, V]]:
        """All of it, chunk by chunk."""
        return self._chunks.values()

    def in_order(self) -> Iterator[int]:
        """The slots, the lowest first; those that went meanwhile may be among them."""
        for number in sorted(self._chunks):
            yield from sorted(self._chunks[number])

    def emptying(self) -> Generator[None, None, None]:
        """Forget everything, in steps."""
        while self._chunks:
            self._chunks.popitem()
            yield

    def _chunk(self, slot: int) -> dict[int, V]:
        return self._chunks.get(slot >> CHUNK_BITS, {})
