"""Our DHT with N nodes in one process: the measuring half of `bench.dht`.

`python -m bench.dht_ours NODES OPERATIONS SEED [PART ...]` prints one JSON object, as each script in `bench/peers` does
for its system: lists of seconds `put`, `get`, `authoritative`; `hits`, the share of gets that found something;
`rss_mb`, resident memory per settled node in 10^6 bytes before anything is stored. Each PART adds one figure:

- `resolves`: `resolves_per_s`, gets per second of CPU time. One node gets records that it neither holds nor read
  before, `AT_ONCE` at a time; the CPU time of the whole process counts, so the servers' side is in it.
- `handshake`: seconds of a ping to a peer without a session: two round trips, both ends' signatures and key agreement.
- `cold`: seconds from opening the DHT in a fresh process to its first record, through one bootstrap address
  (`cold`), and from starting that process to the end of its imports (`cold_start`).
- `join`: seconds until a node that is new knows all others.
"""

import json
import os
import random
import subprocess
import sys
import time
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any, Final

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.runtime.dht import Dht, open_dht
from ioc_wire.cid import self_certified_prefix
from ioc_wire.errors import NotFound
from ioc_wire.records import Cpu, Place, ResourceRecord
from ioc_wire.signed import Signed, public_bytes, sign

OURS: Final = "ours"
NETWORK_ID: Final = b"bench.dht".ljust(32)
VALUE_BYTES: Final = 200
SETTLE_SECONDS: Final = 3.0
ANSWERS: Final = 3
"""Fresh answers that make a get authoritative."""
AT_ONCE: Final = 32
RESOLVES: Final = 1000
"""Records stored for `resolves`; the reader holds some of them itself and leaves those out."""
HANDSHAKES: Final = 50
COLD_RUNS: Final = 5
Samples = dict[str, Any]


class Records:
    """Distinct signed records of one key, with payloads of `VALUE_BYTES` bytes."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self._prefix = self_certified_prefix(public_bytes(key))

    def cid(self, number: int | str) -> str:
        return f"ioc:{self._prefix}/ai/3301/az1/h{number}"

    def signed(self, number: int | str) -> Signed:
        now = int(time.time())

        def build(filler: str) -> Signed:
            place, cpu, labels = Place("cn", "3301", "az1"), Cpu("x86_64", "", 8, 16), (("note", filler),)
            record = ResourceRecord(
                self.cid(number), 1, now, now + 3600, "node", place, cpu, 1024, labels=labels
            )
            return sign(self._key, record)

        return build("x" * (VALUE_BYTES - len(build("").payload)))


def open_node(*, server: bool = True) -> AbstractAsyncContextManager[Dht]:
    """A node of an open network on a free port of 127.0.0.1, with a new key."""
    return open_dht(
        key=Ed25519PrivateKey.generate(), host="127.0.0.1", port=0, network_id=NETWORK_ID, roots=frozenset(),
        admission="open", chain=(), server=server, advertise_host=None, rng=random.SystemRandom(),
    )  # fmt: skip


def resident_mb() -> float:
    """Resident memory of this process in 10^6 bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def knows_all(node: Dht, others: int) -> bool:
    """Whether a node has verified all the others, and knows that these are all."""
    return node.machine.upkeep.has_full_view() and len(node.contacts()) == others


async def open_ring(stack: AsyncExitStack, count: int) -> list[Dht]:
    """A settled network in which everybody knows everybody."""
    nodes: list[Dht] = []
    for _ in range(count):
        nodes.append(await stack.enter_async_context(open_node()))
        if len(nodes) > 1:
            await nodes[-1].join([nodes[0].address])
    while not all(knows_all(node, count - 1) for node in nodes):  # noqa: ASYNC110 - nobody tells
        await trio.sleep(0.05)
    await trio.sleep(SETTLE_SECONDS)
    return nodes


async def found_seconds(node: Dht, cid: str, answers: int = 1) -> float | None:
    """Seconds of one get, or None where nothing was found."""
    began = time.perf_counter()
    try:
        await node.get(cid, answers=answers)
    except NotFound:
        return None
    return time.perf_counter() - began


