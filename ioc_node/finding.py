"""Finding offers for a demand: ask a core node, verify, measure what the policy needs measured, rank, say the route."""

import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import trio

from ioc_node.api import Found
from ioc_node.core.roads import OwnRoad
from ioc_node.core_links import CoreLinks
from ioc_node.core_side import CoreSide
from ioc_node.errors import PeerUnreachable
from ioc_node.market.policies import Context, load_policy
from ioc_node.market.routes import apply_rtts, check_offers, measure_rtts, route_text, transport_to
from ioc_node.runtime.links import LinkEndpoint
from ioc_node.verifying import compare_cores
from ioc_wire.errors import Busy, Closing
from ioc_wire.market import Cursor, Demand, FindOffers, OffersFound

LIMIT_DEFAULT: Final = 32
ANSWER_SECONDS: Final = 5.0
"""A core node that has not answered by then is passed over; its link notices a dead one only after a minute."""
MEASURING_POLICIES: Final = frozenset({"latency"})


class Finder:
    """Demand queries of this node. A core node answers itself, others ask one."""

    def __init__(
        self,
        links: LinkEndpoint,
        cores: CoreLinks,
        core: CoreSide | None,
        *,
        host: str,
        engine: str,
        own_roads: Callable[[bytes], Sequence[OwnRoad]],
    ) -> None:
        self._links = links
        self._cores = cores
        self._core = core
        self._host = host
        self._engine = engine
        self._own_roads = own_roads

    async def offers(self, demand: Demand, policy: str) -> OffersFound:
        """Ranked offers, as the task story wants them."""
        return (await self._found(FindOffers(demand, policy, LIMIT_DEFAULT)))[0]

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
        """Ranked offers with their routes, RTTs measured; a page of them with `after`. To `verify`, two core nodes are
        compared. Raises `PeerUnreachable`, or `UsageError` for an unknown policy.
        """
        started = trio.current_time()
        message = FindOffers(demand, policy, limit, explain=explain, after=after)
        verdict = await compare_cores(self._cores, self._core, message) if verify else None
        found, answered_by = await self._found(message, measure=True)
        routes = tuple(
            route_text(
                offer,
                transport_to(
                    offer,
                    own=self._own_roads(offer.provider.key),
                    own_hosts=(self._host,),
                    engine=self._engine,
                ),
            )
            for offer in found.offers
        )
        return Found(found, routes, answered_by, (trio.current_time() - started) * 1000, verdict)

    async def _found(self, message: FindOffers, *, measure: bool = False) -> tuple[OffersFound, str]:
        demand, policy = message.demand, message.policy
        rank = load_policy(policy)
        if self._core is not None:
            found, answered_by = await self._core.answer(message), "this node"
        else:
            found, answered_by = await self._ask(message)
        offers, removals = check_offers(found.offers, unix=time.time()), list(found.removals)
        if measure or policy in MEASURING_POLICIES or demand.constraints.rtt_ms_max is not None:
            offers, lost = apply_rtts(offers, await measure_rtts(self._links, offers), demand)
            removals += lost
            offers = rank(offers, Context(demand))
        return msgspec.structs.replace(found, offers=tuple(offers), removals=tuple(removals)), answered_by

    async def _ask(self, message: FindOffers) -> tuple[OffersFound, str]:
        failed: set[bytes] = set()
        while True:
            link = await self._cores.any(but=frozenset(failed))
            try:
                with trio.fail_after(ANSWER_SECONDS):
                    return await link.request(message, OffersFound), link.peer.name
            except (PeerUnreachable, Busy, Closing, trio.TooSlowError):
                failed.add(link.peer.key)
