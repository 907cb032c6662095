"""Resolving one identifier: this node's own catalogue, or a race between the DHT and two core nodes.

The DHT begins; core nodes are asked when it has failed, or has not answered after `HEAD_START_SECONDS`. So the usual
resolve costs them nothing, and a DHT whose holders of a key were taken over cannot keep a record from its readers: a
core node that holds the catalogue answers too. Whoever answers, its record is verified here: signature, chain, prefix,
period, version. The first valid record ends the race.

A tombstone that the DHT gives is its newest answer and ends the race with `Withdrawn`. One that a core node gives
does not while the DHT may still answer with something newer; it counts when the DHT has failed, or is behind it. What
a core node does not hold says nothing: its catalogue may lag.
"""

import random
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

import trio

from ioc_node import api
from ioc_node.core.catalogue import Catalogue
from ioc_node.core.events import Fault, GetReport, Trace
from ioc_node.core.getting import withdrawn
from ioc_node.core_links import CoreLinks
from ioc_node.errors import PeerUnreachable
from ioc_node.forwarding import Forwarding
from ioc_node.runtime.dht import Dht, Getting
from ioc_node.runtime.driver import open_background
from ioc_node.runtime.link_handlers import Handlers
from ioc_node.runtime.links import Link
from ioc_wire.cid import cid_key
from ioc_wire.errors import BadIdentifier, NotFound, OlderVersion, WireError, Withdrawn
from ioc_wire.identity import format_node_id
from ioc_wire.market import RecordResolved, ResolveRecord
from ioc_wire.records import NamedRecord, Tombstone, named_payload
from ioc_wire.signed import Signed

HEAD_START_SECONDS: Final = 0.03
"""Of the DHT, which mostly needs a hundredth of that on a near network; as long as its own patience with one server."""
CORES_ASKED: Final = 2
CORE_TRIES_MAX: Final = 3
"""Core nodes that each of the two askers tries, one after the other, until one answers."""
CORES_SECONDS: Final = 5.0
"""For all of that, dialing included."""
ANSWER_SECONDS: Final = 2.0
NAME_CHARS: Final = 10


class LocalRecords:
    """What a core node can say about an identifier by itself: its catalogue, and its part of the DHT."""

    def __init__(self, dht: Dht, catalogue: Catalogue, forwarding: Forwarding) -> None:
        self._machine = dht.machine
        self._catalogue = catalogue
        self._forwarding = forwarding

    def register(self, handlers: Handlers) -> None:
        """Answer `ResolveRecord`; before links are opened."""
        handlers.serve(ResolveRecord, self._on_resolve)

    async def _on_resolve(self, link: Link, message: ResolveRecord) -> RecordResolved:
        found = [each for each in (self.listed(message.cid), self._stored(message.cid)) if each is not None]
        newest = max(found, key=_order, default=None)
        if newest is None or _order(newest)[0] < message.version_min:
            if not message.forwarded and not self._forwarding.is_mine((message.cid,)):
                forwarded = await self._forwarding.resolve(message)
                if forwarded is not None:
                    return forwarded
            raise NotFound(f"{message.cid} is not held here")
        return newest

    def listed(self, cid: str) -> RecordResolved | None:
        """From the catalogue: a fresh entry under a head that has not expired."""
        replica, now = self._catalogue.claiming(cid), time.time()
        if replica is None or replica.held is None or replica.held.head.expires < now:
            return None
        record = self._catalogue.find(cid)
        if record is None or named_payload(record).expires < now:
            return None
        return RecordResolved(record, replica.held.news.chain)

    def is_behind(self, listed: RecordResolved, cid: str) -> bool:
        """Whether the DHT brought this node something newer than its catalogue has."""
        stored = self._stored(cid)
        return stored is not None and _order(stored) > _order(listed)

    def _stored(self, cid: str) -> RecordResolved | None:
        held = self._machine.store.get(cid_key(cid), time.time())
        if held is None or not self._machine.trust.stands(held.signed, held.chain_hash):
            return None
        chain = self._machine.trust.chain(held.chain_hash) if held.chain_hash is not None else ()
        return RecordResolved(held.signed, chain or ())


