"""Round trips to nodes: by the DHT's datagrams, and where these do not get through over a link that is open anyway.

A ping in a DHT session proves the key of who answers, costs one datagram each way and no connection, so that hundreds
of providers can be measured from time to time. The first one may begin a session, whose cryptography is in its round
trip: hence the median of three.
"""

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Final

import trio

from ioc_node.core.routing import Contact as DhtContact
from ioc_node.errors import PeerUnreachable
from ioc_node.runtime.dht import Dht
from ioc_node.runtime.links import Link, LinkEndpoint
from ioc_wire.errors import WireError
from ioc_wire.identity import node_id_of
from ioc_wire.market import Contact, MeasureRtt, RttMeasured

PINGS: Final = 3
PING_SECONDS: Final = 1.5
"""A node that has not answered by then is passed over."""
PINGS_AT_ONCE: Final = 64
SURELY_MS: Final = 20.0
"""A first ping this far beyond twice what is asked for needs no second one: it holds the cost of a new session too."""


async def ping_us(link: Link) -> int:
    """The median round trip of a few small requests over a link, in microseconds."""
    times = []
    for _ in range(PINGS):
        began = trio.current_time()
        await link.request(MeasureRtt(), RttMeasured)
        times.append(trio.current_time() - began)
    return round(statistics.median(times) * 1_000_000)


class Pinger:
    """Measures round trips for one node."""

    def __init__(self, dht: Dht, links: LinkEndpoint) -> None:
        self._dht = dht
        self._links = links

    async def ping(self, contact: Contact, *, enough_ms: float | None = None) -> int:
        """Microseconds to a node: the median of three pings; of one where that is beyond `enough_ms` already. Raises
        `PeerUnreachable` or a `WireError`."""
        try:
            with trio.fail_after(PING_SECONDS):
                return await self._by_datagrams(contact, enough_ms)
        except (PeerUnreachable, WireError, trio.TooSlowError) as error:
            found = await self._over_link(contact.key)
            if found is not None:
                return found
            if isinstance(error, trio.TooSlowError):
                raise PeerUnreachable(f"no answer within {PING_SECONDS:g} s") from None
            raise

    async def ping_all(
        self, contacts: Iterable[Contact], *, enough_ms: float | None = None, seconds: float = math.inf
    ) -> Mapping[bytes, int]:
        """Microseconds by key, of those that answered within `seconds` for all of them; in their order,
        `PINGS_AT_ONCE` at a time."""
        found: dict[bytes, int] = {}
        left = iter(tuple(contacts))

        async def work() -> None:
            for contact in left:
                try:
                    found[contact.key] = await self.ping(contact, enough_ms=enough_ms)
                except (PeerUnreachable, WireError):
                    continue

        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for _ in range(PINGS_AT_ONCE):
                    nursery.start_soon(work)
        return found

    async def _by_datagrams(self, contact: Contact, enough_ms: float | None) -> int:
        if contact.via is not None:
            raise PeerUnreachable("no datagrams reach it: it is outbound only")
        peer = DhtContact(node_id_of(contact.key), await self._address(contact))
        times: list[float] = []
        while len(times) < PINGS:
            times.append((await self._dht.ping(peer)).seconds)
            if enough_ms is not None and times[0] * 1000 > 2 * enough_ms + SURELY_MS:
                break
        return round(statistics.median(times) * 1_000_000)

    async def _address(self, contact: Contact) -> tuple[str, int]:
        family = trio.socket.AF_UNSPEC if ":" in self._dht.address[0] else trio.socket.AF_INET
        try:
            found = await trio.socket.getaddrinfo(contact.host, contact.port, family, trio.socket.SOCK_DGRAM)
        except OSError as error:
            raise PeerUnreachable(f"{contact.host}:{contact.port}: {error.strerror or error}") from None
        return str(found[0][4][0]), int(found[0][4][1])

    async def _over_link(self, key: bytes) -> int | None:
        """By a link to a provider, or the heartbeats of one to another node; None where there is no link."""
        link = self._links.link(key)
        if link is None:
            return None
        if "provider" not in link.peer.roles:
            seconds = link.heart.round_trip_seconds
            return round(seconds * 1_000_000) if seconds is not None else None
        try:
            with trio.move_on_after(PING_SECONDS):
                return await ping_us(link)
        except (PeerUnreachable, WireError):
            pass
        return None
