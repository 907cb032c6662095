"""Sweeps over whole networks in memory: where the records end up, what it costs, and what fails on the way."""

import msgspec
import pytest

from ioc_node.core import answering, sweeping
from ioc_node.core.challenge import Address
from ioc_node.core.dht import DhtMachine
from ioc_node.core.events import (
    GetStarted,
    JoinStarted,
    OperationCancelled,
    PutReport,
    PutStarted,
    RecordsRestored,
    SweepReport,
    SweepStarted,
)
from ioc_node.core.rates import RateTable, source_name
from ioc_node.errors import PeerUnreachable
from ioc_wire import dht as wire
from ioc_wire.authority import chain_hash
from ioc_wire.cid import cid_key
from ioc_wire.errors import BadSignature, Malformed, OlderVersion, OverQuota, RateLimited, TooLarge, Withdrawn
from ioc_wire.records import Tombstone
from ioc_wire.signed import Signed, public_bytes, sign
from tests.core.staple import UNIX, Network, delegate, key_of, record_of
from tests.core.test_dht_network import CID, OWN, PROVIDER, get, grow, nearest, put


def records(count: int, version: int = 1) -> tuple[tuple[Signed, tuple[Signed, ...]], ...]:
    return tuple((record_of(PROVIDER, f"{OWN}/h{n}", version), ()) for n in range(count))


def sweep(
    net: Network, address: Address, batch: tuple[tuple[Signed, tuple[Signed, ...]], ...], seconds: float = 120
) -> SweepReport:
    report = net.result(address, SweepStarted(5, batch), seconds)
    assert isinstance(report, SweepReport), report
    return report


def holders(net: Network, cid: str) -> set[bytes]:
    key = cid_key(cid)
    return {node.node_id for node in net.nodes.values() if node.store.get(key, UNIX + net.now)}


def tombstone_of(cid: str, version: int, seconds: int = 86400) -> Signed:
    return sign(PROVIDER, Tombstone(cid, version, UNIX, UNIX + seconds))


def requests_sent(net: Network, address: Address) -> int:
    return sum(source == address for _, source, _ in net.wire)


# -- sweeps


@pytest.mark.parametrize(("servers", "count"), [(30, 150), pytest.param(60, 2000, marks=pytest.mark.slow)])
def test_a_sweep_stores_where_puts_would_with_few_messages(servers: int, count: int) -> None:
    net = Network()
    nodes = grow(net, servers)
    report = sweep(net, nodes[7], records(count))
    assert (report.stored, report.thin, report.missed, report.refused) == (count, 0, (), [])
    assert report.lookups == 0  # a full view
    for n in range(0, count, 37):
        assert holders(net, f"{OWN}/h{n}") == nearest(net, cid_key(f"{OWN}/h{n}"))
    assert report.messages < count * 20 / 2.5
    assert get(net, nodes[20], f"{OWN}/h123").hops <= 1


def test_without_a_full_view_lookups_grow_with_the_servers() -> None:
    net = Network()
    nodes = grow(net, 50, full_max=24)
    client = net.add("client", server=False, full_max=24)
    net.result(client, join_through(nodes[0]))
    net.run(20)
    assert not net.nodes[client].upkeep.has_full_view()
    report = sweep(net, client, records(250))
    assert report.stored == 250
    assert report.lookups <= 30
    held = [holders(net, f"{OWN}/h{n}") & nearest(net, cid_key(f"{OWN}/h{n}")) for n in range(0, 250, 13)]
    assert sum(map(len, held)) >= 0.97 * 20 * len(held)


def join_through(address: Address) -> object:
    return JoinStarted(1, (address,))


def test_the_next_nearest_take_the_place_of_dead_servers() -> None:
    net = Network()
    nodes = grow(net, 30)
    dead = [net.nodes.pop(address) for address in (nodes[3], nodes[9], nodes[20])]
    report = sweep(net, nodes[0], records(100))
    assert (report.stored, report.thin) == (100, 0)
    assert all(isinstance(fault, PeerUnreachable) for _, fault in report.refused)
    assert 1 <= len(report.refused) <= len(dead)
    for n in range(0, 100, 11):
        assert holders(net, f"{OWN}/h{n}") == nearest(net, cid_key(f"{OWN}/h{n}"))


