"""Watching one identifier: whoever holds its record tells the watcher when a newer one comes.

Theory of operation. The watcher finds the servers nearest to the key, as a get does, and sends `Watch` to
`WATCH_HOLDERS` of them. A holder (`WatchTable`) remembers that for the time granted and sends `Changed` when it stores
a newer version or a tombstone; that is a request like any other, repeated until it is answered. The watcher
(`WatchOperation`) verifies each as a get does and tells each version once, never an older one, however many holders
push it. It renews well before the end, at whoever is nearest by then, so that holders that died or forgot are
replaced; each renewal names the version that is known, and reads the record once more, which heals a push that got
lost. Everything a holder keeps for others is bounded, and forgotten when the watcher does not answer.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from ioc_node.core.events import Fault, GetStarted, RecordChanged, Trace, WatchStarted
from ioc_node.core.getting import Found, GetOperation
from ioc_node.core.operations import Operation, Search
from ioc_node.core.routing import Contact
from ioc_node.core.session import Outbox
from ioc_node.core.timers import Timer
from ioc_node.core.watches import Told
from ioc_wire import dht as wire
from ioc_wire.cid import cid_key
from ioc_wire.dht import AnyMessage
from ioc_wire.errors import BadIdentifier, ChainUnknown, OverQuota, WireError
from ioc_wire.records import NamedRecord, Tombstone, named_payload
from ioc_wire.signed import Signed

if TYPE_CHECKING:
    from ioc_node.core.dht import DhtMachine

OWN_WATCHES_MAX: Final = 1024
WATCH_HOLDERS: Final = 4
WATCH_SPARES: Final = 8
"""Nearest servers that take the place of holders that do not answer, or lie."""
WATCH_SECONDS: Final = 300
RENEW_SECONDS_FIRST: Final = 10.0
"""The first renewal comes early: a node that has just joined may not know the nearest yet."""
RENEW_SECONDS: Final = 120.0
HOPS_KEPT_MAX: Final = 64


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