class Ring:
    """What is measured on one network of nodes."""

    def __init__(self, nodes: list[Dht], seed: int) -> None:
        self.nodes = nodes
        self.rng = random.Random(seed)
        self.records = Records(Ed25519PrivateKey.generate())

    async def operations(self, count: int) -> Samples:
        """So many puts from random nodes, then gets from random nodes that do not hold the record."""
        samples: Samples = {"put": [], "get": [], "authoritative": []}
        holders: dict[int, set[bytes]] = {}
        for number in range(count):
            record = self.records.signed(number)
            putter = self.rng.choice(self.nodes)
            began = time.perf_counter()
            report = await putter.put(record)
            samples["put"].append(time.perf_counter() - began)
            holders[number] = {contact.node_id for contact in report.stored}
        for name, answers in (("get", 1), ("authoritative", ANSWERS)):
            for number in range(count):
                reader = self.rng.choice([node for node in self.nodes if node.node_id not in holders[number]])
                seconds = await found_seconds(reader, self.records.cid(number), answers)
                if seconds is not None:
                    samples[name].append(seconds)
        samples["hits"] = (len(samples["get"]) + len(samples["authoritative"])) / (2 * count)
        return samples

    async def resolves_per_s(self) -> float:
        """Gets per second of CPU time; see the module's docstring."""
        reader, putters = self.nodes[-1], self.nodes[:-1]
        wanted: list[str] = []

        async def put(numbers: range) -> None:
            for number in numbers:
                report = await self.rng.choice(putters).put(self.records.signed(f"r{number}"))
                if reader.node_id not in {contact.node_id for contact in report.stored}:
                    wanted.append(self.records.cid(f"r{number}"))

        async with trio.open_nursery() as nursery:
            for part in range(4):
                nursery.start_soon(put, range(part, RESOLVES, 4))
        return await self._resolve_all(reader, wanted)

    async def _resolve_all(self, reader: Dht, wanted: list[str]) -> float:
        found = 0

        async def resolve() -> None:
            nonlocal found
            while wanted:
                seconds = await found_seconds(reader, wanted.pop())
                found += seconds is not None

        began = time.process_time()
        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(resolve)
        cpu_seconds = time.process_time() - began
        return found / cpu_seconds

    async def handshakes(self) -> list[float]:
        """Seconds of pings to bare addresses: each opens a session anew."""
        seconds = []
        for _ in range(HANDSHAKES):
            one, other = self.rng.sample(self.nodes, 2)
            began = time.perf_counter()
            await one.ping(other.address)
            seconds.append(time.perf_counter() - began)
        return seconds

    async def cold(self) -> list[dict[str, float]]:
        """What `bench.dht_cold` says, several times."""
        runs = []
        for number in range(COLD_RUNS):
            await self.nodes[0].put(self.records.signed(f"c{number}"))
            host, port = self.rng.choice(self.nodes).address
            command = [
                sys.executable,
                "-m",
                "bench.dht_cold",
                host,
                str(port),
                self.records.cid(f"c{number}"),
            ]
            done = await trio.run_process(
                [*command, str(time.monotonic())], capture_stdout=True, stdin=subprocess.DEVNULL
            )
            runs.append(json.loads(done.stdout))
        return runs

    async def join_seconds(self) -> float:
        """Seconds until one more node knows all that were there."""
        began = time.perf_counter()
        async with open_node() as node:
            await node.join([self.nodes[0].address])
            while not knows_all(node, len(self.nodes)):  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.005)
            return time.perf_counter() - began


async def measure(count: int, operations: int, seed: int, parts: frozenset[str]) -> Samples:
    """Everything that was asked for, on one network."""
    empty_mb = resident_mb()
    async with AsyncExitStack() as stack:
        began = time.perf_counter()
        ring = Ring(await open_ring(stack, count), seed)
        meshed = time.perf_counter() - began - SETTLE_SECONDS
        rss_mb = (resident_mb() - empty_mb) / count
        samples = await ring.operations(operations)
        samples |= {"mesh_seconds": meshed, "rss_mb": rss_mb}
        if "resolves" in parts:
            samples["resolves_per_s"] = await ring.resolves_per_s()
        if "handshake" in parts:
            samples["handshake"] = await ring.handshakes()
        if "cold" in parts:
            runs = await ring.cold()
            samples["cold"] = [run["resolved"] for run in runs]
            samples["cold_start"] = [run["imported"] for run in runs]
        if "join" in parts:
            samples["join"] = await ring.join_seconds()
        return samples


def main() -> None:
    count, operations, seed = (int(text) for text in sys.argv[1:4])
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    print(json.dumps(trio.run(measure, count, operations, seed, frozenset(sys.argv[4:]))), flush=True)


if __name__ == "__main__":
    main()
