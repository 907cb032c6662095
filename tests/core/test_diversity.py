"""Which servers are chosen for their place when many belong to one owner."""

import random

from hypothesis import given
from hypothesis import strategies as st

from ioc_node.core.candidates import Candidates
from ioc_node.core.diversity import Labels, spread
from ioc_node.core.events import GetStarted, JoinStarted, PutReport, PutStarted
from ioc_node.core.lookup import SHORTLIST_MAX, Lookup
from ioc_node.core.routing import Contact, RoutingTable, labels_of
from ioc_wire.cid import cid_key, self_certified_prefix
from ioc_wire.identity import node_id_of
from ioc_wire.signed import public_bytes
from tests.core.staple import Network, delegate, key_of, record_of

OWN = bytes(32)


def near(number: int, host: str = "10.0.0.1") -> Contact:
    """A contact at distance `number` of key 0."""
    return Contact(number.to_bytes(32, "big"), (host, 4000))


def labels(contact: Contact) -> Labels:
    return labels_of(contact.address[0])


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 20))
def test_one_of_each_owner_then_the_nearest_of_the_rest(owners: list[int], count: int) -> None:
    servers = list(enumerate(owners))
    chosen = spread(servers, count, lambda server: (bytes((server[1],)),))
    assert len(chosen) == min(count, len(servers))
    assert len({owner for _, owner in chosen}) == min(count, len(set(owners)))
    firsts = {owner: owners.index(owner) for owner in set(owners)}
    wanted = sorted(firsts.values())[:count]
    rest = [number for number in range(len(servers)) if number not in set(firsts.values())]
    assert [number for number, _ in chosen] == (wanted + rest)[:count]


def test_labels_are_the_block_and_the_operator() -> None:
    assert labels_of("10.1.2.3") == labels_of("127.0.0.1") == labels_of("name.example") == ()
    assert labels_of("9.8.7.6") == labels_of("9.8.7.250") != labels_of("9.8.6.6")
    assert labels_of("2001:4860:1::1") == labels_of("2001:4860:1:ffff::2") != labels_of("2001:4860:2::1")
    assert labels_of("10.1.2.3", "cn.r3301.20004") == (b"cn.r3301.20004",)
    assert len(labels_of("9.8.7.6", "cn.r3301.20004")) == 2


def test_a_swarm_beside_a_key_is_one_replica() -> None:
    table = RoutingTable(b"\xff" * 32, capped=False)
    for number in range(1, 101):
        table.add(near(number, f"9.9.9.{number}"), 0.0)
    for number in range(1000, 1040):
        table.add(near(number, f"8.8.{number % 256}.1"), 0.0)
    chosen = table.replicas(0, 20)
    assert [peer.contact for peer in chosen] == [near(1, "9.9.9.1")] + [
        near(number, f"8.8.{number % 256}.1") for number in range(1000, 1019)
    ]
    assert [peer.number for peer in table.nearest(0, 20)] == list(range(1, 21))


def test_too_few_owners_are_filled_by_distance_and_moves_are_followed() -> None:
    table = RoutingTable(b"\xff" * 32, capped=False)
    for number in range(1, 41):
        table.add(near(number, f"9.9.{number % 2}.1"), 0.0)
    assert [peer.number for peer in table.replicas(0, 20)] == list(range(1, 21))
    table.add(near(40, "7.7.7.7"), 1.0)
    assert [peer.number for peer in table.replicas(0, 20)] == [1, 2, 40, *range(3, 20)]
    table.remove(near(40).node_id)
    assert [peer.number for peer in table.replicas(0, 20)] == list(range(1, 21))


def test_a_full_bucket_wants_nobody_and_remembers_some() -> None:
    table = RoutingTable(OWN, capped=False, full_max=10)
    chance = random.Random(1)
    far = [Contact(b"\x80" + chance.randbytes(31), ("10.0.0.1", 1)) for _ in range(60)]
    for contact in far[:30]:
        table.add(contact, 0.0)
    assert not table.full
    assert not any(table.wants(contact) for contact in far)
    gone = table.peers()[0]
    assert table.remove(gone.node_id) in far
    assert table.wants(far[-1])


