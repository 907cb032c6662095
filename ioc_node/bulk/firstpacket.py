"""What a holder reads in a stranger's first packet, and the token by which the stranger proves its address."""

import os
import struct
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ioc_node.bulk.udp import Address

QUIC_VERSION_1: Final = 1
TOKEN_SECONDS: Final = 10


class LongHeader(NamedTuple):
    """What RFC 8999 and 9000 put in front of every first packet."""

    version: int
    destination: bytes
    source: bytes
    is_initial: bool
    token: bytes


def parse_long_header(data: bytes) -> LongHeader | None:
    """The header of a long-header packet, or None where the bytes are none."""
    try:
        version = int.from_bytes(data[1:5], "big")
        destination, at = _field(data, 5)
        source, at = _field(data, at)
        is_initial = version == QUIC_VERSION_1 and data[0] & 0xF0 == 0xC0
        token = b""
        if is_initial:
            size = 1 << (data[at] >> 6)
            length = int.from_bytes(data[at : at + size], "big") & ((1 << (8 * size - 2)) - 1)
            token = data[at + size : at + size + length]
    except IndexError:
        return None
    return LongHeader(version, destination, source, is_initial, token)


def _field(data: bytes, at: int) -> tuple[bytes, int]:
    end = at + 1 + data[at]
    if data[at] > 20 or end > len(data):
        raise IndexError
    return data[at + 1 : end], end


class RetryTokens:
    """Makes and opens Retry tokens; each is good for one address, one connection ID and `TOKEN_SECONDS`."""

    _TIME: Final = struct.Struct(">Q")

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._seal = AESGCM(AESGCM.generate_key(128))
        self._clock = clock

    def make(self, address: Address, original_id: bytes, retry_id: bytes) -> bytes:
        """A token that says: this address asked for `original_id` just now, and was told `retry_id`."""
        nonce = os.urandom(12)
        plain = self._TIME.pack(int(self._clock())) + original_id
        return nonce + self._seal.encrypt(nonce, plain, self._bound(address, retry_id))

    def open(self, token: bytes, address: Address, retry_id: bytes) -> bytes | None:
        """The original connection ID, or None for a token that is forged, old or another's."""
        try:
            plain = self._seal.decrypt(token[:12], token[12:], self._bound(address, retry_id))
            made = self._TIME.unpack_from(plain)[0]
        except (InvalidTag, ValueError, struct.error):
            return None
        return plain[self._TIME.size :] if self._clock() - made <= TOKEN_SECONDS else None

    @staticmethod
    def _bound(address: Address, retry_id: bytes) -> bytes:
        return f"{address[0]} {address[1]} ".encode() + retry_id
