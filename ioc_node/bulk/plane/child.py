"""The process that moves a node's bulk data, started by the node only (`ioc_node.bulk.plane.begin`).

It inherits one end of a socket pair and the node's bulk sockets. It ends when the pair does, however the node ended,
and by itself when it has had nothing to do for a while.
"""

import argparse
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.bulk.counters import BulkCounters
from ioc_node.bulk.engines import load_engine
from ioc_node.bulk.gathering import Source
from ioc_node.bulk.meeting import RelayEnd
from ioc_node.bulk.plane import messages as say
from ioc_node.bulk.plane.local import LocalPlane
from ioc_node.bulk.plane.store import PlaneStore
from ioc_node.bulk.tickets import TicketBook
from ioc_node.bulk.udp import UdpSocket
from ioc_node.errors import NodeError
from ioc_node.runtime.driver import open_background
from ioc_node.runtime.link_handlers import Handlers, SendItem
from ioc_node.runtime.link_mux import Link
from ioc_node.runtime.link_transport import StreamTransport
from ioc_node.runtime.logs import configure_logs
from ioc_node.runtime.throttle import Throttle, Throttles
from ioc_wire.bulk import Endpoint, Ticket, ticket_digest
from ioc_wire.codec import Message
from ioc_wire.errors import Busy, Unserved

COUNT_SECONDS: Final = 0.5
PROGRESS_SECONDS: Final = 0.05
"""Progress is told at most so often."""
TICKETS_PER_QUESTION: Final = 1024

_M = TypeVar("_M", bound=Message)
_log = structlog.get_logger()


async def _ask(link: Link, message: Message, expected: type[_M]) -> _M:
    """The node's answer. Where there is no node any more, this process is about to end: nothing goes on."""
    try:
        return await say.ask(link, message, expected)
    except say.PlaneLost:
        await trio.sleep_forever()
        raise


class TicketCache(TicketBook):
    """Tickets that the node issued, as far as readers have shown them here."""

    def __init__(self, holder: bytes, link: Link) -> None:
        super().__init__(holder)
        self._link = link
        self._being_used_up: set[bytes] = set()
        self._questions: list[set[bytes]] = []
        """For each question that is out, the tickets that are no longer good whatever its answer says: the answer may
        be older."""

    async def prepare(self, digests: Sequence[bytes]) -> None:
        """Ask the node for those that are not known here."""
        unknown = [digest for digest in digests if self.known(digest) is None]
        for start in range(0, len(unknown), TICKETS_PER_QUESTION):
            await self._find(tuple(unknown[start : start + TICKETS_PER_QUESTION]))

    async def _find(self, digests: tuple[bytes, ...]) -> None:
        gone = set(self._being_used_up)
        self._questions.append(gone)
        try:
            found = await _ask(self._link, say.FindTickets(digests), say.TicketsFound)
        finally:
            self._questions = [each for each in self._questions if each is not gone]
        for ticket, traffic in found.tickets:
            if ticket_digest(ticket.secret) not in gone:
                self._require_room(ticket.reader, self._clock())
                self.admit(ticket, traffic)

    async def use_up(self, secrets: Sequence[bytes]) -> None:
        """Here and at the node."""
        await super().use_up(secrets)
        digests = tuple(map(ticket_digest, secrets))
        if digests:
            self._being_used_up.update(digests)
            try:
                await _ask(self._link, say.UseUpTickets(digests), say.Done)
            finally:
                self._being_used_up.difference_update(digests)

    def _drop(self, digest: bytes) -> bool:
        for gone in self._questions:
            gone.add(digest)
        return super()._drop(digest)


class LinkArranger:
    """Has the node arrange how to meet holders."""

    def __init__(self, link: Link) -> None:
        self._link = link

    @asynccontextmanager
    async def arrange(self, holder: bytes, endpoint: Endpoint, call: bytes) -> AsyncIterator[RelayEnd | None]:
        """See `Arranger`."""
        async with self._link.open_stream(say.MeetHolder(holder, endpoint, call)) as items:
            answer = await anext(items, None)
            if isinstance(answer, say.RelayTaken):
                yield RelayEnd(answer.host, answer.port, answer.token)
            else:
                say.checked(answer or say.Done(), say.Done)
                yield None


