"""Whole networks in memory: joining, storing and finding under loss, death, staleness and growth."""

import msgspec
import pytest

from ioc_node.core.challenge import Address
from ioc_node.core.events import (
    AnnounceStarted,
    ClockRead,
    FindReport,
    FindStarted,
    GetReport,
    GetStarted,
    HoldersReport,
    HoldersStarted,
    JoinReport,
    JoinStarted,
    OperationCancelled,
    PutReport,
    PutStarted,
    RecordsRestored,
    RecordStored,
)
from ioc_node.errors import PeerUnreachable
from ioc_wire import dht as wire
from ioc_wire.cid import cid_key, self_certified_prefix
from ioc_wire.errors import NotFound
from ioc_wire.signed import Signed, public_bytes, sign
from tests.core.staple import UNIX, Network, key_of, record_of
from tests.core.test_dht_wire import MESSAGES

PROVIDER = key_of("provider")
OWN = f"ioc:{self_certified_prefix(public_bytes(PROVIDER))}/ai/3301/az1"
CID = f"{OWN}/h1"


def grow(net: Network, count: int, **options: int) -> list[Address]:
    """A joined network of servers."""
    nodes = [net.add(f"node{number}", **options) for number in range(count)]
    for address in nodes[1:]:
        for _ in range(5):  # as bootstrap does: try again until somebody is reached
            report = net.result(address, JoinStarted(1, (nodes[0],)))
            assert isinstance(report, JoinReport)
            if report.reached:
                break
        assert report.reached == 1
    net.run(40)
    return nodes


def put(net: Network, address: Address, record: Signed) -> PutReport:
    report = net.result(address, PutStarted(2, record, ()))
    assert isinstance(report, PutReport)
    return report


def get(net: Network, address: Address, cid: str = CID, **options: int) -> GetReport:
    report = net.result(address, GetStarted(3, cid, **options))
    assert isinstance(report, GetReport), report
    return report


def nearest(net: Network, key: bytes, count: int = 20) -> set[bytes]:
    point = int.from_bytes(key, "big")
    ids = sorted(
        (node.node_id for node in net.nodes.values()), key=lambda i: int.from_bytes(i, "big") ^ point
    )
    return set(ids[:count])


def test_a_small_network_learns_itself_whole_and_finds_in_one_hop() -> None:
    net = Network()
    nodes = grow(net, 24)
    assert all(len(net.nodes[a].table) == 23 and net.nodes[a].upkeep.has_full_view() for a in nodes)
    stored = put(net, nodes[3], record_of(PROVIDER, CID)).stored
    assert {contact.node_id for contact in stored} == nearest(net, cid_key(CID))
    sent = len(net.wire)
    reader = next(a for a in nodes if net.nodes[a].node_id not in nearest(net, cid_key(CID)))
    report = get(net, reader)
    assert (report.hops, report.queried, report.resource.version) == (1, 1, 1)
    assert len(net.wire) - sent == 2, "one datagram there, one back"
    assert report.trace.ending == "stopped"
    assert report.trace.hops[0].outcome == "record"


def test_sixty_nodes_with_a_fifth_of_all_datagrams_lost() -> None:
    net = Network(3, delay=0.02, jitter=0.05, loss=0.2)
    nodes = grow(net, 60)
    net.run(200)
    rng = net.rng
    cids = [f"{OWN}/h{number}" for number in range(12)]
    for cid in cids:
        report = put(net, rng.choice(nodes), record_of(PROVIDER, cid))
        assert len(report.stored) >= 12  # the unlucky are cut off by the grace time
    for cid in cids:
        for _ in range(3):
            assert get(net, rng.choice(nodes), cid).resource.cid == cid
    missing = net.result(nodes[5], GetStarted(9, f"{OWN}/nothing"), 60)
    assert isinstance(missing, NotFound)
    assert "servers were asked" in str(missing)
    found = net.result(nodes[5], FindStarted(10, cid_key(CID)), 60)
    assert isinstance(found, FindReport)
    assert any(hop.outcome == "20 servers told" for hop in found.trace.hops)


