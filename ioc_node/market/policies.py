"""How offers are ranked: pure functions from offers to offers in order, each with its reasons in words.

A policy is an entry point of the group `ioc_node.policies`: a function `(offers, context) -> offers`. It may leave
offers out. One that is a `Ranking` costs less: a core node makes offers only of the places that it puts first. Every
core node ranks with nothing outstanding; the consumer ranks again with its own leases in mind and with the round trips
that it measured, so that a hundred equal tasks don't all queue at the same provider.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Final, NamedTuple

import msgspec

from ioc_node.core.near import estimate_of
from ioc_node.errors import UsageError
from ioc_node.market.pricing import Prices, cores_milli, format_micro, prices_of
from ioc_wire.codec import decode
from ioc_wire.market import Demand, Offer, RttEstimate
from ioc_wire.records import ResourceRecord, StatusRow

GROUP = "ioc_node.policies"


class Outstanding(NamedTuple):
    """What this consumer holds or has asked for at one identifier, which its status may not show yet."""

    leases: int = 0
    cores_milli: int = 0


@dataclass(frozen=True, slots=True)
class Context:
    """What a ranking depends on besides the offers. `outstanding` is by identifier; of the ranked offers only the
    first `limit` are used (None: all), so that a policy need not find words for the others.
    """

    demand: Demand
    outstanding: Mapping[str, Outstanding] = field(default_factory=dict)
    limit: int | None = None


_NOTHING = Outstanding()
Policy = Callable[[Sequence[Offer], Context], list[Offer]]


@functools.lru_cache(maxsize=4096)
def _record_in(payload: bytes) -> tuple[ResourceRecord, Prices]:
    record = decode(payload, ResourceRecord)
    return record, prices_of(record.prices)


def record_of(offer: Offer) -> ResourceRecord:
    """The record of an offer. The consumer verifies its signature before anything is reserved."""
    return _record_in(offer.record.payload)[0]


def core_hour_of(offer: Offer) -> int:
    """What a core-hour costs at this offer now, in millionths."""
    return offer.status.price_micro or _record_in(offer.record.payload)[1].core_hour


class Place(
    msgspec.Struct, frozen=True, gc=False
):  # of those that are many, structs: made in a sixth of the time
    """What a ranking knows of an offer. `core_hour` and `price` (of the whole task) are millionths of the currency."""

    cid: str
    cores: int
    core_hour: int
    price: int
    status: StatusRow
    rtt_us: int = -1
    estimate: RttEstimate | None = None


def _place_of(offer: Offer) -> Place:
    record, core_hour = record_of(offer), core_hour_of(offer)
    cores, price = record.cpu.cores, offer.price_micro
    return Place(record.cid, cores, core_hour, price, offer.status, offer.rtt_us, offer.estimate)


class Load(msgspec.Struct, frozen=True, order=True, gc=False):
    """How busy a place will be, least busy first. Part of every policy's order."""

    crowded: bool
    queued: int
    free_milli: int  # negated


def _load_of(place: Place, taken: Outstanding, wanted_milli: int) -> Load:
    free = min(place.status.free_cores_milli, place.cores * 1000) - taken.cores_milli
    return Load(free < wanted_milli, place.status.queued + taken.leases, -free)


