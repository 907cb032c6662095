"""Data express: shipments to other nodes (`ioc_wire.express`), and those taken from others (`express_taking`).

A sender journals an order before it offers it, and then waits: the receiver fetches, and reports. What was offered and
not answered when the node ended is offered again, under the same name.
"""

import math
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node import api
from ioc_node.bulk.transfers import BulkEndpoint
from ioc_node.datasets import Datasets
from ioc_node.errors import NodeError, PeerUnreachable, RequestRefused, UsageError
from ioc_node.express_journal import ExpressJournal, Shipment, State
from ioc_node.express_taking import ShipmentTaker
from ioc_node.metering.ledger import Ledger
from ioc_node.metering.receipts import countersign
from ioc_node.runtime.link_handlers import Handlers
from ioc_node.runtime.links import Link, LinkEndpoint
from ioc_node.runtime.store import Store
from ioc_node.runtime.whereabouts import Whereabouts
from ioc_node.sharing import SharedBlobs
from ioc_wire.bulk import format_blob_id, parse_blob_id
from ioc_wire.errors import BadReceipt, NotFound, WireError
from ioc_wire.express import (
    LATE,
    CancelShipment,
    OfferShipment,
    ReportShipment,
    ShipmentAccepted,
    ShipmentOrder,
    ShipmentSettled,
    ShipmentTerms,
    check_shipment_usage,
    shipment_name,
    verify_terms,
)
from ioc_wire.identity import format_node_id, node_id_of
from ioc_wire.market import Contact
from ioc_wire.signed import Signed, sign, verify
from ioc_wire.tasks import Done

OFFER_SECONDS: Final = 20.0
BLOB_CHARS: Final = 53
CLOCK_SLACK_MS: Final = 300_000

Destinations = Callable[[str], Awaitable[list[Contact]]]
"""The nodes that a node ID or a prefix names, the best first. Raises `UsageError` or `PeerUnreachable`."""

_log = structlog.get_logger()


