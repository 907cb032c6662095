"""Delegation chains: a good one, and every way to break one."""

from collections.abc import Sequence

import msgspec
import pytest

from ioc_wire.authority import (
    Delegation,
    Grant,
    Revocation,
    RevocationNews,
    Role,
    chain_hash,
    check_names,
    verify_chain,
    verify_revocation,
)
from ioc_wire.cid import self_certified_prefix
from ioc_wire.codec import encode
from ioc_wire.errors import (
    BadIdentifier,
    BadSignature,
    BrokenChain,
    Expired,
    Malformed,
    NotEntitled,
    NotYetValid,
    PrefixNotCovered,
    Revoked,
    TooLarge,
    UnknownType,
    WireError,
)
from ioc_wire.limits import CLOCK_SKEW_SECONDS
from ioc_wire.records import Head
from ioc_wire.signed import Signed, sign
from tests.wire.conftest import DAY, NOW, delegate, private_key, public_key

Chain = tuple[Signed, ...]
replace = msgspec.structs.replace


def check(chain: Sequence[Signed], *, now: float = NOW, revoked: Sequence[bytes] = ()) -> Grant:
    return verify_chain(chain, roots=[public_key("root")], now=now, revoked=revoked)


def test_good_chain(chain: Chain) -> None:
    grant = check(chain)
    assert grant == Grant(public_key("alice"), "cn.r3301.20004", ("provider", "consumer"), NOW + DAY)
    assert check(chain[:1]).roles == ("national",)
    assert check(chain[:2]).prefix == "cn.r3301"


def test_longest_chain() -> None:
    links = (
        delegate("root", "beijing", "", "national"),
        delegate("beijing", "hangzhou", "cn", "regional"),
        delegate("hangzhou", "alice", "cn.r3301.20004", "provider"),
    )
    assert check(links).covers("cn.r3301.20004")
    with pytest.raises(BrokenChain, match="5 links"):
        check((*links, links[0], links[0]))


def test_empty_chain() -> None:
    with pytest.raises(BrokenChain, match="0 links"):
        check(())


def test_another_root(chain: Chain) -> None:
    with pytest.raises(BrokenChain, match="root key"):
        verify_chain(chain, roots=[public_key("mallory")], now=NOW)
    with pytest.raises(BrokenChain, match="root key"):
        verify_chain(chain, roots=[], now=NOW)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_bad_signature_names_its_link(chain: Chain, number: int) -> None:
    bad = replace(chain[number - 1], signature=bytes(64))
    with pytest.raises(BadSignature, match=f"link {number}"):
        check((*chain[: number - 1], bad, *chain[number:]))


@pytest.mark.parametrize("order", [(1, 0, 2), (0, 2), (0, 2, 1), (2, 1, 0), (0, 0), (0, 1, 1)])
def test_links_out_of_order(chain: Chain, order: tuple[int, ...]) -> None:
    with pytest.raises(BrokenChain):
        check([chain[at] for at in order])


def test_link_signed_by_a_stranger(chain: Chain) -> None:
    with pytest.raises(BrokenChain, match="link 3 is not signed by the subject of link 2"):
        check((*chain[:2], delegate("mallory", "alice", "cn.r3301.20004", "provider")))


@pytest.mark.parametrize("prefix", ["", "cn", "de", "cn.r3302", "cn.r33010", "cn.n0.20004", "p2p.n0"])
def test_prefix_outside_of_the_parents(chain: Chain, prefix: str) -> None:
    with pytest.raises((BrokenChain, BadIdentifier), match="link 3"):
        check((*chain[:2], delegate("hangzhou", "alice", prefix, "provider")))


@pytest.mark.parametrize("prefix", ["cn.", "CN", "cn.r3301.20004.x", "ioc:cn", "\n"])
def test_prefix_that_is_none(chain: Chain, prefix: str) -> None:
    with pytest.raises(BadIdentifier, match="link 3"):
        check((*chain[:2], delegate("hangzhou", "alice", prefix, "provider")))


