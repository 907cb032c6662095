"""Blobs between nodes: one endpoint that serves a store to ticket holders and fetches from others.

A fetch takes the quickest road the ticket offers: nothing to do where the blob is here, an offload where
both ends have one (`offloading.py` chooses), QUIC otherwise and whenever an offload fails. It survives
broken connections: chunks that arrived stay, and only missing ones are asked for again.
"""

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.counters import BulkCounters
from ioc_node.bulk.engines import EngineName, load_engine
from ioc_node.bulk.gathering import Renew, Source
from ioc_node.bulk.offload import Landing, Offload, OffloadSource, close_offload
from ioc_node.bulk.offloading import Offloads
from ioc_node.bulk.plane import DataPlane
from ioc_node.bulk.plane.local import LocalPlane
from ioc_node.bulk.plane.parent import ChildPlane
from ioc_node.bulk.plane.process import PlaneProcess
from ioc_node.bulk.targets import OnProgress
from ioc_node.bulk.tickets import TicketBook
from ioc_node.bulk.udp import UdpSocket, open_udp
from ioc_node.core.bandwidth import Traffic, Use
from ioc_node.errors import PortInUse
from ioc_node.runtime.driver import open_background
from ioc_node.runtime.throttle import Throttles
from ioc_wire import limits
from ioc_wire.bulk import Endpoint, Ticket, format_blob_id
from ioc_wire.errors import WireError
from ioc_wire.market import Contact
from ioc_wire.signed import public_bytes

FETCHES_MAX: Final = 32
CONNECTIONS_MAX: Final = 4
AHEAD_CHUNKS: Final = 16
PORT_ATTEMPTS_MAX: Final = 10
PORT_AGAIN_SECONDS: Final = 0.1

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


class _Came(NamedTuple):
    size: int
    resumed: int
    transport: str
    reason: str


