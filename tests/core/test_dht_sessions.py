"""Handshakes between alice and bob, packet by packet: the good case, and what an attacker or a bad network
does.
"""

import random

import pytest

from ioc_node.core import challenge, sessions
from ioc_node.core.events import PingReport, PingStarted
from ioc_node.core.session import (
    CIPHERS_AWAKE_MAX,
    Challenged,
    Cipher,
    Failed,
    Lost,
    Opened,
    Received,
    SendDatagram,
    _context,
)
from ioc_node.core.sessions import Sessions
from ioc_node.core.trust import Trust
from ioc_node.errors import PeerUnreachable
from ioc_wire import dht as wire
from ioc_wire.errors import BrokenChain, RoleNotGranted, UnknownNetwork, WireError, WrongPeer
from ioc_wire.identity import node_id_of
from ioc_wire.signed import public_bytes
from tests.core.staple import NETWORK, UNIX, Network, delegate, key_of

ALICE, BOB, CAROL = ("10.0.0.1", 1), ("10.0.0.2", 2), ("10.0.0.3", 3)
KINDS = {1: "KNOCK", 2: "WHOAREYOU", 3: "HANDSHAKE", 4: "ACCEPT", 5: "MESSAGE", 6: "REFUSED"}


def sessions_of(name: str, network_id: bytes = NETWORK) -> Sessions:
    trust = Trust(network_id=network_id, admission="open", roots=())
    return Sessions(
        key=key_of(name), trust=trust, chain=(), server=True, chance=random.Random(name), unix_offset=UNIX
    )


def take(out: list[SendDatagram]) -> bytes:
    assert len(out) == 1
    return out.pop().data


def shake_hands(alice: Sessions, bob: Sessions) -> tuple[Opened, Received, list[bytes]]:
    """A whole handshake; returns both ends' events and the four packets."""
    out: list[SendDatagram] = []
    alice.knock(BOB, None, b"first", out)
    knock = take(out)
    assert bob.receive(knock, ALICE, 0.0, out) is None
    who = take(out)
    assert isinstance(alice.receive(who, BOB, 0.0, out), Challenged)
    shake = take(out)
    received = bob.receive(shake, ALICE, 0.0, out)
    assert isinstance(received, Received)
    bob.send(received.session, b"answer", out)
    accept = take(out)
    opened = alice.receive(accept, BOB, 0.0, out)
    assert isinstance(opened, Opened)
    return opened, received, [knock, who, shake, accept]


def test_two_round_trips_make_a_session_and_carry_the_first_answer() -> None:
    alice, bob = sessions_of("alice"), sessions_of("bob")
    opened, received, packets = shake_hands(alice, bob)
    assert [KINDS[p[0]] for p in packets] == ["KNOCK", "WHOAREYOU", "HANDSHAKE", "ACCEPT"]
    assert (received.data, opened.data) == (b"first", b"answer")
    assert opened.session.node_id == bob.node_id
    assert received.session.node_id == alice.node_id
    assert len(packets[0]) >= len(packets[1]), "no answer before the address is proved may be larger"
    out: list[SendDatagram] = []
    for sender, session, receiver, source in (
        (alice, opened.session, bob, ALICE),
        (bob, received.session, alice, BOB),
    ):
        sender.send(session, b"more", out)
        event = receiver.receive(take(out), source, 1.0, out)
        assert isinstance(event, Received)
        assert event.data == b"more"


def test_nothing_is_kept_for_a_knock() -> None:
    alice, bob = sessions_of("alice"), sessions_of("bob")
    out: list[SendDatagram] = []
    for number in range(500):
        alice.knock(BOB, None, b"", out)
        bob.receive(out.pop().data, (f"10.1.0.{number % 250}", number + 1), 0.0, [])
    assert len(bob) == 0
    assert not bob._challenges._spent


