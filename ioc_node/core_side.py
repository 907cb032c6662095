"""What a core node does more than others: it gossips, holds the catalogue, and answers demand queries."""

import math
import time
from collections.abc import Iterator
from itertools import islice
from typing import Final

import trio

from ioc_node import api
from ioc_node.config import NodeConfig
from ioc_node.core.near import finding_near
from ioc_node.core.nearness import SAME_PROVIDER
from ioc_node.core.trust import Ended, Trust
from ioc_node.forwarding import Forwarding
from ioc_node.identity import Identity, advertised_host
from ioc_node.market.query import QueryEngine
from ioc_node.runtime.catalogue_store import CatalogueShelf
from ioc_node.runtime.gossip import fork_text, make_gossip, name_of
from ioc_node.runtime.latency import CoreLatency
from ioc_node.runtime.link_handlers import Handlers
from ioc_node.runtime.links import Link, LinkEndpoint
from ioc_node.runtime.membership import CoreMembership
from ioc_node.runtime.pauses import run_with_pauses
from ioc_node.runtime.pinging import Pinger
from ioc_wire.cid import provider_prefix_of
from ioc_wire.errors import NotFound
from ioc_wire.latency import FindNear, NearFound
from ioc_wire.market import Contact, FindOffers, OffersFound

OVERVIEW_SECONDS: Final = 3.0
WARNINGS_MAX: Final = 8
ASKED_SECONDS: Final = 1.0


