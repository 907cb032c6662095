"""Who wants to be told of which key: what a server keeps for watchers. The watcher's side is `watching`."""

import heapq
from collections import Counter
from typing import TYPE_CHECKING, Final

from ioc_node.core.events import Fault
from ioc_node.core.exchange import Request
from ioc_node.core.routing import Contact, address_group
from ioc_node.core.session import Outbox, Session
from ioc_wire import dht as wire
from ioc_wire.dht import AnyMessage
from ioc_wire.errors import NotFound, OverQuota
from ioc_wire.records import Tombstone

if TYPE_CHECKING:
    from ioc_node.core.dht import DhtMachine
    from ioc_node.core.watching import WatchOperation

WATCHES_MAX: Final = 16384
"""Kept for others; about 400 bytes each."""
WATCHES_PER_PEER_MAX: Final = 256
WATCHES_PER_KEY_MAX: Final = 128
"""One new version sends so many datagrams at most."""
WATCHES_PER_GROUP_MAX: Final = 2048
"""Of watchers in one /24 (IPv6: /48)."""

Told = tuple[int, bool]
"""What was told last: a version, and whether it was withdrawn in it."""


class _Watch:
    """One watcher of one key. `expires` is in the machine's time."""

    __slots__ = ("address", "expires", "group", "key", "node_id", "telling", "told")

    def __init__(self, key: bytes, session: Session) -> None:
        self.key = key
        self.group = address_group(session.address[0])
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
        self._per_group: Counter[bytes] = Counter()
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
        watch = _Watch(key, session)
        if watch.group is not None:
            if self._per_group[watch.group] >= WATCHES_PER_GROUP_MAX:
                raise OverQuota(f"{WATCHES_PER_GROUP_MAX} watches of this address block are kept here")
            self._per_group[watch.group] += 1
        self._watches.setdefault(key, {})[session.node_id] = watch
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
        if watch.group is not None:
            self._per_group[watch.group] -= 1
            if not self._per_group[watch.group]:
                del self._per_group[watch.group]

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
