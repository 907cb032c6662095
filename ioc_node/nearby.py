"""Who is near this node: estimated by a core node, pinged from here, remembered for half a minute.

A core node names the providers that can serve a demand and may be near enough, by what it and others measured; those
are pinged, the likeliest first, and only those that are near indeed are then asked for as offers. What a core node
estimates decides who is pinged, never who is near.
"""

import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import structlog
import trio

from ioc_node import api
from ioc_node.core.near import estimate_of, name_of
from ioc_node.core.nearness import PROBES_MAX, Estimate, choose_probes, order
from ioc_node.errors import PeerUnreachable
from ioc_node.market.routes import MEASURE_SECONDS, MEASURED_MAX, Measured
from ioc_node.runtime.links import LinkEndpoint
from ioc_node.runtime.pinging import Pinger, ping_us
from ioc_wire.errors import WireError
from ioc_wire.latency import FindNear, NearFound, Vantage
from ioc_wire.market import Contact, Demand, RttEstimate

NEAREST_MAX: Final = 64
"""Providers pinged to find the nearest, where the demand sets no limit."""
KEPT_SECONDS: Final = 30.0
"""So long a measured round trip decides whom to ask for; what is offered first is pinged anew."""
SILENT_SECONDS: Final = 10.0
"""So long who did not answer is left alone."""
PING_ALL_SECONDS: Final = 5.0
"""For all pings by datagrams of one demand; who is likely near comes first."""
KEPT_MAX: Final = 1024

Ask = Callable[[FindNear], Awaitable[NearFound]]
_log = structlog.get_logger()


class Nearby(NamedTuple):
    """Microseconds to providers by key, the estimates of those that were named, and the providers that are near, the
    nearest first. `missed` describes the nearest of the others."""

    measured: Mapping[bytes, int]
    estimates: Mapping[bytes, RttEstimate | None]
    within: tuple[bytes, ...]
    pinged: frozenset[bytes]
    probes: api.Probes
    missed: str


