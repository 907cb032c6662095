"""What a process of `bench.catalogue` says of itself: memory, CPU, bytes on TCP connections, stalls of its loop."""

import os
import socket
import struct
import time
from pathlib import Path
from typing import Any, Final

import trio

_TCP_INFO: Final = getattr(socket, "TCP_INFO", 11)
_BYTES_AT: Final = 120
"""Where `tcpi_bytes_acked` and `tcpi_bytes_received` stand in Linux's `struct tcp_info`."""


class StepTimes(trio.abc.Instrument):
    """The longest that any task kept the trio loop, by the task's name: who stalls everybody, and for how long. On a
    busy machine the loop is kept as well by whoever else runs: `longest_cpu_ms` leaves that out.
    """

    def __init__(self) -> None:
        self.longest_ms: dict[str, float] = {}
        self.longest_cpu_ms: dict[str, float] = {}
        self._began = self._cpu_began = 0.0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._cpu_began = time.thread_time()
        self._began = time.perf_counter()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if not self._began:
            return  # the step that installed this instrument
        took_ms = (time.perf_counter() - self._began) * 1000
        if took_ms <= 1.0:
            return
        cpu_ms = (time.thread_time() - self._cpu_began) * 1000
        for longest, ms in ((self.longest_ms, took_ms), (self.longest_cpu_ms, cpu_ms)):
            if ms > longest.get(task.name, 1.0):
                longest[task.name] = ms

    def take(self) -> tuple[dict[str, float], dict[str, float]]:
        """The longest steps above a millisecond since the last call, longest first; likewise in CPU time."""
        taken = self.longest_ms, self.longest_cpu_ms
        self.longest_ms, self.longest_cpu_ms = {}, {}
        first, second = (dict(sorted(one.items(), key=lambda item: -item[1])[:6]) for one in taken)
        return first, second


def memory_mb() -> tuple[float, float]:
    """Resident memory now, and at its peak since `forget_peak`, in 10^6 bytes."""
    lines = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line
    )
    now, peak = (int(lines[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM"))
    return now, peak


def forget_peak() -> None:
    """Let the peak of resident memory begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def tcp_bytes() -> tuple[int, int]:
    """Bytes received and sent (and acknowledged) over the TCP connections that are open now, below any TLS."""
    received = sent = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if not str(entry.readlink()).startswith("socket:"):
                continue
            copy = socket.socket(fileno=os.dup(int(entry.name)))
        except OSError:
            continue
        with copy:
            if copy.type != socket.SOCK_STREAM or copy.family == socket.AF_UNIX:
                continue
            try:
                copy.getpeername()
            except OSError:
                continue  # it listens
            info = copy.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 256)
            acked, got = struct.unpack_from("=QQ", info, _BYTES_AT)
            sent, received = sent + acked, received + got
    return received, sent


def gauges(steps: StepTimes) -> dict[str, Any]:
    """All of it, as JSON takes it; forgets the longest steps."""
    now, peak = memory_mb()
    received, sent = tcp_bytes()
    longest, longest_cpu = steps.take()
    return {
        "rss_mb": now,
        "peak_mb": peak,
        "received": received,
        "sent": sent,
        "cpu_seconds": time.process_time(),
        "at": time.monotonic(),
        "steps_ms": longest,
        "steps_cpu_ms": longest_cpu,
    }
