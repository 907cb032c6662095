"""A provider's identifiers: signed, put into the DHT, entered in its catalogue, and kept current."""

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog
import trio.lowlevel

from ioc_node.api import RegisteredRow
from ioc_node.collectors.collector import Free
from ioc_node.comparing import comparing
from ioc_node.core.own_catalogue import OwnCatalogue
from ioc_node.errors import ConfigError, NodeError
from ioc_node.market.leases import Amounts, LeaseBook
from ioc_node.resources import RecordSigner, Resource
from ioc_node.runtime.dht import Dht
from ioc_node.runtime.home import Home
from ioc_node.runtime.pauses import run_with_pauses
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
ROWS_PER_TURN: Final = 512
TURN_SECONDS: Final = 0.003
"""How long collected records are signed before others have a turn."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Replaced:
    """What became of a collector's hosts; `refused` pairs the identifier with the reason."""

    added: int
    changed: int
    removed: int
    unchanged: int
    refused: tuple[tuple[str, str], ...]


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
        prefix: str = "",
    ) -> None:
        self._configured = tuple(resources)
        self._signer = signer
        self._chain = chain
        self._own = own
        self._book = book
        self._prefix = prefix
        self._home: Home | None = None
        self._withdrawn: list[str] = []
        self._dht: Dht | None = None
        self._collected: dict[str, dict[str, Resource]] = {}
        self._settled: set[str] = set()
        """Collectors of whose hosts the database knows no other than `_collected`."""
        self._rows: dict[str, tuple[StatusRow, ...]] = {}
        self._silenced: dict[str, tuple[StatusRow, ...]] = {}

    @property
    def resources(self) -> tuple[Resource, ...]:
        """All of this provider's: configured and collected."""
        found = (each for group in self._collected.values() for each in group.values())
        return (*self._configured, *found)

    def enter_catalogue(self, collectors: Collection[str] = ()) -> None:
        """Sign all records into the own catalogue; identifiers that are no longer configured leave a tombstone, there
        and in the DHT. What `collectors` (their keys) found before a restart stays until they have looked again.
        """
        self._signer.forget_collectors(collectors)
        for resource in self.resources:
            self._sign(resource)
        names = {resource.cid for resource in self._configured}
        for collector in collectors:
            names |= self._signer.collected_by(collector)
        for cid in [cid for cid in self._own.records() if cid not in names]:
            self._own.withdraw(cid)
            _log.info("withdrawn", cid=cid)
        prefix = parse_cid(self._configured[0].cid).prefix if self._configured else self._prefix
        for cid in self._signer.withdraw_others(names, now=time.time()):
            if parse_cid(cid).prefix == prefix:  # under another prefix nobody would believe us any more
                self._withdrawn.append(cid)

    def publish(self, dht: Dht, home: Home) -> None:
        """Keep every record stored in the DHT from now on; a re-signed one goes to the core nodes too."""
        self._home, self._dht = home, dht
        for resource in self.resources:
            dht.publish(resource.cid, partial(self._resign, resource))
        for cid in self._withdrawn:
            dht.withdraw(cid, partial(self._bury, cid))

    def _resign(self, resource: Resource) -> tuple[Signed, tuple[Signed, ...]]:
        return self._sign(resource), self._chain

    def _bury(self, cid: str) -> tuple[Signed, tuple[Signed, ...]]:
        return self._signer.sign_tombstone(cid, now=time.time()), self._chain

    async def replace(self, collector: str, hosts: Iterable[tuple[Resource, Free | None]]) -> Replaced:
        """These are all hosts of a collector (its key) now, with what of them is free (None: out of service). New and
        changed ones are signed and published, those that are gone leave a tombstone, the rest is left alone. A crash
        anywhere in between is made up for by the next call.
        """
        fresh = list(hosts)
        known = self._collected.setdefault(collector, {})
        before = set(known)
        if collector not in self._settled:
            before |= await run_with_pauses(self._signer.recalling(collector))
        self._settled.discard(collector)
        taken = {each.cid for each in self._configured}
        taken.update(*(group.keys() for key, group in self._collected.items() if key != collector))
        found = await run_with_pauses(comparing(fresh, known=known, before=before, taken=taken))
        try:
            refused = await self._take_up(collector, found.news, known)
            await self._give_up(found.gone, known)
        except NodeError:  # the disk is full: what was not kept is signed again the next time
            known.clear()
            raise
        self._settled.add(collector)
        rows = await self._collected_rows(
            (known[each.cid], free) for each, free in fresh if free is not None and each.cid in known
        )
        await trio.lowlevel.checkpoint()
        self._silenced.pop(collector, None)
        self._tell_rows(collector, rows)
        added = len(found.added) - sum(cid in found.added for cid, _ in refused)
        changed = len(found.news) - added - len(refused)
        unchanged = len(found.wanted) - len(found.news)
        return Replaced(added, changed, len(found.gone), unchanged, (*found.faults, *refused))

    def silence(self, collector: str) -> None:
        """Nothing is known of a collector's hosts now: they are not offered, and stay registered."""
        self._silenced.setdefault(collector, self._rows.get(collector, ()))
        self._tell_rows(collector, ())

    def offer_again(self, collector: str) -> None:
        """A collector answers, and nothing changed: what was free of its hosts before it was silenced is so now."""
        if collector in self._silenced:
            self._tell_rows(collector, self._silenced.pop(collector))

    def _tell_rows(self, collector: str, rows: tuple[StatusRow, ...]) -> None:
        """What of a collector's hosts is free now, told at once where it changed."""
        if rows != self._rows.get(collector, ()):
            self._rows[collector] = rows
            if self._home is not None:
                self._home.status_changed()

    async def _take_up(
        self, collector: str, news: Sequence[Resource], known: dict[str, Resource]
    ) -> list[tuple[str, str]]:
        refused: list[tuple[str, str]] = []
        waiting = iter(news)
        resource = next(waiting, None)
        while resource is not None:
            turn_ends = time.monotonic() + TURN_SECONDS
            with self._signer.transaction():
                while resource is not None and time.monotonic() < turn_ends:
                    try:
                        self._sign(resource)
                    except (WireError, ConfigError) as error:  # a fault of the disk ends the transaction
                        refused.append((resource.cid, str(error)))
                    else:
                        self._signer.note_collected(resource.cid, collector)
                        known[resource.cid] = resource
                        if self._dht is not None:
                            self._dht.publish(resource.cid, partial(self._resign, resource))
                    resource = next(waiting, None)
            await trio.lowlevel.checkpoint()
        return refused

    async def _give_up(self, gone: Sequence[str], known: dict[str, Resource]) -> None:
        waiting = iter(gone)
        cid = next(waiting, None)
        while cid is not None:
            turn_ends = time.monotonic() + TURN_SECONDS
            with self._signer.transaction():
                while cid is not None and time.monotonic() < turn_ends:
                    self._signer.withdraw(cid, now=time.time())
                    self._own.withdraw(cid)
                    known.pop(cid, None)
                    if self._dht is not None:
                        self._dht.withdraw(cid, partial(self._bury, cid))
                    cid = next(waiting, None)
            if self._home is not None:
                self._home.catalogue_changed()
            await trio.lowlevel.checkpoint()

    async def _collected_rows(self, hosts: Iterable[tuple[Resource, Free]]) -> tuple[StatusRow, ...]:
        rows: list[StatusRow] = []
        for resource, free in hosts:
            slot = self._own.slot_of(resource.cid)
            if slot is not None:
                price = resource.capacity.price_micro
                rows.append(
                    StatusRow(slot, free.cores_milli, free.memory_mib, free.accelerators_milli, 0, price)
                )
            if len(rows) % ROWS_PER_TURN == 0:
                await trio.lowlevel.checkpoint()
        return tuple(rows)

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
        free = {each.cid: self._book.free(each.cid) for each in self._configured if each.type == "node"}
        queued = len(self._book.held())
        rows = []
        for resource in self._configured:
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
        for collected in self._rows.values():
            rows.extend(collected)
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
