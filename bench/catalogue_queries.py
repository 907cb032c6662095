"""The demands of `bench.catalogue`, each with the SQL that asks SQLite and DuckDB the same, and the rows they ask of.

`selective` demands leave some dozens to hundreds of a million hosts, `broad` ones a quarter to a half. SQL is asked for
names and prices of the 32 cheapest alone; ours answers with their signed records, and says how many rows each condition
removed. That both find the same number of hosts is checked.
"""

import csv
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.catalogue_files import Made
from bench.catalogue_records import Provider
from ioc_node.market.demand import make_demand
from ioc_node.market.pricing import prices_of
from ioc_wire.cid import parse_cid
from ioc_wire.codec import decode
from ioc_wire.market import Demand
from ioc_wire.records import ResourceRecord, StatusRow, decode_entry

COLUMNS: Final = (
    "provider", "slot", "cid", "node", "class", "city", "architecture", "runtimes", "cores", "memory", "disk",
    "seconds", "model", "gpus", "fp16", "core_hour", "gpu_hour", "gib_hour", "tie", "free_cores", "free_memory",
    "free_gpus", "queued", "fresh",
)  # fmt: skip
"""Cores and GPUs in thousandths, memory and disk in MiB, prices in millionths; `fresh` is 1 where there is status."""


class Case(NamedTuple):
    """A demand, and what it is in SQL over `COLUMNS`: conditions and the estimate of its price."""

    demand: Demand
    where: str
    estimate: str


def _case(where: str, **options: Any) -> Case:
    demand = make_demand(duration="1h", **options)
    resources = demand.resources
    gpus = sum(item.count_milli for item in resources.accelerators)
    common = (
        f"fresh = 1 AND cores >= {resources.cores * 1000:.0f} AND free_cores >= {resources.cores * 1000:.0f}"
        f" AND memory >= {resources.memory_mib} AND free_memory >= {resources.memory_mib}"
        f" AND disk >= {resources.disk_mib} AND seconds >= 3600"
    )
    if gpus:
        common += f" AND gpus >= {gpus} AND free_gpus >= {gpus}"
    estimate = (
        f"core_hour * {resources.cores:.1f} + gpu_hour * {gpus / 1000:.1f}"
        f" + gib_hour * {resources.memory_mib / 1024:.3f}"
    )
    return Case(demand, f"{where} AND {common}", estimate)


_WASM: Final = "runtimes LIKE '%wasm%'"
DEMANDS: Final = {
    "selective": (
        _case("model = 'v100m32' AND class = 'ai'", accelerators="gpu:v100m32:8", cores=32, memory="128GiB",
              resource_class="ai"),
        _case("model = 'g3' AND city = '3301'", accelerators="gpu:g3:4", cores=64, memory="64GiB", cities="3301"),
        _case("model = 'a10'", accelerators="gpu:a10:1", cores=64, memory="256GiB"),
        _case(f"model = 't4' AND city = '5101' AND architecture = 'aarch64' AND {_WASM}",
              accelerators="gpu:t4:0.5", cores=80, memory="400GiB", cities="5101", architectures="aarch64",
              runtimes="wasm"),
    ),
    "broad": (
        _case(_WASM, cores=4, memory="8GiB", runtimes="wasm"),
        _case("1 = 1", cores=1, memory="1GiB"),
        _case("fp16 >= 100000", accelerators="gpu:1", precision="fp16", min_tflops=100, cores=8, memory="16GiB"),
        _case("architecture = 'x86_64' AND class = 'ai'", cores=16, memory="64GiB", architectures="x86_64",
              resource_class="ai"),
    ),
}  # fmt: skip


def sql_of(kind: str) -> list[dict[str, str]]:
    """The demands of a kind, for a system that reads SQL."""
    return [{"where": case.where, "estimate": case.estimate} for case in DEMANDS[kind]]


def hosts_file(made: Made) -> Path:
    """Every host with its first status, as CSV; made where it is missing."""
    path = made.folder / "hosts.csv"
    if not path.exists():
        unfinished = path.with_suffix(".part")
        with unfinished.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(COLUMNS)
            for number in range(made.population.providers):
                rows.writerows(_hosts(made, number))
        unfinished.rename(path)
    return path


def _hosts(made: Made, number: int) -> Iterator[tuple[Any, ...]]:
    provider: Provider = made.population.provider(number)
    statuses = {row.slot: row for part in provider.parts for row in provider.status_rows(part)}
    _, entries = made.catalogue(number)
    for data in entries:
        entry = decode_entry(data)
        assert entry.record is not None
        record = decode(entry.record.payload, ResourceRecord)
        if record.type == "node":
            yield _host(number, entry.slot, record, statuses.get(entry.slot))


def _host(number: int, slot: int, record: ResourceRecord, status: StatusRow | None) -> tuple[Any, ...]:
    cid, prices = parse_cid(record.cid), prices_of(record.prices)
    gpu = record.accelerators[0] if record.accelerators else None
    tie = int.from_bytes(hashlib.sha256(record.cid.encode()).digest()[:7], "big")
    free = (0, 0, 0, 0, 0)
    if status is not None:
        devices = sum(status.free_accelerators_milli)
        free = (status.free_cores_milli, status.free_memory_mib, devices, status.queued, 1)
    return (
        number, slot, record.cid, cid.prefix.split(".")[1], cid.resource_class, cid.city, record.cpu.architecture,
        " ".join(record.runtimes), record.cpu.cores * 1000, record.memory_mib, record.storage_mib,
        record.task_seconds_max, gpu.model if gpu else "", gpu.count * 1000 if gpu else 0,
        dict(gpu.peak).get("fp16", 0) if gpu else 0, prices.core_hour, prices.accelerator_hour, prices.gib_hour,
        tie, *free,
    )  # fmt: skip
