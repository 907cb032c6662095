"""Broken copies of good bytes: flipped, cut, lengthened, spliced. The dice are the caller's."""

import random
from collections.abc import Sequence
from typing import Final

EDITS_MAX: Final = 4
SPAN_BYTES_MAX: Final = 32
SPECIAL: Final = (0x00, 0x01, 0x7F, 0x80, 0xC0, 0xC4, 0xC6, 0xCF, 0xDC, 0xDD, 0xFF)
"""Bytes that mean something in MessagePack, or lie at the edge of a number."""


def mutate(data: bytes, others: Sequence[bytes], dice: random.Random) -> bytes:
    """A copy of `data` with one to `EDITS_MAX` edits; splices take from `others`."""
    mutant = bytearray(data)
    for _ in range(dice.randint(1, EDITS_MAX)):
        at = dice.randrange(len(mutant) + 1)
        match dice.randrange(9):
            case 0:
                del mutant[at:]
            case 1:
                mutant += dice.randbytes(dice.randint(1, SPAN_BYTES_MAX))
            case 2:
                mutant[at : at + 1] = bytes((dice.choice(SPECIAL),))
            case 3 | 4:
                if at < len(mutant):
                    mutant[at] ^= 1 << dice.randrange(8)
            case 5:
                mutant[at:at] = mutant[at : at + dice.randint(1, SPAN_BYTES_MAX)]
            case 6:
                del mutant[at : at + dice.randint(1, SPAN_BYTES_MAX)]
            case 7:
                other = dice.choice(others)
                mutant[at:] = other[dice.randrange(len(other) + 1) :]
            case _:
                other = dice.choice(others)
                start = dice.randrange(len(other) + 1)
                piece = other[start : start + dice.randint(1, SPAN_BYTES_MAX)]
                mutant[at : at + len(piece)] = piece
    return bytes(mutant)
