"""Links to peers that nobody can dial: through the core node that such a peer keeps a link to, wherever that is now."""

from typing import Final

import structlog
import trio

from ioc_node.core_links import CoreLinks
from ioc_node.errors import PeerUnreachable
from ioc_node.runtime.circuits import Circuits
from ioc_node.runtime.links import Link, LinkEndpoint
from ioc_wire.errors import WireError
from ioc_wire.gossip import FetchHeads, HeadsPage
from ioc_wire.market import Contact

ASK_SECONDS: Final = 5.0

_log = structlog.get_logger()


class Through:
    """Finds the way to a hidden peer; what `LinkEndpoint.through` calls."""

    def __init__(self, links: LinkEndpoint, circuits: Circuits, cores: CoreLinks) -> None:
        self._links = links
        self._circuits = circuits
        self._cores = cores

    async def __call__(self, contact: Contact) -> Link:
        """A link to the peer of `contact`, which names a core node (`via`). Raises `PeerUnreachable`, or the
        `WireError` for which either side refused."""
        assert contact.via is not None
        try:
            return await self._through(contact, contact.via)
        except PeerUnreachable as error:
            moved = await self._look_up(contact.key)
            if moved is None or moved.via is None or moved == contact:
                raise
            _log.info("peer_has_moved", host=moved.host, port=moved.port, error=str(error))
            return await self._through(moved, moved.via)

    async def _through(self, contact: Contact, via: bytes) -> Link:
        core = await self._links.connect((contact.host, contact.port), via)
        return await self._circuits.connect(core, contact.key)

    async def _look_up(self, provider: bytes) -> Contact | None:
        """Where a core node says that a provider is now: it may have another home than when it was offered."""
        try:
            with trio.fail_after(ASK_SECONDS):
                core = await self._cores.any()
                async with core.open_stream(FetchHeads((provider,)), HeadsPage) as pages:
                    async for page in pages:
                        for news in page.news:
                            if news.contact is not None and news.contact.key == provider:
                                return news.contact
        except (PeerUnreachable, WireError, trio.TooSlowError) as error:
            _log.debug("peer_not_found", error=str(error))
        return None
