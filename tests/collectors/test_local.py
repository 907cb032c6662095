"""What this machine has and has free, its NVIDIA devices by recorded readings, and a driver that fails."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pynvml
import pytest
import trio

from ioc_node.collectors import local, nvml
from ioc_node.collectors.collector import BadCollector, CollectedHost, free_fault
from ioc_node.collectors.local import CoreLoad, LocalCollector
from ioc_node.collectors.nvml import DeviceReading, Readings, free_milli, group_devices, read_devices
from ioc_node.collectors.peaks import model_of, name_words, nominal_tflops
from tests.collectors.recorded_devices import H100, RecordedNvml

PATH = {"path": "ai/3301/az1/me"}


def none() -> Readings:
    return Readings(())


async def look(collector: LocalCollector) -> tuple[CollectedHost, list[str]]:
    collected = await collector.collect()
    (found,) = collected.hosts
    assert found.free is not None
    assert free_fault(found.host, found.free) == ""
    return found, [str(row) for row in collected.refused]


async def test_this_machine(tmp_path: Path) -> None:
    collector = LocalCollector(PATH | {"labels": {"rack": "r1"}}, tmp_path, read=none)
    found, faults = await look(collector)
    assert faults == []
    assert (found.host.cores, found.host.labels) == (len(os.sched_getaffinity(0)), {"rack": "r1"})
    assert found.host.memory_mib == psutil.virtual_memory().total >> 20
    assert found.free is not None
    assert found.free.memory_mib % 64 == 0
    assert found.free.memory_mib > 0
    again, _ = await look(collector)
    assert again.host == found.host  # what it is doesn't change with what is free


@pytest.fixture
def busy_machine() -> Iterator[None]:
    """A process for each CPU that does nothing but keep it busy."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)]
    yield
    for process in busy:
        process.kill()
        process.wait()


@pytest.mark.usefixtures("busy_machine")
async def test_busy_cores_are_not_free(tmp_path: Path) -> None:
    collector = LocalCollector(PATH, tmp_path, read=none)
    free = 1
    with trio.fail_after(20):
        while free:
            found, _ = await look(collector)
            assert found.free is not None
            free = found.free.cores_milli
            await trio.sleep(0.3)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("NVIDIA A100 80GB PCIe", "a100"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("Tesla T4", "t4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada"),
        ("NVIDIA RTX A6000", "rtx-a6000"),
        ("NVIDIA Graphics Device", "unknown"),
    ],
)
def test_a_drivers_name_as_demands_say_it(name: str, model: str) -> None:
    assert model_of(name) == model


def test_nominal_rates_are_of_the_variant_or_not_claimed() -> None:
    def peak(name: str) -> float | None:
        return nominal_tflops(model_of(name), name_words(name)).get("fp16")

    assert peak("NVIDIA H100 80GB HBM3") == 989.5
    assert peak("NVIDIA H100 PCIe") == 756.5
    assert peak("NVIDIA H200") == 989.5
    assert peak("NVIDIA H200 NVL") == 835.5
    assert peak("NVIDIA H100 64GB HBM2") is None  # a variant that the table lacks
    assert peak("NVIDIA GeForce RTX 4090") is None
    assert nominal_tflops("h100") == {}  # which one?
    assert nominal_tflops("A100")["fp16"] == 312.0  # both are alike


def test_devices_are_read_and_grouped() -> None:
    small = DeviceReading("NVIDIA A100-SXM4-40GB", 40960, 30000, 80, 1)
    driver = RecordedNvml([H100, small, replace(H100, processes=1)])
    readings = read_devices(driver)
    assert readings == Readings((H100, small, replace(H100, processes=1)))
    assert driver.inits == 0
    (h100, free), (a100, none_free) = group_devices(readings.devices, "exclusive")
    assert (h100.model, h100.vendor, h100.count, h100.memory_mib, free) == ("h100", "nvidia", 2, 81559, 1000)
    assert (a100.model, a100.count, none_free) == ("a100", 1, 0)
    assert h100.tflops["fp64"] == 34.0


@pytest.mark.parametrize(
    ("device", "exclusive", "shared"),
    [
        (H100, 1000, 1000),
        (replace(H100, memory_used_mib=600), 1000, 992),  # what a driver keeps for itself
        (replace(H100, memory_used_mib=20000), 0, 754),  # by a process that is not shown
        (replace(H100, processes=2, utilisation=40, memory_used_mib=8156), 0, 600),
        (replace(H100, processes=1, utilisation=100, memory_used_mib=81559), 0, 0),
        (replace(H100, utilisation=None, memory_used_mib=40780), 0, 499),
        (replace(H100, divided=True), 0, 0),
        (replace(H100, memory_mib=0), 1000, 1000),
    ],
)
def test_what_of_a_device_is_free(device: DeviceReading, exclusive: int, shared: int) -> None:
    assert (free_milli(device, "exclusive"), free_milli(device, "shared")) == (exclusive, shared)


