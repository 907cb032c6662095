"""The hostile side of real sockets: a relay that sees and bends every datagram, peers that lie, many source addresses,
and what a node may hold at most meanwhile.
"""

import math
import os
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio

from ioc_node.core import candidates, challenge, exchange, rates, routing, sessions, storage
from ioc_node.core.challenge import Address
from ioc_node.runtime.dht import Dht, open_dht
from ioc_wire import dht as wire
from ioc_wire.errors import WireError
from tests.fuzz.mutation import mutate
from tests.runtime.dht_nodes import dht_options, key_of, own_cid, record_of

MIB: Final = 1 << 20
KINDS: Final = {1: "KNOCK", 2: "WHOAREYOU", 3: "HANDSHAKE", 4: "ACCEPT", 5: "MESSAGE", 6: "REFUSED"}
OWNER: Final = key_of("owner")
CID: Final = own_cid(OWNER)
SIZES: Final = (0, 1, 20, 21, 22, 23, 37, 181, 192, 198, 500, 1199, 1200, 1201, 1400)

Bend = Callable[[bytes, bool], list[bytes]]
"""What becomes of a datagram; the flag says whether it goes to the server."""


def report(text: str) -> None:
    """A figure for who reads the test's output; no figure decides a test."""
    print(text)  # noqa: T201


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def percentile(seconds: list[float], part: float) -> float:
    return sorted(seconds)[min(len(seconds) - 1, math.floor(len(seconds) * part))]


def check_bounds(dht: Dht) -> None:
    """No table of the node is larger than its named bound."""
    m = dht.machine
    assert len(m.sessions) <= sessions.SESSIONS_MAX
    assert len(m.sessions._attempts) <= sessions.ATTEMPTS_MAX
    assert len(m.sessions._by_node) <= len(m.sessions)
    assert len(m.sessions._by_remote) <= len(m.sessions)
    assert len(m.sessions._prekeys_seen) <= sessions.PREKEYS_SEEN_MAX
    assert len(m.sessions._challenges._spent) <= challenge.SPENT_MAX
    assert len(m.sessions._handshakes._buckets) <= rates.BUCKETS_MAX
    assert len(m.exchange) <= exchange.REQUESTS_MAX
    assert len(m.upkeep._candidates) <= candidates.CANDIDATES_MAX
    assert len(m.table) <= routing.FULL_TABLE_SERVERS_MAX
    assert len(m.store) <= storage.RECORDS_MAX
    assert len(m.holders) <= storage.BLOBS_MAX


def unbelieved(node: Dht) -> int:
    """Datagrams that came to nothing."""
    return sum(node.counters()[name] for name in ("garbage", "replayed", "undecryptable", "refused"))


# -- datagrams


class Relay:
    """Stands between one client and one server. Both take it for the other, so what it records is real."""

    def __init__(self, front: trio.socket.SocketType, back: trio.socket.SocketType, server: Address) -> None:
        self.address: Address = front.getsockname()
        self.seen: list[tuple[bytes, bool]] = []
        self.bend: Bend = lambda data, to_server: [data]
        self.delay = 0.0
        self._front, self._back = front, back
        self._server = server
        self._client: Address | None = None

    def packets(self, *, to_server: bool) -> list[bytes]:
        return [data for data, direction in self.seen if direction is to_server]

    async def replay(self, data: bytes, *, to_server: bool) -> None:
        """Send something once more, from where it came before."""
        await self._send(data, to_server)

    async def run(self, nursery: trio.Nursery, to_server: bool) -> None:
        source = self._front if to_server else self._back
        while True:
            data, address = await source.recvfrom(2048)
            if to_server:
                self._client = address
            self.seen.append((data, to_server))
            for bent in self.bend(data, to_server):
                if self.delay:
                    nursery.start_soon(self._send_later, bent, to_server)
                else:
                    await self._send(bent, to_server)

    async def _send_later(self, data: bytes, to_server: bool) -> None:
        await trio.sleep(self.delay)
        await self._send(data, to_server)

    async def _send(self, data: bytes, to_server: bool) -> None:
        if to_server:
            await self._back.sendto(data, self._server)
        elif self._client is not None:
            await self._front.sendto(data, self._client)


async def bound(host: str = "127.0.0.1", port: int = 0) -> trio.socket.SocketType:
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    await sock.bind((host, port))
    return sock


@asynccontextmanager
async def open_relay(server: Dht) -> AsyncIterator[Relay]:
    with await bound() as front, await bound() as back:
        relay = Relay(front, back, server.address)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.run, nursery, True)
            nursery.start_soon(relay.run, nursery, False)
            yield relay
            nursery.cancel_scope.cancel()


async def record_traffic(server: Dht) -> dict[int, list[bytes]]:
    """Real packets of every kind between a client that joins, puts and gets, and `server`."""
    async with open_relay(server) as relay, open_dht(**dht_options("recorded", server=False)) as client:
        await client.join([relay.address])
        await client.put(record_of(OWNER, CID))
        await client.get(CID)
        await relay.replay(bytes((wire.MESSAGE,)) + bytes(60), to_server=True)
        await trio.sleep(0.05)
        found: dict[int, list[bytes]] = {}
        for data, _ in relay.seen:
            found.setdefault(data[0], []).append(data)
    assert found.keys() == KINDS.keys()
    return found


def bad_datagrams(recorded: list[bytes], dice: random.Random) -> Iterator[bytes]:
    """Without end: random bytes, random bytes behind each kind's first byte, broken copies of recorded ones."""
    while True:
        yield mutate(dice.choice(recorded), recorded, dice)
        yield mutate(dice.choice(recorded), recorded, dice)
        noise = dice.randbytes(dice.choice(SIZES))
        yield noise
        yield bytes((dice.randint(1, 6),)) + noise[1:]


def loopback_sources(count: int) -> Iterator[str]:
    """Addresses of 127/8, spread over its /24s, none the first."""
    for number in range(count):
        yield f"127.{1 + number % 200}.{number // 200 % 250}.{2 + number // 50_000}"


# -- liars

Lie = Callable[[wire.Request, wire.Answer], wire.Answer]


def corrupt(dht: Dht, lie: Lie) -> None:
    """From now on this node answers requests with what `lie` makes of them and of its honest answers."""
    honest = dht.machine.answering.answer

    def answer(session: Any, request: wire.Request, *rest: Any, **more: Any) -> wire.Answer:
        return lie(request, honest(session, request, *rest, **more))

    dht.machine.answering.answer = answer  # type: ignore[method-assign]


async def fault_of(call: Any) -> WireError | Exception | None:
    """What an operation ends with, if not with a report."""
    try:
        await call
    except Exception as error:  # noqa: BLE001 - the caller says which it may be
        return error
    return None