def test_who_joined_before_the_others_finds_what_those_hold() -> None:
    """It thinks that it knows the whole network, which was one server when it asked."""
    net = Network()
    first, reader, third = net.add("first"), net.add("reader"), net.add("third")
    net.result(reader, JoinStarted(1, (first,)))
    net.run(5)
    assert net.nodes[reader].upkeep.has_full_view()
    assert len(net.nodes[reader].table) == 1
    for event in (RecordsRestored(((record_of(PROVIDER, CID), ()),)), JoinStarted(1, (first,))):
        net.do(third, event)
    while len(net.nodes[first].table) < 2:
        net.run(0.01)
    assert len(net.nodes[reader].table) == 1
    assert get(net, reader).holder.node_id == net.nodes[third].node_id


def test_buckets_take_over_when_the_network_outgrows_the_table() -> None:
    net = Network(5)
    nodes = grow(net, 60, full_max=24)
    assert not any(net.nodes[a].table.full for a in nodes)
    target = cid_key(CID)
    report = net.result(nodes[7], FindStarted(1, target))
    assert isinstance(report, FindReport)
    found = {contact.node_id for contact in report.nodes}
    want = nearest(net, target) - {net.nodes[nodes[7]].node_id}
    assert len(found & want) >= 0.9 * len(want)
    assert report.trace.ending == "completed"
    put(net, nodes[1], record_of(PROVIDER, CID))
    assert all(get(net, a).resource.version == 1 for a in nodes[::7])


def test_a_client_asks_and_is_never_in_a_table() -> None:
    net = Network()
    nodes = grow(net, 6)
    client = net.add("client", server=False)
    net.result(client, JoinStarted(1, (nodes[2],)))
    net.run(30)
    client_id = net.nodes[client].node_id
    assert not any(client_id in net.nodes[a].table for a in nodes)
    assert len(net.nodes[client].table) == 6
    assert len(put(net, client, record_of(PROVIDER, CID)).stored) == 6
    assert get(net, client).hops == 1
    found = net.result(nodes[0], FindStarted(4, client_id))
    assert isinstance(found, FindReport)
    assert client_id not in {contact.node_id for contact in found.nodes}


def test_the_dead_are_demoted_and_what_they_held_is_still_found() -> None:
    net = Network()
    nodes = grow(net, 40)
    put(net, nodes[0], record_of(PROVIDER, CID))
    holders = [a for a in nodes if net.nodes[a].node_id in nearest(net, cid_key(CID))]
    reader = next(a for a in nodes if a not in holders)
    for address in holders[:18]:
        del net.nodes[address]
    report = get(net, reader)
    assert report.seconds < 4
    net.run(20)
    report = get(net, reader)
    assert report.seconds < 0.1, "the dead are no longer asked first"
    assert isinstance(net.result(reader, PutStarted(5, record_of(PROVIDER, CID, 2), ())), PutReport)


def test_a_put_does_not_wait_for_the_dead() -> None:
    net = Network()
    nodes = grow(net, 30)
    for address in nodes[20:25]:
        del net.nodes[address]
    report = put(net, nodes[0], record_of(PROVIDER, CID))
    assert len(report.stored) >= 14
    assert report.seconds < 1.5
    assert len(report.unanswered) + len(report.refused) + len(report.stored) >= 20


