"""The one function that says which road a blob takes, and why."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ioc_node.core.roads import (
    LARGE_BYTES,
    QUIC_ROAD,
    Capability,
    OwnRoad,
    Reach,
    Road,
    choose_roads,
    reach_by_scope,
)

SHM = OwnRoad("shm", Capability(True, "same host", scope="host", mb_s=1000, set_up_seconds=0.003))
UCX = OwnRoad("ucx", Capability(True, "tcp on ib0", mb_s=900, set_up_seconds=0.005))
HERE = {"shm": Reach(True, "same host"), "ucx": Reach(True, "both ends have it")}


def test_the_quickest_comes_first_and_quic_last() -> None:
    choice = choose_roads([UCX, SHM], HERE, size=1 << 30)
    assert choice.roads == (Road("shm", "same host"), Road("ucx", "both ends have it"))
    assert choice.text("qh3") == "shm (same host)"
    slow = replace(SHM, measured_mb_s=450.0)
    choice = choose_roads([UCX, slow], HERE, size=1 << 30)
    assert [road.name for road in choice.roads] == ["ucx", "shm"]
    assert choice.roads[1].reason == "same host, 450 MB/s measured"


@pytest.mark.parametrize(
    ("own", "reach", "reason"),
    [
        ([], HERE["shm"], "not here"),
        ([replace(SHM, capability=Capability(False, "not listening"))], HERE["shm"], "not listening"),
        ([SHM], Reach(False, "another host"), "another host"),
        (
            [replace(SHM, cooling_seconds=7.6, failure="hung up")],
            HERE["shm"],
            "failed, tried again in 8 s: hung up",
        ),
        (
            [replace(SHM, measured_mb_s=2.0)],
            HERE["shm"],
            f"no quicker than QUIC for {LARGE_BYTES:,} bytes",
        ),
    ],
)
def test_what_is_passed_over_says_why(own: list[OwnRoad], reach: Reach, reason: str) -> None:
    choice = choose_roads(own, {"shm": reach}, size=None)
    assert choice.roads == ()
    assert choice.passed == (Road("shm", reason),)
    assert choice.text("qh3") == f"quic/qh3 (shm: {reason})"


def test_nothing_in_common() -> None:
    assert choose_roads([SHM], {}, size=1).text("aioquic") == "quic/aioquic (no offload in common)"


def test_a_small_blob_goes_where_less_is_set_up() -> None:
    heavy = replace(UCX, capability=replace(UCX.capability, set_up_seconds=0.1))
    assert choose_roads([heavy], HERE, size=4096).roads == ()
    assert [road.name for road in choose_roads([heavy], HERE, size=1 << 30).roads] == ["ucx"]
    assert [road.name for road in choose_roads([SHM, heavy], HERE, size=4096).roads] == ["shm"]


def test_a_quick_quic_beats_a_slow_offload() -> None:
    quick = replace(QUIC_ROAD, measured_mb_s=2000.0)
    assert choose_roads([SHM, UCX], HERE, size=1 << 30, quic=quick).roads == ()


@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "c", "d"]),
        st.tuples(st.booleans(), st.booleans(), st.floats(0, 9), st.floats(1, 5000)),
    ),
    st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), st.booleans()),
    st.one_of(st.none(), st.integers(0, 1 << 40)),
)
def test_every_offload_of_the_other_end_is_taken_or_passed_over_once(
    own: dict[str, tuple[bool, bool, float, float]], theirs: dict[str, bool], size: int | None
) -> None:
    roads = [
        OwnRoad(name, Capability(usable, "x"), mb_s if measured else None, cooling)
        for name, (usable, measured, cooling, mb_s) in own.items()
    ]
    choice = choose_roads(roads, {name: Reach(ok, "y") for name, ok in theirs.items()}, size=size)
    names = [road.name for road in (*choice.roads, *choice.passed)]
    assert sorted(names) == sorted(theirs)
    seconds = [
        next(own for own in roads if own.name == road.name).seconds(size or 0) for road in choice.roads
    ]
    if size is not None:
        assert seconds == sorted(seconds)
        assert all(each < QUIC_ROAD.seconds(size) for each in seconds)


def test_scopes() -> None:
    assert reach_by_scope("host", same_host=True) == Reach(True, "same host")
    assert reach_by_scope("host", same_host=False) == Reach(False, "another host")
    assert reach_by_scope("network", same_host=False).reachable