@pytest.mark.parametrize(
    ("issuer_role", "role"),
    [
        ("national", "national"),
        ("regional", "national"),
        ("regional", "regional"),
        ("regional", "industry"),
        ("industry", "industry"),
        ("industry", "regional"),
        ("provider", "provider"),
        ("provider", "consumer"),
        ("consumer", "consumer"),
    ],
)
def test_role_that_may_not_be_handed_on(issuer_role: Role, role: Role) -> None:
    links = (delegate("root", "bob", "cn", issuer_role), delegate("bob", "carol", "cn", role))
    with pytest.raises(BrokenChain, match=f"link 2 grants {role}"):
        check(links)


@pytest.mark.parametrize(
    ("issuer_role", "role"),
    [
        ("national", "regional"),
        ("national", "industry"),
        ("national", "provider"),
        ("national", "consumer"),
        ("regional", "provider"),
        ("regional", "consumer"),
        ("industry", "provider"),
    ],
)
def test_role_that_may_be_handed_on(issuer_role: Role, role: Role) -> None:
    links = (delegate("root", "bob", "cn", issuer_role), delegate("bob", "carol", "cn", role))
    assert check(links).roles == (role,)


def test_one_role_too_many() -> None:
    links = (
        delegate("root", "bob", "cn", "regional"),
        delegate("bob", "carol", "cn", "provider", "regional"),
    )
    with pytest.raises(BrokenChain, match="regional"):
        check(links)


@pytest.mark.parametrize(
    "period",
    [(NOW - DAY - 1, NOW + DAY), (NOW - DAY, NOW + DAY + 1), (0, 2**62)],
)
def test_valid_longer_than_the_parent(chain: Chain, period: tuple[int, int]) -> None:
    link = delegate(
        "hangzhou", "alice", "cn.r3301.20004", "provider", not_before=period[0], not_after=period[1]
    )
    with pytest.raises(BrokenChain, match="link 3 is valid longer"):
        check((*chain[:2], link))


def test_expiry_tolerates_the_skew_and_no_more(chain: Chain) -> None:
    end, begin = NOW + DAY, NOW - DAY
    check(chain, now=end + CLOCK_SKEW_SECONDS)
    check(chain, now=begin - CLOCK_SKEW_SECONDS)
    with pytest.raises(Expired, match="link 1"):
        check(chain, now=end + CLOCK_SKEW_SECONDS + 1)
    with pytest.raises(NotYetValid, match="link 1"):
        check(chain, now=begin - CLOCK_SKEW_SECONDS - 1)


def test_only_the_last_link_has_expired(chain: Chain) -> None:
    link = delegate("hangzhou", "alice", "cn.r3301.20004", "provider", not_after=NOW - CLOCK_SKEW_SECONDS - 1)
    with pytest.raises(Expired, match="link 3"):
        check((*chain[:2], link))


@pytest.mark.parametrize("name", ["root", "beijing", "hangzhou", "alice"])
def test_revoked_key_anywhere(chain: Chain, name: str) -> None:
    with pytest.raises(Revoked, match=r"link [123] "):
        check(chain, revoked=[public_key(name)])
    check(chain, revoked=[public_key("mallory")])


def test_something_else_that_is_signed(chain: Chain) -> None:
    head = sign(private_key("hangzhou"), Head(1, bytes(32), bytes(32), 0, NOW, NOW + 1))
    with pytest.raises(UnknownType, match="link 3"):
        check((*chain[:2], head))


@pytest.mark.parametrize("seconds", [1, DAY])
def test_reversed_period(seconds: int) -> None:
    """Also one so short that the tolerated skew would cover it from both ends."""
    link = delegate("root", "beijing", "cn", "national", not_before=NOW + seconds, not_after=NOW - seconds)
    with pytest.raises(BrokenChain, match="ends before it begins"):
        check((link,))


def test_unknown_role_is_malformed() -> None:
    payload = encode([public_key("bob"), "cn", ["emperor"], NOW - 1, NOW + 1])
    key = private_key("root")
    link = Signed(
        "ioc/1", "delegation", payload, public_key("root"), key.sign(b"\x05ioc/1\x0adelegation" + payload)
    )
    with pytest.raises(Malformed, match="link 1"):
        check((link,))


def test_every_fault_is_a_wire_error_with_its_own_type(chain: Chain) -> None:
    """The three kinds of refusal that a registration must tell apart."""
    assert len({BadSignature.code, BrokenChain.code, PrefixNotCovered.code, Expired.code}) == 4
    assert all(issubclass(kind, WireError) for kind in (BadSignature, BrokenChain, PrefixNotCovered, Expired))


