"""Gossip between core nodes: everybody soon holds what any of them was told.

Push: a head or status batch that is new here goes at once to every linked core node, except to whoever sent it and to
those that the sender is known to be linked with itself (core nodes tell each other their links). In a full mesh each
message so travels each edge from its origin once; where a link is missing, the next node closes the gap.
Heads are passed on when their entries are held, so that whoever hears of one finds it here.

Pull: a head that is newer than what is held makes the provider *lagging*. One fetch per provider is under way at a
time, from one of the peers that announced it; the next one is asked when it fails. Entries that don't match the head
are fetched whole once, then the peer is passed over.

Repair: every `compare_seconds`, and when a link comes up, head vectors are compared with one peer. What the other has
newer is fetched, what it lacks is sent. Pushes may be lost; this is what heals.

Mesh: a node dials every core node that its peers are linked with, until it has MESH_MAX. Of two that would dial each
other, the one with the smaller key does so at once, the other after DIAL_PATIENCE_SECONDS.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from ioc_node.core.catalogue import Catalogue, Standing
from ioc_node.core.chance import Chance
from ioc_node.core.gossip_events import (
    CatalogueChanged,
    Compare,
    Dial,
    Effect,
    EntriesFetched,
    EntriesPrepared,
    EntriesRefused,
    Event,
    Fetch,
    FetchFailed,
    FetchNews,
    KeyRevoked,
    LinkDown,
    LinkUp,
    NewsReceived,
    Notify,
    PeersReceived,
    Persist,
    Refuse,
    StatusChanged,
    StatusReceived,
    Tick,
    VectorReceived,
)
from ioc_node.core.replica import FORKED
from ioc_node.core.steps import run_through
from ioc_wire import limits
from ioc_wire.codec import Message
from ioc_wire.errors import Forked, NotFound, WireError, WrongRoot
from ioc_wire.gossip import HeadNews, HeadRow, HeadsAnnounced, HeadsPage, PeersKnown, StatusAnnounced
from ioc_wire.market import Contact
from ioc_wire.signed import Signed

MESH_MAX: Final = 64
"""Core nodes linked with at most; above it another topology is needed."""
FETCHES_MAX: Final = 16
SOURCES_MAX: Final = 8
"""Peers remembered per lagging provider."""
CONTACTS_MAX: Final = 256
COMPARE_SECONDS: Final = 30.0
EXPIRE_SECONDS: Final = 5.0
PEERS_SECONDS: Final = 1.0
"""How long link changes are gathered before they are told."""
DIAL_SECONDS: Final = 10.0
"""Before a contact that did not answer is dialed again."""
DIAL_AGAIN_SECONDS: Final = 0.5
"""Before a link that went down is dialed again."""
DIAL_PATIENCE_SECONDS: Final = 2.0
FORGET_SECONDS: Final = 3600.0
"""A core node that nobody is linked with any more is dialed for so long."""
PAGE_BYTES: Final = 512 << 10


@dataclass(slots=True)
class _Peer:
    core: bool
    contact: Contact | None
    linked: frozenset[bytes] = frozenset()
    """Core nodes that this peer says it is linked with."""


@dataclass(slots=True)
class _Lag:
    """A provider whose entries have to be fetched: who has them, and who is being asked."""

    sources: "OrderedDict[bytes, None]" = field(default_factory=OrderedDict)
    asking: bytes | None = None
    whole: bool = False


@dataclass(slots=True)
class _Known:
    """A core node that others are linked with."""

    contact: Contact
    heard: float
    dial_at: float


class Gossip:
    """The machine of one core node `me` (its key). `unix_offset` added to `now` gives seconds since 1970."""

    def __init__(
        self,
        me: bytes,
        catalogue: Catalogue,
        chance: Chance,
        *,
        unix_offset: float = 0.0,
        compare_seconds: float = COMPARE_SECONDS,
    ) -> None:
        self._me = me
        self.catalogue = catalogue
        self._chance = chance
        self._unix_offset = unix_offset
        self._compare_seconds = compare_seconds
        self._peers: dict[bytes, _Peer] = {}
        self._lags: dict[bytes, _Lag] = {}
        self._known: dict[bytes, _Known] = {}
        self._compare_at: float | None = None
        self._expire_at: float | None = None
        self._tell_peers_at: float | None = None
        self._effects: list[Effect] = []

    def handle(self, event: Event, *, now: float) -> list[Effect]:
        """Take one event in; the commands that follow from it, in order."""
        match event:
            case LinkUp():
                self._on_link_up(event, now)
            case LinkDown(peer):
                self._on_link_down(peer, now)
            case NewsReceived(peer, news):
                for one in news:
                    self._on_news(peer, one, now)
            case StatusReceived(peer, batches):
                self._on_status(peer, batches, now)
            case PeersReceived(peer, core):
                self._on_peers(peer, core, now)
            case VectorReceived(peer, rows, differs):
                self._on_vector(peer, rows, differs)
            case EntriesFetched():
                self._on_fetched(event, now)
            case EntriesPrepared():
                self._on_prepared(event)
            case EntriesRefused(peer, provider, after_seq, error):
                self._on_bad_entries(peer, provider, after_seq, error)
            case FetchFailed(peer, provider):
                self._fetch_ended(peer, provider, drop_source=True)
            case KeyRevoked():
                self._forget(self.catalogue.drop_revoked())
            case Tick():
                pass
        self._on_time(now)
        self._start_fetches()
        effects, self._effects = self._effects, []
        return effects

    def deadline(self) -> float:
        """When to tick next."""
        times = [at for at in (self._compare_at, self._expire_at, self._tell_peers_at) if at is not None]
        times += [known.dial_at for key, known in self._known.items() if key not in self._peers]
        return min(times, default=0.0)

    def core_contacts(self) -> tuple[Contact, ...]:
        """The core nodes that this node is linked with, in order of key (to be told to others)."""
        contacts = [peer.contact for peer in self._peers.values() if peer.core and peer.contact is not None]
        return tuple(sorted(contacts, key=lambda contact: contact.key)[:CONTACTS_MAX])

    def wants(self, provider: bytes) -> bool:
        """Whether entries of this provider are being fetched, or will be."""
        return provider in self._lags

    # -- links and mesh

    def _on_link_up(self, event: LinkUp, now: float) -> None:
        self._peers[event.peer] = _Peer(event.core, event.contact)
        if event.core:
            self._tell_peers_at = self._tell_peers_at or now + PEERS_SECONDS
            self._effects.append(Compare(event.peer))
            if event.contact is not None:
                self._remember(event.contact, now)

    def _on_link_down(self, peer: bytes, now: float) -> None:
        gone = self._peers.pop(peer, None)
        for provider, lag in list(self._lags.items()):
            if lag.asking == peer or peer in lag.sources:
                self._fetch_ended(peer, provider, drop_source=True)
        if gone is not None and gone.core:
            self._tell_peers_at = self._tell_peers_at or now + PEERS_SECONDS
            if known := self._known.get(peer):
                known.heard = now
                known.dial_at = now + DIAL_AGAIN_SECONDS * (1 + self._chance.random())

    def _on_peers(self, peer: bytes, core: tuple[Contact, ...], now: float) -> None:
        told = self._peers.get(peer)
        if told is None or not told.core:
            return
        told.linked = frozenset(contact.key for contact in core)
        for contact in core[:CONTACTS_MAX]:
            self._remember(contact, now)

    def _remember(self, contact: Contact, now: float) -> None:
        if contact.key == self._me:
            return
        known = self._known.get(contact.key)
        if known is None:
            if len(self._known) >= CONTACTS_MAX:
                return
            patience = 0.0 if self._me < contact.key else DIAL_PATIENCE_SECONDS
            self._known[contact.key] = _Known(contact, now, now + patience)
        else:
            known.contact, known.heard = contact, now

    def _dial(self, now: float) -> None:
        for key in [key for key, known in self._known.items() if now - known.heard > FORGET_SECONDS]:
            if key not in self._peers:
                del self._known[key]
        linked = sum(peer.core for peer in self._peers.values())
        for key, known in self._known.items():
            if key in self._peers or known.dial_at > now:
                continue
            known.dial_at = now + DIAL_SECONDS * (1 + self._chance.random())
            if linked < MESH_MAX:
                linked += 1
                self._effects.append(Dial(known.contact))

    # -- push

    def _spread_to(self, sender: bytes | None) -> Iterable[bytes]:
        """The core nodes that `sender` has not told itself."""
        told = self._peers.get(sender) if sender is not None else None
        covered = told.linked if told is not None and told.core else frozenset()
        return [
            key for key, peer in self._peers.items() if peer.core and key != sender and key not in covered
        ]

    def _spread(self, sender: bytes | None, message: Message) -> None:
        self._effects.extend(Notify(peer, message) for peer in self._spread_to(sender))

    # -- heads

    def _on_news(self, peer: bytes | None, news: HeadNews, now: float) -> None:
        provider = news.head.key
        try:
            standing = self.catalogue.consider(news, unix=now + self._unix_offset)
        except WireError as error:
            self._effects.append(Refuse(peer, provider, "head", error))
            return
        if standing is Standing.HELD:
            self._effects.append(Persist(provider))
            self._spread(peer, HeadsAnnounced((news,)))
        elif standing is Standing.FORKED:
            self._on_fork(provider)
        elif peer is not None and peer in self._peers:
            replica = self.catalogue.replica(provider)
            if replica is not None and replica.lagging and replica.newest == news.head:
                self._want(provider, peer)

    def _on_fork(self, provider: bytes) -> None:
        self._lags.pop(provider, None)
        replica = self.catalogue.replica(provider)
        assert replica is not None
        self._effects += [CatalogueChanged(provider, None), Persist(provider)]
        self._effects.append(Refuse(None, provider, "heads", Forked(f"head {replica.seq}")))
        for target in [key for key, other in self._peers.items() if other.core]:
            self._effects.append(Notify(target, HeadsAnnounced(replica.news())))

    def _want(self, provider: bytes, peer: bytes) -> None:
        lag = self._lags.setdefault(provider, _Lag())
        lag.sources[peer] = None
        lag.sources.move_to_end(peer, last=False)
        while len(lag.sources) > SOURCES_MAX:
            lag.sources.popitem()

    def _start_fetches(self) -> None:
        running = sum(lag.asking is not None for lag in self._lags.values())
        for provider, lag in self._lags.items():
            if running >= FETCHES_MAX:
                return
            replica = self.catalogue.replica(provider)
            if lag.asking is not None or not lag.sources or replica is None:
                continue
            lag.asking = next(iter(lag.sources))
            running += 1
            self._effects.append(Fetch(lag.asking, provider, 0 if lag.whole else replica.held_seq))

    def _fetch_ended(self, peer: bytes, provider: bytes, *, drop_source: bool) -> None:
        lag = self._lags.get(provider)
        if lag is None:
            return
        if lag.asking == peer:
            lag.asking = None
        if drop_source:
            lag.sources.pop(peer, None)
        replica = self.catalogue.replica(provider)
        if lag.asking is None and (not lag.sources or replica is None or not replica.lagging):
            del self._lags[provider]

    def _on_fetched(self, event: EntriesFetched, now: float) -> None:
        peer, provider, after_seq = event.peer, event.provider, event.after_seq
        try:
            intake = self.catalogue.begin(provider)
            run_through(intake.add(event.entries))
            unix = now + self._unix_offset
            target = run_through(self.catalogue.close(intake, event.head, unix=unix))
        except WireError as error:
            self._on_bad_entries(peer, provider, after_seq, error)
        else:
            self._on_prepared(EntriesPrepared(peer, provider, after_seq, intake, target))

    def _on_prepared(self, event: EntriesPrepared) -> None:
        provider, peer = event.provider, event.peer
        replica = self.catalogue.replica(provider)
        held_before = replica.held_seq if replica is not None else 0
        try:
            applied = self.catalogue.commit(event.intake, event.target)
        except WireError as error:
            self._on_bad_entries(peer, provider, event.after_seq, error)
            return
        self._effects += [Refuse(peer, provider, what, fault) for what, fault in applied.refused]
        replica = self.catalogue.replica(provider)
        assert replica is not None
        if replica.held_seq > held_before:
            self._effects.append(Persist(provider))
            self._effects.append(CatalogueChanged(provider, applied.slots))
            self._spread(peer, HeadsAnnounced(replica.news()))
            if not held_before:
                for message in pack_statuses(held.signed for held in replica.statuses.values()):
                    self._spread(peer, message)  # it came before the entries
        if peer is not None:
            if lag := self._lags.get(provider):
                lag.whole = False
            # A peer that is itself behind has nothing more to give; whoever announced the newest is asked next.
            self._fetch_ended(peer, provider, drop_source=replica.held_seq == held_before)

    def _on_bad_entries(self, peer: bytes | None, provider: bytes, after_seq: int, error: WireError) -> None:
        replica = self.catalogue.replica(provider)
        if replica is not None and replica.fork is not None:
            self._on_fork(provider)
            return
        lag = self._lags.get(provider)
        if isinstance(error, WrongRoot) and after_seq > 0 and lag is not None and peer is not None:
            lag.whole, lag.asking = True, None
            return
        self._effects.append(Refuse(peer, provider, "entries", error))
        if peer is not None:
            self._fetch_ended(peer, provider, drop_source=True)

    # -- status

    def _on_status(self, peer: bytes | None, batches: tuple[Signed, ...], now: float) -> None:
        fresh = []
        for signed in batches:
            try:
                part, refused = self.catalogue.apply_status(signed, unix=now + self._unix_offset)
            except WireError as error:
                if not isinstance(error, NotFound):
                    self._effects.append(Refuse(peer, signed.key, "status", error))
                continue
            for what, fault in refused:
                self._effects.append(Refuse(peer, signed.key, what, fault))
            if part is not None:
                fresh.append(signed)
                self._effects.append(StatusChanged(signed.key, part))
        for message in pack_statuses(fresh):
            self._spread(peer, message)

    # -- repair

    def _on_vector(self, peer: bytes, rows: tuple[HeadRow, ...], differs: bool) -> None:
        if not differs or peer not in self._peers:
            return
        theirs = {row.provider: row for row in rows}
        wanted = [row.provider for row in rows if self._is_wanted(row)]
        for start in range(0, len(wanted), limits.NEWS_MAX):
            self._effects.append(FetchNews(peer, tuple(wanted[start : start + limits.NEWS_MAX])))
        lacking = [row.provider for row in self.catalogue.vector() if _is_news(row, theirs.get(row.provider))]
        for page in pack_news(self.catalogue, lacking):
            if page.news:
                self._effects.append(Notify(peer, HeadsAnnounced(page.news)))
            if page.statuses:
                self._effects.append(Notify(peer, StatusAnnounced(page.statuses)))

    def _is_wanted(self, row: HeadRow) -> bool:
        replica = self.catalogue.replica(row.provider)
        own = replica.row() if replica is not None else None
        return _is_news(row, own)

    # -- time

    def _on_time(self, now: float) -> None:
        if self._compare_at is None or self._expire_at is None:
            self._compare_at = now + self._compare_seconds * (0.5 + self._chance.random())
            self._expire_at = now + EXPIRE_SECONDS
        if now >= self._compare_at:
            self._compare_at = now + self._compare_seconds * (0.75 + self._chance.random() / 2)
            if cores := sorted(key for key, peer in self._peers.items() if peer.core):
                self._effects.append(Compare(cores[self._chance.randrange(len(cores))]))
        if now >= self._expire_at:
            self._expire_at = now + EXPIRE_SECONDS
            self._forget(self.catalogue.expire(unix=now + self._unix_offset))
        if self._tell_peers_at is not None and now >= self._tell_peers_at:
            self._tell_peers_at = None
            known = PeersKnown(self.core_contacts())
            self._effects.extend(Notify(key, known) for key in self._peers)
        self._dial(now)

    def _forget(self, providers: Iterable[bytes]) -> None:
        for provider in providers:
            self._effects += [CatalogueChanged(provider, None), Persist(provider)]


def _is_news(row: HeadRow, other: HeadRow | None) -> bool:
    """Whether whoever holds `other` lacks what `row` tells."""
    if other is None:
        return True
    if FORKED in (row.head, other.head):
        return row.head != other.head and row.head == FORKED
    return row.seq > other.seq or (row.seq == other.seq and row.head != other.head)


def pack_statuses(batches: Iterable[Signed]) -> list[StatusAnnounced]:
    """Status batches in messages that fit into a frame."""
    pages: list[list[Signed]] = []
    room = 0
    for signed in batches:
        size = len(signed.payload) + 160
        if not pages or size > room or len(pages[-1]) >= limits.NEWS_MAX:
            pages.append([])
            room = PAGE_BYTES
        pages[-1].append(signed)
        room -= size
    return [StatusAnnounced(tuple(page)) for page in pages]


def pack_news(catalogue: Catalogue, providers: Iterable[bytes]) -> list[HeadsPage]:
    """Heads (of a forked provider both) and newest status of `providers`, in pages that fit into a frame."""
    news: list[HeadNews] = []
    statuses: list[Signed] = []
    for provider in providers:
        replica = catalogue.replica(provider)
        if replica is None:
            continue
        news.extend(replica.news())
        statuses.extend(held.signed for held in replica.statuses.values())
    step = limits.NEWS_MAX // 2
    pages = [HeadsPage(news=tuple(news[start : start + step])) for start in range(0, len(news), step)]
    return pages + [HeadsPage(statuses=message.batches) for message in pack_statuses(statuses)]
