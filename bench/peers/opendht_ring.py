"""OpenDHT (C++) with N nodes in one process; run by the interpreter of its own environment.

`python opendht_ring.py NODES OPERATIONS SEED` prints one JSON object: lists of seconds `put`, `get`,
`put_signed`, `get_signed`, and the share of gets that found something. A get is timed to its first value, as
ours is. The stock limits per address are lifted, because all nodes share one address here. Signed values
carry RSA-2048 signatures.
"""

import json
import os
import random
import sys
import threading
import time

import opendht

SIGNERS = 4
SETTLE_SECONDS = 8.0
GET_SECONDS_MAX = 10.0


def free_ports(count):
    """A run of ports that is probably free, away from the ephemeral range's start."""
    start = random.SystemRandom().randrange(20000, 28000)
    return range(start, start + count)


def open_ring(count):
    nodes = []
    ports = free_ports(count)
    for number, port in enumerate(ports):
        config = opendht.DhtConfig()
        config.setRateLimit(1_000_000, 1_000_000)
        if number < SIGNERS:
            config.setIdentity(opendht.Identity.generate(f"signer{number}", bits=2048))
        runner = opendht.DhtRunner()
        runner.run(port=port, ipv4="127.0.0.1", config=config)
        nodes.append(runner)
    for runner in nodes[1:]:
        runner.bootstrap("127.0.0.1", str(ports[0]))
    time.sleep(SETTLE_SECONDS)
    return nodes


def first_value_seconds(node, key):
    """Seconds to the first value, or None."""
    came = threading.Event()
    at = []

    def on_value(value):
        at.append(time.perf_counter())
        came.set()
        return False

    began = time.perf_counter()
    node.get(key, get_cb=on_value, done_cb=lambda ok, nodes: came.set())
    came.wait(GET_SECONDS_MAX)
    return at[0] - began if at else None


def measure(nodes, rng, keys, put, putters):
    puts, gets = [], []
    for key in keys:
        value = opendht.Value(os.urandom(200))
        node = rng.choice(putters)
        began = time.perf_counter()
        if put(node, key, value):
            puts.append(time.perf_counter() - began)
    for key in keys:
        seconds = first_value_seconds(rng.choice(nodes), key)
        if seconds is not None:
            gets.append(seconds)
    return puts, gets


def main():
    count, operations, seed = (int(text) for text in sys.argv[1:4])
    rng = random.Random(seed)
    nodes = open_ring(count)
    plain = [opendht.InfoHash.get(f"plain {seed} {number}") for number in range(operations)]
    signed = [opendht.InfoHash.get(f"signed {seed} {number}") for number in range(operations)]
    puts, gets = measure(nodes, rng, plain, lambda node, key, value: node.put(key, value), nodes)
    signed_puts, signed_gets = measure(
        nodes, rng, signed, lambda node, key, value: node.putSigned(key, value), nodes[:SIGNERS]
    )
    hits = (len(gets) + len(signed_gets)) / (2 * operations)
    result = {"put": puts, "get": gets, "put_signed": signed_puts, "get_signed": signed_gets, "hits": hits}
    print(json.dumps(result), flush=True)
    os._exit(0)  # its threads do not always end


if __name__ == "__main__":
    main()
