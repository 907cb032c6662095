"""The DHT as trio code uses it: join, put, get, find, announce, ping. No time-outs: use cancel scopes.

`open_dht` runs a `DhtMachine` on a UDP socket of its own. What is *published* here is signed anew and stored
again before it expires, for as long as the block lasts.
"""

import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, Protocol, TypeVar

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.core import events
from ioc_node.core.challenge import Address
from ioc_node.core.chance import Chance
from ioc_node.core.dht import DhtMachine
from ioc_node.core.events import (
    Chain,
    FindReport,
    GetReport,
    HoldersReport,
    JoinReport,
    PingReport,
    PutReport,
    RecordChanged,
    SweepReport,
    Trace,
)
from ioc_node.core.routing import Contact
from ioc_node.core.trust import Admission, Ended, Trust
from ioc_node.errors import NodeError, PeerUnreachable
from ioc_node.runtime.datagrams import open_datagrams
from ioc_node.runtime.driver import Driver, open_background
from ioc_node.runtime.newest import Newest
from ioc_node.runtime.publishing import Publishing, Resign
from ioc_wire.dht import HolderRecord
from ioc_wire.errors import WireError
from ioc_wire.identity import format_node_id
from ioc_wire.signed import Signed, sign

CLOCK_SECONDS: Final = 60
CHANGES_MAX: Final = 4096
RESTORED_AT_ONCE: Final = 32
"""Records taken up again between two turns of everybody else: each costs a signature check."""
HOLDER_SECONDS: Final = 24 * 3600

_log = structlog.get_logger()
_Report = TypeVar("_Report")
Change = events.RecordStored | events.RecordDropped


class RecordKeeper(Protocol):
    """Where a server keeps the records that it holds for others, so that a restart does not lose them."""

    def load(self) -> Iterable[tuple[Signed, Chain]]:
        """What was kept."""
        ...

    async def save(self, changes: list[Change]) -> None:
        """Keep and forget. Raises `NodeError` if it cannot; the DHT goes on without."""
        ...


class Getting:
    """A get under way. `done` is set when it has ended, with a report or a fault in `results`."""

    __slots__ = ("done", "results")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.results: list[GetReport | events.Fault] = []