class Neighbours:
    """Of one node. `ask` asks a core node, `vantage` says where this node stands."""

    def __init__(
        self, links: LinkEndpoint, pinger: Pinger, ask: Ask, vantage: Callable[[], Awaitable[Vantage]]
    ) -> None:
        self._links = links
        self._pinger = pinger
        self._ask = ask
        self._vantage = vantage
        self._known: OrderedDict[bytes, tuple[float, int]] = OrderedDict()
        """When a provider was measured, and the microseconds; -1 where it did not answer."""

    async def look(self, demand: Demand) -> Nearby:
        """The providers that can serve a demand and are within its round trip, or the nearest where it sets none.
        Raises `PeerUnreachable`."""
        most_ms = demand.constraints.rtt_ms_max
        told = await self._ask(FindNear(demand, await self._vantage()))
        contacts = _one_each(each.contact for each in told.providers)
        estimates = {each.contact.key: each.estimate for each in told.providers}
        chosen = _choose(
            {key: estimate_of(each) for key, each in estimates.items() if key in contacts}, most_ms
        )
        known = self._fresh(chosen)
        wanted = [contacts[key] for key in chosen if key not in known]
        await self._measure(wanted, most_ms)
        measured = {key: rtt_us for key, rtt_us in self._fresh(chosen).items() if rtt_us >= 0}
        near = [
            (rtt_us, key) for key, rtt_us in measured.items() if most_ms is None or rtt_us <= most_ms * 1000
        ]
        probes = api.Probes(len(wanted), len(known), told.matching, told.far)
        within = tuple(key for _, key in sorted(near))
        pinged = frozenset(contact.key for contact in wanted)
        return Nearby(measured, estimates, within, pinged, probes, _missed(told, chosen, measured, most_ms))

    async def look_from_data(self, demand: Demand) -> Nearby:
        """The providers that can serve a demand and are probably within its round trip of where its data is. Nobody is
        pinged: this node stands elsewhere. Raises `PeerUnreachable`, `NotFound`."""
        most_ms = demand.constraints.rtt_ms_max or math.inf
        told = await self._ask(FindNear(demand, Vantage()))
        estimates = {each.contact.key: each.estimate for each in told.providers}
        known = sorted((one.rtt_us, key) for key, one in estimates.items() if one is not None)
        within = tuple(key for rtt_us, key in known if rtt_us <= most_ms * 1000)
        beyond = [
            f"provider {name_of(key)} is probably {rtt_us / 1000:.1f} of the {most_ms:g} ms from the data"
            for rtt_us, key in known[len(within) :][:1]
        ]
        missed = (*beyond, told.nearest, "nothing is known of the way from the data")
        probes = api.Probes(0, 0, told.matching, told.far)
        return Nearby({}, estimates, within, frozenset(), probes, next(filter(None, missed)))

    async def estimates(
        self, demand: Demand, providers: Sequence[bytes]
    ) -> Mapping[bytes, RttEstimate | None]:
        """How far these probably are; nothing where no core node says."""
        try:
            told = await self._ask(FindNear(demand, await self._vantage(), tuple(providers)))
        except (PeerUnreachable, WireError) as error:
            _log.debug("estimates_not_told", error=str(error))
            return {}
        return {each.contact.key: each.estimate for each in told.providers}

    def _fresh(self, providers: Iterable[bytes]) -> dict[bytes, int]:
        """What is known of late of these, by key; -1 for who is silent."""
        found = {}
        for key in providers:
            at, rtt_us = self._known.get(key, (-math.inf, -1))
            if trio.current_time() - at <= (KEPT_SECONDS if rtt_us >= 0 else SILENT_SECONDS):
                found[key] = rtt_us
        return found

    async def _measure(self, contacts: Sequence[Contact], most_ms: float | None) -> None:
        """Ping all of them by datagrams; where these do not get through, a few over links."""
        answered = await self._pinger.ping_all(contacts, enough_ms=most_ms, seconds=PING_ALL_SECONDS)
        for key, rtt_us in answered.items():
            self._note(key, rtt_us)
        silent = [contact for contact in contacts if contact.key not in answered]
        async with trio.open_nursery() as nursery:
            for contact in silent[:MEASURED_MAX]:
                nursery.start_soon(self._measure_over_link, contact)

    async def _measure_over_link(self, contact: Contact) -> None:
        with trio.move_on_after(MEASURE_SECONDS):
            try:
                link = await self._links.reach(contact)
                self._note(contact.key, await ping_us(link))
                return
            except (PeerUnreachable, WireError) as error:
                _log.debug("provider_not_measured", host=contact.host, error=str(error))
        self._note(contact.key, -1)

    def _note(self, provider: bytes, rtt_us: int) -> None:
        self._known[provider] = (trio.current_time(), rtt_us)
        self._known.move_to_end(provider)
        if len(self._known) > KEPT_MAX:
            self._known.popitem(last=False)


def _one_each(contacts: Iterable[Contact]) -> dict[bytes, Contact]:
    """By key, one for each address: whoever names one address often does not have it pinged often."""
    places = {(each.host, each.port): each for each in reversed(list(contacts))}
    return {each.key: each for each in reversed(places.values())}


def measured_of(nearby: Nearby | None) -> dict[bytes, Measured]:
    """What was measured, as offers take it."""
    return {key: Measured(rtt_us) for key, rtt_us in nearby.measured.items()} if nearby is not None else {}


def _choose(estimates: Mapping[bytes, Estimate | None], most_ms: float | None) -> tuple[bytes, ...]:
    if most_ms is not None:
        return choose_probes(estimates, most_ms, probes_max=PROBES_MAX)
    return tuple(sorted(estimates, key=lambda key: (order(estimates[key], None), key))[:NEAREST_MAX])


def _missed(
    told: NearFound, chosen: Sequence[bytes], measured: Mapping[bytes, int], most_ms: float | None
) -> str:
    """The nearest of those that are not near."""
    beyond = [
        (rtt_us, key) for key, rtt_us in measured.items() if most_ms is not None and rtt_us > most_ms * 1000
    ]
    if beyond:
        rtt_us, key = min(beyond)
        return f"provider {name_of(key)} is {rtt_us / 1000:.1f} of the {most_ms:g} ms away"
    if told.nearest:
        return told.nearest
    silent = [key for key in chosen if key not in measured]
    if silent:
        return f"provider {name_of(silent[0])} did not answer"
    return "farther than the nearest" if most_ms is None else ""
