"""A provider at home: it publishes its catalogue and status to one core node, and moves to another when that is gone.

The core nodes that may become home are those that this node is linked with and those that they name. Publishing again
is harmless (one head, one place), so that a move loses and doubles nothing. Status goes out on change, and otherwise
every `status_seconds`: a provider that is silent for several of these is no longer offered.
"""

import random
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import structlog
import trio

from ioc_node.core.own_catalogue import Commit, OwnCatalogue
from ioc_node.errors import PeerUnreachable, StorageFull
from ioc_node.runtime.entry_pages import send_entries
from ioc_node.runtime.gossip import is_core, name_of
from ioc_node.runtime.link_handlers import Handlers, SendItem
from ioc_node.runtime.links import Link, LinkEndpoint
from ioc_wire.errors import Busy, Closing, NotFound, WireError
from ioc_wire.gossip import (
    ExchangePeers,
    FetchEntries,
    HeadNews,
    PeersKnown,
    Published,
    PublishHead,
    StatusAnnounced,
)
from ioc_wire.identity import node_id_of
from ioc_wire.market import Contact
from ioc_wire.records import StatusRow
from ioc_wire.signed import Signed

log = structlog.get_logger()

ANSWER_SECONDS: Final = 70.0
EXCHANGE_SECONDS: Final = 5.0
PUBLISH_AGAIN_SECONDS: Final = 60.0
"""The head is published again after so long, in case the home core node has lost it."""
STATUS_SECONDS_MIN: Final = 0.05
"""Changes of status are gathered for so long."""
STATUS_LIVES: Final = 6
"""Status is good for so many intervals, at least ten seconds."""
SHUNNED_SECONDS: Final = 5.0
"""A core node that failed is not tried again for so long, while there are others."""
PAUSE_SECONDS: Final = 0.25
CONTACTS_MAX: Final = 64


class OwnShelf(Protocol):
    """Where a provider's own catalogue survives a restart; see `ioc_node.runtime.catalogue_store`."""

    async def save_own(self, own: OwnCatalogue, commit: Commit) -> None: ...


