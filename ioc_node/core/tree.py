"""A Merkle tree of RFC 9162 that is changed leaf by leaf: d changes among n leaves cost about d * log2(n) hashes.

Levels are kept bottom up; a node is the hash of its two children, or its left child unchanged where there is no right
one. `changed` gives a new tree, so that a head that does not match costs nothing to forget.
"""

import hashlib
from collections.abc import Mapping

from ioc_wire.merkle import EMPTY_ROOT


class MerkleTree:
    """Immutable. Equal to `ioc_wire.merkle.root_of` over its leaf hashes."""

    __slots__ = ("_levels",)

    def __init__(self, levels: list[list[bytes]] | None = None) -> None:
        self._levels: list[list[bytes]] = levels or [[]]

    def __len__(self) -> int:
        return len(self._levels[0])

    @property
    def root(self) -> bytes:
        return self._levels[-1][0] if self._levels[0] else EMPTY_ROOT

    def leaf(self, index: int) -> bytes:
        return self._levels[0][index]

    def changed(self, leaves: Mapping[int, bytes], count: int) -> "MerkleTree | None":
        """The tree of `count` leaves in which `leaves` (index to leaf hash) replace or extend those of this one.

        None where a leaf would be missing. Indices from `count` on are ignored.
        """
        level = _resized(self._levels[0], count)
        for index, leaf in leaves.items():
            if index < count:
                level[index] = leaf
        kept = min(len(self), count)
        if any(not level[index] for index in range(kept, count)):
            return None
        dirty = {index for index in leaves if index < count}
        if kept != len(self) and count:
            dirty.add(count - 1)  # its ancestors lost a right child
        if kept != count and kept:
            dirty.add(kept - 1)  # its ancestors gained one
        return MerkleTree(self._grown(level, dirty))

    def _grown(self, level: list[bytes], dirty: set[int]) -> list[list[bytes]]:
        levels = [level]
        sha256 = hashlib.sha256
        while len(level) > 1:
            height = len(levels)
            known = self._levels[height] if height < len(self._levels) else []
            above = _resized(known, (len(level) + 1) // 2)
            dirty = {index >> 1 for index in dirty}
            dirty.update(range(len(known), len(above)))
            for index in dirty:
                left = 2 * index
                if left + 1 < len(level):
                    above[index] = sha256(b"\x01" + level[left] + level[left + 1]).digest()
                else:
                    above[index] = level[left]
            levels.append(above)
            level = above
        return levels


def _resized(level: list[bytes], count: int) -> list[bytes]:
    return level[:count] if len(level) >= count else level + [b""] * (count - len(level))
