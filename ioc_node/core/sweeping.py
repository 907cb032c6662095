"""Storing many records in one go: in order of key, with few lookups, several records in each message.

A record goes to the same servers as with a put. But which those are is mostly known from the keys before
(`atlas`), and what belongs at one server is gathered and sent as `PutMany`, as much as fits into a datagram. A chain
is sent once to each server that does not know it. A server that does not answer, or takes nothing at all, is
replaced by the next nearest for each of its records; one that limits us gets a rest and then the remainder. Work
is cut into turns: neither placing thousands of records nor storing our own share of them blocks the node.
"""

import math
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final

from ioc_node.core.atlas import Atlas
from ioc_node.core.events import Chain, Fault, SweepReport, SweepStarted
from ioc_node.core.loads import Item, Lane, Server
from ioc_node.core.operations import Operation, Search
from ioc_node.core.routing import Contact
from ioc_node.core.session import Outbox
from ioc_node.errors import NodeError, PeerUnreachable
from ioc_wire import dht as wire
from ioc_wire import limits
from ioc_wire.authority import chain_hash
from ioc_wire.dht import AnyMessage
from ioc_wire.errors import ChainUnknown, Malformed, RateLimited, TooLarge, WireError, error_of

if TYPE_CHECKING:
    from ioc_node.core.dht import DhtMachine

SWEEP_RECORDS_MAX: Final = 4096
LANES: Final = 8
"""Stretches of keys that are walked at once while lookups are needed."""
TURN_RECORDS: Final = 48
"""Records placed in one turn: about 2 ms."""
TURN_SECONDS: Final = 0.001
REQUESTS_MAX: Final = 64
REQUESTS_PER_SERVER_MAX: Final = 2
MOVES_MAX: Final = 8
"""Servers that may fail for one record before nobody else is tried."""
REST_SECONDS_FIRST: Final = 1.0
REST_SECONDS_MAX: Final = 8.0
RESTS_MAX: Final = 8
"""In a row, without one record taken in between."""
RESTS_ALL_MAX: Final = 64
"""In one sweep: who takes next to nothing does not hold up the others for longer than about a minute."""
VAIN_LOOKUPS_MAX: Final = 3
REFUSED_MAX: Final = 256


