"""Every message of the DHT once, and the envelopes inside them."""

from typing import Any, Final, get_args

from people import CID, DAY, NOW, Vector, digest, key_of, link, public, signed_vector, struct_vector
from plain import sample

from ioc_wire import cid, dht, identity, records
from ioc_wire.authority import chain_hash
from ioc_wire.signed import Signed, sign

CHAIN: Final = (
    link("root", "beijing", "cn", "national")[0],
    link("beijing", "hangzhou", "cn.r3301", "regional")[0],
    link("hangzhou", "alice", "cn.r3301.20004", "provider", "consumer")[0],
)
"""alice's."""
ALICE: Final = ("192.0.2.7", 40_000)
BOB: Final = ("192.0.2.8", 4_001)
CAROL: Final = ("2001:db8::9", 4_001)


def _contact(name: str, address: tuple[str, int]) -> dht.Contact:
    return dht.Contact(identity.node_id_of(public(name)), dht.pack_host(address[0]), address[1])


def small_record(version: int = 1, name: str = CID) -> Signed:
    """A record of a few fields, signed by alice."""
    record = records.ResourceRecord(
        cid=name, version=version, issued=NOW, expires=NOW + DAY, type="node",
        place=records.Place("cn", "3301", "az1"), cpu=records.Cpu("x86_64", "EPYC 9654", 96, 192), memory_mib=1024,
    )  # fmt: skip
    return sign(key_of("alice"), record)


def tombstone() -> records.Tombstone:
    """The end of `CID`."""
    return records.Tombstone(CID, 3, NOW, NOW + DAY)


def holder() -> dht.HolderRecord:
    """bob holds a blob."""
    return dht.HolderRecord(digest("blob"), "192.0.2.8", 4001, NOW, NOW + DAY)


def dialogue() -> list[tuple[str, dht.AnyMessage]]:
    """Requests of a client, alice, and a server's answers; who sends each message. Every type comes up."""
    record, chain = small_record(), chain_hash(CHAIN)
    gone = sign(key_of("alice"), tombstone())
    held = sign(key_of("bob"), holder())
    key, nearest = cid.cid_key(CID), (_contact("bob", BOB), _contact("carol", CAROL))
    spoken: list[tuple[str, dht.AnyMessage]] = [
        ("alice", dht.Ping(1)),
        ("bob", dht.Pong(1, dht.pack_host(ALICE[0]), ALICE[1])),
        ("alice", dht.FindNode(2, key)),
        ("bob", dht.Nodes(2, nearest, 9)),
        ("alice", dht.GetServers(3, bytes(32))),
        ("bob", dht.Nodes(3, (), 0)),
        ("alice", dht.Put(4, record, chain)),
        ("bob", dht.Refusal(4, 23, CID)),
        ("alice", dht.PutChain(5, CHAIN)),
        ("bob", dht.Stored(5)),
        ("alice", dht.Put(6, record, chain)),
        ("bob", dht.Stored(6)),
        ("alice", dht.Get(7, key, 1, 20)),
        ("bob", dht.Value(7, record, chain, nearest)),
        ("alice", dht.Get(8, key, 2, 0)),
        ("bob", dht.Value(8, None, None, ())),
        ("alice", dht.GetChain(9, chain)),
        ("bob", dht.ChainValue(9, CHAIN)),
        ("alice", dht.Announce(10, held)),
        ("bob", dht.Stored(10)),
        ("alice", dht.GetHolders(11, digest("blob"))),
        ("bob", dht.Holders(11, (held,), 1, nearest)),
        ("alice", dht.PutMany(12, (record, small_record(1, f"{CID}/gpu0")), chain)),
        ("bob", dht.StoredMany(12, (0, 22))),
        ("alice", dht.Watch(13, key, 1, 600)),
        ("bob", dht.Watching(13, 300)),
        ("bob", dht.Changed(1_000_000, key, small_record(2), chain)),
        ("alice", dht.Stored(1_000_000)),
        ("alice", dht.Put(14, gone, chain)),
        ("bob", dht.Stored(14)),
    ]  # fmt: skip
    said = {type(message) for _, message in spoken}
    for kind in sorted(set(get_args(dht.AnyMessage)) - said, key=lambda kind: kind.__name__):
        spoken.append(("alice" if kind in dht.REQUEST_TYPES else "bob", sample(kind)))
    return spoken


def messages() -> Vector:
    """dht.json."""
    envelopes: list[Any] = [
        signed_vector("bob", holder(), name="holder")[1],
        signed_vector("alice", tombstone(), name="tombstone")[1],
    ]
    return {
        "chain": [struct_vector(signed) for signed in CHAIN],
        "chain_hash": chain_hash(CHAIN).hex(),
        "key": cid.cid_key(CID).hex(),
        "signed": envelopes,
        "messages": [struct_vector(message, sender=sender) for sender, message in dialogue()],
    }
