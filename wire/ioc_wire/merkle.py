"""The Merkle tree hash of RFC 9162, section 2.1.1, over SHA-256."""

import hashlib
from collections.abc import Sequence
from typing import Final

EMPTY_ROOT: Final = hashlib.sha256(b"").digest()


def leaf_hash(leaf: bytes) -> bytes:
    """SHA-256 of 0x00 and the leaf."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def root_of(leaf_hashes: Sequence[bytes]) -> bytes:
    """The tree's root, 32 bytes, from leaf hashes in order.

    Pairing neighbours level by level and carrying an odd last node up unchanged gives the same tree as the RFC's
    split at the largest power of two, without recursion.
    """
    if not leaf_hashes:
        return EMPTY_ROOT
    level = list(leaf_hashes)
    sha256 = hashlib.sha256
    while len(level) > 1:
        paired = [sha256(b"\x01" + level[i] + level[i + 1]).digest() for i in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            paired.append(level[-1])
        level = paired
    return level[0]
