"""What every collector has in common: it tells which hosts there are, what of them is free, and what it refused.

A collector looks somewhere (this machine, a file, a cluster's scheduler) and returns all it found, each time anew. It
knows nothing of records, keys or the network: what is new, changed or gone is for `ioc_node.collecting` to find out.
Collectors are entry points of the group `ioc_node.collectors`: a callable that takes the options of its table
`[[collectors]]` in config.toml, and the folder that relative paths start from. It raises `BadCollector` for options
that it cannot use.
"""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Protocol

import msgspec

from ioc_node.errors import NodeError, UsageError
from ioc_wire.codec import Name, ShortText, UInt
from ioc_wire.records import Tflops

ENTRY_POINTS: Final = "ioc_node.collectors"
BUILT_IN: Final[dict[str, str]] = {
    "inventory": "ioc_node.collectors.inventory:InventoryCollector",
    "local": "ioc_node.collectors.local:LocalCollector",
    "slurm": "ioc_node.collectors.slurm:SlurmCollector",
}
"""Ours; an entry point of another package adds to them."""
HOSTS_MAX: Final = 65_536
"""Hosts of one collector: a provider's catalogue has no more slots."""
CORES_MAX: Final = 4096
MEMORY_MIB_MAX: Final = 1 << 27
"""128 TiB; above this a size is taken for one in another unit."""
DEVICES_MAX: Final = 1024
COLUMN_CHARS_MAX: Final = 64
REASON_CHARS_MAX: Final = 300
"""Of what was refused, as people see it: a cell may hold megabytes."""

Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]


class BadCollector(UsageError):
    """A collector that is not there, or options of it that cannot be used."""


class CollectorFailed(NodeError):
    """Nothing could be collected this time, and why."""


class Devices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A group of equal accelerators of one host; `memory_mib` of one device, `tflops` by precision."""

    type: Name = "gpu"
    vendor: ShortText = ""
    model: Name
    count: Annotated[int, msgspec.Meta(ge=1, le=DEVICES_MAX)]
    memory_mib: Annotated[int, msgspec.Meta(ge=0, le=MEMORY_MIB_MAX)]
    sharing: Literal["exclusive", "shared"] = "exclusive"
    tflops: Tflops = msgspec.field(default_factory=dict)


class Host(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One host: `path` is class/city/zone/host below the provider's prefix."""

    path: str
    architecture: Name = "x86_64"
    cpu_model: ShortText = ""
    cores: Annotated[int, msgspec.Meta(ge=1, le=CORES_MAX)]
    memory_mib: Annotated[int, msgspec.Meta(ge=1, le=MEMORY_MIB_MAX)]
    storage_mib: Size = 0
    accelerators: tuple[Devices, ...] = ()
    price_micro_per_core_hour: UInt = 0
    latitude: Annotated[float, msgspec.Meta(ge=-90, le=90)] = 0.0
    longitude: Annotated[float, msgspec.Meta(ge=-180, le=180)] = 0.0
    services: tuple[Name, ...] = ()
    labels: dict[Name, ShortText] = msgspec.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Free:
    """What of a host can be had now: core thousandths, MiB, thousandths of the devices of each group together."""

    cores_milli: int
    memory_mib: int
    accelerators_milli: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class CollectedHost:
    """`free` is None while the host is out of service. `line` is where its source names it, from 1."""

    host: Host
    free: Free | None
    line: int = 0


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """One thing that was left out: where it stands, in which column (empty: all of it), and what is wrong."""

    line: int
    column: str
    reason: str

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        column = f"{str(self.column)[:COLUMN_CHARS_MAX]}: " if self.column else ""
        return f"{where}{column}{str(self.reason)[:REASON_CHARS_MAX]}"


@dataclass(frozen=True, slots=True)
class Collected:
    """All that there is now. `source` is for people: a file's name, a cluster's."""

    source: str
    hosts: tuple[CollectedHost, ...]
    refused: tuple[RefusedRow, ...] = ()


class Collector(Protocol):
    """Looks once each time that it is asked."""

    async def collect(self) -> Collected | None:
        """Everything that there is now, or None where nothing changed since the last time.

        Raises `CollectorFailed`: nothing is known this time, and what was told before stands.
        """
        ...


def whole(host: Host) -> Free:
    """All of a host."""
    return Free(host.cores * 1000, host.memory_mib, tuple(group.count * 1000 for group in host.accelerators))


def free_fault(host: Host, free: Free) -> str:
    """Why `free` cannot be of `host`: what is in use would be less than nothing. Empty where it can."""
    total = whole(host)
    pairs = [
        ("core thousandths", free.cores_milli, total.cores_milli),
        ("MiB of memory", free.memory_mib, total.memory_mib),
    ]
    if len(free.accelerators_milli) != len(total.accelerators_milli):
        return f"free accelerators of {len(free.accelerators_milli)} groups, the host has {len(host.accelerators)}"
    for group, part, all_of_it in zip(
        host.accelerators, free.accelerators_milli, total.accelerators_milli, strict=True
    ):
        pairs.append((f"thousandths of {group.model}", part, all_of_it))
    for what, part, all_of_it in pairs:
        if type(part) is not int:  # code may have made it: a float would spoil the provider's whole status
            return f"{str(part)[:40]} {what} are free: not an int"
        if part < 0:
            return f"{part} {what} are free: more is in use than there is"
        if part > all_of_it:
            return f"{part} {what} are free of {all_of_it}: less than nothing would be in use"
    return ""


def check_host(host: Host) -> Host:
    """The same host, its values as its type says: code made it, and nothing checked them. Raises
    `msgspec.ValidationError`."""
    return msgspec.convert(msgspec.to_builtins(host), Host, strict=True)


def load_collector(name: str, options: Mapping[str, Any], folder: Path) -> Collector:
    """The collector of an entry point. Raises `BadCollector`."""
    points = importlib.metadata.entry_points(group=ENTRY_POINTS)
    own = (importlib.metadata.EntryPoint(each, value, ENTRY_POINTS) for each, value in BUILT_IN.items())
    found = {point.name: point for point in (*points, *own)}
    point = found.get(name)
    if point is None:
        raise BadCollector(
            f"collector {name!r} is not installed; there are: {', '.join(sorted(found)) or 'none'}"
        )
    try:
        make = point.load()
    except Exception as error:  # noqa: BLE001 - a module of others may raise anything
        raise BadCollector(f"collector {name!r} cannot be loaded from {point.value}: {error}") from None
    try:
        collector: Collector = make(options, folder)
    except NodeError:
        raise
    except Exception as error:  # noqa: BLE001 - so may its maker
        raise BadCollector(f"collector {name!r}: options: {type(error).__name__}: {error}") from None
    return collector


def read_options(options: Mapping[str, Any], kind: type[Any], name: str) -> Any:
    """The options of a collector, checked. Raises `BadCollector` naming the key."""
    try:
        return msgspec.convert(dict(options), kind, strict=True)
    except msgspec.ValidationError as error:
        raise BadCollector(f"collector {name!r}: options: {error}") from None