def test_nobody_is_sent_to_knock_at_one_block_over_and_over() -> None:
    candidates = Candidates(capped=True)
    victim = [near(number, f"9.9.9.{number}") for number in range(1, 100)]
    for contact in victim:
        candidates.add(contact, 0.0)
    assert len(candidates) == 3
    taken = candidates.take(10, 0.0)
    assert [candidate.contact for candidate in taken] == victim[:3]
    assert not len(candidates)
    for contact in victim[3:]:
        candidates.add(contact, 0.0)
    candidates.discard(victim[3].node_id)
    assert len(candidates) == 2


def test_a_lookup_goes_past_a_swarm() -> None:
    swarm = [near(number, f"9.9.9.{number}") for number in range(1, 101)]
    others = [near(number, f"8.8.{number % 256}.1") for number in range(1000, 1030)]
    lookup = Lookup(0, swarm[:20] + others[:1], own_id=b"\xff" * 32, labels_of=labels)
    asked: list[Contact] = []
    while batch := lookup.next():
        asked += batch
        for contact in batch:
            lookup.answered(contact.node_id, swarm + others)
    assert lookup.ending == "completed"
    assert lookup.nearest() == [swarm[0], *others[:19]]
    assert set(asked) == {swarm[0], *others[:19]} | (set(swarm) & set(asked))
    assert len(set(swarm) & set(asked)) <= 20


def test_a_swarm_does_not_push_others_off_the_shortlist() -> None:
    others = [near(10_000 + number, f"8.8.{number}.1") for number in range(20)]
    lookup = Lookup(0, others, own_id=b"\xff" * 32, labels_of=labels, width=1)
    (first,) = lookup.next()
    lookup.answered(first.node_id, [near(number, f"9.9.9.{number % 250}") for number in range(1, 500)])
    lookup.width = 8
    asked = [first]
    while batch := lookup.next():
        asked += batch
        for contact in batch:
            lookup.answered(contact.node_id)
    assert set(others[:19]) <= set(asked)
    assert len(asked) < SHORTLIST_MAX


def test_a_record_is_stored_beyond_the_swarm_beside_its_key() -> None:
    """30 servers of one /24 lie nearer to the key than everybody else; a record still gets 19 other holders."""
    network = Network(delay=0.001)
    key = key_of("provider")
    cid = f"ioc:{self_certified_prefix(public_bytes(key))}/gen/3301/az1/h1"
    names = sorted((f"server {number}" for number in range(64)), key=lambda name: _distance(name, cid))
    addresses = [
        network.add(name, address=(f"9.9.9.{place}" if place < 30 else f"8.8.{place}.1", 4000))
        for place, name in enumerate(names, 1)
    ]
    for address in addresses:
        assert network.result(address, JoinStarted(1, (addresses[-1],)))
    network.run(60)
    report = network.result(addresses[-1], PutStarted(2, record_of(key, cid), ()))
    assert isinstance(report, PutReport)
    groups = {contact.address[0].rpartition(".")[0] for contact in report.stored}
    assert len(groups) == len(report.stored) == 20
    found = network.result(addresses[40], GetStarted(3, cid))
    assert getattr(found, "record", None) == record_of(key, cid)


def test_operators_are_told_apart_in_a_certified_network() -> None:
    """30 of 60 servers are one operator's: it holds one of the 20 replicas."""
    network = Network(delay=0.001)
    root = key_of("root")
    roots = (public_bytes(root),)
    addresses = []
    for number in range(60):
        prefix = "cn.r3301.20000" if number < 30 else f"cn.r3301.{20000 + number}"
        link = delegate(root, key_of(f"server {number}"), prefix, "provider")
        addresses.append(network.add(f"server {number}", admission="certified", roots=roots, chain=(link,)))
    for address in addresses:
        assert network.result(address, JoinStarted(1, (addresses[-1],)))
    network.run(60)
    cid = "ioc:cn.r3301.20059/gen/3301/az1/h1"
    chain = network.nodes[addresses[59]].sessions._chain
    assert chain is not None
    report = network.result(addresses[59], PutStarted(2, record_of(key_of("server 59"), cid), chain))
    assert isinstance(report, PutReport)
    holders = {contact.address for contact in report.stored}
    assert len(holders) == 20
    assert sum(address in holders for address in addresses[:30]) <= 1


def _distance(name: str, cid: str) -> int:
    point = int.from_bytes(cid_key(cid), "big")
    return int.from_bytes(node_id_of(public_bytes(key_of(name))), "big") ^ point
