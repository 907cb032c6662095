"""Every body that travels over a link, as one tagged union.

A body is an array whose first element is the type's tag. An unknown tag is refused with `UnknownType`, so that a
newer peer learns at once that it is not understood.
"""

import msgspec

from ioc_wire import bulk, gossip, limits, market, tasks
from ioc_wire.codec import Message, encode
from ioc_wire.errors import Malformed, TooLarge, UnknownType

Body = (
    gossip.PublishHead
    | gossip.WantEntries
    | gossip.PublishEntries
    | gossip.Published
    | gossip.HeadsAnnounced
    | gossip.StatusAnnounced
    | gossip.CompareHeads
    | gossip.HeadsCompared
    | gossip.FetchEntries
    | gossip.EntriesPage
    | gossip.ExchangePeers
    | gossip.PeersKnown
    | market.FindOffers
    | market.OffersFound
    | market.ReserveLease
    | market.LeaseGranted
    | market.ReleaseLease
    | market.MeasureRtt
    | market.RttMeasured
    | tasks.StartTask
    | tasks.TaskStarted
    | tasks.WatchTask
    | tasks.TaskProgress
    | tasks.CancelTask
    | tasks.SettleTask
    | tasks.GrantOutput
    | tasks.Done
    | bulk.RequestTicket
    | bulk.TicketIssued
)

TAGS = {kind.__struct_config__.tag: kind for kind in Body.__args__}
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Body)


def encode_body(message: Message) -> bytes:
    """The bytes of a body; raises `TooLarge` above the frame limit (a local mistake: page the answer)."""
    data = encode(message)
    if len(data) > limits.LINK_FRAME_BYTES_MAX - 64:
        raise TooLarge(f"{type(message).__name__} of {len(data)} bytes does not fit into a frame")
    return data


def decode_body(data: bytes | memoryview) -> Message:
    """Decode and validate a body. Raises `UnknownType` for a tag that is not in the table, else `Malformed`."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        tag = tag_of(data)
        if tag is not None and tag not in TAGS:
            raise UnknownType(f"tag {tag}") from None
        raise Malformed(f"{TAGS[tag].__name__ if tag in TAGS else 'message'}: {error}") from None


def tag_of(data: bytes | memoryview) -> int | None:
    """The integer tag at the front of an array, `None` where there is none."""
    try:
        first = msgspec.msgpack.decode(data, type=list[msgspec.Raw])[0]
        return msgspec.msgpack.decode(first, type=int)
    except (msgspec.MsgspecError, IndexError, UnicodeDecodeError, RecursionError, ValueError):
        return None
