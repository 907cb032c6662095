"""Bulletins over links: told on to core nodes at once, fetched by whoever lacks some, kept over restarts.

Each is verified here, so it does not matter who tells it. Notices may be lost: when a link between core nodes comes up,
and every `COMPARE_SECONDS` with one of them, each fetches what it lacks.
"""

import random
import time
from collections.abc import Callable, Sequence
from typing import Final

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.core.bulletins import BULLETINS_MAX, BulletinBoard, Posted
from ioc_node.core.rates import RateTable
from ioc_node.core.trust import Ended, Trust
from ioc_node.errors import NodeError, PeerUnreachable
from ioc_node.runtime.gossip import is_core
from ioc_node.runtime.link_handlers import Handlers
from ioc_node.runtime.links import Link, LinkEndpoint
from ioc_node.runtime.store import Store
from ioc_wire import limits
from ioc_wire.bulletins import (
    Bulletin,
    BulletinNews,
    BulletinsTold,
    FetchBulletins,
    Level,
    bulletin_name,
)
from ioc_wire.codec import decode, encode
from ioc_wire.errors import RateLimited, TooLarge, WireError
from ioc_wire.signed import Signed, public_bytes, sign

COMPARE_SECONDS: Final = 60.0
STALL_SECONDS: Final = 20.0
ROUNDS_MAX: Final = 64
"""Requests until one peer's bulletins must have been fetched."""
NEWS_PER_SECOND: Final = 2.0
NEWS_BURST: Final = 64.0
"""Bulletins told by one peer that are verified; further ones wait for the next comparison."""
ASKED_PER_SECOND: Final = 1.0
ASKED_BURST: Final = 128.0

_SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS bulletins (name BLOB PRIMARY KEY, news BLOB NOT NULL) WITHOUT ROWID",
)
_log = structlog.get_logger()


async def fetch_bulletins(link: Link, board: BulletinBoard, *, unix: float) -> list[Posted]:
    """Fetch from a core node what `board` lacks, verified; returns what was new. Raises what a request raises."""
    new: list[Posted] = []
    named = dict.fromkeys(board.names)  # those that are refused too, so that they come once
    for _ in range(ROUNDS_MAX):
        answer = await link.request(FetchBulletins(tuple(named)), BulletinsTold)
        before = len(named)
        for posted in take_all(link, board, answer.news, unix=unix):
            new.append(posted)
        named.update(dict.fromkeys(bulletin_name(each.statement) for each in answer.news))
        if len(named) == before or len(named) > limits.BULLETINS_NAMED_MAX:
            break
    return new


def take_all(link: Link, board: BulletinBoard, news: Sequence[BulletinNews], *, unix: float) -> list[Posted]:
    """Take in what a peer told, whatever of it is good; returns what was new."""
    new = []
    for each in news:
        try:
            posted = board.take(each, unix=unix)
        except WireError as error:
            _log.info("bulletin_refused", told_by=link.peer.name, error=str(error))
            continue
        if posted is not None:
            new.append(posted)
    return new


async def read_bulletins(link: Link, trust: Trust) -> tuple[Posted, ...]:
    """All bulletins that a core node holds, verified, the newest first. Raises `PeerUnreachable`."""
    board = BulletinBoard(trust)
    try:
        await fetch_bulletins(link, board, unix=time.time())
    except WireError as error:
        raise PeerUnreachable(f"core node {link.peer.name} tells no bulletins: {error}") from None
    return board.posted()


