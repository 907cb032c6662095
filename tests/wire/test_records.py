"""Records, periods, catalogue entries, heads, Merkle roots and holder records."""

import hashlib
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ioc_wire.codec import encode
from ioc_wire.dht import HOLDER_BYTES_MAX, HolderRecord, verify_holder
from ioc_wire.errors import BadIdentifier, BadSignature, Expired, Malformed, NotYetValid, TooLarge, WireError
from ioc_wire.limits import CLOCK_SKEW_SECONDS, RECORD_BYTES_MAX, RECORD_SECONDS_MAX
from ioc_wire.merkle import EMPTY_ROOT, leaf_hash, root_of
from ioc_wire.records import (
    CatalogueEntry,
    Cpu,
    Place,
    ResourceRecord,
    check_period,
    decode_entry,
    entry_bytes,
    verify_record,
)
from ioc_wire.signed import sign
from tests.wire.conftest import NOW, private_key, public_key
from tests.wire.test_structs import QUICK, mutations

CID = "ioc:cn.r3301.20004/ai/3301/az1/h7f3a"
replace = msgspec.structs.replace


def record(**changes: object) -> ResourceRecord:
    """A small record of one host, valid now for an hour."""
    plain = ResourceRecord(
        CID, 1, NOW, NOW + 3600, "node", Place("cn", "3301", "az1"), Cpu("x86_64", "EPYC", 8, 16), 16384
    )
    return replace(plain, **changes)


def verify_now(value: ResourceRecord, now: float = NOW) -> ResourceRecord:
    return verify_record(sign(private_key("alice"), value), now=now)[0]


def test_good_record() -> None:
    value, cid = verify_record(sign(private_key("alice"), record()), now=NOW)
    assert value == record()
    assert str(cid) == CID


def test_record_of_the_largest_size_and_one_byte_more() -> None:
    def sized(labels: Sequence[tuple[str, str]], last: int) -> ResourceRecord:
        return record(labels=(*labels, ("z", "x" * last)))

    filler = [("a", "x" * 200), ("b", "x" * 200), ("c", "x" * 150)]
    room = RECORD_BYTES_MAX - len(encode(sign(private_key("alice"), sized(filler, 100)))) + 100
    largest = sign(private_key("alice"), sized(filler, room))
    assert len(encode(largest)) == RECORD_BYTES_MAX
    verify_record(largest, now=NOW)
    with pytest.raises(TooLarge, match=str(RECORD_BYTES_MAX + 1)):
        verify_record(sign(private_key("alice"), sized(filler, room + 1)), now=NOW)


def test_record_that_was_changed() -> None:
    signed = sign(private_key("alice"), record())
    with pytest.raises(BadSignature):
        verify_record(replace(signed, payload=encode(record(version=2))), now=NOW)


@pytest.mark.parametrize("cid", ["", "ioc:cn", CID.upper(), CID + "/", CID + "/gpu0/x"])
def test_record_without_an_identifier(cid: str) -> None:
    with pytest.raises(BadIdentifier):
        verify_now(record(cid=cid))


def test_record_in_another_city_than_its_name() -> None:
    with pytest.raises(BadIdentifier, match="3302"):
        verify_now(record(place=Place("cn", "3302", "az1")))
    assert verify_now(record(place=Place("cn", "", ""))).place.city == ""


def test_version_then_time_decide() -> None:
    assert record(version=2, issued=NOW - 5).order > record(version=1).order
    assert record(issued=NOW + 1).order > record().order


# -- periods


@pytest.mark.parametrize("seconds", [0, -1, RECORD_SECONDS_MAX + 1, 2**62])
def test_period_that_is_reversed_or_too_long(seconds: int) -> None:
    with pytest.raises(Expired, match="period"):
        verify_now(record(expires=NOW + seconds if NOW + seconds >= 0 else 0))


def test_period_holds_to_the_second() -> None:
    end = NOW + 3600 + CLOCK_SKEW_SECONDS
    verify_now(record(), end)
    verify_now(record(), NOW - CLOCK_SKEW_SECONDS)
    verify_now(record(expires=NOW + RECORD_SECONDS_MAX))
    with pytest.raises(Expired):
        verify_now(record(), end + 1)
    with pytest.raises(NotYetValid):
        verify_now(record(), NOW - CLOCK_SKEW_SECONDS - 1)


times = st.integers(0, 2**63 - 1)