def test_messages_are_accepted_once_and_out_of_order_within_the_window() -> None:
    alice, bob = sessions_of("alice"), sessions_of("bob")
    opened, _, _ = shake_hands(alice, bob)
    out: list[SendDatagram] = []
    for number in range(100):
        alice.send(opened.session, bytes([number]), out)
    packets = [effect.data for effect in out]
    order = [5, 3, 4, 3, 60, 5, 10, 99, 99, 36, 35, 98]
    seen = [bob.receive(packets[i], ALICE, 0.0, []) for i in order]
    accepted = [i for i, event in zip(order, seen, strict=True) if event is not None]
    assert accepted == [5, 3, 4, 60, 10, 99, 36, 98], "35 lies more than 63 behind 99"
    assert bob.counters.replayed == 4


def test_a_session_that_rested_goes_on_where_it_was() -> None:
    """Its ciphers' contexts made room for those of others; counters and window are untouched."""
    alice, bob = sessions_of("alice"), sessions_of("bob")
    opened, _, _ = shake_hands(alice, bob)
    out: list[SendDatagram] = []
    for _ in range(3):
        alice.send(opened.session, b"before", out)
    before = [effect.data for effect in out]
    assert isinstance(bob.receive(before[2], ALICE, 0.0, []), Received)
    for number in range(CIPHERS_AWAKE_MAX):
        Cipher(number.to_bytes(16, "big")).encrypt(bytes(12), b"", b"")
    assert _context.cache_info().currsize == CIPHERS_AWAKE_MAX
    out.clear()
    alice.send(opened.session, b"after", out)
    event = bob.receive(take(out), ALICE, 0.0, [])
    assert isinstance(event, Received)
    assert event.data == b"after"
    assert event.session.highest == 4
    assert bob.receive(before[2], ALICE, 0.0, []) is None, "still a replay"


def test_a_recorded_handshake_is_worthless_elsewhere_and_later() -> None:
    alice, bob, carol = sessions_of("alice"), sessions_of("bob"), sessions_of("carol")
    _, _, (_, _, shake, accept) = shake_hands(alice, bob)
    out: list[SendDatagram] = []
    assert bob.receive(shake, ALICE, 1.0, out) is None
    assert take(out) == accept, "an exact repetition means that the ACCEPT was lost"
    assert bob.receive(shake, CAROL, 1.0, out) is None
    assert bob.receive(shake, ALICE, 1000.0, out) is None
    assert carol.receive(shake, ALICE, 1.0, out) is None
    assert out == []
    assert len(bob) == 1
    assert len(carol) == 0


def test_a_cookie_is_spent_once_even_when_the_memory_of_spent_ones_overflows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(challenge, "SPENT_MAX", 3)
    bob = sessions_of("bob")
    first = shake_hands(sessions_of("alice"), bob)[2][2]
    for name in ("carol", "dave", "eve", "frank"):
        shake_hands(sessions_of(name), bob)
    out: list[SendDatagram] = []
    count = len(bob)
    assert bob.receive(first, ALICE, 1.0, out) is None
    assert len(bob) == count
    assert len(bob._challenges._spent) <= 3


@pytest.mark.parametrize("kind", [1, 2, 3, 4])
def test_a_changed_byte_in_any_handshake_packet_makes_no_session(kind: int) -> None:
    rng = random.Random(kind)
    for _ in range(25):
        alice, bob = sessions_of("alice"), sessions_of("bob")
        out: list[SendDatagram] = []
        alice.knock(BOB, bob.node_id, b"x", out)
        source, target, events = alice, bob, []
        while out:
            data = bytearray(out.pop(0).data)
            if data[0] == kind:
                limit = 86 if kind == wire.KNOCK else len(data)
                data[rng.randrange(1, limit)] ^= 1 << rng.randrange(8)
            address = ALICE if source is alice else BOB
            event = target.receive(bytes(data), address, 0.0, out)
            if isinstance(event, Received) and event.session.unaccepted is not None:
                target.send(event.session, b"y", out)
            events.append(event)
            source, target = target, source
        assert not any(isinstance(event, Opened) for event in events)
        assert len(alice) == 0


def test_who_answers_with_another_key_is_the_wrong_peer() -> None:
    net = Network()
    alice, bob = net.add("alice"), net.add("bob")
    expected = node_id_of(public_bytes(key_of("carol")))
    error = net.result(alice, PingStarted(1, bob, expected))
    assert isinstance(error, WrongPeer)
    assert len(net.nodes[bob].sessions) == 0
    assert isinstance(net.result(alice, PingStarted(2, alice, None)), WrongPeer)


