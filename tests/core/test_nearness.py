"""Estimates of round trips that nobody measured, and whom to ping for "within so many milliseconds"."""

import math

import pytest

from ioc_node.core.nearness import (
    PROBES_MAX,
    SLACK_MS,
    Estimate,
    choose_probes,
    estimate,
    from_coordinates,
    is_far,
    measured,
    triangulate,
)
from ioc_node.core.vivaldi import Coordinate

CORES = [bytes([i]) * 32 for i in range(8)]


def row(*values: float) -> dict[bytes, float]:
    return dict(zip(CORES, values, strict=False))


def test_the_truth_of_a_line_lies_between_the_bounds() -> None:
    # Core nodes at 0, 10, …, 70 ms on a line; alice at 12, the provider at 31: 19 ms apart.
    alice = row(*(abs(10 * i - 12.0) for i in range(8)))
    provider = row(*(abs(10 * i - 31.0) for i in range(8)))
    found = triangulate(alice, provider)
    assert found is not None
    assert (found.how, found.over) == ("triangulated", 8)
    assert found.low_ms <= 19 <= found.high_ms
    assert found.high_ms == pytest.approx(19)


def test_one_detour_does_not_rule_a_near_provider_out() -> None:
    found = triangulate(row(10, 20, 30, 40), row(11, 21, 29, 400))
    assert found is not None
    assert found.low_ms == 1


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1.0, 60_001.0])
def test_senseless_round_trips_count_as_not_measured(wrong: float) -> None:
    assert triangulate(row(10, wrong), row(10, 20)) is None
    found = triangulate(row(10, wrong, 30), row(12, 20, 33))
    assert found is not None
    assert found.over == 2


def test_rows_come_before_coordinates_and_nothing_known_is_none() -> None:
    places = (Coordinate((0.0, 0.0, 0.0), 1.0, 0.1), Coordinate((30.0, 0.0, 0.0), 2.0, 0.2))
    by_rows = estimate(row(10, 20), row(11, 22), places)
    assert by_rows is not None
    assert by_rows.how == "triangulated"
    by_place = estimate(row(10), row(11), places)
    assert by_place == from_coordinates(*places)
    assert by_place is not None
    assert by_place.rtt_ms == 33
    assert by_place.low_ms == pytest.approx(33 * 0.2)
    assert estimate(row(10), row(11)) is None
    assert estimate({}, {}, (places[0], Coordinate(height=math.nan))) is None


def test_probes_go_to_the_likely_ones_and_never_to_the_surely_far() -> None:
    estimates = {
        b"inside": Estimate(8, 4, 12, "triangulated", 4),
        b"nearest": Estimate(3, 1, 5, "triangulated", 4),
        b"perhaps": Estimate(30, 10, 50, "triangulated", 4),
        b"hardly": Estimate(60, 19, 101, "coordinates"),
        b"far": Estimate(60, 21 + SLACK_MS, 101, "triangulated", 4),
        b"known": measured(2),
        b"unknown": None,
    }
    assert choose_probes(estimates, 20) == (b"nearest", b"inside", b"perhaps", b"hardly", b"unknown")
    assert choose_probes(estimates, 20, probes_max=2) == (b"nearest", b"inside")
    assert choose_probes(estimates, 20, probes_max=-1) == ()
    assert [key for key, each in estimates.items() if is_far(each, 20)] == [b"far"]


def test_probes_of_one_demand_are_bounded() -> None:
    many = {i.to_bytes(4, "big"): Estimate(1, 1, 1, "triangulated", 3) for i in range(PROBES_MAX + 9)}
    assert len(choose_probes(many, 5, probes_max=10 * PROBES_MAX)) == PROBES_MAX


def test_a_measured_value_has_no_slack() -> None:
    assert is_far(measured(20.1), 20)
    assert not is_far(measured(20.0), 20)


def test_texts_say_how_it_is_known() -> None:
    assert measured(12.34).text() == "measured 12.3 ms"
    assert Estimate(40, 1, 80, "triangulated", 5).text() == "estimated 40 ms (triangulated over 5 core nodes)"
    assert Estimate(40, 1, 80, "coordinates").text() == "estimated 40 ms (coordinates)"