class SweepOperation(Operation):
    """Store many records. Raises `TooLarge` for more than `SWEEP_RECORDS_MAX`; what is no record, or fits into no
    datagram, is refused alone.
    """

    def __init__(self, dht: "DhtMachine", event: SweepStarted, now: float) -> None:
        super().__init__(dht, event.operation, now)
        if len(event.records) > SWEEP_RECORDS_MAX:
            raise TooLarge(f"a sweep of {len(event.records)} records, at most {SWEEP_RECORDS_MAX} at once")
        self.given = deque(event.records)
        self.chains: dict[bytes, Chain] = {}
        self.items: list[Item] = []
        self.atlas = Atlas(dht.labels_of)
        self.lanes: list[Lane] = []
        self.servers: dict[bytes, Server] = {}
        self.ready: deque[Server] = deque()
        self.moving: deque[Item] = deque()
        self.refused: list[tuple[str, Fault]] = []
        self.open = 0
        """Records at servers that have not come to an end, `requests` that are under way."""
        self.requests = self.lookups = self.vain = self.messages = 0
        self.is_turning = self.is_prepared = False

    def start(self, now: float, out: Outbox) -> None:
        self._turn(now, out)

    def _prepare(self, left: int) -> int:
        """Look at some of the records given, and begin to place them when all were looked at; returns what is left
        of the turn.
        """
        while self.given and left:
            left -= 1
            record, chain = self.given.popleft()
            name = chain_hash(chain) if chain else None
            if name is not None:
                self.chains[name] = chain
            try:
                self.items.append(Item(record, name))
            except WireError as error:
                self._refuse("?", error)
        if not self.given:
            self.items.sort(key=lambda item: item.key)
            self._begin()
        return left

    def _begin(self) -> None:
        self.is_prepared = True
        known = [peer.contact for peer in self.dht.table.peers()]
        if self.dht.server:
            known.append(self.dht.contact)
        for contact in known:
            self.atlas.add(contact)
        whole = self.dht.upkeep.has_full_view()
        if whole:
            self.atlas.learn(0, (), whole=True)
        stride = max(1, math.ceil(len(self.items) / (1 if whole else LANES)))
        self.lanes = [
            Lane(self.items[first : first + stride], self.atlas)
            for first in range(0, len(self.items), stride)
        ]

    # -- placing

    def _turn(self, now: float, out: Outbox) -> None:
        """Place some records, then let others have the node."""
        self.is_turning = False
        if self.ended:
            return
        left = TURN_RECORDS if self.is_prepared else self._prepare(TURN_RECORDS)
        while self.moving and left:
            left -= 1
            self._move(self.moving.popleft())
        for lane in list(self.lanes):
            while left and not lane.is_waiting:
                left -= 1
                step = next(lane.steps, None)
                if step is None:
                    self.lanes.remove(lane)
                    break
                if isinstance(step, int):
                    self._look_up(lane, step, now, out)
                else:
                    self._place(*step)
        if not self.is_prepared or self.moving or any(not lane.is_waiting for lane in self.lanes):
            self._turn_soon(now)
        elif not self.lanes:
            for server in self.servers.values():
                self._offer(server)
        self._pump(now, out)

    def _turn_soon(self, now: float) -> None:
        if not self.is_turning:
            self.is_turning = True
            self.dht.after(TURN_SECONDS, self._turn, now)

    def _place(self, item: Item, servers: tuple[Contact, ...]) -> None:
        item.servers = servers
        item.wanted = len(servers)
        for contact in servers:
            self._enqueue(item, contact)

    def _move(self, item: Item) -> None:
        """One of its servers failed: the next nearest takes its place."""
        self.open -= 1
        item.moves += 1
        if item.moves > MOVES_MAX:
            return
        for contact in self.atlas.choose(item.key).servers:
            if contact not in item.servers:
                item.servers += (contact,)
                self._enqueue(item, contact)
                return

    def _enqueue(self, item: Item, contact: Contact) -> None:
        server = self.servers.get(contact.node_id)
        if server is None:
            server = self.servers[contact.node_id] = Server(contact)
        self.open += 1
        if server.gone:
            self.moving.append(item)
            return
        server.queues.setdefault(item.chain, deque()).append(item)
        self._offer(server)

    def _look_up(self, lane: Lane, target: int, now: float, out: Outbox) -> None:
        if self.vain >= VAIN_LOOKUPS_MAX or self.lookups >= len(self.items):
            # Lookups do not show the network whole: what is known has to do, they are no better one by one.
            self.atlas.learn(0, (), whole=True)
            lane.planner.gave_up()
            return
        self.lookups += 1
        lane.is_waiting = True
        self.dht.begin(_SweepLookup(self.dht, self, lane, target, now), now, out)

    def found(self, lane: Lane, target: int, search: "_SweepLookup", now: float, out: Outbox) -> None:
        """A lookup ended."""
        self.messages += search.lookup.asked()
        lane.is_waiting = False
        if self.ended:
            return
        contacts = search.lookup.nearest()
        whole = bool(contacts) and len(self.dht.table) <= len(contacts) < limits.REPLICATION
        lane.planner.learned(target, contacts, whole=whole)
        if len(contacts) < limits.REPLICATION and not whole:
            self.vain += 1
            lane.planner.gave_up()
        self._turn_soon(now)

    # -- sending

    def _offer(self, server: Server) -> None:
        if not (server.is_queued or server.resting or server.gone or server.open >= REQUESTS_PER_SERVER_MAX):
            server.is_queued = True
            self.ready.append(server)

    def _pump(self, now: float, out: Outbox) -> None:
        """Send as much as may be under way; end when all has come to an end."""
        flush = self.is_prepared and not self.lanes and not self.moving
        while self.ready and self.requests < REQUESTS_MAX:
            server = self.ready.popleft()
            server.is_queued = False
            batch = [] if server.resting or server.gone else server.take(flush=flush)
            if batch:
                self._send(server, batch, now, out)
                self._offer(server)
        if flush and not self.open:
            self._conclude(now, out)

    def _send(self, server: Server, batch: list[Item], now: float, out: Outbox) -> None:
        server.open += 1
        self.requests += 1
        if server.contact is self.dht.contact:
            self.dht.after(TURN_SECONDS, partial(self._store_here, server, batch), now)
            return
        self.messages += 1
        records = tuple([item.record for item in batch])
        self.ask(
            server.contact,
            lambda number: wire.PutMany(number, records, batch[0].chain),
            lambda _, answer, now, out: self._on_answer(server, batch, answer, now, out),
            now,
            out,
        )

    def _store_here(self, server: Server, batch: list[Item], now: float, out: Outbox) -> None:
        codes, unix = [], self.dht.unix(now)
        for item in batch:
            try:
                if item.chain is not None:
                    self.dht.trust.learn(self.chains[item.chain], unix=unix)
                self.dht.answering.keep(wire.Put(0, item.record, item.chain), unix, out)
            except WireError as error:
                codes.append(error.code)
            else:
                codes.append(0)
        self._on_answer(server, batch, wire.StoredMany(0, tuple(codes)), now, out)

    def _on_answer(
        self, server: Server, batch: list[Item], answer: AnyMessage | Fault, now: float, out: Outbox
    ) -> None:
        server.open -= 1
        self.requests -= 1
        self.trace.hops.clear()
        if self.ended:
            return
        if isinstance(answer, wire.StoredMany) and len(answer.codes) == len(batch):
            self._settle(server, batch, answer.codes, now, out)
        elif isinstance(answer, RateLimited):
            self._settle(server, batch, (RateLimited.code,) * len(batch), now, out)
        else:
            fault = answer if isinstance(answer, (WireError, NodeError)) else Malformed("no STORED-MANY")
            self._give_up(server, batch, fault, now)
        self._offer(server)
        self._pump(now, out)

    def _settle(
        self, server: Server, batch: list[Item], codes: tuple[int, ...], now: float, out: Outbox
    ) -> None:
        again: list[Item] = []
        for item, code in zip(batch, codes, strict=True):
            chain = item.chain
            if code == RateLimited.code or (
                code == ChainUnknown.code
                and chain is not None
                and (chain in server.sending or chain not in server.sent)
            ):
                again.append(item)
            else:
                self.open -= 1
                if code == 0:
                    item.stored += 1
                else:
                    self._refuse(item.cid, error_of(code, item.cid))
        if server.gone:
            self._forward(again, now)
            return
        server.queues.setdefault(batch[0].chain, deque()).extendleft(reversed(again))
        if ChainUnknown.code in codes and again and batch[0].chain is not None:
            self._tell_chain(server, batch[0].chain, now, out)
        if RateLimited.code in codes:
            self._rest(server, now, progress=len(again) < len(batch))
        elif not again:
            server.rests = 0

    def _tell_chain(self, server: Server, name: bytes, now: float, out: Outbox) -> None:
        if name in server.sending or name in server.sent:
            return
        server.sending.add(name)
        self.messages += 1

        def answered(_: Contact, answer: AnyMessage | Fault, now: float, out: Outbox) -> None:
            server.sending.discard(name)
            self.trace.hops.clear()
            if self.ended:
                return
            if isinstance(answer, wire.Stored):
                server.sent.add(name)
            elif isinstance(answer, RateLimited):
                self._rest(server, now, progress=False)
            else:
                fault = answer if isinstance(answer, (WireError, NodeError)) else Malformed("no STORED")
                self._give_up(server, [], fault, now)
            self._offer(server)
            self._pump(now, out)

        self.ask(server.contact, lambda number: wire.PutChain(number, self.chains[name]), answered, now, out)

    def _rest(self, server: Server, now: float, *, progress: bool) -> None:
        """It takes no more at the moment."""
        server.rests = 0 if progress else server.rests + 1
        server.rests_all += 1
        if server.rests > RESTS_MAX or server.rests_all > RESTS_ALL_MAX:
            self._give_up(server, [], RateLimited(f"{server.rests_all} times in one sweep"), now)
        elif not server.resting and not server.gone:
            server.resting = True
            seconds = min(REST_SECONDS_FIRST * 2**server.rests, REST_SECONDS_MAX)
            self.dht.after(seconds, partial(self._resume, server), now)

    def _resume(self, server: Server, now: float, out: Outbox) -> None:
        server.resting = False
        if not self.ended:
            self._offer(server)
            self._pump(now, out)

    def _give_up(self, server: Server, batch: list[Item], fault: Fault, now: float) -> None:
        """Nothing can be stored there: all that waits for it goes elsewhere."""
        waiting = list(batch)
        for queue in server.queues.values():
            waiting.extend(queue)
        server.queues.clear()
        if not server.gone:
            server.gone = True
            self.atlas.discard(server.contact.node_id)
            if waiting:
                self._refuse(waiting[0].cid, fault)
        self._forward(waiting, now)

    def _forward(self, items: list[Item], now: float) -> None:
        self.moving.extend(items)
        if items:
            self._turn_soon(now)

    def _refuse(self, cid: str, fault: Fault) -> None:
        if len(self.refused) < REFUSED_MAX:
            self.refused.append((cid, fault))

    def _conclude(self, now: float, out: Outbox) -> None:
        stored = sum(item.stored > 0 for item in self.items)
        if self.items and not self.servers:
            self.finish(PeerUnreachable("no server of the DHT is known: join the network first"), out)
            return
        report = SweepReport(
            stored=stored,
            thin=sum(2 * item.stored < max(1, item.wanted) for item in self.items),
            missed=tuple([item.cid for item in self.items if not item.stored]),
            copies={item.cid: item.stored for item in self.items},
            refused=self.refused,
            lookups=self.lookups,
            messages=self.messages,
            seconds=now - self.began,
        )
        self.finish(report, out)


class _SweepLookup(Search):
    """Finds who holds the keys around one point."""

    def __init__(self, dht: "DhtMachine", owner: SweepOperation, lane: Lane, target: int, now: float) -> None:
        super().__init__(dht, dht.own_number(), now, target.to_bytes(32, "big"))
        self.owner = owner
        self.lane = lane

    def settle(self, now: float, out: Outbox) -> None:
        self.close()
        self.owner.found(self.lane, int.from_bytes(self.target, "big"), self, now, out)
