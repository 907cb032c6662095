"""The book of latency rows: what counts, what is refused, that it stays bounded."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.core.latency import PROVIDERS_MAX, SAMPLES_KEPT, LatencyBook, Measurements
from ioc_node.core.steps import run_through
from ioc_node.core.trust import Trust
from ioc_wire import limits
from ioc_wire.errors import BadSignature, OverQuota, Revoked
from ioc_wire.latency import CoordinateTold, CoreRtt, LatencyNews, LatencyRow, ProviderRtt, Vantage
from ioc_wire.signed import Signed, public_bytes, sign

NOW = 1_800_000_000
ALICE, BOB, CAROL = (Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32) for seed in (1, 2, 3))
NEAR, FAR = b"n" * 32, b"f" * 32


def news(
    key: Ed25519PrivateKey, number: int, rtt_us: int, *, provider: bytes = NEAR, seconds: int = 60
) -> LatencyNews:
    rtt = ProviderRtt(provider, rtt_us, rtt_us, 1, 0)
    return LatencyNews(sign(key, LatencyRow(number, NOW, NOW + seconds, (rtt,))))


def open_trust() -> Trust:
    return Trust(network_id=b"n" * 32, admission="open", roots=())


def open_book(rows_max: int = 64) -> LatencyBook:
    return LatencyBook(open_trust(), rows_max=rows_max)


def test_the_newest_row_of_each_core_node_counts() -> None:
    book = open_book()
    assert book.take(news(ALICE, 2, 5_000), unix=NOW)
    assert not book.take(news(ALICE, 1, 1), unix=NOW)  # replayed
    assert not book.take(news(ALICE, 2, 1), unix=NOW)  # said twice
    assert book.take(news(BOB, 1, 9_000), unix=NOW)
    assert book.by_provider([NEAR, FAR]) == {
        NEAR: {public_bytes(ALICE): 5.0, public_bytes(BOB): 9.0},
        FAR: {},
    }
    assert book.take(news(ALICE, 3, 6_000, provider=FAR), unix=NOW)
    assert book.by_provider([NEAR]) == {NEAR: {public_bytes(BOB): 9.0}}


def test_each_gets_what_it_lacks() -> None:
    book, other = open_book(), open_book()
    for key in (ALICE, BOB):
        book.take(news(key, 1, 5_000), unix=NOW)
    for each in book.lacking(other.held()):
        assert other.take(each, unix=NOW)
    assert book.lacking(other.held()) == ()
    book.take(news(BOB, 2, 5_000), unix=NOW)
    assert [each.statement.key for each in book.lacking(other.held())] == [public_bytes(BOB)]


def test_rows_end_and_their_number_is_bounded() -> None:
    book = open_book(rows_max=2)
    book.take(news(ALICE, 1, 1), unix=NOW)
    book.take(news(BOB, 1, 1, seconds=600), unix=NOW)
    with pytest.raises(OverQuota):
        book.take(news(CAROL, 1, 1), unix=NOW)
    assert book.take(news(BOB, 2, 2), unix=NOW)  # who is in may say more
    book.expire(unix=NOW + 60)
    assert len(book) == 0


def test_the_own_row_always_has_room() -> None:
    book = LatencyBook(open_trust(), own=public_bytes(CAROL), rows_max=2)
    for key in (ALICE, BOB, CAROL):
        assert book.take(news(key, 1, 1), unix=NOW)
    assert len(book) == 3


def test_estimates_come_from_rows_or_else_from_places() -> None:
    book = open_book()
    book.take(news(ALICE, 1, 5_000), unix=NOW)
    book.take(news(BOB, 1, 9_000), unix=NOW)
    place = CoordinateTold((30.0, 0.0, 0.0), 1.0, 0.2)
    far = ProviderRtt(FAR, 7_000, 7_000, 1, 0, place)
    book.take(LatencyNews(sign(CAROL, LatencyRow(1, NOW, NOW + 60, (far,)))), unix=NOW)
    here = CoordinateTold((0.0, 0.0, 0.0), 2.0, 0.1)
    vantage = Vantage((CoreRtt(public_bytes(ALICE), 1_000), CoreRtt(public_bytes(BOB), 2_000)), here)
    found = run_through(book.estimating(vantage, [NEAR, FAR, b"u" * 32]))
    near, there = found[NEAR], found[FAR]
    assert near is not None
    assert there is not None
    assert (near.how, near.over, near.low_ms, near.high_ms) == ("triangulated", 2, 4.0, 6.0)
    assert (there.how, there.rtt_ms) == ("coordinates", 33.0)
    assert found[b"u" * 32] is None
    book.expire(unix=NOW + 60)
    assert run_through(book.estimating(vantage, [NEAR, FAR])) == {NEAR: None, FAR: None}


def test_forged_and_revoked_rows_do_not_count() -> None:
    trust = open_trust()
    book = LatencyBook(trust)
    good = news(ALICE, 1, 1).statement
    forged = Signed(good.domain, good.kind, good.payload, public_bytes(BOB), good.signature)
    with pytest.raises(BadSignature):
        book.take(LatencyNews(forged), unix=NOW)
    book.take(news(ALICE, 1, 1), unix=NOW)
    trust.revoke(public_bytes(ALICE))
    book.drop_revoked()
    assert len(book) == 0
    with pytest.raises(Revoked):
        book.take(news(ALICE, 2, 1), unix=NOW)


def test_own_measurements_are_filtered_and_bounded() -> None:
    own = Measurements()
    for rtt_us in (9_000, 4_000, 30_000, -1, limits.LATENCY_RTT_US_MAX + 1):
        own.note(NEAR, rtt_us, unix=NOW)
    assert own.rtts(unix=NOW + 7) == (ProviderRtt(NEAR, 4_000, 9_000, 3, 7),)
    for _ in range(SAMPLES_KEPT):
        own.note(NEAR, 20_000, unix=NOW)  # the path became longer
    assert own.rtts(unix=NOW)[0].rtt_us_min == 20_000
    assert own.rtts(unix=NOW + limits.LATENCY_SECONDS_MAX + 1) == ()
    for index in range(PROVIDERS_MAX + 5):
        own.note(index.to_bytes(32, "big"), 1, unix=NOW)
    assert len(own) == PROVIDERS_MAX
