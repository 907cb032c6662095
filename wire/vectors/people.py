"""The people of the vectors, their keys, and how structs and envelopes are written down."""

import hashlib
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from plain import plain
from structs import full_name

from ioc_wire import authority
from ioc_wire.codec import encode
from ioc_wire.signed import Signed, SignedPayload, public_bytes, sign, signed_bytes

NOW: Final = 1_800_000_000
DAY: Final = 86_400
PEOPLE: Final = ("root", "beijing", "hangzhou", "alice", "bob", "carol")
CID: Final = "ioc:cn.r3301.20004/ai/3301/az1/h7f3a"

Vector = dict[str, Any]


def key_of(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(digest(name))


def public(name: str) -> bytes:
    return public_bytes(key_of(name))


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def struct_vector(value: Any, **more: Any) -> Vector:
    """A struct: its type, tag where it has one, fields in order, and bytes."""
    vector: Vector = {"type": full_name(type(value))}
    if value.__struct_config__.tag is not None:
        vector["tag"] = value.__struct_config__.tag
    return {**vector, **more, "fields": plain(value), "bytes": encode(value).hex()}


def signed_vector(signer: str, payload: SignedPayload, **more: Any) -> tuple[Signed, Vector]:
    """An envelope, with what its signature covers."""
    signed = sign(key_of(signer), payload)
    return signed, {
        **more,
        "signer": signer,
        "payload": struct_vector(payload),
        "signed_bytes": signed_bytes(signed.domain, signed.kind, signed.payload).hex(),
        "envelope": struct_vector(signed),
    }


def link(issuer: str, subject: str, prefix: str, *roles: authority.Role) -> tuple[Signed, Vector]:
    """One delegation, good for a day before and after `NOW`."""
    grant = authority.Delegation(public(subject), prefix, roles, NOW - DAY, NOW + DAY)
    return signed_vector(issuer, grant, subject=subject)
