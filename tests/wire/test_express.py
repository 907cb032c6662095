"""What sender and receiver of a shipment check of each other's statements."""

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_wire.errors import BadReceipt, BadSignature, Expired, UnknownType, WrongPeer
from ioc_wire.express import (
    ShipmentOrder,
    ShipmentTerms,
    check_shipment_usage,
    shipment_cost,
    shipment_name,
    verify_order,
    verify_terms,
)
from ioc_wire.metering import UsageRecord
from ioc_wire.signed import Signed, public_bytes, sign

SENDER = Ed25519PrivateKey.from_private_bytes(b"s" * 32)
RECEIVER = Ed25519PrivateKey.from_private_bytes(b"r" * 32)
CAROL = Ed25519PrivateKey.from_private_bytes(b"c" * 32)

ORDER = ShipmentOrder(
    nonce=bytes(32),
    receiver=public_bytes(RECEIVER),
    subject=b"b" * 32,
    dataset=False,
    size=2_000_000_001,
    made=1000,
    deadline=4600,
    price_max_micro=41,
)
SIGNED = sign(SENDER, ORDER)
TERMS = ShipmentTerms(shipment_name(SIGNED), 20, 40, 1001)
AGREED = sign(RECEIVER, TERMS)
USAGE = UsageRecord(
    task=shipment_name(SIGNED),
    attempt=1,
    lease=shipment_name(AGREED),
    provider=public_bytes(RECEIVER),
    consumer=public_bytes(SENDER),
    cid="express",
    started_ms=1_001_000,
    ended_ms=1_900_000,
    wall_ms=899_000,
    core_ms=0,
    mib_ms=0,
    bytes_in=2_000_000_001,
    bytes_out=0,
    price_micro=20,
    cost_micro=41,
    state="DELIVERED",
)


def bill(key: Ed25519PrivateKey = RECEIVER, **changes: object) -> Signed:
    return sign(key, msgspec.structs.replace(USAGE, **changes))


def test_a_cost_is_rounded_up() -> None:
    assert [shipment_cost(size, 20) for size in (0, 1, 10**9, 10**9 + 1)] == [0, 1, 20, 21]


def test_a_bill_that_says_what_was_agreed_is_good() -> None:
    assert verify_order(SIGNED, public_bytes(RECEIVER)) == ORDER
    assert verify_terms(AGREED, SIGNED) == TERMS
    assert check_shipment_usage(bill(), SIGNED, AGREED) == USAGE
    late = {"ended_ms": 4_600_001, "wall_ms": 3_599_001, "state": "LATE", "cost_micro": 0}
    assert check_shipment_usage(bill(**late), SIGNED, AGREED).cost_micro == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bytes_in": 2_000_000_002, "cost_micro": 41}, "2000000002 bytes of 2000000001"),
        ({"cost_micro": 40}, "another sum"),
        ({"cost_micro": 42}, "another sum"),
        ({"price_micro": 21}, "not for this shipment"),
        ({"task": bytes(32)}, "not for this shipment"),
        ({"lease": bytes(32)}, "not for this shipment"),
        ({"attempt": 2}, "not for this shipment"),
        ({"cid": "ioc:cn.r1/x"}, "not for this shipment"),
        ({"consumer": public_bytes(CAROL)}, "not for this shipment"),
        ({"state": "LATE", "cost_micro": 0}, "it says LATE"),
        ({"ended_ms": 4_600_001}, "it says DELIVERED"),
        ({"ended_ms": 1_000_000}, "ends before it starts"),
    ],
)
def test_a_bill_that_says_something_else_is_not(changes: dict[str, object], words: str) -> None:
    with pytest.raises(BadReceipt, match=words):
        check_shipment_usage(bill(**changes), SIGNED, AGREED)


def test_a_bill_by_somebody_else_is_not() -> None:
    with pytest.raises(BadReceipt, match="not signed by the provider"):
        check_shipment_usage(bill(CAROL), SIGNED, AGREED)
    with pytest.raises(BadReceipt, match="not for this shipment"):
        check_shipment_usage(bill(CAROL, provider=public_bytes(CAROL)), SIGNED, AGREED)
    with pytest.raises(BadSignature):
        check_shipment_usage(msgspec.structs.replace(bill(), signature=bytes(64)), SIGNED, AGREED)


def test_orders_and_terms_for_others_are_refused() -> None:
    with pytest.raises(WrongPeer, match="another receiver"):
        verify_order(SIGNED, public_bytes(CAROL))
    for deadline in (999, 1000 + 31 * 86_400):
        with pytest.raises(Expired, match="within 30 days"):
            verify_order(sign(SENDER, msgspec.structs.replace(ORDER, deadline=deadline)), ORDER.receiver)
    for terms in (sign(CAROL, TERMS), sign(RECEIVER, msgspec.structs.replace(TERMS, order=bytes(32)))):
        with pytest.raises(WrongPeer, match="no terms of that receiver"):
            verify_terms(terms, SIGNED)
    with pytest.raises(WrongPeer, match="above what the order allows"):
        verify_terms(sign(RECEIVER, msgspec.structs.replace(TERMS, price_micro_per_gb=21)), SIGNED)
    with pytest.raises(UnknownType):
        verify_terms(SIGNED, SIGNED)
