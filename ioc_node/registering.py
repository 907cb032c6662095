"""A provider's identifiers: signed, put into the DHT, entered in its catalogue, and kept current."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Final

import structlog
import trio.lowlevel

from ioc_node.api import RegisteredRow
from ioc_node.core.own_catalogue import OwnCatalogue
from ioc_node.errors import NodeError
from ioc_node.market.leases import Amounts, LeaseBook
from ioc_node.resources import RecordSigner, Resource
from ioc_node.runtime.dht import Dht
from ioc_node.runtime.home import Home
from ioc_node.runtime.publishing import SWEPT_AT_ONCE
from ioc_wire.cid import parse_cid
from ioc_wire.errors import WireError
from ioc_wire.identity import format_node_id
from ioc_wire.records import StatusRow
from ioc_wire.signed import Signed

REFUSALS_SHOWN_MAX: Final = 8
ONE_BY_ONE_MAX: Final = 32
"""Records that are stored one by one on request, which tells who refused; more go by sweep."""
SIGNED_PER_TURN: Final = 8

_log = structlog.get_logger()


class Registrar:
    """Signs this provider's records and has them stored; `home` publishes the same records to the core nodes."""

    def __init__(
        self,
        resources: Sequence[Resource],
        *,
        signer: RecordSigner,
        chain: tuple[Signed, ...],
        own: OwnCatalogue,
        book: LeaseBook,
    ) -> None:
        self.resources = tuple(resources)
        self._signer = signer
        self._chain = chain
        self._own = own
        self._book = book
        self._home: Home | None = None
        self._withdrawn: list[str] = []

    def enter_catalogue(self) -> None:
        """Sign all records into the own catalogue; identifiers that are no longer configured leave a tombstone, there
        and in the DHT.
        """
        for resource in self.resources:
            self._sign(resource)
        names = {resource.cid for resource in self.resources}
        for cid in [cid for cid in self._own.records() if cid not in names]:
            self._own.withdraw(cid)
            _log.info("withdrawn", cid=cid)
        prefix = parse_cid(self.resources[0].cid).prefix if self.resources else ""
        for cid in self._signer.withdraw_others(names, now=time.time()):
            if parse_cid(cid).prefix == prefix:  # under another prefix nobody would believe us any more
                self._withdrawn.append(cid)

    def publish(self, dht: Dht, home: Home) -> None:
        """Keep every record stored in the DHT from now on; a re-signed one goes to the core nodes too."""
        self._home = home
        for resource in self.resources:
            dht.publish(resource.cid, partial(self._resign, resource))
        for cid in self._withdrawn:
            dht.withdraw(cid, partial(self._bury, cid))

    def _resign(self, resource: Resource) -> tuple[Signed, tuple[Signed, ...]]:
        return self._sign(resource), self._chain

    def _bury(self, cid: str) -> tuple[Signed, tuple[Signed, ...]]:
        return self._signer.sign_tombstone(cid, now=time.time()), self._chain

    async def register_now(self, dht: Dht) -> tuple[RegisteredRow, ...]:
        """Store all records at once, and tell who took and who refused them."""
        if len(self.resources) <= ONE_BY_ONE_MAX:
            return tuple([await self._register(dht, resource) for resource in self.resources])
        rows: list[RegisteredRow] = []
        for first in range(0, len(self.resources), SWEPT_AT_ONCE):
            rows.extend(await self._register_many(dht, self.resources[first : first + SWEPT_AT_ONCE]))
        return tuple(rows)

    async def _register_many(self, dht: Dht, resources: Sequence[Resource]) -> list[RegisteredRow]:
        """By sweep; it tells how many servers took a record, and who refused only by the fault."""
        records = []
        for number, resource in enumerate(resources):
            records.append((self._sign(resource), self._chain))
            if number % SIGNED_PER_TURN == 0:
                await trio.lowlevel.checkpoint()
        faults: dict[str, list[str]] = {}
        copies: dict[str, int] = {}
        try:
            report = await dht.sweep(records)
        except (WireError, NodeError) as error:
            faults = {resource.cid: [str(error)] for resource in resources}
        else:
            copies = report.copies
            for cid, fault in report.refused:
                faults.setdefault(cid, []).append(str(fault))
        return [
            RegisteredRow(
                resource.cid,
                self._signer.version_of(resource.cid),
                copies.get(resource.cid, 0),
                tuple(faults.get(resource.cid, ())[:REFUSALS_SHOWN_MAX]),
            )
            for resource in resources
        ]

    async def _register(self, dht: Dht, resource: Resource) -> RegisteredRow:
        record = self._sign(resource)
        version = self._signer.version_of(resource.cid)
        try:
            report = await dht.put(record, self._chain)
        except (WireError, NodeError) as error:
            return RegisteredRow(resource.cid, version, 0, (str(error),))
        refused = tuple(
            f"{format_node_id(contact.node_id)[:11]}: {fault}" for contact, fault in report.refused
        )
        return RegisteredRow(resource.cid, version, len(report.stored), refused[:REFUSALS_SHOWN_MAX])

    def _sign(self, resource: Resource) -> Signed:
        now = time.time()
        record = self._signer.sign(resource.description, now=now)
        self._own.put(record, unix=now)
        if self._home is not None:
            self._home.catalogue_changed()
        return record

    def status_rows(self) -> list[StatusRow]:
        """What is free now, per slot. An aggregate shows the sum of the hosts below it, where it has any."""
        free = {each.cid: self._book.free(each.cid) for each in self.resources if each.type == "node"}
        queued = len(self._book.held())
        rows = []
        for resource in self.resources:
            slot = self._own.slot_of(resource.cid)
            if slot is None:
                continue
            amounts = free.get(resource.cid)
            if amounts is None:
                amounts = _sum_below(resource.cid, free)
            rows.append(
                StatusRow(
                    slot=slot,
                    free_cores_milli=amounts.cores_milli,
                    free_memory_mib=amounts.memory_mib,
                    free_accelerators_milli=_by_group(resource, amounts.devices_milli),
                    queued=queued,
                    price_micro=resource.capacity.price_micro,
                )
            )
        return rows


def _sum_below(cid: str, free: dict[str, Amounts]) -> Amounts:
    below = [amounts for name, amounts in free.items() if name.startswith(cid + "/")]
    return Amounts(
        sum(each.cores_milli for each in below),
        sum(each.memory_mib for each in below),
        sum(each.disk_mib for each in below),
        (),
    )


def _by_group(resource: Resource, devices_milli: tuple[int, ...]) -> tuple[int, ...]:
    """Free thousandths per accelerator group of the record, in its order; devices are listed group by group."""
    if not devices_milli:
        return ()
    free, at = [], 0
    for group in resource.description.accelerators:
        free.append(sum(devices_milli[at : at + group.count]))
        at += group.count
    return tuple(free)