class Home:
    """Publishes one `OwnCatalogue`. `status` gives the rows as they are now; `chain` the newest delegations."""

    def __init__(
        self,
        own: OwnCatalogue,
        *,
        chain: Callable[[], tuple[Signed, ...]],
        contact: Callable[[], Contact | None],
        status: Callable[[], Sequence[StatusRow]],
        status_seconds: float = 5.0,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.own = own
        self.link: Link | None = None
        """The link to the home core node, None while there is none."""
        self.published_seq = 0
        """The newest head that a home core node confirmed to hold."""
        self.state = "no core node found yet"
        """One line for an operator."""
        self._chain = chain
        self._contact = contact
        self._status = status
        self._status_seconds = status_seconds
        self._rng = rng or random.Random()  # noqa: S311 - jitter
        self._clock = clock
        self._contacts: dict[bytes, Contact] = {}
        self._shunned: dict[bytes, float] = {}
        self._stir = trio.Event()
        self._status_due = False
        self._published = trio.Event()

    # -- what the rest of the node calls

    def register(self, handlers: Handlers) -> None:
        """Let core nodes fetch this node's own entries, and hear of core nodes; before links are opened. Not on a
        core node, whose gossip answers all that."""
        handlers.serve_stream(FetchEntries, self._on_fetch)
        handlers.serve_notify(PeersKnown, self._on_peers)

    def catalogue_changed(self) -> None:
        """Records were put or withdrawn: commit and publish soon."""
        self._stir.set()

    def status_changed(self) -> None:
        """What is free has changed: tell it soon."""
        self._status_due = True
        self._stir.set()

    def know(self, contact: Contact) -> None:
        """A core node that may become home, remembered from earlier or from a bootstrap address."""
        if len(self._contacts) < CONTACTS_MAX or contact.key in self._contacts:
            self._contacts[contact.key] = contact

    async def wait_published(self) -> int:
        """Wait until a home core node holds the newest head; returns its seq."""
        while not self.own.seq or self.published_seq < self.own.seq:
            await self._published.wait()
        return self.published_seq

    async def run(self, links: LinkEndpoint, shelf: OwnShelf | None = None) -> None:
        """Stay published until cancelled."""
        pause_seconds = PAUSE_SECONDS
        while True:
            link = await self._next_home(links)
            if link is None:
                await trio.sleep(pause_seconds * self._rng.uniform(0.5, 1.0))
                pause_seconds = min(2 * pause_seconds, 5.0)
                continue
            self.link = link
            try:
                await self._live_at(link, shelf)
                self._say(f"the link to {link.peer.name} broke: {link.close_reason}")
                pause_seconds = PAUSE_SECONDS
            except (WireError, PeerUnreachable) as error:
                self._say(f"{link.peer.name}: {error}")
                await trio.sleep(pause_seconds * self._rng.uniform(0.5, 1.0))
                pause_seconds = min(2 * pause_seconds, 5.0)
            finally:
                self.link = None
            if links.link(link.peer.key) in (
                link,
                None,
            ):  # else its place was taken by a newer link to that peer
                self._shunned[link.peer.key] = trio.current_time() + SHUNNED_SECONDS

    # -- choosing

    async def _next_home(self, links: LinkEndpoint) -> Link | None:
        now = trio.current_time()
        self._shunned = {key: until for key, until in self._shunned.items() if until > now}
        linked = [link for link in links.links.values() if is_core(link) and not link.closed.is_set()]
        for link in sorted(linked, key=self._preference):
            if link.peer.key not in self._shunned:
                return link
        for contact in sorted(self._contacts.values(), key=lambda contact: self._spread(contact.key)):
            if contact.key in self._shunned or contact.key in links.links:
                continue
            try:
                return await links.connect((contact.host, contact.port), contact.key)
            except (WireError, PeerUnreachable) as error:
                self._shunned[contact.key] = trio.current_time() + SHUNNED_SECONDS
                self._say(f"{name_of(contact.key)}: {error}")
        if linked:  # all of them failed a moment ago: better the one that failed first than none
            return min(linked, key=lambda link: self._shunned[link.peer.key])
        return None

    def _preference(self, link: Link) -> tuple[bool, bool, bytes]:
        """The own region or industry first, then others, the national node last; among equals providers spread."""
        records = next(iter(self.own.records()), "")
        prefix = records.removeprefix("ioc:").partition("/")[0]
        grant = link.peer.grant
        covers = grant is not None and bool(grant.prefix) and bool(prefix) and grant.covers(prefix)
        return (not covers, "national" in link.peer.roles, self._spread(link.peer.key))

    def _spread(self, key: bytes) -> bytes:
        own = node_id_of(self.own.key)
        return bytes(a ^ b for a, b in zip(own, node_id_of(key), strict=True))

    # -- being there

    async def _live_at(self, link: Link, shelf: OwnShelf | None) -> None:
        await self._publish(link, shelf)
        self._say(f"published to {link.peer.name}")
        self._send_status(link)
        await self._learn_contacts(link)
        status_at = trio.current_time() + self._status_seconds
        publish_at = trio.current_time() + PUBLISH_AGAIN_SECONDS
        while not link.closed.is_set():
            await self._wait_stir(link, min(status_at, publish_at))
            commit = await self._commit(shelf)
            now = trio.current_time()
            if commit or now >= publish_at or self.published_seq < self.own.seq:
                await self._publish(link, shelf)
                self._status_due = True
                publish_at = now + PUBLISH_AGAIN_SECONDS
            if self._status_due or now >= status_at:
                self._send_status(link)
                status_at = now + self._status_seconds

    async def _wait_stir(self, link: Link, deadline: float) -> None:
        """Until something changed, the link broke or it is time."""
        async with trio.open_nursery() as nursery:

            async def watch(event: trio.Event) -> None:
                await event.wait()
                nursery.cancel_scope.cancel()

            nursery.cancel_scope.deadline = deadline
            nursery.start_soon(watch, link.closed)
            nursery.start_soon(watch, self._stir)
        if self._stir.is_set():
            self._stir = trio.Event()
            await trio.sleep(STATUS_SECONDS_MIN)

    async def _commit(self, shelf: OwnShelf | None) -> bool:
        commit = self.own.commit(unix=self._clock())
        if commit is not None and shelf is not None:
            try:
                await shelf.save_own(self.own, commit)
            except StorageFull as error:
                # Publishing goes on: without this state the log begins again at the clock, which forks nothing.
                log.error("own_catalogue_not_stored", error=str(error))
        return commit is not None

    async def _publish(self, link: Link, shelf: OwnShelf | None) -> None:
        """Have the home core node hold the newest head. Raises why it does not."""
        await self._commit(shelf)
        for attempt in range(5):
            head = self.own.head
            assert head is not None
            news = HeadNews(head, self._chain(), self._contact())
            try:
                with trio.move_on_after(ANSWER_SECONDS):
                    answer = await link.request(PublishHead(news), Published)
                    self.published_seq = max(self.published_seq, answer.seq)
                    self._published.set()
                    self._published = trio.Event()
                    log.debug("published", home=link.peer.name, seq=answer.seq)
                    return
                raise PeerUnreachable(f"no answer within {ANSWER_SECONDS:.0f} s")
            except Busy as error:
                log.info("publish_again", home=link.peer.name, error=str(error))
                await trio.sleep(PAUSE_SECONDS * 2**attempt * self._rng.uniform(0.5, 1.0))
        raise PeerUnreachable(f"{link.peer.name} stays busy")

    def _send_status(self, link: Link) -> None:
        self._status_due = False
        lifetime = max(10, round(self._status_seconds * STATUS_LIVES))
        batch = self.own.sign_status(self._status(), unix=self._clock(), status_seconds=lifetime)
        if not link.notify_nowait(StatusAnnounced((batch,))):
            self._status_due = True

    async def _learn_contacts(self, link: Link) -> None:
        try:
            with trio.move_on_after(EXCHANGE_SECONDS):
                known = await link.request(ExchangePeers(), PeersKnown)
                for contact in known.core:
                    self.know(contact)
        except Closing:
            raise
        except WireError as error:
            log.debug("exchange_failed", peer=link.peer.name, error=str(error))
        endpoint = link.peer.endpoint
        if endpoint is not None:
            self.know(Contact(link.peer.key, endpoint[0], endpoint[1]))

    def _on_peers(self, link: Link, message: PeersKnown) -> None:
        if is_core(link):
            for contact in message.core:
                if contact.key != self.own.key:
                    self.know(contact)

    async def _on_fetch(self, link: Link, message: FetchEntries, send: SendItem) -> None:
        head = self.own.head
        if message.provider != self.own.key or head is None:
            raise NotFound("this node serves its own catalogue only")
        await send_entries(head, self.own.entries_after(message.after_seq), send)

    def _say(self, state: str) -> None:
        if state != self.state:
            self.state = state
            log.info("home", state=state)
