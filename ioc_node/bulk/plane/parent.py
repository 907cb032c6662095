"""A data plane in a process of its own, as the node sees it: what is asked of the process (`process.py` runs it), and
what it asks. Where one ended in the middle, transfers go on with the next from what is on the disk.
"""

import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final, TypeVar

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.counters import BulkCounters
from ioc_node.bulk.engines import Engine
from ioc_node.bulk.gathering import Source
from ioc_node.bulk.meeting import Arranger
from ioc_node.bulk.plane import Gathered
from ioc_node.bulk.plane import messages as say
from ioc_node.bulk.plane.process import (
    START_SECONDS,
    STOP_SECONDS,
    PlaneProcess,
    ProcessKeeper,
    persist_reading,
)
from ioc_node.bulk.targets import OnProgress
from ioc_node.bulk.tickets import TicketBook
from ioc_node.bulk.udp import UdpSocket
from ioc_node.core.bandwidth import Traffic, Use
from ioc_node.errors import NodeError, PeerUnreachable
from ioc_node.runtime.link_handlers import Handlers, SendItem
from ioc_node.runtime.link_mux import Link
from ioc_node.runtime.throttle import Throttles
from ioc_wire.bulk import BlobId, Ticket
from ioc_wire.codec import Message
from ioc_wire.errors import Busy, NotFound, WireError, error_of

REVOKED_PER_MESSAGE: Final = 4096
EXPORT_BYTES_MIN: Final = 8 << 20

_T = TypeVar("_T")
_log = structlog.get_logger()