def test_another_network_is_refused() -> None:
    net = Network()
    alice, bob = net.add("alice"), net.add("bob", network_id=bytes(32))
    assert isinstance(net.result(alice, PingStarted(1, bob, None)), UnknownNetwork)
    assert len(net.nodes[bob].sessions) == len(net.nodes[bob].table) == 0


@pytest.mark.parametrize("kind", [1, 2, 3, 4, 5])
def test_loss_of_the_first_packet_of_each_kind_is_survived(kind: int) -> None:
    net = Network()
    alice, bob = net.add("alice"), net.add("bob")
    dropped: list[int] = []

    def lose_first(data: bytes, _source: object, _target: object) -> list[bytes]:
        if data[0] == kind and not dropped:
            dropped.append(kind)
            return []
        return [data]

    net.on_wire = lose_first
    for number in range(2):
        assert isinstance(
            net.result(alice, PingStarted(number, bob, None if not number else net.nodes[bob].node_id)),
            PingReport,
        )
    assert dropped == [kind]
    assert len(net.nodes[alice].sessions) == len(net.nodes[bob].sessions) == 1


def test_duplicates_and_reordering_change_nothing() -> None:
    net = Network(7, jitter=0.2)
    alice, bob = net.add("alice"), net.add("bob")
    net.on_wire = lambda data, _s, _t: [data, data, data]
    target = net.nodes[bob].node_id
    for number in range(30):
        assert isinstance(net.result(alice, PingStarted(number, bob, target)), PingReport)
    assert net.nodes[bob].sessions.counters.handshakes_accepted == len(net.nodes[bob].sessions)


def test_a_restarted_peer_is_noticed_and_shaken_hands_with_again() -> None:
    net = Network()
    alice, bob = net.add("alice"), net.add("bob")
    node_id = net.nodes[bob].node_id
    assert isinstance(net.result(alice, PingStarted(1, bob, node_id)), PingReport)
    net.add("bob", address=bob)
    began = net.now
    assert isinstance(net.result(alice, PingStarted(2, bob, node_id)), PingReport)
    assert net.now - began < 0.1, "REFUSED tells at once; no time-out is needed"


def test_a_forged_refusal_does_not_end_a_session() -> None:
    alice, bob = sessions_of("alice"), sessions_of("bob")
    opened, _, _ = shake_hands(alice, bob)
    good = bytes((wire.REFUSED,)) + opened.session.remote_id + bytes(12) + bytes(2)
    forged = bytes((wire.REFUSED,)) + bytes(8) + bytes(12) + bytes(2)
    assert alice.receive(forged, BOB, 0.0, []) is None
    assert alice.receive(good, CAROL, 0.0, []) is None
    assert len(alice) == 1
    assert isinstance(alice.receive(good, BOB, 0.0, []), Lost)


def test_a_session_belongs_to_one_address() -> None:
    alice, bob = sessions_of("alice"), sessions_of("bob")
    opened, _, _ = shake_hands(alice, bob)
    out: list[SendDatagram] = []
    alice.send(opened.session, b"x", out)
    answer: list[SendDatagram] = []
    assert bob.receive(take(out), CAROL, 0.0, answer) is None
    assert answer[0].data[0] == wire.REFUSED
    assert answer[0].address == CAROL


def test_the_session_table_forgets_the_least_recently_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "SESSIONS_MAX", 3)
    bob = sessions_of("bob")
    alice = sessions_of("alice")
    opened, _, _ = shake_hands(alice, bob)
    for name in ("carol", "dave"):
        shake_hands(sessions_of(name), bob)
    out: list[SendDatagram] = []
    alice.send(opened.session, b"still here", out)
    assert bob.receive(take(out), ALICE, 0.0, out) is not None
    shake_hands(sessions_of("eve"), bob)
    assert len(bob) == 3
    assert bob.with_node(alice.node_id, 0.0) is not None
    assert bob.with_node(sessions_of("carol").node_id, 0.0) is None


