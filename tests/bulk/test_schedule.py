"""Which chunk is asked of whom: nothing twice without need, nothing forgotten, the quick ones carry most."""

import random

from hypothesis import given
from hypothesis import strategies as st

from ioc_node.bulk.schedule import SLOW_SECONDS, WINDOW_MAX, WINDOW_TOTAL, Pace, Schedule


def run_until_done(schedule: Schedule, speeds: dict[Pace, float]) -> dict[Pace, int]:
    """Each connection delivers one chunk after another at its speed (chunks per second); who brought how many."""
    brought = dict.fromkeys(speeds, 0)
    due = dict.fromkeys(speeds, 0.0)
    for _ in range(100_000):
        if schedule.finished:
            return brought
        pace = min(due, key=lambda each: due[each])
        now = due[pace]
        due[pace] += 1 / speeds[pace]
        index = next(iter(pace.owed), None)
        if index is not None and schedule.received(pace, index, now):
            schedule.kept(index)
            brought[pace] += 1
        for each in speeds:
            schedule.take(each, now)
    raise AssertionError("never done")


def test_the_quick_bring_more_and_nobody_is_waited_for() -> None:
    schedule = Schedule(200, (range(200),))
    quick, slow = schedule.join(0.0), schedule.join(0.0)
    brought = run_until_done(schedule, {quick: 100.0, slow: 10.0})
    assert brought[quick] > 150
    assert brought[slow] > 5
    assert sum(brought.values()) == 200


def test_only_what_is_wanted_is_asked_for_in_order() -> None:
    schedule = Schedule(20, (range(3, 5), range(9, 12)))
    pace = schedule.join(0.0)
    assert schedule.take(pace, 0.0) == [3, 4, 9, 10]
    assert schedule.take(pace, 0.0) == []
    assert schedule.received(pace, 3, 0.1)
    schedule.kept(3)
    assert schedule.left == 4


def test_what_a_lost_connection_owed_goes_to_others() -> None:
    schedule = Schedule(4, (range(4),))
    alice, bob = schedule.join(0.0), schedule.join(0.0)
    assert schedule.take(alice, 0.0) == [0, 1, 2, 3]
    schedule.leave(alice)
    assert schedule.take(bob, 0.0) == [0, 1, 2, 3]


def test_a_spoiled_chunk_is_wanted_again_and_a_second_copy_is_not_kept_twice() -> None:
    schedule = Schedule(1, (range(1),))
    alice, bob = schedule.join(0.0), schedule.join(0.0)
    schedule.take(alice, 0.0)
    assert schedule.take(bob, 10.0) == [0]  # alice has been silent for long: bob takes it over
    assert schedule.received(bob, 0, 10.1)
    assert not schedule.received(alice, 0, 10.2)
    schedule.spoiled(0)
    assert schedule.take(alice, 10.3) == [0]
    assert schedule.received(alice, 0, 10.4)
    schedule.kept(0)
    assert schedule.finished


def test_two_that_are_alike_take_nothing_over() -> None:
    schedule = Schedule(8, (range(8),))
    alice, bob = schedule.join(0.0), schedule.join(0.0)
    schedule.take(alice, 0.0), schedule.take(bob, 0.0)
    for step, (a, b) in enumerate(zip(range(4), range(4, 8), strict=True), 1):
        schedule.received(alice, a, step * 0.1)
        if step < 4:
            schedule.received(bob, b, step * 0.1)
    assert schedule.take(alice, 0.4) == []


def test_a_laggard_is_named_once_it_had_its_time() -> None:
    schedule = Schedule(100, (range(100),))
    quick, slow = schedule.join(0.0), schedule.join(0.0)
    schedule.take(quick, 0.0), schedule.take(slow, 0.0)
    for index in list(quick.owed):
        schedule.received(quick, index, 0.01 * (index + 1))
    assert schedule.laggard(SLOW_SECONDS / 2) is None
    schedule.take(quick, SLOW_SECONDS)
    assert schedule.laggard(SLOW_SECONDS + 0.01) is slow
    assert schedule.laggard(SLOW_SECONDS + 60) is None  # now both are silent: it is not the slow one's fault
    schedule.leave(slow)
    assert schedule.laggard(SLOW_SECONDS + 0.2) is None


def test_nothing_beyond_the_stop_is_asked_for() -> None:
    schedule = Schedule(10, (range(10),), stop=2)
    pace = schedule.join(0.0)
    assert schedule.take(pace, 0.0) == [0, 1]
    schedule.received(pace, 0, 0.1)
    schedule.received(pace, 1, 0.2)
    assert schedule.take(pace, 0.3) == []
    schedule.advance(3)
    assert schedule.take(pace, 0.4) == [2]


@given(st.integers(0, 2**32), st.integers(1, 300), st.integers(1, 12))
def test_whatever_happens_every_chunk_is_kept_once_and_windows_are_bounded(
    seed: int, count: int, connections: int
) -> None:
    dice = random.Random(seed)
    schedule = Schedule(count, (range(count),))
    now, kept = 0.0, []
    paces = [schedule.join(now) for _ in range(connections)]
    for _ in range(20_000):
        if schedule.finished:
            break
        now += dice.random() * 0.1
        pace = dice.choice(paces)
        chance = dice.random()
        if chance < 0.02:
            schedule.leave(pace)
            paces[paces.index(pace)] = schedule.join(now)
        elif pace.owed and chance < 0.6:
            index = next(iter(pace.owed))
            if schedule.received(pace, index, now):
                if chance < 0.05:
                    schedule.spoiled(index)
                else:
                    schedule.kept(index)
                    kept.append(index)
        else:
            schedule.take(pace, now)
            assert len(pace.owed) <= WINDOW_MAX
            assert sum(len(each.owed) for each in paces) <= WINDOW_TOTAL + 2 * connections
    assert sorted(kept) == list(range(count))
