"""What a node costs while nothing happens, and how soon it belongs to the network.

Of the default network, 9 processes, left alone: `idle_rss_mb` is the largest resident memory of any node in MB (10^6
bytes) and `idle_cpu_percent` the mean share of one core per node. `join_s` is the time from starting the process of
a provider anew to its having joined, interpreter and imports included.
"""

import argparse
import os
import time
from pathlib import Path

import trio

from bench.report import Row, median, report
from ioc_testnet.network import Testnet, TestnetNode, open_testnet

RSS_TARGET_MB = 150.0
JOIN_TARGET_S = 3.0


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far (proc(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """Resident memory of a process, shared pages included, in 10^6 bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def join_seconds(node: TestnetNode) -> float:
    """Stop a node, start it, and wait until it has joined."""
    await node.stop()
    began = time.perf_counter()
    await node.start()
    async with node.client() as client:
        while not (await client.status()).joined:  # noqa: ASYNC110 - it is in another process
            await trio.sleep(0.01)
    return time.perf_counter() - began


async def idle(net: Testnet, seconds: float) -> tuple[dict[str, float], dict[str, float]]:
    """Memory in MB and CPU in percent of one core, by node."""
    before = {node.name: cpu_seconds(node.pid) for node in net}
    await trio.sleep(seconds)
    cpu = {node.name: (cpu_seconds(node.pid) - before[node.name]) / seconds * 100 for node in net}
    return {node.name: resident_mb(node.pid) for node in net}, cpu


async def measure(seconds: float, joins: int) -> tuple[dict[str, float], dict[str, float], list[float]]:
    """All three figures from one network."""
    async with open_testnet() as net:
        await net.wait_joined()
        await trio.sleep(2)
        memory, cpu = await idle(net, seconds)
        return memory, cpu, [await join_seconds(net["provider-3"]) for _ in range(joins)]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a shorter look")
    arguments = parser.parse_args()
    seconds, joins = (5.0, 2) if arguments.quick else (30.0, 7)
    memory, cpu, joined = trio.run(measure, seconds, joins)
    rss, join = max(memory.values()), median(joined)
    rows = [
        Row("idle_rss_mb", "MB", rss, None, None, "lower", len(memory)),
        Row("idle_cpu_percent", "%", sum(cpu.values()) / len(cpu), None, None, "lower", len(cpu)),
        Row("join_s", "s", join, None, None, "lower", joins),
    ]
    notes = [
        f"targets: memory under {RSS_TARGET_MB:.0f} MB: {'met' if rss < RSS_TARGET_MB else 'MISSED'}; "
        f"joined within {JOIN_TARGET_S:.0f} s: {'met' if join <= JOIN_TARGET_S else 'MISSED'}",
        "largest: "
        + ", ".join(f"{name} {memory[name]:.0f} MB, {cpu[name]:.1f} %" for name in _largest(memory)),
    ]
    report("idle", rows, as_json=arguments.json, notes=notes)


def _largest(memory: dict[str, float]) -> list[str]:
    return sorted(memory, key=lambda name: -memory[name])[:3]


if __name__ == "__main__":
    main()
