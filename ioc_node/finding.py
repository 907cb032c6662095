"""Finding offers for a demand: ask a core node, verify, measure what the policy needs measured, rank, say the route.

Where a demand or a policy is about distance, it is first found out who is near (`ioc_node.nearby`), and only hosts of
those are asked for: the cheapest hosts anywhere are of no use to a demand that wants them within some milliseconds.
"""

import time
from typing import Final, TypeVar

import msgspec
import trio

from ioc_node.api import Found, Probes
from ioc_node.bearings import Bearings
from ioc_node.bulk.offloading import Offloads
from ioc_node.core_links import CoreLinks
from ioc_node.core_side import CoreSide
from ioc_node.errors import PeerUnreachable
from ioc_node.market.owners import NAMED
from ioc_node.market.policies import Context, load_policy
from ioc_node.market.routes import (
    apply_rtts,
    check_offers,
    measure_rtts,
    route_text,
    told_from_data,
    transport_to,
    with_estimates,
)
from ioc_node.nearby import Nearby, Neighbours, measured_of
from ioc_node.runtime.links import LinkEndpoint
from ioc_node.runtime.pinging import Pinger
from ioc_node.verifying import compare_cores
from ioc_wire.codec import Message
from ioc_wire.errors import Busy, Closing
from ioc_wire.latency import FindNear, NearFound, Vantage
from ioc_wire.market import Cursor, Demand, FindOffers, Offer, OffersFound, Removal

LIMIT_DEFAULT: Final = 32
ANSWER_SECONDS: Final = 5.0
"""A core node that has not answered by then is passed over; its link notices a dead one only after a minute."""
MEASURING_POLICIES: Final = frozenset({"latency"})

M = TypeVar("M", bound=Message)


