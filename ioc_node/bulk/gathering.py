"""One blob, or a part of it, gathered from several holders at once.

Each source is a holder with a ticket of its own. One connection goes to each, and more where the blob is large; all
take chunks from one `Schedule`, so the quick ones bring most. What arrives is verified and put away in batches by one
task. A source that lies is dropped with all its connections, and what it brought that was right stays; one that is far
slower than the others is parked and called again only when they have failed; one that breaks is called again by itself.

A holder with several addresses is called at each of them, and a node with several calls from each. Every such path has
a connection of its own: each brings what it can, and what one owes when it breaks the others bring.
"""

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.bulk.counters import BulkCounters
from ioc_node.bulk.fetching import Reading, open_reading
from ioc_node.bulk.meeting import Dialer
from ioc_node.bulk.schedule import Pace, Schedule
from ioc_node.core.bandwidth import Traffic
from ioc_node.errors import NodeError, PeerUnreachable, StorageUnusable
from ioc_node.runtime.throttle import Throttle
from ioc_wire import limits
from ioc_wire.bulk import BlobInfo, Endpoint, Ticket, format_blob_id
from ioc_wire.errors import BlobCorrupt, Busy, Closing, Expired, TicketRefused, WireError

ATTEMPTS_MAX: Final = 14
"""Attempts in a row that bring nothing before a holder is given up: some ten seconds where it refuses at once."""
GIVE_UP_SECONDS: Final = 60.0
"""After so long without a chunk a holder is given up, however few the attempts were."""
BACKOFF_SECONDS: Final = 0.1
BACKOFF_SECONDS_MAX: Final = 1.0
BATCH_CHUNKS_MAX: Final = 8
"""Chunks that are verified and put away in one go, and as many that may wait for it."""
CHUNKS_PER_PATH: Final = 4
"""A further path is worth its connection for so many chunks."""
PATHS_MAX: Final = 8
"""Connections to one holder for the sake of its paths."""
LOOK_AGAIN_SECONDS: Final = 0.25
"""How often an idle connection looks whether another has become slow."""

Renew = Callable[[], Awaitable[Ticket]]
"""Asks the holder for a new ticket, over a link."""
Chunk = tuple[int, memoryview]
Rechecked = Callable[[Sequence[int], Sequence[int]], None]
"""Told which chunks of an earlier attempt were verified again, and which of them are no good."""

_log = structlog.get_logger()


@dataclass(eq=False)
class Source:
    """A holder with the ticket it gave."""

    ticket: Ticket
    renew: Renew | None = None
    """Without it, the source ends with its ticket."""
    bytes_kept: int = 0
    came_by: Counter[str] = field(default_factory=Counter)
    """Bytes by path."""
    fault: WireError | NodeError | None = None
    """Why it was given up."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Target(Protocol):
    """Where chunks go."""

    async def resume(self) -> BlobInfo | None:
        """The blob's hash list, where it is known already."""
        ...

    def check_size(self, size: int) -> None:
        """Raise where a blob of this size cannot be taken."""
        ...

    async def begin(self, info: BlobInfo) -> Schedule:
        """Take the hash list of the blob, verified here; what is wanted of it."""
        ...

    async def recheck(self, told: Rechecked) -> None:
        """Verify what is doubtful; called once, after `begin`, while chunks arrive."""
        ...

    def room(self, length: int) -> memoryview:
        """Memory for a chunk of `length` bytes that arrives; `keep` takes it back, unless the chunk is dropped."""
        ...

    async def keep(self, chunks: Sequence[Chunk]) -> list[int]:
        """Verify chunks and put them away; the indexes of those that were no good."""
        ...


