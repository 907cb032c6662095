"""Gossip between core nodes: everybody soon holds what any of them was told.

Push: a head or status batch that is new here goes at once to other core nodes, which pass it on in their turn. Heads
are passed on when their entries are held, so that whoever hears of one finds it here.

Pull: a head that is newer than what is held makes the provider *lagging*. One fetch per provider is under way at a
time, from one of the peers that announced it; the next one is asked when it fails. Entries that don't match the head
are fetched whole once, then the peer is passed over.

Repair: every `compare_seconds`, head vectors are compared with one peer and with one of another region, and with each
peer when its link comes up. What the other has newer is fetched, what it lacks is sent. Pushes may be lost; this is
what heals.

Whom a node is linked with, see `linking`; whom it tells, `spreading`.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from ioc_node.core.catalogue import Catalogue, Standing
from ioc_node.core.chance import Chance
from ioc_node.core.gossip_events import (
    CatalogueChanged,
    Compare,
    ContactGone,
    ContactKnown,
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
    TreeReceived,
    VectorReceived,
)
from ioc_node.core.lagging import Lagging
from ioc_node.core.linking import ROOM, Linking, Room
from ioc_node.core.mesh import Mesh
from ioc_node.core.packing import by_provider, pack_news, tells_news
from ioc_node.core.spreading import HEAD, Spreading
from ioc_node.core.steps import run_through
from ioc_wire import limits
from ioc_wire.errors import Forked, NotFound, WireError, WrongRoot
from ioc_wire.gossip import HeadNews, HeadRow, HeadsAnnounced, StatusAnnounced
from ioc_wire.market import Contact
from ioc_wire.plumtree import IHave, TreeMessage
from ioc_wire.signed import Signed

COMPARE_SECONDS: Final = 30.0
EXPIRE_SECONDS: Final = 5.0
"""How often every provider is looked at for what has expired."""


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
        room: Room = ROOM,
    ) -> None:
        self._me = me
        self.catalogue = catalogue
        self._chance = chance
        self._unix_offset = unix_offset
        self._compare_seconds = compare_seconds
        self._mesh = Mesh(chance)
        self._linking = Linking(me, self._mesh, chance, room)
        self._spread = Spreading(catalogue, self._mesh, chance)
        self._lagging = Lagging()
        self._compare_at: float | None = None
        self._expire_at: float | None = None
        self._effects: list[Effect] = []

    def handle(self, event: Event, *, now: float) -> list[Effect]:
        """Take one event in; the commands that follow from it, in order."""
        match event:
            case LinkUp(peer, core):
                self._linking.up(event, now)
                self._effects += [Compare(peer)] if core else []
            case LinkDown(peer):
                self._on_link_down(peer, now)
            case NewsReceived(peer, news):
                for one in by_provider(news):
                    self._on_news(peer, one, now)
            case StatusReceived(peer, batches):
                self._on_status(peer, batches, now)
            case PeersReceived():
                self._linking.heard(event, now)
            case TreeReceived(peer, message):
                self._on_tree(peer, message, now)
            case VectorReceived(peer, rows, differs):
                self._on_vector(peer, rows, differs, now)
            case EntriesFetched():
                self._on_fetched(event, now)
            case EntriesPrepared():
                self._on_prepared(event, now)
            case EntriesRefused(peer, provider, after_seq, error):
                self._on_bad_entries(peer, provider, after_seq, error)
            case FetchFailed(peer, provider):
                self._fetch_ended(peer, provider, drop_source=True)
            case ContactKnown(contact):
                self._linking.know(contact, now)
            case ContactGone(key):
                self._linking.forget(key, now)
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
        times = (
            self._compare_at,
            self._expire_at,
            self._mesh.check_at,
            self._linking.deadline(),
            self._spread.deadline(),
        )
        return min((at for at in times if at is not None), default=0.0)

    def core_contacts(self) -> tuple[Contact, ...]:
        """The core nodes that this node is linked with, in order of key (to be told to others)."""
        return self._linking.contacts()

    @property
    def known(self) -> int:
        """Core nodes in the contact book."""
        return self._linking.known

    @property
    def neighbours(self) -> tuple[bytes, ...]:
        """Those in the tree; none in a full mesh."""
        return tuple(self._spread.neighbours)

    @property
    def wide(self) -> bool:
        """Whether there are more core nodes than a full mesh holds."""
        return self._mesh.wide

    @property
    def links_to_spare(self) -> int:
        """Links to core nodes above those that this node would dial; in a full mesh every link is needed."""
        return self._linking.to_spare()

    def wants(self, provider: bytes) -> bool:
        """Whether entries of this provider are being fetched, or will be."""
        return provider in self._lagging

    # -- links

    def _on_link_down(self, peer: bytes, now: float) -> None:
        self._linking.down(peer, now)
        self._spread.gone(peer)
        for provider in self._lagging.from_peer(peer):
            self._fetch_ended(peer, provider, drop_source=True)

    # -- push

    def _on_tree(self, peer: bytes, message: TreeMessage, now: float) -> None:
        self._effects += self._spread.received(peer, message, now)
        for mark in message.news if isinstance(message, IHave) else ():
            if mark.part == HEAD and mark.provider in self._lagging:
                self._lagging.want(mark.provider, peer, first=False)

    # -- heads

    def _on_news(self, peer: bytes | None, told: Sequence[HeadNews], now: float) -> None:
        news, unix = told[0], now + self._unix_offset
        provider = news.head.key
        standing: Standing | None
        try:
            if len(told) > 1:
                standing = self.catalogue.consider_fork(told, unix=unix)
            else:
                standing = self.catalogue.consider(news, unix=unix)
        except WireError as error:
            self._effects.append(Refuse(peer, provider, "head", error))
            return
        replica = self.catalogue.replica(provider)
        newest = replica is not None and replica.fork is None and replica.newest == news.head
        if replica is not None and newest:
            first = standing is not Standing.KNOWN
            self._effects += self._spread.came(peer, (provider, HEAD), replica.seq, now, first=first)
        if standing is None:
            for one in told:
                self._on_news(peer, (one,), now)
        elif standing is Standing.HELD:
            self._effects.append(Persist(provider))
            self._effects += self._spread.heads(peer, provider, now)
        elif standing is Standing.FORKED:
            self._on_fork(provider)
        elif replica is not None and replica.lagging and newest and peer in self._mesh.peers:
            self._lagging.want(provider, peer)

    def _on_fork(self, provider: bytes) -> None:
        self._lagging.forget(provider)
        replica = self.catalogue.replica(provider)
        assert replica is not None
        self._effects += [CatalogueChanged(provider, None), Persist(provider)]
        self._effects.append(Refuse(None, provider, "heads", Forked(f"head {replica.seq}")))
        self._effects += self._spread.forked(provider)

    def _start_fetches(self) -> None:
        self._effects.extend(Fetch(*fetch) for fetch in self._lagging.begin(self._held_seq))

    def _held_seq(self, provider: bytes) -> int | None:
        replica = self.catalogue.replica(provider)
        return replica.held_seq if replica is not None else None

    def _fetch_ended(self, peer: bytes, provider: bytes, *, drop_source: bool) -> None:
        replica = self.catalogue.replica(provider)
        done = replica is None or not replica.lagging
        self._lagging.end(peer, provider, drop_source=drop_source, done=done)

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
            self._on_prepared(EntriesPrepared(peer, provider, after_seq, intake, target), now)

    def _on_prepared(self, event: EntriesPrepared, now: float) -> None:
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
            self._effects += self._spread.heads(peer, provider, now)
            if not held_before:  # its status came before the entries
                parts = [(provider, part) for part in replica.statuses]
                self._effects += self._spread.statuses(peer, parts, now)
        if peer is not None:
            self._lagging.take_in(provider)
            # A peer that is itself behind has nothing more to give; whoever announced the newest is asked next.
            self._fetch_ended(peer, provider, drop_source=replica.held_seq == held_before)

    def _on_bad_entries(self, peer: bytes | None, provider: bytes, after_seq: int, error: WireError) -> None:
        replica = self.catalogue.replica(provider)
        if replica is not None and replica.fork is not None:
            self._on_fork(provider)
            return
        builds = isinstance(error, WrongRoot) and after_seq > 0 and peer is not None
        if builds and self._lagging.fetch_whole(provider):
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
            self._effects += self._spread.came_status(peer, signed, part, now)
            if part is not None:
                fresh.append((signed.key, part))
                self._effects.append(StatusChanged(signed.key, part))
        self._effects += self._spread.statuses(peer, fresh, now)

    # -- repair

    def _on_vector(self, peer: bytes, rows: tuple[HeadRow, ...], differs: bool, now: float) -> None:
        if peer not in self._mesh.peers:
            return
        theirs = {row.provider: row for row in rows}
        lacking = []
        common = self.catalogue.interests.common(peer)
        if differs:
            self._fetch_news(peer, [row for row in rows if self._is_wanted(row)])
            mine = self.catalogue.vector(common)
            lacking = [row.provider for row in mine if tells_news(row, theirs.get(row.provider))]
        for page in pack_news(self.catalogue, lacking, {row.provider: row.status_seq for row in rows}):
            if page.news:
                self._effects.append(Notify(peer, HeadsAnnounced(page.news)))
            if page.statuses:
                self._effects.append(Notify(peer, StatusAnnounced(page.statuses)))
        for provider in self._mesh.checked(peer, lacking, now):
            if self.catalogue.replica(provider) is not None:
                self._effects += self._spread.heads(None, provider, now)

    def _fetch_news(self, peer: bytes, rows: Sequence[HeadRow]) -> None:
        for start in range(0, len(rows), limits.NEWS_MAX):
            wanted = tuple(row.provider for row in rows[start : start + limits.NEWS_MAX])
            replicas = map(self.catalogue.replica, wanted)
            status_seqs = tuple(one.status_seq if one is not None else 0 for one in replicas)
            self._effects.append(FetchNews(peer, wanted, status_seqs))

    def _is_wanted(self, row: HeadRow) -> bool:
        replica = self.catalogue.replica(row.provider)
        own = replica.row() if replica is not None else None
        return tells_news(row, own)

    # -- time

    def _on_time(self, now: float) -> None:
        if self._compare_at is None or self._expire_at is None:
            self._compare_at = now + self._compare_seconds * (0.5 + self._chance.random())
            self._expire_at = now + EXPIRE_SECONDS
        if now >= self._compare_at:
            self._compare_at = now + self._compare_seconds * (0.75 + self._chance.random() / 2)
            self._effects.extend(map(Compare, self._mesh.to_compare()))
        check_at = self._mesh.check_at
        if check_at is not None and now >= check_at and (suspect := self._mesh.check()) is not None:
            self._effects.append(Compare(suspect))
        if now >= self._expire_at:
            self._expire_at = now + EXPIRE_SECONDS / self.catalogue.expire_calls
            self._forget(self.catalogue.expire(unix=now + self._unix_offset))
        self._effects += self._spread.pass_time(now)
        self._effects += self._linking.pass_time(now)

    def _forget(self, providers: Iterable[bytes]) -> None:
        for provider in providers:
            self._effects += [CatalogueChanged(provider, None), Persist(provider)]