def test_chain_hash_names_exactly_this_chain(chain: Chain) -> None:
    assert len(chain_hash(chain)) == 32
    assert chain_hash(chain) == chain_hash(list(chain))
    assert len({chain_hash(chain), chain_hash(chain[:2]), chain_hash(chain[::-1]), chain_hash(())}) == 4


# -- names


def test_grant_covers_names(chain: Chain) -> None:
    grant = check(chain)
    check_names("cn.r3301.20004", public_key("alice"), grant)
    for prefix in ("cn.r3301", "cn.r3301.20005", "cn.r3302.20004", "de.r3301.20004"):
        with pytest.raises(PrefixNotCovered, match="this key holds"):
            check_names(prefix, public_key("alice"), grant)


def test_grant_is_for_its_subject_only(chain: Chain) -> None:
    with pytest.raises(PrefixNotCovered):
        check_names("cn.r3301.20004", public_key("bob"), check(chain))


def test_without_a_grant_only_the_self_certified_prefix() -> None:
    alice, bob = public_key("alice"), public_key("bob")
    check_names(self_certified_prefix(alice), alice, None)
    for prefix, key in (
        (self_certified_prefix(bob), alice),
        ("cn.r3301.20004", alice),
        ("p2p.n0", alice),
        ("", alice),
    ):
        with pytest.raises(PrefixNotCovered, match="nothing"):
            check_names(prefix, key, None)


def test_names_need_the_role_of_a_provider() -> None:
    consumer = check((delegate("root", "bob", "cn.r3301.20004", "consumer"),))
    with pytest.raises(PrefixNotCovered, match="consumer"):
        check_names("cn.r3301.20004", public_key("bob"), consumer)


def test_a_key_keeps_its_own_prefix_beside_a_grant(chain: Chain) -> None:
    check_names(self_certified_prefix(public_key("alice")), public_key("alice"), check(chain))


def test_delegation_of_nothing_to_nobody_is_still_a_delegation() -> None:
    link = sign(private_key("root"), Delegation(public_key("bob"), "cn", (), NOW - 1, NOW + 1))
    with pytest.raises(PrefixNotCovered):
        check_names("cn", public_key("bob"), check((link,)))


# -- revocations


def revocation(
    signer: str, subject: str = "alice", chain: Chain = (), *, issued: int = NOW, until: int = NOW + DAY
) -> RevocationNews:
    return RevocationNews(
        sign(private_key(signer), Revocation(public_key(subject), issued, until, "stolen")), chain
    )


def entitled(news: RevocationNews, *, now: float = NOW, certified: bool = True) -> Revocation:
    return verify_revocation(news, roots=[public_key("root")], now=now, certified=certified)


@pytest.mark.parametrize("signer", ["root", "beijing", "hangzhou", "alice"])
def test_who_may_revoke(chain: Chain, signer: str) -> None:
    assert entitled(revocation(signer, chain=chain)).subject == public_key("alice")
    with pytest.raises(NotEntitled):
        entitled(revocation("mallory", chain=chain))


def test_a_root_key_needs_no_chain_and_the_key_itself_none_in_an_open_network(chain: Chain) -> None:
    entitled(revocation("root"))
    entitled(revocation("alice"), certified=False)
    for signer in ("alice", "hangzhou"):
        with pytest.raises(NotEntitled, match="no delegation"):
            entitled(revocation(signer))
    with pytest.raises(NotEntitled, match="no delegation"):
        entitled(revocation("bob"), certified=False)


def test_a_chain_to_another_key_or_of_another_network_entitles_nobody(chain: Chain) -> None:
    with pytest.raises(NotEntitled, match="another key"):
        entitled(revocation("beijing", chain=chain[:2]))
    with pytest.raises(NotEntitled, match="granted nothing"):
        entitled(revocation("alice", "hangzhou", chain[:2]))
    with pytest.raises(BrokenChain):
        entitled(revocation("hangzhou", chain=chain[1:]))


