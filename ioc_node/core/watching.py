"""Watching one identifier: whoever holds its record tells the watcher when a newer one comes.

Theory of operation. The watcher finds the servers nearest to the key, as a get does, and sends `Watch` to
`WATCH_HOLDERS` of them. A holder (`WatchTable`) remembers that for the time granted and sends `Changed` when it stores
a newer version or a tombstone; that is a request like any other, repeated until it is answered. The watcher
(`WatchOperation`) verifies each as a get does and tells each version once, never an older one, however many holders
push it. It renews well before the end, at whoever is nearest by then, so that holders that died or forgot are
replaced; each renewal names the version that is known, and reads the record once more, which heals a push that got
lost. Everything a holder keeps for others is bounded, and forgotten when the watcher does not answer.
"""

import heapq
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from ioc_node.core.events import Fault, GetStarted, RecordChanged, Trace, WatchStarted
from ioc_node.core.exchange import Request
from ioc_node.core.getting import Found, GetOperation
from ioc_node.core.operations import Operation, Search
from ioc_node.core.routing import Contact
from ioc_node.core.session import Outbox, Session
from ioc_node.core.timers import Timer
from ioc_wire import dht as wire
from ioc_wire.cid import cid_key
from ioc_wire.dht import AnyMessage
from ioc_wire.errors import BadIdentifier, ChainUnknown, NotFound, OverQuota, WireError
from ioc_wire.records import NamedRecord, Tombstone, named_payload
from ioc_wire.signed import Signed

if TYPE_CHECKING:
    from ioc_node.core.dht import DhtMachine

WATCHES_MAX: Final = 16384
"""Kept for others; about 400 bytes each."""
WATCHES_PER_PEER_MAX: Final = 256
WATCHES_PER_KEY_MAX: Final = 128
"""One new version sends so many datagrams at most."""
OWN_WATCHES_MAX: Final = 1024
WATCH_HOLDERS: Final = 4
WATCH_SPARES: Final = 8
"""Nearest servers that take the place of holders that do not answer, or lie."""
WATCH_SECONDS: Final = 300
RENEW_SECONDS_FIRST: Final = 10.0
"""The first renewal comes early: a node that has just joined may not know the nearest yet."""
RENEW_SECONDS: Final = 120.0
HOPS_KEPT_MAX: Final = 64

Told = tuple[int, bool]
"""What was told last: a version, and whether it was withdrawn in it."""


class _Watch:
    """One watcher of one key. `expires` is in the machine's time."""

    __slots__ = ("address", "expires", "key", "node_id", "telling", "told")

    def __init__(self, key: bytes, session: Session) -> None:
        self.key = key
        self.node_id = session.node_id
        self.address = session.address
        self.expires = 0.0
        self.told: Told = (0, False)
        self.telling = False


