"""The Python package kademlia with N nodes in one process; run by the interpreter of its own environment.

`python kademlia_ring.py NODES OPERATIONS SEED` prints one JSON object: lists of seconds `put` and `get`, and
the share of gets that found something. Only gets of nodes that do not hold the value themselves are counted,
as with ours. Values are unsigned and travel in clear.
"""

import asyncio
import json
import logging
import os
import random
import sys
import time

from kademlia.network import Server
from kademlia.utils import digest


async def open_ring(count):
    start = random.SystemRandom().randrange(28000, 32000)
    nodes = []
    for number in range(count):
        node = Server()
        await node.listen(start + number, "127.0.0.1")
        if number:
            await node.bootstrap([("127.0.0.1", start)])
        nodes.append(node)
    return nodes


async def measure():
    count, operations, seed = (int(text) for text in sys.argv[1:4])
    rng = random.Random(seed)
    nodes = await open_ring(count)
    keys = [f"value {seed} {number}" for number in range(operations)]
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
    print(json.dumps({"put": puts, "get": gets, "hits": found / operations}), flush=True)
    os._exit(0)  # its refresh loops would go on


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    asyncio.run(measure())
