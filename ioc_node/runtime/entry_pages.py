"""Catalogue entries over a link: the same pages from provider to core node and between core nodes."""

from typing import Final

import trio

from ioc_node.errors import PeerUnreachable
from ioc_node.runtime.link_flow import ByteBudget
from ioc_node.runtime.link_handlers import SendItem
from ioc_node.runtime.links import Link
from ioc_wire import limits
from ioc_wire.errors import Busy, Malformed, TooLarge
from ioc_wire.gossip import EntriesPage, FetchEntries
from ioc_wire.signed import Signed

FETCH_STALL_SECONDS: Final = 20.0
"""A peer that sends no page for so long is given up."""
FETCH_SECONDS: Final = 120.0
"""A peer that sends one page after the other is given up after so long all the same."""
FETCH_BYTES_MAX: Final = 256 << 20
"""Entries of all fetches together that have come and are not verified yet."""


async def send_entries(head: Signed, entries: tuple[bytes, ...], send: SendItem) -> None:
    """Send entries in pages; the last one is marked, and comes even where there are none."""
    step = limits.PAGE_ENTRIES_MAX
    for start in range(0, max(len(entries), 1), step):
        page = entries[start : start + step]
        await send(EntriesPage(head, page, last=start + step >= len(entries)))


async def fetch_entries(
    link: Link, provider: bytes, after_seq: int, *, slots_max: int, budget: ByteBudget
) -> tuple[Signed, tuple[bytes, ...]]:
    """The entries of `provider` that changed after `after_seq`, and the signed head that they lead to; unverified.

    Raises `PeerUnreachable` where the peer stalls or breaks off, `TooLarge` above `slots_max` entries, `Busy` where
    `budget` has no room for more, `Malformed` for pages that don't belong together, and what the peer refuses with.
    """
    held = 0
    try:
        entries: list[bytes] = []
        head: Signed | None = None
        started = trio.current_time()
        with trio.CancelScope(deadline=started + FETCH_STALL_SECONDS) as scope:
            async with link.open_stream(FetchEntries(provider, after_seq), EntriesPage) as pages:
                async for page in pages:
                    now = trio.current_time()
                    scope.deadline = min(now + FETCH_STALL_SECONDS, started + FETCH_SECONDS)
                    if head is not None and page.head != head:
                        raise Malformed("the head changed between two pages")
                    head = page.head
                    size = sum(map(len, page.entries))
                    if not budget.acquire(size):
                        raise Busy("too many entries are on their way here")
                    held += size
                    entries.extend(page.entries)
                    if len(entries) > slots_max:
                        raise TooLarge(f"more than {slots_max} entries of one provider")
                    if page.last:
                        return head, tuple(entries)
        if scope.cancelled_caught:
            raise PeerUnreachable(f"{link.peer.name} did not send its entries in time")
        raise PeerUnreachable(f"{link.peer.name} broke off before the last page")
    finally:
        budget.release(held)
