"""Finding what others stored: one record by its identifier, or the holders of a blob.

A get first asks as many servers as it wants answers from, mostly one: the quickest of those that should hold the
record. If one of them does not hold it, or is slow, the search widens to `PARALLELISM` servers at once. The first
`answers` valid records end it, the newest of them is the result, and servers that answered with less are corrected
in the background. A tombstone is an answer like a record: where it is the newest, the get ends with `Withdrawn`.
"""

import heapq
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from ioc_node.core.events import Fault, GetReport, GetStarted, HoldersReport, HoldersStarted, Hop
from ioc_node.core.operations import Search
from ioc_node.core.putting import correct
from ioc_node.core.routing import Contact
from ioc_node.core.session import Outbox
from ioc_node.core.timers import Timer
from ioc_wire import dht as wire
from ioc_wire import limits
from ioc_wire.bulk import format_blob_id
from ioc_wire.cid import cid_key
from ioc_wire.dht import AnyMessage, HolderRecord
from ioc_wire.errors import BadIdentifier, ChainUnknown, NotFound, OlderVersion, WireError, Withdrawn
from ioc_wire.records import NamedRecord, Tombstone, named_payload
from ioc_wire.signed import Signed

if TYPE_CHECKING:
    from ioc_node.core.dht import DhtMachine

LIKELY: Final = 8
"""How many of the nearest servers the quickest is chosen from."""
HEDGE_SECONDS_MIN: Final = 0.03
HEDGE_SECONDS_UNKNOWN: Final = 0.2
CORRECTIONS_MAX: Final = 8
HOLDERS_ENOUGH: Final = 16
SUSPICIOUS_COUNT: Final = 2 * limits.REPLICATION
"""So many servers must lack a record before it is said not to exist: where half of all servers tell of each other
alone, the nearest twenty may all be theirs.
"""


class Found:
    """A valid record or tombstone and who gave it."""

    __slots__ = ("chain_hash", "contact", "hop", "record", "signed")

    def __init__(
        self, contact: Contact, hop: int, signed: Signed, record: NamedRecord, chain_hash: bytes | None
    ) -> None:
        self.contact = contact
        self.hop = hop
        self.signed = signed
        self.record = record
        self.chain_hash = chain_hash


