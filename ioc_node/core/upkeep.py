"""What a node does without being asked: get to know the servers, keep knowing which of them live, forget the
expired.

A small network is learnt whole: a *sweep* pages through one server's table, and whoever is new there becomes
a candidate, which is verified by a ping before it enters our table. Sweeps are repeated at growing intervals
with another server each time. A server that was silent for `LIVENESS_SECONDS` is pinged; one that does not
answer leaves the table and is tried again later, with doubled patience.
"""

from typing import TYPE_CHECKING, Final

from ioc_node.core.candidates import Candidate, Candidates
from ioc_node.core.challenge import Address
from ioc_node.core.events import Fault, PeerLost, RecordDropped
from ioc_node.core.exchange import Request
from ioc_node.core.operations import Operation, PingOperation
from ioc_node.core.routing import Contact
from ioc_node.core.session import Outbox
from ioc_node.core.silence import Silence
from ioc_node.errors import PeerUnreachable
from ioc_wire import dht as wire
from ioc_wire import limits
from ioc_wire.dht import AnyMessage

if TYPE_CHECKING:
    from ioc_node.core.dht import DhtMachine

ROUND_SECONDS: Final = 5.0
VERIFICATIONS_MAX: Final = 16
LIVENESS_SECONDS: Final = 600.0
LIVENESS_PINGS_MAX: Final = 8
SWEEP_SECONDS_SOON: Final = 0.05
"""From the first server known to the first sweep: joining, and what the node was started for, go first."""
SWEEP_SECONDS_FIRST: Final = 2.0
SWEEP_SECONDS_MAX: Final = 60.0
SWEEP_PAGES_MAX: Final = 64
SWEEP_TRIES: Final = 3
PING_SECONDS: Final = 30.0
"""A ping that is on its way is not sent again for so long."""
AGAIN_SECONDS: Final = 30.0
AGAIN_SECONDS_MAX: Final = 480.0
FAILURES_MAX: Final = 24
"""A lost server is tried again for about three hours."""


class Upkeep:
    """The background of one node."""

    def __init__(self, dht: "DhtMachine") -> None:
        self._dht = dht
        self._candidates = Candidates(capped=not dht.trust.certified)
        self._silence = Silence()
        self._verifying = 0
        self._swept = False
        self._sweeping = False
        self._interval = SWEEP_SECONDS_FIRST

    def start(self, now: float) -> None:
        self._dht.after(ROUND_SECONDS * (0.5 + self._dht.chance.random()), self._round, now)

    def has_full_view(self) -> bool:
        """Whether the table holds the whole (small) network, as far as we can know."""
        return self._swept and self._dht.table.full and not self._verifying and self._candidates.is_settled()

    def audible(self, contacts: list[Contact], now: float) -> list[Contact]:
        """Those of them that are not at an address where nobody answered lately."""
        silence = self._silence
        return [each for each in contacts if not silence.covers(each.address, now)] if silence else contacts

    def hear_of(self, contacts: list[Contact], now: float) -> None:
        """Somebody told us of these servers."""
        for contact in contacts:
            if self._dht.table.wants(contact):
                self._candidates.add(contact, now)

    def on_verified(self, node_id: bytes, now: float) -> None:
        """A server entered the table."""
        self._candidates.discard(node_id)
        peer = self._dht.table.get(node_id)
        if peer is not None:
            self._silence.discard(peer.contact.address)
        if not self._swept and not self._sweeping:
            self._sweeping = True
            self._dht.after(SWEEP_SECONDS_SOON, self._begin_sweep, now)

    def on_silent(self, node_id: bytes, address: Address, now: float, out: Outbox) -> None:
        """A node did not answer: if it was in the table, it is not any more."""
        contact = Contact(node_id, address)
        self._silence.add(address, now)
        if node_id in self._dht.table:
            spare = self._dht.table.remove(node_id)
            out.append(PeerLost(contact))
            if spare is not None:
                self._candidates.add(spare, now)
            self._candidates.add(contact, now + AGAIN_SECONDS, 1)

    def verify(self, now: float, out: Outbox) -> None:
        """Ping candidates, so many at once."""
        ready = self._candidates.take(VERIFICATIONS_MAX - self._verifying, now)
        for candidate in ready:
            address = candidate.contact.address
            if not candidate.failures and self._silence.covers(address, now):
                continue
            if self._dht.table.wants(candidate.contact):
                self._silence.add(address, now)  # until we hear otherwise
                self._verifying += 1
                self._dht.begin(_Verification(self._dht, candidate, now, self), now, out)

    def verified(self, candidate: Candidate, answered: bool, somebody: bool, now: float, out: Outbox) -> None:
        """A candidate answered, or `somebody` else did at its address, or nobody."""
        self._verifying -= 1
        if somebody:
            self._silence.discard(candidate.contact.address)
        failures = candidate.failures
        if not answered and 0 < failures < FAILURES_MAX:
            self._candidates.add(
                candidate.contact, now + min(AGAIN_SECONDS * 2**failures, AGAIN_SECONDS_MAX), failures + 1
            )
        self.verify(now, out)

    def swept(self, complete: bool, now: float, out: Outbox) -> None:
        """A sweep ended."""
        self._sweeping = False
        self._swept = self._swept or complete
        self.verify(now, out)
        self._dht.after(self._interval * (0.75 + self._dht.chance.random() / 2), self._begin_sweep, now)
        self._interval = min(2 * self._interval, SWEEP_SECONDS_MAX)

    def _begin_sweep(self, now: float, out: Outbox) -> None:
        peers = self._dht.table.peers()
        if not peers:
            self._sweeping = self._swept = False
            self._interval = SWEEP_SECONDS_FIRST
            return
        self._sweeping = True
        teller = peers[self._dht.chance.randrange(len(peers))].contact
        self._dht.begin(_Sweep(self._dht, teller, now, self), now, out)

    def _round(self, now: float, out: Outbox) -> None:
        dht = self._dht
        dht.after(ROUND_SECONDS, self._round, now)
        dht.sessions.forget_old(now)
        out.extend(map(RecordDropped, dht.store.drop_expired(dht.unix(now))))
        dht.holders.drop_expired(dht.unix(now))
        self.verify(now, out)
        pings = 0
        for peer in dht.table.peers():
            if pings == LIVENESS_PINGS_MAX:
                break
            session = dht.sessions.with_node(peer.node_id, now)
            if session is not None:
                peer.heard = max(peer.heard, session.heard)
            if now - peer.heard > LIVENESS_SECONDS:
                pings += 1
                peer.heard = now - LIVENESS_SECONDS + PING_SECONDS
                dht.begin(
                    PingOperation(dht, dht.own_number(), now, peer.contact.address, peer.node_id), now, out
                )