class Child:
    """One node's data plane, answering the node's questions."""

    def __init__(self, udps: Sequence[UdpSocket], idle_seconds: float) -> None:
        self.link: Link
        self._idle_seconds = idle_seconds
        self._udps = udps
        self._plane: LocalPlane | None = None
        self._tickets: TicketCache
        self._throttles: Throttles
        self._counters = BulkCounters()
        self._counted = self._totals()
        self._store: PlaneStore
        self._opened = trio.Event()
        self._at_work: dict[int, trio.Event] = {}
        """By the number of what is done: its end."""
        self._idle_since = trio.current_time()

    def handlers(self) -> Handlers:
        """Who answers what."""
        handlers = Handlers()
        handlers.serve(say.OpenPlane, self._open)
        handlers.serve(say.Bandwidths, self._set_bandwidths)
        handlers.serve(say.HurryTransfer, self._hurry)
        handlers.serve(say.GetUses, self._uses)
        handlers.serve(say.FetchSmall, self._fetch_small)
        handlers.serve(say.ExportBlob, self._export)
        handlers.serve(say.ServeReader, self._serve_reader)
        handlers.serve(say.RevokeTickets, self._revoke)
        handlers.serve(say.AwaitEnd, self._await_end)
        handlers.serve_stream(say.GatherBlob, self._gather)
        handlers.serve_stream(say.ReadBlob, self._read)
        return handlers

    async def run(self) -> None:
        """Until the link ends. What is being written then is left as it is, as if this process had been killed: a
        node that was, and is back already, finds its port free."""
        async with open_background() as background:
            background.start_soon(self._serve)
            background.start_soon(self._keep_counting)
            await self.link.run()
            _log.debug("bulk_process_ends", reason=self.link.close_reason)
            if self._plane is not None:
                self._plane.close_nowait()
            for udp in self._udps:  # not only when the disk has answered the last thread
                udp.close()
            os._exit(0)

    # -- opening

    async def _open(self, link: Link, message: say.OpenPlane) -> say.Done:
        key = Ed25519PrivateKey.from_private_bytes(message.key)
        self._tickets = TicketCache(key.public_key().public_bytes_raw(), link)
        self._throttles = Throttles(
            Throttle(message.bandwidths.sending, message.bandwidths.weights),
            Throttle(message.bandwidths.receiving, message.bandwidths.weights),
        )
        self._store = await trio.to_thread.run_sync(
            PlaneStore, Path(os.fsdecode(message.folder)), self._reserve
        )
        token = trio.lowlevel.current_trio_token()
        self._store.index.on_touch = lambda blob: token.run_sync_soon(self._tell, say.Touched(blob))
        self._store.on_gone = lambda blob: token.run_sync_soon(self._tell, say.Missing(blob))
        self._plane = LocalPlane(
            self._store,
            key,
            load_engine(message.engine, key),  # type: ignore[arg-type]  # the node has loaded it already
            self._udps,
            self._tickets,
            self._counters,
            self._throttles,
            connections_max=message.connections_max,
            addresses=message.addresses,
        )
        self._plane.arranger = LinkArranger(link)
        self._opened.set()
        return say.Done()

    async def _serve(self) -> None:
        await self._opened.wait()
        await self.plane.serve()

    @property
    def plane(self) -> LocalPlane:
        if self._plane is None:
            raise Unserved("before the first message")
        return self._plane

    def _tell(self, message: say.Touched | say.Missing) -> None:
        self.link.notify_nowait(message)  # lost where the node reads nothing: it looks at the disk in the end

    async def _reserve(self, blob: bytes, size: int) -> None:
        await _ask(self.link, say.ReserveRoom(blob, size), say.Done)

    # -- transfers

    async def _gather(self, _link: Link, message: say.GatherBlob, send: SendItem) -> None:
        sources = self._sources(message.number, message.tickets, message.renewable)
        progress = _ProgressTeller(send)
        with self._working(message.number):
            try:
                async with open_background() as background, self._store.lock_of(message.tickets[0].blob):
                    background.start_soon(progress.run)
                    gathered = await self.plane.gather(sources, progress.tell, message.traffic)
            except NodeError as error:
                await send(say.fault_of(error))
                return
            await self._count()
        kept = tuple(source.bytes_kept for source in sources)
        came_by = tuple(dict(source.came_by) for source in sources)
        await send(say.BlobGathered(gathered.size, gathered.resumed, kept, came_by))

    async def _read(self, _link: Link, message: say.ReadBlob, send: SendItem) -> None:
        sources = self._sources(message.number, message.tickets, message.renewable)
        with self._working(message.number):
            try:
                async with self.plane.open_blob(
                    sources, message.start, message.stop, ahead=message.ahead
                ) as pieces:
                    async for data in pieces:
                        for start in range(0, len(data), say.PIECE_BYTES):
                            await send(say.Piece(bytes(data[start : start + say.PIECE_BYTES])))
            except NodeError as error:
                await send(say.fault_of(error))
            await self._count()

    async def _fetch_small(self, _link: Link, message: say.FetchSmall) -> say.SmallFetched | say.Fault:
        with self._working(message.number):
            try:
                missed = await self.plane.fetch_small(message.tickets)
            except NodeError as error:
                return say.fault_of(error)
            finally:
                await self._count()
        return say.SmallFetched(tuple((blob, error.code, error.detail) for blob, error in missed.items()))

    def _sources(self, number: int, tickets: Sequence[Ticket], renewable: Sequence[bool]) -> list[Source]:
        async def renew(source: int) -> Ticket:
            return (await _ask(self.link, say.RenewTicket(number, source), say.TicketRenewed)).ticket

        return [
            Source(ticket, partial(renew, place) if can else None)
            for place, (ticket, can) in enumerate(zip(tickets, renewable, strict=True))
        ]

    async def _export(self, _link: Link, message: say.ExportBlob) -> say.Done | say.Fault:
        with self._working(message.number):
            try:
                await self.plane.export(message.blob, Path(os.fsdecode(message.target)))
            except NodeError as error:
                return say.fault_of(error)
        return say.Done()

    async def _serve_reader(self, _link: Link, message: say.ServeReader) -> say.Done | say.Fault:
        begin = self.plane.attend_relay if message.through_relay else self.plane.call_reader
        try:
            await begin(message.host, message.port, message.reader, message.secret)
        except NodeError as error:
            return say.fault_of(error)
        return say.Done()

    # -- tickets, bandwidth, counters

    async def _revoke(self, _link: Link, message: say.RevokeTickets) -> say.Done:
        self._tickets.drop(message.digests)
        return say.Done()

    async def _set_bandwidths(self, _link: Link, message: say.Bandwidths) -> say.Done:
        self._throttles.sending.set(message.sending, message.weights)
        self._throttles.receiving.set(message.receiving, message.weights)
        return say.Done()

    async def _hurry(self, _link: Link, message: say.HurryTransfer) -> say.Done:
        await self.plane.hurry(message.peer, message.name, message.factor)
        return say.Done()

    async def _uses(self, _link: Link, _message: say.GetUses) -> say.Uses:
        sending, receiving = await self.plane.uses()
        return say.Uses(tuple(sending), tuple(receiving))

    async def _await_end(self, _link: Link, message: say.AwaitEnd) -> say.Done:
        ended = self._at_work.get(message.number)
        if ended is not None:
            await ended.wait()
        return say.Done()

    @contextmanager
    def _working(self, number: int) -> Iterator[None]:
        """While anything is done, the process is not idle."""
        ended = self._at_work[number] = trio.Event()
        try:
            yield
        finally:
            del self._at_work[number]
            ended.set()
            self._idle_since = trio.current_time()

    def _totals(self) -> dict[str, int]:
        counted: dict[str, Any] = asdict(self._counters)
        return {name: value for name, value in counted.items() if isinstance(value, int)}

    async def _count(self) -> None:
        totals, before = self._totals(), self._counted
        self._counted = totals
        more = {name: value - before.get(name, 0) for name, value in totals.items()}
        await _ask(self.link, say.Counted(more, self.plane.connections), say.Done)

    async def _keep_counting(self) -> None:
        await self._opened.wait()
        connections = 0
        while True:
            await trio.sleep(COUNT_SECONDS)
            if (self._counted, connections) != (self._totals(), self.plane.connections):
                connections = self.plane.connections
                await self._count()
            if self.plane.connections or self._at_work:
                self._idle_since = trio.current_time()
            elif trio.current_time() - self._idle_since > self._idle_seconds:
                await self._leave()

    async def _leave(self) -> None:
        try:
            await _ask(self.link, say.AskLeave(), say.Done)
        except Busy:
            self._idle_since = trio.current_time()
        else:
            self.link.close_nowait("nothing to do")


