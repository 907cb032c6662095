"""The DHT's parts alone: routing table, lookup, stores, rates, timers."""

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ioc_node.core import storage
from ioc_node.core.candidates import Candidates
from ioc_node.core.lookup import Lookup
from ioc_node.core.rates import Rate, RateTable
from ioc_node.core.routing import Contact, RoutingTable
from ioc_node.core.storage import HolderStore, RecordStore
from ioc_node.core.timers import Timers
from ioc_wire.cid import cid_key, self_certified_prefix
from ioc_wire.dht import HolderRecord, verify_holder
from ioc_wire.errors import OverQuota
from ioc_wire.records import verify_record
from ioc_wire.signed import public_bytes, sign
from tests.core.staple import UNIX, key_of, record_of

OWN = bytes(32)


def contact(number: int, host: str = "10.0.0.1") -> Contact:
    return Contact(random.Random(number).randbytes(32), (host, number + 1))


def distance(target: int, node_id: bytes) -> int:
    return int.from_bytes(node_id, "big") ^ target


@given(st.integers(0, 300), st.integers(1, 40), st.binary(min_size=32, max_size=32), st.integers(0, 40))
@example(0, 1, bytes(31) + b"\x01", 4)
@settings(max_examples=60, deadline=None)
def test_the_nearest_are_the_nearest(size: int, count: int, target: bytes, near: int) -> None:
    table = RoutingTable(OWN, capped=False)
    contacts = [contact(number) for number in range(size)]
    contacts += [Contact(target[:31] + bytes((number,)), ("10.0.0.2", 1)) for number in range(near)]
    for each in contacts:
        table.add(each, 0.0)
    point = int.from_bytes(target, "big")
    want = sorted({c.node_id for c in contacts if c.node_id != OWN}, key=lambda i: distance(point, i))[:count]
    assert [peer.node_id for peer in table.nearest(point, count)] == want


def test_pages_walk_the_whole_table_once() -> None:
    table = RoutingTable(OWN, capped=False)
    for number in range(95):
        table.add(contact(number), 0.0)
    after, seen = OWN, []
    while page := table.after(after, 20):
        seen += [peer.node_id for peer in page]
        after = page[-1].node_id
    assert seen == sorted(contact(number).node_id for number in range(95))


def test_a_table_that_is_full_becomes_buckets_of_the_longest_known() -> None:
    table = RoutingTable(OWN, capped=False, full_max=100)
    for number in range(400):
        table.add(contact(number), float(number))
    assert not table.full
    buckets: dict[int, list[float]] = {}
    for peer in table.peers():
        buckets.setdefault(256 - peer.number.bit_length(), []).append(peer.since)
    assert all(len(members) <= 20 for members in buckets.values())
    assert max(buckets[0]) < 60, "the far half is full of those that came first"
    gone = table.peers()[-1]
    spare = table.remove(gone.node_id)
    assert spare is not None
    assert spare.node_id not in table
    assert table.remove(gone.node_id) is None


def test_one_neighbourhood_cannot_fill_a_table() -> None:
    table = RoutingTable(OWN, capped=True)
    assert sum(table.add(contact(number, f"9.9.9.{number}"), 0.0) for number in range(50)) <= 3
    assert all(table.add(contact(number + 100, f"8.8.{number}.8"), 0.0) for number in range(50))
    assert all(table.add(contact(number + 200, "127.0.0.1"), 0.0) for number in range(50))


def test_a_table_knows_one_address_per_node_and_never_itself() -> None:
    table = RoutingTable(OWN, capped=False)
    assert not table.add(Contact(OWN, ("10.0.0.1", 1)), 0.0)
    one = contact(1)
    assert table.add(one, 0.0)
    assert table.add(one._replace(address=("10.0.0.9", 9)), 1.0)
    assert [peer.contact.address for peer in table.peers()] == [("10.0.0.9", 9)]


def test_candidates_wait_their_time_and_are_bounded() -> None:
    candidates = Candidates()
    for number in range(3000):
        candidates.add(contact(number), 5.0 if number % 2 else 0.0)
    assert len(candidates) == 1024
    assert len(candidates.take(2000, 1.0)) == 512
    assert candidates.take(0, 9.0) == []
    assert len(candidates.take(2000, 9.0)) == 512
    assert candidates.is_settled()


def test_a_lookup_keeps_its_width_and_completes_with_the_nearest() -> None:
    contacts = [contact(number) for number in range(60)]
    target = 7
    lookup = Lookup(target, contacts[:3], own_id=OWN, width=4)
    asked = lookup.next()
    assert len(asked) == 3
    lookup.answered(asked[0].node_id, contacts)
    assert len(lookup.next()) == 2, "two are still waited for"
    lookup.failed(asked[1].node_id)
    lookup.failed(asked[2].node_id)
    while lookup.ending is None:
        for each in lookup.next():
            lookup.answered(each.node_id)
        for entry in list(lookup._entries.values()):
            if entry.state.value == "waiting":
                lookup.answered(entry.contact.node_id)
    assert lookup.ending == "completed"
    alive = sorted(contacts, key=lambda c: distance(target, c.node_id))
    alive = [c for c in alive if c not in asked[1:]]
    assert lookup.nearest() == alive[:20]
    assert lookup.hop(asked[0].node_id) == 1


