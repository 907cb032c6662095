"""Coordinates: they come to foretell distances, and neither nonsense nor a liar throws a node far."""

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ioc_node.core.vivaldi import (
    COORDINATE_MS_MAX,
    DIMENSIONS,
    ERROR_MAX,
    PEERS_MAX,
    STEP_MS_MAX,
    Coordinate,
    Vivaldi,
    is_sound,
)

NAN, INF = math.nan, math.inf


def settle(seed: int, *, count: int = 24, rounds: int = 150) -> tuple[list[Vivaldi], list[list[float]]]:
    """Nodes in a plane with access links of 1 to 6 ms, each measuring one other at a time."""
    chance = Random(seed)
    places = [(chance.uniform(0, 100), chance.uniform(0, 100), chance.uniform(1, 6)) for _ in range(count)]
    rtts = [[math.dist(a[:2], b[:2]) + a[2] + b[2] for b in places] for a in places]
    nodes = [Vivaldi(Random(seed + i)) for i in range(count)]
    for _ in range(rounds):
        for i, node in enumerate(nodes):
            j = chance.randrange(count)
            if i != j:
                assert node.observe(bytes([j]), rtts[i][j], nodes[j].coordinate)
    return nodes, rtts


def median_error(nodes: list[Vivaldi], rtts: list[list[float]]) -> float:
    errors = sorted(
        abs(a.coordinate.distance_ms(b.coordinate) - rtts[i][j]) / rtts[i][j]
        for i, a in enumerate(nodes)
        for j, b in enumerate(nodes)
        if i != j
    )
    return errors[len(errors) // 2]


def test_coordinates_come_to_foretell_round_trips() -> None:
    nodes, rtts = settle(1)
    assert median_error(nodes, rtts) < 0.1
    assert all(node.coordinate.error < 0.4 for node in nodes)


def test_the_same_seed_gives_the_same_coordinates() -> None:
    first, second = settle(3, count=6, rounds=20), settle(3, count=6, rounds=20)
    assert [node.coordinate for node in first[0]] == [node.coordinate for node in second[0]]


@pytest.mark.parametrize("rtt_ms", [NAN, INF, -INF, -1.0, 60_001.0])
def test_a_senseless_round_trip_is_refused(rtt_ms: float) -> None:
    node = Vivaldi(Random(1))
    assert not node.observe(b"bob", rtt_ms, Coordinate())
    assert node.coordinate == Coordinate()


@pytest.mark.parametrize(
    "theirs",
    [
        Coordinate((NAN, 0.0, 0.0)),
        Coordinate((INF, 0.0, 0.0)),
        Coordinate((0.0, 2 * COORDINATE_MS_MAX, 0.0)),
        Coordinate((0.0,) * (DIMENSIONS + 1)),
        Coordinate(height=-1.0),
        Coordinate(height=NAN),
        Coordinate(error=NAN),
        Coordinate(error=-0.1),
        Coordinate(error=ERROR_MAX + 1),
    ],
)
def test_a_senseless_coordinate_is_refused(theirs: Coordinate) -> None:
    node = Vivaldi(Random(1))
    assert not node.observe(b"bob", 10.0, theirs)
    assert node.coordinate == Coordinate()


@given(
    st.lists(
        st.tuples(
            st.floats(0, 60_000),
            st.tuples(*[st.floats(-COORDINATE_MS_MAX, COORDINATE_MS_MAX)] * DIMENSIONS),
            st.floats(0, COORDINATE_MS_MAX),
            st.floats(0, ERROR_MAX),
        ),
        max_size=20,
    )
)
def test_a_liar_moves_a_node_by_a_bounded_step(
    samples: list[tuple[float, tuple[float, ...], float, float]],
) -> None:
    node = Vivaldi(Random(1))
    for rtt_ms, point, height, error in samples:
        before = node.coordinate
        assert node.observe(b"liar", rtt_ms, Coordinate(point, height, error))
        after = node.coordinate
        assert math.dist(before.point, after.point) <= STEP_MS_MAX * 1.001
        assert abs(before.height - after.height) <= STEP_MS_MAX * 1.001
        assert is_sound(after)


def test_one_slow_answer_of_a_known_peer_moves_nobody() -> None:
    def end(last_ms: float) -> Coordinate:
        node = Vivaldi(Random(5))
        for rtt_ms in (20.0, 20.0, 20.0, last_ms):
            node.observe(b"bob", rtt_ms, Coordinate((10.0, 0.0, 0.0), 1.0, 0.2))
        return node.coordinate

    assert end(5_000.0) == end(20.0)


def test_samples_of_no_more_than_so_many_peers_are_kept() -> None:
    node = Vivaldi(Random(1))
    for i in range(PEERS_MAX + 50):
        node.observe(i.to_bytes(4, "big"), 10.0, Coordinate())
    assert node.peers == PEERS_MAX
