"""Frames of a bulk stream on a channel."""

from typing import TypeVar

from ioc_node.bulk.quic import Channel
from ioc_wire.bulk import (
    FRAME_HEADER,
    BulkMessage,
    Call,
    Hello,
    Refusal,
    decode_frame,
    decode_frame_header,
    encode_frame,
)
from ioc_wire.errors import Malformed, WireError, error_of

_M = TypeVar("_M", bound=BulkMessage)


async def send_message(channel: Channel, message: BulkMessage) -> None:
    """Send one frame."""
    await channel.send_all(encode_frame(message))


async def receive_frame(channel: Channel) -> tuple[int, bytes]:
    """Type and payload of the next frame; its length is checked before the payload is waited for."""
    header = await channel.receive_exactly(FRAME_HEADER.size)
    kind, length = decode_frame_header(header)
    return kind, await channel.receive_exactly(length)


async def receive_first(channel: Channel) -> Hello | Call:
    """The first frame on a connection that a peer has opened."""
    message = decode_frame(*await receive_frame(channel))
    if not isinstance(message, (Hello, Call)):
        raise Malformed(f"expected Hello or Call, got {type(message).__name__}")
    return message


async def receive_message(channel: Channel, expected: type[_M]) -> _M:
    """The next frame, which must hold `expected`. A `Refusal` is raised as what it says."""
    kind, payload = await receive_frame(channel)
    message = decode_frame(kind, payload)
    if isinstance(message, Refusal):
        raise error_of(message.code, message.detail)
    if not isinstance(message, expected):
        raise Malformed(f"expected {expected.__name__}, got {type(message).__name__}")
    return message


async def refuse(channel: Channel, error: WireError) -> None:
    """Say no and why, and let it arrive."""
    await send_message(channel, Refusal(error.code, error.detail[:200]))
    channel.finish_nowait()
    await channel.aclose(error.text)
