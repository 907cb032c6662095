"""Dialing several addresses one after the other, without waiting long for any: the first that answers is taken."""

from collections.abc import Callable, Iterable
from typing import Final

import trio

from ioc_node.errors import PeerUnreachable
from ioc_node.runtime.links import Link, LinkEndpoint
from ioc_wire.errors import WireError
from ioc_wire.market import Contact

NEXT_SECONDS: Final = 0.25
"""While one does not answer, the next is dialed besides after so long."""
DIAL_SECONDS: Final = 3.0
"""A peer that has not answered by then is passed over: it may be stopped though its machine takes connections."""

Failed = Callable[[Contact, str], object]
Wanted = Callable[[Link], bool]


async def dial_first(
    links: LinkEndpoint,
    contacts: Iterable[Contact],
    *,
    failed: Failed,
    wanted: Wanted = lambda link: True,
) -> Link | None:
    """A link to the first of `contacts` that answers and is `wanted`, None where none does. `failed(contact, why)` is
    told of each that does not. Cancelled, all dials are."""
    found: Link | None = None

    async with trio.open_nursery() as nursery:

        async def attempt(contact: Contact, ended: trio.Event) -> None:
            nonlocal found
            link, why = await _dial(links, contact)
            ended.set()
            if link is None:
                failed(contact, why)
            elif not wanted(link):
                failed(contact, "it is no core node any more")
            elif found is None:
                found = link
                nursery.cancel_scope.cancel()

        for contact in contacts:
            ended = trio.Event()
            nursery.start_soon(attempt, contact, ended)
            with trio.move_on_after(NEXT_SECONDS):
                await ended.wait()
    return found


async def _dial(links: LinkEndpoint, contact: Contact) -> tuple[Link | None, str]:
    with trio.move_on_after(DIAL_SECONDS):
        try:
            return await links.connect((contact.host, contact.port), contact.key), ""
        except (WireError, PeerUnreachable) as error:
            return None, str(error)
    return None, f"no answer within {DIAL_SECONDS:.0f} s"
