"""Whom a node ID or a prefix means: nodes that something can be sent to."""

from typing import Final

import trio

from ioc_node.errors import PeerUnreachable, UsageError
from ioc_node.finding import Finder
from ioc_node.market.demand import make_demand
from ioc_node.runtime.dht import Dht
from ioc_node.runtime.links import LinkEndpoint
from ioc_wire.cid import check_area
from ioc_wire.errors import BadIdentifier, WireError
from ioc_wire.identity import parse_node_id
from ioc_wire.market import Contact

DESTINATIONS_MAX: Final = 8
"""Nodes of one place that are tried, one after the other."""
CONNECT_SECONDS: Final = 10.0
NODE_ID_CHARS: Final = 53


async def find_destinations(dht: Dht, links: LinkEndpoint, finder: Finder, to: str) -> list[Contact]:
    """The node `to`, or providers below the prefix `to` the cheapest first.

    Raises `UsageError` for a node that is not known here, `PeerUnreachable`.
    """
    if len(to) == NODE_ID_CHARS and to.startswith("n"):
        return [await _node(dht, links, to)]
    try:
        place = check_area(to.rstrip("/"))
    except BadIdentifier as error:
        raise UsageError(f"to: {error.detail}, nor a node ID") from None
    found = await finder.find(make_demand(within=place), policy="cost", limit=DESTINATIONS_MAX * 4)
    places = {offer.provider.key: offer.provider for offer in found.found.offers}
    return list(places.values())[:DESTINATIONS_MAX]


async def _node(dht: Dht, links: LinkEndpoint, to: str) -> Contact:
    try:
        wanted = parse_node_id(to)
    except WireError as error:
        raise UsageError(str(error)) from None
    link = next((link for link in links.links.values() if link.peer.node_id == wanted), None)
    if link is None:
        address = next((each.address for each in dht.contacts() if each.node_id == wanted), None)
        if address is None:
            raise UsageError(
                f"node {to[:11]} is not known here: `ioc-node peers` lists those that are, or name a prefix"
            )
        with trio.move_on_after(CONNECT_SECONDS):
            link = await links.connect(address)
        if link is None:
            raise PeerUnreachable(f"node {to[:11]} did not answer within {CONNECT_SECONDS:g} s")
        if link.peer.node_id != wanted:
            raise UsageError(f"another node than {to[:11]} is at {address[0]}:{address[1]}")
    if link.peer.endpoint is None:
        raise UsageError(f"node {to[:11]} cannot be dialed: name the prefix that it is found under")
    return Contact(link.peer.key, *link.peer.endpoint)