@given(times, times, times)
@QUICK
def test_any_period_holds_or_is_refused(issued: int, expires: int, now: int) -> None:
    try:
        check_period(issued, expires, RECORD_SECONDS_MAX, now, "x")
    except (Expired, NotYetValid):
        return
    assert 0 < expires - issued <= RECORD_SECONDS_MAX
    assert issued - CLOCK_SKEW_SECONDS <= now <= expires + CLOCK_SKEW_SECONDS


# -- Merkle trees: RFC 9162, section 2.1.1, as it is defined there


def recursive_root(leaves: Sequence[bytes]) -> bytes:
    """MTH of the RFC: split at the largest power of two smaller than the number of leaves."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\x01" + recursive_root(leaves[:split]) + recursive_root(leaves[split:])).digest()


@pytest.mark.parametrize("count", [*range(70), 127, 128, 129, 1000])
def test_root_is_that_of_the_recursive_definition(count: int) -> None:
    leaves = [b"leaf %d" % number for number in range(count)]
    assert root_of([leaf_hash(leaf) for leaf in leaves]) == recursive_root(leaves)


@given(st.lists(st.binary(max_size=8), max_size=40))
@QUICK
def test_root_of_any_leaves(leaves: list[bytes]) -> None:
    assert root_of([leaf_hash(leaf) for leaf in leaves]) == recursive_root(leaves)


def test_known_roots() -> None:
    """The tree of eight leaves that implementations of Certificate Transparency test with."""
    leaves = [bytes.fromhex(text) for text in (
        "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
    )]  # fmt: skip
    roots = {
        0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        4: "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        5: "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        6: "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        7: "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    }
    for count, root in roots.items():
        assert root_of([leaf_hash(leaf) for leaf in leaves[:count]]).hex() == root
    assert root_of([]) == EMPTY_ROOT


def test_a_leaf_is_not_a_node() -> None:
    left, right = leaf_hash(b"a"), leaf_hash(b"b")
    assert root_of([leaf_hash(left + right)]) != root_of([left, right])


def test_root_depends_on_order_and_count() -> None:
    a, b = leaf_hash(b"a"), leaf_hash(b"b")
    assert (
        len({root_of([a, b]), root_of([b, a]), root_of([a]), root_of([a, b, b]), root_of([a, b, b, b])}) == 5
    )


# -- catalogue entries


def test_entry_and_tombstone() -> None:
    for signed in (sign(private_key("alice"), record()), None):
        entry = CatalogueEntry(3, 9, CID, signed)
        assert decode_entry(entry_bytes(entry)) == entry


def test_entry_above_its_limit() -> None:
    entry = CatalogueEntry(
        3, 9, CID, sign(private_key("alice"), record(labels=tuple([("k", "x" * 256)] * 7)))
    )
    with pytest.raises(TooLarge):
        decode_entry(entry_bytes(entry))


# -- holders of blobs


def holder(**changes: object) -> HolderRecord:
    return replace(HolderRecord(bytes(32), "192.0.2.1", 4001, NOW, NOW + 60), **changes)


def test_good_holder() -> None:
    assert verify_holder(sign(private_key("alice"), holder()), now=NOW) == holder()


def test_holder_is_refused() -> None:
    alice = private_key("alice")
    cases: list[tuple[type[WireError], HolderRecord]] = [
        (Expired, holder(expires=NOW)),
        (Expired, holder(issued=NOW - 4000, expires=NOW - 3000)),
        (Expired, holder(expires=NOW + RECORD_SECONDS_MAX + 1)),
        (NotYetValid, holder(issued=NOW + 400, expires=NOW + 500)),
    ]
    for kind, value in cases:
        with pytest.raises(kind):
            verify_holder(sign(alice, value), now=NOW)
    with pytest.raises(BadSignature):
        verify_holder(replace(sign(alice, holder()), key=public_key("bob")), now=NOW)
    with pytest.raises((Malformed, TooLarge)):
        verify_holder(replace(sign(alice, holder()), payload=bytes(HOLDER_BYTES_MAX + 1)), now=NOW)


@given(st.integers(0, 2**32))
@QUICK
def test_mutated_payloads_signed_anew_are_refused_or_valid(seed: int) -> None:
    """A provider may sign any nonsense: its signature is good, and still nothing but a `WireError` comes out."""
    from ioc_wire.signed import Signed, signed_bytes

    alice = private_key("alice")
    for kind, value, check in (
        ("record", encode(record()), verify_record),
        ("holder", encode(holder()), verify_holder),
    ):
        for payload in mutations(value, seed, 10):
            signed = Signed(
                "ioc/1", kind, payload, public_key("alice"), alice.sign(signed_bytes("ioc/1", kind, payload))
            )
            try:
                check(signed, now=NOW)
            except WireError:
                continue