class GetOperation(Search):
    """Find the record of one identifier. Raises nothing: a bad identifier ends it with its fault."""

    def __init__(self, dht: "DhtMachine", event: GetStarted, now: float) -> None:
        self.full_view = dht.upkeep.has_full_view()
        super().__init__(dht, event.operation, now, cid_key(event.cid))
        if event.trace is not None:
            self.trace = event.trace
        self.cid = event.cid
        self.min_version = event.min_version
        self.answers = event.answers
        # Who came a moment ago is not known to all yet, which matters where few are: then let ourselves be told.
        enough = self.full_view and len(dht.table) >= limits.REPLICATION
        self.nodes_max = 0 if enough else limits.REPLICATION
        self.found: list[Found] = []
        self.behind: list[Contact] = []
        self.chains_awaited = 0
        self.first: dict[bytes, Contact] = {}
        """Asked outright and not heard of yet; `first_done` have answered, before there is a lookup."""
        self.first_done: list[Contact] = []
        self.wide = not self.full_view
        self.hedge: Timer | None = None

    def start(self, now: float, out: Outbox) -> None:
        held = self.dht.store.get(self.target, self.dht.unix(now))
        # It was verified when it was stored; since then its key or a key in its chain can have been revoked.
        if (
            held is not None
            and held.order[0] >= self.min_version
            and self.dht.trust.stands(held.signed, held.chain_hash)
        ):
            record = named_payload(held.signed)
            self.found.append(Found(self.dht.contact, 0, held.signed, record, held.chain_hash))
        if len(self.found) >= self.answers:
            self.conclude(now, out)
        elif self.full_view:
            self._ask_quickest(self.answers - len(self.found), now, out)
        else:
            self.advance(now, out)

    def request(self, number: int) -> AnyMessage:
        return wire.Get(number, self.target, self.min_version, self.nodes_max)

    def _ask_quickest(self, count: int, now: float, out: Outbox) -> None:
        """Ask just as many as have to answer, all at once."""
        round_trip = self.dht.exchange.round_trip
        point = int.from_bytes(self.target, "big")
        likely: list[tuple[float, int, Contact]] = []
        for place, peer in enumerate(self.dht.table.replicas(point, max(LIKELY, count))):
            measured = round_trip(peer.node_id)
            likely.append((HEDGE_SECONDS_UNKNOWN if measured is None else measured, place, peer.contact))
        if not likely:
            self.widen(now, out)
            return
        quickest = [min(likely)] if count == 1 else heapq.nsmallest(count, likely)
        for _, _, contact in quickest:
            self.first[contact.node_id] = contact
            self.ask(contact, self.request, self.on_first, now, out)
        slowest, _, contact = quickest[-1]
        known = round_trip(contact.node_id) is not None
        patience = max(HEDGE_SECONDS_MIN, 4 * slowest) if known else HEDGE_SECONDS_UNKNOWN
        self.hedge = self.dht.after(patience, self._on_slow, now)

    def on_first(self, contact: Contact, answer: AnyMessage | Fault, now: float, out: Outbox) -> None:
        """One of the quickest answered: mostly that is all. Otherwise its answer is one of a wide search."""
        if self.ended:
            return
        if not self.wide and isinstance(answer, wire.Value) and answer.record is not None:
            self.first_done.append(self.first.pop(contact.node_id))
            self.check(contact, answer.record, answer.chain_hash, now, out, may_fetch=True)
            self._go_on(now, out)
        else:
            self._begin_lookup()
            self.on_answer(contact, answer, now, out)

    def _go_on(self, now: float, out: Outbox) -> None:
        """Whoever was asked outright has answered, and it was not enough; or the search is wide already."""
        if self.wide or not (self.first or self.chains_awaited):
            self.widen(now, out)

    def _begin_lookup(self) -> None:
        if self.wide:
            return
        self.wide = True
        self.nodes_max = limits.REPLICATION
        for contact in (*self.first.values(), *self.first_done):
            self.lookup.ask_first(contact)
        for contact in self.first_done:
            self.lookup.answered(contact.node_id)

    def _on_slow(self, now: float, out: Outbox) -> None:
        """The quickest are slow today."""
        if not self.ended:
            self.trace.hedged = now - self.began
            self.widen(now, out)

    def widen(self, now: float, out: Outbox) -> None:
        """Ask more servers at once, and let them point to others."""
        if not self.ended:
            self._begin_lookup()
            self.advance(now, out)

    def take(self, contact: Contact, answer: AnyMessage, now: float, out: Outbox) -> None:
        if not isinstance(answer, wire.Value):
            self.lookup.failed(contact.node_id)
            return
        self.hear(contact, answer.nodes, now)
        if answer.record is None:
            self.behind.append(contact)
        else:
            self.check(contact, answer.record, answer.chain_hash, now, out, may_fetch=True)

    def check(
        self,
        contact: Contact,
        signed: Signed,
        chain_hash: bytes | None,
        now: float,
        out: Outbox,
        *,
        may_fetch: bool,
    ) -> None:
        """Verify what a server gave; fetch the chain behind it first where that is not known."""
        try:
            record, _ = self.dht.trust.check_record(signed, chain_hash, unix=self.dht.unix(now))
            if record.cid != self.cid:
                raise BadIdentifier(f"{record.cid} was given for {self.cid}")
            if record.version < self.min_version:
                raise OlderVersion(f"{record.cid}: version {record.version} was given")
        except ChainUnknown as error:
            if may_fetch and chain_hash is not None:
                self._fetch_chain(contact, signed, chain_hash, now, out)
            else:
                self._reject(contact, error)
        except WireError as error:
            self._reject(contact, error)
        else:
            hop = self.lookup.hop(contact.node_id) if self.wide else 1
            self.found.append(Found(contact, hop, signed, record, chain_hash))
            if len(self.found) >= self.answers and not self.ended:
                self.conclude(now, out)

    def _reject(self, contact: Contact, error: WireError) -> None:
        last = self.trace.hops[-1]
        self.trace.hops[-1] = last._replace(outcome=f"rejected: {error}")
        self._begin_lookup()
        self.lookup.failed(contact.node_id)
        self.dht.rejected += 1

    def _fetch_chain(
        self, contact: Contact, signed: Signed, chain_hash: bytes, now: float, out: Outbox
    ) -> None:
        def answered(contact: Contact, answer: AnyMessage | Fault, now: float, out: Outbox) -> None:
            self.chains_awaited -= 1
            if self.ended:
                return
            if isinstance(answer, wire.ChainValue):
                try:
                    self.dht.trust.learn(answer.chain, unix=self.dht.unix(now))
                except WireError as error:
                    self._reject(contact, error)
                else:
                    self.check(contact, signed, chain_hash, now, out, may_fetch=False)
            else:
                self._reject(contact, ChainUnknown(self.cid))
            self._go_on(now, out)

        self.chains_awaited += 1
        self.ask(contact, lambda number: wire.GetChain(number, chain_hash), answered, now, out)

    def settle(self, now: float, out: Outbox) -> None:
        if self.chains_awaited:
            return
        if self.found:
            self.conclude(now, out)
            return
        if self.lookup.ending == "completed" and self.lookup.count < SUSPICIOUS_COUNT:
            self.lookup.go_on(SUSPICIOUS_COUNT)
            self.advance(now, out)
            return
        asked, ending = self.lookup.asked(), self.lookup.ending
        newer = f" in version {self.min_version} or later" if self.min_version else ""
        self.finish(NotFound(f"{self.cid}{newer}: {asked} servers were asked, the search {ending}"), out)

    def conclude(self, now: float, out: Outbox) -> None:
        """The newest record found is the result; bring servers that had less up to date."""
        best = max(self.found, key=_order) if len(self.found) > 1 else self.found[0]
        self.trace.ending = "stopped"
        if self.hedge is not None:
            self.hedge.cancel()
        older = [found.contact for found in self.found if found.record.order < best.record.order]
        for contact in (self.behind + older)[:CORRECTIONS_MAX]:
            correct(self.dht, contact, best.signed, best.chain_hash, now, out)
        self._note_waiting(now)
        self.report(best, now, out)

    def report(self, best: Found, now: float, out: Outbox) -> None:
        """End with what was found."""
        if isinstance(best.record, Tombstone):
            self.finish(withdrawn(best.record), out)
            return
        chain = self.dht.trust.chain(best.chain_hash) if best.chain_hash is not None else ()
        report = GetReport(
            record=best.signed,
            resource=best.record,
            chain=chain or (),
            holder=best.contact,
            hops=best.hop,
            queried=len(self.trace.hops),
            seconds=now - self.began,
            trace=self.trace,
        )
        self.finish(report, out)

    def cancel(self, now: float, out: Outbox) -> None:
        self._note_waiting(now)
        self.trace.ending = self.trace.ending or "cancelled"
        super().cancel(now, out)

    def _note_waiting(self, now: float) -> None:
        """Show in the trace whom nobody waits for any more."""
        waiting = self.lookup.waiting() if self.wide else self.first.values()
        for contact in waiting:
            depth = self.lookup.hop(contact.node_id) if self.wide else 1
            self.trace.hops.append(Hop(contact, depth, now - self.began, "no answer yet"))


