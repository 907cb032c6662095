"""Where others reach this node: at an address of its own, or through the core node that it keeps a link to."""

from collections.abc import Callable

from ioc_node.runtime.links import Link
from ioc_wire.identity import format_node_id, node_id_of
from ioc_wire.market import Contact


class Whereabouts:
    """Of the node with this key. `core` gives the link to the core node through which an outbound-only node is reached
    now; it is set once there are links."""

    def __init__(self, key: bytes, host: str, port: int, *, outbound_only: bool) -> None:
        self._key = key
        self._host = host
        self._port = port
        self.outbound_only = outbound_only
        self.core: Callable[[], Link | None] = lambda: None

    @property
    def host(self) -> str | None:
        """The host that others dial, None where nobody can."""
        return None if self.outbound_only else self._host

    @property
    def hosts(self) -> tuple[str, ...]:
        """The same, as the ways to this node that a ticket lists."""
        return () if self.outbound_only else (self._host,)

    def via(self) -> Contact | None:
        """The core node through which this one is reached; None where it is dialed, or has no such link now."""
        link = self.core() if self.outbound_only else None
        endpoint = link.peer.endpoint if link is not None else None
        return Contact(link.peer.key, *endpoint) if link is not None and endpoint is not None else None

    def text(self) -> str:
        """One line for an operator; empty where others dial this node."""
        if not self.outbound_only:
            return ""
        via = self.via()
        if via is None:
            return "by nobody: no core node is linked (outbound only)"
        return f"through core node {format_node_id(node_id_of(via.key))[:11]} (outbound only)"

    def contact(self) -> Contact | None:
        """How to reach this node; None while nobody can."""
        if not self.outbound_only:
            return Contact(self._key, self._host, self._port)
        via = self.via()
        return Contact(self._key, via.host, via.port, via.key) if via is not None else None
