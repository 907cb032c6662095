"""A Merkle tree of RFC 9162 that is changed leaf by leaf: d changes among n leaves cost about d * log2(n) hashes.

Levels are kept bottom up, packed: 64 bytes a leaf in all. A node is the hash of its two children, or its left child
unchanged where there is no right one. A change gives a new tree, so that a head that does not match costs nothing to
forget; it is worked out in steps, so that a large one holds nobody up.
"""

import hashlib
from collections.abc import Generator, Iterator, Mapping
from typing import Final

from ioc_node.core.steps import run_through
from ioc_wire.merkle import EMPTY_ROOT

STEP_HASHES: Final = 1024
"""Nodes worked out between two pauses: about a millisecond."""
_SIZE: Final = 32


class MerkleTree:
    """Immutable. Equal to `ioc_wire.merkle.root_of` over its leaf hashes."""

    __slots__ = ("_levels",)

    def __init__(self, levels: list[bytearray] | None = None) -> None:
        self._levels: list[bytearray] = levels or [bytearray()]

    def __len__(self) -> int:
        return len(self._levels[0]) // _SIZE

    @property
    def root(self) -> bytes:
        return bytes(self._levels[-1][:_SIZE]) if self._levels[0] else EMPTY_ROOT

    def leaf(self, index: int) -> bytes:
        return bytes(self._levels[0][index * _SIZE : (index + 1) * _SIZE])

    def changed(self, leaves: Mapping[int, bytes], count: int) -> "MerkleTree | None":
        """The tree of `count` leaves in which `leaves` (index to leaf hash) replace or extend those of this one.

        None where a leaf would be missing. Indices from `count` on are ignored.
        """
        return run_through(self.changing(leaves, count))

    def changing(self, leaves: Mapping[int, bytes], count: int) -> "Generator[None, None, MerkleTree | None]":
        """`changed` in steps of STEP_HASHES."""
        if count and len(leaves) == count:
            level = yield from _joined(leaves)
            if level is None:
                return None
            levels = [level]
            yield from self._grow(levels, None)
            return MerkleTree(levels)
        kept = min(len(self), count)
        dirty = {index for index in leaves if index < count}
        if sum(index >= kept for index in dirty) != count - kept:
            return None
        level = _resized(self._levels[0], count)
        for done, index in enumerate(dirty, 1):
            level[index * _SIZE : (index + 1) * _SIZE] = leaves[index]
            if done % STEP_HASHES == 0:
                yield
        if kept != len(self) and count:
            dirty.add(count - 1)  # its ancestors lost a right child
        if kept != count and kept:
            dirty.add(kept - 1)  # its ancestors gained one
        levels = [level]
        yield from self._grow(levels, dirty)
        return MerkleTree(levels)

    def _grow(self, levels: list[bytearray], dirty: set[int] | None) -> Iterator[None]:
        """Work out all levels above the leaves, of which those in `dirty` are new; None: all."""
        while (width := len(levels[-1]) // _SIZE) > 1:
            if dirty is None:
                levels.append(bytearray((width + 1) // 2 * _SIZE))
                yield from _hash_all(levels[-2], levels[-1])
                continue
            height = len(levels)
            known = self._levels[height] if height < len(self._levels) else bytearray()
            dirty = {index >> 1 for index in dirty}
            dirty.update(range(len(known) // _SIZE, (width + 1) // 2))
            above = _resized(known, (width + 1) // 2)
            yield
            if 4 * len(dirty) > width:
                yield from _hash_all(levels[-1], above)
            else:
                yield from _hash_some(levels[-1], above, dirty)
            levels.append(above)


def _joined(leaves: Mapping[int, bytes]) -> Generator[None, None, bytearray | None]:
    """The level of leaves from 0 on without a gap; None where there is one."""
    level = bytearray()
    for first in range(0, len(leaves), STEP_HASHES):
        wanted = range(first, min(first + STEP_HASHES, len(leaves)))
        found = [leaf for leaf in map(leaves.get, wanted) if leaf is not None]
        if len(found) < len(wanted):
            return None
        level += b"".join(found)
        yield
    return level


def _hash_all(level: bytearray, above: bytearray) -> Iterator[None]:
    """Work out every node of a level: a third of the cost per node of picking them one by one."""
    sha256, pairs = hashlib.sha256, len(level) // (2 * _SIZE)
    for first in range(0, pairs, STEP_HASHES):
        last = min(first + STEP_HASHES, pairs)
        packed = bytes(level[2 * _SIZE * first : 2 * _SIZE * last])
        spans = range(0, len(packed), 2 * _SIZE)
        nodes = b"".join([sha256(b"\x01" + packed[at : at + 2 * _SIZE]).digest() for at in spans])
        above[_SIZE * first : _SIZE * last] = nodes
        yield
    if len(level) % (2 * _SIZE):
        above[_SIZE * pairs :] = level[-_SIZE:]


def _hash_some(level: bytearray, above: bytearray, dirty: set[int]) -> Iterator[None]:
    sha256 = hashlib.sha256
    for worked, index in enumerate(dirty, 1):
        pair = level[2 * _SIZE * index : 2 * _SIZE * (index + 1)]
        node = sha256(b"\x01" + pair).digest() if len(pair) > _SIZE else pair
        above[_SIZE * index : _SIZE * (index + 1)] = node
        if worked % STEP_HASHES == 0:
            yield


def _resized(level: bytearray, count: int) -> bytearray:
    size = count * _SIZE
    return level[:size] + bytes(max(0, size - len(level)))
