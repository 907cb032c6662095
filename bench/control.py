"""Whether control stays quick while bulk runs: identifiers resolved on nodes that move blobs, beside the same idle.

`python -m bench.control [--json] [--quick]`. A small network of node processes; the consumer fetches four large blobs
of one provider at the same time, by QUIC. Meanwhile the reader and the holder each resolve an identifier, over and
over, as `ioc-node resolve` does. `control_p99_ratio` is the worse of both: p99 under load by p99 idle. `links_lost`
counts links that broke meanwhile.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec
import trio

from bench.report import Row, report
from ioc_node.client import RemoteNode
from ioc_node.config import BulkConfig
from ioc_testnet.network import Testnet, open_testnet
from ioc_testnet.topology import Topology, load_topology

TRANSFERS = 4
TARGET_RATIO = 3.0
PIECE = 1 << 20
PAUSE_SECONDS = 0.002
"""Between two questions: a busy caller, not a flood."""


def topology() -> Topology:
    """The small network, without shared memory: everything goes by QUIC."""
    plan = load_topology("small")
    return msgspec.structs.replace(plan, log_level="warning", bulk=BulkConfig(offloads=()))


@dataclass
class Figures:
    """Milliseconds of each resolve, at the reader and at the holder; bytes per second moved under load."""

    idle: dict[str, list[float]]
    loaded: dict[str, list[float]]
    bytes_per_second: float
    links_lost: int


async def resolve_until(node: RemoteNode, cid: str, times: list[float], ended: trio.Event) -> None:
    """Ask again and again, until `ended`."""
    while not ended.is_set():
        began = time.perf_counter()
        await node.resolve(cid)
        times.append((time.perf_counter() - began) * 1000)
        await trio.sleep(PAUSE_SECONDS)


async def both(net: Testnet, cids: Sequence[str], ended: trio.Event) -> dict[str, list[float]]:
    """Resolve at the reader and at the holder until `ended`."""
    found: dict[str, list[float]] = {"reader": [], "holder": []}
    async with (
        net["consumer-1"].client() as reader,
        net["provider-1"].client() as holder,
        trio.open_nursery() as nursery,
    ):
        for times, node, cid in zip(found.values(), (reader, holder), cids, strict=True):
            nursery.start_soon(resolve_until, node, cid, times, ended)
    return found


async def measure(size: int, idle_seconds: float) -> Figures:
    """One network: idle first, then under load."""
    async with open_testnet(topology()) as net:
        await net.wait_joined()
        await net.wait_offered(2, "consumer-1")
        async with AsyncExitStack() as stack:
            reader = await stack.enter_async_context(net["consumer-1"].client())
            holder = await stack.enter_async_context(net["provider-1"].client())
            other = await stack.enter_async_context(net["provider-2"].client())
            cids = [(await node.register())[0].cid for node in (holder, other)]
            with tempfile.TemporaryDirectory() as folder:
                blobs = []
                for number in range(TRANSFERS):
                    path = Path(folder) / f"data-{number}"
                    with path.open("wb") as file:
                        for _ in range(size // PIECE):
                            file.write(os.urandom(PIECE))
                    blobs.append((await holder.add(path)).blob)
                    path.unlink()
                links = [(await node.status()).links for node in (reader, holder)]
                ended = trio.Event()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_end_after, idle_seconds, ended)
                    idle = await both(net, cids, ended)
                ended = trio.Event()
                began = time.perf_counter()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_fetch_all, net, blobs, Path(folder), ended)
                    loaded = await both(net, cids, ended)
                spent = time.perf_counter() - began
                after = [(await node.status()).links for node in (reader, holder)]
        lost = sum(max(0, was - now) for was, now in zip(links, after, strict=True))
        return Figures(idle, loaded, TRANSFERS * size / spent, lost)


async def _end_after(seconds: float, ended: trio.Event) -> None:
    await trio.sleep(seconds)
    ended.set()


async def _fetch_all(net: Testnet, blobs: Sequence[bytes], folder: Path, ended: trio.Event) -> None:
    async def fetch(number: int, blob: bytes) -> None:
        async with net["consumer-1"].client() as node:
            await node.get(blob, folder / f"copy-{number}")

    async with trio.open_nursery() as nursery:
        for number, blob in enumerate(blobs):
            nursery.start_soon(fetch, number, blob)
    ended.set()


def p99(times: list[float]) -> float:
    """The value that one in a hundred is above."""
    return sorted(times)[int(len(times) * 0.99)]


def measure_rows(*, quick: bool, runs: int = 1) -> tuple[list[Row], list[str]]:
    """The rows of one network, however many `runs`: each has thousands of questions."""
    size, idle_seconds = (8 << 20, 1.0) if quick else (512 << 20, 8.0)
    figures = trio.run(measure, size, idle_seconds)
    rows = []
    ratios = []
    for role in ("reader", "holder"):
        idle, loaded = (p99(times[role]) for times in (figures.idle, figures.loaded))
        ratios.append(loaded / idle)
        count = len(figures.loaded[role])
        rows.append(Row(f"control_{role}_p99_ms", "ms", loaded, idle, "the same, idle", "lower", count))
    rows += [
        Row("control_p99_ratio", "", max(ratios), TARGET_RATIO, "goal", "lower", 1),
        Row("control_bulk_mb_s", "MB/s", figures.bytes_per_second / 1e6, None, "", "higher", 1),
        Row("links_lost", "", float(figures.links_lost), None, "", "lower", 1),
    ]
    return rows, [f"control: {TRANSFERS} blobs of {size / 1e6:,.0f} MB at the same time"]


def main() -> None:
    """Measure this alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="small blobs: does it run?")
    options = parser.parse_args()
    rows, notes = measure_rows(quick=options.quick)
    report("control", rows, as_json=options.json, notes=notes)


if __name__ == "__main__":
    main()