class _Verification(PingOperation):
    """A ping that decides whether a candidate enters the table (its session does that when it opens)."""

    def __init__(self, dht: "DhtMachine", candidate: Candidate, now: float, upkeep: Upkeep) -> None:
        contact = candidate.contact
        super().__init__(dht, dht.own_number(), now, contact.address, contact.node_id)
        self.candidate = candidate
        self.upkeep = upkeep

    def on_answer(self, answer: AnyMessage | Fault, request: Request, now: float, out: Outbox) -> None:
        super().on_answer(answer, request, now, out)
        if isinstance(answer, wire.Pong):
            self.dht.confirm(self.candidate.contact, now, out)
        somebody = not isinstance(answer, PeerUnreachable)
        self.upkeep.verified(self.candidate, isinstance(answer, wire.Pong), somebody, now, out)


class _Sweep(Operation):
    """Pages through one server's table."""

    def __init__(self, dht: "DhtMachine", teller: Contact, now: float, upkeep: Upkeep) -> None:
        super().__init__(dht, dht.own_number(), now)
        self.teller = teller
        self.upkeep = upkeep
        self.after = bytes(32)
        self.pages = 0

    def start(self, now: float, out: Outbox) -> None:
        self.pages += 1
        after = self.after
        self.ask(self.teller, lambda number: wire.GetServers(number, after), self._on_page, now, out)

    def _on_page(self, contact: Contact, answer: AnyMessage | Fault, now: float, out: Outbox) -> None:
        if not isinstance(answer, wire.Nodes):
            self._end(False, now, out)
            return
        self.upkeep.hear_of(self.dht.usable(answer.nodes, contact, now), now)
        self.upkeep.verify(now, out)
        last = answer.nodes[-1].node_id if answer.nodes else self.after
        if len(answer.nodes) < limits.REPLICATION or self.pages >= SWEEP_PAGES_MAX or last <= self.after:
            self._end(True, now, out)
        else:
            self.after = last
            self.start(now, out)

    def _end(self, complete: bool, now: float, out: Outbox) -> None:
        self.close()
        self.upkeep.swept(complete, now, out)
