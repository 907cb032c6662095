"""Blobs between nodes: one endpoint that serves a store to ticket holders and fetches from others.

A fetch takes the quickest road the ticket offers: nothing to do where the blob is here, an offload where
both ends have one (`offloading.py` chooses), QUIC otherwise and whenever an offload fails. It survives
broken connections: chunks that arrived stay, and only missing ones are asked for again.
"""

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
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
from ioc_node.bulk.fetching import QuicFetch
from ioc_node.bulk.offload import Landing, Offload, OffloadSource
from ioc_node.bulk.offloading import Offloads
from ioc_node.bulk.serving import Serving
from ioc_node.bulk.tickets import TicketBook
from ioc_node.bulk.udp import UdpSocket, open_udp
from ioc_node.errors import PeerUnreachable
from ioc_node.runtime.driver import open_background
from ioc_wire import limits
from ioc_wire.bulk import Endpoint, Ticket, format_blob_id
from ioc_wire.errors import Busy, Closing, Expired, TicketRefused
from ioc_wire.signed import public_bytes

ATTEMPTS_MAX: Final = 6
"""Attempts in a row that bring nothing before a holder is given up."""
BACKOFF_SECONDS: Final = 0.1
BACKOFF_SECONDS_MAX: Final = 3.0
FETCHES_MAX: Final = 32

OnProgress = Callable[[int, int], None]
"""Told `(bytes here, bytes of the blob)` after every chunk; must not raise."""
Renew = Callable[[], Awaitable[Ticket]]
"""Asks the holder for a new ticket, over a link."""

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
        udp: UdpSocket,
        offloads: Sequence[Offload],
    ) -> None:
        self.store = store
        self.public_key = public_bytes(key)
        self.port = udp.port
        self.engine = engine.name
        self.tickets = TicketBook(self.public_key)
        self.counters = BulkCounters()
        self._key = key
        self._engine = engine
        self.offloads = Offloads(offloads, self.counters)
        self._fetches = trio.CapacityLimiter(FETCHES_MAX)
        serving = Serving(store, self.tickets, self.counters)
        self._listener = Listener(udp, engine, serving.converse)

    @property
    def connections(self) -> int:
        """Readers connected now."""
        return self._listener.connections

    async def serve(self) -> None:
        """Answer readers until cancelled."""
        source = OffloadSource(self.store, self.tickets, self.counters)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.offloads.serve, source)
            nursery.start_soon(self._listener.serve)

    def issue_ticket(
        self, blob: bytes, reader: bytes, *, hosts: Sequence[str], seconds: float = limits.TICKET_SECONDS_MAX
    ) -> Ticket:
        """A ticket for a blob that is here, with the ways to it. Raises `NotFound` or `Busy`."""
        return self.tickets.issue(
            blob,
            reader,
            seconds=seconds,
            size=self.store.size(blob),
            endpoints=tuple(Endpoint(host, self.port) for host in hosts),
            offloads=self.offloads.export(blob),
        )

    async def fetch(
        self, ticket: Ticket, *, on_progress: OnProgress | None = None, renew: Renew | None = None
    ) -> TransferReport:
        """Bring the ticket's blob here, whatever way, verified.

        Raises `PeerUnreachable` when the holder cannot be reached any more, `BlobCorrupt` when it sent wrong
        bytes (try another holder: verified chunks are kept), `StorageFull`, `WrongPeer`, or the holder's refusal.
        `renew` is asked for a new ticket when the holder no longer knows this one (it restarted).
        """
        started = trio.current_time()
        async with self._fetches, self.store.lock_of(ticket.blob):
            if self.store.has(ticket.blob):
                size = self.store.size(ticket.blob)
                return TransferReport(ticket.blob, size, 0, 0, 0.0, "local", "the blob is already here")
            landing = Landing(ticket, self._key, self.store)
            try:
                transport, reason = await self._bring(landing, on_progress, renew)
                assert landing.partial is not None
                info = await landing.partial.finish()
            finally:
                landing.close()
        self.counters.transfers[transport] += 1
        seconds = trio.current_time() - started
        moved = info.size - landing.bytes_resumed
        _log.info("blob_fetched", blob=format_blob_id(info.blob), bytes=moved, transport=transport)
        return TransferReport(info.blob, info.size, moved, landing.bytes_resumed, seconds, transport, reason)

    async def _bring(
        self, landing: Landing, on_progress: OnProgress | None, renew: Renew | None
    ) -> tuple[str, str]:
        await landing.resume()
        brought = await self.offloads.bring(landing, on_progress)
        if brought.transport is not None:
            return brought.transport, brought.reason
        before, began = landing.bytes_present, trio.current_time()
        await self._fetch_quic(landing, on_progress, renew)
        moved = landing.bytes_present - before
        self.offloads.measured_quic(landing.ticket.holder, moved, trio.current_time() - began)
        return f"quic/{self.engine}", brought.reason

    async def _fetch_quic(
        self, landing: Landing, on_progress: OnProgress | None, renew: Renew | None
    ) -> None:
        failures = 0
        arrived = False

        def progress(_length: int) -> None:
            nonlocal arrived
            arrived = True
            if on_progress is not None and landing.partial is not None:
                on_progress(landing.partial.bytes_present, landing.partial.info.size)

        for attempt in range(1 << 30):
            endpoints = landing.ticket.endpoints
            if not endpoints:
                raise PeerUnreachable("the ticket names no endpoint; ask the holder for another")
            arrived = False
            try:
                await QuicFetch(self._engine, landing, self.counters, progress).run(
                    endpoints[attempt % len(endpoints)]
                )
                return
            except (PeerUnreachable, Busy, Closing) as error:
                failure: Exception = error
            except (TicketRefused, Expired) as error:
                if renew is None:
                    raise
                failure = error
                renewed = await renew()
                if renewed.blob != landing.ticket.blob:
                    raise TicketRefused("the renewed ticket is for another blob") from None
                landing.ticket = renewed
            failures = 1 if arrived else failures + 1
            if failures >= ATTEMPTS_MAX * len(endpoints):
                name = format_blob_id(landing.ticket.blob)
                raise PeerUnreachable(f"holder of {name} given up after {failures} attempts: {failure}")
            self.counters.reconnections += 1
            _log.info("bulk_reconnecting", attempt=failures, error=str(failure))
            await trio.sleep(_backoff_seconds(failures))


def _backoff_seconds(failures: int) -> float:
    ceiling = min(BACKOFF_SECONDS * 2**failures, BACKOFF_SECONDS_MAX)
    return random.uniform(ceiling / 2, ceiling)  # noqa: S311  # spreads load, keeps no secret


@asynccontextmanager
async def open_bulk(
    store: BlobStore,
    key: Ed25519PrivateKey,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    engine: EngineName = "auto",
    offloads: Sequence[Offload] = (),
) -> AsyncIterator[BulkEndpoint]:
    """A bulk endpoint on UDP `host`:`port` (0 takes a free one), served until the block ends.

    Raises `PortInUse` or `UsageError` (engine not installed). `offloads` come from `load_offloads`; they are
    closed with the endpoint.
    """
    with ExitStack() as stack:
        for offload in offloads:
            stack.callback(offload.close)
        chosen = load_engine(engine, key)
        udp = open_udp(host, port)
        stack.callback(udp.close)
        endpoint = BulkEndpoint(store, key, chosen, udp, offloads)
        async with open_background() as background:
            background.start_soon(endpoint.serve)
            await trio.lowlevel.checkpoint()
            yield endpoint
