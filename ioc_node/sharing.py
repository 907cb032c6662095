"""Blobs that this node's owner shares by hand, and blobs that it asks others for.

What was added here may be read by every member of the network that knows its name; the name is a 256-bit hash that
nobody guesses. Inputs and outputs of tasks are not given out this way: their parties exchange tickets.
"""

import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Final

import structlog
import trio

from ioc_node.api import ROWS_MAX, Added, BlobRow, Got, TransferRow
from ioc_node.bulk.targets import check_range
from ioc_node.bulk.transfers import BulkEndpoint, TransferReport
from ioc_node.errors import NodeError, PeerUnreachable, RequestRefused, UsageError
from ioc_node.runtime.dht import Dht
from ioc_node.runtime.link_handlers import Handlers
from ioc_node.runtime.links import Link, LinkEndpoint
from ioc_node.runtime.store import Store
from ioc_node.runtime.whereabouts import Whereabouts
from ioc_node.sources import SOURCES_MAX, Sources
from ioc_node.tasks.keeper import BY_HAND, DATASET, Keeper, reason_text
from ioc_wire.bulk import (
    Endpoint,
    Grant,
    RequestTicket,
    RequestTickets,
    Ticket,
    TicketIssued,
    TicketsIssued,
    format_blob_id,
)
from ioc_wire.errors import NotFound, WireError
from ioc_wire.identity import format_node_id, node_id_of

TRANSFERS_KEPT_MAX: Final = 256
ANNOUNCE_SECONDS: Final = 24 * 3600
ANNOUNCE_AGAIN_SECONDS: Final = 6 * 3600
FAILED_SECONDS: Final = 30.0
FAILED_SECONDS_MAX: Final = 3600.0
"""How long after an announcement that nobody took the next one is tried, longer each time."""
FAILURES_MAX: Final = 16
"""Announcements in a row that nobody took before the rest waits too."""
LOOK_SECONDS: Final = 2.0
"""How often a node that nobody can reach looks whether that has changed."""
WITHDRAWN_SECONDS: Final = 1
"""A withdrawal is an announcement that ends at once."""
SHARED_MAX: Final = 100_000
BLOBS_PER_TURN: Final = 64
"""Blobs that are looked up in the database before other tasks of the loop get their turn."""

_SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS shared_blobs (blob BLOB PRIMARY KEY, added INTEGER NOT NULL) WITHOUT ROWID",
)
_log = structlog.get_logger()


