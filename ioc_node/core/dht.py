"""The DHT machine: sessions, routing, storage and operations put together behind `handle` and `deadline`.

Theory of operation. Datagrams go to `Sessions`, which gives back messages of peers that proved who they are
and where. A request goes to `Answering`, an answer through `Exchange` to whoever asked. Operations (get, put,
join, …) are begun by events and end with one `OperationEnded`; `Upkeep` begins some of its own. All waiting
is in two heaps: the exchange's time-outs and `after`. A server enters the routing table when it has answered
us or proved its address in a handshake.

`now` is seconds of any steady clock; seconds since 1970, which records carry, are `now + unix_offset`.
"""

import itertools
from collections.abc import Iterable
from typing import Final, cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.core.answering import Answering
from ioc_node.core.challenge import Address
from ioc_node.core.chance import Chance
from ioc_node.core.diversity import Labels
from ioc_node.core.ending import end_refused, end_trust
from ioc_node.core.events import (
    AnnounceStarted,
    ClockRead,
    DatagramReceived,
    Effect,
    Event,
    FindStarted,
    GetStarted,
    HoldersStarted,
    JoinStarted,
    KeyRevoked,
    OperationCancelled,
    OperationEnded,
    PeerVerified,
    PingStarted,
    PutStarted,
    RecordsRestored,
    SweepStarted,
    Tick,
    WatchStarted,
)
from ioc_node.core.exchange import Exchange
from ioc_node.core.getting import GetOperation, HoldersOperation
from ioc_node.core.operations import FindOperation, JoinOperation, Operation, PingOperation
from ioc_node.core.putting import AnnounceOperation, PutOperation
from ioc_node.core.routing import FULL_TABLE_SERVERS_MAX, Contact, RoutingTable, labels_of, usable_contacts
from ioc_node.core.session import Challenged, Failed, Lost, Opened, Outbox, Received, Session
from ioc_node.core.sessions import Sessions
from ioc_node.core.storage import RECORDS_MAX, RECORDS_PER_PUBLISHER_MAX, HolderStore, RecordStore
from ioc_node.core.sweeping import SweepOperation
from ioc_node.core.timers import Timed, Timer, Timers
from ioc_node.core.trust import Trust
from ioc_node.core.upkeep import Upkeep
from ioc_node.core.watches import WatchTable
from ioc_node.core.watching import WatchOperation
from ioc_wire import dht as wire
from ioc_wire.authority import Delegation
from ioc_wire.codec import decode
from ioc_wire.errors import RateLimited, UnknownType, WireError
from ioc_wire.signed import Signed

OPERATIONS_MAX: Final = 4096


