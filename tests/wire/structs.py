"""Every struct of `ioc_wire`, found by itself, and a Hypothesis strategy for each, derived from its types.

A message added tomorrow is tested tomorrow: nothing here lists one by name.
"""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec
from hypothesis import strategies as st
from msgspec import inspect as mi

import ioc_wire
from ioc_wire import bulk, codec, dht, links, messages, signed
from ioc_wire.errors import WireError

BASES: Final = (codec.Message, codec.Document, signed.SignedPayload)
INTEGER_MIN: Final = -(2**63)
INTEGER_MAX: Final = 2**64 - 1
ITEMS_MAX: Final = 3
"""Longest generated sequence where a type allows a longer one."""


def modules() -> list[Any]:
    """All modules of the package."""
    return [
        importlib.import_module(f"ioc_wire.{found.name}") for found in pkgutil.iter_modules(ioc_wire.__path__)
    ]


def struct_name(kind: type[msgspec.Struct]) -> str:
    """`dht.Ping`: names repeat between modules."""
    return f"{kind.__module__.removeprefix('ioc_wire.')}.{kind.__name__}"


def all_structs() -> dict[str, type[msgspec.Struct]]:
    """Every public struct by its name."""
    found = {}
    for module in modules():
        for value in vars(module).values():
            is_struct = isinstance(value, type) and issubclass(value, msgspec.Struct)
            if is_struct and value.__module__ == module.__name__ and not value.__name__.startswith("_"):
                found[struct_name(value)] = value
    return {name: kind for name, kind in sorted(found.items()) if kind not in BASES}


# -- strategies

_text = st.characters(codec="utf-8")


def _sizes(kind: Any, fallback_max: int) -> dict[str, Any]:
    low = kind.min_length or 0
    high = fallback_max if kind.max_length is None else min(kind.max_length, max(low, fallback_max))
    return {"min_size": low, "max_size": high}


def _integers(kind: mi.IntType) -> st.SearchStrategy[int]:
    low, high = INTEGER_MIN, INTEGER_MAX
    if kind.ge is not None:
        low = kind.ge
    if kind.gt is not None:
        low = kind.gt + 1
    if kind.le is not None:
        high = kind.le
    if kind.lt is not None:
        high = kind.lt - 1
    return st.integers(low, high)


def _floats(kind: mi.FloatType) -> st.SearchStrategy[float]:
    low = kind.ge if kind.ge is not None else kind.gt
    high = kind.le if kind.le is not None else kind.lt
    return st.floats(
        low,
        high,
        exclude_min=kind.gt is not None,
        exclude_max=kind.lt is not None,
        allow_nan=False,
        allow_infinity=False,
    )


def _struct(kind: mi.StructType) -> st.SearchStrategy[Any]:
    return st.deferred(lambda: of_struct(kind.cls))


_BUILDERS: Final[dict[type, Callable[[Any], st.SearchStrategy[Any]]]] = {
    mi.IntType: _integers,
    mi.FloatType: _floats,
    mi.BoolType: lambda kind: st.booleans(),
    mi.NoneType: lambda kind: st.none(),
    mi.StrType: lambda kind: st.text(_text, **_sizes(kind, 12)),
    mi.BytesType: lambda kind: st.binary(**_sizes(kind, 40)),
    mi.LiteralType: lambda kind: st.sampled_from(kind.values),
    mi.UnionType: lambda kind: st.one_of([of_type(member) for member in kind.types]),
    mi.VarTupleType: lambda kind: st.lists(of_type(kind.item_type), **_sizes(kind, ITEMS_MAX)).map(tuple),
    mi.TupleType: lambda kind: st.tuples(*(of_type(item) for item in kind.item_types)),
    mi.DictType: lambda kind: st.dictionaries(
        of_type(kind.key_type), of_type(kind.value_type), max_size=ITEMS_MAX
    ),
    mi.StructType: _struct,
}


def of_type(kind: mi.Type) -> st.SearchStrategy[Any]:
    """A strategy for one field's type. Unknown kinds of type raise: this table must then learn them."""
    if isinstance(kind, mi.Metadata):
        return of_type(kind.type)
    return _BUILDERS[type(kind)](kind)


_cache: dict[type, st.SearchStrategy[Any]] = {}


def of_struct(cls: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Values of a struct, all fields given."""
    if cls not in _cache:
        info = mi.type_info(cls)
        assert isinstance(info, mi.StructType)
        fields = {field.name: of_type(field.type) for field in info.fields}
        _cache[cls] = st.builds(cls, **fields)
    return _cache[cls]


# -- every way from bytes to a value


def decoders() -> dict[str, Callable[[bytes], Any]]:
    """Each decoder of the package by name: one per struct, and those of tagged unions, frames and packets."""
    found: dict[str, Callable[[bytes], Any]] = {
        name: lambda data, kind=kind: codec.decode(data, kind)  # type: ignore[misc]
        for name, kind in all_structs().items()
    }
    for module in modules():
        for name, value in vars(module).items():
            if name.startswith("decode_") and getattr(value, "__module__", "") == module.__name__:
                found[f"{module.__name__.removeprefix('ioc_wire.')}.{name}"] = value
    found["codec.decode"] = lambda data: codec.decode(data, object)
    found["messages.NODE_CODEC"] = messages.NODE_CODEC.decode
    found["dht.unknown_request"] = dht.unknown_request
    found["bulk.decode_frame"] = lambda data: bulk.decode_frame(data[0] if data else 0, data[1:])
    found["bulk.decode_frame_header"] = lambda data: bulk.decode_frame_header(data[:5].ljust(5, b"\0"))
    return found


def unions() -> dict[str, tuple[Callable[[bytes], Any], tuple[type[msgspec.Struct], ...]]]:
    """The decoders of tagged unions with their members."""
    return {
        "dht.decode_message": (dht.decode_message, dht.AnyMessage.__args__),
        "links.decode_frame": (links.decode_frame, links.Frame.__args__),
        "links.decode_handshake": (links.decode_handshake, links.Handshake.__args__),
        "messages.NODE_CODEC": (messages.NODE_CODEC.decode, messages.Body.__args__),
    }


_T = TypeVar("_T")


def refused_or(decoder: Callable[[_T], Any], data: _T) -> Any:
    """What `decoder` makes of `data`, or the `WireError` it refuses it with. Anything else propagates."""
    try:
        return decoder(data)
    except WireError as error:
        return error
