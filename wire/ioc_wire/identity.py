"""Node identities: one Ed25519 key, and its SHA-256 as the node ID."""

import base64
import binascii
import hashlib
from typing import NewType

from ioc_wire import limits
from ioc_wire.errors import Malformed

NodeId = NewType("NodeId", bytes)
"""SHA-256 of a node's Ed25519 public key, 32 bytes."""


def node_id_of(public_key: bytes) -> NodeId:
    """The node ID of a 32-byte Ed25519 public key."""
    if len(public_key) != limits.KEY_BYTES:
        raise Malformed(f"a public key has {limits.KEY_BYTES} bytes, not {len(public_key)}")
    return NodeId(hashlib.sha256(public_key).digest())


def base32(data: bytes) -> str:
    """RFC 4648 base32 in lower case without padding, as identifiers and node IDs use it."""
    return base64.b32encode(data).decode().rstrip("=").lower()


def unbase32(text: str) -> bytes:
    """Inverse of `base32`; raises `Malformed`, also for upper case and for non-canonical trailing bits."""
    try:
        data = base64.b32decode(text.upper() + "=" * (-len(text) % 8))
    except (binascii.Error, ValueError) as error:
        raise Malformed(f"not base32: {error}") from None
    if base32(data) != text:
        raise Malformed("not canonical base32 (lower case, no padding)")
    return data


def format_node_id(node_id: bytes) -> str:
    """`n` and 52 characters of base32."""
    return "n" + base32(node_id)


def parse_node_id(text: str) -> NodeId:
    """Inverse of `format_node_id`; raises `Malformed`."""
    if not text.startswith("n") or len(text) != 53:
        raise Malformed(f"a node ID is 'n' and 52 characters of base32, not {text[:60]!r}")
    return NodeId(unbase32(text[1:]))
