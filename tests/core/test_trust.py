"""Whom a node believes: what is remembered of checks, and what is judged anew every time."""

import msgspec
import pytest

from ioc_node.core.checked import CheckedSignatures
from ioc_node.core.trust import Trust
from ioc_wire.cid import self_certified_prefix
from ioc_wire.errors import BadSignature, Expired, Revoked, UnknownType
from ioc_wire.signed import Signed, public_bytes
from tests.core.staple import NETWORK, UNIX, key_of, record_of

ALICE = key_of("alice")
CID = f"ioc:{self_certified_prefix(public_bytes(ALICE))}/gen/home/z0"


def trust_with(checked: CheckedSignatures | None = None) -> Trust:
    return Trust(network_id=NETWORK, admission="open", roots=(), checked=checked)


def changed(signed: Signed, **fields: object) -> Signed:
    return msgspec.structs.replace(signed, **fields)


def test_a_signature_is_checked_once_and_the_rest_every_time() -> None:
    trust, record = trust_with(), record_of(ALICE, CID)
    for _ in range(3):
        trust.check_record(record, None, unix=UNIX)
    assert trust.checked.hits == 2
    with pytest.raises(Expired):
        trust.check_record(record, None, unix=UNIX + 90_000)
    trust.revoke(public_bytes(ALICE))
    with pytest.raises(Revoked):
        trust.check_record(record, None, unix=UNIX)


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"payload": record_of(ALICE, CID, 2).payload}, BadSignature),
        ({"signature": record_of(ALICE, CID, 2).signature}, BadSignature),
        ({"key": public_bytes(key_of("mallory"))}, BadSignature),
        ({"kind": "tombstone"}, BadSignature),
        ({"kind": "head"}, UnknownType),
        ({"domain": "ioc/2"}, UnknownType),
    ],
)
def test_no_other_envelope_passes_for_one_that_was_checked(
    fields: dict[str, object], fault: type[Exception]
) -> None:
    trust, record = trust_with(), record_of(ALICE, CID)
    for envelope in (record, changed(record, **fields)):
        if envelope is record:
            trust.check_record(envelope, None, unix=UNIX)
            continue
        for _ in range(2):  # nothing is remembered of a bad one
            with pytest.raises(fault):
                trust.check_record(envelope, None, unix=UNIX)
    assert len(trust.checked) == 1


def test_the_memory_is_bounded_and_can_be_shared() -> None:
    checked = CheckedSignatures(size_max=2)
    records = [record_of(ALICE, CID, version) for version in (1, 2, 3)]
    for record in records:
        trust_with(checked).check_record(record, None, unix=UNIX)
    assert len(checked) == 2
    trust_with(checked).check_record(records[2], None, unix=UNIX)
    assert checked.hits == 1
    trust_with(checked).check_record(records[0], None, unix=UNIX)
    assert checked.hits == 1
