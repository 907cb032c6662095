"""Latency between core nodes and providers: measured at a slow pace, signed as a row, told to other core nodes.

Rounds go on for ever: other core nodes first, for this node's own coordinate, then providers, one after the other with
a pause between two. Where there are more providers than a row holds, those that live here come first, and each core
node chooses the rest by another order, so that together they measure more. A row goes from its signer to those linked
with it, and no further: it is large. When a link between core nodes comes up, and with one of them after each round,
each fetches what it lacks.
"""

import random
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.core.latency import LatencyBook, Measurements
from ioc_node.core.near import told_of
from ioc_node.core.rates import RateTable
from ioc_node.core.trust import Ended, Trust
from ioc_node.core.vivaldi import Coordinate, Vivaldi
from ioc_node.errors import PeerUnreachable
from ioc_node.runtime.gossip import contact_of, is_core
from ioc_node.runtime.link_handlers import Handlers
from ioc_node.runtime.links import Link, LinkEndpoint
from ioc_node.runtime.pinging import Pinger
from ioc_wire import limits
from ioc_wire.errors import RateLimited, WireError
from ioc_wire.latency import (
    CoordinateTold,
    CorePlace,
    CoreRtt,
    FetchLatency,
    FetchPlaces,
    LatencyNews,
    LatencyRow,
    LatencyTold,
    PlaceNoted,
    PlacesTold,
    Vantage,
)
from ioc_wire.market import Contact
from ioc_wire.signed import Signed, public_bytes, sign

ROUND_SECONDS_FIRST: Final = 1.0
ROUND_SECONDS_MAX: Final = 120.0
"""Between two rounds; twice as long after each, from the first on."""
PACE_SECONDS: Final = 0.25
"""Between two providers, in rounds of more than `AT_ONCE` of them."""
AT_ONCE: Final = 8
STEPS: Final = 4
"""Steps of Vivaldi for one measured round trip: rounds are few."""
ROW_SECONDS: Final = 900
"""How long a row holds: several of the longest rounds."""
STALL_SECONDS: Final = 20.0
FETCHES_MAX: Final = 16
"""Requests until one peer's rows must have been fetched."""
PLACES_MAX: Final = 1024
"""Providers whose own word of their place is kept; the one that spoke longest ago goes."""
NEWS_PER_SECOND: Final = 0.5
NEWS_BURST: Final = 64.0
"""Rows told by one peer that are verified; further ones wait for the next comparison."""
ASKED_PER_SECOND: Final = 1.0
ASKED_BURST: Final = 64.0

_log = structlog.get_logger()