def test_servers_that_are_late_hold_up_nobody_and_may_answer_still() -> None:
    """Silent on purpose and nearest to the target, they would fill all places until each of them is given up."""
    contacts = [contact(number) for number in range(6)]
    lookup = Lookup(0, contacts, own_id=OWN, width=2)
    silent = lookup.next()
    assert lookup.next() == []
    for each in silent:
        lookup.late(each.node_id)
        lookup.late(each.node_id)
    others = lookup.next()
    assert len(others) == 2
    assert set(lookup.waiting()) == {*silent, *others}
    lookup.answered(silent[0].node_id)
    lookup.failed(silent[1].node_id)
    lookup.late(silent[0].node_id)
    assert lookup.next() == [], "the two others are still under way, and no place came free twice"
    for each in others:
        lookup.answered(each.node_id)
    for each in lookup.next():
        lookup.answered(each.node_id)
    assert lookup.next() == []
    assert lookup.ending == "completed"
    assert set(lookup.nearest()) == {*contacts} - {silent[1]}


def test_a_lookup_that_was_not_enough_goes_on_with_those_farther_away() -> None:
    contacts = sorted((contact(number) for number in range(50)), key=lambda c: distance(0, c.node_id))
    lookup = Lookup(0, contacts, own_id=OWN)
    asked: list[Contact] = []
    for count in (20, 40):
        lookup.go_on(count)
        while lookup.ending is None:
            for each in lookup.next():
                asked.append(each)
                lookup.answered(each.node_id)
        assert lookup.ending == "completed"
        assert asked == contacts[:count]


def test_a_lookup_without_answers_starves_and_can_be_stopped() -> None:
    lookup = Lookup(0, [contact(1), contact(2)], own_id=OWN)
    for each in lookup.next():
        lookup.failed(each.node_id)
    assert lookup.next() == []
    assert lookup.ending == "starved"
    stopped = Lookup(0, [contact(1)], own_id=OWN)
    stopped.stop()
    assert stopped.next() == []
    assert stopped.ending == "stopped"
    nobody = Lookup(0, [Contact(OWN, ("h", 1))], own_id=OWN)
    assert nobody.next() == []
    assert nobody.ending == "starved"


def test_a_lookup_is_bounded_in_what_it_is_told() -> None:
    lookup = Lookup(0, [contact(1)], own_id=OWN)
    first = lookup.next()[0]
    lookup.answered(first.node_id, [contact(number) for number in range(2000)])
    assert len(lookup._entries) == len(lookup._shortlist) == 160


def test_a_full_store_gives_way_to_nearer_records_only() -> None:
    key = key_of("provider")
    prefix = self_certified_prefix(public_bytes(key))
    cids = [f"ioc:{prefix}/ai/3301/az1/h{number}" for number in range(30)]
    near_first = sorted(cids, key=lambda cid: distance(0, cid_key(cid)))
    store = RecordStore(OWN, records_max=10)

    def put(cid: str, seconds: int = 3600, unix: float = UNIX) -> list[bytes]:
        signed = record_of(key, cid, issued=int(unix), seconds=seconds)
        record, _ = verify_record(signed, now=unix)
        return store.put(cid_key(cid), signed, record, None, unix)

    for cid in near_first[10:20]:
        assert put(cid) == []
    with pytest.raises(OverQuota, match="nearer"):
        put(near_first[25])
    assert put(near_first[0]) == [cid_key(near_first[19])]
    assert len(store) == 10
    later = UNIX + 5000
    assert len(put(near_first[25], unix=later)) == 10, "the expired go first"
    assert len(store) == 1
    assert store.get(cid_key(near_first[0]), later) is None


def test_holders_are_bounded_per_blob_and_drawn_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "HOLDERS_PER_BLOB_MAX", 5)
    store = HolderStore(blobs_max=2)

    def put(name: str, blob: bytes, unix: float = UNIX) -> None:
        signed = sign(key_of(name), HolderRecord(blob, "h", 1, int(unix), int(unix) + 60))
        store.put(signed, verify_holder(signed, now=unix), unix)

    for number in range(5):
        put(f"node{number}", b"a" * 32)
    put("node1", b"a" * 32)
    with pytest.raises(OverQuota):
        put("node5", b"a" * 32)
    found, total = store.get(b"a" * 32, UNIX, 3, random.Random(1))
    assert (len(found), total) == (3, 5)
    put("node1", b"b" * 32)
    put("node1", b"c" * 32)
    assert len(store) == 2
    assert store.get(b"a" * 32, UNIX, 3, random.Random(1)) == ([], 0)
    store.drop_expired(UNIX + 1000)
    assert len(store) == 0
    assert not store._published


def test_rates_refill_and_their_table_is_bounded() -> None:
    rate = Rate(8, 3)
    assert [rate.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert [rate.take(100.125), rate.take(100.1875), rate.take(100.25)] == [True, False, True]
    table = RateTable(1, 1)
    for number in range(5000):
        assert table.take(number, 0.0)
    assert len(table._buckets) == 4096
    assert not table.take(4999, 0.0)


def test_cancelled_timers_do_not_wake_anybody() -> None:
    timers = Timers()
    calls: list[str] = []
    early = timers.add(1.0, lambda now, out: calls.append("early"))
    timers.add(2.0, lambda now, out: calls.append("late"))
    early.cancel()
    assert timers.deadline() == 2.0
    for call in timers.due(5.0):
        call(5.0, [])
    assert calls == ["late"]
    assert timers.deadline() == float("inf")
