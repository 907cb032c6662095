"""Links to core nodes, for whoever needs an answer from one: any will do, the next one takes over.

Core nodes are those that this node is linked with and those that they name. Both are remembered, so that a restarted
node finds its network again though its bootstrap peers may be gone.
"""

import time
from typing import Final

import structlog
import trio

from ioc_bootstrap.addresses import Address
from ioc_node.errors import PeerUnreachable
from ioc_node.runtime.dialing import dial_first
from ioc_node.runtime.gossip import contact_of, is_core
from ioc_node.runtime.links import Link, LinkEndpoint
from ioc_node.runtime.store import PeerMemory
from ioc_wire.errors import WireError
from ioc_wire.gossip import ExchangePeers, PeersKnown
from ioc_wire.market import Contact

CONTACTS_MAX: Final = 64
EXCHANGE_SECONDS: Final = 5.0

_log = structlog.get_logger()


class CoreLinks:
    """Knows core nodes and finds a living one."""

    def __init__(self, links: LinkEndpoint, memory: PeerMemory) -> None:
        self._links = links
        self._memory = memory
        self._contacts: dict[bytes, Contact] = {}
        links.on_link_up(self._note)
        for link in links.links.values():
            self._note(link)

    @property
    def contacts(self) -> tuple[Contact, ...]:
        return tuple(self._contacts.values())

    def linked(self) -> list[Link]:
        """Open links to core nodes: regional and industry nodes first, since there are more of them."""
        found = [link for link in self._links.links.values() if is_core(link) and not link.closed.is_set()]
        return sorted(found, key=lambda link: ("national" in link.peer.roles, link.peer.key))

    def first(self) -> Link | None:
        """The link through which others may reach a node that they cannot dial; None while there is none."""
        return next((link for link in self.linked() if link.peer.endpoint is not None), None)

    async def any(self, *, but: frozenset[bytes] = frozenset()) -> Link:
        """A link to a core node, dialed where there is none. Raises `PeerUnreachable`."""
        for link in self.linked():
            if link.peer.key not in but:
                return link
        unasked = [contact for key, contact in self._contacts.items() if key not in but]
        found = await dial_first(self._links, unasked, failed=_note_failure)
        if found is not None:
            return found
        raise PeerUnreachable("no core node can be reached now; `ioc-node status` shows how joining stands")

    async def learn(self, link: Link) -> None:
        """Ask a core node for others."""
        with trio.move_on_after(EXCHANGE_SECONDS):
            try:
                known = await link.request(ExchangePeers(), PeersKnown)
            except (WireError, PeerUnreachable) as error:
                _log.debug("exchange_failed", peer=link.peer.name, error=str(error))
                return
            self.hear(link, known)

    def hear(self, link: Link, known: PeersKnown) -> None:
        """A core node names others, asked or not: remember them, also over a restart."""
        if not is_core(link):
            return
        for contact in known.core[:CONTACTS_MAX]:
            if contact.key != self._links.local.public_key:
                self._know(contact)
                self._memory.hear_of(_address(contact), contact.key)

    def _note(self, link: Link) -> None:
        if is_core(link) and (contact := contact_of(link)) is not None:
            self._know(contact)
            self._memory.save_peer(_address(contact), contact.key, int(time.time()))

    def _know(self, contact: Contact) -> None:
        if contact.key in self._contacts or len(self._contacts) < CONTACTS_MAX:
            self._contacts[contact.key] = contact


def _note_failure(contact: Contact, why: str) -> None:
    _log.debug("core_unreachable", host=contact.host, port=contact.port, error=why)


def _address(contact: Contact) -> str:
    return str(Address(contact.host, contact.port))