class ChildPlane:
    """See `DataPlane`."""

    def __init__(
        self,
        store: BlobStore,
        key: Ed25519PrivateKey,
        engine: Engine,
        udps: Sequence[UdpSocket],
        tickets: TicketBook,
        counters: BulkCounters,
        throttles: Throttles,
        process: PlaneProcess,
        *,
        connections_max: int,
        addresses: Sequence[str] = (),
    ) -> None:
        self.arranger: Arranger | None = None
        self.connections = 0
        self.process = ProcessKeeper(process, udps, self._handlers, self._opening, self._attend)
        self._store = store
        self._key = key
        self._engine = engine.name
        self._tickets = tickets
        self._counters = counters
        self._throttles = throttles
        self._connections_max = connections_max
        self._addresses = tuple(addresses)
        self._numbers = count(1)
        self._sources: dict[int, Sequence[Source]] = {}
        self._revoked: list[bytes] = []
        self._any_revoked = trio.Event()
        tickets.on_revoked = self._on_revoked

    # -- the process

    @property
    def pid(self) -> int:
        """See `DataPlane`."""
        return self.process.pid

    def expect_reader(self) -> None:
        """See `DataPlane`: half a second for its start is over when the reader's own process has started."""
        self.process.want()

    async def serve(self) -> None:
        """See `DataPlane`."""
        await self.process.serve()

    def _opening(self) -> say.OpenPlane:
        self._revoked.clear()  # it asks for each ticket
        return say.OpenPlane(
            self._key.private_bytes_raw(),
            os.fsencode(self._store.folder.absolute()),
            self._engine,
            self._connections_max,
            self._addresses,
            self._bandwidths(),
        )

    async def _attend(
        self, link: Link, opening: say.OpenPlane, *, task_status: trio.TaskStatus[None]
    ) -> None:
        try:
            if self._bandwidths() != opening.bandwidths:  # changed meanwhile
                await self.set_bandwidth()
            task_status.started()
            await self._keep_revoking(link)
        finally:
            self.connections = 0

    # -- reading

    async def gather(
        self, sources: Sequence[Source], on_progress: OnProgress | None, traffic: Traffic
    ) -> Gathered:
        """See `DataPlane`."""
        with self._numbered(sources) as number:
            async with self._settling(number, (sources[0].ticket.blob,)):
                gathered = await self.process.persist(
                    partial(self._gather, number, sources, on_progress, traffic)
                )
        return gathered

    @asynccontextmanager
    async def _settling(self, number: int, blobs: Sequence[bytes]) -> AsyncIterator[None]:
        """Account for what an order left of `blobs`, however it ended, once nothing more is written for it."""
        try:
            yield
        except trio.Cancelled:
            with trio.CancelScope(shield=True), trio.move_on_after(STOP_SECONDS):
                await self._tell(say.AwaitEnd(number))
            raise
        finally:
            with trio.CancelScope(shield=True):
                await self._store.settle(blobs)

    async def _gather(
        self, number: int, sources: Sequence[Source], on_progress: OnProgress | None, traffic: Traffic
    ) -> Gathered:
        blob = sources[0].ticket.blob
        await self._store.settle((blob,))
        if self._store.has(blob):  # an earlier process had brought all of it
            return Gathered(self._store.size(blob), self._store.size(blob))
        order = say.GatherBlob(number, *_tickets_of(sources), traffic)
        link = await self.process.linked()
        with _noticing_loss(link):
            async with link.open_stream(order) as items:
                async for item in items:
                    if isinstance(item, say.Progress):
                        if on_progress is not None:
                            on_progress(item.here, item.total)
                        continue
                    return _note(say.checked(item, say.BlobGathered), sources, on_progress)
        raise say.PlaneLost("it said nothing more of a transfer")

    async def fetch_small(self, tickets: Sequence[Ticket]) -> dict[bytes, WireError]:
        """See `DataPlane`."""
        wanted = [ticket for ticket in tickets if not self._store.has(ticket.blob)]
        if not wanted:
            return {}
        size = sum(ticket.size or 0 for ticket in wanted)
        number = next(self._numbers)
        name = f"small-{number}"
        order = say.FetchSmall(number, tuple(wanted))
        await self._store.make_room(size)
        self._store.quota.reserve(name, size, f"{len(wanted)} small blobs")
        try:
            async with self._settling(number, [ticket.blob for ticket in wanted]):
                answer = await say.ask(await self.process.linked(), order, say.SmallFetched)
        finally:
            self._store.quota.release(name)
        return {blob: error_of(code, detail) for blob, code, detail in answer.missed}

    @asynccontextmanager
    async def open_blob(
        self, sources: Sequence[Source], start: int, stop: int | None, *, ahead: int
    ) -> AsyncIterator[AsyncIterator[memoryview]]:
        """See `DataPlane`. Another process goes on from where one ended."""
        with self._numbered(sources) as number:
            async with AsyncExitStack() as stream:

                async def pieces_from(at: int) -> AsyncIterator[memoryview]:
                    await stream.aclose()  # that of the process that ended
                    link = await self.process.linked()
                    order = say.ReadBlob(number, *_tickets_of(sources), at, stop, ahead)
                    with _noticing_loss(link):
                        async for item in await stream.enter_async_context(link.open_stream(order)):
                            yield memoryview(say.checked(item, say.Piece).data)

                yield persist_reading(pieces_from, start)

    @contextmanager
    def _numbered(self, sources: Sequence[Source]) -> Iterator[int]:
        """A number by which the process asks for new tickets of these sources."""
        number = next(self._numbers)
        self._sources[number] = sources
        try:
            yield number
        finally:
            del self._sources[number]

    async def export(self, blob: bytes, target: Path) -> None:
        """See `DataPlane`. Small ones are written here: that is sooner done than said."""
        if self._store.size(blob) < EXPORT_BYTES_MIN:
            await self._store.export(blob, target)
            return
        await self.process.persist(partial(self._order, _export_order(next(self._numbers), blob, target)))

    # -- for readers that cannot dial this node

    async def call_reader(self, host: str, port: int, reader: bytes, call: bytes) -> None:
        """See `DataPlane`."""
        await self._order(say.ServeReader(host, port, reader, call, False))

    async def attend_relay(self, host: str, port: int, reader: bytes, token: bytes) -> None:
        """See `DataPlane`."""
        await self._order(say.ServeReader(host, port, reader, token, True))

    async def _order(self, message: Message) -> None:
        await say.ask(await self.process.linked(), message, say.Done)

    # -- bandwidth

    async def set_bandwidth(self) -> None:
        """See `DataPlane`."""
        await self._tell(self._bandwidths())

    async def hurry(self, peer: bytes, name: bytes | None, factor: float) -> None:
        """See `DataPlane`; a process that is started anew hears of it at the next look."""
        await self._tell(say.HurryTransfer(peer, name, factor))

    async def _tell(self, message: Message) -> None:
        """Have the process know, if there is one; where it ends meanwhile, what there was to say is said."""
        if (link := self.process.link) is not None:
            with suppress(say.PlaneLost):
                await say.ask(link, message, say.Done)

    def _bandwidths(self) -> say.Bandwidths:
        sending, receiving = self._throttles.sending.machine, self._throttles.receiving.machine
        return say.Bandwidths(sending.ceilings, receiving.ceilings, dict(sending.weights))

    async def uses(self) -> tuple[Sequence[Use], Sequence[Use]]:
        """See `DataPlane`."""
        own = self._throttles.sending.uses(), self._throttles.receiving.uses()
        theirs = say.Uses((), ())
        if (link := self.process.link) is not None:
            with suppress(say.PlaneLost):  # nothing moves then
                theirs = await say.ask(link, say.GetUses(), say.Uses)
        return (*own[0], *theirs.sending), (*own[1], *theirs.receiving)

    # -- what the process asks

    def _handlers(self) -> Handlers:
        handlers = Handlers()
        handlers.serve(say.ReserveRoom, self._on_reserve)
        handlers.serve(say.FindTickets, self._on_find_tickets)
        handlers.serve(say.UseUpTickets, self._on_use_up)
        handlers.serve(say.RenewTicket, self._on_renew)
        handlers.serve(say.Counted, self._on_counted)
        handlers.serve(say.AskLeave, self._on_leave)
        handlers.serve_stream(say.MeetHolder, self._on_meet)
        handlers.serve_notify(say.Touched, lambda _link, message: self._store.touch(BlobId(message.blob)))
        handlers.serve_notify(say.Missing, lambda _link, message: self._store.look_again(message.blob))
        return handlers

    async def _on_reserve(self, _link: Link, message: say.ReserveRoom) -> say.Done | say.Fault:
        try:
            await self._store.reserve_for_other(message.blob, message.size)
        except NodeError as error:
            return say.fault_of(error)
        return say.Done()

    async def _on_find_tickets(self, _link: Link, message: say.FindTickets) -> say.TicketsFound:
        found = map(self._tickets.known, message.digests)
        return say.TicketsFound(tuple(each for each in found if each is not None))

    async def _on_use_up(self, _link: Link, message: say.UseUpTickets) -> say.Done:
        self._tickets.drop(message.digests)
        return say.Done()

    async def _on_renew(self, _link: Link, message: say.RenewTicket) -> say.TicketRenewed | say.Fault:
        sources = self._sources.get(message.number, ())
        if message.source >= len(sources):
            raise NotFound("that transfer")
        source = sources[message.source]
        assert source.renew is not None
        try:
            source.ticket = await source.renew()
        except NodeError as error:
            return say.fault_of(error)
        return say.TicketRenewed(source.ticket)

    async def _on_counted(self, _link: Link, message: say.Counted) -> say.Done:
        for name, more in message.more.items():
            setattr(self._counters, name, getattr(self._counters, name) + more)
        self.connections = message.connections
        return say.Done()

    async def _on_leave(self, link: Link, _message: say.AskLeave) -> say.Done:
        if link.streams > 1:  # this question is one
            raise Busy("something was asked of it meanwhile")
        self.process.let_go()
        return say.Done()

    async def _on_meet(self, _link: Link, message: say.MeetHolder, send: SendItem) -> None:
        try:
            if self.arranger is None:
                raise PeerUnreachable("the holder cannot be dialed, and this node is starting or stopping")
            async with self.arranger.arrange(message.holder, message.endpoint, message.call) as end:
                await send(say.Done() if end is None else say.RelayTaken(*end))
                await trio.sleep_forever()
        except NodeError as error:
            await send(say.fault_of(error))

    # -- tickets taken back

    def _on_revoked(self, digest: bytes) -> None:
        if self.pid:  # a process that comes later asks for each ticket
            self._revoked.append(digest)
            self._any_revoked.set()

    async def _keep_revoking(self, link: Link) -> None:
        """A process that does not take tickets back is ended."""
        with suppress(say.PlaneLost):
            while True:
                while page := tuple(self._revoked[:REVOKED_PER_MESSAGE]):
                    del self._revoked[: len(page)]
                    with trio.move_on_after(START_SECONDS) as patience:
                        await say.ask(link, say.RevokeTickets(page), say.Done)
                    if patience.cancelled_caught:
                        link.drop_nowait("it takes no tickets back")
                self._any_revoked = trio.Event()
                await self._any_revoked.wait()


def _export_order(number: int, blob: bytes, target: Path) -> say.ExportBlob:
    return say.ExportBlob(number, blob, os.fsencode(target.absolute()))


def _tickets_of(sources: Sequence[Source]) -> tuple[tuple[Ticket, ...], tuple[bool, ...]]:
    return tuple(each.ticket for each in sources), tuple(each.renew is not None for each in sources)


def _note(gathered: say.BlobGathered, sources: Sequence[Source], on_progress: OnProgress | None) -> Gathered:
    for source, kept, paths in zip(sources, gathered.kept, gathered.came_by, strict=True):
        source.bytes_kept += kept
        source.came_by.update(paths)
    if on_progress is not None:
        on_progress(gathered.size, gathered.size)
    return Gathered(gathered.size, gathered.resumed)


@contextmanager
def _noticing_loss(link: Link) -> Iterator[None]:
    """What breaks with the process is no fault of a holder."""
    try:
        yield
    except PeerUnreachable as error:
        if link.closed.is_set():
            raise say.lost(error) from None
        raise