class Dht:
    """A running DHT node; made by `open_dht`."""

    def __init__(self, machine: DhtMachine, key: Ed25519PrivateKey, address: Address) -> None:
        self.machine = machine
        self.address = address
        self.changes_lost = 0
        self._key = key
        self._known = trio.Event()
        self._numbers = itertools.count()
        self._waiting: dict[int, tuple[trio.Event, list[Any]]] = {}
        self._watching: dict[int, Newest[RecordChanged]] = {}
        self.publishing = Publishing(self.sweep)
        self._driver: Driver[Any, Any]
        self._restoring = False
        self._changes, self._changed = trio.open_memory_channel[Change](CHANGES_MAX)

    @property
    def node_id(self) -> bytes:
        return self.machine.node_id

    @property
    def key(self) -> bytes:
        """Our public key."""
        return self.machine.sessions.key

    async def join(self, addresses: Iterable[tuple[str, int]]) -> int:
        """Get to know the network through these hosts and ports; return how many of them were reached."""
        return (await self.join_report(addresses)).reached

    async def join_report(self, addresses: Iterable[tuple[str, int]]) -> JoinReport:
        """As `join`, with the faults of those that were not reached."""
        resolved: list[Address] = []
        unresolved: list[tuple[Address, events.Fault]] = []
        family = trio.socket.AF_UNSPEC if ":" in self.address[0] else trio.socket.AF_INET
        for host, port in addresses:
            try:
                found = await trio.socket.getaddrinfo(host, port, family, trio.socket.SOCK_DGRAM)
            except OSError as error:
                fault: events.Fault = PeerUnreachable(f"{host}:{port}: {error.strerror or error}")
                unresolved.append(((host, port), fault))
            else:
                resolved.append((str(found[0][4][0]), int(found[0][4][1])))
        if unresolved and not resolved:
            return JoinReport(0, unresolved, len(self.machine.table))
        report = await self._do(JoinReport, lambda n: events.JoinStarted(n, tuple(resolved)))
        report.failed.extend(unresolved)
        for address, fault in report.failed:
            _log.info("bootstrap_failed", address=f"{address[0]}:{address[1]}", reason=str(fault))
        return report

    async def wait_known(self) -> None:
        """Wait until a first server is known: enough for a `get`, while a `join` still goes on."""
        await self._known.wait()

    async def put(self, record: Signed, chain: Chain = ()) -> PutReport:
        """Store a record at the servers nearest to its key.

        Raises `PeerUnreachable` when no server is known, and a `WireError` for a record that cannot be sent
        at all. Refusals of servers are in the report, each with its own fault.
        """
        return await self._do(PutReport, lambda n: events.PutStarted(n, record, tuple(chain)))

    async def sweep(self, records: Iterable[tuple[Signed, Chain]]) -> SweepReport:
        """Store some thousand records at once, with few lookups and messages. Raises `PeerUnreachable`, and
        `TooLarge` for more than `SWEEP_RECORDS_MAX`.
        """
        batch = tuple(records)
        return await self._do(SweepReport, lambda n: events.SweepStarted(n, batch))

    async def get(
        self, cid: str, min_version: int = 0, answers: int = 1, *, trace: Trace | None = None
    ) -> GetReport:
        """Find the record of an identifier. Raises `NotFound` (it says how many were asked), `Withdrawn` or
        `BadIdentifier`. The search is noted in `trace`, also where it fails or is cancelled.
        """
        return await self._do(GetReport, lambda n: events.GetStarted(n, cid, min_version, answers, trace))

    @contextmanager
    def getting(self, cid: str, min_version: int = 0, *, trace: Trace | None = None) -> Iterator[Getting]:
        """Begin a get, for who does something else beside waiting for it; it is cancelled with the block."""
        number = next(self._numbers)
        getting = Getting()
        self._waiting[number] = (getting.done, getting.results)
        self._driver.feed(events.GetStarted(number, cid, min_version, 1, trace))
        try:
            yield getting
        finally:
            self._waiting.pop(number, None)
            if not getting.results:
                self._driver.feed(events.OperationCancelled(number))

    @asynccontextmanager
    async def watch(self, cid: str, version: int = 0) -> AsyncIterator[AsyncIterator[RecordChanged]]:
        """Iterate over what becomes of an identifier: its record and each later one, above `version`, verified, and
        a `Tombstone` when it is withdrawn. It goes on until the block is left.

        One change is kept for who reads slowly, the newest: versions in between may be left out, order is kept.
        Raises `BadIdentifier`, or `OverQuota` where this node watches too many.
        """
        number = next(self._numbers)
        done, results = trio.Event(), []  # type: trio.Event, list[Any]
        self._waiting[number] = (done, results)
        newest = self._watching[number] = Newest[RecordChanged]()
        try:
            self._driver.feed(events.WatchStarted(number, cid, version))
            if results:
                raise results[0]
            yield newest
        finally:
            self._waiting.pop(number, None)
            self._watching.pop(number, None)
            self._driver.feed(events.OperationCancelled(number))

    async def find_node(self, target: bytes) -> FindReport:
        """Find the servers nearest to a 32-byte target. Raises `PeerUnreachable`."""
        return await self._do(FindReport, lambda n: events.FindStarted(n, target))

    async def announce(
        self, blob: bytes, host: str, port: int, seconds: int = HOLDER_SECONDS, *, via: bytes | None = None
    ) -> PutReport:
        """Tell that we give `blob` out over a link to `host`:`port`, for so many seconds; over a circuit through the
        core node there, with the key `via`, where nobody can dial us."""
        now = int(self.machine.unix(trio.current_time()))
        holder = sign(self._key, HolderRecord(blob, host, port, now, now + seconds, via))
        return await self._do(PutReport, lambda n: events.AnnounceStarted(n, holder))

    async def holders(self, blob: bytes) -> HoldersReport:
        """Find out who holds a blob. Raises `NotFound`."""
        return await self._do(HoldersReport, lambda n: events.HoldersStarted(n, blob))

    async def ping(self, peer: Contact | Address) -> PingReport:
        """Measure one round trip. Raises `PeerUnreachable`, or `WrongPeer` where another node answers."""
        if isinstance(peer, Contact):
            return await self._do(PingReport, lambda n: events.PingStarted(n, peer.address, peer.node_id))
        return await self._do(PingReport, lambda n: events.PingStarted(n, peer, None))

    def contacts(self) -> list[Contact]:
        """The servers known and verified, in order of node ID."""
        return [peer.contact for peer in self.machine.table.peers()]

    def round_trip(self, node_id: bytes) -> float | None:
        """Smoothed seconds to a node that was asked something lately."""
        return self.machine.exchange.round_trip(node_id)

    def publish(self, cid: str, resign: Resign) -> None:
        """Keep a record of ours stored: now, and signed anew before it expires. Raises `BadIdentifier`."""
        self.publishing.publish(cid, resign)

    def key_revoked(self, ended: Ended) -> None:
        """`Trust` took in a revocation: give up what rested on it."""
        self._driver.feed(events.KeyRevoked(ended))

    def withdraw(self, cid: str, tombstone: Resign | None = None) -> None:
        """Stop refreshing a record. With a tombstone (of a higher version) it is gone everywhere at once, otherwise
        when it expires.
        """
        if tombstone is None:
            self.publishing.withdraw(cid)
        else:
            self.publishing.publish(cid, tombstone, ends=True)

    def counters(self) -> dict[str, int]:
        """What happened so far; the names are stable."""
        m, s = self.machine, self.machine.sessions.counters
        counted = {name: getattr(s, name) for name in s.__slots__}
        return counted | {
            "sessions": len(m.sessions), "servers": len(m.table), "records": len(m.store), "blobs": len(m.holders),
            "malformed": m.malformed, "rejected": m.rejected, "corrected": m.corrected,
            "watches": len(m.watches), "watching": m.watches.own(),
            "repeated": m.exchange.repeated, "timed_out": m.exchange.timed_out, "changes_lost": self.changes_lost,
            "evicted": m.store.evicted, "published": len(self.publishing), "refreshes_late": self.publishing.late,
        }  # fmt: skip

    async def _do(self, kind: type[_Report], event: Callable[[int], events.Event]) -> _Report:
        """Run one operation to its end; raise the fault that ended it."""
        number = next(self._numbers)
        done, results = trio.Event(), []  # type: trio.Event, list[Any]
        self._waiting[number] = (done, results)
        self._driver.feed(event(number))
        try:
            await done.wait()
        except trio.Cancelled:
            self._driver.feed(events.OperationCancelled(number))
            raise
        finally:
            self._waiting.pop(number, None)
        result = results[0]
        if isinstance(result, (WireError, NodeError)):
            raise result
        assert isinstance(result, kind)
        return result

    def _perform(self, effect: events.Effect) -> None:
        if isinstance(effect, RecordChanged):
            newest = self._watching.get(effect.operation)
            if newest is not None:
                newest.put(effect)
            return
        if isinstance(effect, events.OperationEnded):
            waiting = self._waiting.get(effect.operation)
            if waiting is not None:
                waiting[1].append(effect.result)
                waiting[0].set()
        elif isinstance(effect, (events.RecordStored, events.RecordDropped)):
            if self._restoring and isinstance(effect, events.RecordStored):
                return  # that is where it came from
            try:
                self._changes.send_nowait(effect)
            except trio.WouldBlock:
                self.changes_lost += 1
            except trio.BrokenResourceError:
                pass  # nobody keeps records here
        elif isinstance(effect, (events.PeerVerified, events.PeerLost)):
            name = "server_known" if isinstance(effect, events.PeerVerified) else "server_lost"
            if isinstance(effect, events.PeerVerified):
                self._known.set()
                self.publishing.server_came()
            _log.debug(name, node=format_node_id(effect.contact.node_id), address=effect.contact.address)

    async def _watch_clock(self) -> None:
        """Tell the machine the wall clock, which is set and goes on while a computer sleeps."""
        while True:
            await trio.sleep(CLOCK_SECONDS)
            self._driver.feed(events.ClockRead(time.time()))

    async def _restore(self, keeper: RecordKeeper) -> None:
        records = iter(keeper.load())
        while batch := tuple(itertools.islice(records, RESTORED_AT_ONCE)):
            self._restoring = True
            self._driver.feed(events.RecordsRestored(batch))
            self._restoring = False
            await trio.lowlevel.checkpoint()

    async def _keep(self, keeper: RecordKeeper) -> None:
        """Take up what was kept, then keep what changes."""
        try:
            await self._restore(keeper)
        except NodeError as error:
            _log.warning("records_not_restored", reason=str(error))
        async for change in self._changed:
            changes = [change]
            while len(changes) < CHANGES_MAX:
                try:
                    changes.append(self._changed.receive_nowait())
                except trio.WouldBlock:
                    break
            try:
                await keeper.save(changes)
            except NodeError as error:
                self.changes_lost += len(changes)
                _log.warning("records_not_kept", count=len(changes), reason=str(error))


