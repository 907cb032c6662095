"""DHT nodes on real sockets for tests."""

import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.runtime.dht import Dht, open_dht
from ioc_wire.cid import self_certified_prefix
from ioc_wire.records import Cpu, Place, ResourceRecord
from ioc_wire.signed import Signed, public_bytes, sign

NETWORK = b"a network of this test process!!"


def key_of(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(random.Random(name).randbytes(32))


def own_cid(key: Ed25519PrivateKey, host: str = "h1") -> str:
    return f"ioc:{self_certified_prefix(public_bytes(key))}/ai/3301/az1/{host}"


def record_of(key: Ed25519PrivateKey, cid: str, version: int = 1, *, seconds: int = 3600) -> Signed:
    now = int(time.time())
    place = Place("cn", cid.split("/")[2], "az1")
    cpu = Cpu("x86_64", "test", 8, 16)
    return sign(key, ResourceRecord(cid, version, now, now + seconds, "node", place, cpu, 1024))


def dht_options(name: str, **changed: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "key": key_of(name), "host": "127.0.0.1", "port": 0, "network_id": NETWORK, "roots": frozenset(),
        "admission": "open", "chain": (), "server": True, "advertise_host": None, "rng": random.SystemRandom(),
    }  # fmt: skip
    return options | changed


@asynccontextmanager
async def open_dhts(count: int) -> AsyncIterator[list[Dht]]:
    """A joined network of servers in which everybody knows everybody."""
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(open_dht(**dht_options(f"node{i}"))) for i in range(count)]
        for node in nodes[1:]:
            assert await node.join([nodes[0].address]) == 1
        with trio.fail_after(20):
            while count > 1 and not all(n.machine.upkeep.has_full_view() for n in nodes):
                await trio.sleep(0.02)
        assert all(len(node.contacts()) == count - 1 for node in nodes)
        yield nodes
