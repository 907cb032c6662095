"""The receiver's side of data express: terms for an order, the bytes, the bill.

A shipment that was accepted is in the journal before it is promised, and what it comes to is there before it is told: a
receiver that restarts goes on where it was, and reports again until it has the receipt.
"""

import time
from collections.abc import Callable
from typing import Final

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.bulk.gathering import Source
from ioc_node.bulk.transfers import BulkEndpoint
from ioc_node.config import ExpressConfig
from ioc_node.core.hurry import Hurry
from ioc_node.datasets import Datasets
from ioc_node.errors import NodeError, StorageUnusable
from ioc_node.express_journal import ExpressJournal, Shipment, State
from ioc_node.metering.ledger import Ledger
from ioc_node.metering.receipts import check_answers
from ioc_node.runtime.driver import open_background
from ioc_node.runtime.link_handlers import Handlers
from ioc_node.runtime.links import Link, LinkEndpoint
from ioc_node.runtime.store import Store
from ioc_node.sources import Holder, ask_ticket
from ioc_node.tasks.guard import contained_story
from ioc_node.tasks.keeper import EXPRESS, Keeper
from ioc_wire.bulk import Ticket, format_blob_id
from ioc_wire.errors import BadReceipt, Busy, NoSpace, NotFound, Unserved, WireError, WrongPeer
from ioc_wire.express import (
    DELIVERED,
    EXPRESS_CID,
    LATE,
    CancelShipment,
    OfferShipment,
    ReportShipment,
    ShipmentAccepted,
    ShipmentOrder,
    ShipmentSettled,
    ShipmentTerms,
    shipment_cost,
    shipment_name,
    verify_order,
)
from ioc_wire.metering import UsageRecord
from ioc_wire.signed import public_bytes, sign, verify
from ioc_wire.tasks import Done

TAKEN_AT_ONCE: Final = 4
OPEN_MAX: Final = 256
OPEN_PER_SENDER_MAX: Final = 16
"""Shipments of one sender that are not over: orders cost it nothing."""
PAUSE_SECONDS: Final = 0.5
PAUSE_SECONDS_MAX: Final = 30.0
REPORT_SECONDS: Final = 20.0
LOOK_SECONDS: Final = 2.0
"""How often a shipment on its way is compared with its deadline."""
PATIENCE_SECONDS: Final = 7 * 86_400
"""How long after its deadline a shipment is given up whose sender cannot be reached."""

_log = structlog.get_logger()


