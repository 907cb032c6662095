"""A core node's gossip over its links: carries out what the machine commands, and answers what others ask.

Only a peer that is a provider publishes, and only its own catalogue; heads and status of others are taken from core
nodes alone. All of it is verified by the machine besides. What takes time (fetches, dials, comparisons) runs as tasks
of the nursery that `run` keeps; the machine itself never waits.
"""

import datetime
import random
import time
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from typing import Final

import structlog
import trio

from ioc_node.core import gossip_events as ev
from ioc_node.core.catalogue import Catalogue
from ioc_node.core.chance import Chance
from ioc_node.core.gossip import COMPARE_SECONDS, Gossip
from ioc_node.core.interest import EVERYTHING, Interest
from ioc_node.core.linking import ROOM, Room
from ioc_node.core.packing import one_by_one, pack_news
from ioc_node.core.rates import RateTable
from ioc_node.core.replica import Replica
from ioc_node.core.trust import Trust
from ioc_node.errors import PeerUnreachable
from ioc_node.runtime.catalogue_saving import Saving, Shelf
from ioc_node.runtime.driver import open_background
from ioc_node.runtime.entry_pages import FETCH_BYTES_MAX, PageTaker, fetch_entries, send_held
from ioc_node.runtime.link_flow import ByteBudget
from ioc_node.runtime.link_handlers import Handlers, SendItem
from ioc_node.runtime.links import Link, LinkEndpoint
from ioc_node.runtime.outbox import Outbox
from ioc_node.runtime.pauses import run_with_pauses
from ioc_wire import gossip as wire
from ioc_wire import limits
from ioc_wire.authority import CORE_ROLES
from ioc_wire.errors import (
    Busy,
    Forked,
    Malformed,
    NotFound,
    OverQuota,
    RoleNotGranted,
    TooLarge,
    WireError,
    WrongRoot,
)
from ioc_wire.identity import format_node_id, node_id_of
from ioc_wire.interest import InterestTold
from ioc_wire.market import Contact
from ioc_wire.plumtree import Graft, IHave, Neighbour, Prune, TreeMessage
from ioc_wire.signed import Signed

log = structlog.get_logger()

FETCH_STALL_SECONDS: Final = 20.0
"""A peer that sends no page of a fetch for so long is passed over."""
PUBLISH_SECONDS: Final = 60.0
"""How long the answer to a publisher waits for its entries."""
TASKS_MAX: Final = 512
"""Fetches, dials and comparisons under way together; more are dropped, and repaired by the next comparison."""
EXCHANGES_PER_SECOND: Final = 1.0
EXCHANGES_BURST: Final = 16.0
"""How often one peer is told core nodes because it asks, and core nodes that one peer names are looked at."""

Changed = Callable[[bytes, tuple[int, ...] | None], None]
StatusTold = Callable[[bytes, int], None]


def name_of(key: bytes) -> str:
    """Short text for log lines."""
    return format_node_id(node_id_of(key))[:11]


def fork_text(replica: Replica) -> str:
    """For an operator: `head 1790000000; nothing of this provider is offered before 2026-11-27 04:10 UTC`."""
    over = datetime.datetime.fromtimestamp(replica.ends() + limits.CLOCK_SKEW_SECONDS, datetime.UTC)
    return f"head {replica.seq}; nothing of this provider is offered before {over:%Y-%m-%d %H:%M} UTC"


def is_core(link: Link) -> bool:
    return bool(CORE_ROLES.intersection(link.peer.roles))


def contact_of(link: Link) -> Contact | None:
    """Where a link's peer takes links, in the form that is told to others."""
    endpoint = link.peer.endpoint
    return Contact(link.peer.key, endpoint[0], endpoint[1]) if endpoint is not None else None