def test_lost_datagrams_do_not_lose_records() -> None:
    net = Network(loss=0.15, jitter=0.02)
    nodes = grow(net, 24)
    report = sweep(net, nodes[0], records(60))
    assert (report.stored, report.thin) == (60, 0)


def test_a_server_that_limits_us_gets_the_rest_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "WRITES_PER_SECOND", 40.0)
    monkeypatch.setattr(answering, "WRITES_BURST", 40.0)
    net = Network()
    nodes = grow(net, 10)
    began = net.now
    report = sweep(net, nodes[0], records(200))
    assert (report.stored, report.thin, report.refused) == (200, 0, [])
    assert net.now - began > 3  # 200 records, of which 40 at once and 40 a second
    assert holders(net, f"{OWN}/h7") == {net.nodes[address].node_id for address in nodes}


def test_a_server_that_never_takes_anything_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Network()
    nodes = grow(net, 24)
    mute = net.nodes[nodes[4]]
    mute.answering._writes = RateTable(0.0, 0.0)
    report = sweep(net, nodes[0], records(40))
    assert (report.stored, report.thin) == (40, 0)
    assert [type(fault) for _, fault in report.refused] == [RateLimited]
    for n in range(40):
        found = holders(net, f"{OWN}/h{n}")
        assert mute.node_id not in found
        assert len(found) == 20


def test_who_takes_a_record_a_second_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "RESTS_ALL_MAX", 5)
    net = Network()
    nodes = grow(net, 24)
    slow = net.nodes[nodes[4]]
    slow.answering._writes = RateTable(1.0, 1.0)
    report = sweep(net, nodes[0], records(60))
    assert (report.stored, report.thin) == (60, 0)
    assert report.seconds < 15
    assert 1 <= len(slow.store) <= 10
    assert all(len(holders(net, f"{OWN}/h{n}")) >= 20 for n in range(60))


def test_a_server_that_answers_nonsense_is_replaced() -> None:
    net = Network()
    nodes = grow(net, 24)
    liar = net.nodes[nodes[4]]
    liar.answering._keep_many = lambda session, request, *_: wire.StoredMany(request.request, (0,) * 16)  # type: ignore[method-assign]
    report = sweep(net, nodes[0], records(40))
    assert (report.stored, report.thin) == (40, 0)
    assert [type(fault) for _, fault in report.refused] == [Malformed]
    assert all(len(holders(net, f"{OWN}/h{n}")) == 20 for n in range(40))


def test_servers_are_told_the_chain_first() -> None:
    net = Network()
    root = key_of("root")
    roots = (public_bytes(root),)

    def certified(name: str) -> dict[str, object]:
        chain = (delegate(root, key_of(name), "cn.r3301", "regional"),)
        return {"admission": "certified", "roots": roots, "chain": chain}

    nodes = [net.add(f"node{n}", **certified(f"node{n}")) for n in range(25)]  # type: ignore[arg-type]
    for address in nodes[1:]:
        net.result(address, join_through(nodes[0]))
    net.run(40)
    chain = (delegate(root, PROVIDER, "cn.r3301.20004", "provider"),)
    batch = tuple((record_of(PROVIDER, f"ioc:cn.r3301.20004/ai/3301/az1/h{n}"), chain) for n in range(100))
    report = sweep(net, nodes[0], batch)
    assert (report.stored, report.thin, report.refused) == (100, 0, [])
    name = chain_hash(chain)
    assert all(node.trust.chain(name) for node in net.nodes.values())


def test_a_sweep_says_what_it_could_not_store() -> None:
    net = Network()
    nodes = grow(net, 5)
    put(net, nodes[0], record_of(PROVIDER, CID, 9))
    good, bad = record_of(PROVIDER, f"{OWN}/h2"), record_of(PROVIDER, f"{OWN}/h3")
    forged = msgspec.structs.replace(bad, signature=bytes(64))
    report = sweep(net, nodes[1], ((record_of(PROVIDER, CID, 8), ()), (good, ()), (forged, ())))
    assert report.stored == 1
    assert sorted(report.missed) == [CID, f"{OWN}/h3"]
    assert {(cid, type(fault)) for cid, fault in report.refused} == {
        (CID, OlderVersion), (f"{OWN}/h3", BadSignature),
    }  # fmt: skip


