"""How far offers are, and by which transport bytes would go there: measured by the consumer before it reserves."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
import trio

from ioc_node.core.near import estimate_of
from ioc_node.core.roads import QUIC_ROAD, OwnRoad, choose_roads, reach_by_scope
from ioc_node.errors import PeerUnreachable
from ioc_node.market.policies import record_of, rtt_reason
from ioc_node.runtime.links import LinkEndpoint
from ioc_node.runtime.pinging import ping_us
from ioc_wire.authority import check_names
from ioc_wire.cid import parse_cid
from ioc_wire.errors import WireError
from ioc_wire.market import Demand, Offer, Removal, RttEstimate
from ioc_wire.records import verify_record

MEASURED_MAX: Final = 16
"""Providers measured over a link for one demand: the first so many of the list."""
MEASURE_SECONDS: Final = 3.0
"""A provider that has not answered by then is unreachable."""


class Measured(NamedTuple):
    """Round trip to one provider in microseconds, or -1 and why there is none."""

    rtt_us: int
    error: str = ""


async def measure_rtts(links: LinkEndpoint, offers: Sequence[Offer]) -> dict[bytes, Measured]:
    """Median of three round trips over a link to each provider of `offers` (by key), all at the same time.

    A provider whose grant does not cover the offered identifier is treated as unreachable, with that reason.
    """
    first: dict[bytes, Offer] = {}
    for offer in offers:
        if len(first) < MEASURED_MAX:
            first.setdefault(offer.provider.key, offer)
    found: dict[bytes, Measured] = {}

    async def measure(offer: Offer) -> None:
        found[offer.provider.key] = await _measure(links, offer)

    async with trio.open_nursery() as nursery:
        for offer in first.values():
            nursery.start_soon(measure, offer)
    return found


async def _measure(links: LinkEndpoint, offer: Offer) -> Measured:
    contact = offer.provider
    with trio.move_on_after(MEASURE_SECONDS):
        try:
            link = await links.reach(contact)
            if links.local.network.certified:
                check_names(parse_cid(record_of(offer).cid).prefix, contact.key, link.peer.grant)
            return Measured(await ping_us(link))
        except (PeerUnreachable, WireError) as error:
            return Measured(-1, str(error))
    return Measured(-1, f"no answer within {MEASURE_SECONDS:g} s")


def apply_rtts(
    offers: Sequence[Offer], measured: Mapping[bytes, Measured], demand: Demand
) -> tuple[list[Offer], list[Removal]]:
    """`offers` with their round trips; without those that cannot be reached or are farther than the demand allows.

    Where the demand sets a limit, what was not measured is left out as well: nothing shows that it is near enough.
    """
    most_ms = demand.constraints.rtt_ms_max
    most_us = math.inf if most_ms is None else most_ms * 1000
    kept: list[Offer] = []
    lost: list[str] = []
    far: list[tuple[float, str]] = []
    for offer in offers:
        one = measured.get(offer.provider.key)
        cid = record_of(offer).cid
        if one is not None and one.rtt_us < 0:
            lost.append(f"{cid}: {one.error}")
        elif one is None and most_ms is not None:
            far.append((math.inf, f"{cid} was not measured"))
        elif one is not None and one.rtt_us > most_us:
            far.append((one.rtt_us, f"{cid} is {one.rtt_us / 1000:.1f} of the {most_ms:g} ms away"))
        else:
            kept.append(msgspec.structs.replace(offer, rtt_us=one.rtt_us if one is not None else -1))
    removals = []
    if lost:
        removals.append(Removal("reachable", len(lost), lost[0][:512]))
    if far:
        removals.append(Removal("rtt", len(far), min(far)[1][:512]))
    return kept, removals


def with_estimates(offers: Sequence[Offer], estimates: Mapping[bytes, RttEstimate | None]) -> list[Offer]:
    """`offers` with an estimate, by provider's key, where there is one and nothing was measured."""
    return [
        msgspec.structs.replace(offer, estimate=estimates.get(offer.provider.key))
        if offer.rtt_us < 0
        else offer
        for offer in offers
    ]


def told_from_data(
    offers: Sequence[Offer], estimates: Mapping[bytes, RttEstimate | None], *, nearest_first: bool
) -> tuple[Offer, ...]:
    """`offers` that say how far they probably are from the data, by provider's key; the nearest of it first, if asked
    for."""
    told = []
    for offer in offers:
        found = estimate_of(estimates.get(offer.provider.key))
        reason = f"RTT from the data {found.text()}" if found is not None else "RTT from the data not known"
        told.append(
            (
                found.rtt_ms if found is not None else math.inf,
                msgspec.structs.replace(offer, reasons=(*offer.reasons, reason)),
            )
        )
    if nearest_first:
        told.sort(key=lambda pair: pair[0])
    return tuple(offer for _, offer in told)


def check_offers(offers: Sequence[Offer], *, unix: float) -> list[Offer]:
    """The offers whose record was truly signed by the provider they name, without what the core node says of the way
    there; it vouches for nothing else."""
    return [
        msgspec.structs.replace(offer, rtt_us=-1, estimate=None)
        if offer.rtt_us >= 0 or offer.estimate
        else offer
        for offer in offers
        if _is_genuine(offer, unix)
    ]


def _is_genuine(offer: Offer, unix: float) -> bool:
    if offer.record.key != offer.provider.key:
        return False
    try:
        verify_record(offer.record, now=unix)
    except WireError:
        return False
    return True


def transport_to(
    offer: Offer,
    *,
    own: Sequence[OwnRoad],
    own_hosts: Collection[str],
    engine: str,
    quic: OwnRoad = QUIC_ROAD,
) -> str:
    """Which way a large blob would take to an offer's provider, and why: an offload that both ends have, else QUIC.

    `own` and `quic` are this node's roads as they stand towards that provider; `own_hosts` are this node's addresses,
    which tell whether the provider is on this machine. Transfers are decided by the same function.
    """
    same_host = offer.provider.host in own_hosts
    scopes = {road.name: road.capability.scope for road in own}
    theirs = {
        name: reach_by_scope(scopes[name], same_host=same_host)
        for name in record_of(offer).network.offloads
        if name in scopes
    }
    return choose_roads(own, theirs, size=None, quic=quic).text(engine)


def route_text(offer: Offer, transport: str) -> str:
    """`RTT 0.4 ms, measured; shm (same host)`, or `RTT estimated 40 ms (coordinates); quic/qh3 (another host)`."""
    return f"{rtt_reason(offer)}; {transport}"
