"""Usage records and receipts, in integers of base units (R18).

The provider measures and signs a `UsageRecord`; the consumer countersigns the same envelope as a `Receipt`. Both
keep it; its ID is a hash, so that storing it twice changes nothing.
"""

import hashlib
from typing import ClassVar

from ioc_wire.codec import Digest, Key, ShortText, UInt, encode
from ioc_wire.errors import BadReceipt
from ioc_wire.identity import base32
from ioc_wire.signed import Signed, SignedPayload, verify


class UsageRecord(SignedPayload, frozen=True):
    """What one attempt of a task used. Milliseconds of cores, accelerators and wall clock; MiB-milliseconds of
    memory; bytes moved in and out; tokens; `cost_micro` in millionths of the currency."""

    kind: ClassVar[str] = "usage"
    task: Digest
    attempt: UInt
    lease: Digest
    provider: Key
    consumer: Key
    cid: ShortText
    started_ms: UInt
    ended_ms: UInt
    wall_ms: UInt
    core_ms: UInt
    mib_ms: UInt
    bytes_in: UInt
    bytes_out: UInt
    price_micro: UInt
    cost_micro: UInt
    state: ShortText
    accelerator_ms: UInt = 0
    tokens_in: UInt = 0
    tokens_out: UInt = 0


class Receipt(SignedPayload, frozen=True):
    """A provider's signed usage record, countersigned by the consumer that is named in it."""

    kind: ClassVar[str] = "receipt"
    usage: Signed
    accepted_ms: UInt


def receipt_id(signed: Signed) -> bytes:
    """SHA-256 of the provider's signed usage record: one attempt has one receipt, whoever countersigns when."""
    receipt = verify(signed, Receipt)
    return hashlib.sha256(encode(receipt.usage)).digest()


def format_receipt_id(receipt: bytes) -> str:
    return "r" + base32(receipt)


def verify_usage(signed: Signed) -> UsageRecord:
    """Check the provider's half. Raises `BadReceipt`, `BadSignature` or `Malformed`."""
    usage = verify(signed, UsageRecord)
    if signed.key != usage.provider:
        raise BadReceipt("the usage record is not signed by the provider that it names")
    if usage.ended_ms < usage.started_ms:
        raise BadReceipt("it ends before it starts")
    return usage


def verify_receipt(signed: Signed) -> UsageRecord:
    """Check both signatures and return the usage record. Raises `BadReceipt`, `BadSignature` or `Malformed`."""
    receipt = verify(signed, Receipt)
    usage = verify_usage(receipt.usage)
    if signed.key != usage.consumer:
        raise BadReceipt("the receipt is not countersigned by the consumer that the usage record names")
    return usage


def cost_of(core_ms: int, price_micro: int) -> int:
    """Millionths of the currency for so many core-milliseconds at a price per core-hour, rounded up."""
    return -(-core_ms * price_micro // 3_600_000)