def test_what_is_no_record_is_refused_alone() -> None:
    net = Network()
    nodes = grow(net, 5)
    good = record_of(PROVIDER, CID)
    junk = msgspec.structs.replace(good, payload=b"junk")
    huge = msgspec.structs.replace(record_of(PROVIDER, f"{OWN}/h2"), signature=bytes(64), domain="x" * 2000)
    report = sweep(net, nodes[0], ((junk, ()), (good, ()), (huge, ())))
    assert (report.stored, report.missed) == (1, ())
    assert [(cid, type(fault)) for cid, fault in report.refused] == [("?", Malformed), ("?", TooLarge)]


def test_a_sweep_is_bounded_and_needs_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Network()
    lonely = net.add("alice", server=False)
    assert isinstance(net.result(lonely, SweepStarted(1, records(3))), PeerUnreachable)
    monkeypatch.setattr(sweeping, "SWEEP_RECORDS_MAX", 2)
    assert isinstance(net.result(lonely, SweepStarted(1, records(3))), TooLarge)
    assert sweep(net, lonely, ()).stored == 0


def test_a_cancelled_sweep_stops() -> None:
    net = Network()
    nodes = grow(net, 20)
    net.do(nodes[0], SweepStarted(5, records(1000)))
    net.run(0.02)
    net.do(nodes[0], OperationCancelled(5))
    net.run(5)
    assert net.nodes[nodes[0]].operations == {}
    assert (nodes[0], 5) not in net.results
    assert not holders(net, f"{OWN}/h999") or len(net.nodes[nodes[1]].store) < 1000


# -- what servers do with batches and tombstones


def asked(net: Network, source: Address, target: Address, request: wire.Request) -> wire.Answer:
    """What one node answers another, over a session."""
    answers: list[object] = []
    node = net.nodes[source]
    out: list[object] = []
    node.exchange.ask(
        request.request, request, net.nodes[target].node_id, target,
        lambda answer, *_: answers.append(answer), net.now, out,
    )  # type: ignore[arg-type]  # fmt: skip
    for effect in out:
        net.send(effect.data, source, effect.address)  # type: ignore[attr-defined]
    net.run(1)
    return answers[0]  # type: ignore[return-value]


def test_one_bad_record_does_not_hurt_the_others_of_its_batch() -> None:
    net = Network()
    alice, bob = grow(net, 2)
    batch = [record_of(PROVIDER, f"{OWN}/h{n}") for n in range(3)]
    batch[1] = msgspec.structs.replace(batch[1], signature=bytes(64))
    answer = asked(net, alice, bob, wire.PutMany(77, tuple(batch), None))
    assert answer == wire.StoredMany(77, (0, BadSignature.code, 0))
    assert len(net.nodes[bob].store) == 2


def test_each_record_of_a_batch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "WRITES_BURST", 2.0)
    monkeypatch.setattr(answering, "WRITES_PER_SECOND", 0.001)
    net = Network()
    alice, bob = grow(net, 2)
    batch = tuple(record_of(PROVIDER, f"{OWN}/h{n}") for n in range(4))
    limited = RateLimited.code
    answer = asked(net, alice, bob, wire.PutMany(77, batch, None))
    assert answer == wire.StoredMany(77, (0, 0, limited, limited))


def test_a_tombstone_keeps_older_records_away_until_a_newer_one_comes() -> None:
    net = Network()
    nodes = grow(net, 8)
    old = record_of(PROVIDER, CID, 3)
    put(net, nodes[0], old)
    assert get(net, nodes[5]).resource.version == 3
    assert len(put(net, nodes[0], tombstone_of(CID, 4)).stored) == 8
    report = put(net, nodes[1], old)
    assert not report.stored
    assert all(isinstance(fault, OlderVersion) for _, fault in report.refused)
    assert isinstance(net.result(nodes[5], GetStarted(9, CID)), Withdrawn)
    assert len(put(net, nodes[1], record_of(PROVIDER, CID, 5)).stored) == 8
    assert get(net, nodes[5]).resource.version == 5