class Express:
    """Both sides of one node."""

    def __init__(
        self,
        store: Store,
        journal: ExpressJournal,
        taker: ShipmentTaker,
        bulk: BulkEndpoint,
        shared: SharedBlobs,
        datasets: Datasets,
        ledger: Ledger,
        key: Ed25519PrivateKey,
        where: Whereabouts,
    ) -> None:
        self._store = store
        self._journal = journal
        self._taker = taker
        self._bulk = bulk
        self._shared = shared
        self._datasets = datasets
        self._ledger = ledger
        self._key = key
        self._where = where
        self._links: LinkEndpoint
        self.destinations: Destinations
        """Set once there are links."""

    def register(self, handlers: Handlers) -> None:
        """Answer both kinds of peers; before links are opened."""
        self._taker.register(handlers)
        handlers.serve(ReportShipment, self._on_report)

    async def run(self, links: LinkEndpoint) -> None:
        """Go on with what the journal says, until cancelled."""
        self._links = links
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._taker.run, links)
            for shipment in self._journal.open("sends"):
                if shipment.state == "offered":
                    nursery.start_soon(self._offer_again, shipment)

    # -- sending

    async def send(self, message: api.SendShipment) -> api.ShipmentRow:
        """Order a shipment from the first node at `to` that takes it. Raises `UsageError`, `PeerUnreachable`, or
        `RequestRefused` with each one's reason."""
        subject, dataset, size = await self._subject(message.subject)
        refusals = []
        for contact in await self.destinations(message.to):
            now = math.ceil(time.time())  # so the deadline is not a moment sooner than was asked
            order = ShipmentOrder(
                nonce=secrets.token_bytes(32),
                receiver=contact.key,
                subject=subject,
                dataset=dataset,
                size=size,
                made=now,
                deadline=now + message.within_seconds,
                price_max_micro=message.price_max_micro,
            )
            signed = sign(self._key, order)
            id = shipment_name(signed)
            self._journal.add(id, "sends", contact, signed, None, had=0, made_ms=int(time.time() * 1000))
            try:
                await self._offer(id, contact, signed)
            except (WireError, NodeError) as error:
                self._journal.drop(id)
                refusals.append(f"{format_node_id(node_id_of(contact.key))[:11]}: {error}")
                continue
            return self.show(id)
        raise RequestRefused(
            f"nobody at {message.to} takes it: {'; '.join(refusals) or 'no node is known there'}"
        )

    async def _subject(self, text: str) -> tuple[bytes, bool, int]:
        """The blob, whether it is a dataset, its size."""
        store = self._bulk.store
        if len(text) == BLOB_CHARS and text.startswith("b"):
            blob = parse_blob_id(text)
            if not self._shared.is_shared(blob):
                raise UsageError(f"blob {text} is not shared here; add it first")
            if not self._datasets.is_version(blob):
                return blob, False, store.size(blob)
        known = await self._datasets.find(text)
        blobs = (known.blob, *(page.blob for page in known.version.pages))
        if not all(map(store.has, blobs)):
            raise UsageError(f"dataset {known.text} is not held here; fetch it with --share first")
        return known.blob, True, known.version.size + sum(map(store.size, blobs))

    async def _offer(self, id: bytes, contact: Contact, signed: Signed) -> None:
        own = self._where.contact()
        if own is None:
            raise PeerUnreachable("no core node is linked through which this one is reached")
        with trio.move_on_after(OFFER_SECONDS):
            link = await self._links.reach(contact)
            accepted = await link.request(OfferShipment(signed, own), ShipmentAccepted)
            verify_terms(accepted.terms, signed)
            self._journal.accepted(id, accepted.terms)
            return
        raise PeerUnreachable(f"no answer within {OFFER_SECONDS:g} s")

    async def _offer_again(self, shipment: Shipment) -> None:
        try:
            await self._offer(shipment.id, shipment.peer, shipment.signed)
        except (WireError, NodeError) as error:
            self._journal.end(shipment.id, "failed", int(time.time() * 1000), text=str(error))

    async def _on_report(self, link: Link, message: ReportShipment) -> ShipmentSettled:
        row = self._journal.row(message.order)
        if row is None or row.side != "sends" or row.peer.key != link.peer.key or row.terms is None:
            raise NotFound("a shipment of that name")
        if row.state == "cancelled":
            raise NotFound("the shipment: it was cancelled")
        if row.state == "failed" and message.usage is not None:
            raise NotFound("the shipment: it was reported as failed, and is not paid for")
        if row.receipt is not None:
            kept = self._ledger.receipt(row.receipt)
            return ShipmentSettled(None if kept is None else kept.signed)
        now_ms = int(time.time() * 1000)
        if message.usage is None:
            if message.failed:
                self._journal.end(row.id, "failed", now_ms, text=message.text)
            return ShipmentSettled()
        usage = check_shipment_usage(message.usage, row.signed, row.terms)
        if not row.made_ms - CLOCK_SLACK_MS <= usage.started_ms <= usage.ended_ms <= now_ms + CLOCK_SLACK_MS:
            raise BadReceipt("its times are not those of the shipment")
        receipt = countersign(message.usage, self._key, now_ms=now_ms)
        state: State = "late" if usage.state == LATE else "delivered"
        with self._store.transaction(durable=True):
            self._ledger.add(receipt)
            self._journal.end(row.id, state, now_ms, receipt=receipt.id, size=usage.bytes_in)
        _log.info(
            "shipment_settled", blob=format_blob_id(row.order.subject), bytes=usage.bytes_in, state=state
        )
        return ShipmentSettled(receipt.signed)

    # -- both

    async def cancel(self, id: bytes) -> api.ShipmentRow:
        """Stop a shipment from either side; nothing is paid. Raises `UsageError` where it is over."""
        row = self._journal.row(id)
        if row is None:
            raise UsageError("no such shipment here")
        if row.ended_ms is not None:
            raise UsageError(f"that shipment is {row.state} already")
        if row.side == "takes":
            self._taker.cancel(row, "cancelled here")
            message: CancelShipment | ReportShipment = ReportShipment(
                id, row.bytes_done, failed=True, text="cancelled by its receiver"
            )
        else:
            self._journal.end(id, "cancelled", int(time.time() * 1000), text="cancelled here")
            message = CancelShipment(id)
        with trio.move_on_after(OFFER_SECONDS):
            try:
                link = await self._links.reach(row.peer)
                await link.request(message, Done if row.side == "sends" else ShipmentSettled)
            except (WireError, NodeError) as error:  # it finds out when it reports
                _log.info("cancelling_not_told", error=str(error))
        return self.show(id)

    def list(self) -> tuple[api.ShipmentRow, ...]:
        """The newest first."""
        return tuple(map(_row, self._journal.latest(api.ROWS_MAX)))

    def show(self, id: bytes) -> api.ShipmentRow:
        """One of them. Raises `UsageError`."""
        row = self._journal.row(id)
        if row is None:
            raise UsageError("no such shipment here")
        return _row(row)


def _row(row: Shipment) -> api.ShipmentRow:
    terms = verify(row.terms, ShipmentTerms) if row.terms is not None else None
    order = row.order
    return api.ShipmentRow(
        shipment=row.id,
        side=row.side,
        peer=format_node_id(node_id_of(row.peer.key)),
        subject=order.subject,
        dataset=order.dataset,
        size=order.size,
        state=row.state,
        bytes_done=row.bytes_done,
        price_micro_per_gb=terms.price_micro_per_gb if terms is not None else 0,
        price_max_micro=order.price_max_micro,
        expected_seconds=terms.expected_seconds if terms is not None else 0,
        made_ms=row.made_ms,
        deadline=order.deadline,
        ended_ms=row.ended_ms or 0,
        receipt=row.receipt or b"",
        text=row.text,
    )
