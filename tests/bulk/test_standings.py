"""What is remembered of each road towards each node."""

from ioc_node.bulk.standings import (
    COOL_SECONDS,
    COOL_SECONDS_MAX,
    MEASURED_BYTES_MIN,
    MEASURED_SECONDS_MAX,
    STANDINGS_MAX,
    Standings,
)
from ioc_node.core.roads import Capability

ALICE, CAROL = b"a" * 32, b"c" * 32
SHM = Capability(True, "same host", mb_s=1000.0)


def test_a_failed_road_is_left_alone_longer_each_time() -> None:
    standings = Standings()
    waits = [standings.failed(ALICE, "shm", "hung up", now=100.0) for _ in range(12)]
    assert waits[:3] == [COOL_SECONDS, 2 * COOL_SECONDS, 4 * COOL_SECONDS]
    assert waits[-1] == COOL_SECONDS_MAX
    road = standings.own_road(ALICE, "shm", SHM, now=101.0)
    assert (road.cooling_seconds, road.failure) == (COOL_SECONDS_MAX - 1, "hung up")
    assert standings.own_road(CAROL, "shm", SHM, now=101.0).cooling_seconds == 0
    assert standings.own_road(ALICE, "ucx", SHM, now=101.0).cooling_seconds == 0
    assert standings.own_road(ALICE, "shm", SHM, now=100.0 + COOL_SECONDS_MAX).cooling_seconds == 0


def test_one_success_makes_good() -> None:
    standings = Standings()
    standings.failed(ALICE, "shm", "hung up", now=0.0)
    standings.succeeded(ALICE, "shm", 5, 0.1, now=1.0)
    assert standings.own_road(ALICE, "shm", SHM, now=1.0).cooling_seconds == 0
    assert standings.failed(ALICE, "shm", "hung up", now=2.0) == COOL_SECONDS


def test_speeds_are_measured_on_large_transfers_and_forgotten() -> None:
    standings = Standings()
    standings.succeeded(ALICE, "shm", MEASURED_BYTES_MIN - 1, 1.0, now=0.0)
    assert standings.own_road(ALICE, "shm", SHM, now=0.0).measured_mb_s is None
    standings.succeeded(ALICE, "shm", 100_000_000, 1.0, now=0.0)
    standings.succeeded(ALICE, "shm", 300_000_000, 1.0, now=1.0)
    assert standings.own_road(ALICE, "shm", SHM, now=1.0).measured_mb_s == 200.0
    late = 1.0 + MEASURED_SECONDS_MAX
    assert standings.own_road(ALICE, "shm", SHM, now=late).measured_mb_s is None
    standings.succeeded(ALICE, "shm", 50_000_000, 1.0, now=late)
    assert standings.own_road(ALICE, "shm", SHM, now=late).measured_mb_s == 50.0


def test_the_book_is_bounded() -> None:
    standings = Standings()
    for index in range(STANDINGS_MAX + 50):
        standings.failed(index.to_bytes(32, "big"), "shm", "x", now=0.0)
    assert len(standings) == STANDINGS_MAX