class BulkEndpoint:
    """A node's bulk port. Made by `open_bulk`."""

    def __init__(
        self,
        store: BlobStore,
        key: Ed25519PrivateKey,
        engine: str,
        endpoints: Sequence[Endpoint],
        offloads: Offloads,
        plane: DataPlane,
        tickets: TicketBook,
        counters: BulkCounters,
        throttles: Throttles,
    ) -> None:
        self.store = store
        self.public_key = public_bytes(key)
        self.port = endpoints[0].port
        self.further = tuple(endpoints[1:])
        """Where else readers reach this node; each is a path of its own."""
        self.engine = engine
        self.plane = plane
        self.tickets = tickets
        self.counters = counters
        self.offloads = offloads
        self.throttles = throttles
        self.offloads.are_limited = throttles.are_limited
        self._key = key
        self._fetches = trio.CapacityLimiter(FETCHES_MAX)

    async def serve(self) -> None:
        """Answer readers until cancelled."""
        source = OffloadSource(self.store, self.tickets, self.counters)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.offloads.serve, source)
            nursery.start_soon(self.plane.serve)

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
        self.plane.expect_reader()
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
            came = await self._bring(sources, on_progress, traffic)
        self.counters.transfers[came.transport] += 1
        seconds = trio.current_time() - started
        moved = came.size - came.resumed
        _log.info("blob_fetched", blob=format_blob_id(blob), bytes=moved, transport=came.transport)
        shares = tuple((each.ticket.holder, each.bytes_kept) for each in sources if each.bytes_kept)
        paths = tuple(sum((each.came_by for each in sources), Counter[str]()).items())
        return TransferReport(
            blob, came.size, moved, came.resumed, seconds, came.transport, came.reason, shares, paths
        )

    async def _bring(
        self, sources: Sequence[Source], on_progress: OnProgress | None, traffic: Traffic
    ) -> _Came:
        landing = Landing(sources[0].ticket, self._key, self.store)
        reasons = []
        try:
            for source in sources:
                landing.ticket = source.ticket
                before = landing.bytes_brought
                brought = await self.offloads.bring(landing, on_progress)
                source.bytes_kept += landing.bytes_brought - before
                if brought.transport is not None:
                    assert landing.partial is not None
                    info = await landing.partial.finish()
                    return _Came(info.size, landing.bytes_resumed, brought.transport, brought.reason)
                reasons.append(brought.reason)
            gained = landing.bytes_brought
        finally:
            landing.close()
        began = trio.current_time()
        gathered = await self.plane.gather(sources, on_progress, traffic)
        if len(sources) == 1:
            moved = gathered.size - gathered.resumed
            self.offloads.measured_quic(sources[0].ticket.holder, moved, trio.current_time() - began)
        reason = "; ".join(dict.fromkeys(reasons))
        return _Came(gathered.size, gathered.resumed - gained, f"quic/{self.engine}", reason)

    async def fetch_small(self, tickets: Sequence[Ticket]) -> dict[bytes, WireError]:
        """Bring small blobs of one holder here, all over one connection. Returns those it did not give, with why.

        Their tickets are used up. Raises `PeerUnreachable`, `BlobCorrupt` (what came before is kept) or
        `StorageUnusable`.
        """
        async with self._fetches:
            missed = await self.plane.fetch_small(tickets)
        self.counters.transfers[f"quic/{self.engine}"] += len(tickets) - len(missed)
        return missed

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
        async with self._fetches, self.plane.open_blob(sources, start, stop, ahead=ahead) as pieces:
            yield pieces

    async def export(self, blob: bytes, target: Path) -> None:
        """Write a verified copy of a blob that is here to `target`, all or nothing. Raises `NotFound`, `UsageError`,
        `StorageFull` or `BlobCorrupt`."""
        await self.plane.export(blob, target)

    # -- bandwidth

    async def uses(self) -> tuple[Sequence[Use], Sequence[Use]]:
        """Who uses what now: sending, receiving."""
        return await self.plane.uses()

    async def hurry(self, peer: bytes, name: bytes | None, factor: float) -> None:
        """See `DataPlane.hurry`."""
        await self.plane.hurry(peer, name, factor)

    async def set_bandwidth(self) -> None:
        """Have the ceilings and weights of `throttles`, which were changed, apply everywhere."""
        await self.plane.set_bandwidth()


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
    process: PlaneProcess | None = None,
) -> AsyncIterator[BulkEndpoint]:
    """A bulk endpoint on UDP `host`:`port` (0 takes a free one), served until the block ends.

    Raises `PortInUse` or `UsageError` (engine not installed). `offloads` come from `load_offloads`; they are
    closed with the endpoint. Without `throttles` there are no ceilings.
    `addresses` are further local ones, used beside `host` for what is sent and what is fetched.
    With `process`, what goes by QUIC is moved by a process of its own, started when there is something to move.
    """
    with ExitStack() as stack:
        for offload in offloads:
            stack.callback(close_offload, offload)
        chosen = load_engine(engine, key)
        udps = [await _open_own(host, port, wait=process is not None)]
        stack.callback(udps[0].close)
        for address in addresses:
            udps.append(_open_further(address, udps[0].port))
            stack.callback(udps[-1].close)
        tickets, counters = TicketBook(public_bytes(key)), BulkCounters()
        throttles = throttles or Throttles.unlimited()
        given = (store, key, chosen, udps, tickets, counters, throttles)
        plane: DataPlane
        if process is None:
            plane = LocalPlane(*given, connections_max=connections_max, addresses=addresses)
        else:
            plane = ChildPlane(*given, process, connections_max=connections_max, addresses=addresses)
        endpoint = BulkEndpoint(
            store,
            key,
            chosen.name,
            [Endpoint(at, udp.port) for at, udp in zip((host, *addresses), udps, strict=True)],
            Offloads(offloads, counters),
            plane,
            tickets,
            counters,
            throttles,
        )
        async with open_background() as background:
            background.start_soon(endpoint.serve)
            await trio.lowlevel.checkpoint()
            yield endpoint


async def _open_own(host: str, port: int, *, wait: bool) -> UdpSocket:
    """The port of the node. The process of one that was killed a moment ago gives it back in a moment."""
    for _ in range(PORT_ATTEMPTS_MAX if wait else 0):
        with suppress(PortInUse):
            return open_udp(host, port)
        await trio.sleep(PORT_AGAIN_SECONDS)
    return open_udp(host, port)


def _open_further(address: str, port: int) -> UdpSocket:
    """The same port at another address, or where that is taken (such as by a socket for all addresses) any."""
    try:
        return open_udp(address, port)
    except PortInUse:
        return open_udp(address, 0)
