"""Readings of NVIDIA devices, and a driver's library that has these devices and these faults.

The real library is there only where a device is; `test_gpus.py` compares what it says with `nvidia-smi`.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pynvml

from ioc_node.collectors.nvml import DeviceReading

H100 = DeviceReading("NVIDIA H100 80GB HBM3", 81559, 0, 0, 0)


class RecordedNvml:
    """`pynvml` with its own errors, for devices as given; an exception in the place of one is the driver's answer."""

    NVMLError = pynvml.NVMLError
    NVMLError_NotSupported = pynvml.NVMLError_NotSupported
    NVMLError_FunctionNotFound = pynvml.NVMLError_FunctionNotFound
    NVMLError_NoPermission = pynvml.NVMLError_NoPermission
    NVMLError_InvalidArgument = pynvml.NVMLError_InvalidArgument
    nvmlMemory_v2 = pynvml.nvmlMemory_v2

    def __init__(self, devices: Sequence[DeviceReading | Exception], *, old: bool = False) -> None:
        self.devices = devices
        self.fault: Exception | None = None
        self.inits = 0
        self.privileged = True
        self._old = old

    def nvmlInit(self) -> None:
        if self.fault is not None:
            raise self.fault
        self.inits += 1

    def nvmlShutdown(self) -> None:
        self.inits -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> DeviceReading:
        device = self.devices[index]
        if isinstance(device, Exception):
            raise device
        return device

    def nvmlDeviceGetName(self, device: DeviceReading) -> str:
        return device.name

    def nvmlDeviceGetMemoryInfo(self, device: DeviceReading, version: int | None = None) -> Any:
        if self._old and version is not None:
            raise pynvml.NVMLError_FunctionNotFound()
        if device.divided and not self.privileged:  # as nvml.h says of nvmlDeviceGetMemoryInfo in MIG mode
            raise pynvml.NVMLError_NoPermission()
        return SimpleNamespace(total=device.memory_mib << 20, used=device.memory_used_mib << 20)

    def nvmlDeviceGetUtilizationRates(self, device: DeviceReading) -> Any:
        if device.utilisation is None:
            raise pynvml.NVMLError_NotSupported()
        return SimpleNamespace(gpu=device.utilisation)

    def nvmlDeviceGetComputeRunningProcesses(self, device: DeviceReading) -> list[int]:
        return list(range(device.processes))

    def nvmlDeviceGetMigMode(self, device: DeviceReading) -> list[int]:
        if self._old:
            raise pynvml.NVMLError_NotSupported()
        return [int(device.divided), int(device.divided)]
