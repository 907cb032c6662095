"""Who may name, register and serve: delegation chains from a network's root keys to a node's key.

A chain is a tuple of signed delegations, root first, at most four long. Each is signed by the subject of the one
before it, stays inside its prefix and its period, and hands on only roles that its issuer's role may hand on.

A key owns its self-certified prefix without any authority. In an open network it may endorse another key for it: a
chain of one delegation, signed by the owner, that grants names under this prefix and nothing else.

A revocation ends what its signer may end. Of a root key, or of the key itself: all that the key signs and was granted.
Of another issuer: all that this issuer granted to the key, directly or through others; so nobody can end what he did
not give, though he may delegate something to any key.
"""

import hashlib
from collections.abc import Collection, Sequence
from typing import Annotated, ClassVar, Final, Literal

import msgspec

from ioc_wire import limits
from ioc_wire.cid import check_prefix, prefix_covers, self_certified_prefix
from ioc_wire.codec import Key, Message, UInt, encode
from ioc_wire.errors import (
    BrokenChain,
    Expired,
    NotEntitled,
    NotYetValid,
    PrefixNotCovered,
    Revoked,
    TooLarge,
    WireError,
)
from ioc_wire.signed import Signed, SignedPayload, verify

Role = Literal["national", "regional", "industry", "provider", "consumer"]
CORE_ROLES: Final = frozenset({"national", "regional", "industry"})
SERVER_ROLES: Final = CORE_ROLES | {"provider"}

_MAY_GRANT: Final[dict[str, frozenset[str]]] = {
    "national": frozenset({"regional", "industry", "provider", "consumer"}),
    "regional": frozenset({"provider", "consumer"}),
    "industry": frozenset({"provider", "consumer"}),
}

Chain = Annotated[tuple[Signed, ...], msgspec.Meta(max_length=limits.CHAIN_LINKS_MAX)]


class Delegation(SignedPayload, frozen=True):
    """Grant of a prefix and roles to `subject` by the envelope's key. Times in seconds since 1970, UTC."""

    kind: ClassVar[str] = "delegation"
    subject: Key
    prefix: str
    roles: tuple[Role, ...]
    not_before: UInt
    not_after: UInt


class Revocation(SignedPayload, frozen=True):
    """What the envelope's key granted to `subject` ended at `issued`; its own keys each key may revoke whole.

    Remembered until `until`, seconds since 1970, UTC: when the last delegation that it ends would have ended.
    """

    kind: ClassVar[str] = "revocation"
    subject: Key
    issued: UInt
    until: UInt
    reason: Annotated[str, msgspec.Meta(max_length=limits.REASON_CHARS_MAX)] = ""


class RevocationNews(Message, frozen=True):
    """A signed revocation with what shows that its signer may revoke: a chain that ends in a delegation to the
    revoked key and in which the signer granted something, or is that key. No chain is needed where a root key signs,
    and, in an open network, where the key itself does."""

    revocation: Signed
    chain: Annotated[tuple[Signed, ...], msgspec.Meta(max_length=limits.CHAIN_LINKS_MAX)] = ()


class Grant(Message, frozen=True):
    """What a verified chain gives to its last subject."""

    subject: Key
    prefix: str
    roles: tuple[str, ...]
    not_after: UInt

    def covers(self, prefix: str) -> bool:
        return prefix_covers(self.prefix, prefix)


def chain_hash(chain: Sequence[Signed]) -> bytes:
    """The name of a chain where it is not sent along: SHA-256 of its encoding, 32 bytes."""
    return hashlib.sha256(encode(tuple(chain))).digest()


def verify_chain(
    chain: Sequence[Signed],
    *,
    roots: Collection[bytes],
    now: float,
    revoked: Collection[bytes] = (),
    ended: Collection[tuple[bytes, bytes]] = (),
    self_certified: bool = False,
) -> Grant:
    """Check every link of `chain` (root first) and return what its last subject holds.

    `now` is seconds since 1970; a skew of five minutes is tolerated. `revoked` keys are revoked whole, `ended` are
    pairs of an issuer and the key whose grants it ended. `self_certified` also admits the owner of a self-certified
    prefix as first issuer, as open networks do. Raises `BrokenChain`, `Expired`,
    `NotYetValid`, `Revoked`, `BadSignature`, `BadIdentifier`, `UnknownType` or `Malformed`, each naming the
    link (1 is the root's).
    """
    if not 1 <= len(chain) <= limits.CHAIN_LINKS_MAX:
        raise BrokenChain(f"{len(chain)} links, 1 to {limits.CHAIN_LINKS_MAX} are allowed")
    parent: Delegation | None = None
    for number, link in enumerate(chain, 1):
        try:
            delegation = verify(link, Delegation)
            check_prefix(delegation.prefix)
        except WireError as error:
            raise type(error)(f"link {number}: {error.detail}") from None
        if parent is None and self_certified and link.key not in roots:
            _check_endorsement(link.key, delegation)
        else:
            _check_link(number, link.key, delegation, parent, roots)
        if link.key in revoked or delegation.subject in revoked:
            raise Revoked(f"link {number} of the delegation chain")
        if ended and any((above.key, delegation.subject) in ended for above in chain[:number]):
            raise Revoked(f"link {number} of the delegation chain")
        if now > delegation.not_after + limits.CLOCK_SKEW_SECONDS:
            raise Expired(f"link {number} of the delegation chain, since {int(now - delegation.not_after)} s")
        if now < delegation.not_before - limits.CLOCK_SKEW_SECONDS:
            raise NotYetValid(
                f"link {number} of the delegation chain, for {int(delegation.not_before - now)} s"
            )
        parent = delegation
    assert parent is not None
    return Grant(parent.subject, parent.prefix, parent.roles, parent.not_after)