class WatchTable:
    """Who wants to be told of which key: other nodes, each for the time granted, and this node's own operations."""

    def __init__(self, dht: "DhtMachine") -> None:
        self._dht = dht
        self._watches: dict[bytes, dict[bytes, _Watch]] = {}
        self._per_peer: Counter[bytes] = Counter()
        self._expiries: list[tuple[float, bytes, bytes]] = []
        self._count = 0
        self._own: dict[bytes, list[WatchOperation]] = {}

    def __len__(self) -> int:
        return self._count

    # -- for others

    def take(self, session: Session, request: wire.Watch, now: float) -> wire.Watching:
        """A peer watches a key, or ends that. Raises `OverQuota`."""
        self._drop_expired(now)
        watch = self._watches.get(request.key, {}).get(session.node_id)
        if not request.seconds:
            if watch is not None:
                self._forget(watch)
            return wire.Watching(request.request, 0)
        if watch is None:
            watch = self._add(request.key, session)
        watch.address = session.address
        watch.told = (request.version, False)
        watch.expires = now + request.seconds
        heapq.heappush(self._expiries, (watch.expires, watch.key, watch.node_id))
        self._compact()
        self._tell_soon(watch, now)
        return wire.Watching(request.request, request.seconds)

    def changed(self, key: bytes, unix: float) -> None:
        """Something was stored at `key`; watchers are told what is new to them, after the answer to who stored it."""
        now = unix - self._dht.unix_offset
        for watch in self._watches.get(key, {}).values():
            self._tell_soon(watch, now)
        for operation in self._own.get(key, ()):
            self._dht.after(0.0, operation.look_here, now)

    def _add(self, key: bytes, session: Session) -> _Watch:
        if self._per_peer[session.node_id] >= WATCHES_PER_PEER_MAX:
            raise OverQuota(f"{WATCHES_PER_PEER_MAX} watches of this peer are kept here")
        if len(self._watches.get(key, ())) >= WATCHES_PER_KEY_MAX:
            raise OverQuota(f"{WATCHES_PER_KEY_MAX} watch this key here")
        if self._count >= WATCHES_MAX:
            raise OverQuota(f"{WATCHES_MAX} watches are kept here")
        watch = self._watches.setdefault(key, {})[session.node_id] = _Watch(key, session)
        self._per_peer[session.node_id] += 1
        self._count += 1
        return watch

    def _forget(self, watch: _Watch) -> None:
        watchers = self._watches.get(watch.key, {})
        if watchers.get(watch.node_id) is not watch:
            return
        del watchers[watch.node_id]
        if not watchers:
            del self._watches[watch.key]
        self._count -= 1
        self._per_peer[watch.node_id] -= 1
        if not self._per_peer[watch.node_id]:
            del self._per_peer[watch.node_id]

    def _drop_expired(self, now: float) -> None:
        while self._expiries and self._expiries[0][0] <= now:
            _, key, node_id = heapq.heappop(self._expiries)
            watch = self._watches.get(key, {}).get(node_id)
            if watch is not None and watch.expires <= now:
                self._forget(watch)

    def _compact(self) -> None:
        """Renewals leave old times behind in the heap."""
        if len(self._expiries) > 2 * self._count + 64:
            everybody = (watch for watchers in self._watches.values() for watch in watchers.values())
            self._expiries = [(watch.expires, watch.key, watch.node_id) for watch in everybody]
            heapq.heapify(self._expiries)

    def _tell_soon(self, watch: _Watch, now: float) -> None:
        # Not at once: the answer to the request that is being served goes out first, in a handshake by itself.
        self._dht.after(0.0, lambda now, out: self._tell(watch, now, out), now)

    def _tell(self, watch: _Watch, now: float, out: Outbox) -> None:
        """Tell one watcher what is new to it, if it was not told meanwhile."""
        if watch.telling or self._watches.get(watch.key, {}).get(watch.node_id) is not watch:
            return
        if watch.expires <= now:
            self._forget(watch)
            return
        dht = self._dht
        held = dht.store.get(watch.key, dht.unix(now))
        if held is None or not dht.trust.stands(held.signed, held.chain_hash):
            return
        news: Told = (held.order[0], held.signed.kind == Tombstone.kind)
        if news <= watch.told:
            return

        def on_answer(answer: AnyMessage | Fault, request: Request, now: float, out: Outbox) -> None:
            watch.telling = False
            is_kept = isinstance(answer, (wire.Stored, wire.Refusal))
            if not is_kept or (isinstance(answer, wire.Refusal) and answer.code == NotFound.code):
                self._forget(watch)
            elif watch.told < news:
                watch.told = news
                self._tell(watch, now, out)

        watch.telling = True
        number = dht.exchange.number()
        message = wire.Changed(number, watch.key, held.signed, held.chain_hash)
        dht.exchange.ask(number, message, watch.node_id, watch.address, on_answer, now, out)

    # -- for this node

    def own(self) -> int:
        """How many operations of this node watch."""
        return sum(len(operations) for operations in self._own.values())

    def watch_here(self, operation: "WatchOperation") -> None:
        """Tell an operation of this node what is stored in it."""
        self._own.setdefault(operation.target, []).append(operation)

    def unwatch_here(self, operation: "WatchOperation") -> None:
        operations = self._own.get(operation.target, [])
        if operation in operations:
            operations.remove(operation)
        if not operations:
            self._own.pop(operation.target, None)

    def on_changed(self, session: Session, request: wire.Changed, now: float, out: Outbox) -> wire.Stored:
        """A holder tells of a newer record. Raises `NotFound` where it was not asked to, or the record's fault."""
        teller = Contact(session.node_id, session.address)
        asked = [each for each in self._own.get(request.key, ()) if teller.node_id in each.holders]
        if not asked:
            raise NotFound("nobody here asked you to watch that")
        faults = [each.on_told(teller, request.record, request.chain_hash, now, out) for each in asked]
        if faults[0] is not None:
            raise faults[0]
        return wire.Stored(request.request)


