"""Task definitions, IDs, paths and orders; usage records and receipts."""

import hashlib
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ioc_wire.codec import decode, encode
from ioc_wire.errors import BadReceipt, BadSignature, BadTask, Malformed, UnknownType, WireError
from ioc_wire.limits import TASK_BYTES_MAX
from ioc_wire.market import demand_of
from ioc_wire.metering import (
    Receipt,
    UsageRecord,
    cost_of,
    format_receipt_id,
    receipt_id,
    verify_receipt,
    verify_usage,
)
from ioc_wire.signed import Signed, sign
from ioc_wire.tasks import (
    ENDED,
    Constraints,
    ExecutorStep,
    Input,
    Output,
    Resources,
    State,
    TaskDefinition,
    TaskOrder,
    check_definition,
    check_path,
    definition_bytes,
    format_task_id,
    open_order,
    parse_task_id,
    task_id_of,
)
from tests.wire.conftest import NOW, private_key, public_key
from tests.wire.structs import refused_or
from tests.wire.test_structs import QUICK, mutations

replace = msgspec.structs.replace
NONCE = b"0123456789abcdef"


def task(**changes: object) -> TaskDefinition:
    """A WebAssembly task with one input and one output."""
    plain = TaskDefinition(
        name="tile",
        executor=ExecutorStep(runtime="wasm", program="blob:b" + "a" * 52, command=("tile", "in", "out")),
        inputs=(Input(path="in", url="blob:b" + "a" * 52),),
        outputs=(Output(path="out"),),
    )
    return replace(plain, **changes)


def order_of(definition: bytes, owner: str = "carol", nonce: bytes = NONCE) -> TaskOrder:
    return TaskOrder(task_id_of(definition, public_key(owner), nonce), 1, bytes(32), definition, nonce)


# -- paths


@pytest.mark.parametrize("path", ["a", "a/b", "a b", ".hidden", "a/..b", "...", "ü/日本"])
def test_path_inside(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize(
    "path", ["", "/", "/a", "..", "../a", "a/..", "a/../b", ".", "./a", "a//b", "a/", "a\\b", "a\0b", "..\\a"]
)
def test_path_that_leaves_the_folder(path: str) -> None:
    with pytest.raises(BadTask, match="path"):
        check_path(path)


# -- definitions


def test_good_definition() -> None:
    assert check_definition(task()) == task()
    assert decode(definition_bytes(task()), TaskDefinition) == task()
    assert demand_of(task()).runtimes == ("wasm",)


@pytest.mark.parametrize(
    "area",
    [
        "",
        "cn",
        "cn.r3301",
        "ioc:cn.r3301.20004",
        "ioc:cn.r3301.20004/ai/3301/",
        "ioc:cn.r3301.20004/ai/3301/az1/h1",
    ],
)
def test_places_are_prefixes_or_beginnings_of_identifiers(area: str) -> None:
    definition = task(constraints=Constraints(allow=(area,), deny=(area,)))
    assert check_definition(definition) is definition


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"inputs": (Input(path="../x", url="file:x"),)}, "path"),
        ({"outputs": (Output(path="/x"),)}, "path"),
        ({"outputs": (Output(path="in"),)}, "twice"),
        ({"outputs": (Output(path="x"), Output(path="x"))}, "twice"),
        ({"constraints": Constraints(allow=("CN",))}, "constraints"),
        ({"constraints": Constraints(deny=("cn.",))}, "constraints"),
        ({"constraints": Constraints(deny=("ioc:cn.r3301",))}, "constraints"),
        ({"constraints": Constraints(allow=("ioc:cn.r3301.20004/gold",))}, "constraints"),
        ({"constraints": Constraints(data_at="cn.r3301.20004")}, "rtt_ms_max counts: give both"),
        (
            {"constraints": Constraints(data_at="cn.r3301", rtt_ms_max=5)},
            "data_at: 'cn.r3301' names no provider",
        ),
        ({"executor": ExecutorStep(runtime="wasm")}, "executor"),
    ],
)
def test_definition_is_refused_and_the_field_named(changes: dict[str, object], said: str) -> None:
    with pytest.raises(BadTask, match=said):
        check_definition(task(**changes))


def test_defaults_are_left_out() -> None:
    assert definition_bytes(task(attempts=3, policy="cost", labels={})) == definition_bytes(task())
    assert decode(definition_bytes(task(resources=Resources(cores=1.0))), TaskDefinition) == task()
    assert definition_bytes(task(attempts=4)) != definition_bytes(task())


def test_definition_that_is_too_large() -> None:
    words = tuple(f"{number:08000}" for number in range(9))
    with pytest.raises(BadTask, match=str(TASK_BYTES_MAX)):
        definition_bytes(task(executor=ExecutorStep(runtime="wasm", program="file:x", command=words)))


def test_states_that_end() -> None:
    states = set(get_args(State))
    assert states > ENDED
    assert {"UNKNOWN", "RUNNING", "CANCELING", "PAUSED", "QUEUED", "INITIALIZING"} == states - ENDED


# -- IDs


def test_task_id_is_a_hash_of_its_parts() -> None:
    data, owner = definition_bytes(task()), public_key("carol")
    expected = hashlib.sha256(len(data).to_bytes(8, "big") + data + owner + NONCE).digest()
    assert task_id_of(data, owner, NONCE) == expected
    assert (
        len({expected, task_id_of(data, public_key("bob"), NONCE), task_id_of(data, owner, NONCE[::-1])}) == 3
    )