def test_a_tombstone_is_restored_and_expires_like_a_record() -> None:
    net = Network()
    alice = net.add("alice")
    node = net.nodes[alice]
    net.do(alice, RecordsRestored(((tombstone_of(CID, 4, 1000), ()), (record_of(PROVIDER, CID, 3), ()))))
    held = node.store.get(cid_key(CID), UNIX)
    assert held is not None
    assert held.signed.kind == "tombstone"
    assert node.rejected == 1
    assert node.store.get(cid_key(CID), UNIX + 1301) is None


def test_only_the_owner_can_withdraw() -> None:
    net = Network()
    nodes = grow(net, 3)
    put(net, nodes[0], record_of(PROVIDER, CID, 3))
    foreign = sign(key_of("mallory"), Tombstone(CID, 9, UNIX, UNIX + 1000))
    report = net.result(nodes[1], PutStarted(2, foreign, ()))
    assert isinstance(report, PutReport)
    assert not report.stored
    assert get(net, nodes[2]).resource.version == 3


def test_who_was_offline_learns_of_a_tombstone_by_correction() -> None:
    net = Network()
    nodes = grow(net, 6)
    put(net, nodes[0], record_of(PROVIDER, CID, 3))
    late = net.nodes.pop(nodes[3])
    put(net, nodes[0], tombstone_of(CID, 4))
    net.nodes[nodes[3]] = late
    net.run(60)
    net.result(nodes[1], GetStarted(9, CID, 0, 6))
    net.run(5)
    held = late.store.get(cid_key(CID), UNIX + net.now)
    assert held is not None
    assert held.signed.kind == "tombstone"


# -- limits


def test_sources_are_counted_by_address_and_only_public_ones() -> None:
    assert source_name("127.0.0.1") is None
    assert source_name("10.1.2.3") is None
    assert source_name("51.1.2.3") != source_name("51.1.2.4")
    assert source_name("2a01:4f8:1:2::1") == source_name("2a01:4f8:1:2:ffff::9")
    assert source_name("2a01:4f8:1:2::1") != source_name("2a01:4f8:1:3::1")


def test_many_peers_behind_one_address_share_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "WRITES_PER_SECOND_ADDRESS", 0.001)
    monkeypatch.setattr(answering, "WRITES_BURST_ADDRESS", 3.0)
    net = Network()
    server = net.add("server", address=("51.9.9.9", 4000))
    crowd = [net.add(f"peer{n}", server=False, address=("52.1.1.1", 4000 + n)) for n in range(2)]
    other = net.add("other", server=False, address=("53.1.1.1", 4000))
    batch = tuple(record_of(PROVIDER, f"{OWN}/h{n}") for n in range(2))
    limited = RateLimited.code
    assert asked(net, crowd[0], server, wire.PutMany(70, batch, None)) == wire.StoredMany(70, (0, 0))
    assert asked(net, crowd[1], server, wire.PutMany(71, batch, None)) == wire.StoredMany(71, (0, limited))
    assert asked(net, other, server, wire.PutMany(72, batch, None)) == wire.StoredMany(72, (0, 0))


def test_all_peers_together_share_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "WRITES_PER_SECOND_ALL", 0.001)
    monkeypatch.setattr(answering, "WRITES_BURST_ALL", 3.0)
    net = Network()
    alice, bob, carol = grow(net, 3)
    batch = tuple(record_of(PROVIDER, f"{OWN}/h{n}") for n in range(2))
    limited = RateLimited.code
    assert asked(net, alice, bob, wire.PutMany(70, batch, None)) == wire.StoredMany(70, (0, 0))
    assert asked(net, carol, bob, wire.PutMany(71, batch, None)) == wire.StoredMany(71, (0, limited))


def test_what_makes_room_is_counted() -> None:
    net = Network()
    alice = net.add("alice", records_max=5)
    node: DhtMachine = net.nodes[alice]
    net.do(alice, RecordsRestored(records(60)))
    assert len(node.store) == 5
    assert node.store.evicted > 0
    with pytest.raises(OverQuota):
        node.answering.keep(wire.Put(0, farthest(node), None), UNIX, [])


def farthest(node: DhtMachine) -> Signed:
    own = int.from_bytes(node.node_id, "big")
    cids = [f"{OWN}/x{n}" for n in range(50)]
    return record_of(PROVIDER, max(cids, key=lambda cid: int.from_bytes(cid_key(cid), "big") ^ own))