class Resolver:
    """Resolves for this node. `local` is what a core node holds itself; others have None."""

    def __init__(self, dht: Dht, cores: CoreLinks, local: LocalRecords | None) -> None:
        self.dht = dht
        self.cores = cores
        self.local = local
        self.chance = random.SystemRandom()

    async def resolve(self, cid: str, version_min: int = 0) -> api.Resolved:
        """The record of an identifier. Raises `BadIdentifier`, `Withdrawn`, `NotFound` or `PeerUnreachable`."""
        found = await self.look_up(cid, version_min)
        if isinstance(found, api.Unresolved):
            raise found.fault()
        return found

    async def look_up(self, cid: str, version_min: int = 0) -> api.Resolved | api.Unresolved:
        """As `resolve`; a failure is returned, with the trace. Raises `BadIdentifier`."""
        cid_key(cid)
        if self.local is not None and (listed := self.local.listed(cid)) is not None:
            began = trio.current_time()
            try:
                self.check(listed, cid, version_min)
            except WireError:
                pass  # the catalogue's own rules are laxer: its head vouches for what the race has to check
            else:
                if not self.local.is_behind(listed, cid):
                    elapsed_ms = (trio.current_time() - began) * 1000
                    holder = format_node_id(self.dht.node_id)
                    return api.Resolved(listed.record, holder, "local catalogue", 0, 0, elapsed_ms, ())
        return await _Race(self, cid, version_min).run()

    def check(self, answer: RecordResolved, cid: str, version_min: int) -> NamedRecord:
        """Verify what a core node gave, as a get of the DHT does. Raises the fault."""
        machine = self.dht.machine
        unix = machine.unix(trio.current_time())
        name = machine.trust.learn(answer.chain, unix=unix)[0] if answer.chain else None
        record, _ = machine.trust.check_record(answer.record, name, unix=unix)
        if record.cid != cid:
            raise BadIdentifier(f"{record.cid} was given for {cid}")
        if record.version < version_min:
            raise OlderVersion(f"{cid}: version {record.version} was given")
        return record


class _Answer(NamedTuple):
    """A verified answer and who gave it."""

    signed: Signed
    record: NamedRecord
    holder: str
    source: str
    hops: int


