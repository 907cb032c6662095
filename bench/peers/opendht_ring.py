"""OpenDHT (C++) with N nodes in one process; run by the interpreter of its own environment.

`python opendht_ring.py NODES OPERATIONS SEED [PART ...]` prints one JSON object: lists of seconds `put`, `get` (to the
first value, as ours), `authoritative` (until the whole search ended), `put_signed`, `get_signed`; `hits`, the share of
gets that found something; `rss_mb`, resident memory per node. With `resolves` also gets per second of CPU time of all
threads, `AT_ONCE` at a time by one node; with `cold` seconds from opening a node to its first value. The stock limits
per address are lifted, because all nodes share one address here. Signed values carry RSA-2048 signatures.
"""

import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import opendht

SIGNERS = 4
SETTLE_SECONDS = 8.0
GET_SECONDS_MAX = 10.0
AT_ONCE = 32
RESOLVES = 600
COLD_RUNS = 5
COLD_TRY_SECONDS = 0.05
COLD_SECONDS_MAX = 5.0


def free_ports(count):
    """A run of ports that is probably free, away from the ephemeral range's start."""
    start = random.SystemRandom().randrange(20000, 28000)
    return range(start, start + count)


def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def open_ring(ports):
    nodes = []
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


def first_value_seconds(node, key, seconds_max=GET_SECONDS_MAX):
    """Seconds to the first value, or None."""
    came = threading.Event()
    at = []

    def on_value(value):
        at.append(time.perf_counter())
        came.set()
        return False

    began = time.perf_counter()
    node.get(key, get_cb=on_value, done_cb=lambda ok, nodes: came.set())
    came.wait(seconds_max)
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


def resolves_per_s(nodes, rng):
    """The reader's threads, the other nodes' and Python's callbacks all count."""
    keys = [opendht.InfoHash.get(f"resolve {number}") for number in range(RESOLVES)]
    for key in keys:
        rng.choice(nodes[:-1]).put(key, opendht.Value(os.urandom(200)))
    free, found = threading.Semaphore(AT_ONCE), []

    def resolve(key):
        def on_value(value):
            found.append(key)
            return False

        nodes[-1].get(key, get_cb=on_value, done_cb=lambda ok, nodes: free.release())

    began = time.process_time()
    for key in keys:
        if not free.acquire(timeout=GET_SECONDS_MAX):
            break
        resolve(key)
    for _ in range(AT_ONCE):
        free.acquire(timeout=GET_SECONDS_MAX)
    return len(found) / (time.process_time() - began)


def cold(nodes, ports, rng):
    """Fresh processes that know one address each; its binding sometimes locks up there, which counts as no answer."""
    seconds = []
    for number in range(COLD_RUNS):
        nodes[0].put(opendht.InfoHash.get(f"cold {number}"), opendht.Value(os.urandom(200)))
        command = [sys.executable, __file__, "cold", str(rng.choice(ports)), str(number)]
        try:
            done = subprocess.run(command, check=True, capture_output=True, timeout=COLD_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            continue
        seconds.append(json.loads(done.stdout))
    return [each for each in seconds if each is not None]


def cold_get(port, number):
    """Seconds from opening a node to a value; a get is begun again as long as it finds nothing."""
    key = opendht.InfoHash.get(f"cold {number}")
    config = opendht.DhtConfig()
    config.setRateLimit(1_000_000, 1_000_000)
    began = time.perf_counter()
    node = opendht.DhtRunner()
    node.run(port=0, ipv4="127.0.0.1", config=config)
    node.bootstrap("127.0.0.1", str(port))
    while time.perf_counter() - began < GET_SECONDS_MAX / 5:
        if first_value_seconds(node, key, COLD_TRY_SECONDS) is not None:
            return time.perf_counter() - began
        time.sleep(0.002)
    return None


def full_seconds(node, key):
    """Seconds until the whole search ended."""
    began = time.perf_counter()
    return time.perf_counter() - began if node.get(key) else None


def main():
    if sys.argv[1] == "cold":
        print(json.dumps(cold_get(int(sys.argv[2]), sys.argv[3])), flush=True)
        os._exit(0)
    count, operations, seed = (int(text) for text in sys.argv[1:4])
    rng = random.Random(seed)
    ports = free_ports(count)
    empty_mb = resident_mb()
    nodes = open_ring(ports)
    result = {"rss_mb": (resident_mb() - empty_mb) / count}
    plain = [opendht.InfoHash.get(f"plain {seed} {number}") for number in range(operations)]
    signed = [opendht.InfoHash.get(f"signed {seed} {number}") for number in range(operations)]
    puts, gets = measure(nodes, rng, plain, lambda node, key, value: node.put(key, value), nodes)
    full = [full_seconds(rng.choice(nodes), key) for key in plain]
    signed_puts, signed_gets = measure(
        nodes, rng, signed, lambda node, key, value: node.putSigned(key, value), nodes[:SIGNERS]
    )
    hits = (len(gets) + len(signed_gets)) / (2 * operations)
    result |= {"put": puts, "get": gets, "put_signed": signed_puts, "get_signed": signed_gets, "hits": hits}
    result["authoritative"] = [each for each in full if each is not None]
    if "resolves" in sys.argv:
        result["resolves_per_s"] = resolves_per_s(nodes, rng)
    if "cold" in sys.argv:
        result["cold"] = cold(nodes, ports, rng)
    print(json.dumps(result), flush=True)
    os._exit(0)  # its threads do not always end


if __name__ == "__main__":
    main()
