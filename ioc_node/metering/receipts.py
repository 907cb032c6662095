"""Making receipts: the consumer countersigns a usage record that it has checked."""

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_wire.errors import BadReceipt
from ioc_wire.metering import Receipt, UsageRecord, receipt_id, verify_receipt
from ioc_wire.signed import Signed, sign, verify


@dataclass(frozen=True)
class KeptReceipt:
    """A receipt as the ledger holds it; `usage` is what its two signatures vouch for."""

    id: bytes
    signed: Signed
    usage: UsageRecord


def countersign(usage: Signed, key: Ed25519PrivateKey, *, now_ms: int) -> KeptReceipt:
    """The receipt for a usage record that was checked. Raises as `open_receipt`, for example
    where the record names another consumer."""
    return open_receipt(sign(key, Receipt(usage=usage, accepted_ms=now_ms)))


def open_receipt(signed: Signed) -> KeptReceipt:
    """A receipt, both signatures checked. Raises `BadReceipt`, `BadSignature`, `UnknownType`, `Malformed`."""
    return KeptReceipt(id=receipt_id(signed), usage=verify_receipt(signed), signed=signed)


def check_answers(signed: Signed, usage: Signed) -> KeptReceipt:
    """For the provider: the receipt, where it countersigns exactly our `usage`. Raises as `open_receipt`."""
    kept = open_receipt(signed)
    if verify(signed, Receipt).usage != usage:
        raise BadReceipt("it countersigns another usage record than the one that was sent")
    return kept
