"""Ceilings are never passed, weights decide between those that wait, what one leaves others take, nobody starves."""

import math
from collections import defaultdict
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ioc_node.core.bandwidth import (
    BURST_BYTES_MIN,
    BURST_SECONDS,
    TRAFFIC,
    Bandwidth,
    Ceilings,
    Flow,
    Request,
    Traffic,
)
from ioc_node.core.hurry import FACTOR_MAX, STEP_MAX, Hurry

WEIGHTS: dict[Traffic, float] = {"interactive": 8, "task": 4, "bulk": 1}
PIECE = 16 << 10
PEERS = (b"alice", b"bob", b"carol")
MB = 1e6


@dataclass
class Crowd:
    """Flows that ask for their next piece as soon as they got one, or, with a pace, no faster than that."""

    machine: Bandwidth
    now: float = 0.0
    moved: dict[Flow, int] = field(default_factory=lambda: defaultdict(int))
    log: list[tuple[float, Flow, int]] = field(default_factory=list)
    paces: dict[Flow, float] = field(default_factory=dict)
    asked: dict[Flow, Request] = field(default_factory=dict)
    due: dict[Flow, float] = field(default_factory=dict)

    def join(self, peer: bytes, traffic: Traffic, name: object, *, pace: float = math.inf) -> Flow:
        flow = self.machine.open(peer, traffic, name)
        self.paces[flow] = pace
        self.due[flow] = self.now
        return flow

    def run(self, seconds: float, *, piece: int = PIECE) -> None:
        until = self.now + seconds
        while True:
            self._go(piece)
            waiting = [at for flow, at in self.due.items() if flow not in self.asked]
            step = min(self.machine.deadline(), *waiting, math.inf)
            if step > until:
                self.now = until
                return
            self.now = max(self.now, step)

    def _go(self, piece: int) -> None:
        for flow, at in self.due.items():
            if at <= self.now and flow not in self.asked:
                self.asked[flow] = self.machine.ask(flow, piece, now=self.now)
        self.machine.advance(self.now)
        for flow, request in list(self.asked.items()):
            if request.granted:
                del self.asked[flow]
                self.moved[flow] += request.size
                self.log.append((self.now, flow, request.size))
                # A flow without a pace comes back at once, as one that the network does not hold up.
                self.due[flow] = max(self.due[flow] + request.size / self.paces[flow], self.now + 1e-4)

    def since(self, start: float) -> dict[Flow, int]:
        sums: dict[Flow, int] = defaultdict(int)
        for at, flow, size in self.log:
            if at > start:
                sums[flow] += size
        return sums


def burst(rate: float) -> float:
    return max(rate * BURST_SECONDS, BURST_BYTES_MIN)


def worst(log: list[tuple[float, int]], rate: float) -> float:
    """By how much the busiest window was above `rate`: bytes that only a burst explains."""
    level = most = 0.0
    last = 0.0
    for at, size in log:
        level = max(0.0, level - (at - last) * rate) + size
        last, most = at, max(most, level)
    return most


