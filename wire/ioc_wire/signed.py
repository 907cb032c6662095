"""Signed envelopes.

The signature covers the length-prefixed domain, the length-prefixed kind and the exact payload bytes. A payload is
parsed only after its signature verified, and nothing is ever re-encoded to be checked.

Signatures are made by OpenSSL and checked by libsodium, which takes half of OpenSSL's time for it.
"""

from collections.abc import Callable
from typing import Annotated, ClassVar, Final, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nacl.bindings import crypto_sign_open
from nacl.exceptions import BadSignatureError

from ioc_wire import limits
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
Check = Callable[[bytes, bytes, bytes, str], None]
"""Checks a bare signature as `verify_bytes` does, or remembers that it was checked before."""


def signed_bytes(domain: str, kind: str, payload: bytes) -> bytes:
    """What a signature covers: `len(domain) domain len(kind) kind payload`, lengths in one byte each."""
    d, k = domain.encode(), kind.encode()
    return bytes((len(d),)) + d + bytes((len(k),)) + k + payload


_SMALL_ORDER: Final = frozenset(
    bytes.fromhex(y)
    for y in (
        "00" * 32,
        "01" + "00" * 31,
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
)
"""All encodings, sign bit cleared, of points of order 1, 2, 4 or 8: for such a "key" anybody can sign anything."""


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


def verify(signed: Signed, expected: type[_P], *, check: Check | None = None) -> _P:
    """The payload of `signed`, parsed after its signature was found good (by `check`, otherwise `verify_bytes`).

    Raises `UnknownType` for another domain or kind, `BadSignature`, or `Malformed`.
    """
    if signed.domain != DOMAIN or signed.kind != expected.kind:
        raise UnknownType(f"expected {DOMAIN} {expected.kind}, got {signed.domain} {signed.kind}")
    data = signed_bytes(signed.domain, signed.kind, signed.payload)
    (check or verify_bytes)(signed.key, signed.signature, data, signed.kind)
    return decode(signed.payload, expected)


def verify_bytes(key: bytes, signature: bytes, data: bytes, what: str) -> None:
    """Check a bare Ed25519 signature; raises `BadSignature` naming `what`."""
    sized = len(key) == limits.KEY_BYTES and len(signature) == limits.SIGNATURE_BYTES
    if not sized or key[:31] + bytes((key[31] & 0x7F,)) in _SMALL_ORDER:
        raise BadSignature(what)
    try:
        crypto_sign_open(signature + data, key)
    except BadSignatureError:
        raise BadSignature(what) from None
