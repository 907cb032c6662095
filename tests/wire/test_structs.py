"""What holds for every struct: it round-trips, others read it, and hostile bytes end in a `WireError` or a value."""

import random
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgpack  # type: ignore[import-untyped]
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ioc_wire import codec, dht, messages
from ioc_wire.errors import Malformed, TooLarge, UnknownType, WireError
from tests.wire.structs import all_structs, decoders, of_struct, refused_or, struct_name, unions

STRUCTS: Final = all_structs()
DECODERS: Final = decoders()
UNIONS: Final = unions()

_CHECKS: Final = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
QUICK: Final = settings(
    max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=_CHECKS
)
LONG: Final = settings(max_examples=400, deadline=None, database=None, suppress_health_check=_CHECKS)
DEPTH_HOSTILE: Final = 100_000


def lists(value: Any) -> Any:
    """`value` with tuples as lists: msgpack knows only arrays."""
    if isinstance(value, tuple | list):
        return [lists(item) for item in value]
    if isinstance(value, dict):
        return {lists(key): lists(item) for key, item in value.items()}
    return value


def mutations(data: bytes, seed: int, count: int) -> Iterator[bytes]:
    """Truncations, extensions, flipped and foreign bytes, doubled and missing slices of `data`."""
    chance = random.Random(seed)
    for _ in range(count):
        mutant = bytearray(data)
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(mutant) + 1)
            match chance.randrange(6):
                case 0:
                    del mutant[at:]
                case 1:
                    mutant += chance.randbytes(chance.randrange(1, 9))
                case 2:
                    mutant[at : at + 1] = bytes((chance.randrange(256),))
                case 3:
                    mutant[at : at + 1] = (
                        bytes((mutant[at] ^ 1 << chance.randrange(8),)) if at < len(mutant) else b""
                    )
                case 4:
                    mutant[at:at] = mutant[at : at + chance.randrange(1, 17)]
                case _:
                    del mutant[at : at + chance.randrange(1, 9)]
        yield bytes(mutant)


def check_value(kind: type[msgspec.Struct], value: Any) -> None:
    """A value that came out of a decoder is stable: it encodes, and decodes to itself."""
    data = codec.encode(value)
    again = codec.decode(data, kind)
    assert again == value
    assert codec.encode(again) == data


def check_round_trip(kind: type[msgspec.Struct], value: Any) -> None:
    data = codec.encode(value)
    assert codec.decode(data, kind) == value
    assert codec.decode(memoryview(bytearray(data)), kind) == value
    unpacked = msgpack.unpackb(data, raw=False)
    assert unpacked == lists(msgspec.to_builtins(value, builtin_types=(bytes,)))
    assert refused_or(lambda d: codec.decode(d, kind, size_max=len(data) - 1), data).code == TooLarge.code


