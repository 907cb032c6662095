"""What a node and the process that moves its bulk data say to each other, on a link over a socket pair.

Both are the same program, started by the same user; the pair is theirs alone. Wire errors travel as on any link, errors
of the node (`NodeError`) as `Fault`.
"""

from typing import Final, TypeVar

from ioc_node.core.bandwidth import Ceilings, Traffic, Use
from ioc_node.errors import NodeError, PeerUnreachable, error_named
from ioc_node.runtime.link_mux import Link, LinkSettings, PeerIdentity
from ioc_wire.bulk import Endpoint, Ticket
from ioc_wire.codec import Message
from ioc_wire.errors import Malformed
from ioc_wire.identity import NodeId
from ioc_wire.links import UnionCodec

PIECE_BYTES: Final = 128 << 10
"""A stream of a blob is passed on in pieces of so many bytes; six of each stream may wait (`SETTINGS`)."""
SETTINGS: Final = LinkSettings(heartbeat_seconds=30.0, stall_seconds=300.0, stream_credit=6)
OTHER_END: Final = PeerIdentity(key=b"", node_id=NodeId(b""))

_M = TypeVar("_M", bound=Message)


class Fault(Message, tag=1, frozen=True):
    """An answer: a `NodeError` by the name of its class, and its line."""

    name: str
    text: str


class Done(Message, tag=2, frozen=True):
    """An answer: it is done."""


# -- from the node


class Bandwidths(Message, tag=3, frozen=True):
    """Ceilings and weights from now on. Answer: `Done`."""

    sending: Ceilings
    receiving: Ceilings
    weights: dict[Traffic, float]


class HurryTransfer(Message, tag=28, frozen=True):
    """See `DataPlane.hurry`. Answer: `Done`."""

    peer: bytes
    name: bytes | None
    factor: float


class OpenPlane(Message, tag=4, frozen=True):
    """The first message. Answer: `Done` once readers are answered."""

    key: bytes
    """The node's Ed25519 seed, 32 bytes."""
    folder: bytes
    engine: str
    connections_max: int
    addresses: tuple[str, ...]
    bandwidths: Bandwidths


class GatherBlob(Message, tag=5, frozen=True):
    """Have a blob in the store. Answer: a stream of `Progress`, then `BlobGathered` or `Fault`."""

    number: int
    """Of this transfer, in `RenewTicket`."""
    tickets: tuple[Ticket, ...]
    renewable: tuple[bool, ...]
    traffic: Traffic


class Progress(Message, tag=6, frozen=True):
    """Bytes that are here, of all."""

    here: int
    total: int


class BlobGathered(Message, tag=7, frozen=True):
    """`kept` and `came_by` say for each source how many bytes it gave, and by which path."""

    size: int
    resumed: int
    kept: tuple[int, ...]
    came_by: tuple[dict[str, int], ...]


class FetchSmall(Message, tag=8, frozen=True):
    """Have small blobs in the store, whose room is reserved. Answer: `SmallFetched` or `Fault`."""

    number: int
    tickets: tuple[Ticket, ...]


class SmallFetched(Message, tag=9, frozen=True):
    """`missed`: blob, code and detail of the wire error."""

    missed: tuple[tuple[bytes, int, str], ...]


class ReadBlob(Message, tag=10, frozen=True):
    """Bytes of a blob in order. Answer: a stream of `Piece`, a `Fault` last where it failed."""

    number: int
    tickets: tuple[Ticket, ...]
    renewable: tuple[bool, ...]
    start: int
    stop: int | None
    ahead: int


class Piece(Message, tag=11, frozen=True):
    """At most `PIECE_BYTES`, verified."""

    data: bytes


class ServeReader(Message, tag=12, frozen=True):
    """Call a reader, or with `through_relay` wait for it at a relay; `secret` is the call or the token. Answer: `Done`
    or `Fault`."""

    host: str
    port: int
    reader: bytes
    secret: bytes
    through_relay: bool


class RevokeTickets(Message, tag=13, frozen=True):
    """These are no longer good. Answer: `Done`."""

    digests: tuple[bytes, ...]


class AwaitEnd(Message, tag=29, frozen=True):
    """Of a `GatherBlob` or `FetchSmall` that was cancelled. Answer: `Done` once it writes nothing any more."""

    number: int


