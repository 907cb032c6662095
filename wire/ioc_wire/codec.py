"""MessagePack encoding shared by all structs: arrays on the wire, validated while they are decoded.

`Message` is array-shaped: fields in order, unknown trailing fields ignored, so that a later version can add some.
`Document` is map-shaped: what people write (TOML) and what is hashed for an identity. An unknown key is refused,
because running a task without understanding all of it would not be running that task.

Neither can be part of a cycle: both are frozen, made of values. So no garbage collection looks at them (`gc=False`),
however many a core node holds or decodes.
"""

import functools
from typing import Annotated, Any, TypeVar

import msgspec

from ioc_wire import limits
from ioc_wire.errors import Malformed, TooLarge

Key = Annotated[bytes, msgspec.Meta(min_length=limits.KEY_BYTES, max_length=limits.KEY_BYTES)]
"""An Ed25519 or X25519 public key."""
Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
"""A SHA-256 or BLAKE3 digest."""
Signature = Annotated[
    bytes, msgspec.Meta(min_length=limits.SIGNATURE_BYTES, max_length=limits.SIGNATURE_BYTES)
]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
UInt = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Host = Annotated[str, msgspec.Meta(min_length=1, max_length=253)]
ShortText = Annotated[str, msgspec.Meta(max_length=256)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class Message(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Base of everything that travels."""


class Document(
    msgspec.Struct, frozen=True, gc=False, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Base of what people write in TOML or JSON and what is identified by its hash."""


_encoder = msgspec.msgpack.Encoder()
_T = TypeVar("_T")


def encode(value: Any) -> bytes:
    """The MessagePack bytes of a struct (or a tuple of structs)."""
    return _encoder.encode(value)


@functools.cache
def _decoder(kind: Any) -> Any:
    return msgspec.msgpack.Decoder(kind)


def decode(
    data: bytes | bytearray | memoryview, kind: type[_T], *, size_max: int = limits.LINK_FRAME_BYTES_MAX
) -> _T:
    """Decode and validate in one step.

    Raises `TooLarge` above `size_max` bytes and `Malformed` for everything else that is wrong with `data`.
    """
    if len(data) > size_max:
        raise TooLarge(f"{len(data)} bytes, at most {size_max} are allowed")
    try:
        decoder: Any = _decoder(kind)  # type: ignore[arg-type]  # types and unions are hashable
        value: _T = decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise Malformed(f"{_name(kind)}: {error}") from None
    return value


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", "message")