def check_hostile(kind: type[msgspec.Struct], value: Any, seed: int) -> None:
    data = codec.encode(value)
    for mutant in mutations(data, seed, 24):
        outcome = refused_or(lambda d: codec.decode(d, kind), mutant)
        if not isinstance(outcome, WireError):
            check_value(kind, outcome)
    for end in range(0, len(data), max(1, len(data) // 32)):
        assert isinstance(refused_or(lambda d: codec.decode(d, kind), data[:end]), Malformed)
    assert isinstance(refused_or(lambda d: codec.decode(d, kind), data + b"\xc0"), Malformed)


def check_everything(kind: type[msgspec.Struct], value: Any, seed: int) -> None:
    check_round_trip(kind, value)
    check_hostile(kind, value, seed)


@pytest.mark.parametrize("name", STRUCTS)
def test_struct(name: str) -> None:
    """Round trip, independent reader, mutations, truncations, trailing bytes."""
    kind = STRUCTS[name]
    QUICK(given(st.just(kind), of_struct(kind), st.integers(0, 2**32))(check_everything))()


@pytest.mark.slow
@pytest.mark.parametrize("name", STRUCTS)
def test_struct_at_length(name: str) -> None:
    kind = STRUCTS[name]
    LONG(given(st.just(kind), of_struct(kind), st.integers(0, 2**32))(check_everything))()


# -- hostile bytes, all decoders

HOSTILE: Final = {
    "nothing": b"",
    "never used type byte": b"\xc1",
    "array of 4 billion": b"\xdd\xff\xff\xff\xff",
    "map of 4 billion": b"\xdf\xff\xff\xff\xff",
    "bytes of 4 billion": b"\xc6\xff\xff\xff\xff",
    "text of 4 billion": b"\xdb\xff\xff\xff\xff",
    "extension of 4 billion": b"\xc9\xff\xff\xff\xff\x01",
    "deep arrays": b"\x91" * DEPTH_HOSTILE + b"\xc0",
    "deep maps": b"\x81\xa1x" * DEPTH_HOSTILE + b"\xc0",
    "deep ignored field": b"\x9f\x01" + b"\x00" * 13 + b"\x91" * DEPTH_HOSTILE + b"\xc0",
    "map with an array as key": b"\x81\x91\x01\x01",
    "map with a map as key": b"\x81\x81\x01\x01\x01",
    "map with bytes as key": b"\x81\xc4\x01\x00\x01",
    "map with a number as key": b"\x81\x01\x01",
    "text that is not UTF-8": b"\x91\xa2\xff\xfe",
    "surrogate in a text": b"\x91\xa3\xed\xa0\x80",
    "surrogate in a key": b"\x81\xa3\xed\xa0\x80\x01",
    "timestamp out of range": b"\x91\xc7\x0c\xff" + b"\xff" * 12,
    "timestamp of odd length": b"\xc7\x05\xff" + b"\xff" * 5,
    "NaN": b"\x91\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",
    "largest tag": b"\x91\xcf" + b"\xff" * 8,
    "negative tag": b"\x91\xff",
    "tag is a float": b"\x91\xcb\x3f\xf0\x00\x00\x00\x00\x00\x00",
    "tag is true": b"\x91\xc3",
    "tag is text": b"\x91\xa1\x01",
    "two values": b"\x90\x90",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_bytes_are_refused_or_a_value(what: str) -> None:
    for decoder in DECODERS.values():
        refused_or(decoder, HOSTILE[what])


@pytest.mark.parametrize("name", DECODERS)
def test_garbage_is_refused_or_a_value(name: str) -> None:
    chance = random.Random(name)
    for _ in range(300):
        refused_or(DECODERS[name], chance.randbytes(chance.randrange(48)))
    for length in (182, 192, 400, 1200):
        refused_or(DECODERS[name], chance.randbytes(length))


@pytest.mark.slow
@given(st.sampled_from(sorted(DECODERS)), st.binary(max_size=2000))
@settings(LONG, max_examples=50_000)
def test_garbage_at_length(name: str, data: bytes) -> None:
    refused_or(DECODERS[name], data)


# -- tagged unions


@pytest.mark.parametrize("union", UNIONS)
def test_tags_are_small_and_unique(union: str) -> None:
    tags = [kind.__struct_config__.tag for kind in UNIONS[union][1]]
    assert all(isinstance(tag, int) and 1 <= tag <= 127 for tag in tags)
    assert len(set(tags)) == len(tags)


def test_every_tagged_struct_is_in_a_union() -> None:
    tagged = {name for name, kind in STRUCTS.items() if kind.__struct_config__.tag is not None}
    members = {struct_name(kind) for _, kinds in UNIONS.values() for kind in kinds}
    assert tagged == members


def union_cases() -> list[Any]:
    return [
        pytest.param(decoder, kind, id=f"{name}-{kind.__name__}")
        for name, (decoder, kinds) in UNIONS.items()
        for kind in kinds
    ]


@pytest.mark.parametrize(("decoder", "kind"), union_cases())
def test_union_tells_its_members_apart(decoder: Callable[[bytes], Any], kind: type[msgspec.Struct]) -> None:
    def check(value: Any, seed: int) -> None:
        data = codec.encode(value)
        assert decoder(data) == value
        assert type(decoder(data)) is kind
        for mutant in mutations(data, seed, 16):
            outcome = refused_or(decoder, mutant)
            if not isinstance(outcome, WireError):
                check_value(type(outcome), outcome)

    settings(QUICK, max_examples=3)(given(of_struct(kind), st.integers(0, 2**32))(check))()


@pytest.mark.parametrize("tag", [0, 99, 127, 128, 65_536, 2**64 - 1])
def test_unknown_body_is_refused_by_its_own_name(tag: int) -> None:
    with pytest.raises(UnknownType, match=str(tag)):
        messages.NODE_CODEC.decode(msgpack.packb([tag, b"from the future"]))


def test_unknown_dht_request_can_still_be_answered() -> None:
    assert dht.unknown_request(msgpack.packb([99, 7, "more"])) == 7
    assert dht.unknown_request(msgpack.packb([1, 7])) is None
    assert dht.unknown_request(b"\xc1") is None


# -- evolution


@pytest.mark.parametrize(
    "name", [name for name, kind in STRUCTS.items() if kind.__struct_config__.array_like]
)
def test_a_later_field_is_ignored(name: str) -> None:
    kind = STRUCTS[name]

    def check(value: Any) -> None:
        fields = msgpack.unpackb(codec.encode(value), raw=False)
        assert codec.decode(msgpack.packb([*fields, {"later": [1, 2]}]), kind) == value

    settings(QUICK, max_examples=2)(given(of_struct(kind))(check))()


@pytest.mark.parametrize(
    "name", [name for name, kind in STRUCTS.items() if not kind.__struct_config__.array_like]
)
def test_an_unknown_key_is_refused(name: str) -> None:
    kind = STRUCTS[name]

    def check(value: Any) -> None:
        fields = msgpack.unpackb(codec.encode(value), raw=False)
        with pytest.raises(Malformed, match="later"):
            codec.decode(msgpack.packb({**fields, "later": 1}), kind)

    settings(QUICK, max_examples=2)(given(of_struct(kind))(check))()


def test_structs_are_frozen() -> None:
    assert [name for name, kind in STRUCTS.items() if not kind.__struct_config__.frozen] == []


def takes(kind: Any, value: Any) -> bool:
    """Whether a field of type `kind` accepts `value`."""
    try:
        msgspec.msgpack.decode(msgpack.packb(value), type=kind)
    except msgspec.ValidationError:
        return False
    return True


def fields_of_type(text: str) -> list[tuple[str, Any]]:
    return [
        (f"{name}.{field.name}", field.type)
        for name, kind in STRUCTS.items()
        for field in msgspec.structs.fields(kind)
        if text in str(field.type).replace("uint", "")
    ]


def test_floats_are_finite() -> None:
    """Somebody downstream turns them into integers, which NaN and infinity refuse with another error."""
    odd = (float("inf"), float("-inf"), float("nan"))
    floats = fields_of_type("float")
    assert floats
    assert [name for name, kind in floats for value in odd if takes(kind, value)] == []


def test_integers_fit_into_a_database() -> None:
    """SQLite and NumPy hold 64 bits with sign; one more is an `OverflowError` far from the wire."""
    integers = fields_of_type("int")
    assert integers
    assert [name for name, kind in integers for value in (2**63, -(2**63)) if takes(kind, value)] == []
