"""Placing many keys with few lookups: the same replica holders as a lookup for each would find."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ioc_node.core import atlas as atlas_module
from ioc_node.core.atlas import Atlas, Placement, Planner, plan
from ioc_node.core.diversity import spread
from ioc_node.core.routing import Contact, labels_of


def servers(rng: random.Random, count: int) -> list[Contact]:
    return [Contact(rng.randbytes(32), (f"10.0.{n >> 8}.{n & 255}", 4000)) for n in range(count)]


def number(contact: Contact) -> int:
    return int.from_bytes(contact.node_id, "big")


class Net:
    """All servers of a network; answers lookups truly, and counts them."""

    def __init__(self, contacts: list[Contact], count: int) -> None:
        self.contacts = contacts
        self.count = count
        self.lookups = 0

    def nearest(self, point: int) -> list[Contact]:
        return sorted(self.contacts, key=lambda contact: number(contact) ^ point)[: self.count]

    def ask(self, point: int) -> list[Contact]:
        self.lookups += 1
        return self.nearest(point)


def placed(keys: list[int], net: Net, atlas: Atlas) -> tuple[dict[int, set[Contact]], int]:
    sets: dict[int, set[Contact]] = {}

    def note(placement: Placement) -> None:
        for key in keys[placement.first : placement.end]:
            assert key not in sets
            sets[key] = set(placement.servers)

    return sets, plan(keys, net.ask, atlas=atlas, on_placement=note).lookups


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32), size=st.integers(0, 2000), keys=st.integers(1, 60), count=st.integers(2, 20)
)
def test_every_key_gets_its_nearest_servers_with_few_lookups(
    seed: int, size: int, keys: int, count: int
) -> None:
    rng = random.Random(seed)
    net = Net(servers(rng, size), count)
    points = sorted(rng.getrandbits(256) for _ in range(keys))
    sets, lookups = placed(points, net, Atlas(count=count))
    assert sets == {point: set(net.nearest(point)) for point in points}
    assert lookups == net.lookups <= min(8 * keys, 20 + 4 * -(-size // count))


def test_lookups_grow_with_the_servers_and_not_with_the_keys() -> None:
    rng = random.Random(5)
    net = Net(servers(rng, 500), 20)
    few = placed(sorted(rng.getrandbits(256) for _ in range(2000)), net, Atlas())[1]
    many = placed(sorted(rng.getrandbits(256) for _ in range(20000)), net, Atlas())[1]
    assert many <= 80
    assert many - few <= 10


def test_with_a_full_view_nothing_is_looked_up() -> None:
    rng = random.Random(6)
    net = Net(servers(rng, 300), 20)
    atlas = Atlas()
    atlas.learn(0, net.contacts, whole=True)
    points = sorted(rng.getrandbits(256) for _ in range(500))
    sets, lookups = placed(points, net, atlas)
    assert lookups == 0
    assert sets == {point: set(net.nearest(point)) for point in points}


def test_replicas_are_spread_over_address_blocks() -> None:
    """A swarm of one block is one holder, as for a single record."""
    rng = random.Random(7)
    honest = [Contact(rng.randbytes(32), (f"51.{n}.7.1", 4000)) for n in range(60)]
    swarm = [Contact(rng.randbytes(32), ("52.1.1.1", 4000 + n)) for n in range(300)]
    atlas = Atlas(lambda contact: labels_of(contact.address[0]))
    atlas.learn(0, honest + swarm, whole=True)
    points = sorted(rng.getrandbits(256) for _ in range(50))
    sets, _ = placed(points, Net([], 20), atlas)
    for point, chosen in sets.items():
        near = sorted(honest + swarm, key=lambda contact: number(contact) ^ point)
        assert chosen == set(spread(near, 20, lambda contact: labels_of(contact.address[0])))
        assert len(chosen & set(swarm)) == 1


@pytest.mark.parametrize(("groups", "each", "overlap"), [(400, 1, 20), (300, 2, 16), (15, 20, 20)])
def test_without_a_full_view_labels_are_honoured_too(groups: int, each: int, overlap: int) -> None:
    """With fewer owners than replicas, every key has its own lookup; otherwise few do."""
    rng = random.Random(11)
    contacts = [
        Contact(rng.randbytes(32), (f"51.{group >> 8}.{group & 255}.{host}", 4000))
        for group in range(groups)
        for host in range(each)
    ]

    def labels(contact: Contact) -> tuple[bytes, ...]:
        return labels_of(contact.address[0])

    class Labelled(Net):
        def nearest(self, point: int) -> list[Contact]:
            return spread(sorted(contacts, key=lambda contact: number(contact) ^ point), 20, labels)

    net = Labelled(contacts, 20)
    points = sorted(rng.getrandbits(256) for _ in range(200))
    sets, lookups = placed(points, net, Atlas(labels))
    assert all(len(sets[point] & set(net.nearest(point))) >= overlap for point in points)
    assert lookups <= (80 if groups > 20 else 200)


def test_a_failed_lookup_takes_whom_is_known_and_goes_on() -> None:
    rng = random.Random(8)
    known = servers(rng, 5)
    atlas = Atlas()
    for contact in known:
        atlas.add(contact)
    keys = sorted(rng.getrandbits(256) for _ in range(3))
    planner = Planner(keys, atlas)
    for _ in keys:
        assert isinstance(planner.next(), int)
        planner.gave_up()
        placement = planner.next()
        assert isinstance(placement, Placement)
        assert set(placement.servers) == set(known)
    assert planner.next() is None


def test_without_a_server_keys_are_told_to_be_unplaced() -> None:
    assert plan([1, 2, 3], lambda point: []).unplaced == 3


def test_the_next_nearest_takes_the_place_of_a_dead_server() -> None:
    rng = random.Random(9)
    net = Net(servers(rng, 100), 20)
    atlas = Atlas()
    atlas.learn(0, net.contacts, whole=True)
    dead = atlas.choose(1).servers[3]
    atlas.discard(dead.node_id)
    net.contacts.remove(dead)
    assert list(atlas.choose(1).servers) == net.nearest(1)


def test_what_it_remembers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atlas_module, "SERVERS_MAX", 200)
    monkeypatch.setattr(atlas_module, "RANGES_MAX", 16)
    rng = random.Random(10)
    net = Net(servers(rng, 1500), 20)
    atlas = Atlas()
    points = sorted(rng.getrandbits(256) for _ in range(300))
    sets, _ = placed(points, net, atlas)
    assert sets == {point: set(net.nearest(point)) for point in points}
    assert len(atlas) <= 200