class CoreBulletins:
    """The bulletins of one core node."""

    def __init__(
        self,
        key: Ed25519PrivateKey,
        chain: Sequence[Signed],
        trust: Trust,
        *,
        store: Store | None = None,
        clock: Callable[[], float] = time.time,
        compare_seconds: float = COMPARE_SECONDS,
    ) -> None:
        self.board = BulletinBoard(trust)
        self._key = key
        self._chain = tuple(chain) if trust.certified else ()
        self._store = store
        self._clock = clock
        self._compare_seconds = compare_seconds
        self._links: LinkEndpoint | None = None
        self._nursery: trio.Nursery | None = None
        self._told = RateTable(NEWS_PER_SECOND, NEWS_BURST)
        self._asked = RateTable(ASKED_PER_SECOND, ASKED_BURST)
        if store is not None:
            store.require("bulletins", _SCHEMA)
            self._load(store)

    def register(self, handlers: Handlers) -> None:
        """Take notices and answer whoever asks; before links are opened."""
        handlers.serve_notify(BulletinsTold, self._on_told)
        handlers.serve(FetchBulletins, self._on_fetch)

    def publish(self, title: str, text: str, *, about: str, level: Level, seconds: int) -> Posted:
        """Sign a bulletin, keep it and tell it. Raises what `BulletinBoard.take` raises."""
        for name, words, most in (
            ("title", title, limits.BULLETIN_TITLE_CHARS_MAX),
            ("text", text, limits.BULLETIN_TEXT_CHARS_MAX),
        ):
            if len(words) > most:
                raise TooLarge(f"{name} of {len(words)} characters, at most {most} are allowed")
        now, own = int(self._clock()), public_bytes(self._key)
        number = self.board.next_number(own, unix=now)
        statement = sign(self._key, Bulletin(number, title, text, level, about, now, now + seconds))
        posted = self.board.take(BulletinNews(statement, self._chain), unix=now)
        assert posted is not None, "its number is new"
        self._pass_on([posted], None)
        return posted

    def posted(self) -> tuple[Posted, ...]:
        """What holds now, the newest first."""
        self._expire()
        return self.board.posted()

    def key_revoked(self, ended: Ended) -> None:
        """`Trust` took in a revocation: drop what rests on it."""
        if self.board.drop_revoked():
            self._save()

    async def run(self, links: LinkEndpoint) -> None:
        """Compare with core nodes until cancelled."""
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
                    await self._fetch(random.choice(cores))  # noqa: S311 - any will do

    # -- links

    def _on_link_up(self, link: Link) -> None:
        if is_core(link) and self._nursery is not None:
            self._nursery.start_soon(self._fetch, link)

    async def _fetch(self, link: Link) -> None:
        try:
            with trio.move_on_after(STALL_SECONDS):
                self._pass_on(await fetch_bulletins(link, self.board, unix=self._clock()), link)
        except (WireError, PeerUnreachable) as error:
            _log.debug("bulletins_not_fetched", peer=link.peer.name, error=str(error))

    async def _on_told(self, link: Link, message: BulletinsTold) -> None:
        if not is_core(link) or len(encode(message)) > limits.BULLETINS_TOLD_BYTES_MAX:
            _log.info("bulletins_refused", told_by=link.peer.name)
            return
        now = trio.current_time()
        news = [each for each in message.news if self._told.take(link.peer.key, now)]
        self._pass_on(take_all(link, self.board, news, unix=self._clock()), link)

    async def _on_fetch(self, link: Link, message: FetchBulletins) -> BulletinsTold:
        if not self._asked.take(link.peer.key, trio.current_time()):
            raise RateLimited("bulletins; ask again in a while")
        self._expire()
        return BulletinsTold(self.board.lacking(message.held))

    def _pass_on(self, new: Sequence[Posted], source: Link | None) -> None:
        if not new:
            return
        self._save()
        for link in list(self._links.links.values()) if self._links is not None else ():
            if is_core(link) and link is not source:
                for posted in new:
                    link.notify_nowait(BulletinsTold((posted.news,)))

    # -- the database

    def _load(self, store: Store) -> None:
        for (data,) in store.fetch("SELECT news FROM bulletins LIMIT ?", (BULLETINS_MAX,)):
            try:
                self.board.take(decode(data, BulletinNews), unix=self._clock())
            except WireError as error:
                _log.info("stored_bulletin_dropped", error=str(error))

    def _expire(self) -> None:
        if self.board.expire(unix=self._clock()):
            self._save()

    def _save(self) -> None:
        if self._store is None:
            return
        try:
            with self._store.transaction():
                self._store.execute("DELETE FROM bulletins")
                rows = [(posted.name, encode(posted.news)) for posted in self.board.posted()]
                self._store.execute_many("INSERT INTO bulletins VALUES (?, ?)", rows)
        except NodeError as error:
            _log.error("bulletins_not_kept", error=str(error))
