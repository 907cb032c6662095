"""How offers are ranked: pure functions from offers to offers in order, each with its reasons in words.

A policy is an entry point of the group `ioc_node.policies`: a function `(offers, context) -> offers`. It may leave
offers out. Every core node ranks with nothing outstanding; the consumer ranks again with its own leases in mind and
with the round trips that it measured, so that a hundred equal tasks don't all queue at the same provider.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import NamedTuple

import msgspec

from ioc_node.core.near import estimate_of
from ioc_node.errors import UsageError
from ioc_node.market.pricing import Prices, cores_milli, format_micro, prices_of
from ioc_wire.codec import decode
from ioc_wire.market import Demand, Offer
from ioc_wire.records import ResourceRecord

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


class _Load(NamedTuple):
    """How busy an offer's place will be, least busy first. Part of every policy's order."""

    crowded: bool
    queued: int
    free_milli: int  # negated


def _loads(offers: Sequence[Offer], context: Context) -> list[_Load]:
    wanted = cores_milli(context.demand)
    loads = []
    for offer in offers:
        record = record_of(offer)
        leases, taken = context.outstanding.get(record.cid, _NOTHING)
        free = min(offer.status.free_cores_milli, record.cpu.cores * 1000) - taken
        loads.append(_Load(free < wanted, offer.status.queued + leases, -free))
    return loads


def _free_reason(offer: Offer, load: _Load) -> str:
    text = f"{max(0, -load.free_milli) / 1000:g} of {record_of(offer).cpu.cores} cores free"
    return f"{text}, {load.queued} waiting" if load.queued else text


def _price_reason(offer: Offer) -> str:
    return f"{format_micro(core_hour_of(offer))} per core-hour, at most {format_micro(offer.price_micro)} for the task"


def rtt_reason(offer: Offer) -> str:
    """`RTT 0.4 ms, measured`, or `RTT estimated 40 ms (triangulated over 5 core nodes)`."""
    if offer.rtt_us >= 0:
        return f"RTT {offer.rtt_us / 1000:.1f} ms, measured"
    found = estimate_of(offer.estimate)
    return f"RTT {found.text()}" if found is not None else "RTT not measured"


def cost(offers: Sequence[Offer], context: Context) -> list[Offer]:
    """Cheapest first; among equals the least busy; then in order of identifier."""
    loads = _loads(offers, context)
    cheapest = min((offer.price_micro for offer in offers), default=0)

    order = [
        (load.crowded, offer.price_micro, load, record_of(offer).cid)
        for offer, load in zip(offers, loads, strict=True)
    ]
    ranked = []
    for index in sorted(range(len(offers)), key=order.__getitem__)[: context.limit]:
        offer = offers[index]
        word = "cheapest" if offer.price_micro == cheapest else "price"
        reasons = (f"{word}: {_price_reason(offer)}", _free_reason(offer, loads[index]))
        ranked.append(msgspec.structs.replace(offer, reasons=reasons))
    return ranked


def latency(offers: Sequence[Offer], context: Context) -> list[Offer]:
    """Nearest first, by measured round trip, or else the estimated one, in steps of a fifth (below 1 ms all are equal);
    then the least busy, the cheapest, and in order of identifier. What is not known comes last.
    """
    loads = _loads(offers, context)

    def order(index: int) -> tuple[bool, float, _Load, int, str]:
        offer, load = offers[index], loads[index]
        return (load.crowded, _distance(offer), load, offer.price_micro, record_of(offer).cid)

    ranked = []
    for index in sorted(range(len(offers)), key=order)[: context.limit]:
        offer = offers[index]
        reasons = (rtt_reason(offer), _free_reason(offer, loads[index]), f"price: {_price_reason(offer)}")
        ranked.append(msgspec.structs.replace(offer, reasons=reasons))
    return ranked


def _distance(offer: Offer) -> float:
    rtt_us = offer.estimate.rtt_us if offer.rtt_us < 0 and offer.estimate is not None else offer.rtt_us
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
