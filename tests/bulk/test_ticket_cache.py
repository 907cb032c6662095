"""Tickets as the bulk process knows them, over a real link to a node whose answers cross what happens meanwhile."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
import trio.testing

from ioc_node.bulk.plane import messages as say
from ioc_node.bulk.plane.child import TicketCache
from ioc_node.bulk.tickets import TicketBook
from ioc_node.runtime.driver import open_background
from ioc_node.runtime.link_handlers import Handlers
from ioc_node.runtime.link_mux import Link
from ioc_node.runtime.link_transport import StreamTransport
from ioc_wire.bulk import Ticket, ticket_digest
from ioc_wire.signed import public_bytes

from .conftest import ALICE, BOB

READER = public_bytes(BOB)


class Town:
    """A holder's book and its copy, with one ticket out."""

    cache: TicketCache

    def __init__(self) -> None:
        self.book = TicketBook(public_bytes(ALICE))
        self.ticket: Ticket = self.book.issue(bytes(32), READER)
        self.digest = ticket_digest(self.ticket.secret)
        self.revoked_while_asked = False
        self.asked_to_use_up = trio.Event()

    def at_node(self) -> Handlers:
        handlers = Handlers()
        handlers.serve(say.FindTickets, self._find)
        handlers.serve(say.UseUpTickets, self._use_up)
        return handlers

    def at_process(self) -> Handlers:
        handlers = Handlers()
        handlers.serve(say.RevokeTickets, self._revoke)
        return handlers

    async def _find(self, link: Link, message: say.FindTickets) -> say.TicketsFound:
        found = tuple(each for each in map(self.book.known, message.digests) if each is not None)
        if self.revoked_while_asked:
            self.book.revoke(self.ticket.secret)
            await link.request(say.RevokeTickets((self.digest,)), say.Done)
        return say.TicketsFound(found)

    async def _use_up(self, _link: Link, _message: say.UseUpTickets) -> say.Done:
        self.asked_to_use_up.set()
        await trio.sleep_forever()
        raise AssertionError

    async def _revoke(self, _link: Link, message: say.RevokeTickets) -> say.Done:
        self.cache.drop(message.digests)
        return say.Done()


@asynccontextmanager
async def open_town() -> AsyncIterator[Town]:
    town = Town()
    ends = trio.testing.memory_stream_pair()
    node, process = (
        Link(
            StreamTransport(end),
            say.OTHER_END,
            codec=say.PLANE_CODEC,
            handlers=handlers,
            settings=say.SETTINGS,
        )
        for end, handlers in zip(ends, (town.at_node(), town.at_process()), strict=True)
    )
    town.cache = TicketCache(public_bytes(ALICE), process)
    with trio.fail_after(10):
        async with open_background() as background:
            background.start_soon(node.run)
            background.start_soon(process.run)
            yield town


async def test_an_answer_that_is_older_than_a_revocation_revives_no_ticket() -> None:
    async with open_town() as town:
        town.revoked_while_asked = True
        await town.cache.prepare([town.digest])
        assert town.cache.known(town.digest) is None


async def test_a_ticket_that_is_being_used_up_is_not_found_again() -> None:
    async with open_town() as town, trio.open_nursery() as nursery:
        await town.cache.prepare([town.digest])
        nursery.start_soon(town.cache.use_up, [town.ticket.secret])
        await town.asked_to_use_up.wait()
        await town.cache.prepare([town.digest])
        assert town.cache.known(town.digest) is None
        nursery.cancel_scope.cancel()


async def test_a_ticket_that_two_connections_show_at_once_counts_once() -> None:
    async with open_town() as town:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(town.cache.prepare, [town.digest])
        town.cache.drop([town.digest])
        assert not town.cache.knows(READER)