def _check_link(
    number: int, issuer: bytes, link: Delegation, parent: Delegation | None, roots: Collection[bytes]
) -> None:
    if link.not_after < link.not_before:
        raise BrokenChain(f"link {number} ends before it begins")
    if parent is None:
        if issuer not in roots:
            raise BrokenChain("link 1 is not signed by a root key of this network")
        return
    if issuer != parent.subject:
        raise BrokenChain(f"link {number} is not signed by the subject of link {number - 1}")
    if not prefix_covers(parent.prefix, link.prefix):
        raise BrokenChain(f"link {number} grants {link.prefix!r}, its issuer holds only {parent.prefix!r}")
    if link.not_before < parent.not_before or link.not_after > parent.not_after:
        raise BrokenChain(f"link {number} is valid longer than link {number - 1}")
    grantable: set[str] = set()
    for role in parent.roles:
        grantable |= _MAY_GRANT.get(role, frozenset())
    excess = set(link.roles) - grantable
    if excess:
        raise BrokenChain(
            f"link {number} grants {', '.join(sorted(excess))}, which its issuer may not hand on"
        )


def _check_endorsement(owner: bytes, link: Delegation) -> None:
    """The first link of a chain below no root: a self-certified prefix, for names alone."""
    if link.prefix != self_certified_prefix(owner):
        raise BrokenChain("link 1 is neither signed by a root key of this network nor by its prefix's owner")
    if link.not_after < link.not_before:
        raise BrokenChain("link 1 ends before it begins")
    if link.roles != ("provider",):
        raise BrokenChain("link 1 endorses a key for a self-certified prefix: that grants provider, no more")


def revocation_name(signed: Signed) -> bytes:
    """What a revocation is called: SHA-256 of its encoding, 32 bytes."""
    return hashlib.sha256(encode(signed)).digest()


def verify_revocation(
    news: RevocationNews, *, roots: Collection[bytes], now: float, certified: bool
) -> Revocation:
    """Check a revocation and its signer's right to it.

    Raises `BadSignature`, `UnknownType`, `Malformed` or `TooLarge`; `Expired` once it need not be remembered any more,
    `NotYetValid` where it was issued in the future; `NotEntitled` where the signer had no right to it; and what
    `verify_chain` raises for the chain.
    """
    size = len(encode(news))
    if size > limits.REVOCATION_BYTES_MAX:
        raise TooLarge(f"revocation of {size} bytes, at most {limits.REVOCATION_BYTES_MAX} are allowed")
    revocation = verify(news.revocation, Revocation)
    if now > revocation.until + limits.CLOCK_SKEW_SECONDS:
        raise Expired(f"revocation, since {int(now - revocation.until)} s")
    if now < revocation.issued - limits.CLOCK_SKEW_SECONDS:
        raise NotYetValid(f"revocation, issued {int(revocation.issued - now)} s in the future")
    signer = news.revocation.key
    if signer in roots or (not certified and not news.chain and signer == revocation.subject):
        return revocation
    if not news.chain:
        raise NotEntitled("it shows no delegation to the revoked key, and no root key signed it")
    _check_right(revocation, signer, news.chain, roots=roots, now=now, certified=certified)
    return revocation


def _check_right(
    revocation: Revocation,
    signer: bytes,
    chain: Sequence[Signed],
    *,
    roots: Collection[bytes],
    now: float,
    certified: bool,
) -> None:
    last = verify(chain[-1], Delegation)
    while_it_held = min(max(now, last.not_before), last.not_after)
    verify_chain(chain, roots=roots, now=while_it_held, self_certified=not certified)
    if last.subject != revocation.subject:
        raise NotEntitled("its chain ends in another key than the revoked one")
    if signer != revocation.subject and all(link.key != signer for link in chain):
        raise NotEntitled("its signer granted nothing to the revoked key")
    if revocation.until < last.not_after:
        raise NotEntitled(
            f"it ends {last.not_after - revocation.until} s before the delegation that it revokes"
        )


def check_names(prefix: str, key: bytes, grant: Grant | None) -> None:
    """Raise `PrefixNotCovered` unless `key` may sign for identifiers with `prefix`.

    A key owns its self-certified prefix without a grant; everything else needs a provider's grant that covers it.
    """
    if prefix == self_certified_prefix(key):
        return
    if grant is None or grant.subject != key or not grant.covers(prefix):
        held = repr(grant.prefix) if grant is not None else "nothing"
        raise PrefixNotCovered(f"{prefix} (this key holds {held})")
    if "provider" not in grant.roles:
        raise PrefixNotCovered(f"{prefix} (this key holds it as {', '.join(grant.roles)}, not as provider)")
