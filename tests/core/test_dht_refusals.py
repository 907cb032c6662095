"""Registration refuses each kind of bad record with its own error, and keeps what it had."""

import msgspec
import pytest

from ioc_node.core import answering
from ioc_node.core.challenge import Address
from ioc_node.core.events import AnnounceStarted, GetReport, GetStarted, JoinStarted, PutReport, PutStarted
from ioc_wire import dht as wire
from ioc_wire.cid import self_certified_prefix
from ioc_wire.codec import encode
from ioc_wire.errors import (
    BadIdentifier,
    BadSignature,
    BrokenChain,
    Expired,
    Malformed,
    NotFound,
    NotYetValid,
    OlderVersion,
    OverQuota,
    PrefixNotCovered,
    RateLimited,
    Revoked,
    TooLarge,
    UnknownType,
    WireError,
)
from ioc_wire.signed import Signed, public_bytes, sign
from tests.core.staple import UNIX, Network, delegate, key_of, record_of

PROVIDER = key_of("provider")
OWN = f"ioc:{self_certified_prefix(public_bytes(PROVIDER))}/ai/3301/az1"
CID = f"{OWN}/h1"
ROOT, REGION = key_of("root"), key_of("region")
NAMED = "ioc:cn.r3301.20004/ai/3301/az1/h1"
CHAIN = (
    delegate(ROOT, REGION, "cn.r3301", "regional"),
    delegate(REGION, PROVIDER, "cn.r3301.20004", "provider"),
)
Pair = tuple[Network, Address, Address]


@pytest.fixture
def pair() -> Pair:
    """Alice, a client, knows bob, a server of an open network with a root key."""
    return make_pair()


def make_pair(**options: int) -> Pair:
    net = Network()
    roots = (public_bytes(ROOT),)
    bob = net.add("bob", roots=roots, **options)
    alice = net.add("alice", server=False, roots=roots)
    net.result(alice, JoinStarted(1, (bob,)))
    net.run(10)
    return net, alice, bob


def put(pair: Pair, record: Signed, chain: tuple[Signed, ...] = ()) -> WireError | None:
    """Put; the fault that the one server gave, or None if it stored."""
    net, alice, _ = pair
    report = net.result(alice, PutStarted(2, record, chain))
    if isinstance(report, WireError):
        return report
    assert isinstance(report, PutReport), report
    assert len(report.stored) + len(report.refused) == 1
    fault = report.refused[0][1] if report.refused else None
    assert fault is None or isinstance(fault, WireError)
    return fault


def version(pair: Pair, cid: str = CID) -> int | None:
    result = pair[0].result(pair[1], GetStarted(3, cid))
    if isinstance(result, GetReport):
        return result.resource.version
    assert isinstance(result, NotFound), result
    assert "1 servers were asked" in str(result)
    return None


def test_a_good_record_is_stored_and_found(pair: Pair) -> None:
    assert put(pair, record_of(PROVIDER, CID)) is None
    assert version(pair) == 1


def test_bad_signature(pair: Pair) -> None:
    record = record_of(PROVIDER, CID)
    assert isinstance(put(pair, msgspec.structs.replace(record, signature=bytes(64))), BadSignature)
    forged = msgspec.structs.replace(record, key=public_bytes(key_of("mallory")))
    assert isinstance(put(pair, forged), BadSignature)
    assert version(pair) is None


def test_a_record_is_not_something_else_that_was_signed(pair: Pair) -> None:
    assert isinstance(put(pair, msgspec.structs.replace(record_of(PROVIDER, CID), kind="head")), UnknownType)


def test_prefix_not_covered(pair: Pair) -> None:
    assert isinstance(put(pair, record_of(key_of("mallory"), CID)), PrefixNotCovered)
    assert isinstance(put(pair, record_of(PROVIDER, NAMED)), PrefixNotCovered)
    other = record_of(PROVIDER, "ioc:cn.r3302.20004/ai/3302/az1/h1")
    assert isinstance(put(pair, other, CHAIN), PrefixNotCovered)
    assert version(pair) is None


def test_a_delegated_prefix_is_stored_with_its_chain_and_found_by_one_who_never_saw_it(pair: Pair) -> None:
    assert put(pair, record_of(PROVIDER, NAMED), CHAIN) is None
    net, _, bob = pair
    carol = net.add("carol", server=False, roots=(public_bytes(ROOT),))
    net.result(carol, JoinStarted(1, (bob,)))
    report = net.result(carol, GetStarted(2, NAMED))
    assert isinstance(report, GetReport)
    assert report.chain == CHAIN
    again = net.result(carol, GetStarted(3, NAMED))
    assert isinstance(again, GetReport)
    assert again.queried < report.queried, "the chain is fetched once"


@pytest.mark.parametrize("case", ["not the root's", "wider than its issuer", "another's", "expired"])
def test_broken_chain(pair: Pair, case: str) -> None:
    mallory = key_of("mallory")
    chains = {
        "not the root's": (delegate(mallory, PROVIDER, "cn.r3301.20004", "provider"),),
        "wider than its issuer": (CHAIN[0], delegate(REGION, PROVIDER, "cn", "provider")),
        "another's": (CHAIN[0], delegate(mallory, PROVIDER, "cn.r3301.20004", "provider")),
        "expired": (delegate(ROOT, PROVIDER, "cn.r3301.20004", "national", until=UNIX - 1000),),
    }
    fault = put(pair, record_of(PROVIDER, NAMED), chains[case])
    assert isinstance(fault, Expired if case == "expired" else BrokenChain)
    assert version(pair, NAMED) is None


