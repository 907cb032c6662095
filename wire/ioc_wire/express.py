"""Data express: a blob or a dataset is shipped to a node by a time, for a price, and receipted (tags 80-84).

    sender                                receiver
    OfferShipment(signed order)        →
                                       ←  ShipmentAccepted(signed terms)
                                       ←  tickets are asked for, bytes are fetched and verified
                                       ←  ReportShipment(signed usage record)
    ShipmentSettled(receipt)           →

Order and terms are promises of each side: the sender pays at most `price_max_micro` for what arrives by `deadline`, the
receiver charges its price for the bytes that it fetched and verified, and nothing where it is late. The receipt is that
of a task (`metering`): its `task` is the order's name, its `lease` the name of the terms, its `cid` is `express`.
"""

import hashlib
from typing import ClassVar, Final

from ioc_wire.bulk import BLOB_BYTES_MAX
from ioc_wire.codec import Digest, Key, Message, ShortText, UInt, encode
from ioc_wire.errors import BadReceipt, Expired, WrongPeer
from ioc_wire.market import Contact
from ioc_wire.metering import UsageRecord, verify_usage
from ioc_wire.signed import Signed, SignedPayload, verify

EXPRESS_CID: Final = "express"
DELIVERED: Final = "DELIVERED"
LATE: Final = "LATE"
GB: Final = 10**9
ORDER_SECONDS_MAX: Final = 30 * 86_400
SHIPMENT_BYTES_MAX: Final = 64 * BLOB_BYTES_MAX


class ShipmentOrder(SignedPayload, frozen=True):
    """The envelope's key orders: have `subject` (a blob; with `dataset` the blob of a dataset's version, and all that
    it names), at most `size` bytes, at `receiver` by `deadline` (Unix seconds), for at most `price_max_micro` in all.
    `nonce` tells two orders apart."""

    kind: ClassVar[str] = "ship-order"
    nonce: Digest
    receiver: Key
    subject: Digest
    dataset: bool
    size: UInt
    made: UInt
    deadline: UInt
    price_max_micro: UInt


class ShipmentTerms(SignedPayload, frozen=True):
    """The receiver's promise for one order: its price for 10^9 bytes, and how long it expects to take."""

    kind: ClassVar[str] = "ship-terms"
    order: Digest
    price_micro_per_gb: UInt
    expected_seconds: UInt
    accepted: UInt


class OfferShipment(Message, tag=80, frozen=True):
    """Ask a node to take a shipment; `sender` is where it asks for tickets. Answer: `ShipmentAccepted`, the same each
    time, or `Unserved` with the reason."""

    order: Signed
    sender: Contact


class ShipmentAccepted(Message, tag=81, frozen=True):
    """Signed `ShipmentTerms`."""

    terms: Signed


class ReportShipment(Message, tag=82, frozen=True):
    """Receiver to sender: how an order goes. With `usage`, a signed `UsageRecord`, it has ended; without, `text` says
    why it failed, or it is under way. Answer: `ShipmentSettled`; `NotFound` for an order that is not known, or was
    cancelled."""

    order: Digest
    bytes_done: UInt
    failed: bool = False
    text: ShortText = ""
    usage: Signed | None = None


class ShipmentSettled(Message, tag=83, frozen=True):
    """The countersigned receipt, where a usage record was reported."""

    receipt: Signed | None = None


class CancelShipment(Message, tag=84, frozen=True):
    """Sender to receiver: stop, nothing is paid. Answer: `Done`. Idempotent."""

    order: Digest


def shipment_name(signed: Signed) -> bytes:
    """What names an order, or the terms for one: SHA-256 of the signed statement, encoded."""
    return hashlib.sha256(encode(signed)).digest()


def shipment_cost(size: int, price_micro_per_gb: int) -> int:
    """Millionths of the currency for so many bytes, rounded up."""
    return -(-size * price_micro_per_gb // GB)


def verify_order(signed: Signed, receiver: bytes) -> ShipmentOrder:
    """The order inside `signed`, for that receiver. Raises `WrongPeer`, `Expired`, `BadSignature` or `Malformed`."""
    order = verify(signed, ShipmentOrder)
    if order.receiver != receiver:
        raise WrongPeer("the order names another receiver")
    if not order.made <= order.deadline <= order.made + ORDER_SECONDS_MAX:
        raise Expired(f"its deadline is not within {ORDER_SECONDS_MAX // 86_400} days after it was made")
    return order


def verify_terms(signed: Signed, order: Signed) -> ShipmentTerms:
    """The receiver's terms for `order`, a price that the order allows. Raises `WrongPeer`, `BadSignature` or
    `Malformed`."""
    wanted = verify(order, ShipmentOrder)
    terms = verify(signed, ShipmentTerms)
    if signed.key != wanted.receiver or terms.order != shipment_name(order):
        raise WrongPeer("these are no terms of that receiver for this order")
    if shipment_cost(wanted.size, terms.price_micro_per_gb) > wanted.price_max_micro:
        raise WrongPeer("the price is above what the order allows")
    return terms


def check_shipment_usage(signed: Signed, order: Signed, terms: Signed) -> UsageRecord:
    """The usage record of a shipment, where it is what order and terms say. Raises `BadReceipt` naming what is wrong,
    `BadSignature` or `Malformed`."""
    usage = verify_usage(signed)
    wanted, agreed = verify(order, ShipmentOrder), verify_terms(terms, order)
    told = (usage.provider, usage.consumer, usage.task, usage.lease, usage.cid, usage.price_micro)
    due = (
        wanted.receiver,
        order.key,
        shipment_name(order),
        shipment_name(terms),
        EXPRESS_CID,
        agreed.price_micro_per_gb,
    )
    if told != due or usage.attempt != 1:
        raise BadReceipt("it is not for this shipment")
    if usage.bytes_in > wanted.size:
        raise BadReceipt(f"it charges {usage.bytes_in} bytes of {wanted.size}")
    late = usage.ended_ms > wanted.deadline * 1000
    if usage.state != (LATE if late else DELIVERED):
        raise BadReceipt(f"it says {usage.state}, its times say otherwise")
    if usage.cost_micro != (0 if late else shipment_cost(usage.bytes_in, usage.price_micro)):
        raise BadReceipt(f"the cost is {usage.cost_micro}, bytes and price make another sum")
    return usage
