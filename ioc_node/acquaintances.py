"""Whom a node knows: its linked peers and the servers in its DHT table, as rows to show."""

from ioc_node import api
from ioc_node.runtime.dht import Dht
from ioc_node.runtime.link_mux import PeerIdentity
from ioc_node.runtime.links import LinkEndpoint
from ioc_wire.identity import format_node_id


def peer_rows(dht: Dht, links: LinkEndpoint) -> tuple[api.PeerRow, ...]:
    """One row per peer in order of node ID, at most `ROWS_MAX`. Round trips are those of the DHT's requests."""
    places = {contact.node_id: contact.address for contact in dht.contacts()}
    linked: dict[bytes, PeerIdentity] = {link.peer.node_id: link.peer for link in links.links.values()}
    rows = []
    for node_id in sorted({*places, *linked})[: api.ROWS_MAX]:
        peer, measured = linked.get(node_id), dht.round_trip(node_id)
        host, port = (peer.endpoint if peer is not None else None) or places.get(node_id, ("", 0))
        rows.append(
            api.PeerRow(
                node_id=format_node_id(node_id),
                roles=peer.roles if peer is not None else (),
                host=host,
                port=port,
                linked=peer is not None,
                in_table=node_id in places,
                rtt_ms=-1.0 if measured is None else 1000 * measured,
            )
        )
    return tuple(rows)