class Gathering:
    """Brings what a target wants from its sources. `run` it once."""

    def __init__(
        self,
        dialer: Dialer,
        key: Ed25519PrivateKey,
        sources: Sequence[Source],
        target: Target,
        counters: BulkCounters,
        *,
        connections: Callable[[int], int],
        throttle: Throttle,
        traffic: Traffic = "bulk",
    ) -> None:
        self.sources = sources
        self._dialer = dialer
        self._key = key
        self._target = target
        self._counters = counters
        self._connections = connections
        """How many connections to each source so many bytes deserve."""
        self._throttle = throttle
        self._traffic = traffic
        self._info: BlobInfo | None = None
        self._schedule: Schedule | None = None
        self._begun = trio.Event()
        self._beginning = trio.Lock()
        self._active = len(sources)
        """Connections that are up, or being called."""
        self._parked = 0
        self._changed = trio.lowlevel.ParkingLot()
        self._settled = trio.Event()
        self._fault: WireError | NodeError | None = None
        self._last_fault: WireError | NodeError | None = None
        self._scopes: dict[Pace, trio.CancelScope] = {}
        self._put, self._waiting = trio.open_memory_channel[tuple[Source, Chunk]](BATCH_CHUNKS_MAX)

    async def run(self) -> BlobInfo:
        """Gather everything that is wanted.

        Raises the fault of the target (`StorageFull`), or that of the last source when all were given up.
        """
        async with trio.open_nursery() as nursery:
            info = await self._target.resume()
            if info is not None:
                await self._begin(info)
            nursery.start_soon(self._recheck)
            nursery.start_soon(self._put_away)
            for source in self.sources:
                nursery.start_soon(self._follow, source)
            await self._settled.wait()
            nursery.cancel_scope.cancel()
        if self._fault is not None:
            raise self._fault
        assert self._info is not None
        return self._info

    def wake(self) -> None:
        """More may be asked for: the target's consumer has moved on."""
        self._changed.unpark_all()

    # -- one source

    async def _follow(self, source: Source) -> None:
        with source.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_calling, source, 0)
                await self._begun.wait()
                assert self._schedule is not None
                for number in range(1, self._connections_to(source, self._schedule.left)):
                    self._active += 1
                    nursery.start_soon(self._keep_calling, source, number)

    def _connections_to(self, source: Source, chunks: int) -> int:
        """One for each path where there is enough to bring, more where the blob is large."""
        direct = sum(endpoint.via is None for endpoint in source.ticket.endpoints)
        paths = max(direct, len(self._dialer.locals)) if chunks >= CHUNKS_PER_PATH * 2 else 1
        return max(self._connections(chunks * limits.CHUNK_BYTES), min(paths, PATHS_MAX))

    async def _keep_calling(self, source: Source, number: int) -> None:
        try:
            await self._call_again(source, number)
        except StorageUnusable as error:
            self._settle(error)
        except PeerUnreachable as error:
            if not number:  # a further connection is a luxury
                self._give_up(source, error)
        except (WireError, NodeError) as error:
            self._give_up(source, error)
        finally:
            self._leave(source.fault)

    def _leave(self, fault: WireError | NodeError | None) -> None:
        """One less that may bring something; the last one's fault is told."""
        self._active -= 1
        self._changed.unpark_all()
        self._last_fault = fault or self._last_fault
        if not self._active and not self._parked:
            self._settle(self._last_fault or PeerUnreachable("every source was given up"))

    def _give_up(self, source: Source, error: WireError | NodeError) -> None:
        if source.fault is None:
            source.fault = error
            if isinstance(error, BlobCorrupt):
                self._counters.liars += 1
            _log.info("bulk_source_given_up", blob=format_blob_id(source.ticket.blob), error=str(error))
        source.scope.cancel()

    async def _call_again(self, source: Source, number: int) -> None:
        failures, alive = 0, trio.current_time()
        for attempt in range(number, 1 << 30):
            endpoints = source.ticket.endpoints
            if not endpoints:
                raise PeerUnreachable("the ticket names no endpoint; ask the holder for another")
            before = source.bytes_kept
            try:
                await self._read_once(source, attempt)
                await self._park()
                failures, alive = 0, trio.current_time()
                continue
            except (PeerUnreachable, Busy, Closing) as error:
                failure: Exception = error
            except (TicketRefused, Expired) as error:
                if source.renew is None:
                    raise
                failure = error
                renewed = await source.renew()
                if renewed.blob != source.ticket.blob:
                    raise TicketRefused("the renewed ticket is for another blob") from None
                source.ticket = renewed
            if source.bytes_kept > before:
                failures, alive = 0, trio.current_time()
            failures += 1
            silent = trio.current_time() - alive
            if failures >= ATTEMPTS_MAX * len(endpoints) or silent > GIVE_UP_SECONDS:
                name = format_blob_id(source.ticket.blob)
                raise PeerUnreachable(f"holder of {name} given up after {failures} attempts: {failure}")
            self._counters.reconnections += 1
            _log.info("bulk_reconnecting", attempt=failures, error=str(failure))
            await trio.sleep(_backoff_seconds(failures))

    # -- one connection

    async def _read_once(self, source: Source, attempt: int) -> None:
        ticket = source.ticket
        endpoint = ticket.endpoints[attempt % len(ticket.endpoints)]
        local = self._dialer.locals[attempt % len(self._dialer.locals)]
        path = _path_name(endpoint, local)
        with self._throttle.open(ticket.holder, self._traffic, ticket.blob) as lane:
            async with open_reading(self._dialer, endpoint, ticket, self._key, lane, local=local) as reading:
                await self._read(source, reading, path)

    async def _read(self, source: Source, reading: Reading, path: str) -> None:
        await self._agree(reading)
        schedule = self._schedule
        assert schedule is not None
        pace = schedule.join(trio.current_time())
        self._scopes[pace] = scope = trio.CancelScope()
        try:
            with scope:  # cancelled where it is far slower than others
                await self._read_chunks(source, reading, schedule, pace, path)
        finally:
            del self._scopes[pace]
            schedule.leave(pace)
            self._changed.unpark_all()

    async def _agree(self, reading: Reading) -> None:
        """Have the hash list, from whichever source is first with a good one, for a blob of this size."""
        if self._info is None:
            self._target.check_size(reading.size)
            chunks = await reading.receive_hashes()
            async with self._beginning:
                if self._info is None:
                    await self._begin(BlobInfo(reading.ticket.blob, reading.size, chunks))
        assert self._info is not None
        if reading.size != self._info.size:
            raise BlobCorrupt(f"the holder has {reading.size} bytes of {format_blob_id(self._info.blob)}")

    async def _begin(self, info: BlobInfo) -> None:
        schedule = await self._target.begin(info)
        self._info, self._schedule = info, schedule
        self._active += 1  # what is verified again may be all that is wanted
        self._begun.set()
        if schedule.finished:
            self._settled.set()

    async def _read_chunks(
        self, source: Source, reading: Reading, schedule: Schedule, pace: Pace, path: str
    ) -> None:
        while True:
            now = trio.current_time()
            if indexes := schedule.take(pace, now):
                await reading.ask(indexes)
            elif not pace.owed:
                with trio.move_on_after(LOOK_AGAIN_SECONDS):
                    await self._changed.park()
                continue
            index, data = await reading.receive_chunk(self._target.room)
            if schedule.received(pace, index, trio.current_time()):
                source.came_by[path] += len(data)
                try:
                    await self._put.send((source, (index, data)))
                except trio.Cancelled:
                    schedule.spoiled(index)  # dropped while it waited for the disk: nobody has it
                    raise
            self._drop_laggard(schedule)

    def _drop_laggard(self, schedule: Schedule) -> None:
        pace = schedule.laggard(trio.current_time())
        if pace is not None and pace in self._scopes:
            self._counters.laggards += 1
            self._scopes[pace].cancel()

    async def _park(self) -> None:
        """Wait until no other connection is left."""
        self._active -= 1
        self._parked += 1
        self._changed.unpark_all()
        try:
            while self._active:
                await self._changed.park()
        finally:
            self._parked -= 1
            self._active += 1

    # -- what has arrived

    async def _recheck(self) -> None:
        """See to what an earlier attempt left; while that lasts, not all is lost without a source."""
        await self._begun.wait()
        try:
            await self._target.recheck(self._take_rechecked)
        except StorageUnusable as error:
            self._settle(error)
        finally:
            self._leave(None)

    def _take_rechecked(self, indexes: Sequence[int], spoiled: Sequence[int]) -> None:
        schedule = self._schedule
        assert schedule is not None
        for index in indexes:
            if index in spoiled:
                schedule.spoiled(index)
            else:
                schedule.kept(index)
        if spoiled:
            self._changed.unpark_all()
        if schedule.finished:
            self._settled.set()

    async def _put_away(self) -> None:
        async for first in self._waiting:
            batch = [first]
            while len(batch) < BATCH_CHUNKS_MAX:
                try:
                    batch.append(self._waiting.receive_nowait())
                except trio.WouldBlock:
                    break
            try:
                spoiled = await self._target.keep([chunk for _, chunk in batch])
            except StorageUnusable as error:
                self._settle(error)
                return
            schedule = self._schedule
            assert schedule is not None
            for source, (index, data) in batch:
                if index in spoiled:
                    self._counters.corrupt_chunks += 1
                    schedule.spoiled(index)
                    name = format_blob_id(source.ticket.blob)
                    self._give_up(source, BlobCorrupt(f"chunk {index} of {name}"))
                    self._changed.unpark_all()
                else:
                    schedule.kept(index)
                    source.bytes_kept += len(data)
                    self._counters.bytes_received += len(data)
            if schedule.finished:
                self._settled.set()

    def _settle(self, fault: WireError | NodeError) -> None:
        if not self._settled.is_set():
            self._fault = fault
            self._settled.set()


def _path_name(endpoint: Endpoint, local: str | None) -> str:
    way = f"{local} to " if local is not None else ""
    return f"{way}{endpoint.host}:{endpoint.port}"


def _backoff_seconds(failures: int) -> float:
    ceiling = min(BACKOFF_SECONDS * 2**failures, BACKOFF_SECONDS_MAX)
    return random.uniform(ceiling / 2, ceiling)  # noqa: S311  # spreads load, keeps no secret
