"""Gossip machines stapled in memory: mesh, push, repair, and what a liar can and cannot do."""

import msgspec

from ioc_node.core import gossip_events as ev
from ioc_node.core.gossip import COMPARE_SECONDS
from ioc_node.core.mesh import FANOUT
from ioc_node.core.own_catalogue import OwnCatalogue
from ioc_node.core.packing import one_by_one
from ioc_wire.errors import BadSignature, Forked, NotFound, WrongRoot
from ioc_wire.gossip import HeadNews, HeadsAnnounced, StatusAnnounced
from ioc_wire.market import Contact
from ioc_wire.records import StatusRow
from tests.core.gossip_staple import Mesh, Provider
from tests.core.staple import UNIX, record_of


def star(count: int, **options: bool) -> Mesh:
    """Everybody knows the first one's address only."""
    mesh = Mesh(count, **options)
    for number in range(1, count):
        mesh.link(0, number)
    return mesh


def refusals(mesh: Mesh) -> list[ev.Refuse]:
    return [effect for _, effect in mesh.effects if isinstance(effect, ev.Refuse)]


def free_of(mesh: Mesh, number: int, provider: Provider) -> int:
    replica = mesh.machines[number].catalogue.replica(provider.public)
    assert replica is not None
    status = replica.status_of(0)
    return status.batch.rows[0].free_cores_milli if status is not None else -1


def test_one_bootstrap_address_becomes_a_full_mesh() -> None:
    mesh = star(8)
    mesh.run(5)
    assert len(mesh.linked) == 8 * 7 // 2
    assert all(len(machine.core_contacts()) == 7 for machine in mesh.machines)


def test_a_push_reaches_everybody_and_crosses_each_edge_from_its_origin_once() -> None:
    mesh = star(8)
    mesh.run(5)
    mesh.notices = 0
    alice = Provider("alice", 20001)
    alice.put("h1", "h2")
    mesh.publish(3, alice)
    mesh.run(0.2)
    assert len(mesh.digests()) == 1
    assert all(machine.catalogue.records == 2 for machine in mesh.machines)
    assert mesh.notices == 7
    older, newer = alice.status(1, 1), alice.status(5000, 1)
    mesh.feed(3, ev.StatusReceived(None, (newer,)))
    mesh.run(0.2)
    assert [free_of(mesh, number, alice) for number in range(8)] == [5000] * 8
    assert mesh.notices == 14
    mesh.feed(0, ev.StatusReceived(mesh.keys[1], (older,)))  # neither taken nor told
    assert (free_of(mesh, 0, alice), mesh.notices) == (5000, 14)


def test_where_links_are_missing_the_next_node_passes_it_on() -> None:
    mesh = Mesh(5, dial=False)
    for number in range(4):
        mesh.link(number, number + 1)
    mesh.run(3)
    alice = Provider("alice", 20001)
    alice.put("h1")
    mesh.publish(0, alice)
    mesh.feed(0, ev.StatusReceived(None, (alice.status(7),)))
    mesh.run(1)
    assert len(mesh.digests()) == 1
    assert free_of(mesh, 4, alice) == 7


def test_lost_pushes_are_healed_by_comparing() -> None:
    mesh = star(8)
    mesh.run(5)
    mesh.passes = lambda source, target, message: not isinstance(message, HeadsAnnounced)
    alice, bob = Provider("alice", 20001), Provider("bob", 20002)
    for provider, home in ((alice, 1), (bob, 6)):
        provider.put("h1")
        mesh.publish(home, provider)
    mesh.run(1)
    assert len(mesh.digests()) == 3
    mesh.passes = lambda source, target, message: True
    mesh.run(4 * COMPARE_SECONDS)
    assert len(mesh.digests()) == 1
    assert mesh.machines[0].catalogue.records == 2


def test_a_partition_heals_by_itself_and_both_sides_learn_all() -> None:
    mesh = star(8)
    mesh.run(5)
    alice, bob = Provider("alice", 20001), Provider("bob", 20002)
    alice.put("h1")
    mesh.publish(0, alice)
    mesh.run(1)
    mesh.partition({0, 1, 2}, {3, 4, 5, 6, 7})
    alice.put("h2")
    bob.put("h1")
    mesh.publish(1, alice)
    mesh.publish(7, bob)
    mesh.run(100)
    assert len(mesh.digests()) == 2
    mesh.heal()
    mesh.run(30)
    assert len(mesh.linked) == 28
    assert len(mesh.digests()) == 1
    assert [machine.catalogue.records for machine in mesh.machines] == [3] * 8


