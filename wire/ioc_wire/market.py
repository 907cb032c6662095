"""Demands, offers and leases: what a task needs, who could serve it, and the promise to do so."""

from typing import Annotated, ClassVar, Literal

import msgspec

from ioc_wire import limits
from ioc_wire.authority import Chain
from ioc_wire.codec import Digest, Document, Host, Key, Message, Name, Port, ShortText, UInt
from ioc_wire.records import StatusRow
from ioc_wire.signed import Signed, SignedPayload
from ioc_wire.tasks import Constraints, Resources, TaskDefinition

Reason = Annotated[str, msgspec.Meta(max_length=512)]


class Demand(Document, frozen=True):
    """What a task needs, derived from its definition or given on a command line. `gang` hosts that each meet all of it
    are wanted together: so many, or none."""

    resources: Resources = Resources()
    constraints: Constraints = Constraints()
    runtimes: tuple[Name, ...] = ()
    wall_seconds: UInt = 3600
    gang: Annotated[int, msgspec.Meta(ge=1, le=limits.OFFERS_MAX)] = 1


def demand_of(task: TaskDefinition) -> Demand:
    """The demand that a task definition implies."""
    return Demand(
        resources=task.resources,
        constraints=task.constraints,
        runtimes=(task.executor.runtime,),
        wall_seconds=task.limits.wall_seconds,
    )


class Contact(Message, frozen=True):
    """How to reach a node: its key, and the host and port where it listens; or, with `via`, those of the core node with
    that key, which passes a circuit on to it."""

    key: Key
    host: Host
    port: Port
    via: Key | None = None


RttUs = Annotated[int, msgspec.Meta(ge=0, le=limits.LATENCY_RTT_US_MAX)]


class RttEstimate(Message, frozen=True):
    """A round trip that nobody measured, in microseconds: what it probably is, and between which bounds. `over` counts
    the core nodes that it was triangulated over."""

    rtt_us: RttUs
    low_us: RttUs
    high_us: RttUs
    how: Literal["triangulated", "coordinates", "same provider"]
    over: Annotated[int, msgspec.Meta(ge=0, le=limits.VANTAGE_CORES_MAX + 1)] = 0


class Offer(Message, frozen=True):
    """A record with status that could serve a demand. `price_micro` estimates the whole task at its wall limit;
    `reasons` say how it was ranked; RTT is -1 where nobody measured it. Round trip and `estimate` are the asker's own
    to fill in: what a core node says there is not believed."""

    record: Signed
    provider: Contact
    status: StatusRow
    price_micro: UInt
    reasons: Annotated[tuple[Reason, ...], msgspec.Meta(max_length=16)] = ()
    rtt_us: Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)] = -1
    estimate: RttEstimate | None = None


class Removal(Message, frozen=True):
    """How many candidates one condition removed, and the nearest miss (empty where there is none)."""

    condition: Name
    removed: UInt
    nearest: Reason = ""


class Cursor(Message, frozen=True):
    """Where a page of offers ended: the estimate of its dearest host in millionths of the currency, as a double, and
    the first 63 bits of the SHA-256 of that host's identifier, which order equals."""

    estimate: Annotated[float, msgspec.Meta(ge=0, le=1e30)]
    tie: UInt


# -- messages over links (tags 20-39)


class FindOffers(Message, tag=20, frozen=True):
    """Demand query to a core node. Answer: `OffersFound`. A core node that replicates only a part, and not all that
    the demand allows, asks another one, with `forwarded` set: that one answers from what it holds. The nearest
    misses are told to `explain`, or where nothing can be offered. With `after` the answer is a page: the hosts that
    come next by estimate, ranked among each other. The first follows `(0.0, 0)`. Where `providers` are named, only
    hosts of theirs are offered; with `nearest_first` not the cheapest, but those of the providers named first."""

    demand: Demand
    policy: Name
    limit: Annotated[int, msgspec.Meta(ge=1, le=limits.OFFERS_MAX)] = 32
    forwarded: bool = False
    explain: bool = False
    after: Cursor | None = None
    providers: Annotated[tuple[Key, ...], msgspec.Meta(max_length=limits.NEAR_PROVIDERS_MAX)] | None = None
    nearest_first: bool = False


class OffersFound(Message, tag=21, frozen=True):
    """Ranked offers. `digest` is that of the core node's head vector: two core nodes with one digest that answer
    differently expose an omission. `removals` explain what was not offered; `matching` hosts can serve the
    demand. `cursor` leads to the next page, where one was asked for and more may follow."""

    offers: Annotated[tuple[Offer, ...], msgspec.Meta(max_length=limits.OFFERS_MAX)]
    considered: UInt
    removals: Annotated[tuple[Removal, ...], msgspec.Meta(max_length=32)]
    digest: Digest
    matching: UInt = 0
    cursor: Cursor | None = None


class ReserveLease(Message, tag=22, frozen=True):
    """Ask the provider for a time-bounded promise. Answer: `LeaseGranted`, or `LeaseRefused` with the reason."""

    cid: ShortText
    demand: Demand
    task: Digest
    attempt: UInt
    price_micro_max: UInt | None = None


class Lease(SignedPayload, frozen=True):
    """The provider's promise: these resources are kept for `consumer` until `expires`, and longer once accepted.
    `price_micro` is per core-hour. Exactly one order may accept it."""

    kind: ClassVar[str] = "lease"
    lease: Digest
    cid: ShortText
    consumer: Key
    task: Digest
    attempt: UInt
    cores_milli: UInt
    memory_mib: UInt
    disk_mib: UInt
    accelerators_milli: tuple[UInt, ...]
    price_micro: UInt
    issued: UInt
    expires: UInt


class LeaseGranted(Message, tag=23, frozen=True):
    lease: Signed


class ReleaseLease(Message, tag=24, frozen=True):
    """Give a promise back that will not be used. Answer: `Done`, also when it has ended already."""

    lease: Digest


class MeasureRtt(Message, tag=25, frozen=True):
    """Answered at once with `RttMeasured`: the asker's clock tells the round trip."""


class RttMeasured(Message, tag=26, frozen=True):
    """`load_milli`: thousandths of the provider's cores that are in use."""

    load_milli: UInt


class ResolveRecord(Message, tag=27, frozen=True):
    """Ask a core node for the record of one identifier, of `version_min` or later: the newest of its catalogue and of
    what it holds in the DHT. Answer: `RecordResolved`, or `NotFound`. `forwarded` as in `FindOffers`."""

    cid: Annotated[str, msgspec.Meta(max_length=limits.CID_BYTES_MAX)]
    version_min: UInt = 0
    forwarded: bool = False


class RecordResolved(Message, tag=28, frozen=True):
    """A signed `ResourceRecord`, or the `Tombstone` in its place, and its provider's chain (empty for a self-certified
    name). The asker verifies both as it verifies what the DHT gives; the core node's word adds nothing."""

    record: Signed
    chain: Chain
