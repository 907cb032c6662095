"""What goes into the DHT machine and what comes out: events (past facts), effects (commands), reports
(results).
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ioc_node.core.challenge import Address
from ioc_node.core.lookup import Ending
from ioc_node.core.routing import Contact
from ioc_node.core.session import SendDatagram
from ioc_node.core.trust import Ended
from ioc_node.errors import NodeError
from ioc_wire.dht import HolderRecord
from ioc_wire.errors import WireError
from ioc_wire.records import NamedRecord, ResourceRecord
from ioc_wire.signed import Signed

Fault = WireError | NodeError
Chain = tuple[Signed, ...]


# -- events


class DatagramReceived(NamedTuple):
    """`data` came from `address`."""

    data: bytes
    address: Address


class Tick(NamedTuple):
    """The deadline passed."""


class JoinStarted(NamedTuple):
    """Get to know the network through these addresses. Every operation has a number chosen by its caller."""

    operation: int
    addresses: tuple[Address, ...]


class PutStarted(NamedTuple):
    """Store a record at the servers nearest to its key. `chain` is its provider's, empty for self-certified
    names.
    """

    operation: int
    record: Signed
    chain: Chain


class SweepStarted(NamedTuple):
    """Store many records, at most `sweeping.SWEEP_RECORDS_MAX`, each with its provider's chain."""

    operation: int
    records: tuple[tuple[Signed, Chain], ...]


class GetStarted(NamedTuple):
    """Find the record of `cid`, of `min_version` or later, from `answers` servers (the newest one counts). The search
    is noted in `trace` where one is given, so that it can be read also when the get fails or is cancelled.
    """

    operation: int
    cid: str
    min_version: int = 0
    answers: int = 1
    trace: "Trace | None" = None


class WatchStarted(NamedTuple):
    """Tell with `RecordChanged` when the record of `cid` gets a version above `version`, until cancelled."""

    operation: int
    cid: str
    version: int = 0


class FindStarted(NamedTuple):
    """Find the servers nearest to a 32-byte target."""

    operation: int
    target: bytes


class AnnounceStarted(NamedTuple):
    """Tell the servers nearest to a blob that we hold it."""

    operation: int
    holder: Signed


class HoldersStarted(NamedTuple):
    """Find out who holds a blob."""

    operation: int
    blob: bytes


class PingStarted(NamedTuple):
    """Measure the way to a node; without `node_id`, to whoever is at the address."""

    operation: int
    address: Address
    node_id: bytes | None


class RecordsRestored(NamedTuple):
    """Records that this server held before it was restarted."""

    records: tuple[tuple[Signed, Chain], ...]


class KeyRevoked(NamedTuple):
    """`Trust` took in a revocation; this is what it ended."""

    ended: Ended


class ClockRead(NamedTuple):
    """The wall clock shows `unix` seconds since 1970; the machine's own clock may have stood still
    meanwhile.
    """

    unix: float


class OperationCancelled(NamedTuple):
    """Nobody waits for this operation any more."""

    operation: int


Event = (
    DatagramReceived
    | Tick
    | JoinStarted
    | PutStarted
    | SweepStarted
    | GetStarted
    | WatchStarted
    | FindStarted
    | AnnounceStarted
    | HoldersStarted
    | PingStarted
    | OperationCancelled
    | RecordsRestored
    | ClockRead
    | KeyRevoked
)


# -- reports


class Hop(NamedTuple):
    """One request of an operation: whom, at which depth of the search, how long, what was answered, and how often it
    had to be sent.
    """

    contact: Contact
    depth: int
    seconds: float
    outcome: str
    tries: int = 1


@dataclass(slots=True)
class Trace:
    """A search, request by request, and how it ended. `hedged`: others were asked after so many seconds, because the
    first asked were slow.
    """

    hops: list[Hop] = field(default_factory=list)
    ending: Ending | Literal["cancelled"] | None = None
    hedged: float | None = None


@dataclass(slots=True)
class JoinReport:
    """`reached` bootstrap addresses answered, the others failed with these faults; `known` servers after
    that.
    """

    reached: int
    failed: list[tuple[Address, Fault]]
    known: int


@dataclass(slots=True)
class FindReport:
    """The nearest servers that answered."""

    nodes: list[Contact]
    trace: Trace


@dataclass(slots=True)
class PutReport:
    """Who stored it, who refused with which fault, who had not answered when the put ended."""

    stored: list[Contact]
    refused: list[tuple[Contact, Fault]]
    unanswered: list[Contact]
    seconds: float
    trace: Trace


@dataclass(slots=True)
class SweepReport:
    """How many records at least one server stored, and how many fewer than half of those that should; the identifiers
    that none stored; at how many servers each is now (`copies`); the first faults. `messages` are the requests sent,
    those of the `lookups` counted in.
    """

    stored: int
    thin: int
    missed: tuple[str, ...]
    copies: dict[str, int]
    refused: list[tuple[str, Fault]]
    lookups: int
    messages: int
    seconds: float


@dataclass(slots=True)
class GetReport:
    """A verified record and how it was found. `hops` is the depth at which it was, 0 for our own store."""

    record: Signed
    resource: ResourceRecord
    chain: Chain
    holder: Contact
    hops: int
    queried: int
    seconds: float
    trace: Trace


@dataclass(slots=True)
class HoldersReport:
    """Verified announcements, one per holder's key, with the key of each."""

    holders: list[tuple[bytes, HolderRecord]]
    queried: int
    seconds: float
    trace: Trace


@dataclass(slots=True)
class PingReport:
    """Round trip in seconds, and our address as the peer sees it."""

    contact: Contact
    seconds: float
    observed: Address


Report = JoinReport | FindReport | PutReport | SweepReport | GetReport | HoldersReport | PingReport


# -- effects


class OperationEnded(NamedTuple):
    """The operation's report, or the one fault that ended it."""

    operation: int
    result: Report | Fault


class RecordStored(NamedTuple):
    """This node now holds this record for others."""

    key: bytes
    record: Signed
    chain: Chain


class RecordDropped(NamedTuple):
    """This node does not hold this record any more."""

    key: bytes


class RecordChanged(NamedTuple):
    """A watched identifier has this newer record, or was withdrawn: verified, and told once by its operation.
    `holder` told it; this node itself where it is one.
    """

    operation: int
    record: Signed
    resource: NamedRecord
    chain: Chain
    holder: Contact


class PeerVerified(NamedTuple):
    """A server entered the routing table."""

    contact: Contact


class PeerLost(NamedTuple):
    """A server stopped answering and left the routing table."""

    contact: Contact


Effect = (
    SendDatagram | OperationEnded | RecordStored | RecordDropped | RecordChanged | PeerVerified | PeerLost
)
