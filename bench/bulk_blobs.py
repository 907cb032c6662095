"""Blobs from disk to disk, verified, between processes: beside the bare stream, from two holders, across kills, small
ones by the thousand, and the memory that a large one takes. Part of `bench.bulk`.

`python -m bench.bulk_blobs [--json] [--quick] [--runs N]` runs this part alone. Every figure includes hashing on both
sides and the files on the reader's disk. `blob_vs_stream` is at datagrams as large as the path carries, with `_1452` at
those of Ethernet, both beside the stream at the same size. `two_sources_ratio` limits each holder to what a slow disk
gives, so that the reader, which shares this machine with both, is not what is measured; a note tells the ratio without
that limit. `resume_lost_s` is the worse of two: from the moment a killed holder listens again, and from the moment a
killed reader runs again, until the next new chunk is in its place. `small_blobs_per_s` is a dataset of that many files
between two nodes, from `dataset get` to the last file in its folder: tickets, transfer, verification, store and folder
included.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import ioc_node
from bench.bulk_streams import ANY, ETHERNET, measure_stream
from bench.report import Row, median, report
from ioc_bootstrap.network import create_network, sign_network
from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.gathering import Source
from ioc_node.bulk.plane.local import LocalPlane
from ioc_node.bulk.transfers import open_bulk
from ioc_node.errors import NodeError
from ioc_node.runtime.keys import create_key
from ioc_wire.bulk import BlobInfo, Ticket
from ioc_wire.codec import decode, encode
from ioc_wire.errors import WireError
from ioc_wire.signed import public_bytes

READER = Ed25519PrivateKey.from_private_bytes(b"r" * 32)
SLOW_DISK_BYTES_S = 20e6
SMALL_BYTES = 4096
SMALL_BLOBS = 10_000
CHUNK = 1 << 20
FREE_SECONDS = 4.0
"""By then a virtual machine has given the memory of what was deleted back to its host."""


class SlowStore(BlobStore):
    """A store on a disk that gives `SLOW_DISK_BYTES_S`."""

    async def read_chunks_into(
        self, info: BlobInfo, indexes: Sequence[int], buffers: Sequence[bytearray]
    ) -> list[memoryview]:
        """As `BlobStore.read_chunks_into`, no quicker than that."""
        due = trio.current_time() + len(indexes) * CHUNK / SLOW_DISK_BYTES_S
        chunks = await super().read_chunks_into(info, indexes, buffers)
        await trio.sleep_until(due)
        return chunks


# -- child processes


async def hold(folder: str, seed: str, port: str, slow: str) -> None:
    """Serve the blobs of a store; prints a ticket for each, then an empty line."""
    store = (SlowStore if slow == "slow" else BlobStore)(Path(folder))
    key = Ed25519PrivateKey.from_private_bytes(seed.encode() * 32)
    async with open_bulk(store, key, port=int(port)) as bulk:
        for blob in store.list_blobs():
            print(encode(bulk.issue_ticket(blob, public_bytes(READER), hosts=["127.0.0.1"])).hex())
        print(flush=True)
        await trio.sleep_forever()


async def read(folder: str, told: str, datagram: str, *tickets: str) -> None:
    """Fetch one blob from the holders of these tickets, in datagrams no larger than `datagram`; prints when it was
    ready, every chunk if `told` says so, and the end."""
    async with open_bulk(BlobStore(Path(folder)), READER) as bulk:
        assert isinstance(bulk.plane, LocalPlane)
        bulk.plane.dialer.datagram_bytes_max = int(datagram)
        print("ready", time.time(), flush=True)
        sources = [Source(decode(bytes.fromhex(ticket), Ticket)) for ticket in tickets]
        for source in sources:
            source.renew = lambda: renewed(folder)

        def tell(here: int, _size: int) -> None:
            if bulk.counters.bytes_received:  # not what an earlier attempt had left
                print("kept", time.time(), here, flush=True)

        report = await bulk.gather(sources, on_progress=tell if told == "each" else None)
        print("done", report.mb_s, peak_mb(), flush=True)


async def renewed(folder: str) -> Ticket:
    """The ticket of a holder that came back, as whoever restarted it left it."""
    path = trio.Path(folder + ".ticket")
    while not await path.exists():  # noqa: ASYNC110  # another process makes it
        await trio.sleep(0.01)
    return decode(bytes.fromhex(await path.read_text()), Ticket)


async def share(folder: str, files: str) -> None:
    """A core node with a dataset; prints its port and the dataset's name."""
    home = Path(folder) / "core"
    home.mkdir()
    root = create_key(Path(folder) / "root.key")
    text = create_network("bench", root_keys=[public_bytes(root)], threshold=1, admission="open")
    (Path(folder) / "network.toml").write_text(sign_network(text, root))
    port = int((Path(folder) / "port").read_text())
    async with ioc_node.open_node(node_config(Path(folder), "core", "regional", port)) as node:
        added = await node.datasets.add("small", Path(files), announce=True)
        print(port, added.row.dataset, flush=True)
        await trio.sleep_forever()


