"""Catalogue entries over a link: the same pages from provider to core node and between core nodes."""

from collections.abc import Awaitable, Callable, Iterator
from itertools import islice
from typing import Final

import trio

from ioc_node.core.catalogue import Catalogue
from ioc_node.core.intake import Intake
from ioc_node.errors import PeerUnreachable
from ioc_node.runtime.link_flow import ByteBudget
from ioc_node.runtime.link_handlers import SendItem
from ioc_node.runtime.links import Link
from ioc_node.runtime.pauses import run_with_pauses
from ioc_wire import limits
from ioc_wire.errors import Busy, NotFound, TooLarge
from ioc_wire.gossip import EntriesPage, FetchEntries
from ioc_wire.signed import Signed

FETCH_STALL_SECONDS: Final = 20.0
"""A peer that sends no page for so long is given up."""
FETCH_SECONDS: Final = 120.0
"""A peer that sends one page after the other is given up after so long all the same."""
FETCH_BYTES_MAX: Final = 128 << 20
"""Entries of all fetches together that have come and are not held yet."""

TakePage = Callable[[tuple[bytes, ...]], Awaitable[None]]


async def send_entries(head: Signed, entries: Iterator[bytes], send: SendItem) -> None:
    """Send entries in pages, read one by one; the last one is marked, and comes even where there are none."""
    page = tuple(islice(entries, limits.PAGE_ENTRIES_MAX))
    last = False
    while not last:
        following = tuple(islice(entries, limits.PAGE_ENTRIES_MAX))
        last = not following
        await send(EntriesPage(head, page, last=last))
        page = following


async def send_held(catalogue: Catalogue, provider: bytes, after_seq: int, send: SendItem) -> None:
    """Send what is held of a provider, read page by page. What changes meanwhile is added at the end, so that a slow
    reader gets a whole catalogue too. Raises `NotFound` where nothing is held (any more).
    """
    while True:
        replica = catalogue.replica(provider)
        if replica is None or replica.held is None:
            raise NotFound("nothing is held of that provider")
        held, slots = replica.held, replica.slots_after(after_seq)
        step = limits.PAGE_ENTRIES_MAX
        for start in range(0, max(len(slots), 1), step):
            entries = catalogue.entries(provider, slots[start : start + step])
            await trio.lowlevel.checkpoint()  # a page is read in one step, and packed in another
            last = start + step >= len(slots) and replica.held is held
            await send(EntriesPage(held.news.head, tuple(entries), last=last))
            if last:
                return
        after_seq = held.head.seq


async def fetch_entries(link: Link, provider: bytes, after_seq: int, take: TakePage) -> Signed:
    """Have `take` given the entries of `provider` that changed after `after_seq`, page by page; returns the signed
    head that they lead to. Nothing is verified here.

    Raises `PeerUnreachable` where the peer stalls or breaks off, and what `take` raises or the peer refuses with.
    """
    started = trio.current_time()
    with trio.CancelScope(deadline=started + FETCH_STALL_SECONDS) as scope:
        async with link.open_stream(FetchEntries(provider, after_seq), EntriesPage) as pages:
            async for page in pages:
                scope.deadline = started + FETCH_SECONDS
                await take(page.entries)
                if page.last:
                    return page.head
                scope.deadline = min(trio.current_time() + FETCH_STALL_SECONDS, started + FETCH_SECONDS)
    if scope.cancelled_caught:
        raise PeerUnreachable(f"{link.peer.name} did not send its entries in time")
    raise PeerUnreachable(f"{link.peer.name} broke off before the last page")


class PageTaker:
    """Gives an intake the pages of one fetch, within `budget` and `slots_max`."""

    def __init__(self, intake: Intake, budget: ByteBudget, *, slots_max: int) -> None:
        self._intake = intake
        self._budget = budget
        self._slots_max = slots_max
        self._held = 0

    async def take(self, entries: tuple[bytes, ...]) -> None:
        """Raises `Busy` where the budget has no room for more, `TooLarge`, or what is wrong with an entry."""
        size = sum(map(len, entries))
        if not self._budget.acquire(size):
            raise Busy("too many entries are on their way here")
        self._held += size
        await run_with_pauses(self._intake.add(entries))
        if len(self._intake) > self._slots_max:
            raise TooLarge(f"more than {self._slots_max} entries of one provider")

    def release(self) -> None:
        """The intake is done with, either way."""
        self._budget.release(self._held)
        self._held = 0
