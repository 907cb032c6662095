"""The server's side: one request in, one answer out. Nothing here waits, and every table it fills is
bounded.
"""

from typing import Final

from ioc_node.core.chance import Chance
from ioc_node.core.events import RecordDropped, RecordStored
from ioc_node.core.rates import Rate, RateTable, source_name
from ioc_node.core.routing import RoutingTable
from ioc_node.core.session import Outbox, Session
from ioc_node.core.storage import HolderStore, RecordStore
from ioc_node.core.trust import Trust
from ioc_node.core.watches import WatchTable
from ioc_wire import dht as wire
from ioc_wire import limits
from ioc_wire.cid import cid_key
from ioc_wire.errors import ChainUnknown, RateLimited, Unserved, WireError

REQUESTS_PER_SECOND: Final = 5000.0
"""Of one peer, and as many at once."""
REQUESTS_PER_SECOND_ADDRESS: Final = 10000.0
"""Of all peers behind one address (see `source_name`), and as many at once."""
WRITES_PER_SECOND: Final = 200.0
"""Records of one peer; each costs a signature check of about 0.1 ms."""
WRITES_BURST: Final = 2000.0
WRITES_PER_SECOND_ADDRESS: Final = 400.0
WRITES_BURST_ADDRESS: Final = 4000.0
WRITES_PER_SECOND_ALL: Final = 4000.0
"""Of all peers together: writes leave more than half of a core to reading."""
WRITES_BURST_ALL: Final = 16000.0
CONTACT_BYTES_MAX: Final = 58
"""One packed contact: node ID, IPv6 address, port."""
HOLDERS_MAX: Final = 4


