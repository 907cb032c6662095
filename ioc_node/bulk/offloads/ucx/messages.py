"""What two nodes say over UCX: the messages of a bulk stream (`ioc_wire.bulk`), each in an active message of its own.

    reader                              holder
    Hello(version, ticket digest)  →
                                   ←    Challenge(nonce)
    Claim(secret, key, signature)  →                                  signed for this road: see `own_nonce`
                                   ←    Accept(size, chunks) | Refusal(code, detail)
    WantHashes()                   →
                                   ←    Hashes(start, digests) …
    Want(ranges, credit)           →                                  at most `WINDOW` chunks asked for at a time
                                   ←    chunk …                       one offer for each, in order

A chunk's bytes stay at the holder until the reader fetches them.
"""

from typing import Final, TypeVar

from blake3 import blake3

from ioc_node.bulk.offloads.ucx.conversation import SLOTS, UcxConversation
from ioc_wire.bulk import FRAME_HEADER, BulkMessage, Refusal, decode_frame, decode_frame_header, encode_frame
from ioc_wire.errors import Malformed, error_of

WINDOW: Final = SLOTS
"""Chunks that a reader may have asked for and not received."""

_M = TypeVar("_M", bound=BulkMessage)


def own_nonce(nonce: bytes) -> bytes:
    """The nonce that a claim over UCX is signed for: no claim made here is good over QUIC, nor the other way round."""
    return blake3(b"ioc/1 ucx" + nonce).digest()


async def send(conversation: UcxConversation, message: BulkMessage) -> None:
    """Send one message."""
    await conversation.send_message(encode_frame(message))


def decode(data: bytes) -> BulkMessage:
    """The message in an active message's bytes. A `Refusal` is raised as what it says; raises a `WireError`."""
    if len(data) < FRAME_HEADER.size:
        raise Malformed(f"a message of {len(data)} bytes")
    kind, length = decode_frame_header(data[: FRAME_HEADER.size])
    if length != len(data) - FRAME_HEADER.size:
        raise Malformed(f"{len(data) - FRAME_HEADER.size} bytes after a header that says {length}")
    message = decode_frame(kind, data[FRAME_HEADER.size :])
    if isinstance(message, Refusal):
        raise error_of(message.code, message.detail)
    return message


async def receive(conversation: UcxConversation, expected: type[_M]) -> _M:
    """The next message, which must be an `expected`. Raises a `WireError` or `UcxBroken`."""
    message = decode(await conversation.receive_message())
    if not isinstance(message, expected):
        raise Malformed(f"expected {expected.__name__}, got {type(message).__name__}")
    return message