@given(st.binary(min_size=32, max_size=32))
@QUICK
def test_task_id_text_and_back(task_id: bytes) -> None:
    assert parse_task_id(format_task_id(task_id)) == task_id


@pytest.mark.parametrize(
    "text", ["", "t", "n" + "a" * 52, "t" + "a" * 51, "t" + "a" * 53, "t" + "a" * 51 + "b", "T" + "a" * 52]
)
def test_bad_task_id(text: str) -> None:
    with pytest.raises(Malformed):
        parse_task_id(text)


# -- orders


def test_order_opens_for_its_owner_only() -> None:
    order = order_of(definition_bytes(task()))
    assert open_order(order, public_key("carol")) == task()
    with pytest.raises(BadTask, match="task ID"):
        open_order(order, public_key("mallory"))


@pytest.mark.parametrize("field", ["task", "definition", "nonce"])
def test_order_that_was_changed(field: str) -> None:
    order = order_of(definition_bytes(task()))
    changed = bytes((getattr(order, field)[0] ^ 1,)) + getattr(order, field)[1:]
    with pytest.raises(BadTask, match="task ID"):
        open_order(replace(order, **{field: changed}), public_key("carol"))


def test_order_with_an_unacceptable_definition() -> None:
    for definition in (
        b"",
        b"\xc1",
        encode({"name": "x"}),
        encode({**msgspec.to_builtins(task()), "hidden": 1}),
        encode(task(outputs=(Output(path="../x"),))),
        encode(task(name="x")) + b"\0",
    ):
        with pytest.raises(BadTask):
            open_order(order_of(definition), public_key("carol"))


@given(st.integers(0, 2**32))
@QUICK
def test_order_with_a_mutated_definition_is_refused_or_valid(seed: int) -> None:
    for definition in mutations(definition_bytes(task()), seed, 20):
        outcome = refused_or(lambda order: open_order(order, public_key("carol")), order_of(definition))
        assert isinstance(outcome, BadTask) or check_definition(outcome) == outcome


# -- usage and receipts


def usage(**changes: object) -> UsageRecord:
    """Bob ran Carol's task for two seconds."""
    plain = UsageRecord(
        task=bytes(32), attempt=1, lease=bytes(32), provider=public_key("bob"), consumer=public_key("carol"),
        cid="ioc:cn.r3301.20004/ai/3301/az1", started_ms=NOW * 1000, ended_ms=NOW * 1000 + 2000, wall_ms=2000,
        core_ms=1900, mib_ms=512_000, bytes_in=10, bytes_out=20, price_micro=36_000, cost_micro=19, state="COMPLETE",
    )  # fmt: skip
    return replace(plain, **changes)


def receipt(value: UsageRecord, by: str = "bob", accepted_by: str = "carol", accepted_ms: int = 1) -> Signed:
    return sign(private_key(accepted_by), Receipt(sign(private_key(by), value), accepted_ms))


def test_good_receipt() -> None:
    assert verify_receipt(receipt(usage())) == usage()


def test_receipt_is_refused() -> None:
    with pytest.raises(BadReceipt, match="provider"):
        verify_receipt(receipt(usage(), by="mallory"))
    with pytest.raises(BadReceipt, match="consumer"):
        verify_receipt(receipt(usage(), accepted_by="mallory"))
    with pytest.raises(BadReceipt, match="ends before"):
        verify_receipt(receipt(usage(ended_ms=0)))
    good = receipt(usage())
    with pytest.raises(BadSignature):
        verify_receipt(replace(good, signature=bytes(64)))
    inner = replace(sign(private_key("bob"), usage()), payload=encode(usage(cost_micro=1)))
    with pytest.raises(BadSignature):
        verify_receipt(sign(private_key("carol"), Receipt(inner, 1)))


def test_a_usage_record_is_not_a_receipt() -> None:
    half = sign(private_key("bob"), usage())
    assert verify_usage(half) == usage()
    with pytest.raises(UnknownType):
        verify_receipt(half)
    with pytest.raises(UnknownType):
        verify_usage(receipt(usage()))


def test_receipt_id_is_that_of_the_usage_record() -> None:
    """Countersigned again later it is the same receipt: nothing is credited twice."""
    first, again = receipt(usage()), receipt(usage(), accepted_ms=2)
    assert first != again
    assert receipt_id(first) == receipt_id(again)
    assert receipt_id(first) != receipt_id(receipt(usage(attempt=2)))
    assert format_receipt_id(receipt_id(first)).startswith("r")


@given(st.integers(0, 2**32))
@QUICK
def test_mutated_receipt_is_refused_or_the_same_record(seed: int) -> None:
    good = receipt(usage())
    for mutant in mutations(encode(good), seed, 20):
        outcome = refused_or(lambda data: verify_receipt(decode(data, Signed)), mutant)
        assert isinstance(outcome, WireError) or outcome == usage()


@pytest.mark.parametrize(
    ("core_ms", "price_micro", "cost"),
    [
        (0, 5, 0),
        (5, 0, 0),
        (1, 1, 1),
        (3_600_000, 7, 7),
        (3_600_001, 7, 8),
        (2**63, 2**63, 2**126 // 3_600_000 + 1),
    ],
)
def test_cost_rounds_up(core_ms: int, price_micro: int, cost: int) -> None:
    assert cost_of(core_ms, price_micro) == cost
