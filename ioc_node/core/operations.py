"""What a node wants from the DHT: operations in the making, each with one owner and one ending.

An operation asks through its `DhtMachine`, is called back with answers, and ends exactly once with a report
or a fault. It is bounded in time because each of its requests is (`exchange`), and in requests by its lookup.
"""

from collections.abc import Callable, Iterable
from functools import cached_property, partial
from typing import TYPE_CHECKING

from ioc_node.core.events import Fault, FindReport, Hop, JoinReport, OperationEnded, PingReport, Report, Trace
from ioc_node.core.exchange import OnLate, Request
from ioc_node.core.lookup import Lookup
from ioc_node.core.routing import Contact
from ioc_node.core.session import Outbox
from ioc_node.errors import NodeError, PeerUnreachable
from ioc_wire import dht as wire
from ioc_wire import limits
from ioc_wire.dht import AnyMessage
from ioc_wire.errors import Malformed, WireError, error_of

if TYPE_CHECKING:
    from ioc_node.core.challenge import Address
    from ioc_node.core.dht import DhtMachine

Answered = Callable[[Contact, AnyMessage | Fault, float, Outbox], None]


class Operation:
    """Something begun that will end. Negative numbers are the machine's own and report to nobody."""

    def __init__(self, dht: "DhtMachine", number: int, now: float) -> None:
        self.dht = dht
        self.number = number
        self.began = now
        self.ended = False
        self.trace = Trace()

    def start(self, now: float, out: Outbox) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """End without a report."""
        self.ended = True
        self.dht.operations.pop(self.number, None)

    def cancel(self, now: float, out: Outbox) -> None:
        """End because nobody waits for it any more."""
        self.close()

    def finish(self, result: Report | Fault, out: Outbox) -> None:
        """End, once."""
        if not self.ended:
            self.close()
            if self.number >= 0:
                out.append(OperationEnded(self.number, result))

    def ask(
        self,
        contact: Contact,
        build: Callable[[int], AnyMessage],
        answered: Answered,
        now: float,
        out: Outbox,
        depth: int = 1,
        on_late: OnLate | None = None,
    ) -> None:
        """Ask one server; note in the trace what came of it and hand it on. A `Refusal` arrives as its
        fault.
        """
        exchange = self.dht.exchange
        number = exchange.number()

        def on_answer(answer: AnyMessage | Fault, request: Request, now: float, out: Outbox) -> None:
            if isinstance(answer, wire.Refusal):
                answer = error_of(answer.code, answer.detail)
            if not self.ended:
                outcome = _outcome(answer)
                self.trace.hops.append(Hop(contact, depth, now - request.began, outcome, request.tries))
            answered(contact, answer, now, out)

        exchange.ask(number, build(number), contact.node_id, contact.address, on_answer, now, out, on_late)


class Search(Operation):
    """An operation that walks towards a target. Subclasses say what to ask and what to do with an answer."""

    def __init__(
        self, dht: "DhtMachine", number: int, now: float, target: bytes, width: int = limits.PARALLELISM
    ) -> None:
        super().__init__(dht, number, now)
        self.target = target
        self.width = width

    @cached_property
    def lookup(self) -> Lookup:
        """The search itself; not begun before it is needed."""
        point = int.from_bytes(self.target, "big")
        seeds = [peer.contact for peer in self.dht.table.replicas(point, limits.REPLICATION)]
        return Lookup(point, seeds, own_id=self.dht.node_id, width=self.width, labels_of=self.dht.labels_of)

    def start(self, now: float, out: Outbox) -> None:
        self.advance(now, out)

    def request(self, number: int) -> AnyMessage:
        """The question, with this request number."""
        return wire.FindNode(number, self.target)

    def take(self, contact: Contact, answer: AnyMessage, now: float, out: Outbox) -> None:
        """A server answered with something else than a fault."""
        if isinstance(answer, wire.Nodes):
            self.hear(contact, answer.nodes, now)
        else:
            self.lookup.failed(contact.node_id)

    def settle(self, now: float, out: Outbox) -> None:
        """The lookup ended by itself."""
        raise NotImplementedError

    def advance(self, now: float, out: Outbox) -> None:
        """Ask whoever is next; settle when the lookup has ended."""
        if self.ended:
            return
        for contact in self.lookup.next():
            depth, on_late = self.lookup.hop(contact.node_id), partial(self._on_late, contact.node_id)
            self.ask(contact, self.request, self.on_answer, now, out, depth, on_late)
        if self.lookup.ending is not None:
            self.trace.ending = self.lookup.ending
            self.settle(now, out)

    def _on_late(self, node_id: bytes, now: float, out: Outbox) -> None:
        """Servers that are dead or silent on purpose must not fill all places until each is given up."""
        if not self.ended:
            self.lookup.late(node_id)
            self.advance(now, out)

    def on_answer(self, contact: Contact, answer: AnyMessage | Fault, now: float, out: Outbox) -> None:
        if self.ended:
            return
        if isinstance(answer, (WireError, NodeError)):
            self.lookup.failed(contact.node_id)
        else:
            self.take(contact, answer, now, out)
        self.advance(now, out)

    def hear(self, contact: Contact, told: Iterable[wire.Contact], now: float) -> None:
        """`contact` answered and told of these servers."""
        contacts = self.dht.usable(told, contact, now)
        self.lookup.answered(contact.node_id, contacts)
        self.dht.upkeep.hear_of(contacts, now)