async def get(folder: str, port: str, name: str) -> None:
    """A consumer that fetches the dataset; prints files per second."""
    (Path(folder) / "me").mkdir()
    config = node_config(Path(folder), "me", "consumer", int(port) + 10)
    async with ioc_node.open_node(config, bootstrap=[f"127.0.0.1:{port}"]) as node:
        await node.wait_joined()
        while True:
            try:
                await node.datasets.show(name, "f0")
            except (WireError, NodeError):
                await trio.sleep(0.1)  # not announced yet
            else:
                break
        got = await node.datasets.get(name, Path(folder) / "got")
        print(got.written / got.seconds, flush=True)


def node_config(folder: Path, name: str, role: str, port: int) -> ioc_node.NodeConfig:
    """A node in a home folder of its own."""
    home = folder / name
    create_key(home / "node.key")
    shutil.copy(folder / "network.toml", home)
    return ioc_node.NodeConfig(role=role, home=home, port=port, log_level="error")  # type: ignore[arg-type]


ROLES = {"hold": hold, "read": read, "share": share, "get": get}


def peak_mb(pid: int | str = "self") -> float:
    """The most resident memory that a process has had, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


# -- what is measured


@contextmanager
def child(*args: object) -> Iterator[subprocess.Popen[str]]:
    """One of `ROLES` in a process of its own, killed at the end."""
    command = [sys.executable, "-m", "bench.bulk_blobs", "--role", *map(str, args)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def lines(process: subprocess.Popen[str]) -> Iterator[list[str]]:
    """What a child prints, word by word."""
    assert process.stdout is not None
    for line in process.stdout:
        yield line.split()


@contextmanager
def holding(store: Path, seed: str, *, port: int = 0, slow: bool = False) -> Iterator[tuple[str, int]]:
    """A holder; yields its ticket and its process ID."""
    with child("hold", store, seed, port, "slow" if slow else "quick") as process:
        yield next(lines(process))[0], process.pid


def make_store(folder: Path, size: int) -> Path:
    """A store with one blob, of bytes that don't repeat within a chunk."""
    source = folder / "source"
    block = os.urandom(CHUNK)
    with source.open("wb") as file:
        for start in range(0, size, CHUNK):
            file.write((start.to_bytes(8, "big") + block)[: min(CHUNK, size - start)])
    store = folder / "store"
    trio.run(BlobStore(store).add_file, source)
    source.unlink()
    return store


def fetch(folder: Path, *tickets: str, datagram: int = ANY) -> tuple[float, float]:
    """MB/s and the reader's peak memory of one fetch into a new store."""
    into = Path(tempfile.mkdtemp(dir=folder))
    try:
        with child("read", into / "store", "end", datagram, *tickets) as process:
            for words in lines(process):
                if words[0] == "done":
                    return float(words[1]), float(words[2])
        raise RuntimeError("the reader failed")
    finally:
        shutil.rmtree(into)


def one_holder(folder: Path, store: Path, datagram: int = ANY) -> tuple[float, float]:
    """MB/s of a fetch, and the peak memory of the side that took more."""
    with holding(store, "a") as (ticket, pid):
        speed, reader_mb = fetch(folder, ticket, datagram=datagram)
        return speed, max(reader_mb, peak_mb(pid))


