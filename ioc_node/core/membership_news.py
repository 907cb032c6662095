"""Whether a statement about a member may be believed: signature, contact, chain and incarnation."""

from typing import Final

from ioc_node.core.trust import Trust
from ioc_wire.authority import CORE_ROLES
from ioc_wire.errors import BrokenChain, Malformed, NotYetValid, Revoked, RoleNotGranted
from ioc_wire.membership import Accused, Alive, AliveNews
from ioc_wire.signed import Signed, verify

INCARNATION_AHEAD_SECONDS: Final = 86400
"""Incarnations begin with the time in seconds since 1970, and grow by one with each refutation."""


def check_alive(news: AliveNews, trust: Trust, *, unix: float) -> Alive:
    """The statement, verified. Raises what `verify` and `Trust.learn` raise, `Revoked`, `Malformed`, `BrokenChain`,
    `RoleNotGranted` and `NotYetValid`."""
    signed = news.statement
    if signed.key in trust.revoked:
        raise Revoked("the member's key")
    alive = verify(signed, Alive, check=trust.checked.check)
    if alive.contact.key != signed.key:
        raise Malformed("a member gave the contact of another key")
    if alive.incarnation > unix + INCARNATION_AHEAD_SECONDS:
        raise NotYetValid(f"incarnation {alive.incarnation}")
    if trust.certified:
        if not news.chain:
            raise BrokenChain("this network is certified and the member showed no chain")
        _, grant = trust.learn(news.chain, unix=unix)
        if grant.subject != signed.key:
            raise BrokenChain("the chain was given to another key than the member's")
        if not CORE_ROLES.intersection(grant.roles):
            raise RoleNotGranted(f"core node (the chain grants {', '.join(grant.roles)})")
    return alive


def check_accused(signed: Signed, trust: Trust) -> Accused:
    """The accusation, verified. Raises what `verify` raises, and `Revoked`."""
    if signed.key in trust.revoked:
        raise Revoked("the accuser's key")
    return verify(signed, Accused, check=trust.checked.check)
