"""The collector `local` on a machine with real NVIDIA devices, beside what `nvidia-smi` says of them.

Runs where the rest is not installed: of other packages it needs pytest, trio, msgspec, cryptography, pynacl, psutil and
nvidia-ml-py. `IOC_REQUIRE_GPU=1 PYTHONPATH=.:wire python -m pytest -rA tests/collectors/test_gpus.py`
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from ioc_node.collectors.collector import CollectedHost, free_fault
from ioc_node.collectors.local import LocalCollector
from ioc_node.collectors.peaks import model_of

HOLD_MEMORY = """
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
def call(name, *arguments):
    code = getattr(cuda, name)(*arguments)
    if code:
        sys.exit(f"{name}: error {code}")
device, context, pointer = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
call("cuInit", 0)
call("cuDeviceGet", ctypes.byref(device), 0)
call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
call("cuCtxSetCurrent", context)
call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(int(sys.argv[1]) << 20))
print("held", flush=True)
sys.stdin.read()
"""
SETTLE_SECONDS_MAX = 20.0


@pytest.fixture
def devices() -> list[tuple[str, int]]:
    """Name and MiB of each device, as `nvidia-smi` prints them."""
    program = shutil.which("nvidia-smi")
    if program is None and os.environ.get("IOC_REQUIRE_GPU") != "1":
        pytest.skip("no NVIDIA device here: nvidia-smi is not on the PATH")
    assert program is not None
    query = ["--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    printed = subprocess.run([program, *query], capture_output=True, text=True, check=True, timeout=60).stdout
    rows = (line.rsplit(", ", 1) for line in printed.splitlines())
    return [(name, int(memory)) for name, memory in rows]


def look(folder: Path, sharing: str) -> CollectedHost:
    collector = LocalCollector({"path": "ai/3301/az1/me", "sharing": sharing}, folder)
    started = time.monotonic()
    collected = trio.run(collector.collect)
    print(f"{collected.hosts[0]} in {time.monotonic() - started:.3f} s")  # noqa: T201 - shown with -rA
    assert collected.refused == ()
    (found,) = collected.hosts
    assert found.free is not None
    assert free_fault(found.host, found.free) == ""
    return found


def free_milli(folder: Path, sharing: str) -> int:
    free = look(folder, sharing).free
    assert free is not None
    return sum(free.accelerators_milli)


def wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + SETTLE_SECONDS_MAX
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.2)


def test_the_devices_are_those_that_nvidia_smi_shows(devices: list[tuple[str, int]], tmp_path: Path) -> None:
    found = look(tmp_path, "exclusive")
    told = [(group.model, group.memory_mib) for group in found.host.accelerators for _ in range(group.count)]
    assert sorted(told) == sorted((model_of(name), memory) for name, memory in devices)
    if any("H100 80GB HBM3" in name for name, _ in devices):
        (h100,) = (group for group in found.host.accelerators if group.model == "h100")
        assert (h100.vendor, h100.tflops["fp64"]) == ("nvidia", 34.0)


def test_a_process_takes_a_device_and_gives_it_back(devices: list[tuple[str, int]], tmp_path: Path) -> None:
    exclusive, shared = (partial(free_milli, tmp_path, sharing) for sharing in ("exclusive", "shared"))
    before, before_shared = exclusive(), shared()
    assert before >= 1000, "another process computes here: nothing can be seen"
    eighth = devices[0][1] // 8
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_MEMORY, str(eighth)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        wait_until(lambda: exclusive() == before - 1000)
        wait_until(lambda: 0 < shared() <= before_shared - 125)
    finally:
        holder.kill()
        holder.communicate()
    wait_until(lambda: exclusive() == before)
