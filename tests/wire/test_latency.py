"""Latency rows: what is refused of them."""

import math
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_wire import limits
from ioc_wire.codec import decode, encode
from ioc_wire.errors import BadSignature, Expired, Malformed, NotYetValid, TooLarge, WireError
from ioc_wire.latency import CoordinateTold, LatencyNews, LatencyRow, ProviderRtt, verify_row
from ioc_wire.signed import Signed, sign

KEY = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
NOW = 1_800_000_000
PLACE = CoordinateTold((1.0, -2.0, 3.0), 0.5, 0.2)
NEAR = ProviderRtt(b"p" * 32, 1_200, 1_500, 3, 10)


def row(*rtts: ProviderRtt, issued: int = NOW, seconds: int = 300, place: Any = PLACE) -> LatencyRow:
    return LatencyRow(1, issued, issued + seconds, rtts, place)


def news(said: LatencyRow) -> LatencyNews:
    return LatencyNews(sign(KEY, said))


def test_a_good_row_and_the_largest_one_pass() -> None:
    many = tuple(
        ProviderRtt(index.to_bytes(32, "big"), 2**24, limits.LATENCY_RTT_US_MAX, 1024, 3600)
        for index in range(limits.LATENCY_RTTS_MAX)
    )
    for said in (row(), row(NEAR), row(*many), row(NEAR, place=None)):
        assert verify_row(news(said), now=NOW) == said


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        (row(NEAR, NEAR), Malformed),
        (row(ProviderRtt(b"p" * 32, 1_501, 1_500, 3, 10)), Malformed),
        (row(ProviderRtt(b"p" * 32, -1, 1_500, 3, 10)), Malformed),
        (row(ProviderRtt(b"p" * 32, 1, limits.LATENCY_RTT_US_MAX + 1, 3, 10)), Malformed),
        (row(ProviderRtt(b"p" * 32, 1, 2, 0, 10)), Malformed),
        (row(ProviderRtt(b"short", 1, 2, 1, 10)), Malformed),
        (row(seconds=0), Malformed),
        (row(seconds=limits.LATENCY_SECONDS_MAX + 1), Malformed),
        (row(issued=NOW - 301), Expired),
        (row(issued=NOW + limits.CLOCK_SKEW_SECONDS + 1), NotYetValid),
    ],
)
def test_a_bad_row_is_refused(said: LatencyRow, fault: type[WireError]) -> None:
    with pytest.raises(fault):
        verify_row(news(said), now=NOW)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 60_001.0, -60_001.0])
@pytest.mark.parametrize("field", ["point", "height", "error"])
def test_no_coordinate_out_of_bounds(field: str, bad: float) -> None:
    values: dict[str, Any] = {"point": (0.0, 0.0, 0.0), "height": 0.1, "error": 0.1}
    values[field] = (0.0, bad, 0.0) if field == "point" else bad
    with pytest.raises(Malformed):
        verify_row(news(row(place=CoordinateTold(**values))), now=NOW)


def test_nobody_changes_a_row_and_none_is_endless() -> None:
    good = news(row(NEAR))
    old = good.statement
    forged = Signed(old.domain, old.kind, encode(row()), old.key, old.signature)
    with pytest.raises(BadSignature):
        verify_row(LatencyNews(forged), now=NOW)
    padded = Signed(old.domain, old.kind, b"x" * limits.LATENCY_ROW_BYTES_MAX, old.key, old.signature)
    with pytest.raises(TooLarge):
        verify_row(LatencyNews(padded), now=NOW)
    many = tuple(ProviderRtt(index.to_bytes(32, "big"), 1, 2, 1, 0) for index in range(513))
    with pytest.raises(Malformed):
        decode(encode(row(*many)), LatencyRow)
