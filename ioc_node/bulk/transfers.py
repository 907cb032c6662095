"""Blobs between nodes: one endpoint that serves a store to ticket holders and fetches from others.

A fetch takes the quickest road the ticket offers: nothing to do where the blob is here, an offload where
both ends have one (`offloading.py` chooses), QUIC otherwise and whenever an offload fails. It survives
broken connections: chunks that arrived stay, and only missing ones are asked for again.
"""

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.counters import BulkCounters
from ioc_node.bulk.endpoint import Listener
from ioc_node.bulk.engines import Engine, EngineName, load_engine
from ioc_node.bulk.gathering import Gathering, Renew, Source, Target
from ioc_node.bulk.meeting import Dialer, Meetings
from ioc_node.bulk.offload import Landing, Offload, OffloadSource
from ioc_node.bulk.offloading import Offloads
from ioc_node.bulk.serving import Serving
from ioc_node.bulk.small import fetch_small
from ioc_node.bulk.targets import DiskTarget, OnProgress, StreamTarget
from ioc_node.bulk.tickets import TicketBook
from ioc_node.bulk.udp import UdpSocket, open_udp
from ioc_node.core.bandwidth import Traffic
from ioc_node.errors import NodeError, PortInUse
from ioc_node.runtime.driver import open_background
from ioc_node.runtime.throttle import Throttles
from ioc_wire import limits
from ioc_wire.bulk import Endpoint, Ticket, format_blob_id
from ioc_wire.errors import WireError
from ioc_wire.market import Contact
from ioc_wire.signed import public_bytes

FETCHES_MAX: Final = 32
CONNECTIONS_MAX: Final = 4
CONNECTION_BYTES: Final = 256 << 20
"""A blob of twice this size deserves a second connection to each holder, and so on."""
AHEAD_CHUNKS: Final = 16

_log = structlog.get_logger()


@dataclass(frozen=True)
class TransferReport:
    """How a blob came here."""

    blob: bytes
    size: int
    bytes_moved: int
    bytes_resumed: int
    seconds: float
    transport: str
    """`local`, the name of an offload, or `quic/qh3`, `quic/aioquic`."""
    reason: str
    shares: tuple[tuple[bytes, int], ...] = ()
    """Bytes that each holder (public key) gave."""
    paths: tuple[tuple[str, int], ...] = ()
    """Bytes by path, where QUIC brought them: the holder's address, and the local one where it was chosen."""

    @property
    def mb_s(self) -> float:
        """Megabytes (10^6) per second."""
        return self.bytes_moved / 1e6 / self.seconds if self.seconds > 0 else 0.0


