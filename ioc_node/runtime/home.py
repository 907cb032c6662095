"""A provider at home: it publishes its catalogue and status to one core node, and moves to another when that is gone.

Publishing again is harmless (one head, one place), so that a move loses and doubles nothing. Status goes out on change,
and otherwise every `status_seconds`: a provider that is silent for several of these is no longer offered.

The link to the home core node beats its heart fast (HOME_PACE), so that also a home that is stopped without a word is
noticed within four seconds. Another core node is *standby*: linked already and known to live, it is home at once. Every
`review_seconds` the standby is held against home, and one more core node, a *scout*, against the standby; `Homes`
decides what is worth a move. The new home holds the catalogue before the old one is left.
"""

import random
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import structlog
import trio

from ioc_node.core.homes import Candidate, Homes
from ioc_node.core.own_catalogue import Commit, OwnCatalogue
from ioc_node.core.packing import pack_statuses
from ioc_node.errors import PeerUnreachable, StorageFull
from ioc_node.runtime.dialing import dial_first
from ioc_node.runtime.entry_pages import send_entries
from ioc_node.runtime.gossip import is_core, name_of
from ioc_node.runtime.link_handlers import Handlers, SendItem
from ioc_node.runtime.link_heart import Pace
from ioc_node.runtime.links import Link, LinkEndpoint
from ioc_node.runtime.pauses import run_with_pauses
from ioc_wire import limits
from ioc_wire.errors import Busy, Closing, NotFound, WireError
from ioc_wire.gossip import (
    ExchangePeers,
    FetchEntries,
    HeadNews,
    PeersKnown,
    Published,
    PublishHead,
)
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
PAUSE_SECONDS: Final = 0.25
PAUSE_SECONDS_MAX: Final = 2.0
HOME_PACE: Final = Pace(0.75, 3)
STANDBY_PACE: Final = Pace(5.0, 1)
"""A standby that is gone without a word is noticed within a quarter of a minute."""
REVIEW_SECONDS: Final = 60.0
SCOUT_BEATS: Final = 3
SCOUT_BEAT_SECONDS: Final = 0.3


