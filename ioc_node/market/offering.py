"""Rows of the query's table as offers: the signed record, whom to ask for it, its status, and the exact price.

The cheapest hosts are offered again and again: what an offer says of a record is remembered, status is read from the
table's columns, all rows at once.
"""

from collections.abc import Generator, Iterable
from typing import Final, NamedTuple

from ioc_node.core.catalogue import Catalogue
from ioc_node.core.replica import Replica
from ioc_node.market.columns import Table
from ioc_node.market.kinds import Rows
from ioc_node.market.pricing import Estimate, Prices, prices_of
from ioc_wire.codec import decode
from ioc_wire.market import Contact, Demand, Offer
from ioc_wire.records import ResourceRecord
from ioc_wire.signed import Signed

REMEMBERED_MAX: Final = 4096
STEP_OFFERS: Final = 4
"""A record that is not remembered is read from the disk: some tenths of a millisecond each."""
PRICE_MAX: Final = (1 << 63) - 1


class _Said(NamedTuple):
    """What every offer of a row says, until its record changes."""

    record: Signed
    prices: Prices
    contact: Contact | None
    """As the record says; None where it says nothing."""


class Offering:
    """Makes offers of a table's rows. `forget` a row before it is used again."""

    def __init__(self, catalogue: Catalogue, table: Table) -> None:
        self._catalogue = catalogue
        self._table = table
        self._said: dict[int, _Said] = {}

    def forget(self, rows: Iterable[int]) -> None:
        for row in rows:
            self._said.pop(row, None)

    def offers(self, rows: Rows, demand: Demand) -> Generator[None, None, list[Offer]]:
        """One offer for each of these rows in sight whose host is still there, in steps."""
        estimate = Estimate(demand)
        made: list[Offer] = []
        told = zip(rows.tolist(), self._table.owners_of(rows), self._table.statuses_of(rows), strict=True)
        for number, (row, (provider, slot), status) in enumerate(told):
            if number % STEP_OFFERS == STEP_OFFERS - 1:
                yield
            replica = self._catalogue.replica(provider)
            if replica is None or not replica.is_alive(slot):
                continue
            said = self._said.get(row) or self._read(row, provider, slot)
            contact = (said.contact or replica.contact) if said is not None else None
            if said is None or contact is None:
                continue
            price = estimate(said.prices, status.price_micro)
            made.append(Offer(said.record, contact, status, min(price, PRICE_MAX)))
        return made

    def contacts(self, rows: Rows) -> Generator[None, None, dict[bytes, Contact]]:
        """Where the providers of these rows take links, by key: as their heads' news say, or one of these hosts. In
        steps."""
        found: dict[bytes, Contact] = {}
        owned = zip(rows.tolist(), self._table.owners_of(rows), strict=True)
        for number, (row, (provider, slot)) in enumerate(owned):
            if number % STEP_OFFERS == STEP_OFFERS - 1:
                yield
            replica = self._catalogue.replica(provider)
            contact = replica.contact if replica is not None else None
            if contact is None and (said := self._said.get(row) or self._read(row, provider, slot)):
                contact = said.contact
            if contact is not None:
                found[provider] = contact
        return found

    def _read(self, row: int, provider: bytes, slot: int) -> _Said | None:
        signed = self._catalogue.record(provider, slot)
        if signed is None:
            return None
        if len(self._said) >= REMEMBERED_MAX:
            del self._said[next(iter(self._said))]
        record = decode(signed.payload, ResourceRecord)
        said = self._said[row] = _Said(signed, prices_of(record.prices), _stated(provider, record))
        return said


def contact_of(replica: Replica, record: ResourceRecord) -> Contact | None:
    """Where the provider of a record takes links: as the record says, which is signed, else as its head's news."""
    return _stated(replica.provider, record) or replica.contact


def _stated(provider: bytes, record: ResourceRecord) -> Contact | None:
    if not record.endpoints:
        return None
    return Contact(provider, record.endpoints[0].host, record.endpoints[0].port)