def test_a_hundred_changes_travel_as_a_hundred_entries() -> None:
    mesh = star(3)
    alice = Provider("alice", 20001)
    alice.put(*(f"h{i}" for i in range(300)))
    mesh.publish(0, alice)
    mesh.run(2)
    alice.put(*(f"h{i}" for i in range(100)), version=2)
    alice.own.withdraw(alice.cid("h299"))
    mesh.effects.clear()
    mesh.publish(0, alice)
    mesh.run(1)
    changed = [e for n, e in mesh.effects if isinstance(e, ev.CatalogueChanged) and n == 2]
    assert [len(change.slots or ()) for change in changed] == [101]
    assert len(mesh.digests()) == 1
    assert mesh.machines[2].catalogue.records == 299


def test_a_head_without_changes_needs_no_fetch() -> None:
    mesh = star(3)
    alice = Provider("alice", 20001)
    alice.put("h1")
    mesh.publish(0, alice)
    mesh.run(2)
    mesh.effects.clear()
    renewed = alice.news(UNIX + 4 * 3600)
    mesh.now = 4 * 3600.0
    mesh.feed(0, ev.NewsReceived(None, (renewed,)))
    mesh.run(0.5)
    assert not [e for _, e in mesh.effects if isinstance(e, ev.Fetch)]
    assert len(mesh.digests()) == 1
    assert mesh.machines[1].catalogue.vector()[0].seq == alice.own.seq


def test_a_forged_head_is_refused_and_goes_no_further() -> None:
    mesh = star(3)
    mesh.run(3)
    mesh.notices = 0
    alice = Provider("alice", 20001)
    alice.put("h1")
    news = alice.news()
    forged = HeadNews(msgspec.structs.replace(news.head, signature=bytes(64)), news.chain, None)
    mesh.feed(1, ev.NewsReceived(mesh.keys[0], (forged,)))
    mesh.run(1)
    assert [type(refusal.error) for refusal in refusals(mesh)] == [BadSignature]
    assert mesh.notices == 0
    assert mesh.machines[1].catalogue.providers() == []
    mesh.publish(0, alice)  # and it does not stand in the way of the true one
    mesh.run(1)
    assert len(mesh.digests()) == 1


def test_entries_that_do_not_match_are_fetched_whole_then_from_another_peer() -> None:
    mesh = Mesh(1)
    machine, alice = mesh.machines[0], Provider("alice", 20001)
    liar, honest = b"l" * 32, b"h" * 32
    for peer in (liar, honest):
        machine.handle(ev.LinkUp(peer, True), now=0)
    alice.put("h1")
    old = alice.news()
    machine.handle(ev.NewsReceived(None, (old,)), now=0)
    machine.handle(ev.EntriesFetched(None, alice.public, 0, old.head, alice.own.entries_after(0)), now=0)
    first = alice.own.seq
    alice.put("h2")
    news = alice.news()
    head = news.head
    asked = machine.handle(ev.NewsReceived(honest, (news,)), now=1)
    asked += machine.handle(ev.NewsReceived(liar, (news,)), now=1)
    assert [e for e in asked if isinstance(e, ev.Fetch)] == [ev.Fetch(honest, alice.public, first)]
    asked = machine.handle(ev.FetchFailed(honest, alice.public), now=1)
    assert ev.Fetch(liar, alice.public, first) in asked
    machine.handle(ev.NewsReceived(honest, (news,)), now=1)
    # the liar answers with nothing: a gap; then with other entries; the honest peer is asked in the end
    asked = machine.handle(ev.EntriesFetched(liar, alice.public, first, head, ()), now=1)
    assert [type(e) for e in asked] == [ev.Fetch]
    whole = next(e for e in asked if isinstance(e, ev.Fetch))
    assert whole.after_seq == 0
    wrong = OwnCatalogue(alice.key)
    wrong.put(record_of(alice.key, alice.cid("x")), unix=UNIX)
    wrong.put(record_of(alice.key, alice.cid("y")), unix=UNIX)
    wrong.commit(unix=UNIX - 100)
    asked = machine.handle(
        ev.EntriesFetched(whole.peer, alice.public, 0, head, wrong.entries_after(0)), now=1
    )
    assert [e.error.__class__ for e in asked if isinstance(e, ev.Refuse)] == [WrongRoot]
    again = next(e for e in asked if isinstance(e, ev.Fetch))
    assert again.peer != whole.peer
    asked = machine.handle(
        ev.EntriesFetched(again.peer, alice.public, 0, head, alice.own.entries_after(0)), now=1
    )
    assert any(isinstance(e, ev.CatalogueChanged) for e in asked)
    assert machine.catalogue.records == 2


