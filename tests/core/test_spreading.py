"""Core nodes that are too many for a full mesh, stapled in memory: one copy each, and no neighbour that can stop it."""

from collections.abc import Mapping
from types import MappingProxyType

from ioc_node.core import gossip_events as ev
from ioc_node.core.gossip import COMPARE_SECONDS
from ioc_node.core.interest import Interest
from ioc_node.core.linking import Room
from ioc_wire.gossip import HeadsAnnounced, StatusAnnounced
from ioc_wire.plumtree import Graft, IHave, Mark, Neighbour, Prune
from tests.core.gossip_staple import Mesh, Provider
from tests.core.test_gossip import free_of

ROOM = Room(mesh_max=6, mesh_again=4)
COUNT = 14
NOBODY: Mapping[int, Interest] = MappingProxyType({})


def grown(count: int = COUNT, room: Room = ROOM, interests: Mapping[int, Interest] = NOBODY) -> Mesh:
    """A network whose nodes have found their neighbours."""
    mesh = Mesh(count, room=room, interests=interests)
    for number in range(1, count):
        mesh.link(0, number)
        mesh.link(number, (number * 5 + 2) % count)
    mesh.run(30)
    return mesh


class Counted:
    """Copies of heads and status that came to each node; some pairs may lose everything."""

    def __init__(self, mesh: Mesh) -> None:
        self.copies = dict.fromkeys(range(len(mesh.machines)), 0)
        self.silent: set[int] = set()
        mesh.passes = self._passes

    def _passes(self, source: int, target: int, message: object) -> bool:
        if source in self.silent:
            return False
        self.copies[target] += isinstance(message, HeadsAnnounced | StatusAnnounced)
        return True

    def take(self) -> dict[int, int]:
        taken, self.copies = self.copies, dict.fromkeys(self.copies, 0)
        return taken


def test_a_settled_tree_brings_everybody_one_copy() -> None:
    mesh = grown()
    counted = Counted(mesh)
    alice = Provider("alice", 20001)
    for number in range(4):  # what comes twice is pruned
        alice.put(f"h{number}")
        mesh.publish(3, alice)
        mesh.run(3)
    counted.take()
    alice.put("last")
    mesh.publish(3, alice)
    mesh.run(1)
    assert len(mesh.digests()) == 1
    assert counted.take() == {number: int(number != 3) for number in range(COUNT)}
    mesh.feed(3, ev.StatusReceived(None, (alice.status(*[5000] * 5),)))
    mesh.run(1)
    assert [free_of(mesh, number, alice) for number in range(COUNT)] == [5000] * COUNT
    assert sum(counted.take().values()) == COUNT - 1


def test_neighbours_that_swallow_everything_are_gone_around() -> None:
    mesh = grown()
    counted = Counted(mesh)
    alice = Provider("alice", 20001)
    for number in range(4):
        alice.put(f"h{number}")
        mesh.publish(3, alice)
        mesh.run(3)
    told_by_three = set(mesh.machines[3]._spread.tree.eager)
    counted.silent = {number for number in range(COUNT) if mesh.keys[number] in told_by_three}
    counted.silent = set(sorted(counted.silent)[:2])
    assert counted.silent
    alice.put("late")
    mesh.publish(3, alice)
    mesh.run(2)
    speaking = [machine for number, machine in enumerate(mesh.machines) if number not in counted.silent]
    assert len({machine.catalogue.digest() for machine in speaking}) == 1
    mesh.run(60)  # and they are neighbours no longer
    silent = {mesh.keys[number] for number in counted.silent}
    assert not any(silent & set(machine._spread.neighbours) for machine in speaking)


def test_who_names_what_it_has_not_got_is_given_up_and_costs_nothing() -> None:
    mesh = grown()
    machine = mesh.machines[0]
    liar = next(iter(machine._spread.neighbours))
    for number in range(12):
        made_up = Mark(bytes([number]) * 32, 0, 2**40)
        mesh.feed(0, ev.TreeReceived(liar, IHave((made_up,))))
        mesh.run(1)
    assert liar not in machine._spread.neighbours
    assert machine._spread.tree.awaited == 0
    answer = machine.handle(ev.TreeReceived(liar, Neighbour("urge")), now=mesh.now)
    assert [e for e in answer if isinstance(e, ev.Notify) and e.peer == liar] == [
        ev.Notify(liar, Neighbour("no"))
    ]


