"""Storing at the servers nearest to a key: records and announcements of blobs.

With a full view of the network the nearest servers are known; otherwise a lookup finds them. All are asked at
once. One that does not answer is replaced by the next nearest. A put ends when all have answered, or
`GRACE_SECONDS` after the first stored it: one dead server does not hold up the others, and is replaced after that.
"""

from typing import TYPE_CHECKING, Final

from ioc_node.core.diversity import spread
from ioc_node.core.events import AnnounceStarted, Fault, PutReport, PutStarted
from ioc_node.core.operations import Operation, Search
from ioc_node.core.routing import Contact
from ioc_node.core.session import Outbox
from ioc_node.errors import NodeError, PeerUnreachable
from ioc_wire import dht as wire
from ioc_wire import limits
from ioc_wire.authority import chain_hash
from ioc_wire.cid import cid_key
from ioc_wire.codec import decode, encode
from ioc_wire.dht import AnyMessage
from ioc_wire.errors import ChainUnknown, Malformed, TooLarge, WireError
from ioc_wire.records import named_payload
from ioc_wire.signed import Signed

if TYPE_CHECKING:
    from ioc_node.core.dht import DhtMachine

GRACE_SECONDS: Final = 1.0


class StoreOperation(Operation):
    """Store something at the servers nearest to `target`."""

    def __init__(self, dht: "DhtMachine", number: int, now: float, target: bytes) -> None:
        super().__init__(dht, number, now)
        self.target = target
        self.stored: list[Contact] = []
        self.refused: list[tuple[Contact, Fault]] = []
        self.waiting: dict[bytes, Contact] = {}
        self.spare: list[Contact] = []
        self.reported = False

    def message(self, number: int) -> AnyMessage:
        """The write, with this request number."""
        raise NotImplementedError

    def store_here(self, now: float, out: Outbox) -> None:
        """Store it in this node too; raises the fault."""
        raise NotImplementedError

    def retry(self, contact: Contact, error: WireError, now: float, out: Outbox) -> bool:
        """Whether something can be done about a refusal, and is."""
        return False

    def start(self, now: float, out: Outbox) -> None:
        if self.dht.upkeep.has_full_view():
            point = int.from_bytes(self.target, "big")
            nearest = self.dht.table.replicas(point, 2 * limits.REPLICATION)
            self.write([peer.contact for peer in nearest], now, out)
        else:
            self.dht.begin(_StoreLookup(self.dht, self, now), now, out)

    def write(self, nearest: list[Contact], now: float, out: Outbox) -> None:
        """Ask the nearest servers, ourselves among them where we are one."""
        count = limits.REPLICATION
        if self.dht.server and self._are_we_near(nearest):
            count -= 1
            try:
                self.store_here(now, out)
                self.stored.append(self.dht.contact)
            except WireError as error:
                self.refused.append((self.dht.contact, error))
        self.spare = nearest[count:]
        for contact in nearest[:count]:
            self.waiting[contact.node_id] = contact
            self.ask(contact, self.message, self.on_answer, now, out)
        if not self.waiting:
            self.conclude(now, out)

    def _are_we_near(self, nearest: list[Contact]) -> bool:
        dht, point = self.dht, int.from_bytes(self.target, "big")
        ranked = sorted(
            [dht.contact, *nearest], key=lambda contact: int.from_bytes(contact.node_id, "big") ^ point
        )
        return dht.contact in spread(ranked, limits.REPLICATION, dht.labels_of)

    def on_answer(self, contact: Contact, answer: AnyMessage | Fault, now: float, out: Outbox) -> None:
        if self.ended and not self.reported:
            return
        if isinstance(answer, wire.Stored):
            if not self.stored:
                self.dht.after(GRACE_SECONDS, self.conclude, now)
            self.stored.append(contact)
        elif isinstance(answer, WireError):
            if self.retry(contact, answer, now, out):
                return
            self.refused.append((contact, answer))
        elif isinstance(answer, NodeError):
            self.refused.append((contact, answer))
            if self.spare:
                instead = self.spare.pop(0)
                self.waiting[instead.node_id] = instead
                self.ask(instead, self.message, self.on_answer, now, out)
        else:
            self.refused.append((contact, Malformed("another answer than STORED")))
        self.waiting.pop(contact.node_id, None)
        if not self.waiting:
            self.conclude(now, out)

    def conclude(self, now: float, out: Outbox) -> None:
        """Report who stored it and who did not. Who has not answered by then is still waited for, and replaced if it
        is dead: finding that out takes longer than the grace.
        """
        if self.ended:
            return
        if not self.stored and not self.refused:
            self.finish(PeerUnreachable("no server of the DHT is known: join the network first"), out)
            return
        self.trace.ending = self.trace.ending or "completed"
        seconds = now - self.began
        unanswered = list(self.waiting.values())
        self.reported = True
        report = PutReport(list(self.stored), list(self.refused), unanswered, seconds, self.trace)
        self.finish(report, out)


