"""Revocations over links: learnt from a file or a peer, applied here at once, told to everybody, kept over restarts.

Each is verified here (`Trust.take`), so it does not matter who tells it. What is new goes to every linked node before
the revoked one's own links are closed, so that its operator learns why; a provider or consumer that learns one
elsewhere so tells its core nodes. When a link to a core node comes up, and every `COMPARE_SECONDS` with one of them,
the names are compared: what is lacking here is fetched, what is lacking there is sent. Notices may be lost; this heals.
"""

import datetime
import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import structlog
import trio

from ioc_node.core.rates import RateTable
from ioc_node.core.trust import Ended, Trust
from ioc_node.errors import NodeError, PeerUnreachable
from ioc_node.runtime.gossip import is_core
from ioc_node.runtime.link_handlers import Handlers
from ioc_node.runtime.links import Link, LinkEndpoint
from ioc_node.runtime.store import Store
from ioc_wire import limits
from ioc_wire.authority import Revocation, RevocationNews
from ioc_wire.codec import decode, encode
from ioc_wire.errors import WireError
from ioc_wire.gossip import (
    CompareRevocations,
    FetchRevocations,
    RevocationsAnnounced,
    RevocationsCompared,
)
from ioc_wire.identity import format_node_id, node_id_of
from ioc_wire.signed import Signed

COMPARE_SECONDS: Final = 30.0
STALL_SECONDS: Final = 20.0
NEWS_PER_SECOND: Final = 50.0
"""Revocations told by one peer that are verified; further ones wait for the next comparison."""
NEWS_BURST: Final = 1024.0
AT_ONCE: Final = 16
"""Verified between two turns of everybody else."""

_SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS revocations (
         revoker BLOB NOT NULL, subject BLOB NOT NULL, news BLOB NOT NULL, until INTEGER NOT NULL,
         PRIMARY KEY (revoker, subject)) WITHOUT ROWID""",
)
_log = structlog.get_logger()


class RevocationKeeper:
    """One node's revocations. `own_key` and `own_chain` are this node's: it says so when they are revoked."""

    def __init__(
        self,
        trust: Trust,
        *,
        own_key: bytes,
        own_chain: Sequence[Signed] = (),
        store: Store | None = None,
        clock: Callable[[], float] = time.time,
        compare_seconds: float = COMPARE_SECONDS,
    ) -> None:
        self.own_fault = ""
        """One line, where this node's own key or delegation was revoked."""
        self._trust = trust
        self._own_key, self._own_chain = own_key, tuple(own_chain)
        self._store = store
        self._clock = clock
        self._compare_seconds = compare_seconds
        self._told: list[Callable[[Ended], None]] = []
        self._links: LinkEndpoint | None = None
        self._nursery: trio.Nursery | None = None
        self._rates = RateTable(NEWS_PER_SECOND, NEWS_BURST)
        if store is not None:
            store.require("revocations", _SCHEMA)

    def on_ended(self, tell: Callable[[Ended], None]) -> None:
        """Have `tell(ended)` called, synchronously, with what each revocation ended."""
        self._told.append(tell)

    def register(self, handlers: Handlers) -> None:
        """Take notices and answer comparisons; before links are opened."""
        handlers.serve(CompareRevocations, self._on_compare)
        handlers.serve(FetchRevocations, self._on_fetch)
        handlers.serve_notify(RevocationsAnnounced, self._on_announced)

    def load(self) -> int:
        """Take up what was kept; returns how many still count. They are verified anew."""
        if self._store is None:
            return 0
        self._forget_old(self._store)
        rows = self._store.fetch("SELECT news FROM revocations LIMIT ?", (limits.REVOCATIONS_MAX,))
        for (data,) in rows:
            try:
                self._take_in(decode(data, RevocationNews))
            except WireError as error:
                _log.info("stored_revocation_dropped", error=str(error))
        if self._trust.revocations:
            _log.info("revocations_remembered", count=len(self._trust.revocations))
        return len(self._trust.revocations)

    def take(self, news: RevocationNews, *, source: Link | None = None) -> bool:
        """Take in a revocation, end what rests on it, keep it and tell others; False where it was known.

        Raises what `Trust.take` raises.
        """
        ended = self._take_in(news)
        if ended is None:
            return False
        subject = decode(news.revocation.payload, Revocation).subject
        _log.info(
            "key_revoked", node=_name(subject), by=_name(news.revocation.key), peers_ended=len(ended.keys)
        )
        self._keep(news)
        self._tell([news], source)
        self._close_links()
        return True

    async def run(self, links: LinkEndpoint) -> None:
        """Compare with core nodes and close what is revoked, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._links, self._nursery = links, nursery
            links.on_link_up(self._on_link_up)
            for link in list(links.links.values()):
                self._on_link_up(link)
            while True:
                await trio.sleep(self._compare_seconds * random.uniform(0.75, 1.25))  # noqa: S311 - jitter
                self._expire()
                cores = [link for link in links.links.values() if is_core(link)]
                if cores:
                    await self._compare(random.choice(cores))  # noqa: S311 - any will do

    # -- taking in

    def _take_in(self, news: RevocationNews) -> Ended | None:
        ended = self._trust.take(news, unix=self._clock())
        if ended is None:
            return None
        self._note_own(news)
        for tell in self._told:
            tell(ended)
        return ended

    def _note_own(self, news: RevocationNews) -> None:
        if self.own_fault or not self._trust.has_ended(self._own_key, self._own_chain):
            return
        held = [h for h in self._trust.revocations.of(self._own_key) if h.news == news]
        which = "this node's key" if held else "a delegation that this node's own rests on"
        reason = f" ({held[0].revocation.reason})" if held and held[0].revocation.reason else ""
        issued = decode(news.revocation.payload, Revocation).issued
        when = datetime.datetime.fromtimestamp(issued, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        self.own_fault = (
            f"{which} was revoked by {_name(news.revocation.key)}{reason} on {when}: peers refuse it; "
            "ask for a delegation to a new key, see `ioc-node authority`"
        )
        _log.error("own_key_revoked", reason=self.own_fault)

    def _keep(self, news: RevocationNews) -> None:
        if self._store is None:
            return
        revocation = decode(news.revocation.payload, Revocation)
        try:
            self._store.execute(
                "INSERT OR REPLACE INTO revocations VALUES (?, ?, ?, ?)",
                (news.revocation.key, revocation.subject, encode(news), revocation.until),
            )
        except NodeError as error:
            _log.error("revocation_not_kept", error=str(error))

    def _expire(self) -> None:
        if self._trust.revocations.expire(unix=self._clock()) and self._store is not None:
            self._forget_old(self._store)

    def _forget_old(self, store: Store) -> None:
        until = int(self._clock()) - limits.CLOCK_SKEW_SECONDS
        try:
            store.execute("DELETE FROM revocations WHERE until < ?", (until,))
        except NodeError as error:
            _log.error("revocation_not_forgotten", error=str(error))

    # -- links

    def _on_link_up(self, link: Link) -> None:
        if is_core(link) and self._nursery is not None:
            self._nursery.start_soon(self._compare, link)

    def _close_links(self) -> None:
        if self._links is not None:
            self._links.close_revoked(self._trust.has_ended)

    def _tell(self, news: Sequence[RevocationNews], source: Link | None) -> None:
        """To every linked node; what does not get through is found by a comparison."""
        if self._links is None:
            return
        for link in list(self._links.links.values()):
            if link is not source:
                _send(link, news)

    async def _compare(self, link: Link) -> None:
        mine = self._trust.revocations
        try:
            with trio.move_on_after(STALL_SECONDS):
                theirs = await link.request(CompareRevocations(mine.digest()), RevocationsCompared)
                if theirs.digest == mine.digest():
                    return
                lacking = [name for name in theirs.names if name not in mine]
                for start in range(0, len(lacking), limits.NEWS_MAX):
                    names = tuple(lacking[start : start + limits.NEWS_MAX])
                    answer = await link.request(FetchRevocations(names), RevocationsAnnounced)
                    await self._take_all(link, answer.news)
                _send(link, mine.news(sorted(set(mine.names()) - set(theirs.names))))
        except (WireError, PeerUnreachable) as error:
            _log.debug("revocations_not_compared", peer=link.peer.name, error=str(error))

    async def _take_all(self, link: Link, news: Iterable[RevocationNews]) -> None:
        for number, one in enumerate(news, 1):
            try:
                self.take(one, source=link)
            except WireError as error:
                _log.info("revocation_refused", told_by=link.peer.name, error=str(error))
            if number % AT_ONCE == 0:
                await trio.lowlevel.checkpoint()

    async def _on_announced(self, link: Link, message: RevocationsAnnounced) -> None:
        now = trio.current_time()
        await self._take_all(link, [one for one in message.news if self._rates.take(link.peer.key, now)])

    async def _on_compare(self, link: Link, message: CompareRevocations) -> RevocationsCompared:
        digest = self._trust.revocations.digest()
        names = () if digest == message.digest else self._trust.revocations.names()
        return RevocationsCompared(digest, names)

    async def _on_fetch(self, link: Link, message: FetchRevocations) -> RevocationsAnnounced:
        return RevocationsAnnounced(tuple(self._trust.revocations.news(message.names)))


def _send(link: Link, news: Sequence[RevocationNews]) -> None:
    for start in range(0, len(news), limits.NEWS_MAX):
        link.notify_nowait(RevocationsAnnounced(tuple(news[start : start + limits.NEWS_MAX])))


def _name(key: bytes) -> str:
    return format_node_id(node_id_of(key))[:11]
