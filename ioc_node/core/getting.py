"""Finding what others stored: one record by its identifier, or the holders of a blob.

A get first asks one server, the quickest of those that should hold the record. If it does not hold it, or is
slow, the search widens to `PARALLELISM` servers at once. The first `answers` valid records end it, the newest
of them is the result, and servers that answered with less are corrected in the background.
"""

import math
from typing import TYPE_CHECKING, Final

from ioc_node.core.events import Fault, GetReport, GetStarted, HoldersReport, HoldersStarted
from ioc_node.core.operations import Search
from ioc_node.core.putting import correct
from ioc_node.core.routing import Contact
from ioc_node.core.session import Outbox
from ioc_node.core.timers import Timer
from ioc_wire import dht as wire
from ioc_wire import limits
from ioc_wire.cid import cid_key
from ioc_wire.codec import decode
from ioc_wire.dht import AnyMessage, HolderRecord
from ioc_wire.errors import BadIdentifier, ChainUnknown, NotFound, OlderVersion, WireError
from ioc_wire.identity import base32
from ioc_wire.records import ResourceRecord
from ioc_wire.signed import Signed

if TYPE_CHECKING:
    from ioc_node.core.dht import DhtMachine

LIKELY: Final = 8
"""How many of the nearest servers the quickest is chosen from."""
HEDGE_SECONDS_MIN: Final = 0.03
HEDGE_SECONDS_UNKNOWN: Final = 0.2
CORRECTIONS_MAX: Final = 8
HOLDERS_ENOUGH: Final = 16


class _Found:
    """A valid record and who gave it."""

    __slots__ = ("chain_hash", "contact", "hop", "record", "signed")

    def __init__(
        self, contact: Contact, hop: int, signed: Signed, record: ResourceRecord, chain_hash: bytes | None
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
        width = event.answers if self.full_view else limits.PARALLELISM
        super().__init__(dht, event.operation, now, cid_key(event.cid), width)
        self.cid = event.cid
        self.min_version = event.min_version
        self.answers = event.answers
        self.nodes_max = 0 if self.full_view else limits.REPLICATION
        self.found: list[_Found] = []
        self.behind: list[Contact] = []
        self.chains_awaited = 0
        self.first: Contact | None = None
        self.hedge: Timer | None = None

    def start(self, now: float, out: Outbox) -> None:
        held = self.dht.store.get(self.target, self.dht.unix(now))
        # It was verified when it was stored; since then its key or a key in its chain can have been revoked.
        if (
            held is not None
            and held.order[0] >= self.min_version
            and self.dht.trust.stands(held.signed, held.chain_hash)
        ):
            record = decode(held.signed.payload, ResourceRecord)
            self.found.append(_Found(self.dht.contact, 0, held.signed, record, held.chain_hash))
        if len(self.found) >= self.answers:
            self.conclude(now, out)
            return
        if self.full_view and self.answers == 1:
            self._ask_quickest(now, out)
        else:
            self.advance(now, out)

    def request(self, number: int) -> AnyMessage:
        return wire.Get(number, self.target, self.min_version, self.nodes_max)

    def _ask_quickest(self, now: float, out: Outbox) -> None:
        round_trip = self.dht.exchange.round_trip
        best, seconds = None, math.inf
        for peer in self.dht.table.nearest(int.from_bytes(self.target, "big"), LIKELY):
            measured = round_trip(peer.node_id)
            if measured is None:
                measured = HEDGE_SECONDS_UNKNOWN
            if measured < seconds:
                best, seconds = peer.contact, measured
        if best is None:
            self.advance(now, out)
            return
        self.first = best
        self.ask(best, self.request, self.on_first, now, out)
        self.hedge = self.dht.after(max(HEDGE_SECONDS_MIN, 4 * seconds), self.widen, now)

    def on_first(self, contact: Contact, answer: AnyMessage | Fault, now: float, out: Outbox) -> None:
        """The quickest answered: mostly that is all. Otherwise its answer is the first of a wide search."""
        if self.ended:
            return
        if isinstance(answer, wire.Value) and answer.record is not None:
            self.check(contact, answer.record, answer.chain_hash, now, out, may_fetch=True)
            self.widen(now, out)
        else:
            self._begin_lookup()
            self.on_answer(contact, answer, now, out)

    def _begin_lookup(self) -> None:
        if self.first is not None:
            self.lookup.ask_first(self.first)
            self.first = None
        self.lookup.width = limits.PARALLELISM
        self.nodes_max = limits.REPLICATION

    def widen(self, now: float, out: Outbox) -> None:
        """Ask more servers at once, and let them point to others."""
        if not self.ended and not self.chains_awaited:
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
            found = _Found(
                contact, 1 if self.first else self.lookup.hop(contact.node_id), signed, record, chain_hash
            )
            self.found.append(found)
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
            self.advance(now, out)

        self.chains_awaited += 1
        self.ask(contact, lambda number: wire.GetChain(number, chain_hash), answered, now, out)

    def settle(self, now: float, out: Outbox) -> None:
        if self.chains_awaited:
            return
        if self.found:
            self.conclude(now, out)
            return
        asked, ending = self.lookup.asked(), self.lookup.ending
        newer = f" in version {self.min_version} or later" if self.min_version else ""
        self.finish(NotFound(f"{self.cid}{newer}: {asked} servers were asked, the search {ending}"), out)

    def conclude(self, now: float, out: Outbox) -> None:
        """The newest record found is the result; bring servers that had less up to date."""
        best = max(self.found, key=lambda found: found.record.order)
        self.trace.ending = "stopped"
        if self.hedge is not None:
            self.hedge.cancel()
        chain = self.dht.trust.chain(best.chain_hash) if best.chain_hash is not None else ()
        older = [found.contact for found in self.found if found.record.order < best.record.order]
        for contact in (self.behind + older)[:CORRECTIONS_MAX]:
            correct(self.dht, contact, best.signed, best.chain_hash, now, out)
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
            holder = wire.verify_holder(signed, now=self.dht.unix(now))
        except WireError:
            self.dht.rejected += 1
            return
        known = self.found.get(signed.key)
        if holder.blob == self.target and (known is None or known.issued < holder.issued):
            self.found[signed.key] = holder

    def settle(self, now: float, out: Outbox) -> None:
        asked = self.lookup.asked()
        if not self.found:
            self.finish(NotFound(f"holders of blob {base32(self.target)}: {asked} servers were asked"), out)
            return
        holders = list(self.found.items())
        self.finish(HoldersReport(holders, asked, now - self.began, self.trace), out)