def plain_write(folder: Path, size: int) -> tuple[float, float]:
    """MB/s, and processor seconds per GB, of writing a new file chunk by chunk into space that was reserved, as a
    reader does. Memory that was free for a while may cost a virtual machine many times what copying into it does."""
    data = os.urandom(CHUNK)
    path = folder / "plain"
    began, used = time.perf_counter(), time.process_time()
    with path.open("wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, size)
        for _ in range(size // CHUNK):
            file.write(data)
        os.fsync(file.fileno())
    took, used = time.perf_counter() - began, time.process_time() - used
    path.unlink()
    return size / 1e6 / took, used / size * 1e9


def two_against_one(folder: Path, store: Path, *, slow: bool) -> float:
    """How much quicker two holders are than one."""
    with holding(store, "a", slow=slow) as (first, _), holding(store, "b", slow=slow) as (second, _):
        return fetch(folder, first, second)[0] / fetch(folder, first)[0]


def resume_lost_s(folder: Path, store: Path, size: int) -> tuple[float, float]:
    """Seconds lost by a killed holder, and by a killed reader."""
    into = Path(tempfile.mkdtemp(dir=folder)) / "store"
    with holding(store, "a") as (ticket, pid), child("read", into, "each", ANY, ticket) as reader:
        port = decode(bytes.fromhex(ticket), Ticket).endpoints[0].port
        told = lines(reader)
        wait_for(told, size // 3)
        os.kill(pid, 9)
        with holding(store, "a", port=port) as (again, _):
            back = time.time()
            Path(f"{into}.ticket").write_text(again)
            kept = [float(words[1]) for words in told if words[0] == "kept"]
            after = [at for at in kept if at > back]
            holder_lost = after[0] - back if after else 0.0
    into = Path(tempfile.mkdtemp(dir=folder)) / "store"
    with holding(store, "a") as (ticket, _):
        with child("read", into, "each", ANY, ticket) as reader:
            wait_for(lines(reader), size // 3)
        with child("read", into, "each", ANY, ticket) as reader:
            told = lines(reader)
            ready = float(next(told)[1])
            return holder_lost, float(next(told)[1]) - ready


def wait_for(told: Iterator[list[str]], size: int) -> None:
    """Read on until so many bytes are kept."""
    for words in told:
        if words[0] == "kept" and float(words[2]) >= size:
            return
    raise RuntimeError("the reader ended early")


def small_per_s(folder: Path, count: int) -> float:
    """Files per second of a dataset of small files between two nodes."""
    from tests.node.conftest import free_port

    files = folder / "files"
    files.mkdir()
    for number in range(count):
        (files / f"f{number}").write_bytes(os.urandom(SMALL_BYTES))
    (folder / "port").write_text(str(free_port()))
    with child("share", folder, files) as holder:
        port, name = next(lines(holder))
        with child("get", folder, port, name) as reader:
            return float(next(lines(reader))[0])


def measure_rows(
    *, quick: bool, runs: int, stream_mb_s: float, ethernet_mb_s: float
) -> tuple[list[Row], list[str]]:
    """All rows of this part; `stream_mb_s` is the bare stream of the same run, `ethernet_mb_s` that at 1,452 bytes."""
    size, part, large = (256 << 20, 100 << 20, 1 << 30) if quick else (1 << 30, 500 << 20, 10 << 30)
    with tempfile.TemporaryDirectory(prefix="ioc-bench-") as temporary:
        folder = Path(temporary)
        store = make_store(folder, size)
        speeds, ethernet, writes = [], [], []
        for _ in range(runs):
            speeds.append(one_holder(folder, store)[0])
            ethernet.append(one_holder(folder, store, ETHERNET)[0])
            time.sleep(FREE_SECONDS)
            writes.append(plain_write(folder, size))
        shutil.rmtree(store)
        store = make_store(folder, part)
        ratio = median([two_against_one(folder, store, slow=True) for _ in range(runs)])
        plain = two_against_one(folder, store, slow=False)
        lost = [resume_lost_s(folder, store, part) for _ in range(runs)]
        shutil.rmtree(store)
        rate = small_per_s(folder, SMALL_BLOBS)
        store = make_store(folder, large)
        speed, memory = one_holder(folder, store)
        large_lost = resume_lost_s(folder, store, large)
    worst = max(median([each[0] for each in lost]), median([each[1] for each in lost]))
    rows = [
        Row("blob_vs_stream", "x", median(speeds) / stream_mb_s, None, None, "higher", runs),
        Row("blob_vs_stream_1452", "x", median(ethernet) / ethernet_mb_s, None, None, "higher", runs),
        Row("file_write_mb_s", "MB/s", median([each[0] for each in writes]), None, None, "higher", runs),
        Row("two_sources_ratio", "x", ratio, None, None, "higher", runs),
        Row("resume_lost_s", "s", worst, None, None, "lower", runs),
        Row("resume_10gb_lost_s", "s", max(large_lost), None, None, "lower", 1),
        Row("small_blobs_per_s", "1/s", rate, None, None, "higher", 1),
        Row("memory_10gb_mb", "MB", memory, None, None, "lower", 1),
    ]
    notes = [
        f"blob_vs_stream: {size / 1e6:,.0f} MB at {median(speeds):,.0f} MB/s, the stream at {stream_mb_s:,.0f};"
        f" at 1,452 bytes {median(ethernet):,.0f} and {ethernet_mb_s:,.0f}",
        f"file_write_mb_s: the same bytes written to a new file by one process that does nothing else, and fsync; it "
        f"takes {median([each[1] for each in writes]):.2f} s of a processor per GB, and a fetch writes as much",
        f"two_sources_ratio without slow disks {plain:.2f}",
        f"resume_lost_s: holder {median([e[0] for e in lost]):.2f}, reader {median([e[1] for e in lost]):.2f}",
        f"resume_10gb_lost_s: {large / 1e9:.1f} GB, holder {large_lost[0]:.2f}, reader {large_lost[1]:.2f}",
        f"small_blobs_per_s: {SMALL_BLOBS:,} files of {SMALL_BYTES} bytes",
        f"memory_10gb_mb: a blob of {large / 1e9:.1f} GB at {speed:,.0f} MB/s",
    ]
    return rows, notes


def main() -> None:
    """Measure this part alone, with a bare stream before it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a part of the bytes, one run")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
        trio.run(ROLES[options.role[0]], *options.role[1:])
        return
    runs = 1 if options.quick else options.runs
    size = 300_000_000 if options.quick else 1_000_000_000
    stream, ethernet = (
        median([measure_stream("qh3", size, datagram) for _ in range(runs)]) for datagram in (ANY, ETHERNET)
    )
    rows, notes = measure_rows(quick=options.quick, runs=runs, stream_mb_s=stream, ethernet_mb_s=ethernet)
    report("bulk", rows, as_json=options.json, notes=notes)


if __name__ == "__main__":
    main()
