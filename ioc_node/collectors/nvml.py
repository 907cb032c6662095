"""The NVIDIA devices of this machine, as the driver's own library tells them.

NVML is asked through NVIDIA's `nvidia-ml-py`, and only where the driver has installed `libnvidia-ml.so.1`. It is the
driver's code in our process, so it is kept at arm's length: its errors are words, not exceptions, and who calls
`read_devices` does so in a thread that can be left behind. Devices that MIG divides are counted and left alone.
https://docs.nvidia.com/deploy/nvml-api/
"""

import contextlib
import ctypes
import importlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from ioc_node.collectors.collector import Devices
from ioc_node.collectors.peaks import model_of, name_words, nominal_tflops

LIBRARY: Final = "libnvidia-ml.so.1"
DEVICES_MAX: Final = 64
IN_USE_SHARE: Final = 0.05
"""A device that nobody computes on, but of whose memory more than this is taken, is taken: processes in another
container may not be shown."""


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """One device at one moment. `name` as the driver gives it; memory in MiB, 0 where it isn't told; `utilisation` in
    percent, None where the device doesn't tell; `processes` that compute on it."""

    name: str
    memory_mib: int
    memory_used_mib: int
    utilisation: int | None
    processes: int
    divided: bool = False
    """By MIG."""


@dataclass(frozen=True, slots=True)
class Readings:
    """All devices that could be read, and what could not, in words."""

    devices: tuple[DeviceReading, ...]
    faults: tuple[str, ...] = ()


def load_nvml() -> Any | None:
    """The module `pynvml`, or None where this machine has no NVIDIA driver. Raises `ImportError`."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return None
    return importlib.import_module("pynvml")


def read_devices(nvml: Any) -> Readings:
    """Read every device once. `nvml` is `pynvml`, or something with its functions. Blocks."""
    devices: list[DeviceReading] = []
    faults: list[str] = []
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return Readings((), (f"NVML: {error}",))
    try:
        count = int(nvml.nvmlDeviceGetCount())
        for index in range(min(count, DEVICES_MAX)):
            try:
                devices.append(_read_device(nvml, nvml.nvmlDeviceGetHandleByIndex(index)))
            except nvml.NVMLError as error:
                faults.append(f"NVML: device {index}: {error}")
    except nvml.NVMLError as error:
        faults.append(f"NVML: {error}")
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()
    return Readings(tuple(devices), tuple(faults))


def _read_device(nvml: Any, handle: Any) -> DeviceReading:
    divided = bool(_told(nvml, lambda: int(nvml.nvmlDeviceGetMigMode(handle)[0])))
    try:
        memory = _memory(nvml, handle)
        total, used = int(memory.total) >> 20, int(memory.used) >> 20
    except nvml.NVMLError_NoPermission:
        if not divided:
            raise
        total = used = 0  # of a divided one only root is told
    return DeviceReading(
        name=str(nvml.nvmlDeviceGetName(handle)),
        memory_mib=total,
        memory_used_mib=used,
        utilisation=_told(nvml, lambda: int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)),
        processes=_told(nvml, lambda: len(nvml.nvmlDeviceGetComputeRunningProcesses(handle))) or 0,
        divided=divided,
    )


def _told(nvml: Any, ask: Callable[[], int]) -> int | None:
    """The answer, or None where this device or driver has none to give."""
    try:
        return ask()
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound, nvml.NVMLError_NoPermission):
        return None


def _memory(nvml: Any, handle: Any) -> Any:
    """`total` and `used` in bytes, without what the driver reserves for itself where it tells that apart."""
    try:
        return nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound, nvml.NVMLError_InvalidArgument):
        return nvml.nvmlDeviceGetMemoryInfo(handle)


def group_devices(
    devices: tuple[DeviceReading, ...], sharing: Literal["exclusive", "shared"]
) -> list[tuple[Devices, int]]:
    """Groups of equal devices, with the thousandths of each that are free."""
    counts: Counter[tuple[str, int]] = Counter((each.name, each.memory_mib) for each in devices)
    free: Counter[tuple[str, int]] = Counter()
    for each in devices:
        free[each.name, each.memory_mib] += free_milli(each, sharing)
    return [
        (
            Devices(
                vendor="nvidia",
                model=model_of(name),
                count=count,
                memory_mib=memory_mib,
                sharing=sharing,
                tflops=nominal_tflops(model_of(name), name_words(name)),
            ),
            free[name, memory_mib],
        )
        for (name, memory_mib), count in counts.items()
    ]


def free_milli(device: DeviceReading, sharing: Literal["exclusive", "shared"]) -> int:
    """Thousandths of one device that can be had. One that MIG divides cannot be had whole; one that is not shared is
    free or not; of a shared one there is what neither load nor memory takes."""
    if device.divided:
        return 0
    memory_free = 1 - device.memory_used_mib / max(1, device.memory_mib)
    if sharing == "exclusive":
        return 0 if device.processes or memory_free < 1 - IN_USE_SHARE else 1000
    return max(0, min(1000 - 10 * (device.utilisation or 0), int(1000 * memory_free)))
