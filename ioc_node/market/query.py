"""Demand queries on a core node: which records with status could serve a demand, ranked, and why the others could not.

The answer depends on the catalogue and the time alone: two core nodes that hold the same heads and status answer the
same demand with the same bytes. Only hosts (records of type `node`) with an address are offered; aggregates are not.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import structlog

from ioc_node.core.catalogue import Catalogue
from ioc_node.core.replica import Replica
from ioc_node.errors import UsageError
from ioc_node.market.columns import Rows, Table
from ioc_node.market.conditions import REASON_CHARS_MAX, conditions_of, core_hour_now
from ioc_node.market.policies import Context, load_policy
from ioc_node.market.pricing import accelerators_milli, cores_milli, estimate_micro, prices_of
from ioc_wire import limits
from ioc_wire.codec import decode
from ioc_wire.errors import NotFound, WireError
from ioc_wire.market import Contact, Demand, Offer, OffersFound, Removal
from ioc_wire.records import ResourceRecord

log = structlog.get_logger()

CANDIDATES_MIN: Final = 64
"""So many rows at least, the cheapest, are given to the policy."""


class QueryEngine:
    """Answers demands from columns over `catalogue`. Tell it of every change with `patch` and `patch_status`."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._table = Table()
        for provider in catalogue.providers():
            self.patch(provider, None)

    @property
    def rows(self) -> int:
        """Hosts that could be offered if their status allows it."""
        return len(self._table.living())

    # -- following the catalogue

    def patch(self, provider: bytes, slots: Sequence[int] | None) -> None:
        """Identifiers of `provider` in `slots` came, changed or went (None: any of them)."""
        replica = self._catalogue.replica(provider)
        self._table.remove(provider, slots)
        if replica is None:
            return
        chosen = (
            replica.living_slots() if slots is None else [slot for slot in slots if replica.is_alive(slot)]
        )
        records = [found for slot in chosen if (found := _host(self._catalogue, replica, slot)) is not None]
        self._table.put(provider, records)
        self.patch_status(provider)

    def patch_status(self, provider: bytes) -> None:
        """`provider` has new status."""
        replica = self._catalogue.replica(provider)
        self._table.set_status(provider, replica.status if replica is not None else None)

    # -- answering

    def find(self, demand: Demand, policy: str, limit: int, *, unix: float) -> OffersFound:
        """Ranked offers, at most `limit`, and per condition how many rows it removed. Raises `NotFound` for a
        policy that is not installed here.
        """
        try:
            rank = load_policy(policy)
        except UsageError as error:
            raise NotFound(str(error)) from None
        rows = self._table.living()
        considered = len(rows)
        removals: list[Removal] = []
        for condition in conditions_of(demand, self._table, unix=unix):
            if not len(rows):
                break
            kept = condition.keeps(rows)
            removed = rows[~kept]
            if len(removed):
                nearest = condition.miss(removed)[:REASON_CHARS_MAX]
                removals.append(Removal(condition.name, len(removed), nearest))
                rows = rows[kept]
        rows = self._cheapest(rows, demand, max(CANDIDATES_MIN, 2 * limit))
        offers = [offer for row in rows if (offer := self._offer(int(row), demand)) is not None]
        ranked = rank(offers, Context(demand))[: min(limit, limits.OFFERS_MAX)]
        return OffersFound(tuple(ranked), considered, tuple(removals), self._catalogue.digest())

    def _cheapest(self, rows: Rows, demand: Demand, count: int) -> Rows:
        """The `count` rows with the lowest estimate; among equals those with the smallest hash of their name.

        In floating point, which is enough to choose candidates; their prices are then computed exactly.
        """
        if len(rows) <= count:
            return rows
        table = self._table
        per_hour = (
            core_hour_now(table, rows) * (cores_milli(demand) / 1000)
            + table["accelerator_hour"][rows] * (accelerators_milli(demand) / 1000)
            + table["gib_hour"][rows] * (demand.resources.memory_mib / 1024)
        )
        estimates = per_hour * (demand.wall_seconds / 3600) + table["task_price"][rows]
        edge = np.partition(estimates, count - 1)[count - 1]
        below = rows[estimates < edge]
        level = rows[estimates == edge]
        ties = table["tie"][level]
        missing = count - len(below)
        if len(level) > missing:
            level = level[np.argpartition(ties, missing - 1)[:missing]]
        return np.concatenate([below, level])

    def _offer(self, row: int, demand: Demand) -> Offer | None:
        provider, slot = self._table.owners[row]
        replica = self._catalogue.replica(provider)
        if replica is None or replica.status is None or replica.held is None:
            return None
        signed = self._catalogue.record(provider, slot)
        if signed is None:
            return None
        record = decode(signed.payload, ResourceRecord)
        contact = _contact(replica, record)
        if contact is None:
            return None
        status = replica.status.batch.rows[int(self._table["status_row"][row])]
        price = estimate_micro(prices_of(record.prices), status.price_micro, demand)
        return Offer(signed, contact, status, min(price, (1 << 63) - 1))


def _host(catalogue: Catalogue, replica: Replica, slot: int) -> tuple[int, ResourceRecord, bool] | None:
    try:
        signed = catalogue.record(replica.provider, slot)
        if signed is None:
            return None
        record = decode(signed.payload, ResourceRecord)
    except WireError as error:
        log.info("record_unreadable", slot=slot, error=str(error))
        return None
    if record.type != "node":
        return None
    return slot, record, _contact(replica, record) is not None


def _contact(replica: Replica, record: ResourceRecord) -> Contact | None:
    """Where the provider of a record takes links: as the record says, which is signed, else as its head's news."""
    if record.endpoints:
        return Contact(replica.provider, record.endpoints[0].host, record.endpoints[0].port)
    return replica.held.news.contact if replica.held is not None else None
