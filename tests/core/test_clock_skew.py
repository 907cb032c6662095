"""Clocks that are up to five minutes apart make no difference; beyond that, the fault names the seconds."""

import re

import pytest

from ioc_node.core.challenge import Address
from ioc_node.core.events import (
    AnnounceStarted,
    ClockRead,
    GetReport,
    GetStarted,
    HoldersReport,
    HoldersStarted,
    JoinReport,
    JoinStarted,
    PutReport,
    PutStarted,
    RecordChanged,
    WatchStarted,
)
from ioc_node.errors import NodeError
from ioc_wire import dht as wire
from ioc_wire.errors import Expired, NotFound, NotYetValid, WireError
from ioc_wire.signed import public_bytes, sign
from tests.core.staple import UNIX, Network, delegate, key_of, record_of

ROOT = key_of("root")
CHAINED = "ioc:cn.r3301.20004/ai/3301/az1/h1"
PROVIDER = key_of("provider")
BLOB = bytes(32)


def seconds_in(fault: object) -> int:
    """The duration that a fault names."""
    found = re.search(r"(\d+) s ", str(fault))
    assert found is not None, fault
    return int(found[1])


class Skewed:
    """Bob's clock is right, alice's is `seconds` ahead (behind where negative). Alice's provider, too, signs by it."""

    def __init__(self, seconds: int) -> None:
        self.net = Network()
        self.bob = self.add("bob", 0, "regional")
        self.alice = self.add("alice", seconds, "provider")
        self.joined = self.net.result(self.alice, JoinStarted(1, (self.bob,)))
        self.chain = (delegate(ROOT, PROVIDER, "cn.r3301.20004", "provider"),)

    def add(self, name: str, seconds: int, role: str) -> Address:
        chain = (delegate(ROOT, key_of(name), "", role),)  # type: ignore[arg-type]
        address = self.net.add(name, admission="certified", roots=(public_bytes(ROOT),), chain=chain)
        self.net.do(address, ClockRead(UNIX + seconds + self.net.now))
        return address

    def put(self, *, issued: int, seconds: int = 3600, version: int = 1) -> list[object]:
        record = record_of(PROVIDER, CHAINED, version, issued=issued, seconds=seconds)
        report = self.net.result(self.alice, PutStarted(2, record, self.chain))
        if not isinstance(report, PutReport):
            return [report]
        return [fault for _, fault in report.refused]

    def announce(self, *, issued: int, seconds: int) -> list[object]:
        holder = sign(key_of("alice"), wire.HolderRecord(BLOB, "10.0.0.1", 4000, issued, issued + seconds))
        report = self.net.result(self.alice, AnnounceStarted(3, holder))
        assert isinstance(report, PutReport)
        return [fault for _, fault in report.refused]


@pytest.mark.parametrize("seconds", [-299, 299])
def test_five_minutes_make_no_difference(seconds: int) -> None:
    skewed = Skewed(seconds)
    net, own = skewed.net, UNIX + seconds
    assert isinstance(skewed.joined, JoinReport)
    assert skewed.joined.reached == 1
    assert skewed.put(issued=own, seconds=1) == [], "a period that has not begun, or has just ended, for bob"
    net.do(skewed.bob, WatchStarted(9, CHAINED))
    assert skewed.put(issued=own, version=2) == []
    net.run(1)
    told = [effect for at, effect in net.effects if at == skewed.bob and isinstance(effect, RecordChanged)]
    assert told[-1].resource.version == 2
    for who in (skewed.alice, skewed.bob):
        found = net.result(who, GetStarted(4, CHAINED))
        assert isinstance(found, GetReport)
    assert skewed.announce(issued=own, seconds=60) == []
    assert isinstance(net.result(skewed.bob, HoldersStarted(5, BLOB)), HoldersReport)


def test_a_clock_that_is_far_ahead_is_told_by_how_much() -> None:
    skewed = Skewed(900)
    faults = skewed.put(issued=UNIX + 900)
    assert [type(fault) for fault in faults] == [NotYetValid]
    assert 890 <= seconds_in(faults[0]) <= 900
    (fault,) = skewed.announce(issued=UNIX + 900, seconds=60)
    assert isinstance(fault, NotYetValid)
    assert isinstance(skewed.net.result(skewed.bob, GetStarted(4, CHAINED)), NotFound)


def test_a_clock_that_is_far_behind_is_told_by_how_much() -> None:
    skewed = Skewed(-900)
    faults = skewed.put(issued=UNIX - 900, seconds=60)
    assert [type(fault) for fault in faults] == [Expired]
    assert 840 <= seconds_in(faults[0]) <= 850
    (fault,) = skewed.announce(issued=UNIX - 900, seconds=60)
    assert isinstance(fault, Expired)


@pytest.mark.parametrize(("left", "fault"), [(299, None), (900, Expired)])
def test_a_chain_that_ends_within_the_skew_still_counts(left: int, fault: type[WireError] | None) -> None:
    """By bob's clock alice's delegation ended `left` seconds ago."""
    net = Network()
    rule = {"admission": "certified", "roots": (public_bytes(ROOT),)}
    bob_chain = (delegate(ROOT, key_of("bob"), "", "regional"),)
    bob = net.add("bob", chain=bob_chain, **rule)  # type: ignore[arg-type]
    alice_chain = (delegate(ROOT, key_of("alice"), "", "provider", until=UNIX - left),)
    alice = net.add("alice", chain=alice_chain, **rule)  # type: ignore[arg-type]
    net.do(alice, ClockRead(UNIX - left + net.now))
    joined = net.result(alice, JoinStarted(1, (bob,)))
    assert isinstance(joined, JoinReport)
    faults = [fault for _, fault in joined.failed]
    assert [type(each) for each in faults] == ([] if fault is None else [fault])
    assert all(isinstance(each, (WireError, NodeError)) for each in faults)