class _ProgressTeller:
    """Passes on the newest progress, not every chunk."""

    def __init__(self, send: SendItem) -> None:
        self._send = send
        self._newest: say.Progress | None = None
        self._news = trio.Event()

    def tell(self, here: int, total: int) -> None:
        self._newest = say.Progress(here, total)
        self._news.set()

    async def run(self) -> None:
        while True:
            await self._news.wait()
            self._news = trio.Event()
            if self._newest is not None:
                await self._send(self._newest)
            await trio.sleep(PROGRESS_SECONDS)


async def run(link_descriptor: int, udp_descriptors: Sequence[int], idle_seconds: float) -> None:
    """Answer the node until it ends the link."""
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(socket.socket(fileno=link_descriptor)))
    udps = [UdpSocket(socket.socket(fileno=each), connected=False) for each in udp_descriptors]
    child = Child(udps, idle_seconds)
    child.link = Link(
        StreamTransport(stream),
        say.OTHER_END,
        codec=say.PLANE_CODEC,
        handlers=child.handlers(),
        settings=say.SETTINGS,
    )
    await child.run()


def main() -> None:
    """What `ioc_node.bulk.plane.process` says in the command line is what it works with."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--link", type=int, required=True)
    parser.add_argument("--udp", type=int, action="append", required=True)
    parser.add_argument("--nice", type=int, required=True)
    parser.add_argument("--idle-seconds", type=float, required=True)
    parser.add_argument("--log-level", required=True)
    parser.add_argument("--log-format", required=True)
    options = parser.parse_args()
    # Whoever stops the node means the node: it ends this process when it has done what it wants with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(options.nice)
    configure_logs(options.log_level, options.log_format)
    trio.run(run, options.link, options.udp, options.idle_seconds)
