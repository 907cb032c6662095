"""Offloads: one blob from process to process, by shared memory beside memcpy, by UCX beside QUIC.

`python -m bench.bulk_offloads [--json] [--quick] [--runs N]`; also part of `bench.bulk`. A holder in a process of its
own serves one blob of random bytes; the reader fetches it into a fresh store each time. The clock runs from the call
until the last chunk is verified in the reader's store; how long writing back to the disk takes (fsync) is not in it
and is told beside. The blob is in the page cache at the beginning, since it was written there just before.

- `shm_vs_memcpy`: beside a `memcpy` of as many bytes between two buffers that are both in memory.
- `shm_copied_vs_memcpy`: the same with `links = false`, where the kernel copies the file and the copy is verified.
- `ucx_tcp_mb_s`, `ucx_shm_mb_s`: UCX over TCP on loopback, and with its shared memory transports, beside QUIC.
"""

import argparse
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench.report import Row, median, report
from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.offload import Offload
from ioc_node.bulk.offloads.shm import ShmOffload
from ioc_node.bulk.offloads.ucx import UcxOffload
from ioc_node.bulk.transfers import open_bulk
from ioc_wire.bulk import Ticket, chunk_hash
from ioc_wire.codec import decode, encode
from ioc_wire.signed import public_bytes

MIB = 1 << 20
HOLDER = Ed25519PrivateKey.from_private_bytes(b"h" * 32)
READER = Ed25519PrivateKey.from_private_bytes(b"r" * 32)
ROADS: Mapping[str, Mapping[str, object] | None] = {
    "shm": {},
    "shm_copied": {"links": False},
    "ucx_tcp": {"interfaces": ["lo"], "transports": ["tcp"]},
    "ucx_shm": {"interfaces": ["lo"], "transports": ["tcp", "sm"]},
    "quic": None,
}


def make_roads(road: str, folder: Path) -> list[Offload]:
    """The offloads that one end has for a road."""
    options = ROADS[road]
    if options is None:
        return []
    return [
        UcxOffload(folder, options, tried=True) if road.startswith("ucx") else ShmOffload(folder, options)
    ]


async def hold(road: str, folder: Path) -> None:
    """The holder: print a ticket for the one blob, then serve until killed."""
    store = BlobStore(folder / "held")
    async with open_bulk(store, HOLDER, offloads=make_roads(road, folder / "run")) as bulk:
        ticket = bulk.issue_ticket(store.list_blobs()[0], public_bytes(READER), hosts=["127.0.0.1"])
        print(encode(ticket).hex(), flush=True)
        await trio.sleep_forever()


class Fetched(NamedTuple):
    """Seconds until the blob was verified here, until it was on the disk, and of processors at both ends."""

    verified: float
    on_disk: float
    processors: float


