"""Where a node stands that is no core node: its round trips to core nodes, and the coordinate that follows from them.

Taken when somebody needs it and kept for a minute. The core nodes to measure are named by one of them, with their own
coordinates; both are hints, and one that lies makes estimates wrong and costs pings, no more.
"""

import random
from collections.abc import Sequence
from typing import Final

import structlog
import trio

from ioc_node.core.near import coordinate_of, told_of
from ioc_node.core.vivaldi import Coordinate, Vivaldi
from ioc_node.core_links import CoreLinks
from ioc_node.errors import PeerUnreachable
from ioc_node.runtime.pinging import Pinger
from ioc_wire.errors import WireError
from ioc_wire.latency import CorePlace, CoreRtt, FetchPlaces, PlaceNoted, PlacesTold, Vantage

CORES_MAX: Final = 16
"""Core nodes that are measured."""
KEPT_SECONDS: Final = 60.0
AGAIN_SECONDS: Final = 5.0
"""After a try that not everybody answered."""
TAKE_SECONDS: Final = 2.5
STEPS: Final = 8
"""Steps of Vivaldi for one measured round trip."""
TELL_SECONDS_FIRST: Final = 2.0
TELL_SECONDS_MAX: Final = 300.0

_log = structlog.get_logger()


class Bearings:
    """Of one node."""

    def __init__(self, cores: CoreLinks, pinger: Pinger) -> None:
        self._cores = cores
        self._pinger = pinger
        self._vivaldi = Vivaldi(random.SystemRandom())
        self._vantage = Vantage()
        self._taken = float("-inf")
        self._lock = trio.Lock()

    async def take(self) -> Vantage:
        """Where this node stands, measured within the last minute; an empty vantage where no core node answers."""
        async with self._lock:
            if trio.current_time() - self._taken >= KEPT_SECONDS:
                self._taken = trio.current_time() + AGAIN_SECONDS - KEPT_SECONDS
                with trio.move_on_after(TAKE_SECONDS):
                    await self._measure()
            return self._vantage

    async def tell(self) -> None:
        """Tell the core nodes that this node is linked with where it stands, until cancelled."""
        pause_seconds = TELL_SECONDS_FIRST
        while True:
            await trio.sleep(pause_seconds * random.uniform(0.75, 1.25))  # noqa: S311 - jitter
            pause_seconds = min(2 * pause_seconds, TELL_SECONDS_MAX)
            coordinate = (await self.take()).coordinate
            if coordinate is not None:
                for link in self._cores.linked():
                    link.notify_nowait(PlaceNoted(coordinate))

    async def _measure(self) -> None:
        try:
            link = await self._cores.any()
            told = await link.request(FetchPlaces(), PlacesTold)
        except (PeerUnreachable, WireError) as error:
            _log.debug("places_not_told", error=str(error))
            return
        places = {each.contact.key: each for each in self._chosen(told.places)}
        found = await self._pinger.ping_all(each.contact for each in places.values())
        for _ in range(STEPS):
            for core, rtt_us in found.items():
                at = coordinate_of(places[core].coordinate)
                self._vivaldi.observe(core, rtt_us / 1000, at or Coordinate())
        rtts = tuple(CoreRtt(core, rtt_us) for core, rtt_us in found.items())
        self._vantage = Vantage(rtts, told_of(self._vivaldi.coordinate) if rtts else None)
        if len(found) == len(places):
            self._taken = trio.current_time()

    def _chosen(self, places: Sequence[CorePlace]) -> list[CorePlace]:
        """Those that this node is linked with first, then any."""
        linked = {link.peer.key for link in self._cores.linked()}
        return sorted(places, key=lambda each: (each.contact.key not in linked, each.contact.key))[:CORES_MAX]
