"""libtorrent (C++), BEP-44 mutable items, with N nodes in one process; run by the interpreter of its own environment.

`python libtorrent_ring.py NODES OPERATIONS SEED [PART ...]` prints one JSON object: lists of seconds `put`, `get` (to
the first valid value), `authoritative` (until the nearest nodes have all answered); `hits`, the share of gets that
found something; `rss_mb`, resident memory per node. With `resolves` also gets per second of CPU time of all threads,
`AT_ONCE` at a time by one node; with `cold` seconds from opening a session to the first value. Values are signed
(Ed25519) and travel in clear.

`python libtorrent_ring.py member HOST` is one node alone, driven by lines of JSON as `bench.dht_member` is.
"""

import hashlib
import json
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import libtorrent
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SETTLE_SECONDS = 8.0
ANSWER_SECONDS_MAX = 10.0
AT_ONCE = 32
RESOLVES = 600
COLD_RUNS = 5
COLD_SECONDS_MAX = 3.0
SETTINGS = {
    "enable_dht": True,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "dht_bootstrap_nodes": "",
    "allow_multiple_connections_per_ip": True,
    "dht_restrict_routing_ips": False,
    "dht_restrict_search_ips": False,
    "dht_enforce_node_id": False,
    "dht_ignore_dark_internet": False,
    "dht_prefer_verified_node_ids": False,
    "dht_upload_rate_limit": 100_000_000,
    "dht_block_ratelimit": 100_000,
    "dht_max_dht_items": 100_000,
    "alert_mask": int(libtorrent.alert.category_t.dht_notification)
    | int(libtorrent.alert.category_t.stats_notification),
}


class Item:
    """A key pair as libtorrent takes it, and a value of 200 bytes."""

    def __init__(self, seed):
        digest = bytearray(hashlib.sha512(seed).digest())
        digest[0] &= 248
        digest[31] = digest[31] & 63 | 64
        self.secret = bytes(digest)
        self.public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
        self.value = hashlib.sha512(seed).hexdigest().ljust(200, "x").encode()


class Node:
    """One session, on an address of its own."""

    def __init__(self, host, port):
        self.address = (host, port)
        self.session = libtorrent.session(SETTINGS | {"listen_interfaces": f"{host}:{port}"})

    def alerts(self, seconds_max=ANSWER_SECONDS_MAX):
        """What happens, as it happens, for so long at most."""
        end = time.perf_counter() + seconds_max
        while (left := end - time.perf_counter()) > 0:
            self.session.wait_for_alert(max(1, int(left * 1000)))
            yield from self.session.pop_alerts()

    def put(self, item):
        """Store, and return how many nodes did."""
        self.session.dht_put_mutable_item(item.secret, item.public, item.value, b"")
        for alert in self.alerts():
            if type(alert).__name__ == "dht_put_alert":
                return alert.num_success
        return 0

    def get(self, item):
        """Seconds to the first value and to the authoritative one, each None where it did not come."""
        self.session.pop_alerts()
        began = time.perf_counter()
        self.session.dht_get_mutable_item(item.public, b"")
        first = None
        for alert in self.alerts():
            if type(alert).__name__ != "dht_mutable_item_alert":
                continue
            if value_of(alert) == item.value and first is None:
                first = time.perf_counter() - began
            if alert.authoritative:
                return first, time.perf_counter() - began if first is not None else None
        return first, None


def value_of(alert):
    value = alert.item
    if isinstance(value, dict):
        value = value.get("value")
    return value.encode() if isinstance(value, str) else value


def free_port(host):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((host, 0))
        return sock.getsockname()[1]


def open_node(number):
    host = f"127.0.{number // 200 + 1}.{number % 200 + 1}"
    return Node(host, free_port(host))


def open_ring(count, rng):
    nodes = [open_node(number) for number in range(count)]
    for node in nodes:
        for other in {nodes[0], *rng.sample(nodes, min(3, count))} - {node}:
            node.session.add_dht_node(other.address)
    time.sleep(SETTLE_SECONDS)
    return nodes


