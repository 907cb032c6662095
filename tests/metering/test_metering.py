"""Usage, receipts and the ledger: what is believed, what is disputed, and that nothing counts twice."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.metering.ledger import Ledger
from ioc_node.metering.receipts import KeptReceipt, check_answers, countersign, open_receipt
from ioc_node.metering.usage import Meter, check_usage
from ioc_node.runtime.store import Store, open_store
from ioc_wire.errors import BadReceipt, BadSignature, WireError
from ioc_wire.market import Lease
from ioc_wire.metering import Receipt, UsageRecord
from ioc_wire.signed import Signed, public_bytes, sign, verify

PROVIDER = Ed25519PrivateKey.from_private_bytes(b"provider".ljust(32, b"."))
CONSUMER = Ed25519PrivateKey.from_private_bytes(b"consumer".ljust(32, b"."))
STRANGER = Ed25519PrivateKey.from_private_bytes(b"stranger".ljust(32, b"."))


def lease_of(task: int = 1, attempt: int = 1) -> Lease:
    return Lease(
        lease=bytes([task]) * 32,
        cid="ioc:cn.r3301.20004/gen/3301/az1/host",
        consumer=public_bytes(CONSUMER),
        task=bytes([task]) * 32,
        attempt=attempt,
        cores_milli=2000,
        memory_mib=100,
        disk_mib=10,
        accelerators_milli=(500,),
        price_micro=3_600_000,
        issued=0,
        expires=10,
    )


def usage_of(lease: Lease, *, core_ms: int = 1500, wall_ms: int = 1000, state: str = "COMPLETE") -> Signed:
    meter = Meter(started_ms=5_000)
    meter.add_transfer_in(7)
    meter.add_run(lease, core_ms=core_ms, mib_ms=50 * wall_ms, wall_ms=wall_ms)
    meter.add_outputs(9)
    return meter.close(lease, PROVIDER, ended_ms=5_000 + wall_ms, state=state)


def receipt_of(task: int = 1, attempt: int = 1) -> KeptReceipt:
    return countersign(usage_of(lease_of(task, attempt)), CONSUMER, now_ms=9_000)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "node.db") as store:
        yield store


@pytest.fixture
def ledger(store: Store) -> Ledger:
    return Ledger(store)


def test_what_is_measured_is_what_is_signed() -> None:
    lease = lease_of()
    usage = check_usage(usage_of(lease), lease, public_bytes(PROVIDER), seen_ms=1200, state="COMPLETE")
    assert (usage.core_ms, usage.mib_ms, usage.wall_ms, usage.accelerator_ms) == (1500, 50_000, 1000, 500)
    assert (usage.bytes_in, usage.bytes_out) == (7, 9)
    assert usage.cost_micro == 1500, "a core-hour for 3.6 is a core-millisecond for a millionth"


def test_no_more_is_charged_than_the_lease_kept() -> None:
    usage = verify(usage_of(lease_of(), core_ms=10**9), UsageRecord)
    assert usage.core_ms == 2000 + 1000, "two cores for a second, and the tolerance"


def test_a_clock_that_was_set_back_never_gives_a_negative_time() -> None:
    lease = lease_of()
    record = Meter(started_ms=5_000).close(lease, PROVIDER, ended_ms=4_000, state="COMPLETE")
    assert verify(record, UsageRecord).wall_ms == 0


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"price_micro": 7_200_000, "cost_micro": 3000}, "its price is not that of the lease"),
        ({"lease": bytes(32)}, "its lease is not that of the lease"),
        ({"attempt": 2}, "its attempt is not"),
        ({"cid": "ioc:cn.r3301.20004/gen/3301/az1/other"}, "its cid is not"),
        ({"consumer": public_bytes(STRANGER)}, "its consumer is not"),
        ({"state": "EXECUTOR_ERROR"}, "it says EXECUTOR_ERROR, the task's last event says COMPLETE"),
        ({"wall_ms": 999_999}, "it claims 999999 ms, the consumer saw 1200 ms"),
        ({"ended_ms": 1_005_000, "wall_ms": 1_000_000}, "it claims 1000000 ms"),
        ({"core_ms": 3001, "cost_micro": 3001}, "3001 core-ms in 1000 ms on 2000 core thousandths"),
        ({"mib_ms": 10**6}, "1000000 MiB-ms in 1000 ms with 100 MiB"),
        ({"cost_micro": 1501}, "the cost is 1501"),
        ({"ended_ms": 1}, "it ends before it starts"),
        ({"provider": public_bytes(STRANGER)}, "not signed by the provider that it names"),
    ],
)
def test_a_record_that_cannot_be_believed_is_disputed_by_name(change: dict[str, object], line: str) -> None:
    lease = lease_of()
    honest = verify(usage_of(lease), UsageRecord)
    claimed = sign(PROVIDER, msgspec.structs.replace(honest, **change))
    with pytest.raises(BadReceipt, match=line):
        check_usage(claimed, lease, public_bytes(PROVIDER), seen_ms=1200, state="COMPLETE")


def test_another_providers_record_is_refused() -> None:
    lease = lease_of()
    with pytest.raises(BadReceipt, match="another provider"):
        check_usage(usage_of(lease), lease, public_bytes(STRANGER), seen_ms=1200, state="COMPLETE")


def test_a_receipt_needs_both_keys() -> None:
    usage = usage_of(lease_of())
    kept = countersign(usage, CONSUMER, now_ms=1)
    assert open_receipt(kept.signed) == kept
    assert check_answers(kept.signed, usage) == kept
    assert countersign(usage, CONSUMER, now_ms=2).id == kept.id, "countersigned later it is the same receipt"
    with pytest.raises(BadReceipt, match="not countersigned by the consumer"):
        countersign(usage, STRANGER, now_ms=1)
    with pytest.raises(BadReceipt, match="another usage record"):
        check_answers(kept.signed, usage_of(lease_of(2)))
    forged = msgspec.structs.replace(usage, payload=usage.payload[:-1] + bytes((usage.payload[-1] ^ 1,)))
    with pytest.raises(BadSignature):
        open_receipt(sign(CONSUMER, Receipt(forged, 1)))


def test_a_receipt_counts_once(ledger: Ledger) -> None:
    assert ledger.add(receipt_of())
    assert not ledger.add(receipt_of())
    assert not ledger.add(countersign(usage_of(lease_of()), CONSUMER, now_ms=77_000))
    assert ledger.totals().receipts == 1
    other = countersign(usage_of(lease_of(), core_ms=3), CONSUMER, now_ms=1)
    with pytest.raises(BadReceipt, match="attempt 1 of this task has another receipt already"):
        ledger.add(other)


def test_lists_and_totals(ledger: Ledger) -> None:
    for task in range(1, 6):
        ledger.add(receipt_of(task))
    ledger.add(receipt_of(1, attempt=2))
    totals = ledger.totals()
    assert (totals.receipts, totals.core_ms, totals.cost_micro, totals.bytes_in) == (6, 9000, 9000, 42)
    assert ledger.totals(provider=public_bytes(PROVIDER)) == totals
    assert ledger.totals(consumer=public_bytes(PROVIDER)).receipts == 0
    assert [kept.usage.attempt for kept in ledger.receipts_of(bytes([1]) * 32)] == [1, 2]
    assert len(ledger.latest(4)) == 4
    assert ledger.receipt(receipt_of(3).id) == receipt_of(3)
    assert ledger.receipt(bytes(32)) is None


def test_every_tampered_row_is_found_and_no_other(ledger: Ledger, store: Store) -> None:
    kept = [receipt_of(task) for task in range(1, 6)]
    for each in kept:
        ledger.add(each)
    assert all(checked.error is None for checked in ledger.verify_all())
    flipped = bytearray(msgspec.msgpack.encode(kept[0].signed))
    flipped[len(flipped) // 2] ^= 1
    store.execute("UPDATE receipts SET signed = ? WHERE id = ?", (bytes(flipped), kept[0].id))
    store.execute("UPDATE receipts SET signed = x'93' WHERE id = ?", (kept[1].id,))
    store.execute("UPDATE receipts SET cost_micro = 1 WHERE id = ?", (kept[2].id,))
    store.execute("UPDATE receipts SET id = ? WHERE id = ?", (bytes(32), kept[3].id))
    checked = list(ledger.verify_all())
    assert len(checked) == 5
    assert {each.id for each in checked if each.error is None} == {kept[4].id}
    assert all(isinstance(each.error, WireError) for each in checked if each.usage is None)


def test_verification_pages_through_a_long_ledger(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ioc_node.metering.ledger.PAGE_ROWS", 2)
    for task in range(1, 8):
        ledger.add(receipt_of(task))
    assert len({each.id for each in ledger.verify_all()}) == 7