class DhtMachine:
    """One node of the DHT. `server` false makes it a client: it asks, and never enters anybody's table. `diverse`
    spreads replicas over owners, `ipv6` tells whether the socket can send to such addresses.
    """

    def __init__(
        self,
        *,
        key: Ed25519PrivateKey,
        trust: Trust,
        chance: Chance,
        unix_offset: float,
        server: bool,
        chain: tuple[Signed, ...] = (),
        address: Address = ("", 0),
        full_max: int = FULL_TABLE_SERVERS_MAX,
        diverse: bool = True,
        ipv6: bool = True,
        records_max: int = RECORDS_MAX,
        records_per_publisher_max: int = RECORDS_PER_PUBLISHER_MAX,
        now: float = 0.0,
    ) -> None:
        self.server = server
        self.trust = trust
        self.chance = chance
        self.unix_offset = unix_offset
        self.diverse = diverse
        self._ipv6 = ipv6
        self.rejected = self.corrected = self.malformed = 0
        self.sessions = Sessions(
            key=key, trust=trust, chain=chain, server=server, chance=chance, unix_offset=unix_offset
        )
        self.node_id = self.sessions.node_id
        self.contact = Contact(self.node_id, address)
        self._operator = decode(chain[-1].payload, Delegation).prefix if trust.certified and chain else None
        self.table = RoutingTable(
            self.node_id, capped=not trust.certified, diverse=diverse, full_max=full_max
        )
        self.store = RecordStore(
            self.node_id, records_max=records_max, per_publisher_max=records_per_publisher_max
        )
        self.holders = HolderStore()
        self.upkeep = Upkeep(self)
        self.exchange = Exchange(self.sessions, chance, self.upkeep.on_silent)
        self.watches = WatchTable(self)
        self.answering = Answering(
            table=self.table,
            store=self.store,
            holders=self.holders,
            trust=trust,
            watches=self.watches,
            server=server,
            chance=chance,
        )
        self.operations: dict[int, Operation] = {}
        self._own_numbers = itertools.count(-1, -1)
        self._timers = Timers()
        self.upkeep.start(now)

    # -- the machine

    def handle(self, event: Event, *, now: float) -> list[Effect]:
        """Take one event in; return the commands that follow from it, in order."""
        out: Outbox = []
        if type(event) is DatagramReceived:
            self._on_datagram(event.data, event.address, now, out)
        elif type(event) is Tick:
            self._on_tick(now, out)
        elif type(event) is OperationCancelled:
            operation = self.operations.get(event.operation)
            if operation is not None:
                operation.cancel(now, out)
        elif type(event) is ClockRead:
            self.unix_offset = event.unix - now
            self.sessions.set_clock(self.unix_offset)
        elif type(event) is KeyRevoked:
            end_trust(self, event.ended, out)
        elif type(event) is RecordsRestored:
            self._restore(event, now, out)
        else:
            self._start(event, now, out)
        return out

    def deadline(self) -> float:
        """When the next tick is due; `math.inf` when idle."""
        own, exchange = self._timers.deadline(), self.exchange.deadline()
        return own if own < exchange else exchange

    def unix(self, now: float) -> float:
        """Seconds since 1970."""
        return now + self.unix_offset

    # -- for the machine's parts

    def own_number(self) -> int:
        """A number for an operation of the machine itself."""
        return next(self._own_numbers)

    def after(self, seconds: float, call: Timed, now: float) -> Timer:
        """Call back when this much time has passed."""
        return self._timers.add(now + seconds, call)

    def begin(self, operation: Operation, now: float, out: Outbox) -> None:
        """Run an operation from here on."""
        self.operations[operation.number] = operation
        operation.start(now, out)

    def usable(self, told: Iterable[wire.Contact], teller: Contact, now: float) -> list[Contact]:
        """The contacts among those told that we may and can reach, and where not nobody answered lately."""
        contacts = self.upkeep.audible(usable_contacts(told, teller.address), now)
        return contacts if self._ipv6 else [each for each in contacts if ":" not in each.address[0]]

    def labels_of(self, contact: Contact) -> Labels:
        """By what a server may be one owner's with others; the operator is known of those we have a session with."""
        if not self.diverse:
            return ()
        operator = self._operator if contact is self.contact else self.sessions.operator(contact.node_id)
        return labels_of(contact.address[0], operator)

    def confirm(self, contact: Contact, now: float, out: Outbox) -> None:
        """A server that has a session with us answered at this address."""
        session = self.sessions.with_node(contact.node_id, now)
        if session is not None and session.is_server:
            self._enter(session, now, out)

    # -- events

    def _start(self, event: Event, now: float, out: Outbox) -> None:
        number = event.operation  # type: ignore[union-attr]
        if len(self.operations) >= OPERATIONS_MAX:
            out.append(
                OperationEnded(number, RateLimited(f"{OPERATIONS_MAX} operations of this node are open"))
            )
            return
        try:
            operation = self._operation(event, now)
        except WireError as error:
            out.append(OperationEnded(number, error))
            return
        self.begin(operation, now, out)

    def _operation(self, event: Event, now: float) -> Operation:
        if isinstance(event, GetStarted):
            return GetOperation(self, event, now)
        if isinstance(event, PutStarted):
            return PutOperation(self, event, now)
        if isinstance(event, WatchStarted):
            return WatchOperation(self, event, now)
        if isinstance(event, SweepStarted):
            return SweepOperation(self, event, now)
        if isinstance(event, JoinStarted):
            return JoinOperation(self, event.operation, now, event.addresses)
        if isinstance(event, FindStarted):
            return FindOperation(self, event.operation, now, event.target)
        if isinstance(event, AnnounceStarted):
            return AnnounceOperation(self, event, now)
        if isinstance(event, HoldersStarted):
            return HoldersOperation(self, event, now)
        if isinstance(event, PingStarted):
            return PingOperation(self, event.operation, now, event.address, event.node_id)
        raise TypeError(f"{type(event).__name__} is not an event of this machine")

    def _restore(self, event: RecordsRestored, now: float, out: Outbox) -> None:
        for record, chain in event.records:
            try:
                name = self.trust.learn(chain, unix=self.unix(now))[0] if chain else None
                self.answering.keep(wire.Put(0, record, name), self.unix(now), out)
            except WireError:
                self.rejected += 1

    def _on_tick(self, now: float, out: Outbox) -> None:
        self.exchange.tick(now, out)
        for call in self._timers.due(now):
            call(now, out)

    def _on_datagram(self, data: bytes, address: Address, now: float, out: Outbox) -> None:
        event = self.sessions.receive(data, address, now, out)
        if event is None:
            return
        if type(event) is Received:
            if event.session.unaccepted is not None:
                self._on_handshake(event.session, event.data, now, out)
            else:
                self._on_message(event.session, event.data, now, out)
        elif type(event) is Opened:
            self._enter(event.session, now, out)
            self.exchange.on_opened(event, now, out)
            if event.data:
                self._on_message(event.session, event.data, now, out)
        elif type(event) is Challenged:
            self.exchange.on_challenged(event, now)
        elif type(event) is Failed:
            end_refused(self, event, out)
            self.exchange.on_failed(event, now, out)
        elif type(event) is Lost:
            self.exchange.on_lost(event, now, out)

    def _on_handshake(self, session: Session, data: bytes, now: float, out: Outbox) -> None:
        """A peer proved its key and its address to us; the ACCEPT carries the answer to its first message."""
        if data:
            self._on_message(session, data, now, out)
        if session.unaccepted is not None:
            self.sessions.send(session, b"", out)
        self._enter(session, now, out)

    def _on_message(self, session: Session, data: bytes, now: float, out: Outbox) -> None:
        try:
            message = wire.decode_message(data)
        except WireError:
            self.malformed += 1
            request = wire.unknown_request(data)
            if request is not None:
                refusal = wire.refusal(request, UnknownType("this node does not know that message"))
                self.sessions.send(session, wire.encode_message(refusal), out)
            return
        if type(message) in wire.REQUEST_TYPES:
            answer = self.answering.answer(
                session, cast(wire.Request, message), now, now + self.unix_offset, out
            )
            self.sessions.send(session, wire.encode_message(answer), out)
        else:
            self.exchange.on_answer(session, message, now, out)

    def _enter(self, session: Session, now: float, out: Outbox) -> None:
        if not session.is_server:
            return
        contact = Contact(session.node_id, session.address)
        known = contact.node_id in self.table
        if self.table.add(contact, now, session.operator) and not known:
            out.append(PeerVerified(contact))
            self.upkeep.on_verified(contact.node_id, now)
