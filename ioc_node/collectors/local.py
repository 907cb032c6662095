"""The resources of the machine that this node runs on: what `[[resources]]` leaves out, and the collector `local`.

The collector tells what of this machine is free at the moment, whoever uses it: cores by their load since its last
look, memory as the kernel counts it available, NVIDIA devices by NVML. Its host takes no tasks of this node (as all
collected ones); a machine that runs tasks is named in `[[resources]]`, and there the leases say what is free.
"""

import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import psutil
import trio

from ioc_node.collectors.collector import (
    Collected,
    CollectedHost,
    CollectorFailed,
    Devices,
    Free,
    Host,
    RefusedRow,
    read_options,
)
from ioc_node.collectors.nvml import Readings, group_devices, load_nvml, read_devices
from ioc_wire.codec import Name, ShortText, UInt

CPU_MODEL_CHARS_MAX = 120
FIRST_LOOK_SECONDS: Final = 0.1
"""Over which load is measured the first time."""
CORE_STEP_MILLI: Final = 100
MEMORY_STEP_MIB: Final = 64
"""Free cores and memory are told in steps, rounded down: what flickers below them is not worth a status."""
NVML_SECONDS_MAX: Final = 10.0


@dataclass(frozen=True, slots=True)
class LocalMachine:
    """What tasks could be given here. `cores` are the CPUs this process may use; memory and storage are MiB: all of
    the memory, and what is free now where tasks would write."""

    architecture: str
    cpu_model: str
    cores: int
    memory_mib: int
    storage_mib: int


def look_at_machine(folder: Path) -> LocalMachine:
    """Look once. `folder` is where tasks write; it or one of its parents exists."""
    while not folder.exists():
        folder = folder.parent
    return LocalMachine(
        architecture=platform.machine(),
        cpu_model=_cpu_model()[:CPU_MODEL_CHARS_MAX],
        cores=len(_own_cpus()),
        memory_mib=psutil.virtual_memory().total >> 20,
        storage_mib=psutil.disk_usage(str(folder)).free >> 20,
    )


def _own_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(psutil.cpu_count() or 1))


def _cpu_model() -> str:
    """As Linux names it; elsewhere, and on machines whose kernel names none, what Python knows."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return " ".join(value.split())
    except OSError:
        pass
    return platform.processor() or "unknown"


class LocalOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`path` names this machine: class/city/zone/host. `sharing` of its devices: whole ones, or by thousandths."""

    path: str
    gpus: bool = True
    sharing: Literal["exclusive", "shared"] = "exclusive"
    price_micro_per_core_hour: UInt = 0
    latitude: float = 0.0
    longitude: float = 0.0
    services: tuple[Name, ...] = ()
    labels: dict[Name, ShortText] = msgspec.field(default_factory=dict)


class LocalCollector:
    """Collects from this machine. `read` reads the devices; None: as this machine's driver has it."""

    def __init__(
        self, options: Mapping[str, Any], folder: Path, *, read: Callable[[], Readings] | None = None
    ) -> None:
        self._options: LocalOptions = read_options(options, LocalOptions, "local")
        self._storage_mib = look_at_machine(folder).storage_mib // 1024 * 1024
        self._read = read if read is not None else _read_with_nvml
        self._folder = folder
        self._load = CoreLoad()
        self._groups: tuple[Devices, ...] = ()
        self._reading = False

    async def collect(self) -> Collected:
        """This machine as it is now."""
        machine = await trio.to_thread.run_sync(look_at_machine, self._folder)
        readings = await self._devices() if self._options.gpus else Readings(())
        if not readings.devices and readings.faults:  # what there was is still there, but cannot be had
            free_milli = (0,) * len(self._groups)
        else:
            grouped = group_devices(readings.devices, self._options.sharing)
            self._groups = tuple(group for group, _ in grouped)
            free_milli = tuple(free for _, free in grouped)
        divided = sum(each.divided for each in readings.devices)
        document = msgspec.to_builtins(self._options)
        del document["gpus"], document["sharing"]
        if divided:
            document["labels"]["mig"] = f"{divided} of {len(readings.devices)} devices"
        try:
            host = msgspec.convert(
                document
                | {
                    "architecture": machine.architecture,
                    "cpu_model": machine.cpu_model,
                    "cores": machine.cores,
                    "memory_mib": machine.memory_mib,
                    "storage_mib": self._storage_mib,
                    "accelerators": msgspec.to_builtins(self._groups),
                },
                Host,
            )
        except msgspec.ValidationError as error:
            raise CollectorFailed(f"local: {error}") from None
        free = Free(await self._load.free_milli(), _free_memory_mib(), free_milli)
        faults = tuple(RefusedRow(0, "", fault) for fault in readings.faults)
        return Collected("this machine", (CollectedHost(host, free),), faults)

    async def _devices(self) -> Readings:
        """Read in a thread that is left behind if the driver doesn't answer; no second one is sent after it."""
        if self._reading:
            return Readings((), ("NVML: the driver has not answered for a while",))
        with trio.move_on_after(NVML_SECONDS_MAX):
            return await trio.to_thread.run_sync(self._read_once, abandon_on_cancel=True)
        return Readings((), (f"NVML: no answer within {NVML_SECONDS_MAX:g} s",))

    def _read_once(self) -> Readings:
        self._reading = True  # here: a thread may be waited for in vain
        try:
            return self._read()
        finally:
            self._reading = False


def _read_with_nvml() -> Readings:
    try:
        nvml = load_nvml()
    except ImportError as error:
        return Readings((), (f"NVML: {error}",))
    return read_devices(nvml) if nvml is not None else Readings(())


def _free_memory_mib() -> int:
    memory = psutil.virtual_memory()
    return min(memory.available, memory.total) // (MEMORY_STEP_MIB << 20) * MEMORY_STEP_MIB


class CoreLoad:
    """How busy the CPUs of this process were since it was asked last, whoever used them."""

    def __init__(self) -> None:
        self._before: dict[int, tuple[float, float]] = {}

    async def free_milli(self) -> int:
        """Core thousandths that were idle, rounded down to steps."""
        if not self._before:
            self._before = _cpu_seconds()
            await trio.sleep(FIRST_LOOK_SECONDS)
        now, before = _cpu_seconds(), self._before
        self._before = now
        free = 0.0
        for cpu, (idle, total) in now.items():
            idle_before, total_before = before.get(cpu, (0.0, 0.0))
            passed = total - total_before
            free += min(1.0, max(0.0, (idle - idle_before) / passed)) if passed > 0 else 1.0
        return int(free * 1000) // CORE_STEP_MILLI * CORE_STEP_MILLI


def _cpu_seconds() -> dict[int, tuple[float, float]]:
    """Per CPU of this process: seconds idle (or waiting for a disk), and in all."""
    own = _own_cpus()
    return {
        number: (times.idle + getattr(times, "iowait", 0.0), sum(times) - _counted_twice(times))
        for number, times in zip(_numbers(), psutil.cpu_times(percpu=True), strict=False)
        if number in own
    }


def _numbers() -> Iterable[int]:
    """Of the CPUs whose times psutil lists, in its order: on Linux one that is offline is left out there."""
    try:
        text = Path(psutil.PROCFS_PATH, "stat").read_text(encoding="utf-8")
    except (AttributeError, OSError):
        return count()
    return map(int, re.findall(r"^cpu([0-9]+) ", text, re.MULTILINE))


def _counted_twice(times: Any) -> float:
    """Linux counts guests' time as user time too."""
    return float(getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0))
