"""Contacts told of at addresses where nobody answered: believed once, and again when it has been a while."""

from ioc_node.core import silence as module
from ioc_node.core.events import JoinStarted
from ioc_node.core.routing import usable_contacts
from ioc_node.core.silence import SILENT_MAX, SILENT_PORTS_MAX, SILENT_SECONDS, Silence
from ioc_wire import dht as wire
from tests.core.staple import Network

HOST = "192.0.3.7"


def test_an_address_is_silent_for_a_while_or_until_somebody_is_heard() -> None:
    silence = Silence()
    silence.add((HOST, 1), 0.0)
    silence.add(("10.0.0.1", 1), 1.0)
    assert silence.covers((HOST, 1), SILENT_SECONDS - 1)
    assert not silence.covers((HOST, 2), 1.0)
    silence.discard((HOST, 1))
    assert not silence.covers((HOST, 1), 1.0)
    assert silence.covers(("10.0.0.1", 1), SILENT_SECONDS)
    assert not silence.covers(("10.0.0.1", 1), SILENT_SECONDS + 1)
    assert len(silence) == 0


def test_a_host_of_the_internet_with_many_silent_ports_is_silent_as_a_whole() -> None:
    silence = Silence()
    for port in range(1, SILENT_PORTS_MAX + 1):
        assert not silence.covers((HOST, 999), 0.0)
        silence.add((HOST, port), 0.0)
        silence.add(("10.0.0.1", port), 0.0)
    assert silence.covers((HOST, 999), 0.0)
    assert not silence.covers(("10.0.0.1", 999), 0.0), "a private address does not say who is behind it"
    assert not silence.covers((HOST, 999), SILENT_SECONDS + 1)


def test_it_is_bounded() -> None:
    silence = Silence()
    for number in range(SILENT_MAX + 100):
        silence.add((f"10.0.{number >> 8}.{number & 255}", 1), 0.0)
    assert len(silence) == len(silence._ports) == SILENT_MAX
    assert not silence.covers(("10.0.0.1", 1), 0.0)


def test_one_answer_tells_of_an_address_once() -> None:
    told = [wire.Contact(bytes((n,)) * 32, wire.pack_host(HOST), 1 + n // 5) for n in range(20)]
    assert [each.address[1] for each in usable_contacts(told, ("8.8.8.8", 1))] == [1, 2, 3, 4]


def test_a_server_that_comes_to_a_silent_address_is_known_at_once() -> None:
    """It knocks itself; and a server that was known is tried again by those who knew it."""
    net = Network()
    alice, bob = net.add("alice"), net.add("bob")
    net.result(bob, JoinStarted(1, (alice,)))
    net.run(5)
    gone = net.nodes.pop(bob)
    net.run(module.SILENT_SECONDS + 500)
    assert gone.node_id not in net.nodes[alice].table
    net.add("bob", address=bob)
    net.result(bob, JoinStarted(1, (alice,)))
    assert gone.node_id in net.nodes[alice].table
    assert not net.nodes[alice].upkeep._silence.covers(bob, net.now)