class ShipmentTaker:
    """Takes shipments. Nothing moves before `run`."""

    def __init__(
        self,
        store: Store,
        journal: ExpressJournal,
        bulk: BulkEndpoint,
        datasets: Datasets,
        keeper: Keeper,
        ledger: Ledger,
        key: Ed25519PrivateKey,
        settings: ExpressConfig,
    ) -> None:
        self._store = store
        self._journal = journal
        self._bulk = bulk
        self._datasets = datasets
        self._keeper = keeper
        self._ledger = ledger
        self._key = key
        self._own = public_bytes(key)
        self._settings = settings
        self._links: LinkEndpoint
        self._scopes: dict[bytes, trio.CancelScope] = {}
        self._room = trio.CapacityLimiter(TAKEN_AT_ONCE)
        self._nursery: trio.Nursery | None = None

    def register(self, handlers: Handlers) -> None:
        """Answer senders; before links are opened."""
        handlers.serve(OfferShipment, self._on_offer)
        handlers.serve(CancelShipment, self._on_cancel)

    async def run(self, links: LinkEndpoint) -> None:
        """Bring what was accepted, until cancelled."""
        self._links = links
        try:
            async with trio.open_nursery() as self._nursery:
                for shipment in self._journal.open("takes"):
                    self._nursery.start_soon(self._carry, shipment.id)
                await trio.sleep_forever()
        finally:
            self._nursery = None

    # -- an order

    async def _on_offer(self, link: Link, message: OfferShipment) -> ShipmentAccepted:
        order = verify_order(message.order, self._own)
        if message.order.key != link.peer.key or message.sender.key != link.peer.key:
            raise WrongPeer("the order is signed by another node than the one that brings it")
        name = shipment_name(message.order)
        known = self._journal.row(name)
        if known is not None and known.terms is not None:
            return ShipmentAccepted(known.terms)
        had = await self._bytes_here(order)
        known = self._journal.row(name)
        if known is not None and known.terms is not None:
            return ShipmentAccepted(known.terms)  # the same order came twice at once
        underway = self._journal.open("takes")
        own = sum(each.peer.key == link.peer.key for each in underway)
        if self._nursery is None or len(underway) >= OPEN_MAX or own >= OPEN_PER_SENDER_MAX:
            raise Busy(f"{own} of {len(underway)} shipments that are under way here are that sender's")
        terms = sign(self._key, self._terms(name, order, link.peer.key))
        self._journal.add(
            name, "takes", message.sender, message.order, terms, had=had, made_ms=int(time.time() * 1000)
        )
        self._nursery.start_soon(self._carry, name)
        return ShipmentAccepted(terms)

    def _terms(self, name: bytes, order: ShipmentOrder, sender: bytes) -> ShipmentTerms:
        """What this node promises. Raises `Unserved` or `NoSpace` with the reason why it does not."""
        price, now = self._settings.price_micro_per_gb, time.time()
        if price is None:
            raise Unserved(
                "this node takes no shipments: its config.toml names no express.price_micro_per_gb"
            )
        if order.size > self._settings.mib_max << 20:
            raise Unserved(f"{order.size} bytes: at most {self._settings.mib_max} MiB are taken at a time")
        cost = shipment_cost(order.size, price)
        if cost > order.price_max_micro:
            raise Unserved(
                f"it costs {cost / 1e6:.6f} here, the order allows {order.price_max_micro / 1e6:.6f}"
            )
        expected = order.size / self._bytes_per_second(sender)
        if now + expected > order.deadline:
            late = "has passed" if order.deadline <= now else f"is in {order.deadline - now:.0f} s"
            raise Unserved(f"the deadline {late}, and {order.size} bytes take about {expected:.0f} s")
        try:
            self._bulk.store.check_space(order.subject, order.size)
        except NodeError as error:
            raise NoSpace(str(error)) from None
        return ShipmentTerms(name, price, int(expected) + 1, int(now))

    def _bytes_per_second(self, sender: bytes) -> float:
        """What is believed to come from there: measured, or configured, and not above a ceiling."""
        measured = self._bulk.offloads.quic_road(sender).measured_mb_s or self._settings.expected_mb_s
        return min(measured * 1e6, self._bulk.throttles.receiving.ceiling_of(sender, "bulk"))

    async def _bytes_here(self, order: ShipmentOrder) -> int:
        if self._bulk.store.has(order.subject):
            return self._bulk.store.size(order.subject)
        lock = self._bulk.store.lock_of(order.subject)
        if order.dataset or lock.locked():
            return 0
        async with lock:
            partial = await self._bulk.store.resume(order.subject)
            if partial is None:
                return 0
            present = partial.bytes_present
            partial.close()
            return present

    async def _on_cancel(self, link: Link, message: CancelShipment) -> Done:
        row = self._journal.row(message.order)
        if row is not None and row.side == "takes" and row.peer.key == link.peer.key:
            self.cancel(row, "cancelled by its sender")
        return Done()

    def cancel(self, row: Shipment, text: str) -> None:
        """Stop it; nothing is charged."""
        self._journal.end(row.id, "cancelled", int(time.time() * 1000), text=text)
        scope = self._scopes.get(row.id)
        if scope is not None:
            scope.cancel()

    # -- one shipment

    async def _carry(self, id: bytes) -> None:
        pause = PAUSE_SECONDS
        with trio.CancelScope() as scope:
            self._scopes[id] = scope
            while True:
                with contained_story("shipment") as fault:
                    if await self._carried(id):
                        break
                if fault.text:
                    self._journal.note(id, fault.text)
                row = self._journal.row(id)
                if row is None or row.ended_ms is not None:
                    break
                if time.time() > row.order.deadline + PATIENCE_SECONDS:
                    self._journal.end(id, "failed", int(time.time() * 1000), text=f"given up: {row.text}")
                    break
                await trio.sleep(pause)
                pause = min(2 * pause, PAUSE_SECONDS_MAX)
        del self._scopes[id]

    async def _carried(self, id: bytes) -> bool:
        """Whether it is over. Raises what is worth another try."""
        row = self._journal.row(id)
        if row is None or row.ended_ms is not None:
            return True
        now_ms = int(time.time() * 1000)
        try:
            if row.usage is None:
                async with self._room:
                    await self._bring(row)
                    row = self._measured(row)
            await self._settle(row)
        except StorageUnusable as error:
            await self._give_up(row, f"no room: {error}")
        except BadReceipt as error:
            self._journal.end(id, "disputed", now_ms, text=str(error))
        except NotFound as error:
            self._journal.end(id, "cancelled", now_ms, text=f"the sender does not know it any more: {error}")
        return True

    async def _bring(self, row: Shipment) -> None:
        holder = Holder(row.peer)
        here = row.bytes_done

        def told(bytes_here: int, _size: int) -> None:
            nonlocal here
            here = bytes_here

        def moved(size: int) -> None:
            nonlocal here
            here += size
            self._journal.moved(row.id, size)

        async def renew() -> Ticket:
            return await ask_ticket(row.order.subject, holder, self._links)

        async with open_background() as background:
            background.start_soon(self._hurry, row, lambda: here)
            if row.order.dataset:
                await self._datasets.take_over(row.order.subject, holder, moved)
                return
            if not self._bulk.store.has(row.order.subject):
                await self._bulk.gather([Source(await renew(), renew)], on_progress=told, traffic="bulk")
        with self._store.transaction():
            self._keeper.hold((row.order.subject,), EXPRESS + row.id)

    async def _hurry(self, row: Shipment, here: Callable[[], int]) -> None:
        """While it is behind its deadline, what it shares with other transfers is shared in its favour."""
        order = row.order
        name = None if order.dataset else order.subject
        hurry = Hurry(order.size, order.deadline, now=time.time())
        try:
            while True:
                await trio.sleep(LOOK_SECONDS)
                before = hurry.factor
                if hurry.look(here(), now=time.time()) != before:
                    await self._bulk.hurry(row.peer.key, name, hurry.factor)
        finally:
            if hurry.factor != 1:
                with trio.move_on_after(LOOK_SECONDS, shield=True):
                    await self._bulk.hurry(row.peer.key, name, 1.0)

    def _measured(self, row: Shipment) -> Shipment:
        """The signed bill, written down."""
        known = self._journal.row(row.id)
        assert known is not None
        assert known.terms is not None
        order, terms = known.order, verify(known.terms, ShipmentTerms)
        size = known.bytes_done
        if not order.dataset:
            size = max(0, self._bulk.store.size(order.subject) - known.had)
        ended_ms = max(int(time.time() * 1000), known.made_ms)
        late = ended_ms > order.deadline * 1000
        price = terms.price_micro_per_gb
        usage = UsageRecord(
            task=known.id,
            attempt=1,
            lease=shipment_name(known.terms),
            provider=self._own,
            consumer=known.signed.key,
            cid=EXPRESS_CID,
            started_ms=known.made_ms,
            ended_ms=ended_ms,
            wall_ms=ended_ms - known.made_ms,
            core_ms=0,
            mib_ms=0,
            bytes_in=min(size, order.size),
            bytes_out=0,
            price_micro=price,
            cost_micro=0 if late else shipment_cost(min(size, order.size), price),
            state=LATE if late else DELIVERED,
        )
        self._journal.measured(row.id, sign(self._key, usage), usage.bytes_in)
        _log.info(
            "shipment_here", blob=format_blob_id(order.subject), bytes=usage.bytes_in, state=usage.state
        )
        measured = self._journal.row(row.id)
        assert measured is not None
        return measured

    async def _settle(self, row: Shipment) -> None:
        assert row.usage is not None
        answer = await self._report(row, ReportShipment(row.id, row.bytes_done, usage=row.usage))
        if answer.receipt is None:
            raise BadReceipt("the sender gave no receipt")
        kept = check_answers(answer.receipt, row.usage)
        state: State = "late" if kept.usage.state == LATE else "delivered"
        with self._store.transaction(durable=True):
            self._ledger.add(kept)
            self._journal.end(row.id, state, int(time.time() * 1000), receipt=kept.id)

    async def _give_up(self, row: Shipment, text: str) -> None:
        self._journal.end(row.id, "failed", int(time.time() * 1000), text=text)
        try:
            await self._report(row, ReportShipment(row.id, row.bytes_done, failed=True, text=text[:200]))
        except (WireError, NodeError) as error:
            _log.info("shipment_failure_not_told", error=str(error))

    async def _report(self, row: Shipment, message: ReportShipment) -> ShipmentSettled:
        with trio.move_on_after(REPORT_SECONDS):
            link = await self._links.reach(row.peer)
            return await link.request(message, ShipmentSettled)
        raise Busy(f"the sender did not answer within {REPORT_SECONDS:g} s")