def test_stale_holders_are_corrected_after_a_get() -> None:
    net = Network()
    nodes = grow(net, 10)
    put(net, nodes[0], record_of(PROVIDER, CID, 1))
    newer = record_of(PROVIDER, CID, 2)
    for address in nodes[5:]:
        net.do(address, RecordsRestored(((newer, ()),)))
    client = net.add("client", server=False)
    net.result(client, JoinStarted(1, (nodes[0],)))
    net.run(20)
    assert get(net, client, min_version=2).resource.version == 2, "min_version goes on searching"
    assert get(net, client, answers=10).resource.version == 2, "the newest of several answers counts"
    net.run(5)
    held = [net.nodes[a].store.get(cid_key(CID), UNIX + net.now) for a in nodes]
    assert all(record is not None and record.order[0] == 2 for record in held)
    unknown = net.result(client, GetStarted(8, CID, min_version=3))
    assert isinstance(unknown, NotFound)
    assert "version 3 or later" in str(unknown)


def test_records_expire_and_a_re_signed_one_lives_on() -> None:
    net = Network()
    nodes = grow(net, 5)
    put(net, nodes[0], record_of(PROVIDER, CID, seconds=3600))
    put(net, nodes[0], record_of(PROVIDER, f"{OWN}/h2", seconds=3600))
    net.run(1800)
    put(net, nodes[0], record_of(PROVIDER, f"{OWN}/h2", issued=UNIX + int(net.now), seconds=3600))
    net.run(1800 + 400)
    assert isinstance(net.result(nodes[1], GetStarted(4, CID)), NotFound)
    assert get(net, nodes[1], f"{OWN}/h2").resource.version == 1
    assert all(len(net.nodes[a].store) == 1 for a in nodes)


def test_a_clock_that_jumped_counts() -> None:
    net = Network()
    nodes = grow(net, 3)
    put(net, nodes[0], record_of(PROVIDER, CID, seconds=3600))
    for address in nodes:
        net.do(address, ClockRead(UNIX + net.now + 7200))
    assert isinstance(net.result(nodes[1], GetStarted(4, CID)), NotFound)
    newer = record_of(PROVIDER, CID, issued=UNIX + int(net.now) + 7200)
    assert len(put(net, nodes[0], newer).stored) == 3


def test_blobs_have_several_holders() -> None:
    net = Network()
    nodes = grow(net, 30)
    blob = bytes(range(32))
    for number in range(7):
        holder = wire.HolderRecord(blob, f"10.0.0.{number}", 4000, UNIX, UNIX + 3600)
        report = net.result(nodes[number], AnnounceStarted(2, sign(key_of(f"node{number}"), holder)))
        assert isinstance(report, PutReport)
        assert len(report.stored) == 20
    found = net.result(nodes[25], HoldersStarted(3, blob))
    assert isinstance(found, HoldersReport)
    assert {holder.host for _, holder in found.holders} == {f"10.0.0.{number}" for number in range(7)}
    net.run(4500)
    assert isinstance(net.result(nodes[25], HoldersStarted(4, blob)), NotFound)


def test_nobody_reached_and_nobody_known() -> None:
    net = Network()
    alone = net.add("alone", server=False)
    report = net.result(alone, JoinStarted(1, (("10.9.9.9", 1), ("10.9.9.9", 2))))
    assert isinstance(report, JoinReport)
    assert (report.reached, len(report.failed), report.known) == (0, 2, 0)
    assert net.now < 4
    assert isinstance(net.result(alone, GetStarted(2, CID)), NotFound)
    assert isinstance(net.result(alone, PutStarted(3, record_of(PROVIDER, CID), ())), PeerUnreachable)


def test_a_returning_partition_is_healed_by_trying_again() -> None:
    net = Network()
    nodes = grow(net, 8)
    left = set(nodes[:4])
    net.on_wire = lambda data, s, t: [data] if (s in left) == (t in left) else []
    put(net, nodes[0], record_of(PROVIDER, CID))
    put(net, nodes[7], record_of(PROVIDER, CID))
    net.run(1300)
    assert all(len(net.nodes[a].table) == 3 for a in nodes)
    net.on_wire = lambda data, s, t: [data]
    net.run(2400)
    assert all(len(net.nodes[a].table) == 7 for a in nodes)