class SharedBlobs:
    """Adds, announces, hands out and fetches blobs."""

    def __init__(
        self, store: Store, bulk: BulkEndpoint, dht: Dht, keeper: Keeper, where: Whereabouts
    ) -> None:
        store.require("shared_blobs", _SCHEMA)
        self._store = store
        self._bulk = bulk
        self._dht = dht
        self.keeper = keeper
        self.sources = Sources(dht, bulk.public_key)
        self._where = where
        self.transfers: deque[TransferRow] = deque(maxlen=TRANSFERS_KEPT_MAX)
        self._gone: dict[bytes, None] = {}
        """What is still to be withdrawn, in order."""
        self._news = trio.Event()
        token = trio.lowlevel.current_trio_token()
        bulk.store.on_gone = lambda blob: token.run_sync_soon(self._lost, blob)

    def register(self, handlers: Handlers) -> None:
        """Answer peers that ask for a ticket; before links are opened."""
        handlers.serve(RequestTicket, self._on_request)
        handlers.serve(RequestTickets, self._on_many)

    async def _on_request(self, link: Link, message: RequestTicket) -> TicketIssued:
        if not self.is_shared(message.blob):
            raise NotFound(f"blob {format_blob_id(message.blob)} is not shared here")
        return TicketIssued(self._ticket(message.blob, link.peer.key))

    def _ticket(self, blob: bytes, reader: bytes, *, offloads: bool = True) -> Ticket:
        where = self._where
        return self._bulk.issue_ticket(blob, reader, hosts=where.hosts, via=where.via(), offloads=offloads)

    def is_shared(self, blob: bytes) -> bool:
        """Whether members of the network get this blob here."""
        if not self._bulk.store.has(blob):
            return False
        rows = self._store.fetch("SELECT 1 FROM shared_blobs WHERE blob = ?", (blob,))
        return bool(rows) or self.keeper.is_held_for(blob, DATASET)

    async def _on_many(self, link: Link, message: RequestTickets) -> TicketsIssued:
        size = self._bulk.store.size
        grants: list[Grant | None] = []
        expires = int(time.time())
        endpoints: tuple[Endpoint, ...] = ()
        for number, blob in enumerate(message.blobs):
            if number % BLOBS_PER_TURN == 0:
                await trio.lowlevel.checkpoint()
            if not self.is_shared(blob):
                grants.append(None)
                continue
            ticket = self._ticket(blob, link.peer.key, offloads=False)
            grants.append(Grant(ticket.secret, size(blob)))
            expires, endpoints = ticket.expires, ticket.endpoints
        return TicketsIssued(tuple(grants), expires, endpoints)

    async def add(self, path: Path, *, announce: bool) -> Added:
        """Copy a file into the store, share it and tell the DHT. Raises `UsageError` or `StorageFull`."""
        started = trio.current_time()
        try:
            info = await self._bulk.store.add_file(path)
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
        (count,) = self._store.fetch("SELECT count(*) FROM shared_blobs")[0]
        if count >= SHARED_MAX:
            raise UsageError(f"{SHARED_MAX} blobs are shared here already")
        with self._store.transaction():
            self._store.execute(
                "INSERT OR REPLACE INTO shared_blobs VALUES (?, ?)", (info.blob, int(time.time()))
            )
            self.keeper.hold((info.blob,), BY_HAND)
        told = await self.announce(info.blob) if announce else 0
        elapsed_ms = (trio.current_time() - started) * 1000
        return Added(info.blob, info.size, told, elapsed_ms)

    async def announce(self, blob: bytes, seconds: int = ANNOUNCE_SECONDS) -> int:
        """Tell the DHT that this node gives a blob out, or what is found at another point; how many servers took it."""
        if seconds != WITHDRAWN_SECONDS:
            self._gone.pop(blob, None)  # it is here again before its withdrawal was told
        try:
            where = self._where.contact()
            if where is None:
                raise PeerUnreachable("no core node is linked through which this one is reached")
            report = await self._dht.announce(blob, where.host, where.port, seconds, via=where.via)
        except (WireError, NodeError) as error:
            _log.warning("announce_failed", blob=format_blob_id(blob), reason=str(error))
            return 0
        return len(report.stored)

    def _lost(self, blob: bytes) -> None:
        """A blob is gone from this disk. What this raised would end the loop that calls it."""
        try:
            self._forget(blob)
        except NodeError as error:
            _log.warning("blob_still_listed", blob=format_blob_id(blob), reason=str(error))

    def _forget(self, blob: bytes) -> None:
        """A blob is no longer given out here: said at once where it was announced."""
        if self._store.fetch("SELECT 1 FROM shared_blobs WHERE blob = ?", (blob,)):
            self._store.execute("DELETE FROM shared_blobs WHERE blob = ?", (blob,))
            self.withdraw(blob)

    def withdraw(self, point: bytes) -> None:
        """Have the DHT told that nothing is given out under this point any more."""
        self._gone[point] = None
        if len(self._gone) > SHARED_MAX:
            del self._gone[next(iter(self._gone))]
        self._news.set()

    async def keep_withdrawn(self, wait_joined: Callable[[], Awaitable[None]]) -> None:
        """Tell the DHT of blobs that are no longer given out here, until cancelled."""
        await wait_joined()
        while True:
            while self._gone:
                point = next(iter(self._gone))
                del self._gone[point]
                await self.announce(point, WITHDRAWN_SECONDS)
            await self._news.wait()
            self._news = trio.Event()

    def rows(self) -> tuple[BlobRow, ...]:
        """All blobs that are here, the one used last first, and why."""
        quota, now_ms = self._bulk.store.quota, int(time.time() * 1000)
        shared = {blob for (blob,) in self._store.fetch("SELECT blob FROM shared_blobs")}
        rows = []
        for blob in islice(reversed(list(quota.by_use())), ROWS_MAX):
            size = quota.size(blob)
            if size is None:
                continue  # a thread has found it changed on disk meanwhile
            reasons = tuple(dict.fromkeys(map(reason_text, self.keeper.reasons(blob, now_ms))))
            given_out = blob in shared or "dataset" in reasons
            rows.append(BlobRow(blob, size, reasons, given_out, quota.used_at(blob)))
        return tuple(rows)

    def pin(self, blob: bytes, *, pinned: bool) -> None:
        """Hold a blob until it is let go, or let it go: then it is no longer shared either, and may be removed when
        room is needed. Raises `NotFound` for one that is not here, `UsageError` for one that is not pinned.
        """
        self._bulk.store.size(blob)
        if pinned:
            self.keeper.hold((blob,), BY_HAND)
            return
        if not self.keeper.let_go(blob, BY_HAND):
            raise UsageError(f"blob {format_blob_id(blob)} is not pinned")
        self._forget(blob)

    async def keep_announced(self, wait_joined: Callable[[], Awaitable[None]]) -> None:
        """Announce everything that is shared once the node has joined, and again and again, until cancelled."""
        await wait_joined()
        await self.announce_again_and_again(self._shared_blobs, self.is_shared)

    def _shared_blobs(self) -> list[bytes]:
        return [blob for (blob,) in self._store.fetch("SELECT blob FROM shared_blobs ORDER BY blob")]

    async def announce_again_and_again(
        self, list_all: Callable[[], Sequence[bytes]], is_held: Callable[[bytes], bool]
    ) -> None:
        """Announce all of `list_all()`, one after the other, until cancelled. A round takes hours where they are many:
        what is not held any more when its turn comes is left out. What nobody took is tried again soon.
        """
        while True:
            next_round = trio.current_time() + ANNOUNCE_AGAIN_SECONDS
            left, pause = deque(list_all()), FAILED_SECONDS
            while left and trio.current_time() < next_round:
                if self._where.contact() is None:
                    await trio.sleep(LOOK_SECONDS)
                    continue
                failed = await self._announce_each(left, is_held)
                left.extend(failed)
                if failed:
                    await trio.sleep(pause)
                    pause = min(2 * pause, FAILED_SECONDS_MAX)
            await trio.sleep_until(next_round)

    async def _announce_each(self, points: deque[bytes], is_held: Callable[[bytes], bool]) -> list[bytes]:
        """Announce and drop them, until too many in a row fail: those that did."""
        failed: list[bytes] = []
        in_a_row = 0
        while points and in_a_row < FAILURES_MAX:
            point = points.popleft()
            if not is_held(point):
                continue
            if await self.announce(point):
                in_a_row = 0
            else:
                failed.append(point)
                in_a_row += 1
        return failed

    async def get(self, blob: bytes, path: Path, links: LinkEndpoint) -> Got:
        """Bring a blob here from whoever holds it, several at once, and write it to `path`.

        Raises `NotFound`, `UsageError` where `path` cannot be written, `StorageUnusable`, or why the last holder
        failed.
        """
        report = await self.bring(blob, links)
        try:
            await self._bulk.export(blob, path)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror or error}") from None
        return Got(
            blob=blob,
            size=report.size,
            bytes_moved=report.bytes_moved,
            seconds=report.seconds,
            transport=report.transport,
            reason=report.reason,
            holder=", ".join(format_node_id(node_id_of(key)) for key, _ in report.shares),
        )

    async def bring(self, blob: bytes, links: LinkEndpoint) -> TransferReport:
        """Have a blob here. Raises as `get`."""
        if self._bulk.store.has(blob):
            size = self._bulk.store.size(blob)
            return TransferReport(blob, size, 0, 0, 0.0, "local", "the blob is already here")
        fault: Exception | None = None
        for group in await self.sources.find(blob, links):
            try:
                report = await self._bulk.gather(group)
            except (WireError, PeerUnreachable) as error:
                fault = error
                continue
            self.note(report)
            return report
        raise RequestRefused(f"no holder gave {format_blob_id(blob)} to its end: {fault}")

    @asynccontextmanager
    async def open_blob(
        self, blob: bytes, links: LinkEndpoint, *, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[AsyncIterator[memoryview]]:
        """Bytes `start` … `stop - 1` of a blob in order, verified, while they arrive; nothing is kept here.

        Raises `NotFound` or `RequestRefused`; iterating raises `UsageError` for bytes beyond the end,
        `PeerUnreachable`, or why the last holder failed.
        """
        store = self._bulk.store
        if store.has(blob):
            info = await store.info(blob)
            check_range(start, stop, info.size)
            yield store.iterate(info, start, stop)
            return
        groups = await self.sources.find(blob, links)
        sources = [source for group in groups for source in group][:SOURCES_MAX]  # no second try with others
        async with self._bulk.open_blob(sources, start, stop) as pieces:
            yield pieces

    def note(self, report: TransferReport, holder: bytes | None = None) -> None:
        """Remember a transfer for `ioc-node` to show, with `holder` or whoever gave most of it."""
        if holder is None:
            holder = max(report.shares, key=lambda share: share[1], default=(b"", 0))[0]
        several = f"; {len(report.shares)} holders" if len(report.shares) > 1 else ""
        if len(report.paths) > len(report.shares):
            several += f"; {len(report.paths)} paths"
        row = TransferRow(
            blob=report.blob,
            size=report.size,
            bytes_moved=report.bytes_moved,
            seconds=report.seconds,
            transport=report.transport,
            reason=report.reason + several,
            holder=format_node_id(node_id_of(holder)),
            ended=time.time(),
        )
        self.transfers.appendleft(row)
