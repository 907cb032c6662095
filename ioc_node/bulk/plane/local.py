"""A data plane in the trio loop of whoever opened it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.bulk.arrivals import Arrivals
from ioc_node.bulk.counters import BulkCounters
from ioc_node.bulk.endpoint import Listener
from ioc_node.bulk.engines import Engine
from ioc_node.bulk.gathering import Gathering, Source, Target
from ioc_node.bulk.meeting import Arranger, Dialer, Meetings
from ioc_node.bulk.offload import Landing
from ioc_node.bulk.plane import Gathered
from ioc_node.bulk.serving import Serving
from ioc_node.bulk.small import fetch_small
from ioc_node.bulk.targets import DiskTarget, OnProgress, StreamTarget
from ioc_node.bulk.tickets import TicketBook
from ioc_node.bulk.udp import UdpSocket
from ioc_node.core.bandwidth import Traffic, Use
from ioc_node.errors import NodeError
from ioc_node.runtime.driver import open_background
from ioc_node.runtime.throttle import Throttles
from ioc_wire.bulk import Ticket
from ioc_wire.errors import Busy, WireError

CONNECTION_BYTES: Final = 256 << 20
"""A blob of twice this size deserves a second connection to each holder, and so on."""


class LocalPlane:
    """See `DataPlane`. `udps` are where readers call; `addresses` are further local ones to call others from."""

    def __init__(
        self,
        store: Arrivals,
        key: Ed25519PrivateKey,
        engine: Engine,
        udps: Sequence[UdpSocket],
        tickets: TicketBook,
        counters: BulkCounters,
        throttles: Throttles,
        *,
        connections_max: int,
        addresses: Sequence[str] = (),
    ) -> None:
        self.connections_max = connections_max
        self.pid = 0
        self._store = store
        self._key = key
        self._counters = counters
        self._throttles = throttles
        serving = Serving(store, tickets, counters, throttles.sending)
        self.meetings = Meetings(engine, serving.converse)
        serving.on_call = self.meetings.take_call
        self.dialer = Dialer(engine, self.meetings, addresses)
        self.listeners = [Listener(udp, engine, serving.converse) for udp in udps]
        self._nursery: trio.Nursery | None = None

    @property
    def arranger(self) -> Arranger | None:
        """See `DataPlane`."""
        return self.dialer.arranger

    @arranger.setter
    def arranger(self, arranger: Arranger | None) -> None:
        self.dialer.arranger = arranger

    @property
    def connections(self) -> int:
        """Readers connected now, and meetings with others."""
        return sum(listener.connections for listener in self.listeners) + self.meetings.attended

    def expect_reader(self) -> None:
        """See `DataPlane`: it is always ready."""

    async def serve(self) -> None:
        """Answer readers until cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._throttles.run)
                for listener in self.listeners:
                    self._nursery.start_soon(listener.serve)
        finally:
            self._nursery = None

    def close_nowait(self) -> None:
        """Say goodbye to readers, which would otherwise wait for a sign of life."""
        for listener in self.listeners:
            listener.close_nowait()

    # -- reading

    async def gather(
        self, sources: Sequence[Source], on_progress: OnProgress | None, traffic: Traffic
    ) -> Gathered:
        """See `DataPlane`."""
        landing = Landing(sources[0].ticket, self._key, self._store)
        try:
            await self._gathering(sources, DiskTarget(landing, on_progress), traffic).run()
            assert landing.partial is not None
            info = await landing.partial.finish()
        finally:
            landing.close()
        return Gathered(info.size, landing.bytes_resumed)

    async def fetch_small(self, tickets: Sequence[Ticket]) -> dict[bytes, WireError]:
        """See `DataPlane`."""
        return await fetch_small(
            self.dialer, self._key, self._store, self._counters, tickets, self._throttles.receiving
        )

    @asynccontextmanager
    async def open_blob(
        self, sources: Sequence[Source], start: int, stop: int | None, *, ahead: int
    ) -> AsyncIterator[AsyncIterator[memoryview]]:
        """See `DataPlane`."""
        target = StreamTarget(sources[0].ticket.blob, start, stop, ahead=ahead)
        gathering = self._gathering(sources, target, "interactive")
        target.wake = gathering.wake

        async def run() -> None:
            try:
                await gathering.run()
            except (WireError, NodeError) as error:
                target.fail(error)

        async with open_background() as background:
            background.start_soon(run)
            yield target.pieces()

    async def export(self, blob: bytes, target: Path) -> None:
        """See `DataPlane`."""
        await self._store.export(blob, target)

    def _gathering(self, sources: Sequence[Source], target: Target, traffic: Traffic) -> Gathering:
        return Gathering(
            self.dialer,
            self._key,
            sources,
            target,
            self._counters,
            connections=self._connections_for,
            throttle=self._throttles.receiving,
            traffic=traffic,
        )

    def _connections_for(self, size: int) -> int:
        return max(1, min(self.connections_max, size // CONNECTION_BYTES))

    # -- for readers that cannot dial this node

    async def call_reader(self, host: str, port: int, reader: bytes, call: bytes) -> None:
        """See `DataPlane`."""
        await self._tasks.start(self.meetings.call_reader, host, port, reader, call)

    async def attend_relay(self, host: str, port: int, reader: bytes, token: bytes) -> None:
        """See `DataPlane`."""
        await self._tasks.start(self.meetings.attend_relay, host, port, reader, token)

    @property
    def _tasks(self) -> trio.Nursery:
        if self._nursery is None:
            raise Busy("this node is starting or stopping")
        return self._nursery

    # -- bandwidth

    async def set_bandwidth(self) -> None:
        """Nothing to do: the throttles are the node's own."""

    async def hurry(self, peer: bytes, name: bytes | None, factor: float) -> None:
        """See `DataPlane`."""
        self._throttles.receiving.hurry(peer, name, factor)

    async def uses(self) -> tuple[Sequence[Use], Sequence[Use]]:
        """See `DataPlane`."""
        return self._throttles.sending.uses(), self._throttles.receiving.uses()