def test_expired_and_not_yet_valid(pair: Pair) -> None:
    assert isinstance(put(pair, record_of(PROVIDER, CID, issued=UNIX - 9000, seconds=3600)), Expired)
    assert isinstance(put(pair, record_of(PROVIDER, CID, seconds=49 * 3600)), Expired)
    assert isinstance(put(pair, record_of(PROVIDER, CID, issued=UNIX + 4000)), NotYetValid)
    assert put(pair, record_of(PROVIDER, CID, issued=UNIX + 200)) is None, (
        "five minutes of skew are tolerated"
    )


def test_older_version(pair: Pair) -> None:
    five = record_of(PROVIDER, CID, 5)
    assert put(pair, five) is None
    assert isinstance(put(pair, record_of(PROVIDER, CID, 4)), OlderVersion)
    assert isinstance(put(pair, record_of(PROVIDER, CID, 5, labels=(("note", "another"),))), OlderVersion)
    assert put(pair, five) is None, "the same record again is a refresh"
    assert put(pair, record_of(PROVIDER, CID, 5, issued=UNIX + 10)) is None, "re-signed later"
    assert put(pair, record_of(PROVIDER, CID, 6)) is None
    assert version(pair) == 6


def test_too_large(pair: Pair) -> None:
    filler = 1024 - len(encode(record_of(PROVIDER, CID, labels=(("a", ""), ("b", ""), ("c", ""), ("d", "")))))
    sizes = [(filler - 12) // 4 + extra for extra in (0, 8, 60)]
    records = [
        record_of(PROVIDER, CID, labels=tuple((name, "x" * size) for name in "abcd")) for size in sizes
    ]
    assert 1000 < len(encode(records[0])) <= 1024 < len(encode(records[1])) < 1100 < len(encode(records[2]))
    assert put(pair, records[0]) is None
    for record in records[1:]:
        assert isinstance(put(pair, record), TooLarge), "by the server, or before it is sent"
    assert version(pair) == 1


def test_a_bad_identifier_or_no_record_at_all(pair: Pair) -> None:
    assert isinstance(put(pair, record_of(PROVIDER, "ioc:XX/ai/3301/az1")), BadIdentifier)
    nothing = sign(PROVIDER, wire.HolderRecord(bytes(32), "h", 1, UNIX, UNIX + 1))
    assert isinstance(put(pair, nothing), Malformed)
    assert isinstance(pair[0].result(pair[1], GetStarted(9, "not a cid")), BadIdentifier)


def test_over_quota_of_one_publisher() -> None:
    pair = make_pair(records_per_publisher_max=3)
    for number in range(3):
        assert put(pair, record_of(PROVIDER, f"{OWN}/h{number}")) is None
    assert isinstance(put(pair, record_of(PROVIDER, f"{OWN}/h3")), OverQuota)
    assert put(pair, record_of(PROVIDER, f"{OWN}/h2", 2)) is None, "a new version takes no more room"
    other = key_of("other")
    assert (
        put(pair, record_of(other, f"ioc:{self_certified_prefix(public_bytes(other))}/ai/3301/az1")) is None
    )


def test_rate_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "WRITES_BURST", 2.0)
    monkeypatch.setattr(answering, "WRITES_PER_SECOND", 1.0)
    pair = make_pair()
    faults = [put(pair, record_of(PROVIDER, CID, number)) for number in range(1, 9)]
    assert faults[:2] == [None, None]
    assert all(isinstance(fault, RateLimited) for fault in faults[2:])


def test_a_certified_network_has_no_self_certified_names() -> None:
    net = Network()
    rule = {"admission": "certified", "roots": (public_bytes(ROOT),)}
    bob = net.add("bob", chain=(delegate(ROOT, key_of("bob"), "cn", "national"),), **rule)  # type: ignore[arg-type]
    alice = net.add("alice", server=False, chain=(delegate(ROOT, key_of("alice"), "cn", "consumer"),), **rule)  # type: ignore[arg-type]
    net.result(alice, JoinStarted(1, (bob,)))
    pair = (net, alice, bob)
    assert isinstance(put(pair, record_of(PROVIDER, CID)), PrefixNotCovered)
    assert put(pair, record_of(PROVIDER, NAMED), CHAIN) is None
    assert version(pair, NAMED) == 1


def test_revocation_is_honoured_at_once(pair: Pair) -> None:
    assert put(pair, record_of(PROVIDER, NAMED), CHAIN) is None
    net, alice, bob = pair
    assert version(pair, NAMED) == 1
    for node in net.nodes.values():
        node.trust.revoke(public_bytes(PROVIDER))
    assert version(pair, NAMED) is None
    assert isinstance(put(pair, record_of(PROVIDER, NAMED, 2), CHAIN), (Revoked, BrokenChain))
    assert net.nodes[alice].rejected >= 1
    assert len(net.nodes[bob].store) == 1, "kept, but nobody believes it"


def test_an_announcement_must_be_true_to_its_signer(pair: Pair) -> None:
    net, alice, _ = pair
    good = sign(PROVIDER, wire.HolderRecord(bytes(32), "10.0.0.1", 4000, UNIX, UNIX + 60))
    bad = msgspec.structs.replace(good, signature=bytes(64))
    report = net.result(alice, AnnounceStarted(4, bad))
    assert isinstance(report, PutReport)
    assert isinstance(report.refused[0][1], BadSignature)
    stored = net.result(alice, AnnounceStarted(5, good))
    assert isinstance(stored, PutReport)
    assert len(stored.stored) == 1
