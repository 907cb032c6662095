"""Rows of the query's table as offers: the signed record, whom to ask for it, its status, and the exact price.

The cheapest hosts are offered again and again: what an offer says of a record is remembered, status is read from the
table's columns, all rows at once.
"""

import math
from collections.abc import Generator, Iterable, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np

from ioc_node.core.catalogue import Catalogue
from ioc_node.core.replica import Replica
from ioc_node.market.columns import Table
from ioc_node.market.kinds import Rows
from ioc_node.market.policies import Place
from ioc_node.market.pricing import ROUNDED, Estimate, Prices, prices_of
from ioc_wire.codec import decode
from ioc_wire.market import Contact, Demand, Offer
from ioc_wire.records import ResourceRecord
from ioc_wire.signed import Signed

REMEMBERED_MAX: Final = 4096
STEP_READS: Final = 4
"""A record that is not remembered is read from the disk: some tenths of a millisecond each."""
PRICE_MAX: Final = (1 << 63) - 1


class _Said(NamedTuple):
    """What every offer of a row says, until its record changes; the host is there while `replica` has this version."""

    record: Signed
    cid: str
    cores: int
    prices: Prices
    stated: Contact | None
    """As the record says; None where it says nothing."""
    replica: Replica
    version: int

    @property
    def contact(self) -> Contact | None:
        return self.stated or self.replica.contact


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """A row in sight that can be offered."""

    row: int
    said: _Said
    contact: Contact


class Offering:
    """Makes offers of a table's rows. `forget` a row before it is used again."""

    def __init__(self, catalogue: Catalogue, table: Table) -> None:
        self._catalogue = catalogue
        self._table = table
        self._said: dict[int, _Said] = {}

    def forget(self, rows: Iterable[int]) -> None:
        for row in rows:
            self._said.pop(row, None)

    def candidates(
        self, rows: Rows, estimates: Sequence[float], enough: int
    ) -> Generator[None, None, list[Candidate]]:
        """Those of these rows in sight whose host is still there, in steps: `enough` of them, and those which may not
        be dearer once prices are exact. The estimates are in order.
        """
        found: list[Candidate] = []
        edge, looks = math.inf, 0
        for row, price in zip(rows.tolist(), estimates, strict=True):
            if price > edge:
                break
            said = self._said.get(row)
            if said is None or said.version != said.replica.base.version:
                looks += 1
                if looks % STEP_READS == 0:
                    yield
                said = self._look_up(row)
            contact = said.contact if said is not None else None
            if said is not None and contact is not None:
                found.append(Candidate(row, said, contact))
                if len(found) == enough:
                    edge = price * ROUNDED + 1
        return found

    def places(self, candidates: Sequence[Candidate], demand: Demand) -> list[Place]:
        """What a ranking knows of each of them now."""
        estimate = Estimate(demand)
        statuses = self._table.statuses_of(np.array([each.row for each in candidates], np.int64))
        places = []
        for candidate, status in zip(candidates, statuses, strict=True):
            said, now = candidate.said, status.price_micro
            prices = said.prices
            price = min(estimate(prices, now), PRICE_MAX)
            places.append(Place(said.cid, said.cores, now or prices.core_hour, price, status))
        return places

    def contacts(self, rows: Rows) -> Generator[None, None, dict[bytes, Contact]]:
        """Where the providers of these rows take links, by key: as their heads' news say, or one of these hosts. In
        steps."""
        found: dict[bytes, Contact] = {}
        owned = zip(rows.tolist(), self._table.owners_of(rows), strict=True)
        for number, (row, (provider, _)) in enumerate(owned):
            if number % STEP_READS == STEP_READS - 1:
                yield
            replica = self._catalogue.replica(provider)
            contact = replica.contact if replica is not None else None
            if contact is None and (said := self._look_up(row)):
                contact = said.stated
            if contact is not None:
                found[provider] = contact
        return found

    def _look_up(self, row: int) -> _Said | None:
        """What is said of a row, None where its host is not there any more."""
        provider, slot = self._table.owner_of(row)
        replica = self._catalogue.replica(provider)
        if replica is None or not replica.is_alive(slot):
            return None
        said = self._said.get(row) or self._read(replica, slot)
        if said is None:
            return None
        if row not in self._said and len(self._said) >= REMEMBERED_MAX:
            del self._said[next(iter(self._said))]
        said = self._said[row] = said._replace(replica=replica, version=replica.base.version)
        return said

    def _read(self, replica: Replica, slot: int) -> _Said | None:
        signed = self._catalogue.record(replica.provider, slot)
        if signed is None:
            return None
        record = decode(signed.payload, ResourceRecord)
        prices, stated = prices_of(record.prices), _stated(replica.provider, record)
        version = replica.base.version
        return _Said(signed, record.cid, record.cpu.cores, prices, stated, replica, version)


def offer_of(candidate: Candidate, place: Place, reasons: tuple[str, ...] = ()) -> Offer:
    """The offer of a place, with the reasons for its rank."""
    return Offer(candidate.said.record, candidate.contact, place.status, place.price, reasons)


def contact_of(replica: Replica, record: ResourceRecord) -> Contact | None:
    """Where the provider of a record takes links: as the record says, which is signed, else as its head's news."""
    return _stated(replica.provider, record) or replica.contact


def _stated(provider: bytes, record: ResourceRecord) -> Contact | None:
    if not record.endpoints:
        return None
    return Contact(provider, record.endpoints[0].host, record.endpoints[0].port)
