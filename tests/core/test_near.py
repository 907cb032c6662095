"""The answer about who is near, and what of others' coordinates and estimates is believed."""

import math

import pytest

from ioc_node.core.near import coordinate_of, estimate_of, estimate_told, finding_near, told_of, us_of
from ioc_node.core.nearness import Estimate, measured
from ioc_node.core.steps import run_through
from ioc_node.core.vivaldi import Coordinate
from ioc_wire import limits
from ioc_wire.latency import CoordinateTold, NearFound
from ioc_wire.market import Contact

ESTIMATES: dict[bytes, Estimate | None] = {
    b"s" * 32: Estimate(8, 4, 12, "triangulated", 4),
    b"p" * 32: Estimate(30, 10, 50, "triangulated", 4),
    b"f" * 32: Estimate(90, 80, 100, "triangulated", 5),
    b"g" * 32: Estimate(70, 60, 90, "coordinates"),
    b"u" * 32: None,
}


def contacts(keys: list[bytes]) -> dict[bytes, Contact]:
    return {key: Contact(key, "192.0.2.1", 7400) for key in keys}


def ask(estimates: dict[bytes, Estimate | None], most_ms: float | None) -> NearFound:
    return run_through(finding_near(contacts(list(estimates)), estimates, most_ms))


def test_the_likely_come_first_and_the_surely_far_not_at_all() -> None:
    found = ask(ESTIMATES, 20)
    assert [each.contact.key[:1] for each in found.providers] == [b"s", b"p", b"u"]
    assert (found.matching, found.far) == (5, 2)
    assert "estimated 70 ms (coordinates), at most 20 ms are wanted" in found.nearest
    assert found.providers[2].estimate is None


def test_without_a_limit_they_are_in_order_of_distance() -> None:
    found = ask(ESTIMATES, None)
    assert [each.contact.key[:1] for each in found.providers] == [b"s", b"p", b"g", b"f", b"u"]
    assert (found.far, found.nearest) == (0, "")


def test_an_answer_is_bounded_and_keeps_the_nearest() -> None:
    many: dict[bytes, Estimate | None] = {
        number.to_bytes(32, "big"): Estimate(number, number, number, "triangulated", 3)
        for number in range(limits.NEAR_PROVIDERS_MAX + 300)
    }
    found = ask(dict(reversed(many.items())), None)
    assert len(found.providers) == limits.NEAR_PROVIDERS_MAX
    assert found.providers[0].contact.key == bytes(32)
    assert found.matching == len(many)


def test_estimates_travel_there_and_back() -> None:
    for each in ESTIMATES.values():
        assert estimate_of(estimate_told(each)) == each
    assert estimate_told(measured(3)) is None
    assert us_of(-1) == 0
    assert us_of(1e12) == limits.LATENCY_RTT_US_MAX


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_coordinate_that_is_not_finite_is_none(bad: float) -> None:
    place = Coordinate((1.0, 2.0, 3.0), 4.0, 0.5)
    assert coordinate_of(told_of(place)) == place
    assert coordinate_of(None) is None
    for told in (
        CoordinateTold((bad, 0.0, 0.0), 1.0, 0.1),
        CoordinateTold((0.0, 0.0, 0.0), bad, 0.1),
        CoordinateTold((0.0, 0.0, 0.0), 1.0, bad),
    ):
        assert coordinate_of(told) is None
