"""From a provider's configuration to its signed records, its capacities and its prices.

A record's version grows only when its content changes; refreshing it re-signs the same version with a later
`issued`. The last version of each identifier is kept in the store, so that a restart never goes back. One that is not
configured any more gets a tombstone, of the next version, and is published so for as long as an older record could
still be about; when it comes back, its record has a higher version again.
"""

import hashlib
from collections.abc import Collection, Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.collectors.local import LocalMachine
from ioc_node.config import AcceleratorConfig, ResourceConfig
from ioc_node.errors import ConfigError
from ioc_node.market.leases import Capacity, Device, peaks_of
from ioc_node.runtime.store import Store
from ioc_wire import limits
from ioc_wire.cid import Cid, parse_cid
from ioc_wire.codec import encode
from ioc_wire.errors import BadIdentifier, TooLarge
from ioc_wire.records import (
    Accelerator,
    Cpu,
    Endpoint,
    Network,
    Place,
    Price,
    ResourceRecord,
    Tombstone,
)
from ioc_wire.signed import Signed, sign

REFRESH_SECONDS: Final = 22 * 3600
"""How long before a record is signed and registered again; it expires after 48 hours."""

RECALLED_PER_STEP: Final = 1024
"""Identifiers read between two pauses: about a millisecond."""

_SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS own_records (
         cid TEXT PRIMARY KEY, version INTEGER NOT NULL, digest BLOB NOT NULL) WITHOUT ROWID""",
)
_TOMBSTONES: Final = (
    "CREATE TABLE IF NOT EXISTS own_tombstones (cid TEXT PRIMARY KEY, since INTEGER NOT NULL) WITHOUT ROWID",
)
_COLLECTED: Final = (
    """CREATE TABLE IF NOT EXISTS own_collected (
         cid TEXT PRIMARY KEY, collector TEXT NOT NULL) WITHOUT ROWID""",
)
_WITHDRAWN: Final = b""
"""In the place of a digest: no record is like that."""


@dataclass(frozen=True)
class Resource:
    """One identifier of this provider: how it is described, and what leases may take from it."""

    cid: str
    type: Literal["pool", "node"]
    description: ResourceRecord
    capacity: Capacity


def plan_resources(
    configs: Sequence[ResourceConfig],
    *,
    prefix: str,
    machine: LocalMachine,
    runtimes: Sequence[str],
    offloads: Sequence[str],
    endpoint: Endpoint | None,
) -> list[Resource]:
    """The resources that a provider with `prefix` offers. Raises `ConfigError` naming the entry at fault."""
    planned: dict[str, Resource] = {}
    for number, config in enumerate(configs):
        where = f"resources[{number}]"
        try:
            cid = parse_cid(f"ioc:{prefix}/{config.path}")
        except BadIdentifier as error:
            raise ConfigError(f"{where}.path: {error.detail}") from None
        if str(cid) in planned:
            raise ConfigError(f"{where}.path: {config.path!r} is named twice")
        description = _describe(config, cid, machine, tuple(runtimes), tuple(offloads), endpoint)
        planned[str(cid)] = Resource(str(cid), config.type, description, _capacity(config, description))
    return list(planned.values())


def _describe(
    config: ResourceConfig,
    cid: Cid,
    machine: LocalMachine,
    runtimes: tuple[str, ...],
    offloads: tuple[str, ...],
    endpoint: Endpoint | None,
) -> ResourceRecord:
    cores = config.cores or machine.cores
    return ResourceRecord(
        cid=str(cid),
        version=0,
        issued=0,
        expires=0,
        type=config.type,
        place=Place(
            country=cid.prefix[:2] if not cid.prefix.startswith("p2p") else "zz",
            city=cid.city,
            zone=cid.zone,
            latitude_e6=round(config.latitude * 1e6),
            longitude_e6=round(config.longitude * 1e6),
        ),
        cpu=Cpu(architecture=machine.architecture, model=machine.cpu_model, cores=cores, threads=cores),
        memory_mib=config.memory_mib or machine.memory_mib,
        storage_mib=config.storage_mib if config.storage_mib is not None else machine.storage_mib,
        accelerators=tuple(_accelerator(item) for item in config.accelerators),
        network=Network(offloads=offloads),
        runtimes=runtimes,
        services=config.services,
        prices=(Price(unit="core-hour", micro=config.price_micro_per_core_hour),),
        labels=tuple(sorted(config.labels.items())),
        endpoints=(endpoint,) if endpoint is not None else (),
        task_seconds_max=config.task_seconds_max,
    )


def _accelerator(config: AcceleratorConfig) -> Accelerator:
    """Model names are lower case in records, as they are in demands."""
    peaks = {name: round(value * 1000) for name, value in config.tflops.items()}
    return Accelerator(
        type=config.type,
        vendor=config.vendor,
        model=config.model.lower(),
        count=config.count,
        memory_mib=config.memory_mib,
        sharing=config.sharing,
        int8_gops=peaks.pop("int8", 0),
        peak=tuple(sorted(peaks.items())),
    )


def _capacity(config: ResourceConfig, description: ResourceRecord) -> Capacity:
    devices = tuple(
        Device(item.type, item.model, item.memory_mib, item.sharing == "shared", peaks_of(item))
        for item in description.accelerators
        for _ in range(item.count)
    )
    return Capacity(
        cores_milli=description.cpu.cores * 1000,
        memory_mib=description.memory_mib,
        disk_mib=description.storage_mib,
        devices=devices,
        runtimes=description.runtimes,
        price_micro=config.price_micro_per_core_hour,
        wall_seconds_max=config.task_seconds_max,
    )


class RecordSigner:
    """Signs this provider's records with versions that never go back."""

    def __init__(self, store: Store, key: Ed25519PrivateKey) -> None:
        store.require("own_records", _SCHEMA)
        store.require("own_tombstones", _TOMBSTONES)
        store.require("own_collected", _COLLECTED)
        self._store = store
        self._key = key

    def sign(self, description: ResourceRecord, *, now: float) -> Signed:
        """The record as of `now` (seconds since 1970). Raises `ConfigError` where it does not fit."""
        record = msgspec.structs.replace(
            description,
            version=self._version(description),
            issued=int(now),
            expires=int(now) + limits.RECORD_SECONDS_MAX,
        )
        signed = sign(self._key, record)
        size = len(encode(signed))
        if size > limits.RECORD_BYTES_MAX:
            excess = TooLarge(f"{size} bytes, at most {limits.RECORD_BYTES_MAX}")
            raise ConfigError(
                f"record of {record.cid} is {excess}: use fewer labels, services or accelerators"
            )
        return signed

    def withdraw_others(self, cids: Collection[str], *, now: float) -> list[str]:
        """Withdraw every identifier of ours beside `cids`; return those whose tombstones are to be published (also
        those withdrawn before, until no older record can be about).
        """
        rows = self._store.fetch("SELECT cid FROM own_records WHERE digest != ?", (_WITHDRAWN,))
        gone = [(cid,) for (cid,) in rows if cid not in cids]
        with self._store.transaction():
            self._store.execute_many(
                "INSERT OR REPLACE INTO own_tombstones (cid, since) VALUES (?, ?)",
                [(cid, int(now)) for (cid,) in gone],
            )
            self._store.execute_many(
                "UPDATE own_records SET version = version + 1, digest = x'' WHERE cid = ?", gone
            )
            self._store.execute(
                "DELETE FROM own_tombstones WHERE since < ?", (int(now) - limits.RECORD_SECONDS_MAX,)
            )
        left = self._store.fetch("SELECT cid FROM own_tombstones ORDER BY cid")
        return [cid for (cid,) in left if cid not in cids]

    def transaction(self) -> AbstractContextManager[None]:
        """What is signed, noted and withdrawn inside is kept together or not at all. Never await inside."""
        return self._store.transaction()

    def note_collected(self, cid: str, collector: str) -> None:
        """This identifier is there because `collector` found it."""
        self._store.execute(
            "INSERT OR REPLACE INTO own_collected (cid, collector) VALUES (?, ?)", (cid, collector)
        )

    def collected_by(self, collector: str) -> set[str]:
        """What a collector found the last time, also before a restart."""
        rows = self._store.fetch("SELECT cid FROM own_collected WHERE collector = ?", (collector,))
        return {str(cid) for (cid,) in rows}

    def recalling(self, collector: str) -> Generator[None, None, set[str]]:
        """`collected_by` in steps."""
        found: set[str] = set()
        last, rows = "", 1
        while rows:
            page = self._store.fetch(
                "SELECT cid FROM own_collected WHERE cid > ? AND collector = ? ORDER BY cid LIMIT ?",
                (last, collector, RECALLED_PER_STEP),
            )
            rows = len(page)
            found.update(cid for (cid,) in page)
            last = page[-1][0] if page else last
            yield
        return found

    def forget_collectors(self, kept: Iterable[str]) -> None:
        """Forget what was found by others than `kept`: they are not configured any more."""
        keys = set(kept)
        found = self._store.fetch("SELECT DISTINCT collector FROM own_collected")
        self._store.execute_many(
            "DELETE FROM own_collected WHERE collector = ?", [(key,) for (key,) in found if key not in keys]
        )

    def withdraw(self, cid: str, *, now: float) -> None:
        """Withdraw one identifier that a collector does not find any more; its tombstone may be signed then."""
        with self._store.transaction():
            self._store.execute("DELETE FROM own_collected WHERE cid = ?", (cid,))
            self._store.execute(
                "INSERT OR REPLACE INTO own_tombstones (cid, since) VALUES (?, ?)", (cid, int(now))
            )
            self._store.execute(
                "UPDATE own_records SET version = version + 1, digest = x'' WHERE cid = ?", (cid,)
            )

    def sign_tombstone(self, cid: str, *, now: float) -> Signed:
        """What takes the place of a withdrawn identifier's record, as of `now` (seconds since 1970)."""
        expires = int(now) + limits.RECORD_SECONDS_MAX
        return sign(self._key, Tombstone(cid, self.version_of(cid), int(now), expires))

    def version_of(self, cid: str) -> int:
        """The version that was signed last, 0 before the first."""
        rows = self._store.fetch("SELECT version FROM own_records WHERE cid = ?", (cid,))
        return int(rows[0][0]) if rows else 0

    def _version(self, description: ResourceRecord) -> int:
        digest = hashlib.sha256(encode(description)).digest()
        rows = self._store.fetch("SELECT version, digest FROM own_records WHERE cid = ?", (description.cid,))
        if rows and rows[0][1] == digest:
            return int(rows[0][0])
        version = int(rows[0][0]) + 1 if rows else 1
        with self._store.transaction():
            self._store.execute(
                "INSERT OR REPLACE INTO own_records (cid, version, digest) VALUES (?, ?, ?)",
                (description.cid, version, digest),
            )
            self._store.execute("DELETE FROM own_tombstones WHERE cid = ?", (description.cid,))
        return version