def test_a_fork_puts_its_provider_into_quarantine_everywhere() -> None:
    mesh = star(8)
    mesh.run(5)
    alice = Provider("alice", 20001)
    alice.put("h1")
    mesh.publish(0, alice)
    mesh.run(1)
    twin = Provider("alice", 20001)
    twin.put("h2")
    mesh.feed(5, ev.NewsReceived(None, (twin.news(alice.own.seq),)))
    mesh.run(2)
    assert all(machine.catalogue.records == 0 for machine in mesh.machines)
    assert len(mesh.digests()) == 1
    assert any(isinstance(refusal.error, Forked) for refusal in refusals(mesh))
    alice.put("h3")
    mesh.publish(0, alice)  # a newer head does not end it
    mesh.run(1)
    assert all(machine.catalogue.records == 0 for machine in mesh.machines)


def test_a_status_row_for_an_unknown_slot_is_refused_and_the_rest_counts() -> None:
    mesh = star(2)
    alice = Provider("alice", 20001)
    alice.put("h1")
    mesh.publish(0, alice)
    mesh.run(1)
    rows = [StatusRow(0, 5, 1), *(StatusRow(slot, 6, 1) for slot in range(98, 1024))]
    (batch,) = alice.own.sign_status(rows, unix=UNIX)
    mesh.feed(0, ev.StatusReceived(None, (batch,)))
    assert [(r.what, type(r.error)) for r in refusals(mesh)] == [("status of slot 98 and 925 more", NotFound)]
    assert free_of(mesh, 0, alice) == 5


def test_status_that_comes_before_the_entries_is_kept_for_them() -> None:
    mesh = star(2)
    mesh.run(2)
    alice = Provider("alice", 20001)
    alice.put("h1")
    news = alice.news()
    mesh.feed(0, ev.NewsReceived(mesh.keys[1], (news,)))
    mesh.feed(0, ev.StatusReceived(mesh.keys[1], (alice.status(5),)))
    entries = alice.own.entries_after(0)
    mesh.effects.clear()
    mesh.feed(0, ev.EntriesFetched(mesh.keys[1], alice.public, 0, news.head, entries))
    assert free_of(mesh, 0, alice) == 5
    assert any(isinstance(e, ev.CatalogueChanged) for _, e in mesh.effects)
    assert not refusals(mesh)


def test_expired_providers_go() -> None:
    mesh = star(2)
    alice = Provider("alice", 20001)
    alice.put("h1")
    mesh.publish(0, alice)
    mesh.run(1)
    mesh.now = 6 * 3600 + 400.0
    mesh.run(10)
    assert [machine.catalogue.records for machine in mesh.machines] == [0, 0]
    assert len(mesh.digests()) == 1
    assert any(isinstance(e, ev.CatalogueChanged) and e.slots is None for _, e in mesh.effects)


def test_what_providers_say_of_core_nodes_is_not_believed() -> None:
    mesh = Mesh(2)
    mesh.machines[0].handle(ev.LinkUp(b"p" * 32, False), now=0)
    effects = mesh.machines[0].handle(ev.PeersReceived(b"p" * 32, (mesh.contact(1),)), now=0)
    effects += mesh.machines[0].handle(ev.Tick(), now=100)
    assert not [e for e in effects if isinstance(e, ev.Dial)]
    statuses = [e for e in effects if isinstance(e, ev.Notify) and isinstance(e.message, StatusAnnounced)]
    assert not statuses


def test_who_claims_links_and_tells_one_only_is_found_out() -> None:
    mesh = star(6)
    mesh.run(5)
    alice = Provider("alice", 20001)
    alice.put("h1")
    # 0 tells nobody but 1, which believes that 0 has told all the others
    mesh.passes = lambda source, target, message: source != 0 or target == 1
    mesh.publish(0, alice)
    mesh.run(0.5)
    assert len(mesh.digests()) == 2
    mesh.run(4)
    assert len(mesh.digests()) == 1
    alice.put("h2")
    mesh.publish(0, alice)
    mesh.run(0.5)  # and it is not believed again
    assert len(mesh.digests()) == 1


def test_a_link_counts_only_if_both_its_ends_say_so() -> None:
    mesh = Mesh(4, dial=False)
    for number in (1, 2, 3):
        mesh.link(0, number)
    mesh.run(3)
    everybody = tuple(mesh.contact(number) for number in range(4))
    mesh.feed(0, ev.PeersReceived(mesh.keys[1], everybody))
    alice = Provider("alice", 20001)
    alice.put("h1")
    mesh.publish(1, alice)
    mesh.run(0.5)
    assert len(mesh.digests()) == 1


