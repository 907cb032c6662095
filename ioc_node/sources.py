"""Who gives a blob out: holders found in the DHT, asked for tickets over links, several at a time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from ioc_node.bulk.gathering import Source
from ioc_node.errors import NodeError, RequestRefused
from ioc_node.runtime.dht import Dht
from ioc_node.runtime.links import Link, LinkEndpoint
from ioc_wire.bulk import (
    TICKETS_ASKED_MAX,
    RequestTicket,
    RequestTickets,
    Ticket,
    TicketIssued,
    TicketsIssued,
    chunk_count,
    format_blob_id,
    ticket_of,
    tickets_of,
)
from ioc_wire.dht import HolderRecord
from ioc_wire.errors import WireError
from ioc_wire.identity import format_node_id, node_id_of
from ioc_wire.market import Contact

SOURCES_MAX: Final = 8
"""Holders that one blob is fetched from at the same time."""
CHUNKS_PER_SOURCE: Final = 4
"""A further holder is worth its connection for so many chunks."""
LATE_SECONDS: Final = 0.5
"""Once one holder has given a ticket, the others have so long to do the same."""
ASK_SECONDS: Final = 15.0
"""A holder that has not answered by then is passed over."""

_log = structlog.get_logger()


@dataclass(frozen=True)
class Holder:
    """A node that gives a blob out, and where it is reached."""

    contact: Contact

    @property
    def key(self) -> bytes:
        """Its node key."""
        return self.contact.key

    @property
    def name(self) -> str:
        """The beginning of its node ID."""
        return format_node_id(node_id_of(self.contact.key))[:11]


class Sources:
    """Asks the DHT and the holders that it names."""

    def __init__(self, dht: Dht, own_key: bytes) -> None:
        self._dht = dht
        self._own_key = own_key

    async def holders(self, blob: bytes) -> list[Holder]:
        """Who says that it gives this blob out. Raises `NotFound`."""
        found = await self._dht.holders(blob)
        return [_holder(key, record) for key, record in found.holders if key != self._own_key]

    async def find(self, blob: bytes, links: LinkEndpoint) -> list[list[Source]]:
        """Sources of a blob, in groups that are tried one after the other: in each as many as its size is worth.

        Raises `NotFound`, or `RequestRefused` with each holder's reason.
        """
        tickets, refusals = await self._ask_all(blob, await self.holders(blob), links)
        if not tickets:
            told = "; ".join(refusals)
            raise RequestRefused(f"none of {len(refusals)} holders gave {format_blob_id(blob)}: {told}")
        chunks = max(chunk_count(ticket.size or 0) for _, ticket in tickets)
        count = min(SOURCES_MAX, max(1, math.ceil(chunks / CHUNKS_PER_SOURCE)))
        sources = [self._source(blob, holder, ticket, links) for holder, ticket in tickets]
        return [sources[at : at + count] for at in range(0, len(sources), count)]

    async def _ask_all(
        self, blob: bytes, holders: Sequence[Holder], links: LinkEndpoint
    ) -> tuple[list[tuple[Holder, Ticket]], list[str]]:
        tickets: list[tuple[Holder, Ticket]] = []
        refusals: list[str] = []
        room = trio.Semaphore(SOURCES_MAX)

        async def ask(holder: Holder, scope: trio.CancelScope) -> None:
            async with room:
                try:
                    with trio.fail_after(ASK_SECONDS):
                        tickets.append((holder, await ask_ticket(blob, holder, links)))
                except trio.TooSlowError:
                    refusals.append(f"{holder.name}: no answer within {ASK_SECONDS:g} s")
                except (WireError, NodeError) as error:
                    refusals.append(f"{holder.name}: {error}")
                else:
                    scope.deadline = min(scope.deadline, trio.current_time() + LATE_SECONDS)

        async with trio.open_nursery() as nursery:
            for holder in holders:
                nursery.start_soon(ask, holder, nursery.cancel_scope)
        return tickets, refusals

    def _source(self, blob: bytes, holder: Holder, ticket: Ticket, links: LinkEndpoint) -> Source:
        async def renew() -> Ticket:
            return await ask_ticket(blob, holder, links)

        return Source(ticket, renew)


async def ask_ticket(blob: bytes, holder: Holder, links: LinkEndpoint) -> Ticket:
    """A ticket of one holder. Raises `PeerUnreachable`, or its refusal."""
    link = await links.reach(holder.contact)
    return ticket_of(await link.request(RequestTicket(blob), TicketIssued), blob, holder.key)


async def ask_tickets(blobs: Sequence[bytes], link: Link, reader: bytes) -> list[Ticket | None]:
    """Tickets of one holder, None for each blob that it does not share. Raises `PeerUnreachable`, or its refusal."""
    tickets: list[Ticket | None] = []
    for start in range(0, len(blobs), TICKETS_ASKED_MAX):
        page = tuple(blobs[start : start + TICKETS_ASKED_MAX])
        issued = await link.request(RequestTickets(page), TicketsIssued)
        tickets.extend(tickets_of(issued, page, link.peer.key, reader))
    return tickets


def _holder(key: bytes, record: HolderRecord) -> Holder:
    return Holder(Contact(key, record.host, record.port, record.via))