@asynccontextmanager
async def open_dht(
    *,
    key: Ed25519PrivateKey,
    host: str,
    port: int,
    network_id: bytes,
    roots: frozenset[bytes],
    admission: Admission,
    chain: Chain,
    server: bool,
    advertise_host: str | None,
    rng: Chance,
    store: RecordKeeper | None = None,
) -> AsyncIterator[Dht]:
    """Run a DHT node on UDP `host`:`port` (0 takes a free port) for the length of the block.

    Raises `PortInUse`, `ConfigError`, or `TooLarge` for a chain that fits into no datagram. `rng` must be
    `random.SystemRandom()` outside of tests: session keys come from it.
    """
    with open_datagrams(host, port) as sock:
        now = trio.current_time()
        machine = DhtMachine(
            key=key, trust=Trust(network_id=network_id, admission=admission, roots=roots), chance=rng,
            unix_offset=time.time() - now, server=server, chain=chain,
            address=(advertise_host or sock.address[0], sock.address[1]), ipv6=":" in sock.address[0], now=now,
        )  # fmt: skip
        dht = Dht(machine, key, sock.address)
        dht._driver = Driver(machine, sock, dht._perform)
        async with open_background() as background:
            if store is not None:
                background.start_soon(dht._keep, store)
            else:
                dht._changed.close()
            background.start_soon(dht._driver.run)
            background.start_soon(dht.publishing.run)
            background.start_soon(dht._watch_clock)
            yield dht
