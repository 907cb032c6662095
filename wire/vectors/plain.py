"""Structs as plain JSON values, and one sample of any struct: what the golden vectors are made of."""

import hashlib
from typing import Any, Final

import msgspec
from msgspec import inspect as mi

HEX: Final = "hex:"
"""Byte strings in JSON: this prefix, then lower-case hexadecimal digits."""


def plain(value: Any) -> Any:
    """`value` as JSON: structs are objects of their encoded fields in order, bytes are `hex:` strings."""
    if isinstance(value, bytes):
        return HEX + value.hex()
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in _encoded_fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value


def _encoded_fields(value: msgspec.Struct) -> tuple[str, ...]:
    if value.__struct_config__.array_like:
        return value.__struct_fields__
    return tuple(msgspec.to_builtins(value, builtin_types=(bytes,)))


def sample(cls: type[msgspec.Struct]) -> Any:
    """One value of a struct, every field given, the same on every machine."""
    info = mi.type_info(cls)
    assert isinstance(info, mi.StructType)
    return cls(**{field.name: _of_type(field.type, f"{cls.__name__}.{field.name}") for field in info.fields})


def _digest(seed: str) -> bytes:
    return hashlib.shake_128(seed.encode()).digest(64)


def _integer(kind: mi.IntType, seed: str) -> int:
    low = kind.ge if kind.ge is not None else 0
    high = kind.le if kind.le is not None else (kind.lt - 1 if kind.lt is not None else 2**31)
    return low + _digest(seed)[0] % (min(high - low, 250) + 1)


def _bytes(kind: mi.BytesType, seed: str) -> bytes:
    length = kind.min_length or min(kind.max_length or 6, 6)
    return (_digest(seed) * 2)[:length]


def _text(kind: mi.StrType, seed: str) -> str:
    text = seed.partition(".")[2][: kind.max_length]
    return text if len(text) >= (kind.min_length or 0) else text.ljust(kind.min_length or 0, "x")


def _of_type(kind: Any, seed: str) -> Any:
    match kind:
        case mi.Metadata():
            return _of_type(kind.type, seed)
        case mi.IntType():
            return _integer(kind, seed)
        case mi.FloatType():
            return 1.5
        case mi.BoolType():
            return True
        case mi.StrType():
            return _text(kind, seed)
        case mi.BytesType():
            return _bytes(kind, seed)
        case mi.LiteralType():
            return kind.values[_digest(seed)[0] % len(kind.values)]
        case mi.UnionType():
            given = [member for member in kind.types if not isinstance(member, mi.NoneType)]
            return _of_type(given[0], seed)
        case mi.VarTupleType():
            count = max(1, kind.min_length or 0)
            return tuple(_of_type(kind.item_type, f"{seed}{number}") for number in range(count))
        case mi.TupleType():
            return tuple(_of_type(item, f"{seed}{number}") for number, item in enumerate(kind.item_types))
        case mi.DictType():
            return {_of_type(kind.key_type, f"{seed}key"): _of_type(kind.value_type, f"{seed}value")}
        case mi.StructType():
            return sample(kind.cls)
    raise TypeError(f"no sample for {kind}")