async def fetch(road: str, folder: Path, ticket: Ticket) -> Fetched:
    """Fetch into a fresh store; the holder's processors are not counted yet."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        store = BlobStore(Path(own) / "blobs")
        verified = 0.0

        def told(here: int, size: int) -> None:
            nonlocal verified
            if here == size:
                verified = time.perf_counter()

        async with open_bulk(store, READER, offloads=make_roads(road, Path(own) / "run")) as bulk:
            began, used = time.perf_counter(), time.process_time()
            found = await bulk.fetch(ticket, on_progress=told)
            ended, used = time.perf_counter(), time.process_time() - used
        if found.transport.partition("/")[0] != road.partition("_")[0]:
            raise SystemExit(f"bench.bulk_offloads: {road} was not used: {found.reason}")
        return Fetched(verified - began, ended - began, used)


def measure(road: str, folder: Path) -> Fetched:
    """One fetch from a fresh holder."""
    command = [sys.executable, "-m", "bench.bulk_offloads", "--hold", road, str(folder)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        ticket = decode(bytes.fromhex(holder.stdout.readline()), Ticket)
        process = psutil.Process(holder.pid)
        before = sum(process.cpu_times()[:2])
        found = trio.run(fetch, road, folder, ticket)
        return found._replace(processors=found.processors + sum(process.cpu_times()[:2]) - before)
    finally:
        holder.kill()
        holder.wait()
        if holder.stdout is not None:
            holder.stdout.close()


def measure_verifying(path: Path) -> float:
    """Seconds for reading and hashing every chunk of a file with all processors, and nothing else: no reader that
    verifies is quicker."""
    threads, chunks = os.cpu_count() or 1, path.stat().st_size // MIB

    def work(first: int) -> None:
        with path.open("rb", buffering=0) as file, memoryview(bytearray(MIB)) as buffer:
            for index in range(first, chunks, threads):
                os.preadv(file.fileno(), [buffer], index * MIB)
                chunk_hash(buffer)

    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, range(threads)):
            pass
    return time.perf_counter() - began


def measure_memcpy(size: int) -> float:
    """Seconds for copying `size` bytes between two buffers in memory, the best of three."""
    source, target = np.ones(size, dtype=np.uint8), np.zeros(size, dtype=np.uint8)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


async def prepare(folder: Path, size: int) -> None:
    """One blob of random bytes in the holder's store."""
    path = folder / "random"
    with path.open("wb") as file:
        for _ in range(size // MIB):
            file.write(secrets.token_bytes(MIB))
    await BlobStore(folder / "held").add_file(path)
    path.unlink()


def measure_rows(*, quick: bool, runs: int) -> tuple[list[Row], list[str]]:
    """The rows of this module and notes about them, all roads in turn so that a busy moment hits all."""
    size = (128 if quick else 512) * MIB
    copied: list[float] = []
    verified: list[float] = []
    fetched: dict[str, list[Fetched]] = {road: [] for road in ROADS}
    with tempfile.TemporaryDirectory(prefix="ioc-bench-") as name:
        trio.run(prepare, Path(name), size)
        os.sync()
        store = BlobStore(Path(name) / "held")
        held = store.path(store.list_blobs()[0])
        for _ in range(runs):
            copied.append(measure_memcpy(size))
            verified.append(measure_verifying(held))
            for road in ROADS:
                fetched[road].append(measure(road, Path(name)))
    mb_s = {road: size / 1e6 / median(each.verified for each in all_) for road, all_ in fetched.items()}
    mb_s["memcpy"] = size / 1e6 / median(copied)
    bound = size / 1e6 / median(verified)
    rows = [
        Row("shm_vs_memcpy", "MB/s", mb_s["shm"], mb_s["memcpy"], "memcpy", "higher", runs),
        Row("shm_copied_vs_memcpy", "MB/s", mb_s["shm_copied"], mb_s["memcpy"], "memcpy", "higher", runs),
        Row("ucx_tcp_mb_s", "MB/s", mb_s["ucx_tcp"], mb_s["quic"], "quic_qh3", "higher", runs),
        Row("ucx_shm_mb_s", "MB/s", mb_s["ucx_shm"], mb_s["quic"], "quic_qh3", "higher", runs),
    ]
    return rows, [
        f"offloads: a blob of {size / 1e6:,.0f} MB in the page cache, until it is verified in the reader's store",
        f"  reading and hashing the file with all processors, nothing else: {bound:,.0f} MB/s, "
        f"{bound / mb_s['memcpy']:.2f} of memcpy; shm reaches {mb_s['shm'] / bound:.2f} of that",
        "  MB/s with writing back to the disk: "
        + _told(fetched, lambda all_: size / 1e6 / median(each.on_disk for each in all_)),
        "  CPU seconds per GB, both ends: "
        + _told(fetched, lambda all_: median(each.processors for each in all_) / size * 1e9),
    ]


def _told(fetched: Mapping[str, list[Fetched]], figure: Callable[[list[Fetched]], float]) -> str:
    return ", ".join(f"{road} {figure(all_):,.3g}" for road, all_ in fetched.items())


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and report, or be a holder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a quarter of the bytes, one run")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--hold", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(30)
    )  # warnings: a road that failed
    if options.hold:
        trio.run(hold, options.hold[0], Path(options.hold[1]))
        return
    rows, notes = measure_rows(quick=options.quick, runs=1 if options.quick else options.runs)
    report("bulk_offloads", rows, as_json=options.json, notes=notes)


if __name__ == "__main__":
    main()
