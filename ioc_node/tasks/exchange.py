"""What the task story needs from its neighbours: offers, links to peers, and blobs that move."""

from collections.abc import Awaitable, Callable, Sequence

from ioc_node.bulk.gathering import Renew
from ioc_node.bulk.transfers import BulkEndpoint, TransferReport
from ioc_node.runtime.links import Link
from ioc_wire.bulk import Ticket
from ioc_wire.market import Contact, Demand, OffersFound

Find = Callable[[Demand, str], Awaitable[OffersFound]]
"""Ask a core node: `find(demand, policy)`. Raises `PeerUnreachable` where none answers, or a wire error."""
Connect = Callable[[Contact], Awaitable[Link]]
"""An open link to a peer, dialled where there is none. Raises `PeerUnreachable` or a wire error."""


class BlobExchange:
    """Blobs between this node and others. `hosts` are the names under which others reach this node's bulk port, `via`
    gives the core node through which it is reached where it cannot be dialed."""

    def __init__(
        self, bulk: BulkEndpoint, hosts: Sequence[str], via: Callable[[], Contact | None] = lambda: None
    ) -> None:
        self._bulk = bulk
        self._hosts = tuple(hosts)
        self._via = via
        self.blobs = bulk.store
        self.on_fetched: Callable[[TransferReport, bytes], None] = lambda _report, _holder: None
        """Told of every transfer that ended well, with the key of its holder."""

    def issue(self, blob: bytes, reader: bytes) -> Ticket:
        """Let `reader` (a public key) fetch a blob that is here. Raises `NotFound` or `Busy`."""
        return self._bulk.issue_ticket(blob, reader, hosts=self._hosts, via=self._via(), traffic="task")

    async def fetch(self, ticket: Ticket, *, renew: Renew | None = None) -> TransferReport:
        """Bring a blob here, verified. Raises as `BulkEndpoint.fetch` does."""
        report = await self._bulk.fetch(ticket, renew=renew, traffic="task")
        self.on_fetched(report, ticket.holder)
        return report
