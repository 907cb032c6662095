"""The Python package kademlia with N nodes in one process; run by the interpreter of its own environment.

`python kademlia_ring.py NODES OPERATIONS SEED [PART ...]` prints one JSON object: lists of seconds `put` and `get`;
`hits`, the share of gets that found something; `rss_mb`, resident memory per node. With `resolves` also gets per second
of CPU time, `AT_ONCE` at a time by one node; with `cold` seconds from opening a node to its first value; with `join`
seconds of one more node's bootstrap. Only gets of nodes that do not hold the value themselves are counted, as with
ours. Values are unsigned and travel in clear.
"""

import asyncio
import json
import logging
import os
import random
import subprocess
import sys
import time
from pathlib import Path

from kademlia.network import Server
from kademlia.utils import digest

AT_ONCE = 32
RESOLVES = 300


def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


async def open_node(port, bootstrap=None):
    node = Server()
    await node.listen(port, "127.0.0.1")
    if bootstrap is not None:
        await node.bootstrap([("127.0.0.1", bootstrap)])
    return node


async def operations(nodes, keys, rng):
    puts, gets, found = [], [], 0
    for key in keys:
        began = time.perf_counter()
        if await rng.choice(nodes).set(key, os.urandom(200)):
            puts.append(time.perf_counter() - began)
    for key in keys:
        node = rng.choice([n for n in nodes if n.storage.get(digest(key)) is None])
        began = time.perf_counter()
        value = await node.get(key)
        gets.append(time.perf_counter() - began)
        found += value is not None
    return {"put": puts, "get": gets, "hits": found / len(keys)}


async def resolves_per_s(nodes, rng):
    reader = nodes[-1]
    keys = [f"resolve {number}" for number in range(RESOLVES)]
    for key in keys:
        await rng.choice(nodes[:-1]).set(key, os.urandom(200))
    wanted = [key for key in keys if reader.storage.get(digest(key)) is None]
    found = []

    async def resolve():
        while wanted:
            value = await reader.get(wanted.pop())
            if value is not None:
                found.append(value)

    began = time.process_time()
    await asyncio.gather(*(resolve() for _ in range(AT_ONCE)))
    return len(found) / (time.process_time() - began)


async def cold(nodes, ports, rng):
    """A fresh process that knows one address; only one, because the next would wait seconds for the one that left."""
    await nodes[0].set("cold", os.urandom(200))
    command = [sys.executable, __file__, "cold", str(rng.choice(ports)), str(ports[-1] + 1)]
    done = await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True, timeout=20)
    seconds = json.loads(done.stdout)
    return [] if seconds is None else [seconds]


async def cold_get(bootstrap, port):
    began = time.perf_counter()
    node = await open_node(port, bootstrap)
    value = await node.get("cold")
    print(json.dumps(time.perf_counter() - began if value is not None else None), flush=True)
    os._exit(0)


async def measure():
    count, number, seed = (int(text) for text in sys.argv[1:4])
    rng = random.Random(seed)
    start = random.SystemRandom().randrange(28000, 32000)
    ports = range(start, start + count)
    empty_mb = resident_mb()
    nodes = [await open_node(port, start if port > start else None) for port in ports]
    samples = {"rss_mb": (resident_mb() - empty_mb) / count}
    samples |= await operations(nodes, [f"value {seed} {each}" for each in range(number)], rng)
    if "resolves" in sys.argv:
        samples["resolves_per_s"] = await resolves_per_s(nodes, rng)
    if "join" in sys.argv:
        began = time.perf_counter()
        await open_node(start + count, start)
        samples["join"] = time.perf_counter() - began
        ports = range(start, start + count + 1)
    if "cold" in sys.argv:
        samples["cold"] = await cold(nodes, ports, rng)
    print(json.dumps(samples), flush=True)
    os._exit(0)  # its refresh loops would go on


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    if sys.argv[1] == "cold":
        asyncio.run(cold_get(*(int(text) for text in sys.argv[2:4])))
    asyncio.run(measure())