def test_who_grafts_everything_is_told_so_much_and_no_more() -> None:
    mesh = grown()
    alice = Provider("alice", 20001)
    alice.put("h1")
    mesh.publish(0, alice)
    mesh.run(1)
    greedy = next(iter(mesh.machines[0]._spread.neighbours))
    graft = Graft((Mark(alice.public, 0, 1),) * 256)
    told = 0
    for _ in range(20):
        effects = mesh.machines[0].handle(ev.TreeReceived(greedy, graft), now=mesh.now)
        told += sum(len(e.message.news) for e in effects
                    if isinstance(e, ev.Notify) and isinstance(e.message, HeadsAnnounced))  # fmt: skip
    assert told == 2048
    stranger = next(key for key in mesh.keys[1:] if key not in mesh.machines[0]._spread.neighbours)
    assert mesh.machines[0].handle(ev.TreeReceived(stranger, graft), now=mesh.now) == []


def test_who_asks_without_end_is_not_answered_without_end() -> None:
    mesh = grown()
    machine = mesh.machines[0]
    stranger = next(key for key in mesh.keys[1:] if key not in machine.neighbours)
    answers = [machine.handle(ev.TreeReceived(stranger, Neighbour("ask")), now=mesh.now) for _ in range(50)]
    assert 0 < sum(map(bool, answers)) <= 17


def test_who_prunes_everybody_is_told_names() -> None:
    mesh = grown()
    quiet = 7
    for peer in list(mesh.machines[quiet]._spread.neighbours):
        number = mesh.keys.index(peer)
        mesh.feed(number, ev.TreeReceived(mesh.keys[quiet], Prune()))
    alice = Provider("alice", 20001)
    alice.put("h1")
    mesh.publish(3, alice)
    mesh.run(2)
    assert len(mesh.digests()) == 1


def test_a_network_that_shrinks_is_a_full_mesh_again() -> None:
    mesh = grown(9, Room(mesh_max=6, mesh_again=5))
    assert all(len(machine._spread.neighbours) for machine in mesh.machines)
    for number in range(5, 9):
        for other in range(9):
            mesh.unlink(number, other)
        mesh.cut = lambda a, b: a >= 5 or b >= 5
        for machine in mesh.machines:
            machine.handle(ev.ContactGone(mesh.keys[number]), now=mesh.now)
    mesh.run(20)
    five = mesh.machines[:5]
    assert not any(len(machine._spread.neighbours) for machine in five)
    alice = Provider("alice", 20001)
    alice.put("h1")
    mesh.notices = 0
    mesh.publish(3, alice)
    mesh.run(0.2)
    assert {machine.catalogue.records for machine in five} == {1}


def test_nodes_that_replicate_a_part_are_leaves_and_stop_nobody() -> None:
    part = dict.fromkeys(range(4, 8), Interest.told(("cn.r6501",)))
    mesh = grown(interests=part)
    west, east = Provider("west", 20002, "r6501"), Provider("east", 20001)
    counted = Counted(mesh)
    for number in range(6):
        counted.take()
        for provider in (west, east):
            provider.put(f"h{number}")
            mesh.publish(3, provider)
        mesh.run(3)
    whole = [machine for number, machine in enumerate(mesh.machines) if number not in part]
    assert len({machine.catalogue.digest() for machine in whole}) == 1
    for number in part:
        theirs = mesh.machines[number].catalogue
        assert [theirs.replica(west.public) is None, theirs.replica(east.public) is None] == [False, True]
        assert len(mesh.machines[number]._spread.tree.eager) == 1
    assert counted.take() == {n: 0 if n == 3 else 1 if n in part else 2 for n in range(COUNT)}
    west.put("guest")
    mesh.publish(5, west)  # it publishes to such a node
    mesh.run(2)
    assert {machine.catalogue.replica(west.public).slots for machine in mesh.machines} == {7}  # type: ignore[union-attr]


def test_lost_news_is_found_by_comparing_all_the_same() -> None:
    mesh = grown()
    mesh.passes = lambda source, target, message: not isinstance(message, HeadsAnnounced | IHave)
    alice = Provider("alice", 20001)
    alice.put("h1")
    mesh.publish(3, alice)
    mesh.run(1)
    assert len(mesh.digests()) == 2
    mesh.passes = lambda source, target, message: True
    mesh.run(3 * COMPARE_SECONDS)
    assert len(mesh.digests()) == 1