class _StoreLookup(Search):
    """Finds where to store. Servers tell of the twenty that they know nearest to the key; where some of those are dead,
    living ones a little farther away were not told. So then the far edge of what was found is asked about too, once.
    """

    def __init__(self, dht: "DhtMachine", owner: StoreOperation, now: float) -> None:
        super().__init__(dht, dht.own_number(), now, owner.target)
        self.owner = owner
        self.edge: bytes | None = None
        self.edge_open = 0

    def settle(self, now: float, out: Outbox) -> None:
        if self.edge_open:
            return
        found = self.lookup.nearest()
        if self.edge is None and found and self.lookup.has_dead():
            self._ask_edge(found, now, out)
            return
        self.close()
        self.owner.trace.hops.extend(self.trace.hops)
        self.owner.trace.ending = self.trace.ending
        self.owner.write(found, now, out)

    def _ask_edge(self, found: list[Contact], now: float, out: Outbox) -> None:
        point = int.from_bytes(self.target, "big")
        self.edge = edge = max(
            (c.node_id for c in found), key=lambda node: int.from_bytes(node, "big") ^ point
        )
        rim = int.from_bytes(edge, "big")
        found = sorted(found, key=lambda contact: int.from_bytes(contact.node_id, "big") ^ rim)
        for contact in found[: limits.PARALLELISM]:
            self.edge_open += 1
            depth = self.lookup.hop(contact.node_id)
            self.ask(contact, lambda number: wire.FindNode(number, edge), self._on_edge, now, out, depth)

    def _on_edge(self, contact: Contact, answer: AnyMessage | Fault, now: float, out: Outbox) -> None:
        self.edge_open -= 1
        if self.ended:
            return
        if isinstance(answer, wire.Nodes):
            self.hear(contact, answer.nodes, now)
        if not self.edge_open:
            self.lookup.ending = None
            self.advance(now, out)


class PutOperation(StoreOperation):
    """Store a record or a tombstone. Whoever does not know its chain is sent that first, once."""

    def __init__(self, dht: "DhtMachine", event: PutStarted, now: float) -> None:
        if len(encode(event.record)) > wire.PLAINTEXT_BYTES_MAX - 64:
            raise TooLarge(f"record: at most {limits.RECORD_BYTES_MAX} bytes are allowed")
        cid = named_payload(event.record).cid
        super().__init__(dht, event.operation, now, cid_key(cid))
        self.record = event.record
        self.chain = event.chain
        self.chain_hash = chain_hash(event.chain) if event.chain else None
        self.sent_chain: set[bytes] = set()

    def message(self, number: int) -> AnyMessage:
        return wire.Put(number, self.record, self.chain_hash)

    def store_here(self, now: float, out: Outbox) -> None:
        if self.chain:
            self.dht.trust.learn(self.chain, unix=self.dht.unix(now))
        self.dht.answering.keep(wire.Put(0, self.record, self.chain_hash), self.dht.unix(now), out)

    def retry(self, contact: Contact, error: WireError, now: float, out: Outbox) -> bool:
        if not isinstance(error, ChainUnknown) or not self.chain or contact.node_id in self.sent_chain:
            return False
        self.sent_chain.add(contact.node_id)
        self.ask(contact, lambda number: wire.PutChain(number, self.chain), self._on_chain, now, out)
        return True

    def _on_chain(self, contact: Contact, answer: AnyMessage | Fault, now: float, out: Outbox) -> None:
        if isinstance(answer, wire.Stored) and (self.reported or not self.ended):
            self.ask(contact, self.message, self.on_answer, now, out)
        else:
            self.on_answer(contact, answer, now, out)


class AnnounceOperation(StoreOperation):
    """Tell that we hold a blob."""

    def __init__(self, dht: "DhtMachine", event: AnnounceStarted, now: float) -> None:
        holder = decode(event.holder.payload, wire.HolderRecord)
        super().__init__(dht, event.operation, now, holder.blob)
        self.holder = event.holder

    def message(self, number: int) -> AnyMessage:
        return wire.Announce(number, self.holder)

    def store_here(self, now: float, out: Outbox) -> None:
        unix = self.dht.unix(now)
        self.dht.holders.put(self.holder, wire.verify_holder(self.holder, now=unix), unix)


class _Correction(Operation):
    """Gives one server a record that it should have had."""

    def __init__(
        self, dht: "DhtMachine", now: float, contact: Contact, signed: Signed, name: bytes | None
    ) -> None:
        super().__init__(dht, dht.own_number(), now)
        self.contact = contact
        self.signed = signed
        self.chain_hash = name
        self.sent_chain = False

    def start(self, now: float, out: Outbox) -> None:
        self.ask(self.contact, self._put, self._on_answer, now, out)

    def _put(self, number: int) -> AnyMessage:
        return wire.Put(number, self.signed, self.chain_hash)

    def _on_answer(self, contact: Contact, answer: AnyMessage | Fault, now: float, out: Outbox) -> None:
        chain = self.dht.trust.chain(self.chain_hash) if self.chain_hash is not None else None
        if isinstance(answer, ChainUnknown) and chain and not self.sent_chain:
            self.sent_chain = True
            self.ask(contact, lambda number: wire.PutChain(number, chain), self._on_chain, now, out)
        else:
            self.dht.corrected += isinstance(answer, wire.Stored)
            self.close()

    def _on_chain(self, contact: Contact, answer: AnyMessage | Fault, now: float, out: Outbox) -> None:
        if isinstance(answer, wire.Stored):
            self.ask(contact, self._put, self._on_answer, now, out)
        else:
            self.close()


def correct(
    dht: "DhtMachine", contact: Contact, signed: Signed, name: bytes | None, now: float, out: Outbox
) -> None:
    """Bring one server up to date, in the background, if it is among those that should hold the record."""
    point = int.from_bytes(cid_key(named_payload(signed).cid), "big")
    if any(peer.node_id == contact.node_id for peer in dht.table.replicas(point, limits.REPLICATION)):
        dht.begin(_Correction(dht, now, contact, signed, name), now, out)