rates = st.floats(0.2 * MB, 10 * MB)
ceilings = st.builds(
    Ceilings,
    total=st.none() | rates,
    each_peer=st.none() | rates,
    classes=st.dictionaries(st.sampled_from(TRAFFIC), rates, max_size=3),
    peers=st.dictionaries(st.sampled_from(PEERS), rates, max_size=2),
)
flows = st.lists(
    st.tuples(
        st.sampled_from(PEERS), st.sampled_from(TRAFFIC), st.sampled_from([math.inf, 0.3 * MB, 4 * MB])
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(allowed=ceilings, crowd=flows)
def test_no_ceiling_is_passed_over_any_window_and_nobody_starves(
    allowed: Ceilings, crowd: list[tuple[bytes, Traffic, float]]
) -> None:
    seen = Crowd(Bandwidth(allowed, WEIGHTS, now=0))
    joined = [
        seen.join(peer, traffic, number, pace=min(pace, 8 * MB))
        for number, (peer, traffic, pace) in enumerate(crowd)
    ]
    seen.run(1.5)
    limits: list[tuple[float | None, list[tuple[float, int]]]] = [
        (allowed.total, [(at, size) for at, _, size in seen.log])
    ]
    limits += [
        (rate, [(at, size) for at, flow, size in seen.log if flow.traffic == traffic])
        for traffic, rate in allowed.classes.items()
    ]
    limits += [
        (allowed.of_peer(peer), [(at, size) for at, flow, size in seen.log if flow.peer == peer])
        for peer in PEERS
    ]
    for rate, log in limits:
        if rate is not None:
            # A piece that one bucket has paid may go when another has: each flow has one on its way.
            assert worst(log, rate) <= burst(rate) + len(joined) * PIECE + 2
    assert all(seen.moved[flow] for flow in joined)


@settings(max_examples=40, deadline=None)
@given(
    rate=st.floats(1 * MB, 12 * MB),
    classes=st.lists(st.sampled_from(TRAFFIC), min_size=2, max_size=8),
)
def test_one_ceiling_is_shared_by_weight_and_used_up(rate: float, classes: list[Traffic]) -> None:
    crowd = Crowd(Bandwidth(Ceilings(total=rate), WEIGHTS, now=0))
    joined = [crowd.join(PEERS[n % 3], traffic, n) for n, traffic in enumerate(classes)]
    crowd.run(0.5)  # what may go at once goes to whoever comes
    crowd.run(2.0)
    moved = crowd.since(0.5)
    total = sum(moved.values())
    assert rate * 2 * 0.98 - PIECE <= total <= rate * 2 + burst(rate) + PIECE
    weights = sum(WEIGHTS[flow.traffic] for flow in joined)
    for flow in joined:
        share = WEIGHTS[flow.traffic] / weights * total
        assert abs(moved[flow] - share) <= 0.05 * share + 2 * PIECE


@settings(max_examples=30, deadline=None)
@given(rate=st.floats(4 * MB, 12 * MB), part=st.floats(0.05, 0.4))
def test_what_one_does_not_use_goes_to_the_others(rate: float, part: float) -> None:
    crowd = Crowd(Bandwidth(Ceilings(total=rate), WEIGHTS, now=0))
    modest = crowd.join(b"alice", "interactive", 1, pace=rate * part)
    greedy = [crowd.join(b"bob", "bulk", n) for n in (2, 3)]
    crowd.run(4.0)
    assert crowd.moved[modest] >= 0.95 * rate * part * 4 - 2 * PIECE
    left = rate * (1 - part) * 4
    assert sum(crowd.moved[flow] for flow in greedy) >= 0.95 * left
    first, second = (crowd.moved[flow] for flow in greedy)
    assert abs(first - second) <= 0.05 * first + 2 * PIECE


def test_a_peer_at_its_ceiling_leaves_the_rest_of_the_total_to_others() -> None:
    allowed = Ceilings(total=10 * MB, peers={b"alice": 1 * MB})
    crowd = Crowd(Bandwidth(allowed, WEIGHTS, now=0))
    slow = crowd.join(b"alice", "interactive", 1)
    other = crowd.join(b"bob", "bulk", 2)
    crowd.run(5.0)
    assert crowd.moved[slow] == pytest.approx(5 * MB, rel=0.05)
    assert crowd.moved[other] == pytest.approx(45 * MB, rel=0.05)


def test_a_flow_that_needs_two_full_buckets_gets_its_turn_at_both() -> None:
    """Others empty each of them the moment a token comes in: one that had to find both full would wait for ever."""
    allowed = Ceilings(peers={b"alice": 1 * MB}, classes={"task": 1.3 * MB})
    crowd = Crowd(Bandwidth(allowed, {}, now=0))
    both = crowd.join(b"alice", "task", 1)
    crowd.join(b"alice", "bulk", 2)
    crowd.join(b"bob", "task", 3)
    crowd.run(5.0)
    assert crowd.moved[both] >= 0.4 * 5 * MB


def test_connections_of_one_transfer_share_as_one() -> None:
    machine = Bandwidth(Ceilings(total=8 * MB), {}, now=0)
    crowd = Crowd(machine)
    alone = crowd.join(b"alice", "bulk", "one")
    twice = crowd.join(b"bob", "bulk", "two")
    assert machine.open(b"bob", "bulk", "two") is twice
    crowd.run(3.0)
    assert crowd.moved[alone] == pytest.approx(crowd.moved[twice], rel=0.03)
    machine.close(twice)
    machine.close(twice)
    assert machine.open(b"bob", "bulk", "two") is not twice


@pytest.mark.parametrize(
    ("before", "after"), [(20 * MB, 2 * MB), (2 * MB, 20 * MB), (None, 3 * MB), (3 * MB, None)]
)
def test_another_ceiling_holds_at_once_for_what_waits_too(before: float | None, after: float | None) -> None:
    crowd = Crowd(Bandwidth(Ceilings(total=before), WEIGHTS, now=0))
    flow = crowd.join(b"alice", "bulk", 1, pace=40 * MB)
    crowd.run(1.0)
    crowd.machine.set(Ceilings(total=after), WEIGHTS, now=crowd.now)
    crowd.run(1.0)
    expected = min(after or math.inf, 40 * MB)
    assert crowd.since(1.0)[flow] == pytest.approx(expected, rel=0.12)
    assert crowd.machine.is_limited(flow) == (after is not None)


def test_other_weights_hold_at_once() -> None:
    crowd = Crowd(Bandwidth(Ceilings(total=8 * MB), {"task": 1, "bulk": 1}, now=0))
    task, bulk = crowd.join(b"alice", "task", 1), crowd.join(b"bob", "bulk", 2)
    crowd.run(2.0)
    assert crowd.moved[task] == pytest.approx(crowd.moved[bulk], rel=0.03)
    crowd.machine.set(crowd.machine.ceilings, {"task": 3, "bulk": 1}, now=crowd.now)
    crowd.run(2.0)
    since = crowd.since(2.0)
    assert since[task] == pytest.approx(3 * since[bulk], rel=0.06)


def test_what_is_withdrawn_costs_nothing_and_keeps_its_turn() -> None:
    machine = Bandwidth(Ceilings(total=1 * MB), {}, now=0)
    first, second = machine.open(b"alice", "bulk", 1), machine.open(b"bob", "bulk", 2)
    machine.ask(first, int(burst(1 * MB)), now=0)
    machine.advance(0)  # the burst is spent
    for _ in range(100):
        machine.withdraw(machine.ask(second, PIECE, now=0))
    assert machine.deadline() == math.inf
    ahead, behind = machine.ask(second, PIECE, now=0), machine.ask(first, PIECE, now=0)
    assert machine.advance(machine.deadline() + 1e-6) == [ahead]
    machine.withdraw(ahead)  # its bytes never moved: they are there for the other
    assert machine.advance(machine.deadline()) == [behind]


def test_a_request_larger_than_the_burst_goes_and_leaves_a_debt() -> None:
    machine = Bandwidth(Ceilings(total=1 * MB), {}, now=0)
    flow = machine.open(b"alice", "bulk", 1)
    large, next_one = machine.ask(flow, 2_000_000, now=0), machine.ask(flow, PIECE, now=0)
    assert machine.advance(0) == [large]
    assert machine.deadline() == pytest.approx(1.9 + PIECE / MB, abs=0.01)
    assert machine.advance(machine.deadline() + 1e-6) == [next_one]


def test_datagrams_that_nobody_can_hold_back_count_and_are_dropped_above_the_ceiling() -> None:
    machine = Bandwidth(Ceilings(total=1 * MB), {}, now=0)
    passed = sum(1400 for tick in range(20_000) if machine.admits(b"alice", "bulk", 1400, now=tick / 10_000))
    assert passed == pytest.approx(2 * MB, rel=0.06)
    (use,) = machine.uses(2.0)
    assert (use.peer, use.bytes_moved) == (b"alice", passed)
    assert use.bytes_per_second == pytest.approx(1 * MB * (1 - math.exp(-1)), rel=0.08)


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.inf, math.nan])
def test_ceilings_and_weights_are_above_zero(wrong: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Bandwidth(Ceilings(total=wrong), {}, now=0)
    with pytest.raises(ValueError, match="above 0"):
        Bandwidth(Ceilings(), {"bulk": wrong}, now=0)


@pytest.mark.parametrize("hurried", [True, False])
def test_a_transfer_that_is_behind_its_deadline_gets_what_it_needs_and_no_more(hurried: bool) -> None:
    """Ten seconds for 60 MB of a ceiling of 10 MB/s that five share alike: 2 MB/s each are not enough."""
    crowd = Crowd(Bandwidth(Ceilings(total=10 * MB), WEIGHTS, now=0))
    shipment, *others = (crowd.join(b"alice", "bulk", n) for n in range(5))
    hurry = Hurry(60_000_000, 11.0, now=0)
    for _ in range(11):
        crowd.run(1.0)
        if hurried:
            crowd.machine.hurry(b"alice", 0, hurry.look(crowd.moved[shipment], now=crowd.now))
    assert (crowd.moved[shipment] >= 59 * MB) == hurried
    assert all(crowd.moved[each] >= 5 * MB for each in others)  # it took no more than it needed
    crowd.machine.hurry(b"alice", 0, 1.0)
    before = dict(crowd.moved)
    crowd.run(2.0)
    assert crowd.moved[shipment] - before[shipment] == pytest.approx(4 * MB, rel=0.1)


def test_a_hurry_ends_grows_in_steps_and_is_bounded() -> None:
    hurry = Hurry(100, 10.0, now=0)
    assert hurry.look(10, now=1.0) == 1.0  # as quick as it has to be
    assert hurry.look(10, now=2.0) == STEP_MAX  # nothing came
    assert [hurry.look(10, now=at) for at in (3.0, 4.0)] == [FACTOR_MAX, FACTOR_MAX]
    assert hurry.look(70, now=5.0) < FACTOR_MAX
    assert hurry.look(70, now=5.0) == hurry.factor
    assert hurry.look(90, now=11.0) == FACTOR_MAX  # late: the sooner the better
    assert hurry.look(100, now=12.0) == 1.0


def test_a_hurry_is_of_one_transfer_or_of_all_of_a_peer() -> None:
    crowd = Crowd(Bandwidth(Ceilings(total=MB), WEIGHTS, now=0))
    alice, other, bob = (crowd.join(peer, "bulk", n) for n, peer in enumerate((b"alice", b"alice", b"bob")))
    crowd.machine.hurry(b"alice", None, 2.0)
    crowd.machine.hurry(b"alice", 1, 4.0)
    crowd.run(7.0)
    moved = {flow: crowd.moved[flow] / crowd.moved[bob] for flow in (alice, other)}
    assert moved == pytest.approx({alice: 2.0, other: 4.0}, rel=0.15)
    for wrong in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="above 0"):
            crowd.machine.hurry(b"alice", 1, wrong)


def test_what_is_remembered_is_bounded() -> None:
    machine = Bandwidth(Ceilings(each_peer=1 * MB), {}, now=0)
    for number in range(9000):
        peer = number.to_bytes(32, "big")
        flow = machine.open(peer, "bulk", 1)
        machine.ask(flow, PIECE, now=float(number))
        machine.advance(float(number))
        machine.moved(peer, "bulk", PIECE, now=float(number))
        machine.close(flow)
    assert len(machine.uses(9000.0)) == 1024
