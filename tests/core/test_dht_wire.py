"""Every DHT decoder: what was encoded comes back; anything else is a `WireError` and nothing worse."""

import contextlib
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ioc_node.core import routing
from ioc_node.core.routing import address_scope, usable_contacts
from ioc_wire import dht as wire
from ioc_wire.dht import Contact, Handshake, HolderRecord, Knock, Whoareyou
from ioc_wire.errors import Expired, Malformed, WireError, error_of, error_table
from ioc_wire.signed import Signed, sign
from tests.core.staple import UNIX, Network, key_of

DECODERS: list[Callable[[bytes], object]] = [
    wire.decode_knock,
    wire.decode_whoareyou,
    wire.decode_handshake,
    wire.decode_refused,
    wire.decode_message,
    wire.decode_opening,
    wire.decode_acceptance,
    wire.unpack_host,
]
B32 = bytes(range(32))
CONTACT = Contact(B32, b"\x7f\x00\x00\x01", 4000)
SIGNED = Signed("ioc/1", "record", b"payload", B32, bytes(64))
MESSAGES = [
    wire.Ping(1),
    wire.Pong(2, bytes(16), 65535),
    wire.FindNode(3, B32),
    wire.Nodes(4, (CONTACT,) * 20, 999),
    wire.GetServers(5, B32),
    wire.Get(6, B32, 7, 20),
    wire.Value(7, SIGNED, B32, (CONTACT,)),
    wire.Value(8, None, None, ()),
    wire.Put(9, SIGNED, None),
    wire.Stored(10),
    wire.Refusal(11, 20, "older"),
    wire.GetChain(12, B32),
    wire.ChainValue(13, (SIGNED,)),
    wire.PutChain(14, (SIGNED,) * 4),
    wire.Announce(15, SIGNED),
    wire.GetHolders(16, B32),
    wire.Holders(17, (SIGNED,), 40, (CONTACT,)),
]
PACKETS = [
    Knock(bytes(8), bytes(12), 1, B32, B32).encode(),
    Whoareyou(bytes(8), bytes(12), bytes(24), B32, B32, 2**40, bytes(64)).encode(),
    Handshake(bytes(8), bytes(12), bytes(24), B32, bytes(8), B32, 1, bytes(64)).encode() + bytes(16),
    wire.encode_refused(bytes(40), 9),
    *(wire.encode_message(message) for message in MESSAGES),
]


@given(st.binary(max_size=1300))
@settings(max_examples=300, deadline=None)
def test_garbage_is_malformed(data: bytes) -> None:
    for decode in DECODERS:
        with contextlib.suppress(WireError):
            decode(data)
    wire.unknown_request(data)


@given(st.sampled_from(PACKETS), st.integers(0, 2**31), st.integers(0, 255), st.integers(0, 1300))
@settings(max_examples=500, deadline=None)
def test_a_changed_or_cut_packet_is_valid_or_malformed(packet: bytes, at: int, byte: int, cut: int) -> None:
    changed = bytearray(packet)
    changed[at % len(changed)] = byte
    for data in (bytes(changed), packet[:cut], packet + bytes(cut % 7)):
        test_garbage_is_malformed.hypothesis.inner_test(data)  # type: ignore[attr-defined]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_messages_round_trip_and_ignore_trailing_fields(message: wire.AnyMessage) -> None:
    data = wire.encode_message(message)
    assert len(data) <= wire.PLAINTEXT_BYTES_MAX
    assert wire.decode_message(data) == message
    later = msgspec.msgpack.encode([*msgspec.msgpack.decode(data), "from the future"])
    assert wire.decode_message(later) == message


def test_packets_round_trip() -> None:
    knock = Knock(bytes(8), b"nonce-nonce-", 1, B32, B32[::-1])
    assert wire.decode_knock(knock.encode()) == knock
    assert len(knock.encode()) == wire.KNOCK_BYTES >= wire.WHOAREYOU_BYTES
    assert wire.decode_refused(PACKETS[3]) == (bytes(8), bytes(12), 9)


def test_an_unknown_type_can_still_be_refused_by_number() -> None:
    data = msgspec.msgpack.encode([99, 7, "?"])
    with pytest.raises(Malformed):
        wire.decode_message(data)
    assert wire.unknown_request(data) == 7
    assert wire.unknown_request(msgspec.msgpack.encode([1, 7])) is None


def test_every_refusal_keeps_its_exception() -> None:
    for code, kind in error_table().items():
        answer = wire.decode_message(wire.encode_message(wire.refusal(1, kind("why"))))
        assert isinstance(answer, wire.Refusal)
        assert answer.code == code
        back = error_of(answer.code, answer.detail)
        assert type(back) is kind
        assert back.detail == "why"


def test_holder_records_have_a_period() -> None:
    key = key_of("alice")
    good = sign(key, HolderRecord(B32, "10.0.0.1", 4000, UNIX, UNIX + 60))
    assert wire.verify_holder(good, now=UNIX).port == 4000
    with pytest.raises(Expired):
        wire.verify_holder(good, now=UNIX + 1000)
    with pytest.raises(Expired):
        wire.verify_holder(sign(key, HolderRecord(B32, "h", 1, UNIX, UNIX + 10**6)), now=UNIX)


@pytest.mark.parametrize("host", ["127.0.0.1", "10.1.2.3", "::1", "2001:db8::7"])
def test_hosts_round_trip(host: str) -> None:
    assert wire.unpack_host(wire.pack_host(host)) == host
    assert wire.pack_host("::ffff:10.1.2.3") == wire.pack_host("10.1.2.3")


def test_nobody_on_the_internet_sends_us_to_a_private_address() -> None:
    told = [
        Contact(B32, wire.pack_host(h), 1)
        for h in ("127.0.0.1", "10.0.0.1", "8.8.8.8", "224.0.0.1", "0.0.0.0")
    ]
    told.append(Contact(B32, b"12345", 1))
    told.append(Contact(B32, bytes(10) + b"\xff\xff\x7f\x00\x00\x01", 1))

    def hosts(teller: str) -> list[str]:
        return [contact.address[0] for contact in usable_contacts(told, (teller, 1))]

    assert hosts("1.1.1.1") == ["8.8.8.8"]
    assert hosts("10.0.0.9") == ["10.0.0.1", "8.8.8.8"]
    assert hosts("127.0.0.1") == ["127.0.0.1", "10.0.0.1", "8.8.8.8"]
    assert [address_scope(h) for h in ("::1", "fe80::1", "ff02::1")] == [0, 1, -1]


def test_a_node_without_ipv6_does_not_try_it() -> None:
    network = Network()
    told = [wire.Contact(bytes(32), wire.pack_host(host), 1) for host in ("9.9.9.9", "2001:4860::1")]
    teller = routing.Contact(bytes(32), ("8.8.8.8", 1))
    both = network.nodes[network.add("alice")].usable(told, teller, 0.0)
    assert [contact.address[0] for contact in both] == ["9.9.9.9", "2001:4860::1"]
    old = network.nodes[network.add("bob", ipv6=False)].usable(told, teller, 0.0)
    assert [contact.address[0] for contact in old] == ["9.9.9.9"]