def test_period_of_a_revocation(chain: Chain) -> None:
    with pytest.raises(NotEntitled, match="1 s before"):
        entitled(revocation("hangzhou", chain=chain, until=NOW + DAY - 1))
    news = revocation("hangzhou", chain=chain, until=NOW + 3 * DAY)
    entitled(news, now=NOW + 2 * DAY)
    entitled(news, now=NOW - CLOCK_SKEW_SECONDS)
    with pytest.raises(Expired, match="since 301 s"):
        entitled(news, now=NOW + 3 * DAY + CLOCK_SKEW_SECONDS + 1)
    with pytest.raises(NotYetValid, match="301 s"):
        entitled(news, now=NOW - CLOCK_SKEW_SECONDS - 1)


def test_a_forged_or_huge_revocation(chain: Chain) -> None:
    news = revocation("hangzhou", chain=chain)
    with pytest.raises(BadSignature):
        entitled(replace(news, revocation=replace(news.revocation, key=public_key("beijing"))))
    with pytest.raises(UnknownType):
        entitled(replace(news, revocation=chain[0]))
    with pytest.raises(TooLarge):
        entitled(replace(news, revocation=replace(news.revocation, payload=bytes(2048))))


def test_the_longest_revocation_fits_into_a_datagram(chain: Chain) -> None:
    payload = Revocation(public_key("alice"), NOW, NOW + DAY, "x" * 128)
    assert len(encode(RevocationNews(sign(private_key("hangzhou"), payload), chain))) < 1100


def test_an_issuer_ends_only_what_it_granted(chain: Chain) -> None:
    """Else a regional node could delegate something to anybody's key, and then revoke that key."""
    ended = {(public_key("hangzhou"), public_key("alice"))}

    def grant(*links: Signed) -> Grant:
        return verify_chain(links, roots=[public_key("root")], now=NOW, ended=ended)

    other = delegate("beijing", "alice", "cn.r3302.20001", "provider")
    assert grant(chain[0], other).prefix == "cn.r3302.20001"
    assert grant(*chain[:2]).subject == public_key("hangzhou")
    with pytest.raises(Revoked, match="link 3"):
        grant(*chain)
    ended.add((public_key("beijing"), public_key("hangzhou")))
    with pytest.raises(Revoked, match="link 2"):
        grant(*chain)
    ended.clear()
    ended.add((public_key("beijing"), public_key("alice")))
    with pytest.raises(Revoked, match="link 3"):
        grant(*chain)


# -- self-certified prefixes


def endorse(owner: str, successor: str, *roles: Role, prefix: str | None = None) -> Signed:
    prefix = self_certified_prefix(public_key(owner)) if prefix is None else prefix
    return delegate(owner, successor, prefix, *(roles or ("provider",)))


def test_the_owner_of_a_self_certified_prefix_endorses_another_key() -> None:
    link = endorse("alice", "bob")
    grant = verify_chain((link,), roots=(), now=NOW, self_certified=True)
    check_names(self_certified_prefix(public_key("alice")), public_key("bob"), grant)
    check_names(self_certified_prefix(public_key("bob")), public_key("bob"), grant)
    with pytest.raises(PrefixNotCovered):
        check_names("cn.r3301.20004", public_key("bob"), grant)
    with pytest.raises(BrokenChain):
        check((link,))


@pytest.mark.parametrize(
    "link",
    [
        endorse("alice", "bob", "provider", "consumer"),
        endorse("alice", "bob", "regional"),
        endorse("alice", "bob", prefix=""),
        endorse("alice", "bob", prefix="p2p.n0"),
        endorse("alice", "bob", prefix=self_certified_prefix(public_key("bob"))),
    ],
)
def test_an_endorsement_grants_nothing_else(link: Signed) -> None:
    with pytest.raises(BrokenChain):
        verify_chain((link,), roots=(), now=NOW, self_certified=True)


def test_the_endorsed_key_hands_nothing_on() -> None:
    links = (
        endorse("alice", "bob"),
        endorse("bob", "carol", prefix=self_certified_prefix(public_key("alice"))),
    )
    with pytest.raises(BrokenChain, match="may not hand on"):
        verify_chain(links, roots=(), now=NOW, self_certified=True)


def test_the_owner_ends_its_endorsement() -> None:
    link = endorse("alice", "bob")
    news = revocation("alice", "bob", (link,))
    entitled(news, certified=False)
    with pytest.raises(BrokenChain):
        entitled(news)
    with pytest.raises(Revoked):
        verify_chain(
            (link,), roots=(), now=NOW, self_certified=True, ended={(public_key("alice"), public_key("bob"))}
        )