class Finder:
    """Demand queries of this node. A core node answers itself, others ask one."""

    def __init__(
        self,
        links: LinkEndpoint,
        cores: CoreLinks,
        core: CoreSide | None,
        *,
        pinger: Pinger,
        bearings: Bearings,
        host: str,
        engine: str,
        offloads: Offloads,
    ) -> None:
        self._links = links
        self._cores = cores
        self._core = core
        self._bearings = bearings
        self._neighbours = Neighbours(links, pinger, self._ask_near, self._vantage)
        self._host = host
        self._engine = engine
        self._offloads = offloads

    async def offers(self, demand: Demand, policy: str) -> OffersFound:
        """Ranked offers, as the task story wants them."""
        message, nearby = await self._prepare(FindOffers(demand, policy, LIMIT_DEFAULT))
        found, _ = await self._answer(message)
        if nearby is None:
            return self._checked(found)
        return (await self._measured(message, self._checked(found), nearby))[0]

    async def find(
        self,
        demand: Demand,
        *,
        policy: str,
        limit: int,
        explain: bool = False,
        after: Cursor | None = None,
        verify: bool = False,
    ) -> Found:
        """Ranked offers with their routes, RTTs measured, or estimated where there are many; a page of them with
        `after`. To `verify`, two core nodes are compared. Raises `PeerUnreachable`, or `UsageError` for an unknown
        policy.
        """
        started = trio.current_time()
        load_policy(policy)
        message, nearby = await self._prepare(FindOffers(demand, policy, limit, explain=explain, after=after))
        verdict = await compare_cores(self._cores, self._core, message) if verify else None
        answer, answered_by = await self._answer(message)
        found, probes = await self._measured(message, self._checked(answer), nearby)
        routes = tuple(route_text(offer, self._transport(offer)) for offer in found.offers)
        elapsed_ms = (trio.current_time() - started) * 1000
        return Found(found, routes, answered_by, elapsed_ms, verdict, probes)

    def _transport(self, offer: Offer) -> str:
        holder, offloads = offer.provider.key, self._offloads
        return transport_to(
            offer,
            own=offloads.own_roads(holder),
            own_hosts=(self._host,),
            engine=self._engine,
            quic=offloads.quic_road(holder),
        )

    async def _prepare(self, message: FindOffers) -> tuple[FindOffers, Nearby | None]:
        """What to ask for, and who is near, where the demand or the policy is about distance."""
        is_bounded = message.demand.constraints.rtt_ms_max is not None
        if not is_bounded and message.policy not in MEASURING_POLICIES:
            return message, None
        if message.demand.constraints.data_at:
            nearby = await self._neighbours.look_from_data(message.demand)
        else:
            nearby = await self._neighbours.look(message.demand)
        if not is_bounded and not nearby.within:
            return message, nearby
        first = message.policy in MEASURING_POLICIES and message.after is None
        return msgspec.structs.replace(message, providers=nearby.within, nearest_first=first), nearby

    async def _answer(self, message: FindOffers) -> tuple[OffersFound, str]:
        if self._core is not None:
            return await self._core.answer(message), "this node"
        return await self._ask(message, OffersFound)

    @staticmethod
    def _checked(found: OffersFound) -> OffersFound:
        return msgspec.structs.replace(found, offers=tuple(check_offers(found.offers, unix=time.time())))

    async def _measured(
        self, message: FindOffers, found: OffersFound, nearby: Nearby | None
    ) -> tuple[OffersFound, Probes]:
        """Offers with their round trips, the first ones measured now, ranked again; without those that are too far."""
        demand = _seen_from_here(message.demand)
        now = await measure_rtts(self._links, found.offers)
        offers, lost = apply_rtts(found.offers, measured_of(nearby) | now, demand)
        unknown = dict.fromkeys(offer.provider.key for offer in offers if offer.rtt_us < 0)
        if unknown:
            known = nearby.estimates if nearby is not None and demand is message.demand else {}
            if not unknown.keys() <= known.keys():
                known = await self._neighbours.estimates(demand, list(unknown))
            offers = with_estimates(offers, known)
        removals = (*(_told(each, nearby) for each in found.removals), *lost)
        ranked = tuple(load_policy(message.policy)(offers, Context(demand)))
        if nearby is not None and demand is not message.demand:
            ranked = told_from_data(
                ranked, nearby.estimates, nearest_first=message.policy in MEASURING_POLICIES
            )
        probes = nearby.probes if nearby is not None else Probes(0)
        again = len(now.keys() - nearby.pinged) if nearby is not None else len(now)
        probes = msgspec.structs.replace(probes, pinged=probes.pinged + again)
        return msgspec.structs.replace(found, offers=ranked, removals=removals), probes

    # -- asking

    async def _vantage(self) -> Vantage:
        return self._core.latency.vantage() if self._core is not None else await self._bearings.take()

    async def _ask_near(self, message: FindNear) -> NearFound:
        if self._core is not None:
            return await self._core.near(message)
        return (await self._ask(message, NearFound))[0]

    async def _ask(self, message: Message, expected: type[M]) -> tuple[M, str]:
        failed: set[bytes] = set()
        while True:
            link = await self._cores.any(but=frozenset(failed))
            try:
                with trio.fail_after(ANSWER_SECONDS):
                    return await link.request(message, expected), link.peer.name
            except (PeerUnreachable, Busy, Closing, trio.TooSlowError):
                failed.add(link.peer.key)


def _seen_from_here(demand: Demand) -> Demand:
    """The same demand, unless its round trip counts from its data: then without it."""
    if not demand.constraints.data_at:
        return demand
    constraints = msgspec.structs.replace(demand.constraints, rtt_ms_max=None, data_at="")
    return msgspec.structs.replace(demand, constraints=constraints)


def _told(removal: Removal, nearby: Nearby | None) -> Removal:
    """That hosts are not of the providers asked for means that they are too far."""
    if nearby is None or removal.condition != NAMED:
        return removal
    return Removal("rtt", removal.removed, nearby.missed[:512])