def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def operations(nodes, items, rng):
    samples = {"put": [], "get": [], "authoritative": []}
    for item in items:
        node = rng.choice(nodes)
        node.session.pop_alerts()
        began = time.perf_counter()
        if node.put(item):
            samples["put"].append(time.perf_counter() - began)
    for item in items:
        first, authoritative = rng.choice(nodes).get(item)
        if first is not None:
            samples["get"].append(first)
        if authoritative is not None:
            samples["authoritative"].append(authoritative)
    return samples | {"hits": len(samples["get"]) / len(items)}


def resolves_per_s(nodes, rng):
    items = [Item(rng.randbytes(32)) for _ in range(RESOLVES)]
    for item in items:
        rng.choice(nodes[:-1]).put(item)
    reader, wanted = nodes[-1], [item.public for item in items]
    reader.session.pop_alerts()
    missing = set(wanted)
    began = time.process_time()
    for _ in range(AT_ONCE):
        reader.session.dht_get_mutable_item(wanted.pop(), b"")
    for alert in reader.alerts(30):
        if type(alert).__name__ != "dht_mutable_item_alert":
            continue
        if alert.item and bytes(alert.key) in missing:
            missing.discard(bytes(alert.key))
            if wanted:
                reader.session.dht_get_mutable_item(wanted.pop(), b"")
        if not missing:
            break
    return (len(items) - len(missing)) / (time.process_time() - began)


def cold(nodes, rng):
    """Fresh processes that know one address each."""
    seconds = []
    for number in range(COLD_RUNS):
        seed = rng.randbytes(32)
        nodes[0].put(Item(seed))
        host, port = rng.choice(nodes).address
        command = [sys.executable, __file__, "cold", host, str(port), seed.hex(), str(number)]
        seconds.append(
            json.loads(subprocess.run(command, check=True, capture_output=True, timeout=10).stdout)
        )
    return [each for each in seconds if each is not None]


def cold_get(host, port, seed, number):
    """Seconds from opening a session to a value; a get is begun again as long as it finds nothing."""
    item = Item(bytes.fromhex(seed))
    began = time.perf_counter()
    node = Node(f"127.0.9.{number + 1}", free_port(f"127.0.9.{number + 1}"))
    node.session.add_dht_node((host, port))
    while time.perf_counter() - began < COLD_SECONDS_MAX:
        node.session.dht_get_mutable_item(item.public, b"")
        for alert in node.alerts(0.05):
            if type(alert).__name__ == "dht_mutable_item_alert":
                if value_of(alert) == item.value:
                    return time.perf_counter() - began
                if alert.authoritative:
                    time.sleep(0.002)
                    break
    return None


def member():
    """One node alone, told what to do line by line."""
    host = sys.argv[2]
    node = Node(host, free_port(host))
    print(json.dumps({"address": node.address}), flush=True)
    for line in sys.stdin:
        told, answer = json.loads(line), {}
        if told["do"] == "join":
            for address in told["addresses"]:
                node.session.add_dht_node(tuple(address))
        elif told["do"] == "wait":
            time.sleep(told["seconds"])
        else:
            item = Item(hashlib.sha256(str(told["number"]).encode()).digest())
            node.session.pop_alerts()
            began = time.perf_counter()
            if told["do"] == "put":
                stored = node.put(item)
                answer = {"seconds": time.perf_counter() - began if stored else None, "holders": []}
            else:
                answer = {"seconds": node.get(item)[told["answers"] > 1]}
        print(json.dumps(answer), flush=True)


def main():
    if sys.argv[1] == "cold":
        print(json.dumps(cold_get(sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5]))), flush=True)
    elif sys.argv[1] == "member":
        member()
    else:
        count, number, seed = (int(text) for text in sys.argv[1:4])
        rng = random.Random(seed)
        empty_mb = resident_mb()
        nodes = open_ring(count, rng)
        samples = {"rss_mb": (resident_mb() - empty_mb) / count}
        samples |= operations(nodes, [Item(rng.randbytes(32)) for _ in range(number)], rng)
        if "resolves" in sys.argv:
            samples["resolves_per_s"] = resolves_per_s(nodes, rng)
        if "cold" in sys.argv:
            samples["cold"] = cold(nodes, rng)
        print(json.dumps(samples), flush=True)
    os._exit(0)  # sessions take seconds to end


if __name__ == "__main__":
    main()
