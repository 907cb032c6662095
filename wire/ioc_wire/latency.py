"""Round trips: what core nodes measured to providers, signed, and who is near an asker by it (tags 50-56)."""

from typing import Annotated, ClassVar, Final

import msgspec

from ioc_wire import limits
from ioc_wire.authority import Chain
from ioc_wire.codec import Key, Message, UInt, encode
from ioc_wire.errors import Expired, Malformed, NotYetValid, TooLarge
from ioc_wire.market import Contact, Demand, Reason, RttEstimate, RttUs
from ioc_wire.signed import Signed, SignedPayload, verify

PlaneMs = Annotated[float, msgspec.Meta(ge=-60_000.0, le=60_000.0)]
DIMENSIONS: Final = 3


class CoordinateTold(Message, frozen=True):
    """A Vivaldi coordinate: point and height in milliseconds, and its expected relative error."""

    point: Annotated[tuple[PlaneMs, ...], msgspec.Meta(min_length=DIMENSIONS, max_length=DIMENSIONS)]
    height: Annotated[float, msgspec.Meta(ge=0.0, le=60_000.0)]
    error: Annotated[float, msgspec.Meta(ge=0.0, le=1.5)]


class ProviderRtt(Message, frozen=True):
    """Round trips to one provider's gateway in microseconds: the least and the median of so many `samples`; the last
    one was taken `age_seconds` before the row was issued. `coordinate` is what the provider says of its own place."""

    provider: Key
    rtt_us_min: RttUs
    rtt_us_median: RttUs
    samples: Annotated[int, msgspec.Meta(ge=1, le=1024)]
    age_seconds: Annotated[int, msgspec.Meta(ge=0, le=limits.LATENCY_SECONDS_MAX)]
    coordinate: CoordinateTold | None = None


class LatencyRow(SignedPayload, frozen=True):
    """What a core node measured, until `expires`. Of two rows of one signer the one with the higher `number` counts.
    Times in seconds since 1970, UTC. No provider appears twice."""

    kind: ClassVar[str] = "latency-row"
    number: UInt
    issued: UInt
    expires: UInt
    rtts: Annotated[tuple[ProviderRtt, ...], msgspec.Meta(max_length=limits.LATENCY_RTTS_MAX)]
    coordinate: CoordinateTold | None = None


class LatencyNews(Message, frozen=True):
    """A signed `LatencyRow` with the chain that makes its signer a core node; none in an open network."""

    statement: Signed
    chain: Chain = ()


class RowHeld(Message, frozen=True):
    """A row that the asker holds: its signer and its number."""

    core: Key
    number: UInt


class LatencyTold(Message, tag=50, frozen=True):
    """One-way between core nodes: rows that are new to the sender. Also the answer to `FetchLatency`."""

    news: Annotated[tuple[LatencyNews, ...], msgspec.Meta(max_length=limits.LATENCY_TOLD_MAX)] = ()


class FetchLatency(Message, tag=51, frozen=True):
    """Request to a core node: rows that are newer than those that are held, as many as one answer holds. Answer:
    `LatencyTold`, empty where there are none."""

    held: Annotated[tuple[RowHeld, ...], msgspec.Meta(max_length=limits.LATENCY_HELD_MAX)] = ()


# -- who is near


class CoreRtt(Message, frozen=True):
    """The asker's own round trip to a core node."""

    core: Key
    rtt_us: RttUs


class Vantage(Message, frozen=True):
    """Where an asker stands: its round trips to core nodes, and its coordinate where it has one. Nobody checks it: an
    asker that lies finds the wrong ones."""

    rtts: Annotated[tuple[CoreRtt, ...], msgspec.Meta(max_length=limits.VANTAGE_CORES_MAX)] = ()
    coordinate: CoordinateTold | None = None


class CorePlace(Message, frozen=True):
    """A core node, and its coordinate as its row says."""

    contact: Contact
    coordinate: CoordinateTold | None = None


class FetchPlaces(Message, tag=52, frozen=True):
    """Ask a core node for core nodes to measure round trips to. Answer: `PlacesTold`."""


class PlacesTold(Message, tag=53, frozen=True):
    """Core nodes with their places, the answering one among them."""

    places: Annotated[tuple[CorePlace, ...], msgspec.Meta(max_length=limits.VANTAGE_CORES_MAX)] = ()


class PlaceNoted(Message, tag=54, frozen=True):
    """One-way from a provider to a core node that it has a link to: where it stands, for the next row."""

    coordinate: CoordinateTold


class FindNear(Message, tag=55, frozen=True):
    """Ask a core node which providers have hosts that can serve `demand`, and how far each probably is from `vantage`;
    or, where the demand says where its data is, from the provider there, as core nodes measured it.
    Where the demand sets a round trip, those that are surely farther are left out. Only about `providers` where some
    are named. `forwarded` as in `FindOffers`. Answer: `NearFound`."""

    demand: Demand
    vantage: Vantage
    providers: Annotated[tuple[Key, ...], msgspec.Meta(max_length=limits.NEAR_PROVIDERS_MAX)] | None = None
    forwarded: bool = False


class NearProvider(Message, frozen=True):
    """A provider, where it takes links, and the estimate; none where nothing is known of the way to it."""

    contact: Contact
    estimate: RttEstimate | None = None


class NearFound(Message, tag=56, frozen=True):
    """The likeliest first: surely within the demand's round trip, then perhaps, then unknown; by estimate where it sets
    none. Of `matching` providers that can serve the demand, `far` were left out, the nearest of them as in `nearest`;
    those that did not fit into the answer are missing from `providers`."""

    providers: Annotated[tuple[NearProvider, ...], msgspec.Meta(max_length=limits.NEAR_PROVIDERS_MAX)] = ()
    matching: UInt = 0
    far: UInt = 0
    nearest: Reason = ""


def verify_row(news: LatencyNews, *, now: float) -> LatencyRow:
    """Check a row itself; whether its signer is a core node is the chain's matter.

    Raises `TooLarge`, `BadSignature`, `UnknownType`, `Malformed`, `Expired` or `NotYetValid`.
    """
    size = len(encode(news))
    if size > limits.LATENCY_ROW_BYTES_MAX:
        raise TooLarge(f"latency row of {size} bytes, at most {limits.LATENCY_ROW_BYTES_MAX} are allowed")
    row = verify(news.statement, LatencyRow)
    if not 0 < row.expires - row.issued <= limits.LATENCY_SECONDS_MAX:
        raise Malformed(f"a latency row holds for 1 to {limits.LATENCY_SECONDS_MAX} s from when it is issued")
    if len({each.provider for each in row.rtts}) != len(row.rtts):
        raise Malformed("latency row: a provider appears twice")
    if any(each.rtt_us_min > each.rtt_us_median for each in row.rtts):
        raise Malformed("latency row: a least round trip is above its median")
    if now >= row.expires:
        raise Expired(f"latency row, since {int(now - row.expires)} s")
    if now < row.issued - limits.CLOCK_SKEW_SECONDS:
        raise NotYetValid(f"latency row, issued {int(row.issued - now)} s in the future")
    return row