def _order(found: Found) -> tuple[int, int]:
    return found.record.order


def withdrawn(tombstone: Tombstone) -> Withdrawn:
    """The fault that a verified tombstone is told by: which identifier, since when, in which version."""
    since = datetime.fromtimestamp(tombstone.issued, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return Withdrawn(f"{tombstone.cid}, in version {tombstone.version}, on {since}")


class HoldersOperation(Search):
    """Find who holds a blob: collect verified announcements until enough are known or all was asked."""

    def __init__(self, dht: "DhtMachine", event: HoldersStarted, now: float) -> None:
        super().__init__(dht, event.operation, now, event.blob)
        self.found: dict[bytes, HolderRecord] = {}

    def start(self, now: float, out: Outbox) -> None:
        own, _ = self.dht.holders.get(self.target, self.dht.unix(now), HOLDERS_ENOUGH, self.dht.chance)
        for signed in own:
            self._keep(signed, now)
        super().start(now, out)

    def request(self, number: int) -> AnyMessage:
        return wire.GetHolders(number, self.target)

    def take(self, contact: Contact, answer: AnyMessage, now: float, out: Outbox) -> None:
        if not isinstance(answer, wire.Holders):
            self.lookup.failed(contact.node_id)
            return
        self.hear(contact, answer.nodes, now)
        for signed in answer.holders:
            self._keep(signed, now)
        if len(self.found) >= HOLDERS_ENOUGH or (self.found and answer.total <= len(self.found)):
            self.lookup.stop()

    def _keep(self, signed: Signed, now: float) -> None:
        try:
            holder = self.dht.trust.check_holder(signed, unix=self.dht.unix(now))
        except WireError:
            self.dht.rejected += 1
            return
        known = self.found.get(signed.key)
        if holder.blob == self.target and (known is None or known.issued < holder.issued):
            self.found[signed.key] = holder

    def settle(self, now: float, out: Outbox) -> None:
        asked = self.lookup.asked()
        if not self.found:
            self.finish(
                NotFound(f"holders of blob {format_blob_id(self.target)}: {asked} servers were asked"), out
            )
            return
        holders = list(self.found.items())
        self.finish(HoldersReport(holders, asked, now - self.began, self.trace), out)
