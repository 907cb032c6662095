"""Asking another core node for what this one does not replicate: one hop, the national node first.

A request that came forwarded is answered from what is held, so that none goes round in circles. What is asked for is
said by areas; a core node is asked that replicates all of them, by what it told of itself.
"""

from typing import Final, TypeVar

import msgspec
import structlog
import trio

from ioc_node.core.interest import EVERYTHING, Interests
from ioc_node.errors import PeerUnreachable
from ioc_node.runtime.gossip import is_core
from ioc_node.runtime.links import Link, LinkEndpoint
from ioc_wire.codec import Message
from ioc_wire.errors import WireError
from ioc_wire.latency import FindNear, NearFound
from ioc_wire.market import FindOffers, OffersFound, RecordResolved, Removal, ResolveRecord

FIND_SECONDS: Final = 3.0
"""For all that are asked; whoever asked this node waits five."""
RESOLVE_SECONDS: Final = 1.5
"""As above; whoever asked this node waits two."""
TRIES_MAX: Final = 3
REMOVALS_MAX: Final = 32

M = TypeVar("M", bound=Message)
INTEREST: Final = "interest"
"""The condition by which an answer says that its core node does not hold all that the demand allows."""

_log = structlog.get_logger()


class Forwarding:
    """Of one core node. Nobody is asked before `links` are set."""

    def __init__(self, interests: Interests) -> None:
        self.links: LinkEndpoint | None = None
        self._interests = interests

    def is_mine(self, areas: tuple[str, ...]) -> bool:
        """Whether this node replicates all that lies within these areas; none means anywhere."""
        return self._interests.own.covers_places(areas)

    async def find(self, message: FindOffers) -> OffersFound | None:
        """The offers that another core node has, or None where nobody who holds them all answers."""
        areas = message.demand.constraints.allow
        return await self._ask(
            areas, msgspec.structs.replace(message, forwarded=True), OffersFound, FIND_SECONDS
        )

    async def find_near(self, message: FindNear, areas: tuple[str, ...]) -> NearFound | None:
        """What another core node knows of who is near, or None where nobody who holds them all answers."""
        forwarded = msgspec.structs.replace(message, forwarded=True)
        return await self._ask(areas, forwarded, NearFound, FIND_SECONDS)

    async def resolve(self, message: ResolveRecord) -> RecordResolved | None:
        """The record that another core node has, if one has it. The asker verifies it."""
        forwarded = msgspec.structs.replace(message, forwarded=True)
        return await self._ask((message.cid,), forwarded, RecordResolved, RESOLVE_SECONDS)

    def note(self, own: OffersFound, *, asked: bool) -> OffersFound:
        """This node's own answer, saying what was not looked at. `asked`: others were, in vain."""
        text = f"what lies outside of {self._interests.own} was not looked at"
        text += ": no core node that holds it answers now" if asked else ""
        removals = (*own.removals[: REMOVALS_MAX - 1], Removal(INTEREST, 0, text[:512]))
        return msgspec.structs.replace(own, removals=removals)

    def _holders(self, areas: tuple[str, ...]) -> list[Link]:
        links = self.links.links.values() if self.links is not None else ()
        told = self._interests.told
        found = [
            link
            for link in links
            if is_core(link)
            and not link.closed.is_set()
            and told.get(link.peer.key, EVERYTHING).covers_places(areas)
        ]
        return sorted(found, key=lambda link: ("national" not in link.peer.roles, _distance(link)))

    async def _ask(
        self, areas: tuple[str, ...], message: Message, expected: type[M], seconds: float
    ) -> M | None:
        for link in self._holders(areas)[:TRIES_MAX]:
            try:
                with trio.fail_after(seconds / TRIES_MAX):
                    return await link.request(message, expected)
            except (WireError, PeerUnreachable, trio.TooSlowError) as error:
                _log.debug("forward_failed", peer=link.peer.name, error=str(error))
        return None


def _distance(link: Link) -> float:
    seconds = link.heart.round_trip_seconds
    return seconds if seconds is not None else float("inf")