def test_each_interval_another_region_is_compared_with_too() -> None:
    machine = Mesh(1).machines[0]
    for number in range(1, 6):
        prefix = "cn.r1100" if number == 5 else "cn.r3301"
        machine.handle(ev.LinkUp(bytes([number]) * 32, True, None, prefix), now=0)
    for interval in range(1, 6):
        compared = [
            effect.peer
            for effect in machine.handle(ev.Tick(), now=interval * 2 * COMPARE_SECONDS)
            if isinstance(effect, ev.Compare)
        ]
        assert len(compared) == 2
        assert b"\5" * 32 in compared


def test_status_that_the_other_has_is_not_sent_again() -> None:
    mesh = star(2)
    alice = Provider("alice", 20001)
    alice.put("h1")
    mesh.publish(0, alice)
    mesh.feed(0, ev.StatusReceived(None, (alice.status(5),)))
    mesh.run(2)
    mesh.passes = lambda source, target, message: False
    alice.put("h2")
    mesh.publish(0, alice)
    mesh.effects.clear()
    mesh.passes = lambda source, target, message: True
    mesh.run(2 * COMPARE_SECONDS)
    assert len(mesh.digests()) == 1
    assert not [
        e for _, e in mesh.effects if isinstance(e, ev.Notify) and isinstance(e.message, StatusAnnounced)
    ]
    newer = alice.status(6)
    mesh.passes = lambda source, target, message: False
    mesh.feed(0, ev.StatusReceived(None, (newer,)))
    alice.put("h3")
    mesh.publish(0, alice)
    mesh.passes = lambda source, target, message: True
    mesh.run(2 * COMPARE_SECONDS)
    assert (len(mesh.digests()), free_of(mesh, 1, alice)) == (1, 6)


def test_what_membership_says_is_dialed_and_no_longer_when_it_is_gone() -> None:
    mesh = Mesh(3, dial=False)
    machine = mesh.machines[0]
    effects = machine.handle(ev.ContactKnown(mesh.contact(1)), now=0)
    effects += machine.handle(ev.ContactKnown(mesh.contact(2)), now=0)
    effects += machine.handle(ev.ContactGone(mesh.keys[2]), now=5)
    effects += machine.handle(ev.Tick(), now=60)
    dialed = [effect.contact for effect in effects if isinstance(effect, ev.Dial)]
    assert dialed[-1] == mesh.contact(1)
    assert len(dialed) >= 2


def test_more_core_nodes_than_a_mesh_has_are_told_by_a_few_each() -> None:
    mesh = Mesh(2, dial=False)
    machine = mesh.machines[0]
    peers = [bytes([1, number]) * 16 for number in range(90)]
    for number, peer in enumerate(peers):
        machine.handle(ev.LinkUp(peer, True, Contact(peer, "10.0.0.1", 1000 + number)), now=0)
    alice = Provider("alice", 20001)
    alice.put("h1")

    def told() -> set[bytes]:
        news = alice.news()
        machine.handle(ev.NewsReceived(None, (news,)), now=0)
        entries = alice.own.entries_after(0)
        effects = machine.handle(ev.EntriesFetched(None, alice.public, 0, news.head, entries), now=0)
        return {e.peer for e in effects if isinstance(e, ev.Notify) and isinstance(e.message, HeadsAnnounced)}

    first = told()
    alice.put("h2")
    assert len(first) == len(told()) == FANOUT
    alice.put("h3")
    assert told() != first
    for peer in peers[48:]:
        machine.handle(ev.LinkDown(peer), now=1)
        machine.handle(ev.ContactGone(peer), now=1)
    alice.put("h4")
    assert told() == set(peers[:48])


def test_a_notice_is_heard_one_signature_at_a_time() -> None:
    """In its order; only the two heads that prove a fork stay together."""
    one, two = Provider("one", 20001), Provider("two", 20002)
    for provider in (one, two):
        provider.put("h1")
    first, other = one.news(), two.news()
    two.put("h2")
    news = (first, other, two.news(UNIX + 1))
    statuses = (one.status(8000), two.status(8000, 8000))
    events = list(one_by_one(one.public, news, statuses))
    assert events == [
        ev.NewsReceived(one.public, (first,)),
        ev.NewsReceived(one.public, news[1:]),
        *(ev.StatusReceived(one.public, (batch,)) for batch in statuses),
    ]