def test_no_peer_gets_more_than_two_sessions() -> None:
    net = Network()
    alice, bob = net.add("alice"), net.add("bob")
    for number in range(6):
        assert isinstance(net.result(alice, PingStarted(number, bob, None)), PingReport)
    assert len(net.nodes[alice].sessions) == len(net.nodes[bob].sessions) == 2


def test_sessions_are_renewed_and_end() -> None:
    net = Network()
    alice, bob = net.add("alice", server=False), net.add("bob", server=False)
    node_id = net.nodes[bob].node_id
    net.result(alice, PingStarted(1, bob, node_id))
    net.now += sessions.RENEW_SECONDS + 1
    assert isinstance(net.result(alice, PingStarted(2, bob, node_id)), PingReport)
    assert net.nodes[alice].sessions.counters.handshakes_made == 2
    net.run(3600 * 2)
    assert len(net.nodes[alice].sessions) == 1, "the old session was dropped at its end"


def test_silence_costs_bounded_time_and_leaves_nothing() -> None:
    net = Network()
    alice = net.add("alice")
    error = net.result(alice, PingStarted(1, ("10.9.9.9", 9), None))
    assert isinstance(error, PeerUnreachable)
    assert "10.9.9.9:9" in str(error)
    assert net.now < 4.0
    assert not net.nodes[alice].sessions._attempts
    assert not net.nodes[alice].exchange._knocks


class TestCertified:
    """A network whose admission is by delegation chain."""

    root = key_of("root")
    region = key_of("region")

    def chain(self, name: str, role: str = "provider", prefix: str = "cn.r3301.20004") -> tuple:
        upper = delegate(self.root, self.region, "cn.r3301", "regional")
        return (upper, delegate(self.region, key_of(name), prefix, role))  # type: ignore[arg-type]

    def network(self) -> tuple[Network, dict]:
        return Network(), {"admission": "certified", "roots": (public_bytes(self.root),)}

    def test_both_ends_show_their_chains(self) -> None:
        net, rule = self.network()
        alice = net.add("alice", chain=self.chain("alice"), **rule)
        bob = net.add("bob", chain=self.chain("bob"), **rule)
        assert isinstance(net.result(alice, PingStarted(1, bob, None)), PingReport)
        assert len(net.nodes[alice].table) == len(net.nodes[bob].table) == 1

    @pytest.mark.parametrize(
        ("chain", "fault"),
        [
            ("none", BrokenChain),
            ("another's", BrokenChain),
            ("self-made", BrokenChain),
            ("consumer as server", RoleNotGranted),
            ("expired", WireError),
        ],
    )
    def test_who_cannot_is_refused(self, chain: str, fault: type[WireError]) -> None:
        chains = {
            "none": (),
            "another's": self.chain("carol"),
            "self-made": (delegate(key_of("alice"), key_of("alice"), "cn", "national"),),
            "consumer as server": self.chain("alice", "consumer"),
            "expired": (delegate(self.root, key_of("alice"), "cn", "national", until=UNIX - 5000),),
        }
        net, rule = self.network()
        bob = net.add("bob", chain=self.chain("bob"), **rule)
        alice = net.add("alice", chain=chains[chain], **rule)
        assert isinstance(net.result(alice, PingStarted(1, bob, None)), fault)
        assert len(net.nodes[bob].sessions) == len(net.nodes[bob].table) == 0
        back = net.result(bob, PingStarted(1, alice, None))
        assert isinstance(back, fault), "and bob does not believe alice either"

    def test_a_consumer_may_be_a_client(self) -> None:
        net, rule = self.network()
        bob = net.add("bob", chain=self.chain("bob"), **rule)
        alice = net.add("alice", chain=self.chain("alice", "consumer"), server=False, **rule)
        assert isinstance(net.result(alice, PingStarted(1, bob, None)), PingReport)
        assert len(net.nodes[bob].table) == 0


def test_failed_and_refused_are_told_apart() -> None:
    alice, bob = sessions_of("alice"), sessions_of("bob", bytes(32))
    out: list[SendDatagram] = []
    alice.knock(BOB, None, b"", out)
    bob.receive(take(out), ALICE, 0.0, out)
    event = alice.receive(take(out), BOB, 0.0, out)
    assert isinstance(event, Failed)
    assert isinstance(event.error, UnknownNetwork)