class WatchOperation(Operation):
    """Watches one identifier until it is cancelled."""

    def __init__(self, dht: "DhtMachine", event: WatchStarted, now: float) -> None:
        super().__init__(dht, event.operation, now)
        self.cid = event.cid
        self.target = cid_key(event.cid)
        self.told: Told = (event.version, False)
        self.holders: dict[bytes, Contact] = {}
        """Those asked to tell; nobody else is listened to."""
        self.spare: list[Contact] = []
        self.liars: set[bytes] = set()
        """Of this round."""
        self.fetching: set[bytes] = set()
        self.interval = RENEW_SECONDS_FIRST
        self.renewal: Timer | None = None

    def start(self, now: float, out: Outbox) -> None:
        if self.dht.watches.own() >= OWN_WATCHES_MAX:
            self.finish(OverQuota(f"{OWN_WATCHES_MAX} identifiers are watched by this node"), out)
            return
        self.dht.watches.watch_here(self)
        self.look_here(now, out)
        self.renew(now, out)

    def cancel(self, now: float, out: Outbox) -> None:
        """Tell the holders that nobody listens any more."""
        self.dht.watches.unwatch_here(self)
        if self.renewal is not None:
            self.renewal.cancel()
        for contact in self.holders.values():
            self.ask(contact, lambda number: wire.Watch(number, self.target, 0, 0), _ignore, now, out)
        self.close()

    def renew(self, now: float, out: Outbox) -> None:
        """One round: read the record, and watch at whoever is nearest now."""
        if self.ended:
            return
        self.trace = Trace()
        self.liars.clear()
        self._renew_in(self.interval * (0.9 + 0.2 * self.dht.chance.random()), now)
        self.interval = min(2 * self.interval, RENEW_SECONDS)
        dht = self.dht
        dht.begin(_Reading(self, now), now, out)
        if dht.upkeep.has_full_view():
            point = int.from_bytes(self.target, "big")
            peers = dht.table.replicas(point, WATCH_HOLDERS + WATCH_SPARES)
            self.watch_at([peer.contact for peer in peers], now, out)
        else:
            dht.begin(_Nearest(self, now), now, out)

    def watch_at(self, nearest: Iterable[Contact], now: float, out: Outbox) -> None:
        """Ask the nearest to tell; who was a holder before and is not any more, is not listened to."""
        self.holders = {}
        self.spare = [contact for contact in nearest if contact.node_id not in self.liars]
        while self.spare and len(self.holders) < WATCH_HOLDERS:
            self._watch_at(self.spare.pop(0), now, out)

    def look_here(self, now: float, out: Outbox) -> None:
        """What this node itself holds."""
        if self.ended:
            return
        held = self.dht.store.get(self.target, self.dht.unix(now))
        if held is not None and self.dht.trust.stands(held.signed, held.chain_hash):
            self.tell(self.dht.contact, held.signed, named_payload(held.signed), held.chain_hash, out)

    def tell(
        self,
        teller: Contact,
        signed: Signed,
        record: NamedRecord,
        chain_hash: bytes | None,
        out: Outbox,
    ) -> None:
        """Tell a verified record, if it is newer than what was told."""
        news: Told = (record.version, isinstance(record, Tombstone))
        if self.ended or news <= self.told:
            return
        self.told = news
        chain = self.dht.trust.chain(chain_hash) if chain_hash is not None else None
        out.append(RecordChanged(self.number, signed, record, chain or (), teller))

    def on_told(
        self, teller: Contact, signed: Signed, chain_hash: bytes | None, now: float, out: Outbox
    ) -> WireError | None:
        """A holder tells of a record; return what is wrong with it. Who tells what is not so is not asked again in
        this round.
        """
        try:
            record, _ = self.dht.trust.check_record(signed, chain_hash, unix=self.dht.unix(now))
            if record.cid != self.cid:
                raise BadIdentifier(f"{record.cid} was told for {self.cid}")
        except ChainUnknown as error:
            if chain_hash is None or teller.node_id in self.fetching:
                return error
            self._fetch_chain(teller, signed, chain_hash, now, out)
        except WireError as error:
            self._reject(teller, now, out)
            return error
        else:
            self.tell(teller, signed, record, chain_hash, out)
        return None

    def _renew_in(self, seconds: float, now: float) -> None:
        if self.renewal is not None:
            self.renewal.cancel()
        self.renewal = self.dht.after(seconds, self.renew, now)

    def _watch_at(self, contact: Contact, now: float, out: Outbox) -> None:
        self.holders[contact.node_id] = contact
        version = self.told[0]
        self.ask(
            contact,
            lambda number: wire.Watch(number, self.target, version, WATCH_SECONDS),
            self._on_watching,
            now,
            out,
        )

    def _on_watching(self, contact: Contact, answer: AnyMessage | Fault, now: float, out: Outbox) -> None:
        if self.ended or contact.node_id not in self.holders:
            return
        if not isinstance(answer, wire.Watching) or not answer.seconds:
            self._replace(contact, now, out)
        elif answer.seconds < WATCH_SECONDS:
            self._renew_in(max(answer.seconds / 2, RENEW_SECONDS_FIRST), now)

    def _replace(self, contact: Contact, now: float, out: Outbox) -> None:
        """A holder is dead, full or lying: the next nearest takes its place."""
        self.holders.pop(contact.node_id, None)
        if self.spare:
            self._watch_at(self.spare.pop(0), now, out)

    def _reject(self, teller: Contact, now: float, out: Outbox) -> None:
        self.dht.rejected += 1
        self.liars.add(teller.node_id)
        self._replace(teller, now, out)

    def _fetch_chain(
        self, teller: Contact, signed: Signed, chain_hash: bytes, now: float, out: Outbox
    ) -> None:
        """Ask the teller for the chain behind its record, then check that again."""

        def answered(contact: Contact, answer: AnyMessage | Fault, now: float, out: Outbox) -> None:
            self.fetching.discard(contact.node_id)
            if self.ended:
                return
            if isinstance(answer, wire.ChainValue):
                try:
                    self.dht.trust.learn(answer.chain, unix=self.dht.unix(now))
                except WireError:
                    self._reject(contact, now, out)
                    return
                if self.dht.trust.chain(chain_hash) is not None:
                    self.on_told(contact, signed, chain_hash, now, out)
                    return
            self._reject(contact, now, out)

        if len(self.trace.hops) > HOPS_KEPT_MAX:
            self.trace = Trace()
        self.fetching.add(teller.node_id)
        self.ask(teller, lambda number: wire.GetChain(number, chain_hash), answered, now, out)


class _Reading(GetOperation):
    """Reads the record of a watched identifier, for its watch."""

    def __init__(self, watch: WatchOperation, now: float) -> None:
        super().__init__(watch.dht, GetStarted(watch.dht.own_number(), watch.cid), now)
        self.watch = watch

    def report(self, best: Found, now: float, out: Outbox) -> None:
        self.close()
        self.watch.tell(best.contact, best.signed, best.record, best.chain_hash, out)


class _Nearest(Search):
    """Finds where to watch while this node does not know everybody."""

    def __init__(self, watch: WatchOperation, now: float) -> None:
        super().__init__(watch.dht, watch.dht.own_number(), now, watch.target)
        self.watch = watch

    def settle(self, now: float, out: Outbox) -> None:
        self.close()
        if not self.watch.ended:
            self.watch.watch_at(self.lookup.nearest()[: WATCH_HOLDERS + WATCH_SPARES], now, out)


def _ignore(contact: Contact, answer: AnyMessage | Fault, now: float, out: Outbox) -> None:
    """Whether it heard that is its own affair: the watch expires anyway."""
