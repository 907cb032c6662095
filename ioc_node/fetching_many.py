"""Many blobs from the holders of one dataset: small ones in batches, each holder doing what it can; large ones one by
one from all holders at once."""

from collections import deque
from collections.abc import Sequence
from typing import Final

import structlog
import trio

from ioc_node.bulk.gathering import Source
from ioc_node.bulk.plane.messages import PlaneLost
from ioc_node.bulk.plane.process import ATTEMPTS_MAX
from ioc_node.bulk.transfers import BulkEndpoint
from ioc_node.errors import NodeError, RequestRefused, StorageUnusable
from ioc_node.runtime.links import LinkEndpoint
from ioc_node.sources import ASK_SECONDS, SOURCES_MAX, Holder, ask_tickets
from ioc_wire.bulk import SMALL_BYTES_MAX, Ticket, format_blob_id
from ioc_wire.errors import NotFound, WireError

SLICE_BLOBS: Final = 512
"""Small blobs that a holder is asked for at a time."""
LARGE_AT_ONCE: Final = 3

Wanted = tuple[bytes, int | None]
"""A blob and its size, where it is known."""

_log = structlog.get_logger()


class ManyBlobs:
    """One errand: bring all of `wanted` here. `run` it once."""

    def __init__(
        self, bulk: BulkEndpoint, links: LinkEndpoint, holders: Sequence[Holder], wanted: Sequence[Wanted]
    ) -> None:
        self._bulk = bulk
        self._links = links
        self._holders = list(holders[:SOURCES_MAX])
        self._up = list(self._holders)
        self._lost: list[bytes] = []
        """Large blobs that nobody gave."""
        missing = {blob: size for blob, size in wanted if not bulk.store.has(blob)}
        self._small = deque(b for b, size in missing.items() if size is not None and size <= SMALL_BYTES_MAX)
        self._large = deque(b for b, size in missing.items() if size is None or size > SMALL_BYTES_MAX)
        self._missed: dict[bytes, set[bytes]] = {}
        """Small blob → holders that did not give it."""
        self._faults: dict[bytes, str] = {}
        """Holder → why it was given up."""
        self.bytes_moved = 0

    async def run(self) -> None:
        """Raises `RequestRefused` naming a blob that nobody gave, or `StorageUnusable`."""
        broken: list[StorageUnusable] = []
        left = -1
        while left != len(self._small) and (
            self._small or self._large
        ):  # what one gave back, another may have
            left = len(self._small)
            async with trio.open_nursery() as nursery:
                for holder in self._up:
                    nursery.start_soon(self._bring_small, holder, broken, nursery.cancel_scope)
                for _ in range(min(LARGE_AT_ONCE, len(self._large))):
                    nursery.start_soon(self._bring_large, broken, nursery.cancel_scope)
            if broken:
                raise broken[0]
        for blob in (*self._small, *self._lost):
            raise self._nobody_gave(blob)

    def _nobody_gave(self, blob: bytes) -> RequestRefused:
        names = {holder.key: holder.name for holder in self._holders}
        told = "; ".join(f"{names[key]}: {why}" for key, why in self._faults.items() if key in names)
        return RequestRefused(f"no holder gave {format_blob_id(blob)}: {told or 'none has it'}")

    async def _bring_small(
        self, holder: Holder, broken: list[StorageUnusable], scope: trio.CancelScope
    ) -> None:
        lost = 0
        while page := self._next_page(holder):
            try:
                tickets = await self._ask(holder, page)
                missed = await self._bulk.fetch_small([ticket for ticket in tickets if ticket is not None])
            except StorageUnusable as error:
                broken.append(error)
                scope.cancel()
                return
            except (WireError, NodeError) as error:
                self._faults[holder.key] = str(error)
                self._small.extendleft(blob for blob in page if not self._bulk.store.has(blob))
                if isinstance(error, PlaneLost) and (lost := lost + 1) < ATTEMPTS_MAX:
                    continue  # no fault of the holder's, but its tickets may be used up
                self._up.remove(holder)
                return
            for blob in page:
                if not self._bulk.store.has(blob):
                    self._faults[holder.key] = str(missed.get(blob) or NotFound("it shares no such blob"))
                    self._missed.setdefault(blob, set()).add(holder.key)
                    self._small.append(blob)
            self.bytes_moved += sum(t.size or 0 for t in tickets if t is not None and t.blob not in missed)

    def _next_page(self, holder: Holder) -> list[bytes]:
        """The next small blobs that this holder may still have."""
        page: list[bytes] = []
        for _ in range(len(self._small)):
            blob = self._small.popleft()
            if holder.key in self._missed.get(blob, ()):
                self._small.append(blob)
                continue
            page.append(blob)
            if len(page) == SLICE_BLOBS:
                break
        return page

    async def _bring_large(self, broken: list[StorageUnusable], scope: trio.CancelScope) -> None:
        while self._large:
            blob = self._large.popleft()
            sources = await self._sources(blob)
            try:
                if not sources:
                    raise self._nobody_gave(blob)
                report = await self._bulk.gather(sources)
            except StorageUnusable as error:
                broken.append(error)
                scope.cancel()
            except (WireError, NodeError) as error:
                self._lost.append(blob)
                if sources:
                    self._faults[sources[0].ticket.holder] = str(error)
            else:
                self.bytes_moved += report.bytes_moved

    async def _sources(self, blob: bytes) -> list[Source]:
        sources: list[Source] = []

        async def ask(holder: Holder) -> None:
            try:
                ticket = (await self._ask(holder, [blob]))[0]
            except (WireError, NodeError) as error:
                self._faults[holder.key] = str(error)
                return
            if ticket is not None:
                sources.append(Source(ticket, lambda: self._renew(holder, blob)))

        async with trio.open_nursery() as nursery:
            for holder in self._holders:
                nursery.start_soon(ask, holder)
        return sources

    async def _renew(self, holder: Holder, blob: bytes) -> Ticket:
        ticket = (await self._ask(holder, [blob]))[0]
        if ticket is None:
            raise NotFound(f"{format_blob_id(blob)} is not shared any more")
        return ticket

    async def _ask(self, holder: Holder, blobs: Sequence[bytes]) -> list[Ticket | None]:
        try:
            with trio.fail_after(ASK_SECONDS):
                link = await self._links.reach(holder.contact)
                return await ask_tickets(blobs, link, self._bulk.public_key)
        except trio.TooSlowError:
            raise RequestRefused(f"no answer within {ASK_SECONDS:g} s") from None