class CoreGossip:
    """Drives one `Gossip` machine. Made by `make_gossip`."""

    def __init__(self, machine: Gossip, shelf: Shelf | None = None) -> None:
        self.machine = machine
        self._shelf = shelf
        self._saving = Saving(machine.catalogue)
        self._outbox = Outbox(machine.catalogue, self._link)
        self.catalogue = machine.catalogue
        self._links: LinkEndpoint | None = None
        self._nursery: trio.Nursery | None = None
        self._tasks = 0
        self._fetching = ByteBudget(FETCH_BYTES_MAX)
        self._changed: list[Changed] = []
        self._status_told: list[StatusTold] = []
        self._publishing: dict[bytes, trio.Event] = {}
        self._refusals: dict[bytes, WireError] = {}
        self._wake = trio.Event()
        self.running = trio.Event()
        """Set once what the shelf holds is taken up."""
        self._asked = RateTable(EXCHANGES_PER_SECOND, EXCHANGES_BURST)
        self._named = RateTable(EXCHANGES_PER_SECOND, EXCHANGES_BURST)

    # -- what others of this node use

    def on_changed(self, tell: Changed) -> None:
        """Have `tell(provider, slots)` called, synchronously, when identifiers come, change or go (None: any)."""
        self._changed.append(tell)

    def on_status(self, tell: StatusTold) -> None:
        """Have `tell(provider, part)` called, synchronously, when there is new status for one part of its slots."""
        self._status_told.append(tell)

    async def publish_own(self, news: wire.HeadNews, entries: tuple[bytes, ...]) -> None:
        """Take in the catalogue of this very node, where it is a provider too, in steps: none of it is held before all
        of it is, and of several under way the newest stays. Raises `Busy` before `run` has begun.
        """
        provider = news.head.key
        self.catalogue.interests.guest_came(provider)
        self.feed(ev.NewsReceived(None, (news,)))
        self.feed(await self._prepare_own(provider, news.head, entries))

    async def _prepare_own(
        self, provider: bytes, head: Signed, entries: tuple[bytes, ...]
    ) -> ev.EntriesPrepared | ev.EntriesRefused:
        while True:
            try:
                intake = self.catalogue.begin(provider)
                await run_with_pauses(intake.add(entries))
                target = await run_with_pauses(self.catalogue.close(intake, head, unix=time.time()))
            except WireError as error:
                return ev.EntriesRefused(None, provider, 0, error)
            replica = self.catalogue.replica(provider)
            if replica is None or replica.base is intake.base:  # else another one was quicker
                return ev.EntriesPrepared(None, provider, 0, intake, target)

    def publish_own_status(self, batches: Sequence[Signed]) -> None:
        self.feed(ev.StatusReceived(None, tuple(batches)))

    def key_revoked(self) -> None:
        """`Trust` took in a revocation: forget the catalogues that rest on it."""
        if self._nursery is not None:  # otherwise nothing was taken up yet that was verified without it
            self.feed(ev.KeyRevoked())

    # -- the machine

    def feed(self, event: ev.Event) -> None:
        """Give the machine an event, and carry out what follows. Raises `Busy` before `run` has begun."""
        if self._nursery is None:
            raise Busy("this node is starting")
        for effect in self.machine.handle(event, now=trio.current_time()):
            self._perform(effect)
        self._wake.set()

    def _perform(self, effect: ev.Effect) -> None:
        match effect:
            case ev.Notify(peer, message) if self._outbox.add(peer, message):
                pass
            case ev.Notify(peer, message):
                if (link := self._link(peer)) is not None and not link.notify_nowait(message):
                    log.debug("gossip_dropped", peer=link.peer.name, message=type(message).__name__)
            case ev.Fetch(peer, provider, after_seq):
                self._start(self._fetch, peer, provider, after_seq)
            case ev.FetchNews(peer, providers, status_seqs):
                self._start(self._fetch_news, peer, wire.FetchHeads(providers, status_seqs))
            case ev.Compare(peer):
                self._start(self._compare, peer)
            case ev.Dial(contact):
                self._start(self._dial, contact)
            case ev.Persist(provider):
                self._saving.note(provider)
            case ev.CatalogueChanged(provider, slots):
                for tell in self._changed:
                    tell(provider, slots)
                self._settle(provider)
            case ev.StatusChanged(provider, part):
                for tell_status in self._status_told:
                    tell_status(provider, part)
            case ev.Refuse():
                self._on_refusal(effect)

    def _on_refusal(self, refusal: ev.Refuse) -> None:
        provider, what = refusal.provider, refusal.what
        told_by = name_of(refusal.peer) if refusal.peer is not None else "this node"
        log.info(
            "gossip_refused", what=what, provider=name_of(provider), told_by=told_by, error=str(refusal.error)
        )
        if refusal.peer == provider and provider in self._publishing and what in ("head", "entries"):
            self._refusals[provider] = refusal.error
            self._settle(provider)

    def _settle(self, provider: bytes) -> None:
        if (waiting := self._publishing.get(provider)) is not None:
            waiting.set()

    def _link(self, peer: bytes) -> Link | None:
        return self._links.link(peer) if self._links is not None else None

    def _start(self, work: Callable[..., Awaitable[None]], *arguments: object) -> None:
        assert self._nursery is not None
        if self._tasks >= TASKS_MAX and work != self._fetch:  # the machine bounds fetches itself
            log.info("gossip_overloaded", tasks=self._tasks)
            return
        self._tasks += 1
        self._nursery.start_soon(self._run_task, work, arguments)

    async def _run_task(self, work: Callable[..., Awaitable[None]], arguments: tuple[object, ...]) -> None:
        try:
            await work(*arguments)
        finally:
            self._tasks -= 1

    async def _tick(self) -> None:
        """Wake the machine when it wants to be, until cancelled."""
        while True:
            self._wake = trio.Event()
            with trio.move_on_at(self.machine.deadline()):
                await self._wake.wait()
            if self.machine.deadline() <= trio.current_time():
                self.feed(ev.Tick())

    # -- asking others

    async def _fetch(self, peer: bytes, provider: bytes, after_seq: int) -> None:
        link = self._link(peer)
        try:
            if link is None:
                raise PeerUnreachable(f"no link to {name_of(peer)}")
            done = await self._take_entries(link, provider, after_seq)
        except (WireError, PeerUnreachable) as error:
            log.debug("fetch_failed", peer=name_of(peer), provider=name_of(provider), error=str(error))
            self.feed(ev.FetchFailed(peer, provider))
            if peer == provider:
                self._settle(provider)
            return
        await trio.lowlevel.checkpoint()  # else the last check and what follows would be one long step
        self.feed(done)
        if peer == provider:
            self._settle(provider)

    async def _take_entries(
        self, link: Link, provider: bytes, after_seq: int
    ) -> ev.EntriesPrepared | ev.EntriesRefused:
        """Fetch and verify, in steps."""
        peer = link.peer.key
        if self._shelf is not None:
            await self._shelf.wait_for_room()
        taker: PageTaker | None = None
        try:
            intake = self.catalogue.begin(provider)
            taker = PageTaker(intake, self._fetching, slots_max=self.catalogue.bounds.slots_max)
            head = await fetch_entries(link, provider, after_seq, taker.take)
            target = await run_with_pauses(self.catalogue.close(intake, head, unix=time.time()))
        except (Malformed, WrongRoot, Forked, TooLarge, OverQuota) as error:
            return ev.EntriesRefused(peer, provider, after_seq, error)
        finally:
            if taker is not None:
                taker.release()
        return ev.EntriesPrepared(peer, provider, after_seq, intake, target)

    async def _fetch_news(self, peer: bytes, wanted: wire.FetchHeads) -> None:
        link = self._link(peer)
        if link is None:
            return
        try:
            with trio.move_on_after(FETCH_STALL_SECONDS):
                async with link.open_stream(wanted, wire.HeadsPage) as pages:
                    async for page in pages:
                        await self._hear(peer, page.news, page.statuses)
        except (WireError, PeerUnreachable) as error:
            log.debug("fetch_news_failed", peer=link.peer.name, error=str(error))

    async def _compare(self, peer: bytes) -> None:
        link = self._link(peer)
        if link is None:
            return
        mine = self.catalogue.digest(self.catalogue.interests.common(peer))
        try:
            with trio.move_on_after(FETCH_STALL_SECONDS):
                answer = await link.request(wire.CompareHeads(mine), wire.HeadsCompared)
                self.feed(ev.VectorReceived(peer, answer.rows, differs=answer.digest != mine))
        except (WireError, PeerUnreachable) as error:
            log.debug("compare_failed", peer=link.peer.name, error=str(error))

    async def _dial(self, contact: Contact) -> None:
        assert self._links is not None
        try:
            await self._links.connect((contact.host, contact.port), contact.key)
        except (WireError, PeerUnreachable) as error:
            log.debug("dial_failed", peer=name_of(contact.key), error=str(error))

    # -- answering

    def register(self, handlers: Handlers) -> None:
        """Enter the answers of a core node into the table, before links are opened."""
        handlers.serve(wire.PublishHead, self._on_publish)
        handlers.serve(wire.CompareHeads, self._on_compare)
        handlers.serve(wire.ExchangePeers, self._on_exchange)
        handlers.serve_stream(wire.FetchEntries, self._on_fetch)
        handlers.serve_stream(wire.FetchHeads, self._on_fetch_heads)
        handlers.serve_notify(wire.HeadsAnnounced, self._on_heads)
        handlers.serve_notify(wire.StatusAnnounced, self._on_statuses)
        handlers.serve_notify(wire.PeersKnown, self._on_peers)
        handlers.serve_notify(InterestTold, self._on_interest)
        handlers.serve_notify(Neighbour, self._on_tree)
        handlers.serve_notify(IHave, self._on_tree)
        handlers.serve_notify(Graft, self._on_tree)
        handlers.serve_notify(Prune, self._on_tree)

    async def _on_publish(self, link: Link, message: wire.PublishHead) -> wire.Published:
        key = link.peer.key
        if message.news.head.key != key:
            raise RoleNotGranted("publishing the catalogue of another key than one's own")
        if "provider" not in link.peer.roles:
            raise RoleNotGranted("publishing a catalogue takes the role of a provider")
        if key in self._publishing:
            raise Busy("the last head of this catalogue is still being fetched")
        try:
            with trio.move_on_after(PUBLISH_SECONDS):
                return await self._publish(key, message.news)
            raise Busy(f"the entries did not come within {PUBLISH_SECONDS:.0f} s")
        finally:
            self._publishing.pop(key, None)
            self._refusals.pop(key, None)

    async def _publish(self, key: bytes, news: wire.HeadNews) -> wire.Published:
        settled = self._publishing[key] = trio.Event()
        self.catalogue.interests.guest_came(key)
        self.feed(ev.NewsReceived(key, (news,)))
        while True:
            if key in self._refusals:
                raise self._refusals[key]
            replica = self.catalogue.replica(key)
            if replica is None:
                raise NotFound("the head was not taken in")
            if replica.fork is not None:
                raise Forked(fork_text(replica))
            if not replica.lagging:
                return wire.Published(replica.held_seq)
            if not self.machine.wants(key):
                raise Busy("the entries could not be fetched; publish again")
            await settled.wait()
            settled = self._publishing[key] = trio.Event()

    async def _on_compare(self, link: Link, message: wire.CompareHeads) -> wire.HeadsCompared:
        common = self.catalogue.interests.common(link.peer.key)
        digest = self.catalogue.digest(common)
        rows = () if digest == message.digest else self.catalogue.vector(common)
        return wire.HeadsCompared(digest, rows)

    async def _on_exchange(self, link: Link, message: wire.ExchangePeers) -> wire.PeersKnown:
        if not self._asked.take(link.peer.key, trio.current_time()):
            raise Busy("core nodes were asked for too often")
        return wire.PeersKnown(self.machine.core_contacts())

    async def _on_fetch(self, link: Link, message: wire.FetchEntries, send: SendItem) -> None:
        await send_held(self.catalogue, message.provider, message.after_seq, send)

    async def _on_fetch_heads(self, link: Link, message: wire.FetchHeads, send: SendItem) -> None:
        known = dict(zip(message.providers, message.status_seqs, strict=False))
        for page in pack_news(self.catalogue, message.providers, known):
            await send(page)

    async def _on_heads(self, link: Link, message: wire.HeadsAnnounced) -> None:
        if is_core(link):
            await self._hear(link.peer.key, message.news, ())

    async def _on_statuses(self, link: Link, message: wire.StatusAnnounced) -> None:
        own = all(batch.key == link.peer.key for batch in message.batches)
        if is_core(link) or own:
            await self._hear(link.peer.key, (), message.batches)

    async def _hear(self, peer: bytes, news: tuple[wire.HeadNews, ...], statuses: tuple[Signed, ...]) -> None:
        """Take in heads and status one by one: a signature is checked for each, a batch has a thousand rows."""
        await run_with_pauses(self._feeding(one_by_one(peer, news, statuses)))

    def _feeding(self, events: Iterable[ev.Event]) -> Generator[None, None, None]:
        for event in events:
            self.feed(event)
            yield

    def _on_peers(self, link: Link, message: wire.PeersKnown) -> None:
        if is_core(link) and self._named.take(link.peer.key, trio.current_time()):
            self.feed(ev.PeersReceived(link.peer.key, message.core, message.tree))

    def _on_tree(self, link: Link, message: TreeMessage) -> None:
        if is_core(link):
            self.feed(ev.TreeReceived(link.peer.key, message))

    def _on_interest(self, link: Link, message: InterestTold) -> None:
        if is_core(link):
            try:
                self.catalogue.interests.told[link.peer.key] = Interest.told(message.prefixes)
            except WireError as error:
                log.info("interest_refused", peer=link.peer.name, error=str(error))

    # -- life

    async def run(self, links: LinkEndpoint) -> None:
        """Gossip over `links` until cancelled. What the shelf holds is taken up first."""
        shelf = self._shelf
        if shelf is not None:
            await shelf.load(self.catalogue, unix=time.time())
        async with open_background() as nursery:
            self._links, self._nursery = links, nursery
            self.running.set()
            self.key_revoked()  # perhaps while the shelf was read
            nursery.start_soon(self._outbox.run)
            links.on_link_up(self.link_up)
            links.on_link_down(self.link_down)
            if shelf is not None:
                nursery.start_soon(self._saving.run, shelf)
            for provider in self.catalogue.providers():
                for tell in self._changed:
                    tell(provider, None)
            for link in list(links.links.values()):
                self.link_up(link)
            await self._tick()

    def link_up(self, link: Link) -> None:
        own = self.catalogue.interests.own
        if is_core(link) and not own.is_everything:
            link.notify_nowait(InterestTold(own.prefixes))
        grant = link.peer.grant
        prefix = grant.prefix if grant is not None else ""
        self.feed(ev.LinkUp(link.peer.key, is_core(link), contact_of(link), prefix))

    def link_down(self, link: Link) -> None:
        self.catalogue.interests.told.pop(link.peer.key, None)
        self.catalogue.interests.guest_left(link.peer.key, unix=time.time())
        self.feed(ev.LinkDown(link.peer.key))


def make_gossip(
    key: bytes,
    trust: Trust,
    *,
    compare_seconds: float = COMPARE_SECONDS,
    chance: Chance | None = None,
    shelf: Shelf | None = None,
    interest: Interest = EVERYTHING,
    room: Room = ROOM,
) -> CoreGossip:
    """The gossip of the core node with public key `key`; needs a running trio loop, for its clock. With a `shelf`
    the entries lie there, and the catalogue is taken up from it; else in memory."""
    machine = Gossip(
        key,
        Catalogue(trust, book=shelf, interest=interest),
        chance or random.SystemRandom(),
        unix_offset=time.time() - trio.current_time(),
        compare_seconds=compare_seconds,
        room=room,
    )
    return CoreGossip(machine, shelf)
