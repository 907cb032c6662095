"""The resources of the machine that this node runs on."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil

CPU_MODEL_CHARS_MAX = 120


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
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count() or 1,
        memory_mib=psutil.virtual_memory().total >> 20,
        storage_mib=psutil.disk_usage(str(folder)).free >> 20,
    )


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