class CoreLatency:
    """What one core node knows of round trips. `providers` gives those that are to be measured."""

    def __init__(
        self,
        key: Ed25519PrivateKey,
        chain: Sequence[Signed],
        trust: Trust,
        *,
        contact: Contact,
        providers: Callable[[], Iterable[Contact]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._key = key
        self._own = public_bytes(key)
        self.book = LatencyBook(trust, own=self._own)
        self._chain = tuple(chain) if trust.certified else ()
        self._contact = contact
        self._providers = providers
        self._clock = clock
        self._measured = Measurements()
        self._vivaldi = Vivaldi(random.SystemRandom())
        self._cores: OrderedDict[bytes, int] = OrderedDict()
        """Microseconds to core nodes."""
        self._places: OrderedDict[bytes, CoordinateTold] = OrderedDict()
        self._links: LinkEndpoint | None = None
        self._nursery: trio.Nursery | None = None
        self._told = RateTable(NEWS_PER_SECOND, NEWS_BURST)
        self._asked = RateTable(ASKED_PER_SECOND, ASKED_BURST)

    @property
    def coordinate(self) -> Coordinate:
        return self._vivaldi.coordinate

    def vantage(self) -> Vantage:
        """Where this node stands, for demands of its own."""
        rtts = [CoreRtt(self._own, 0), *(CoreRtt(*each) for each in self._cores.items())]
        return Vantage(tuple(rtts[: limits.VANTAGE_CORES_MAX]), told_of(self.coordinate))

    def register(self, handlers: Handlers) -> None:
        """Take notices and answer whoever asks; before links are opened."""
        handlers.serve_notify(LatencyTold, self._on_told)
        handlers.serve_notify(PlaceNoted, self._on_place)
        handlers.serve(FetchLatency, self._on_fetch)
        handlers.serve(FetchPlaces, self._on_places)

    def key_revoked(self, ended: Ended) -> None:
        """`Trust` took in a revocation: drop what rests on it."""
        self.book.drop_revoked()

    async def run(self, links: LinkEndpoint, pinger: Pinger) -> None:
        """Measure and tell until cancelled."""
        async with trio.open_nursery() as nursery:
            self._links, self._nursery = links, nursery
            links.on_link_up(self._on_link_up)
            for link in self._core_links():
                self._on_link_up(link)
            pause_seconds = ROUND_SECONDS_FIRST
            while True:
                await trio.sleep(pause_seconds * random.uniform(0.75, 1.25))  # noqa: S311 - jitter
                pause_seconds = min(2 * pause_seconds, ROUND_SECONDS_MAX)
                await self._measure_cores(pinger)
                await self._measure_providers(pinger)
                self._publish()
                if cores := self._core_links():
                    await self._fetch(random.choice(cores))  # noqa: S311 - any will do

    # -- measuring

    async def _measure_cores(self, pinger: Pinger) -> None:
        contacts = [each for each in map(contact_of, self._core_links()) if each is not None]
        measured = await pinger.ping_all(contacts[: limits.VANTAGE_CORES_MAX])
        for core, rtt_us in measured.items():
            self._cores[core] = rtt_us
            self._cores.move_to_end(core)
            for _ in range(STEPS):
                self._vivaldi.observe(core, rtt_us / 1000, self.book.coordinate(core) or Coordinate())
        while len(self._cores) > limits.VANTAGE_CORES_MAX:
            self._cores.popitem(last=False)

    async def _measure_providers(self, pinger: Pinger) -> None:
        targets = self._targets()
        limit = trio.Semaphore(AT_ONCE)

        async def measure(contact: Contact) -> None:
            async with limit:
                try:
                    rtt_us = await pinger.ping(contact)
                except (PeerUnreachable, WireError) as error:
                    _log.debug("latency_not_measured", host=contact.host, error=str(error))
                    return
                self._measured.note(contact.key, rtt_us, unix=self._clock())

        async with trio.open_nursery() as nursery:
            for contact in targets:
                nursery.start_soon(measure, contact)
                if len(targets) > AT_ONCE:
                    await trio.sleep(PACE_SECONDS)

    def _targets(self) -> list[Contact]:
        """Whom to measure: who is linked here first, then in this node's own order."""
        linked = self._links.links.keys() if self._links is not None else ()
        mine = int.from_bytes(self._own[:8], "big")

        def order(contact: Contact) -> tuple[bool, int]:
            return contact.key not in linked, int.from_bytes(contact.key[:8], "big") ^ mine

        contacts = {each.key: each for each in self._providers() if each.key != self._own}
        return sorted(contacts.values(), key=order)[: limits.LATENCY_RTTS_MAX]

    def _publish(self) -> None:
        now = self._clock()
        self.book.expire(unix=now)
        rtts = self._measured.rtts(unix=now, places=self._places)
        # Numbered by the clock, so that a restart goes on above what it told before.
        row = LatencyRow(round(now * 1000), int(now), int(now) + ROW_SECONDS, rtts, told_of(self.coordinate))
        news = LatencyNews(sign(self._key, row), self._chain)
        try:
            self.book.take(news, unix=now)
        except WireError as error:  # it ends soon, or was revoked: nobody else would take it either
            _log.warning("latency_row_not_told", error=str(error))
            return
        for link in self._core_links():
            link.notify_nowait(LatencyTold((news,)))

    # -- links

    def _core_links(self) -> list[Link]:
        links = self._links.links.values() if self._links is not None else ()
        return [link for link in links if is_core(link) and not link.closed.is_set()]

    def _on_link_up(self, link: Link) -> None:
        if is_core(link) and self._nursery is not None:
            self._nursery.start_soon(self._fetch, link)

    async def _fetch(self, link: Link) -> None:
        try:
            with trio.move_on_after(STALL_SECONDS):
                for _ in range(FETCHES_MAX):
                    answer = await link.request(FetchLatency(self.book.held()), LatencyTold)
                    if not self._take(link, answer.news):
                        break
        except (WireError, PeerUnreachable) as error:
            _log.debug("latency_not_fetched", peer=link.peer.name, error=str(error))

    def _take(self, link: Link, news: Iterable[LatencyNews]) -> list[LatencyNews]:
        """Take in what a peer told, whatever of it is good; returns what was new."""
        new = []
        for each in news:
            try:
                if self.book.take(each, unix=self._clock()):
                    new.append(each)
            except WireError as error:
                _log.info("latency_row_refused", told_by=link.peer.name, error=str(error))
        return new

    def _on_told(self, link: Link, message: LatencyTold) -> None:
        if not is_core(link):
            _log.info("latency_refused", told_by=link.peer.name)
            return
        now = trio.current_time()
        news = [each for each in message.news if self._told.take(link.peer.key, now)]
        self._take(link, news)

    async def _on_fetch(self, link: Link, message: FetchLatency) -> LatencyTold:
        self._allow(link)
        self.book.expire(unix=self._clock())
        return LatencyTold(self.book.lacking(message.held))

    async def _on_places(self, link: Link, message: FetchPlaces) -> PlacesTold:
        self._allow(link)
        contacts = [self._contact, *filter(None, map(contact_of, self._core_links()))]
        return PlacesTold(
            tuple(CorePlace(each, self._place(each.key)) for each in contacts[: limits.VANTAGE_CORES_MAX])
        )

    def _place(self, core: bytes) -> CoordinateTold | None:
        at = self.coordinate if core == self._own else self.book.coordinate(core)
        return told_of(at) if at is not None else None

    def _on_place(self, link: Link, message: PlaceNoted) -> None:
        if "provider" not in link.peer.roles:
            return
        self._places[link.peer.key] = message.coordinate
        self._places.move_to_end(link.peer.key)
        if len(self._places) > PLACES_MAX:
            self._places.popitem(last=False)

    def _allow(self, link: Link) -> None:
        if not self._asked.take(link.peer.key, trio.current_time()):
            raise RateLimited("latency; ask again in a while")