def test_an_old_driver_and_a_lost_device() -> None:
    readings = read_devices(RecordedNvml([pynvml.NVMLError_GpuIsLost(), H100], old=True))
    assert readings == Readings((H100,), ("NVML: device 0: GPU is lost",))


def test_a_divided_device_is_counted_without_privileges_too() -> None:
    driver = RecordedNvml([H100, replace(H100, divided=True)])
    driver.privileged = False
    readings = read_devices(driver)
    assert readings == Readings((H100, replace(H100, memory_mib=0, divided=True)))
    told = [(group.model, group.count, free) for group, free in group_devices(readings.devices, "exclusive")]
    assert told == [("h100", 1, 1000), ("h100", 1, 0)]


async def test_a_driver_that_fails_stops_nobody(tmp_path: Path) -> None:
    driver = RecordedNvml([H100, replace(H100, divided=True)])
    collector = LocalCollector(PATH, tmp_path, read=lambda: read_devices(driver))
    found, faults = await look(collector)
    assert faults == []
    assert found.free is not None
    assert found.free.accelerators_milli == (1000,)
    assert found.host.labels == {"mig": "1 of 2 devices"}
    driver.fault = pynvml.NVMLError_DriverNotLoaded()
    failed, faults = await look(collector)
    assert faults == ["NVML: Driver Not Loaded"]
    assert failed.host.accelerators == found.host.accelerators  # still there, but not to be had
    assert failed.free is not None
    assert failed.free.accelerators_milli == (0,)
    fresh, faults = await look(LocalCollector(PATH, tmp_path, read=lambda: read_devices(driver)))
    assert (fresh.host.accelerators, faults) == ((), ["NVML: Driver Not Loaded"])


async def test_a_driver_that_hangs_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "NVML_SECONDS_MAX", 0.1)
    answered, calls = threading.Event(), []

    def hang() -> Readings:
        calls.append(1)
        answered.wait(30)
        return Readings((H100,))

    collector = LocalCollector(PATH, tmp_path, read=hang)
    try:
        assert (await look(collector))[1] == ["NVML: no answer within 0.1 s"]
        assert (await look(collector))[1] == ["NVML: the driver has not answered for a while"]
        assert calls == [1]  # no second thread is sent after the first
    finally:
        answered.set()
    with trio.fail_after(10):
        while (await look(collector))[1]:
            await trio.sleep(0.01)


async def test_a_driver_that_was_never_asked_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All threads of the node were busy for too long."""
    monkeypatch.setattr(local, "NVML_SECONDS_MAX", 0.05)
    limiter = trio.to_thread.current_default_thread_limiter()
    collector = LocalCollector(PATH, tmp_path, read=none)
    busy = [object() for _ in range(int(limiter.total_tokens))]
    for each in busy:
        limiter.acquire_on_behalf_of_nowait(each)
    try:
        assert (await collector._devices()).faults == ("NVML: no answer within 0.05 s",)
    finally:
        for each in busy:
            limiter.release_on_behalf_of(each)
    assert await collector._devices() == none()


async def test_cpus_that_are_offline_shift_no_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine whose second threads are switched off."""
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 2})
    load, told = CoreLoad(), []
    for idle in (0, 100):
        rows = [f"cpu{number} 100 0 0 {idle} 0 0 0 0 0 0" for number in (0, 2)]
        (tmp_path / "stat").write_text("\n".join(["cpu 0 0 0 0 0 0 0 0 0 0", *rows, "intr 0"]))
        told.append(await load.free_milli())
    assert told == [2000, 2000]


async def test_a_machine_without_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "LIBRARY", "libno-such-driver.so.1")
    found, faults = await look(LocalCollector(PATH, tmp_path))
    assert (found.host.accelerators, faults) == ((), [])
    monkeypatch.setattr(nvml, "LIBRARY", "libc.so.6")  # a driver, but nothing to ask it with
    monkeypatch.setitem(sys.modules, "pynvml", None)
    _, (fault,) = await look(LocalCollector(PATH, tmp_path))
    assert fault.startswith("NVML: ")
    found, faults = await look(LocalCollector(PATH | {"gpus": False}, tmp_path))
    assert faults == []


@pytest.mark.parametrize("given", [{}, {"path": "a", "sharing": "some"}, {"path": "a", "gpu": True}])
def test_options_are_checked(tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(BadCollector, match="collector 'local': options: "):
        LocalCollector(given, tmp_path)