class ExportBlob(Message, tag=30, frozen=True):
    """Write a verified copy of a blob that is here to the file `target` (as the file system has it). Answer: `Done` or
    `Fault`."""

    number: int
    blob: bytes
    target: bytes


class GetUses(Message, tag=14, frozen=True):
    """Answer: `Uses`."""


class Uses(Message, tag=15, frozen=True):
    """Who uses what now."""

    sending: tuple[Use, ...]
    receiving: tuple[Use, ...]


# -- to the node


class ReserveRoom(Message, tag=16, frozen=True):
    """A blob of so many bytes begins. Answer: `Done` or `Fault`."""

    blob: bytes
    size: int


class FindTickets(Message, tag=17, frozen=True):
    """By the digests of their secrets. Answer: `TicketsFound`."""

    digests: tuple[bytes, ...]


class TicketsFound(Message, tag=18, frozen=True):
    """Those that are out, and what for."""

    tickets: tuple[tuple[Ticket, Traffic], ...]


class UseUpTickets(Message, tag=19, frozen=True):
    """They were good for one reading, which they had. Answer: `Done`."""

    digests: tuple[bytes, ...]


class RenewTicket(Message, tag=20, frozen=True):
    """Of a source of a transfer. Answer: `TicketRenewed` or `Fault`."""

    number: int
    source: int


class TicketRenewed(Message, tag=21, frozen=True):
    """What the holder gave."""

    ticket: Ticket


class MeetHolder(Message, tag=22, frozen=True):
    """See `Arranger.arrange`. Answer: a stream that begins with `Done` (it calls), `RelayTaken` or `Fault`; what was
    arranged stays until the stream is left."""

    holder: bytes
    endpoint: Endpoint
    call: bytes


class RelayTaken(Message, tag=23, frozen=True):
    """Where to go."""

    host: str
    port: int
    token: bytes


class Counted(Message, tag=24, frozen=True):
    """What was counted since the last time, by the names of `BulkCounters`, and readers connected. Answer: `Done`."""

    more: dict[str, int]
    connections: int


class AskLeave(Message, tag=25, frozen=True):
    """There is nothing to do: may this process end? Answer: `Done`, or `Busy`."""


class Touched(Message, tag=26, frozen=True):
    """A notice: a blob is used."""

    blob: bytes


class Missing(Message, tag=27, frozen=True):
    """A notice: a blob is not on the disk any more, or was set aside."""

    blob: bytes


PLANE_CODEC: Final = UnionCodec(
    Fault
    | Done
    | Bandwidths
    | HurryTransfer
    | OpenPlane
    | GatherBlob
    | Progress
    | BlobGathered
    | FetchSmall
    | SmallFetched
    | ReadBlob
    | Piece
    | ServeReader
    | RevokeTickets
    | AwaitEnd
    | ExportBlob
    | GetUses
    | Uses
    | ReserveRoom
    | FindTickets
    | TicketsFound
    | UseUpTickets
    | RenewTicket
    | TicketRenewed
    | MeetHolder
    | RelayTaken
    | Counted
    | AskLeave
    | Touched
    | Missing
)


class PlaneLost(PeerUnreachable):
    """The process at the other end is gone, or not there yet."""


def lost(error: PeerUnreachable) -> PlaneLost:
    """What a broken link means here."""
    return PlaneLost(f"the bulk process has ended: {error}")


def fault_of(error: NodeError) -> Fault:
    """How an error travels."""
    return Fault(type(error).__name__, str(error))


def checked(message: Message, expected: type[_M]) -> _M:
    """The answer, of type `expected`. Raises the `NodeError` that it is instead, or `Malformed`."""
    if isinstance(message, Fault):
        raise error_named(message.name, message.text)
    if not isinstance(message, expected):
        raise Malformed(f"expected {expected.__name__}, got {type(message).__name__}")
    return message


async def ask(link: Link, message: Message, expected: type[_M]) -> _M:
    """The other end's answer. Raises what it raised, or `PlaneLost`."""
    try:
        answer = await link.request(message)
    except PeerUnreachable as error:
        raise lost(error) from None
    return checked(answer, expected)