class _Race:
    """One resolve."""

    def __init__(self, resolver: Resolver, cid: str, version_min: int) -> None:
        self._resolver = resolver
        self._cid = cid
        self._version_min = version_min
        self._began = trio.current_time()
        self._trace = Trace()
        self._asked: list[api.Hop] = []
        self._found: _Answer | None = None
        self._tombstone: Tombstone | None = None
        self._dht_fault: Fault | None = None
        self._reasons: list[str] = []
        self._taken: set[bytes] = set()
        self._dialing = trio.Lock()
        self._scope = trio.CancelScope()

    async def run(self) -> api.Resolved | api.Unresolved:
        with self._resolver.dht.getting(self._cid, self._version_min, trace=self._trace) as getting:
            with trio.move_on_after(HEAD_START_SECONDS):  # no task is begun: that costs as much as the get
                await getting.done.wait()
            if not self._is_decided(getting):
                with self._scope:
                    await self._go_on(getting)
        return self._ended()

    async def _go_on(self, getting: Getting) -> None:
        """Both ways at once, until one has an answer or both have failed."""
        async with open_background() as nursery:
            cores = trio.Event()
            nursery.start_soon(self._ask_cores, cores)
            await getting.done.wait()
            if not self._is_decided(getting):
                await cores.wait()

    def _is_decided(self, getting: Getting) -> bool:
        """Take what the DHT said, if it has; whether nothing else has to be waited for."""
        if not getting.results:
            return False
        result = getting.results[0]
        if isinstance(result, GetReport):
            holder = format_node_id(result.holder.node_id)
            self._found = _Answer(result.record, result.resource, holder, "dht", result.hops)
            return True
        if self._dht_fault is None:
            self._dht_fault = result
            self._reasons.append(f"DHT: {_detail(result, self._cid)}")
        return isinstance(result, Withdrawn) or self._tombstone is not None

    # -- core nodes

    async def _ask_cores(self, done: trio.Event) -> None:
        with trio.move_on_after(CORES_SECONDS) as in_time:
            async with trio.open_nursery() as nursery:
                for _ in range(CORES_ASKED):
                    nursery.start_soon(self._ask_core)
        if in_time.cancelled_caught:
            self._reasons.append(f"core nodes: no more answered within {CORES_SECONDS:.0f} s")
        done.set()

    async def _ask_core(self) -> None:
        """Ask one core node after the other until one says something."""
        for _ in range(CORE_TRIES_MAX):
            try:
                link = await self._next_core()
            except (PeerUnreachable, WireError) as error:
                if not self._taken:
                    self._note_reason(f"core nodes: {error}")
                return
            began, answer = trio.current_time(), None
            try:
                with trio.fail_after(ANSWER_SECONDS):
                    request = ResolveRecord(self._cid, self._version_min)
                    answer = await link.request(request, RecordResolved)
                record = self._resolver.check(answer, self._cid, self._version_min)
            except NotFound as error:
                told = f"not found: {_detail(error, self._cid)}"
                self._note(link, began, told, told)
                return
            except trio.TooSlowError:
                self._note(link, began, "no answer", f"no answer within {ANSWER_SECONDS:.0f} s")
            except PeerUnreachable as error:
                self._note(link, began, str(error), str(error))
            except WireError as error:
                verb = "refused" if answer is None else "rejected"
                self._note(link, began, f"{verb}: {error}", f"{verb}: {error}")
            except trio.Cancelled:
                self._note(link, began, "no answer yet", "")
                raise
            else:
                self._note(link, began, answer.record.kind, "")
                self._take(link, answer.record, record)
                return

    async def _next_core(self) -> Link:
        """A core node that was not asked yet, a linked one where there is one. Raises `PeerUnreachable`."""
        cores = self._resolver.cores
        async with self._dialing:
            linked = [link for link in cores.linked() if link.peer.key not in self._taken]
            link = (
                self._resolver.chance.choice(linked)
                if linked
                else await cores.any(but=frozenset(self._taken))
            )
            self._taken.add(link.peer.key)
            return link

    def _take(self, link: Link, signed: Signed, record: NamedRecord) -> None:
        if isinstance(record, Tombstone):
            if self._tombstone is None or record.order > self._tombstone.order:
                self._tombstone = record
            if self._dht_fault is not None:
                self._scope.cancel()
        elif self._found is None:
            name = format_node_id(link.peer.node_id)
            self._found = _Answer(signed, record, name, f"core node {name[:NAME_CHARS]}", 1)
            self._scope.cancel()

    def _note(self, link: Link, began: float, outcome: str, reason: str) -> None:
        host, port = link.peer.endpoint or ("", 0)
        name = format_node_id(link.peer.node_id)
        self._asked.append(api.Hop(name, host, port, 0, (trio.current_time() - began) * 1000, outcome))
        if reason:
            self._note_reason(f"core node {name[:NAME_CHARS]}: {reason}")

    def _note_reason(self, reason: str) -> None:
        if reason not in self._reasons:
            self._reasons.append(reason)

    # -- the end

    def _ended(self) -> api.Resolved | api.Unresolved:
        found, tombstone = self._found, self._tombstone
        hops = (*_hops(self._trace), *self._asked)
        elapsed_ms = (trio.current_time() - self._began) * 1000
        hedged_ms = -1.0 if self._trace.hedged is None else self._trace.hedged * 1000
        ending = self._trace.ending or ""
        if found is not None and (tombstone is None or tombstone.order < found.record.order):
            return api.Resolved(
                record=found.signed,
                holder=found.holder,
                source=found.source,
                hops=found.hops,
                asked=len(hops),
                elapsed_ms=elapsed_ms,
                trace=hops,
                ending=ending,
                hedged_ms=hedged_ms,
            )
        fault = self._fault()
        code, text = (fault.code, fault.detail) if isinstance(fault, WireError) else (0, str(fault))
        return api.Unresolved(code, type(fault).__name__, text, elapsed_ms, hops, ending, hedged_ms)

    def _fault(self) -> Fault:
        if self._tombstone is not None:
            return withdrawn(self._tombstone)
        if isinstance(self._dht_fault, Withdrawn):
            return self._dht_fault
        reasons = f"{self._cid}: {'; '.join(self._reasons)}"
        nobody = self._trace.ending == "starved" and not self._asked
        return PeerUnreachable(f"nobody can be asked for {reasons}") if nobody else NotFound(reasons)


def _hops(trace: Trace) -> Iterator[api.Hop]:
    for hop in trace.hops:
        host, port = hop.contact.address
        name = format_node_id(hop.contact.node_id)
        yield api.Hop(name, host, port, hop.depth, hop.seconds * 1000, hop.outcome, hop.tries)


def _detail(error: Fault, cid: str) -> str:
    """What an error says beside the identifier, which its reader knows."""
    words = error.detail if isinstance(error, NotFound) else str(error)
    return words.removeprefix(cid).removeprefix(":").strip()


def _order(answer: RecordResolved) -> tuple[int, int]:
    return named_payload(answer.record).order
