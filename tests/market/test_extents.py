"""Where rows of the query's table lie: hosts that are alike together, and nothing lost when they go."""

import random

import pytest

from ioc_node.market import extents
from ioc_node.market.extents import MIXED, Extents


def rows_of(places: Extents, *keys: int, rows_max: int = 1000) -> list[int]:
    """The rows that are looked at for these keys, those that are shared left out."""
    return [row for rows, pure in places.runs(keys, rows_max) if pure for row in range(rows.start, rows.stop)]


def test_hosts_that_are_alike_lie_together() -> None:
    places = Extents(4)
    for _ in range(20):
        places.take(7)
        places.take(8)
    sevens, eights = rows_of(places, 7), rows_of(places, 8)
    assert len(sevens) == len(eights) == 20
    assert not {*sevens} & {*eights}
    assert sevens[:16] == list(range(16))
    assert [(rows.stop - rows.start, pure) for rows, pure in places.runs([7], 8)] == [
        (8, True),
        (8, True),
        (4, True),
    ]


def test_too_many_keys_share_extents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extents, "KEYS_MAX", 2)
    places = Extents(4)
    rows = {key: places.take(key) for key in (1, 2, 3, 4)}
    assert [rows[key] in rows_of(places, key) for key in (1, 2, 3, 4)] == [True, True, False, False]
    shared = [rows for rows, pure in places.runs([], 1000) if not pure]
    assert len(shared) == 1
    assert {rows[3], rows[4]} <= {*range(shared[0].start, shared[0].stop)}
    assert places.keys.count(MIXED) == 1


def test_rows_come_and_go_and_no_row_is_given_twice() -> None:
    places, rng = Extents(4), random.Random(1)
    taken: dict[int, int] = {}
    for _ in range(4000):
        if taken and rng.random() < 0.5:
            row = rng.choice(list(taken))
            del taken[row]
            places.give_back([row])
        else:
            key = rng.randrange(6)
            row = places.take(key)
            assert row not in taken
            taken[row] = key
        if rng.random() < 0.02:
            for key in range(6):
                there = rows_of(places, key)
                assert {row for row, other in taken.items() if other == key} <= {*there}
    places.give_back(list(taken))
    assert not list(places.runs(range(6), 1000))
    assert places.rows <= 4 * 400
