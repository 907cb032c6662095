"""Resolve and put with 50 nodes in one process, beside OpenDHT and kademlia on the same machine, one after
the other.

`python -m bench.dht [--json] [--quick]`. Every system stores records of 200 bytes from random nodes and reads
each from a random node; ours and kademlia count only readers that do not hold the record themselves (OpenDHT
cannot tell, about one in six of its reads is local). Ours is signed (Ed25519, checked by all 20 holders and
by the reader) and encrypted; a get ends with the first valid record. `handshake_ms` is a ping to a peer
without a session: two round trips, and both ends' signatures and key exchange.
"""

import argparse
import json
import random
import subprocess
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench.peers.setup import is_made, python_of
from bench.report import Row, median, report
from ioc_node.runtime.dht import Dht, open_dht
from ioc_wire.cid import self_certified_prefix
from ioc_wire.records import Cpu, Place, ResourceRecord
from ioc_wire.signed import Signed, public_bytes, sign

NODES: Final = 50
VALUE_BYTES: Final = 200
PEER_SECONDS_MAX: Final = 300
Samples = dict[str, Any]


def quantile(values: list[float], share: float) -> float:
    """The value below which `share` of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def record_of(key: Ed25519PrivateKey, cid: str) -> Signed:
    """A signed record whose payload has `VALUE_BYTES` bytes."""
    now = int(time.time())

    def build(filler: str) -> Signed:
        place, cpu = Place("cn", "3301", "az1"), Cpu("x86_64", "", 8, 16)
        return sign(
            key, ResourceRecord(cid, 1, now, now + 3600, "node", place, cpu, 1024, labels=(("note", filler),))
        )

    return build("x" * (VALUE_BYTES - len(build("").payload)))


async def open_ring(stack: AsyncExitStack) -> list[Dht]:
    """A network in which everybody knows everybody."""
    nodes: list[Dht] = []
    for _ in range(NODES):
        node = await stack.enter_async_context(
            open_dht(
                key=Ed25519PrivateKey.generate(), host="127.0.0.1", port=0, network_id=b"bench.dht".ljust(32),
                roots=frozenset(), admission="open", chain=(), server=True, advertise_host=None,
                rng=random.SystemRandom(),
            )
        )  # fmt: skip
        nodes.append(node)
        if len(nodes) > 1:
            await node.join([nodes[0].address])
    while not all(n.machine.upkeep.has_full_view() and len(n.contacts()) == NODES - 1 for n in nodes):  # noqa: ASYNC110
        await trio.sleep(0.05)
    return nodes


async def measure_ours(operations: int, seed: int) -> Samples:
    """Seconds of each put, get and handshake."""
    rng = random.Random(seed)
    key = Ed25519PrivateKey.generate()
    prefix = self_certified_prefix(public_bytes(key))
    records = {
        cid: record_of(key, cid) for cid in (f"ioc:{prefix}/ai/3301/az1/h{n}" for n in range(operations))
    }
    samples: Samples = {"put": [], "get": [], "handshake": [], "hits": 1.0}
    async with AsyncExitStack() as stack:
        nodes = await open_ring(stack)
        holders: dict[str, set[bytes]] = {}
        for cid, record in records.items():
            putter = rng.choice(nodes)
            began = time.perf_counter()
            put = await putter.put(record)
            samples["put"].append(time.perf_counter() - began)
            holders[cid] = {contact.node_id for contact in put.stored}
        for cid in records:
            reader = rng.choice([node for node in nodes if node.node_id not in holders[cid]])
            began = time.perf_counter()
            await reader.get(cid)
            samples["get"].append(time.perf_counter() - began)
        for _ in range(50):
            one, other = rng.sample(nodes, 2)
            began = time.perf_counter()
            await one.ping(other.address)
            samples["handshake"].append(time.perf_counter() - began)
    return samples


def measure_peer(name: str, operations: int, seed: int) -> Samples | None:
    """Run a peer's script in its own environment; None where that was not made."""
    if not is_made(name):
        return None
    script = Path(__file__).parent / "peers" / f"{name}_ring.py"
    done = subprocess.run(
        [str(python_of(name)), str(script), str(NODES), str(operations), str(seed)],
        check=True,
        capture_output=True,
        timeout=PEER_SECONDS_MAX,
        text=True,
    )
    samples: Samples = json.loads(done.stdout.splitlines()[-1])
    return samples


def milliseconds(runs: list[Samples] | None, name: str, share: float) -> float | None:
    """The median over the runs of a quantile."""
    return None if runs is None else 1000 * median(quantile(run[name], share) for run in runs)


def rows_of(ours: list[Samples], peers: dict[str, list[Samples] | None]) -> list[Row]:
    """Each figure once per peer."""
    named = [
        ("opendht (plain)", peers["opendht"], ""),
        ("opendht (signed)", peers["opendht"], "_signed"),
        ("kademlia (plain)", peers["kademlia"], ""),
    ]
    rows = []
    for operation in ("get", "put"):
        for label, share in (("p50", 0.5), ("p99", 0.99)):
            own = milliseconds(ours, operation, share)
            assert own is not None
            for peer, runs, suffix in named:
                theirs = milliseconds(runs, operation + suffix, share)
                rows.append(Row(f"{operation}_{label}_{NODES}", "ms", own, theirs, peer, "lower", len(ours)))
    handshake = milliseconds(ours, "handshake", 0.5)
    assert handshake is not None
    rows.append(Row("handshake_ms", "ms", handshake, None, None, "lower", len(ours)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="DHT: resolve and put, ours beside OpenDHT and kademlia")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--quick", action="store_true", help="one short run instead of three")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    runs, operations = (1, 100) if options.quick else (3, 400)
    ours: list[Samples] = []
    collected: dict[str, list[Samples]] = {"opendht": [], "kademlia": []}
    notes: list[str] = []
    for seed in range(runs):
        ours.append(trio.run(measure_ours, operations, seed))
        for name, samples in collected.items():
            try:
                found = measure_peer(name, operations, seed)
            except (subprocess.SubprocessError, ValueError) as error:
                notes.append(f"{name} failed in run {seed}: {error}")
                continue
            if found is not None:
                samples.append(found)
    for name, samples in collected.items():
        if not is_made(name):
            notes.append(f"{name} is not installed: make bench-peers")
        elif samples:
            notes.append(
                f"{name}: {100 * median(run['hits'] for run in samples):.1f} % of its gets found something"
            )
    peers = {name: samples or None for name, samples in collected.items()}
    report("dht", rows_of(ours, peers), as_json=options.json, notes=notes)


if __name__ == "__main__":
    main()
