"""The people of the wire tests: keys from fixed seeds, a root, and chains down to a provider."""

import hashlib
from typing import Final

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_wire.authority import Delegation, Role
from ioc_wire.signed import Signed, public_bytes, sign

NOW: Final = 1_800_000_000
DAY: Final = 86_400


def private_key(name: str) -> Ed25519PrivateKey:
    """The key of the person called `name`."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def public_key(name: str) -> bytes:
    return public_bytes(private_key(name))


def delegate(
    issuer: str,
    subject: str,
    prefix: str,
    *roles: Role,
    not_before: int = NOW - DAY,
    not_after: int = NOW + DAY,
) -> Signed:
    """A signed delegation between two people."""
    grant = Delegation(public_key(subject), prefix, roles, not_before, not_after)
    return sign(private_key(issuer), grant)


@pytest.fixture
def chain() -> tuple[Signed, ...]:
    """root → beijing (national) → hangzhou (regional) → alice (provider)."""
    return (
        delegate("root", "beijing", "cn", "national"),
        delegate("beijing", "hangzhou", "cn.r3301", "regional"),
        delegate("hangzhou", "alice", "cn.r3301.20004", "provider", "consumer"),
    )
