"""What a node of the DHT gives up when a key, or a grant, was revoked: at once, not when it would have expired."""

from typing import TYPE_CHECKING, Final

from ioc_node.core.events import PeerLost, RecordDropped
from ioc_node.core.session import Failed, Outbox
from ioc_node.core.trust import Ended
from ioc_wire.errors import BrokenChain, Expired, Revoked, RoleNotGranted
from ioc_wire.identity import node_id_of

if TYPE_CHECKING:
    from ioc_node.core.dht import DhtMachine

_NOT_ADMITTED: Final = (Revoked, BrokenChain, Expired, RoleNotGranted)


def end_trust(dht: "DhtMachine", ended: Ended, out: Outbox) -> None:
    """Drop records, announcements, sessions and table entries that rested on what `Trust` was told is revoked.

    A peer that holds something else besides opens a new session and enters again.
    """
    out.extend(map(RecordDropped, dht.store.drop_ended(ended)))
    dht.holders.drop_of(ended.keys)
    for key in ended.keys:
        node_id = node_id_of(key)
        dht.sessions.drop_node(node_id)
        _leave_table(dht, node_id, out)


def end_refused(dht: "DhtMachine", event: Failed, out: Outbox) -> None:
    """A server that we know proved its key and is not admitted any more: do not ask it again."""
    if event.refused_here and isinstance(event.error, _NOT_ADMITTED):
        _leave_table(dht, event.attempt.node_id, out)


def _leave_table(dht: "DhtMachine", node_id: bytes, out: Outbox) -> None:
    peer = dht.table.get(node_id)
    if peer is not None:
        dht.table.remove(node_id)
        out.append(PeerLost(peer.contact))
