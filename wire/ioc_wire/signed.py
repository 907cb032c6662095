"""Signed envelopes.

The signature covers the length-prefixed domain, the length-prefixed kind and the exact payload bytes. A payload is
parsed only after its signature verified, and nothing is ever re-encoded to be checked.
"""

import functools
from typing import Annotated, ClassVar, Final, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ioc_wire.codec import Key, Message, Signature, decode, encode
from ioc_wire.errors import BadSignature, UnknownType

DOMAIN: Final = "ioc/1"
"""Domain of every signature of protocol version 1: none of them means anything in another protocol."""


class SignedPayload(Message, frozen=True):
    """Base of the structs that are signed; `kind` names the type inside the signature."""

    kind: ClassVar[str]


class Signed(Message, frozen=True):
    """`payload` as its signer encoded it, with the key and the signature (Ed25519, RFC 8032)."""

    domain: Annotated[str, msgspec.Meta(max_length=32)]
    kind: Annotated[str, msgspec.Meta(max_length=32)]
    payload: bytes
    key: Key
    signature: Signature


_P = TypeVar("_P", bound=SignedPayload)


def signed_bytes(domain: str, kind: str, payload: bytes) -> bytes:
    """What a signature covers: `len(domain) domain len(kind) kind payload`, lengths in one byte each."""
    d, k = domain.encode(), kind.encode()
    return bytes((len(d),)) + d + bytes((len(k),)) + k + payload


@functools.lru_cache(maxsize=4096)
def _public_key(key: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(key)


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """The 32 raw bytes of a private key's public half."""
    return key.public_key().public_bytes_raw()


def sign(key: Ed25519PrivateKey, payload: SignedPayload) -> Signed:
    """Encode `payload` and sign it."""
    data = encode(payload)
    return Signed(
        domain=DOMAIN,
        kind=payload.kind,
        payload=data,
        key=public_bytes(key),
        signature=key.sign(signed_bytes(DOMAIN, payload.kind, data)),
    )


def verify(signed: Signed, expected: type[_P]) -> _P:
    """The payload of `signed`, parsed after its signature was found good.

    Raises `UnknownType` for another domain or kind, `BadSignature`, or `Malformed`.
    """
    if signed.domain != DOMAIN or signed.kind != expected.kind:
        raise UnknownType(f"expected {DOMAIN} {expected.kind}, got {signed.domain} {signed.kind}")
    verify_bytes(
        signed.key, signed.signature, signed_bytes(signed.domain, signed.kind, signed.payload), signed.kind
    )
    return decode(signed.payload, expected)


def verify_bytes(key: bytes, signature: bytes, data: bytes, what: str) -> None:
    """Check a bare Ed25519 signature; raises `BadSignature` naming `what`."""
    try:
        _public_key(key).verify(signature, data)
    except (InvalidSignature, ValueError):
        raise BadSignature(what) from None