class BulkEndpoint:
    """A node's bulk port. Made by `open_bulk`."""

    def __init__(
        self,
        store: BlobStore,
        key: Ed25519PrivateKey,
        engine: Engine,
        udps: Sequence[UdpSocket],
        offloads: Sequence[Offload],
        connections_max: int,
        throttles: Throttles,
        addresses: Sequence[str],
    ) -> None:
        self.store = store
        self.connections_max = connections_max
        self.public_key = public_bytes(key)
        self.port = udps[0].port
        self.further = tuple(
            Endpoint(address, udp.port) for address, udp in zip(addresses, udps[1:], strict=True)
        )
        """Where else readers reach this node; each is a path of its own."""
        self.engine = engine.name
        self.tickets = TicketBook(self.public_key)
        self.counters = BulkCounters()
        self._key = key
        self.quic_engine = engine
        self.dialer = Dialer(engine, addresses)
        self.offloads = Offloads(offloads, self.counters)
        self._fetches = trio.CapacityLimiter(FETCHES_MAX)
        self.throttles = throttles
        self.offloads.are_limited = throttles.are_limited
        serving = Serving(store, self.tickets, self.counters, throttles.sending)
        self.meetings = Meetings(engine, serving.converse)
        serving.on_call = self.meetings.take_call
        self.listeners = [Listener(udp, engine, serving.converse) for udp in udps]

    @property
    def connections(self) -> int:
        """Readers connected now."""
        return sum(listener.connections for listener in self.listeners)

    async def serve(self) -> None:
        """Answer readers until cancelled."""
        source = OffloadSource(self.store, self.tickets, self.counters)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.offloads.serve, source)
            nursery.start_soon(self.throttles.run)
            for listener in self.listeners:
                nursery.start_soon(listener.serve)

    def issue_ticket(
        self,
        blob: bytes,
        reader: bytes,
        *,
        hosts: Sequence[str],
        via: Contact | None = None,
        seconds: float = limits.TICKET_SECONDS_MAX,
        offloads: bool = True,
        traffic: Traffic = "bulk",
    ) -> Ticket:
        """A ticket for a blob that is here, with the ways to it: this node's `hosts`, or the core node `via`. Raises
        `NotFound` or `Busy`."""
        return self.tickets.issue(
            blob,
            reader,
            seconds=seconds,
            size=self.store.size(blob),
            endpoints=(
                *(Endpoint(host, self.port) for host in hosts),
                *(self.further if hosts else ()),
                *((Endpoint(via.host, via.port, via.key),) if via is not None else ()),
            ),
            offloads=self.offloads.export(blob) if offloads else (),
            traffic=traffic,
        )

    async def fetch(
        self,
        ticket: Ticket,
        *,
        on_progress: OnProgress | None = None,
        renew: Renew | None = None,
        traffic: Traffic = "bulk",
    ) -> TransferReport:
        """Bring the ticket's blob here, whatever way, verified.

        Raises `PeerUnreachable` when the holder cannot be reached any more, `BlobCorrupt` when it sent wrong
        bytes (try another holder: verified chunks are kept), `StorageUnusable`, `WrongPeer`, or the holder's refusal.
        `renew` is asked for a new ticket when the holder no longer knows this one (it restarted).
        """
        return await self.gather([Source(ticket, renew)], on_progress=on_progress, traffic=traffic)

    async def gather(
        self,
        sources: Sequence[Source],
        *,
        on_progress: OnProgress | None = None,
        traffic: Traffic = "bulk",
    ) -> TransferReport:
        """Bring a blob here from several holders at once. Raises as `fetch`: the fault of the last source left."""
        started = trio.current_time()
        blob = sources[0].ticket.blob
        async with self._fetches, self.store.lock_of(blob):
            if self.store.has(blob):
                size = self.store.size(blob)
                return TransferReport(blob, size, 0, 0, 0.0, "local", "the blob is already here")
            landing = Landing(sources[0].ticket, self._key, self.store)
            try:
                transport, reason = await self._bring(landing, sources, on_progress, traffic)
                assert landing.partial is not None
                info = await landing.partial.finish()
            finally:
                landing.close()
        self.counters.transfers[transport] += 1
        seconds = trio.current_time() - started
        moved = info.size - landing.bytes_resumed
        _log.info("blob_fetched", blob=format_blob_id(info.blob), bytes=moved, transport=transport)
        shares = tuple((each.ticket.holder, each.bytes_kept) for each in sources if each.bytes_kept)
        paths = tuple(sum((each.came_by for each in sources), Counter[str]()).items())
        return TransferReport(
            info.blob, info.size, moved, landing.bytes_resumed, seconds, transport, reason, shares, paths
        )

    async def _bring(
        self, landing: Landing, sources: Sequence[Source], on_progress: OnProgress | None, traffic: Traffic
    ) -> tuple[str, str]:
        await landing.resume_doubtful()
        reasons = []
        for source in sources:
            landing.ticket = source.ticket
            before = landing.bytes_brought
            brought = await self.offloads.bring(landing, on_progress)
            source.bytes_kept += landing.bytes_brought - before
            if brought.transport is not None:
                return brought.transport, brought.reason
            reasons.append(brought.reason)
        before, began = landing.bytes_brought, trio.current_time()
        await self._gathering(sources, DiskTarget(landing, on_progress), traffic).run()
        if len(sources) == 1:
            moved = landing.bytes_brought - before
            self.offloads.measured_quic(sources[0].ticket.holder, moved, trio.current_time() - began)
        return f"quic/{self.engine}", "; ".join(dict.fromkeys(reasons))

    async def fetch_small(self, tickets: Sequence[Ticket]) -> dict[bytes, WireError]:
        """Bring small blobs of one holder here, all over one connection. Returns those it did not give, with why.

        Their tickets are used up. Raises `PeerUnreachable`, `BlobCorrupt` (what came before is kept) or
        `StorageUnusable`.
        """
        async with self._fetches:
            missed = await fetch_small(
                self.dialer, self._key, self.store, self.counters, tickets, self.throttles.receiving
            )
        self.counters.transfers[f"quic/{self.engine}"] += len(tickets) - len(missed)
        return missed

    def _gathering(self, sources: Sequence[Source], target: Target, traffic: Traffic) -> Gathering:
        return Gathering(
            self.dialer,
            self._key,
            sources,
            target,
            self.counters,
            connections=self._connections_for,
            throttle=self.throttles.receiving,
            traffic=traffic,
        )

    def _connections_for(self, size: int) -> int:
        return max(1, min(self.connections_max, size // CONNECTION_BYTES))

    @asynccontextmanager
    async def open_blob(
        self,
        sources: Sequence[Source],
        start: int = 0,
        stop: int | None = None,
        *,
        ahead: int = AHEAD_CHUNKS,
    ) -> AsyncIterator[AsyncIterator[memoryview]]:
        """Bytes `start` … `stop - 1` of a blob that others hold, verified and in order, while they arrive.

        Nothing is kept here: at most `ahead` chunks wait for whoever iterates, and holders wait with them. Iterating
        raises as `fetch` does, and `UsageError` for bytes beyond the end.
        """
        target = StreamTarget(sources[0].ticket.blob, start, stop, ahead=ahead)
        gathering = self._gathering(sources, target, "interactive")
        target.wake = gathering.wake

        async def run() -> None:
            try:
                await gathering.run()
            except (WireError, NodeError) as error:
                target.fail(error)

        async with self._fetches, open_background() as background:
            background.start_soon(run)
            yield target.pieces()


@asynccontextmanager
async def open_bulk(
    store: BlobStore,
    key: Ed25519PrivateKey,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    engine: EngineName = "auto",
    offloads: Sequence[Offload] = (),
    connections_max: int = CONNECTIONS_MAX,
    throttles: Throttles | None = None,
    addresses: Sequence[str] = (),
) -> AsyncIterator[BulkEndpoint]:
    """A bulk endpoint on UDP `host`:`port` (0 takes a free one), served until the block ends.

    Raises `PortInUse` or `UsageError` (engine not installed). `offloads` come from `load_offloads`; they are
    closed with the endpoint. Without `throttles` there are no ceilings.
    `addresses` are further local ones, used beside `host` for what is sent and what is fetched.
    """
    with ExitStack() as stack:
        for offload in offloads:
            stack.callback(offload.close)
        chosen = load_engine(engine, key)
        udps = [open_udp(host, port)]
        stack.callback(udps[0].close)
        for address in addresses:
            udps.append(_open_further(address, udps[0].port))
            stack.callback(udps[-1].close)
        endpoint = BulkEndpoint(
            store,
            key,
            chosen,
            udps,
            offloads,
            connections_max,
            throttles or Throttles.unlimited(),
            addresses,
        )
        async with open_background() as background:
            background.start_soon(endpoint.serve)
            await trio.lowlevel.checkpoint()
            yield endpoint


def _open_further(address: str, port: int) -> UdpSocket:
    """The same port at another address, or where that is taken (such as by a socket for all addresses) any."""
    try:
        return open_udp(address, port)
    except PortInUse:
        return open_udp(address, 0)