class CoreSide:
    """The rooms of a core node."""

    def __init__(self, config: NodeConfig, identity: Identity, shelf: CatalogueShelf, trust: Trust) -> None:
        self.gossip = make_gossip(
            identity.public_key,
            trust,
            compare_seconds=config.gossip.compare_seconds,
            shelf=shelf,
            interest=config.interest(),
        )
        self.forwarding = Forwarding(self.gossip.catalogue.interests)
        self.engine = QueryEngine(self.gossip.catalogue)
        self.membership = CoreMembership(identity.key, identity.chain, trust, self.gossip)
        self._contact = Contact(identity.public_key, advertised_host(config), config.port)
        self.latency = CoreLatency(
            identity.key,
            identity.chain,
            trust,
            contact=self._contact,
            providers=self._provider_contacts,
        )
        self._changed: dict[bytes, set[int] | None] = {}
        self._change = trio.Event()
        self._patching = False
        self._told: dict[tuple[bytes, int], None] = {}
        """Provider and part of the status that the table lacks; in order, each once."""
        self._entering = False
        self._status = trio.Event()
        self._asked_at = -math.inf
        self._overview: api.Overview | None = None
        self._table = trio.Lock()
        """Queries and patches take turns, in order of arrival."""
        self.gossip.on_changed(self._note_change)
        self.gossip.on_status(self._note_status)

    @property
    def providers(self) -> int:
        return len(self.gossip.catalogue.providers())

    @property
    def records(self) -> int:
        return self.gossip.catalogue.records

    @property
    def digest(self) -> bytes:
        """Equal on two core nodes that hold the same."""
        return self.gossip.catalogue.digest()

    @property
    def warnings(self) -> tuple[api.Warned, ...]:
        """What an operator should know: providers in quarantine, the first few."""
        catalogue = self.gossip.catalogue
        replicas = map(catalogue.replica, catalogue.providers())
        forked = (replica for replica in replicas if replica is not None and replica.fork is not None)
        return tuple(
            api.Warned(
                f"provider {name_of(replica.provider)}",
                f"quarantined, it signed two heads: {fork_text(replica)}",
            )
            for replica in islice(forked, WARNINGS_MAX)
        )

    def register(self, handlers: Handlers) -> None:
        """Answer gossip and demand queries; before links are opened."""
        self.gossip.register(handlers)
        self.membership.register(handlers)
        self.latency.register(handlers)
        handlers.serve(FindOffers, self._on_find)
        handlers.serve(FindNear, self._on_find_near)

    def key_revoked(self, ended: Ended) -> None:
        """`Trust` took in a revocation: offer nothing any more that rests on it."""
        self.gossip.key_revoked()
        self.membership.key_revoked()
        self.latency.key_revoked(ended)

    async def _on_find(self, link: Link, message: FindOffers) -> OffersFound:
        return await self.answer(message)

    async def answer(self, message: FindOffers) -> OffersFound:
        """Offers from this node's catalogue, or from another core node's where this one does not replicate all that the
        demand allows. Raises `NotFound` for an unknown policy.
        """
        if self.forwarding.is_mine(message.demand.constraints.allow):
            return await self._answer(message)
        found = None if message.forwarded else await self.forwarding.find(message)
        if found is not None:
            return found
        return self.forwarding.note(await self._answer(message), asked=not message.forwarded)

    def _is_asked(self) -> bool:
        """Whether queries came lately: patches are cut small for those that come next."""
        return trio.current_time() - self._asked_at < ASKED_SECONDS

    async def _answer(self, message: FindOffers) -> OffersFound:
        self._asked_at = trio.current_time()
        async with self._table:
            answering = self.engine.finding(
                message.demand,
                message.policy,
                message.limit,
                unix=time.time(),
                settled=self._settled,
                explain=message.explain,
                after=message.after,
                providers=message.providers,
                nearest_first=message.nearest_first,
            )
            return await run_with_pauses(answering, paused=True)  # while the lock was acquired

    async def _on_find_near(self, link: Link, message: FindNear) -> NearFound:
        return await self.near(message)

    async def near(self, message: FindNear) -> NearFound:
        """Who can serve a demand and may be near, from this node's catalogue and rows, or from another core node's
        where this one does not replicate all that the demand allows."""
        constraints = message.demand.constraints
        data = (constraints.data_at,) if constraints.data_at else ()
        areas = (*constraints.allow, *data) if constraints.allow else ()
        if not (message.forwarded or self.forwarding.is_mine(areas)):
            found = await self.forwarding.find_near(message, areas)
            if found is not None:
                return found
        holder = self._provider_at(constraints.data_at) if constraints.data_at else None
        vantage = self.latency.book.vantage_of(holder) if holder is not None else message.vantage
        async with self._table:
            contacts = await run_with_pauses(
                self.engine.serving(message.demand, unix=time.time(), providers=message.providers)
            )
        estimates = await run_with_pauses(self.latency.book.estimating(vantage, contacts))
        if holder in estimates:
            estimates[holder] = SAME_PROVIDER
        return await run_with_pauses(finding_near(contacts, estimates, constraints.rtt_ms_max))

    def _provider_at(self, area: str) -> bytes:
        """The key of the provider that an area names. Raises `BadIdentifier`, `NotFound`."""
        prefix = provider_prefix_of(area)
        found = self.gossip.catalogue.providers_of(prefix)
        if not found:
            raise NotFound(f"no provider of {prefix}, where the data is said to be, is known here")
        return found[0]

    def _provider_contacts(self) -> Iterator[Contact]:
        catalogue = self.gossip.catalogue
        replicas = filter(None, map(catalogue.replica, catalogue.providers()))
        return filter(None, (replica.contact for replica in replicas))

    async def overview(self) -> api.Overview:
        """What is held, per node prefix; made anew after `OVERVIEW_SECONDS`."""
        unix, made = time.time(), self._overview
        if made is None or not 0 <= unix - made.made < OVERVIEW_SECONDS:
            async with self._table:
                rows = await run_with_pauses(self.engine.summing(unix=unix))
            own = self.gossip.catalogue.interests.own
            made = self._overview = api.Overview(rows, () if own.is_everything else own.prefixes, unix)
        return made

    def _note_change(self, provider: bytes, slots: tuple[int, ...] | None) -> None:
        known = self._changed.setdefault(provider, set())
        if slots is None or known is None or self._are_most(provider, slots):
            self._changed[provider] = None
        else:
            known.update(slots)
        self._change.set()

    def _are_most(self, provider: bytes, slots: tuple[int, ...]) -> bool:
        """Whether half of a provider's slots or more changed: it is as well to say all."""
        replica = self.gossip.catalogue.replica(provider)
        return replica is not None and 2 * len(slots) >= replica.slots

    @property
    def _settled(self) -> bool:
        """Whether the table is up to the catalogue."""
        return not (self._changed or self._patching or self._told or self._entering)

    def _note_status(self, provider: bytes, part: int) -> None:
        self._told[provider, part] = None
        self._status.set()

    async def _follow_status(self) -> None:
        """Bring the status of the query's table up to the catalogue, until cancelled; no query waits for that."""
        while True:
            await self._status.wait()
            self._entering = True
            while self._told:
                provider, part = next(iter(self._told))
                del self._told[provider, part]  # what comes from now on is another one
                await run_with_pauses(self.engine.patching_status(provider, part))
            self._entering = False
            self._status = trio.Event()

    async def _follow(self) -> None:
        """Bring the query's table up to the catalogue, until cancelled."""
        while True:
            await self._change.wait()
            self._patching = True
            while self._changed:
                provider = next(iter(self._changed))
                slots = self._changed.pop(provider)
                chosen = sorted(slots) if slots is not None else None
                for piece in self.engine.pieces(provider, chosen, in_turns=self._is_asked):
                    async with self._table:
                        await run_with_pauses(piece)
            self._patching = False
            self._change = trio.Event()

    async def start(self, nursery: trio.Nursery, links: LinkEndpoint, pinger: Pinger) -> None:
        """Gossip and measure until the nursery ends."""
        self.forwarding.links = links
        nursery.start_soon(self._follow)
        nursery.start_soon(self._follow_status)
        nursery.start_soon(self.gossip.run, links)
        nursery.start_soon(self.membership.run, links, self._contact)
        nursery.start_soon(self.latency.run, links, pinger)
        await trio.lowlevel.checkpoint()
