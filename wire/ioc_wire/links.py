"""Frames of a link: many request/response and event streams over one authenticated connection.

Every frame is one message of the carrier: a binary WebSocket message between nodes, a length-prefixed block
on the local control socket. The side that opens a stream numbers it, each side counting up from 1 on its own.
Which side a number belongs to follows from the frame's type: only the opener sends `OpenStream`, `Credit` and
`CancelStream`, and only the answering side sends `Item`, `EndStream` and `FailStream`.

A body is the MessagePack array of one message, its first element an integer tag. Links don't look inside.
"""

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Final, Protocol, get_args

import msgspec

from ioc_wire import limits
from ioc_wire.authority import Role
from ioc_wire.codec import Digest, Key, Message, UInt, decode, encode
from ioc_wire.errors import Malformed, TooLarge, UnknownType
from ioc_wire.signed import Signed, SignedPayload

FRAME_OVERHEAD_BYTES: Final = 32
"""What the largest frame adds to its body, at most."""
BODY_BYTES_MAX: Final = limits.LINK_FRAME_BYTES_MAX - FRAME_OVERHEAD_BYTES
DETAIL_CHARS_MAX: Final = 1024

Body = Annotated[bytes, msgspec.Meta(max_length=BODY_BYTES_MAX)]
CreditCount = Annotated[int, msgspec.Meta(ge=1, le=limits.LINK_STREAM_CREDIT_MAX)]
Detail = Annotated[str, msgspec.Meta(max_length=DETAIL_CHARS_MAX)]
ListenPort = Annotated[int, msgspec.Meta(ge=1, le=65535)]
ListenHost = Annotated[str, msgspec.Meta(max_length=253)]
RoleClaims = Annotated[tuple[Role, ...], msgspec.Meta(max_length=8)]


class OpenStream(Message, tag=1, frozen=True):
    """Ask something; the answering side may send `credit` items before it is given more."""

    stream: UInt
    credit: CreditCount
    body: Body


class Item(Message, tag=2, frozen=True):
    """One item of an answer. Costs one credit."""

    stream: UInt
    body: Body


class EndStream(Message, tag=3, frozen=True):
    """The answer is complete. A body that is not empty is its last item (costs no credit)."""

    stream: UInt
    body: Body = b""


class FailStream(Message, tag=4, frozen=True):
    """The answer is a refusal: a code of the table in `ioc_wire.errors`, and one line."""

    stream: UInt
    code: UInt
    detail: Detail = ""


class CancelStream(Message, tag=5, frozen=True):
    """The opener no longer wants the answer. Nothing is answered; frames on their way are ignored."""

    stream: UInt


class Credit(Message, tag=6, frozen=True):
    """The answering side may send `count` more items."""

    stream: UInt
    count: CreditCount


class Notify(Message, tag=7, frozen=True):
    """One-way message; may be dropped by a receiver that is behind."""

    body: Body


class Heartbeat(Message, tag=8, frozen=True):
    """Sent when nothing was heard for a while; answered by `HeartbeatAck`."""


class HeartbeatAck(Message, tag=9, frozen=True):
    """Answer to `Heartbeat`."""


Frame = OpenStream | Item | EndStream | FailStream | CancelStream | Credit | Notify | Heartbeat | HeartbeatAck


# -- handshake, inside the TLS channel: ServerHello, ClientHello, Welcome; or Refusal instead of the next one


class Listen(Message, frozen=True):
    """Where a node takes links. An empty host means: the address that this connection comes from."""

    host: ListenHost
    port: ListenPort


class ServerHello(Message, tag=16, frozen=True):
    """First message, from the accepting side. `key` is also the key of its TLS certificate."""

    version: UInt
    network_id: Digest
    key: Key
    nonce: Digest
    roles: RoleClaims
    chain: Annotated[tuple[Signed, ...], msgspec.Meta(max_length=limits.CHAIN_LINKS_MAX)] = ()


class ClientProof(SignedPayload, frozen=True):
    """What the dialing side signs with its node key.

    It is bound to one connection by the accepting side's fresh nonce and by the key that the TLS channel has
    authenticated, so that neither a replay nor a relay through a third node verifies.
    """

    kind: ClassVar[str] = "link-proof"
    network_id: Digest
    server_nonce: Digest
    server_key: Key
    roles: RoleClaims
    listen: Listen | None = None


class ClientHello(Message, tag=17, frozen=True):
    """Second message: the dialing side's signed `ClientProof` and its delegation chain."""

    version: UInt
    proof: Signed
    chain: Annotated[tuple[Signed, ...], msgspec.Meta(max_length=limits.CHAIN_LINKS_MAX)] = ()


class Welcome(Message, tag=18, frozen=True):
    """Third message: the link is up."""


class Refusal(Message, tag=19, frozen=True):
    """Either side ends the handshake, and says why."""

    code: UInt
    detail: Detail = ""


Handshake = ServerHello | ClientHello | Welcome | Refusal

_FRAME: Any = Frame
_HANDSHAKE: Any = Handshake


def decode_frame(data: bytes) -> Frame:
    """Raises `TooLarge` or `Malformed`."""
    frame: Frame = decode(data, _FRAME, size_max=limits.LINK_FRAME_BYTES_MAX)
    return frame


def decode_handshake(data: bytes) -> Handshake:
    """Raises `TooLarge` or `Malformed`."""
    message: Handshake = decode(data, _HANDSHAKE, size_max=limits.LINK_FRAME_BYTES_MAX)
    return message


class BodyCodec(Protocol):
    """Bodies to bytes and back. `decode` raises nothing but wire errors; `encode` raises `TooLarge`."""

    def encode(self, message: Message) -> bytes: ...

    def decode(self, data: bytes) -> Message: ...


class UnionCodec:
    """A `BodyCodec` over a closed union of integer-tagged messages: `UnionCodec(Ping | Pong)`."""

    def __init__(self, union: Any) -> None:
        members = get_args(union) or (union,)
        self._tags = _tags_of(members)
        self._union = union

    def encode(self, message: Message) -> bytes:
        if self._tags.get(message.__struct_config__.tag) is not type(message):
            raise TypeError(f"{type(message).__name__} is no member of this codec's union")
        data = encode(message)
        if len(data) > BODY_BYTES_MAX:
            raise TooLarge(f"{type(message).__name__} of {len(data)} bytes, a link carries {BODY_BYTES_MAX}")
        return data

    def decode(self, data: bytes) -> Message:
        """Raises `UnknownType` for a tag outside of the union, `TooLarge` or `Malformed`."""
        try:
            message: Message = decode(data, self._union, size_max=BODY_BYTES_MAX)
        except Malformed:
            tag = _tag_in(data)
            if tag is not None and tag not in self._tags:
                raise UnknownType(f"tag {tag}") from None
            raise
        return message


def _tags_of(members: Iterable[type[Message]]) -> dict[Any, type[Message]]:
    tags: dict[Any, type[Message]] = {}
    for member in members:
        tag = member.__struct_config__.tag
        if not isinstance(tag, int) or tag in tags:
            raise TypeError(f"{member.__name__} needs an integer tag of its own, not {tag!r}")
        tags[tag] = member
    return tags


def _tag_in(data: bytes) -> int | None:
    """The tag that a body begins with, also where it belongs to no known type."""
    try:
        items = msgspec.msgpack.decode(data, type=list[msgspec.Raw])
        return msgspec.msgpack.decode(items[0], type=int) if items else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError):
        return None
