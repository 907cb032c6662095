"""The bulletin board: who may say what, and what it refuses."""

import time

import pytest

from ioc_node.core.bulletins import BulletinBoard
from ioc_node.core.trust import Trust
from ioc_wire import limits
from ioc_wire.authority import Revocation, RevocationNews, Role
from ioc_wire.bulletins import Bulletin, BulletinNews
from ioc_wire.cid import self_certified_prefix
from ioc_wire.codec import encode
from ioc_wire.errors import (
    BadIdentifier,
    BadSignature,
    BrokenChain,
    Conflict,
    Expired,
    Malformed,
    NotYetValid,
    OverQuota,
    PrefixNotCovered,
    Revoked,
    RoleNotGranted,
    WireError,
)
from ioc_wire.signed import Signed, public_bytes, sign
from tests.runtime.gossip_cases import NETWORK, ROOT, delegated, key_of

NOW = int(time.time())


def board(*, certified: bool = True, total: int = 256) -> BulletinBoard:
    admission = "certified" if certified else "open"
    trust = Trust(network_id=NETWORK.network_id, admission=admission, roots=NETWORK.root_keys)  # type: ignore[arg-type]
    return BulletinBoard(trust, bulletins_max=total)


def news(
    name: str = "north",
    number: int = 1,
    *,
    prefix: str = "cn.r3301",
    role: Role = "regional",
    about: str = "cn.r3301",
    title: str = "Works",
    text: str = "On Sunday.",
    issued: int = NOW,
    seconds: int = 3600,
    chain: tuple[Signed, ...] | None = None,
) -> BulletinNews:
    said = Bulletin(number, title, text, "info", about, issued, issued + seconds)
    return BulletinNews(sign(key_of(name), said), delegated(name, prefix, role) if chain is None else chain)


def forged() -> BulletinNews:
    good = news()
    signed = good.statement
    return BulletinNews(
        Signed(
            signed.domain,
            signed.kind,
            signed.payload[:-1] + bytes((signed.payload[-1] ^ 1,)),
            signed.key,
            signed.signature,
        ),
        good.chain,
    )


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (forged(), BadSignature),
        (news(issued=NOW - 4000), Expired),
        (news(issued=NOW + 1000), NotYetValid),
        (news(seconds=limits.BULLETIN_SECONDS_MAX + 1), Malformed),
        (news(seconds=0), Malformed),
        (news(about="cn.r3302"), PrefixNotCovered),
        (news(about="cn.r33"), BadIdentifier),
        (news(about=""), PrefixNotCovered),
        (news(chain=()), BrokenChain),
        (news(chain=delegated("other", "cn.r3301", "regional")), BrokenChain),
        (news(role="provider"), RoleNotGranted),
        (news(title=""), Malformed),
        (news(title="x" * 121), Malformed),
        (news(text="x" * 2001), Malformed),
        (news(text="clear \x1b[2J"), Malformed),
        (news(title="two\nlines"), Malformed),
        (news(text="turned \u202e round"), Malformed),
    ],
)
def test_refused(bad: BulletinNews, error: type[WireError]) -> None:
    held = board()
    with pytest.raises(error):
        held.take(bad, unix=NOW)
    assert len(held) == 0


def test_who_may_speak_of_what() -> None:
    held = board()
    for number, about in enumerate(("cn.r3301", "cn.r3301.20004")):
        assert held.take(news(number=number, about=about), unix=NOW)
    for number, about in enumerate(("", "cn", "cn.r3302", "de")):
        assert held.take(news("all", number, prefix="cn", role="national", about=about), unix=NOW)
    assert len(held) == 6
    own = self_certified_prefix(public_bytes(key_of("north")))
    free = board(certified=False)
    assert free.take(news(number=1, about="", chain=()), unix=NOW)
    assert free.take(news(number=2, about=own, chain=()), unix=NOW)
    with pytest.raises(PrefixNotCovered):
        free.take(news(number=3, about="cn", chain=()), unix=NOW)


def test_the_first_of_two_with_one_number_stays() -> None:
    held = board()
    first = held.take(news(), unix=NOW)
    assert first is not None
    assert held.take(news(), unix=NOW) is None  # the same again
    with pytest.raises(Conflict):
        held.take(news(text="On Monday."), unix=NOW)
    assert held.posted() == (first,)
    assert held.next_number(first.signer, unix=0) == 2


def test_a_flood_keeps_what_expires_last() -> None:
    held = board(total=20)
    for number in range(17):
        held.take(news(number=number, seconds=1000 + number), unix=NOW)
    assert sorted(p.bulletin.number for p in held.posted()) == list(range(1, 17))
    with pytest.raises(OverQuota):
        held.take(news(number=0, seconds=1000), unix=NOW)
    for number in range(5):
        held.take(news("other", number, seconds=2000), unix=NOW)
    assert len(held) == 20
    assert min(p.bulletin.number for p in held.posted() if p.signer == public_bytes(key_of("north"))) == 2
    assert held.expire(unix=NOW + 1500) == 15
    assert held.expire(unix=NOW + 2000) == 5


def test_what_rests_on_a_revoked_key_goes() -> None:
    held = board()
    held.take(news(), unix=NOW)
    held.take(news("other"), unix=NOW)
    ended = Revocation(public_bytes(key_of("north")), NOW, NOW + 90_000, "stolen")
    held._trust.take(RevocationNews(sign(ROOT, ended)), unix=NOW)
    assert held.drop_revoked() == 1
    assert [p.signer for p in held.posted()] == [public_bytes(key_of("other"))]
    with pytest.raises(Revoked):
        held.take(news(number=2), unix=NOW)


def test_what_is_told_fits_into_a_message() -> None:
    held = board()
    for number in range(16):
        held.take(news(number=number, text="云" * 2000), unix=NOW)
        held.take(news("other", number, text="short"), unix=NOW)
    got: dict[bytes, BulletinNews] = {}
    while lacking := held.lacking(got):
        assert len(lacking) <= limits.BULLETINS_TOLD_MAX
        assert len(encode(lacking)) <= limits.BULLETINS_TOLD_BYTES_MAX
        other = board()
        for each in lacking:
            posted = other.take(each, unix=NOW)
            assert posted is not None
            assert posted.name not in got
            got[posted.name] = each
    assert set(got) == set(held.names)