def test_a_cancelled_operation_ends_silently() -> None:
    net = Network()
    nodes = grow(net, 3)
    net.do(nodes[0], GetStarted(77, CID))
    net.do(nodes[0], OperationCancelled(77))
    net.run(10)
    assert (nodes[0], 77) not in net.results
    assert all(number < 0 for number in net.nodes[nodes[0]].operations)


def test_a_restarted_server_is_given_its_records_back() -> None:
    net = Network()
    nodes = grow(net, 4)
    put(net, nodes[0], record_of(PROVIDER, CID))
    kept = [(e.record, e.chain) for a, e in net.effects if a == nodes[3] and isinstance(e, RecordStored)]
    net.add("node3", address=nodes[3])
    bad = record_of(key_of("mallory"), CID)
    net.do(nodes[3], RecordsRestored((*kept, (bad, ()))))
    assert len(net.nodes[nodes[3]].store) == 1
    assert net.nodes[nodes[3]].rejected == 1


@pytest.mark.parametrize("seed", range(4))
def test_peers_that_answer_anything_with_anything_break_nothing(seed: int) -> None:
    """Half of the servers have a key and a session, and answer each request with a random valid message."""
    net = Network(seed)
    nodes = grow(net, 10)

    def babble(_session: object, request: wire.Request, *_rest: object) -> wire.AnyMessage:
        return msgspec.structs.replace(net.rng.choice(MESSAGES), request=request.request)

    for address in nodes[5:]:
        net.nodes[address].answering.answer = babble  # type: ignore[method-assign,assignment]
    blob = bytes(32)
    announcement = sign(PROVIDER, wire.HolderRecord(blob, "10.0.0.1", 4000, UNIX, UNIX + 3600))
    client = net.add("client", server=False)
    for reader in (client, nodes[0]):
        net.result(reader, JoinStarted(1, tuple(nodes)))
        assert len(put(net, reader, record_of(PROVIDER, CID)).stored) >= 5
        assert get(net, reader).resource.version == 1
        assert isinstance(net.result(reader, AnnounceStarted(2, announcement)), PutReport)
        assert isinstance(net.result(reader, HoldersStarted(3, blob)), HoldersReport)
        assert isinstance(net.result(reader, FindStarted(4, blob)), FindReport)
        assert isinstance(net.result(reader, GetStarted(5, f"{OWN}/nothing")), NotFound)
    net.run(120)
    assert isinstance(net.result(client, GetStarted(6, CID, answers=5)), GetReport)


def test_the_same_seed_gives_the_same_datagrams() -> None:
    def run() -> list[tuple[bytes, Address, Address]]:
        net = Network(9, jitter=0.03, loss=0.1)
        nodes = grow(net, 12)
        put(net, nodes[1], record_of(PROVIDER, CID))
        return net.wire

    first, second = run(), run()
    assert first == second


@pytest.mark.parametrize("lie", ["forged", "another identifier", "stale"])
def test_liars_do_not_get_through(lie: str) -> None:
    net = Network()
    nodes = grow(net, 12)
    put(net, nodes[0], record_of(PROVIDER, CID, 2))
    lies = {
        "forged": record_of(key_of("mallory"), CID, 9),
        "another identifier": record_of(PROVIDER, f"{OWN}/h2", 9),
        "stale": record_of(PROVIDER, CID, 1),
    }
    liars = nearest(net, cid_key(CID), 9)
    client = net.add("client", server=False)
    net.result(client, JoinStarted(1, (nodes[0],)))
    net.run(20)
    for address in (a for a in nodes if net.nodes[a].node_id in liars):
        store = net.nodes[address].store
        held = store.get(cid_key(CID), UNIX + net.now)
        assert held is not None
        held.signed, held.order = lies[lie], (9, 9)
    report = get(net, client, min_version=2)
    assert (report.resource.version, report.resource.cid) == (2, CID)
    assert net.nodes[client].rejected >= 1
    assert any(hop.outcome.startswith("rejected") for hop in report.trace.hops)
