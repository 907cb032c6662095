"""py-libp2p's kad-dht (trio, noise, yamux) with N nodes in one process; run by the interpreter of its own environment.

`python libp2p_ring.py NODES OPERATIONS SEED [PART ...]` prints one JSON object: lists of seconds `put` and `get` (to
the first valid value, by nodes that do not hold it), `authoritative` (its default quorum); `hits`, the share of gets
that found something; `rss_mb`, resident memory per node. It is slow, so only the first `OPERATIONS_MAX` are done, and
after `SECONDS_MAX` no more than one of a kind. Its wait of 250 ms before each connection ("happy eyeballs") is switched
off: it would wait even where the first address has answered.
"""

import json
import logging
import os
import random
import sys
import time
from pathlib import Path

logging.disable(logging.CRITICAL)

import trio  # noqa: E402
from libp2p import new_host  # noqa: E402
from libp2p.crypto.ed25519 import create_new_key_pair  # noqa: E402
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT  # noqa: E402
from libp2p.network import swarm  # noqa: E402
from libp2p.peer.peerinfo import info_from_p2p_addr  # noqa: E402
from libp2p.tools.anyio_service import background_trio_service  # noqa: E402
from multiaddr import Multiaddr  # noqa: E402

swarm._HAPPY_EYEBALLS_DELAY = 0
OPERATIONS_MAX = 10
JOIN_SECONDS_MAX = 60.0
SECONDS_MAX = 75.0
STARTED = time.perf_counter()


def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


async def run_node(nodes, task_status=trio.TASK_STATUS_IGNORED):
    address = Multiaddr("/ip4/127.0.0.1/tcp/0")
    host = new_host(key_pair=create_new_key_pair(), listen_addrs=[address])
    async with host.run(listen_addrs=[address]):
        dht = KadDHT(host, DHTMode.SERVER)
        async with background_trio_service(dht):
            nodes.append((host, dht))
            task_status.started()
            await trio.sleep_forever()


async def join(nodes, rng):
    """Everybody meets the first node and two others, then looks itself up."""
    for number, (host, dht) in enumerate(nodes[1:], 1):
        for other in {0, *rng.sample(range(number), min(2, number))}:
            their_host, their_dht = nodes[other]
            await host.connect(info_from_p2p_addr(their_host.get_addrs()[0]))
            await dht.add_peer(their_host.get_id(), skip_server_mode_check=True)
            await their_dht.add_peer(host.get_id(), skip_server_mode_check=True)
    for _, dht in nodes:
        if time.perf_counter() - STARTED < JOIN_SECONDS_MAX:
            await dht.peer_routing.find_closest_peers_network(dht.local_peer_id.to_bytes())


async def operations(nodes, keys, rng):
    samples = {"put": [], "get": [], "authoritative": []}
    asked = found = 0
    for key in keys:
        if samples["put"] and time.perf_counter() - STARTED > SECONDS_MAX:
            break
        _, putter = rng.choice(nodes)
        began = time.perf_counter()
        await putter.put_value(key, os.urandom(100).hex().encode())
        samples["put"].append(time.perf_counter() - began)
    for name, options in (("get", {"quorum": 1}), ("authoritative", {})):
        for key in keys[: len(samples["put"])]:
            if samples[name] and time.perf_counter() - STARTED > SECONDS_MAX:
                break
            reader = rng.choice([dht for _, dht in nodes if dht.value_store.get(key.encode()) is None])
            began = time.perf_counter()
            value = await reader.get_value(key, **options)
            asked += 1
            if value is not None:
                found += 1
                samples[name].append(time.perf_counter() - began)
    return samples | {"hits": found / asked if asked else 0.0}


async def measure():
    count, number, seed = (int(text) for text in sys.argv[1:4])
    rng = random.Random(seed)
    empty_mb = resident_mb()
    nodes = []
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            await nursery.start(run_node, nodes)
        await join(nodes, rng)
        await trio.sleep(2)
        samples = {"rss_mb": (resident_mb() - empty_mb) / count}
        samples |= await operations(
            nodes, [f"{seed}-{each}" for each in range(min(number, OPERATIONS_MAX))], rng
        )
        print(json.dumps(samples), flush=True)
        os._exit(0)


if __name__ == "__main__":
    trio.run(measure)