class OwnShelf(Protocol):
    """Where a provider's own catalogue survives a restart; see `ioc_node.runtime.own_shelf`."""

    async def save_own(self, commit: Commit) -> None: ...


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
        review_seconds: float = REVIEW_SECONDS,
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
        self._review_seconds = review_seconds
        self._rng = rng or random.Random()  # noqa: S311 - jitter
        self._clock = clock
        self._contact_told: Contact | None = None
        self._homes = Homes(own.key)
        self._standby: Link | None = None
        self._moving_to: bytes | None = None
        self._heard: list[Callable[[Link, PeersKnown], None]] = []
        self._stir = trio.Event()
        self._changed = trio.Event()
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

    @property
    def standby(self) -> Link | None:
        """The link to the core node that is home as soon as the present one fails."""
        standby = self._standby
        return standby if standby is not None and not standby.closed.is_set() else None

    @property
    def contacts(self) -> tuple[Contact, ...]:
        """The core nodes that may become home."""
        return self._homes.contacts

    def on_peers(self, tell: Callable[[Link, PeersKnown], None]) -> None:
        """Have `tell(link, known)` called, synchronously, when a core node names others."""
        self._heard.append(tell)

    def know(self, contact: Contact) -> None:
        """A core node that may become home, remembered from earlier or from a bootstrap address."""
        self._homes.know(contact)

    async def wait_published(self) -> int:
        """Wait until a home core node holds the newest head; returns its seq."""
        while not self.own.seq or self.published_seq < self.own.seq:
            await self._published.wait()
        return self.published_seq

    async def run(self, links: LinkEndpoint, shelf: OwnShelf | None = None) -> None:
        """Stay published until cancelled."""
        links.on_link_up(self._note_link)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_standby, links)
            await self._stay_published(links, shelf)

    async def _stay_published(self, links: LinkEndpoint, shelf: OwnShelf | None) -> None:
        pause_seconds = PAUSE_SECONDS
        while True:
            link = await self._next_home(links)
            if link is None or self._homes.is_shunned(link.peer.key, trio.current_time()):
                await self._wait_changed(pause_seconds * self._rng.uniform(0.5, 1.0))
                pause_seconds = min(2 * pause_seconds, PAUSE_SECONDS_MAX)
            if link is None or link.closed.is_set():
                continue
            self.link = link
            link.heart.set_pace(HOME_PACE)
            try:
                await self._live_at(link, shelf)
                pause_seconds = PAUSE_SECONDS
                if not link.closed.is_set():
                    continue  # it moves of its own accord
                self._say(f"the link to {link.peer.name} broke: {link.close_reason}")
            except (WireError, PeerUnreachable) as error:
                self._say(f"{link.peer.name}: {error}")
            finally:
                self.link = None
                link.heart.set_pace(None)
                self._wake()
            if links.link(link.peer.key) in (link, None):  # else a newer link to that peer took its place
                self._homes.shun(link.peer.key, trio.current_time())

    # -- choosing

    async def _next_home(self, links: LinkEndpoint) -> Link | None:
        now = trio.current_time()
        linked = {link.peer.key: link for link in self._linked(links)}
        wanted, self._moving_to = self._moving_to, None
        if wanted is not None and wanted in linked:
            return linked[wanted]
        best = self._homes.choose(map(self._candidate, linked.values()), now)
        if best is not None and not self._homes.is_shunned(best.key, now):
            return linked[best.key]
        dialed = await dial_first(
            links, self._homes.to_dial(links.links.keys(), now), failed=self._dial_failed, wanted=is_core
        )
        return dialed or (linked[best.key] if best is not None else None)

    def _linked(self, links: LinkEndpoint) -> list[Link]:
        return [link for link in links.links.values() if is_core(link) and not link.closed.is_set()]

    def _dial_failed(self, contact: Contact, why: str) -> None:
        self._homes.shun(contact.key, trio.current_time())
        if self.link is None:
            self._say(f"{name_of(contact.key)}: {why}")

    def _candidate(self, link: Link) -> Candidate:
        prefix = self.own.any_cid().removeprefix("ioc:").partition("/")[0]
        grant = link.peer.grant
        covers = grant is not None and bool(grant.prefix) and bool(prefix) and grant.covers(prefix)
        national = "national" in link.peer.roles
        return Candidate(link.peer.key, covers, national, link.heart.round_trip_seconds)

    # -- standby

    async def _keep_standby(self, links: LinkEndpoint) -> None:
        """Have a second core node linked, and hold the choice against others now and then, until cancelled."""
        while True:
            review_at = trio.current_time() + self._review_seconds * self._rng.uniform(0.75, 1.25)
            while (now := trio.current_time()) < review_at:
                if self.link is not None and self.standby is None:
                    self._stand_by(await self._second(links))
                again = self.link is not None and self.standby is None
                await self._wait_changed(
                    min(PAUSE_SECONDS_MAX, review_at - now) if again else review_at - now
                )
            if self.link is not None:
                await self._scout(links)
                self._review()

    def _stand_by(self, link: Link | None) -> None:
        if self._standby is not None and self._standby is not self.link:
            self._standby.heart.set_pace(None)
        self._standby = link
        if link is not None:
            link.heart.set_pace(STANDBY_PACE)
            link.heart.beat_now()

    async def _second(self, links: LinkEndpoint) -> Link | None:
        """A core node besides home, linked or dialed."""
        now = trio.current_time()
        home = self.link
        linked = {link.peer.key: link for link in self._linked(links) if link is not home}
        best = self._homes.choose(map(self._candidate, linked.values()), now)
        if best is not None and not self._homes.is_shunned(best.key, now):
            return linked[best.key]
        found = await dial_first(
            links, self._homes.to_dial(links.links.keys(), now), failed=self._dial_failed, wanted=is_core
        )
        return None if found is self.link else found

    async def _scout(self, links: LinkEndpoint) -> None:
        """Measure one core node that is not linked yet; it stands by from now on where it is the better one."""
        unlinked = self._homes.to_dial(links.links.keys(), trio.current_time())
        if not unlinked:
            return
        contact = unlinked[self._rng.randrange(len(unlinked))]
        scout = await dial_first(links, [contact], failed=self._dial_failed, wanted=is_core)
        if scout is None:
            return
        for _ in range(SCOUT_BEATS):
            scout.heart.beat_now()
            await trio.sleep(SCOUT_BEAT_SECONDS)
        standby, leaving = self.standby, scout
        if standby is None or _closeness(self._candidate(scout)) < _closeness(self._candidate(standby)):
            self._stand_by(scout)
            if standby is None:
                return
            leaving = standby
        if leaving.dialed and not leaving.streams and leaving is not self.link:
            leaving.close_nowait("another core node stands by")

    def _review(self) -> None:
        home, standby = self.link, self.standby
        if home is None or standby is None or standby is home:
            return
        home.heart.beat_now()
        standby.heart.beat_now()
        key = self._homes.review(self._candidate(home), [self._candidate(standby)], trio.current_time())
        if key is not None:
            self._say(f"moving to {standby.peer.name}, which is nearer than {home.peer.name}")
            self._moving_to = key
            self._stir.set()

    def _note_link(self, link: Link) -> None:
        if is_core(link):
            self._wake()

    def _wake(self) -> None:
        """Links have changed: whoever waits for one looks again."""
        self._changed.set()
        self._changed = trio.Event()

    async def _wait_changed(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await self._changed.wait()

    # -- being there

    async def _live_at(self, link: Link, shelf: OwnShelf | None) -> None:
        """Returns when the link broke or another home is better."""
        await self._publish(link, shelf)
        self._homes.served(link.peer.key, trio.current_time())
        self._say(f"published to {link.peer.name}")
        await self._send_status(link)
        self._leave_standby(link)
        await self._learn_contacts(link)
        status_at = trio.current_time() + self._status_seconds
        publish_at = trio.current_time() + PUBLISH_AGAIN_SECONDS
        while not link.closed.is_set() and self._moving_to is None:
            await self._wait_stir(link, min(status_at, publish_at))
            commit = await self._commit(shelf)
            now = trio.current_time()
            if commit or now >= publish_at or self.published_seq < self.own.seq:
                await self._publish(link, shelf)
                self._status_due = True
                publish_at = now + PUBLISH_AGAIN_SECONDS
            if self._status_due or now >= status_at:
                await self._send_status(link)
                status_at = now + self._status_seconds

    def _leave_standby(self, link: Link) -> None:
        """Home is no standby."""
        if self._standby is link:
            self._standby = None
        self._wake()

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

    async def _commit(self, shelf: OwnShelf | None, *, after: int = 0) -> bool:
        # Where a node is reached is told with its head: through another home, with another head.
        contact = self._contact()
        moved = contact is not None and contact.via is not None and contact != self._contact_told
        self._contact_told = contact
        commit = await run_with_pauses(self.own.committing(unix=self._clock(), anew=moved, after=after))
        if commit is None:
            return False
        if shelf is not None:
            try:
                await shelf.save_own(commit)
            except StorageFull as error:
                # Publishing goes on: without this state the log begins again at the clock, which forks nothing.
                log.error("own_catalogue_not_stored", error=str(error))
        self.own.take(commit)
        return True

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
                    if self.own.seq < answer.seq <= self._clock() + limits.CLOCK_SKEW_SECONDS:
                        # This node lost its state, or another one runs with its key: the last word is this one's.
                        log.warning("head_overtaken", home=link.peer.name, seq=answer.seq, own=self.own.seq)
                        await self._commit(shelf, after=answer.seq)
                        continue
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

    async def _send_status(self, link: Link) -> None:
        self._status_due = False
        lifetime = max(10, round(self._status_seconds * STATUS_LIVES))
        signing = self.own.signing_status(self._status(), unix=self._clock(), status_seconds=lifetime)
        for message in pack_statuses(await run_with_pauses(signing)):
            if not link.notify_nowait(message):
                self._status_due = True

    async def _learn_contacts(self, link: Link) -> None:
        try:
            with trio.move_on_after(EXCHANGE_SECONDS):
                known = await link.request(ExchangePeers(), PeersKnown)
                self._on_peers(link, known)
        except Closing:
            raise
        except WireError as error:
            log.debug("exchange_failed", peer=link.peer.name, error=str(error))
        endpoint = link.peer.endpoint
        if endpoint is not None:
            self.know(Contact(link.peer.key, endpoint[0], endpoint[1]))

    def _on_peers(self, link: Link, message: PeersKnown) -> None:
        if not is_core(link):
            return
        for contact in message.core:
            self.know(contact)
        self._wake()
        for tell in self._heard:
            tell(link, message)

    async def _on_fetch(self, link: Link, message: FetchEntries, send: SendItem) -> None:
        head = self.own.head
        if message.provider != self.own.key or head is None:
            raise NotFound("this node serves its own catalogue only")
        await send_entries(head, self.own.reading_after(message.after_seq), send)

    def _say(self, state: str) -> None:
        if state != self.state:
            self.state = state
            log.info("home", state=state)


def _closeness(candidate: Candidate) -> tuple[bool, bool, float]:
    """Smaller is better."""
    seconds = candidate.round_trip_seconds
    return (*candidate.kind, seconds if seconds is not None else float("inf"))