class Answering:
    """Answers requests from this node's table and stores. A client (`server` false) answers pings, and
    holders that tell of what it watches.
    """

    def __init__(
        self,
        *,
        table: RoutingTable,
        store: RecordStore,
        holders: HolderStore,
        trust: Trust,
        watches: WatchTable,
        server: bool,
        chance: Chance,
    ) -> None:
        self._table = table
        self._store = store
        self._holders = holders
        self._trust = trust
        self._watches = watches
        self._server = server
        self._chance = chance
        self._requests = RateTable(REQUESTS_PER_SECOND, REQUESTS_PER_SECOND)
        self._requests_address = RateTable(REQUESTS_PER_SECOND_ADDRESS, REQUESTS_PER_SECOND_ADDRESS)
        self._writes = RateTable(WRITES_PER_SECOND, WRITES_BURST)
        self._writes_address = RateTable(WRITES_PER_SECOND_ADDRESS, WRITES_BURST_ADDRESS)
        self._writes_all = Rate(WRITES_PER_SECOND_ALL, WRITES_BURST_ALL)

    def answer(
        self, session: Session, request: wire.Request, now: float, unix: float, out: Outbox
    ) -> wire.Answer:
        """The answer to a verified peer's request; a fault becomes a `Refusal`."""
        try:
            self._admit_request(session, now)
            if isinstance(request, wire.Ping):
                return wire.Pong(request.request, wire.pack_host(session.address[0]), session.address[1])
            if not self._server and not isinstance(request, wire.Changed):
                raise Unserved("this node is a client of the DHT")
            if isinstance(request, wire.Get):
                return self._get(request, unix)
            if isinstance(request, wire.FindNode):
                nodes = self._nearest(request.target, limits.REPLICATION)
                return wire.Nodes(request.request, nodes, len(self._table))
            return self._answer_rarer(session, request, now, unix, out)
        except WireError as error:
            return wire.refusal(request.request, error)

    def _answer_rarer(
        self, session: Session, request: wire.Request, now: float, unix: float, out: Outbox
    ) -> wire.Answer:
        if isinstance(request, wire.GetServers):
            page = self._table.after(request.after, limits.REPLICATION)
            return wire.Nodes(request.request, tuple(peer.packed for peer in page), len(self._table))
        if isinstance(request, wire.GetChain):
            chain = self._trust.chain(request.chain_hash)
            if chain is None:
                raise ChainUnknown("ask the one who gave its hash")
            return wire.ChainValue(request.request, chain)
        if isinstance(request, wire.GetHolders):
            return self._get_holders(request, unix)
        if isinstance(request, wire.Watch):
            return self._watches.take(session, request, now)
        if isinstance(request, wire.PutMany):
            return self._keep_many(session, request, now, unix, out)
        self._admit_write(session, now)
        if isinstance(request, wire.Changed):
            return self._watches.on_changed(session, request, now, out)
        if isinstance(request, wire.Put):
            self.keep(request, unix, out)
        elif isinstance(request, wire.PutChain):
            self._trust.learn(request.chain, unix=unix)
        elif isinstance(request, wire.Announce):
            self._holders.put(request.holder, self._trust.check_holder(request.holder, unix=unix), unix)
        else:
            raise Unserved(f"{type(request).__name__} is not served here")
        return wire.Stored(request.request)

    def _admit_request(self, session: Session, now: float) -> None:
        """Count a request; raises `RateLimited`."""
        source = source_name(session.address[0])
        if not self._requests.take(session.node_id, now):
            raise RateLimited(f"{REQUESTS_PER_SECOND:.0f} requests a second from one peer")
        if source is not None and not self._requests_address.take(source, now):
            raise RateLimited(f"{REQUESTS_PER_SECOND_ADDRESS:.0f} requests a second from one address")

    def _admit_write(self, session: Session, now: float) -> None:
        """Count a write, the peer's own limit first: who is over that uses up nobody else's. Raises
        `RateLimited`.
        """
        source = source_name(session.address[0])
        if not self._writes.take(session.node_id, now):
            raise RateLimited(f"{WRITES_PER_SECOND:.0f} writes a second from one peer")
        if source is not None and not self._writes_address.take(source, now):
            raise RateLimited(f"{WRITES_PER_SECOND_ADDRESS:.0f} writes a second from one address")
        if not self._writes_all.take(now):
            raise RateLimited(f"{WRITES_PER_SECOND_ALL:.0f} writes a second from everybody")

    def _keep_many(
        self, session: Session, request: wire.PutMany, now: float, unix: float, out: Outbox
    ) -> wire.StoredMany:
        """Each record for itself: a bad one among them does not hurt the others."""
        codes = []
        for record in request.records:
            try:
                self._admit_write(session, now)
                self.keep(wire.Put(request.request, record, request.chain_hash), unix, out)
            except WireError as error:
                codes.append(error.code)
            else:
                codes.append(0)
        return wire.StoredMany(request.request, tuple(codes))

    def keep(self, request: wire.Put, unix: float, out: Outbox) -> None:
        """Verify and store a record or a tombstone; raises its fault."""
        record, _ = self._trust.check_record(request.record, request.chain_hash, unix=unix)
        key = cid_key(record.cid)
        out.extend(map(RecordDropped, self._store.put(key, request.record, record, request.chain_hash, unix)))
        chain = self._trust.chain(request.chain_hash) if request.chain_hash is not None else None
        out.append(RecordStored(key, request.record, chain or ()))
        self._watches.changed(key, unix)

    def _get(self, request: wire.Get, unix: float) -> wire.Value:
        held = self._store.get(request.key, unix)
        if held is None or held.order[0] < request.min_version:
            return wire.Value(request.request, None, None, self._nearest(request.key, request.nodes_max))
        room = wire.PLAINTEXT_BYTES_MAX - 64 - held.size
        fits = min(request.nodes_max, room // CONTACT_BYTES_MAX)
        return wire.Value(request.request, held.signed, held.chain_hash, self._nearest(request.key, fits))

    def _get_holders(self, request: wire.GetHolders, unix: float) -> wire.Holders:
        found, total = self._holders.get(request.blob, unix, HOLDERS_MAX, self._chance)
        room = wire.PLAINTEXT_BYTES_MAX - 64 - sum(len(h.payload) + 128 for h in found)
        nodes = self._nearest(request.blob, max(0, min(limits.REPLICATION, room // CONTACT_BYTES_MAX)))
        return wire.Holders(request.request, tuple(found), total, nodes)

    def _nearest(self, target: bytes, count: int) -> tuple[wire.Contact, ...]:
        if count <= 0:
            return ()
        return tuple([peer.packed for peer in self._table.replicas(int.from_bytes(target, "big"), count)])
