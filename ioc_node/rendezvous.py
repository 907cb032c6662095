"""How a reader and a holder that cannot be dialed agree where to meet: over a link, then by QUIC.

The one that can be dialed listens: a reader that takes datagrams is called by the holder. Where neither does, both go
to the relay of the core node that the holder keeps a link to.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog
import trio

from ioc_node.bulk.meeting import RelayEnd
from ioc_node.bulk.transfers import BulkEndpoint
from ioc_node.errors import PeerUnreachable
from ioc_node.runtime.gossip import is_core
from ioc_node.runtime.link_handlers import Handlers
from ioc_node.runtime.link_mux import ItemStream
from ioc_node.runtime.links import Link, LinkEndpoint
from ioc_wire.bulk import Endpoint
from ioc_wire.codec import Message
from ioc_wire.errors import Busy, NotFound, TicketRefused, WireError, WrongPeer
from ioc_wire.market import Contact
from ioc_wire.relay import CallReader, MeetAtRelay, OpenRelay, RelayMetered, RelayOpened
from ioc_wire.tasks import Done

if TYPE_CHECKING:
    from trio import TaskStatus

_log = structlog.get_logger()


class NodeRendezvous:
    """Both parts of a node. `host` is where its bulk port is reached, None where it is not. Meets nobody before
    `run`."""

    _links: LinkEndpoint

    def __init__(self, bulk: BulkEndpoint, host: str | None) -> None:
        self._bulk = bulk
        self._host = host
        self._nursery: trio.Nursery | None = None

    def register(self, handlers: Handlers) -> None:
        """Answer readers; before links are opened."""
        handlers.serve(CallReader, self._on_call_reader)
        handlers.serve(MeetAtRelay, self._on_meet_at_relay)

    async def run(
        self,
        links: LinkEndpoint,
        *,
        task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Meet others until cancelled."""
        self._links = links
        try:
            async with trio.open_nursery() as self._nursery:
                self._bulk.plane.arranger = self
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = self._bulk.plane.arranger = None

    @property
    def _tasks(self) -> trio.Nursery:
        if self._nursery is None:
            raise Busy("this node is starting or stopping")
        return self._nursery

    # -- the reader

    @asynccontextmanager
    async def arrange(self, holder: bytes, endpoint: Endpoint, call: bytes) -> AsyncIterator[RelayEnd | None]:
        """See `ioc_node.bulk.meeting.Arranger`."""
        assert endpoint.via is not None
        link = await self._links.reach(Contact(holder, endpoint.host, endpoint.port, endpoint.via))
        if self._host is not None:
            await link.request(CallReader(call, self._host, self._bulk.port), Done)
            yield None
            return
        core = await self._links.connect((endpoint.host, endpoint.port), endpoint.via)
        async with core.open_stream(OpenRelay(holder)) as items:
            opened = await _opened(items)
            self._tasks.start_soon(self._hear_meter, items)
            await link.request(MeetAtRelay(opened.host, opened.port, opened.target_token), Done)
            yield RelayEnd(opened.host, opened.port, opened.caller_token)

    async def _hear_meter(self, items: ItemStream[Message]) -> None:
        """Until the stream is left or the core node ends it. Read, or the core node would wait for us."""
        try:
            async for item in items:
                if isinstance(item, RelayMetered):
                    _log.debug("relayed", sent=item.bytes_from_caller, received=item.bytes_to_caller)
        except (WireError, PeerUnreachable) as error:
            _log.debug("relay_ended", error=str(error))

    # -- the holder

    async def _on_call_reader(self, link: Link, message: CallReader) -> Done:
        self._check_ticket(link)
        listens = link.peer.endpoint
        if listens is None or listens[0] != message.host:
            raise WrongPeer(
                f"{message.host} is not where that reader says it takes links: nobody else is called"
            )
        await self._bulk.plane.call_reader(message.host, message.port, link.peer.key, message.call)
        return Done()

    async def _on_meet_at_relay(self, link: Link, message: MeetAtRelay) -> Done:
        self._check_ticket(link)
        links = self._links.links.values()
        cores = {core.peer.endpoint[0] for core in links if is_core(core) and core.peer.endpoint is not None}
        if message.host not in cores:
            raise WrongPeer(f"{message.host} is no core node that this holder has a link to")
        await self._bulk.plane.attend_relay(message.host, message.port, link.peer.key, message.token)
        return Done()

    def _check_ticket(self, link: Link) -> None:
        if not self._bulk.tickets.knows(link.peer.key):
            raise TicketRefused("that reader has no ticket here")


async def _opened(items: ItemStream[Message]) -> RelayOpened:
    try:
        item = await anext(items, None)
    except NotFound as error:
        raise PeerUnreachable(f"no relay to the holder: {error}") from None
    if not isinstance(item, RelayOpened):
        raise PeerUnreachable("no relay to the holder: the core node told none")
    return item