class Ranked(NamedTuple):
    """Number of a place among those that were ranked, and why it has its rank."""

    number: int
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ranking:
    """A policy that orders places before there are offers of them. Its `order` has the smallest first; `reasons` are
    told of a place, its load, and whether it is the cheapest. `by_price` says that dearer places come later, whatever
    else is true of them, unless they are crowded.
    """

    order: Callable[[Place, Load], tuple[Any, ...]]
    reasons: Callable[[Place, Load, bool], tuple[str, ...]]
    by_price: bool = False

    def rank(self, places: Sequence[Place], context: Context) -> list[Ranked]:
        """The best places in order, as many as the context wants."""
        wanted, outstanding = cores_milli(context.demand), context.outstanding
        taken = (outstanding.get(place.cid, _NOTHING) if outstanding else _NOTHING for place in places)
        loads = [_load_of(place, mine, wanted) for place, mine in zip(places, taken, strict=True)]
        cheapest = min((place.price for place in places), default=0)
        keys = list(map(self.order, places, loads))
        best = sorted(range(len(places)), key=keys.__getitem__)[: context.limit]
        return [Ranked(at, self.reasons(places[at], loads[at], places[at].price == cheapest)) for at in best]

    def __call__(self, offers: Sequence[Offer], context: Context) -> list[Offer]:
        ranked = self.rank(list(map(_place_of, offers)), context)
        return [msgspec.structs.replace(offers[at], reasons=reasons) for at, reasons in ranked]


@functools.lru_cache(maxsize=4096)
def _free_words(free_milli: int, cores: int, queued: int) -> str:
    text = f"{free_milli / 1000:g} of {cores} cores free"
    return f"{text}, {queued} waiting" if queued else text


def _free_reason(place: Place, load: Load) -> str:
    return _free_words(max(0, -load.free_milli), place.cores, load.queued)


@functools.lru_cache(maxsize=4096)
def _price_words(core_hour: int, price: int) -> str:
    return f"{format_micro(core_hour)} per core-hour, at most {format_micro(price)} for the task"


def rtt_reason(place: Place | Offer) -> str:
    """`RTT 0.4 ms, measured`, or `RTT estimated 40 ms (triangulated over 5 core nodes)`."""
    if place.rtt_us >= 0:
        return f"RTT {place.rtt_us / 1000:.1f} ms, measured"
    found = estimate_of(place.estimate)
    return f"RTT {found.text()}" if found is not None else "RTT not measured"


def _by_cost(place: Place, load: Load) -> tuple[Any, ...]:
    return (load.crowded, place.price, load, place.cid)


def _cost_reasons(place: Place, load: Load, cheapest: bool) -> tuple[str, ...]:
    word = "cheapest" if cheapest else "price"
    return (f"{word}: {_price_words(place.core_hour, place.price)}", _free_reason(place, load))


def _by_latency(place: Place, load: Load) -> tuple[Any, ...]:
    return (load.crowded, _distance(place), load, place.price, place.cid)


def _latency_reasons(place: Place, load: Load, cheapest: bool) -> tuple[str, ...]:
    return (
        rtt_reason(place),
        _free_reason(place, load),
        f"price: {_price_words(place.core_hour, place.price)}",
    )


cost: Final = Ranking(_by_cost, _cost_reasons, by_price=True)
"""Cheapest first; among equals the least busy; then in order of identifier."""
latency: Final = Ranking(_by_latency, _latency_reasons)
"""Nearest first, by measured round trip, or else the estimated one, in steps of a fifth (below 1 ms all are equal);
then the least busy, the cheapest, and in order of identifier. What is not known comes last.
"""


def _distance(place: Place) -> float:
    rtt_us = place.estimate.rtt_us if place.rtt_us < 0 and place.estimate is not None else place.rtt_us
    if rtt_us < 0:
        return math.inf
    return 0 if rtt_us < 1000 else 1 + math.floor(math.log(rtt_us / 1000, 1.2))


@functools.cache
def _installed() -> dict[str, Policy]:
    built_in: dict[str, Policy] = {"cost": cost, "latency": latency}
    return built_in | {entry.name: entry.load() for entry in entry_points(group=GROUP)}


def find_policies() -> None:
    """Look for what is installed, which takes tens of milliseconds once; for whoever answers on an event loop."""
    _installed()


def load_policy(name: str) -> Policy:
    """The installed policy of that name. Raises `UsageError` naming those that there are."""
    policy = _installed().get(name)
    if policy is None:
        raise UsageError(f"policy {name!r} is not installed; there are {', '.join(sorted(_installed()))}")
    return policy