class FindOperation(Search):
    """Find the servers nearest to a target."""

    def settle(self, now: float, out: Outbox) -> None:
        if self.lookup.ending == "starved":
            self.finish(PeerUnreachable(f"none of {self.lookup.asked()} servers asked answered"), out)
        else:
            self.finish(FindReport(self.lookup.nearest(), self.trace), out)


class PingOperation(Operation):
    """One round trip, to a node or to whoever is at an address."""

    def __init__(
        self, dht: "DhtMachine", number: int, now: float, address: "Address", node_id: bytes | None
    ) -> None:
        super().__init__(dht, number, now)
        self.address = address
        self.expected = node_id

    def start(self, now: float, out: Outbox) -> None:
        number = self.dht.exchange.number()
        ping = wire.Ping(number)
        self.dht.exchange.ask(number, ping, self.expected, self.address, self.on_answer, now, out)

    def on_answer(self, answer: AnyMessage | Fault, request: Request, now: float, out: Outbox) -> None:
        result: Report | Fault
        if isinstance(answer, wire.Pong) and request.node_id is not None:
            try:
                host = wire.unpack_host(answer.host)
                contact = Contact(request.node_id, self.address)
                result = PingReport(contact, now - request.sent, (host, answer.port))
            except Malformed as error:
                result = error
        elif isinstance(answer, wire.Refusal):
            result = error_of(answer.code, answer.detail)
        elif isinstance(answer, (WireError, NodeError)):
            result = answer
        else:
            result = Malformed("another answer than PONG")
        self.finish(result, out)


class JoinOperation(Operation):
    """Reach the bootstrap addresses, and look up our own ID as soon as the first of them answered."""

    def __init__(self, dht: "DhtMachine", number: int, now: float, addresses: "tuple[Address, ...]") -> None:
        super().__init__(dht, number, now)
        self.addresses = addresses
        self.reached = 0
        self.failed: list[tuple[Address, Fault]] = []

    def start(self, now: float, out: Outbox) -> None:
        for address in self.addresses:
            number = self.dht.exchange.number()
            self.dht.exchange.ask(number, wire.Ping(number), None, address, self.on_answer, now, out)
        if not self.addresses:
            self.look_up(now, out)

    def on_answer(self, answer: AnyMessage | Fault, request: Request, now: float, out: Outbox) -> None:
        if isinstance(answer, wire.Refusal):
            answer = error_of(answer.code, answer.detail)
        if isinstance(answer, (WireError, NodeError)):
            self.failed.append((request.address, answer))
            if len(self.failed) == len(self.addresses):
                self.finish(JoinReport(0, self.failed, len(self.dht.table)), out)
            return
        self.reached += 1
        if self.reached == 1:
            self.look_up(now, out)

    def look_up(self, now: float, out: Outbox) -> None:
        """Find our neighbours; whoever is asked on the way learns of us."""
        self.dht.begin(_SelfLookup(self.dht, self), now, out)


class _SelfLookup(Search):
    def __init__(self, dht: "DhtMachine", join: JoinOperation) -> None:
        super().__init__(dht, dht.own_number(), join.began, dht.node_id)
        self.join = join

    def settle(self, now: float, out: Outbox) -> None:
        self.close()
        self.join.finish(JoinReport(self.join.reached, self.join.failed, len(self.dht.table)), out)


def _outcome(answer: AnyMessage | Fault) -> str:
    """What a trace says of an answer."""
    if isinstance(answer, wire.Value):
        if answer.record is not None:
            return answer.record.kind
        return f"not held, {len(answer.nodes)} servers told"
    if isinstance(answer, wire.Nodes):
        return f"{len(answer.nodes)} servers told"
    if isinstance(answer, wire.Holders):
        return f"{answer.total} holders, {len(answer.nodes)} servers told"
    return str(answer) if isinstance(answer, (WireError, NodeError)) else type(answer).__name__.lower()
