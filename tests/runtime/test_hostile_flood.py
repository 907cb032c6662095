"""Floods on real sockets: bad datagrams by the million, ten thousand sources, a crowd with good keys. The node holds
no more than it said it would, and whoever is honest is still answered.
"""

import random
import socket
import sys
from collections.abc import Iterator
from typing import Final

import pytest
import trio
import trio.lowlevel

from ioc_node.core import sessions
from ioc_node.core.events import DatagramReceived
from ioc_node.core.session import SendDatagram
from ioc_node.runtime.dht import Dht, open_dht
from ioc_wire import dht as wire
from ioc_wire.codec import encode
from tests.fuzz.crafted import Initiator
from tests.runtime.dht_nodes import NETWORK, dht_options, key_of, open_dhts, record_of
from tests.runtime.hostile import (
    CID,
    OWNER,
    bad_datagrams,
    bound,
    check_bounds,
    loopback_sources,
    percentile,
    record_traffic,
    report,
    resident_mib,
    unbelieved,
)

SOURCES: Final = 10_000
BURST: Final = 64
MEMORY_GROWTH_MIB_MAX: Final = 48
"""What a flood may add to a process that holds the nodes and who floods them."""
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets one bind all of 127/8")


async def flood(datagrams: Iterator[bytes], count: int, targets: list[Dht], done: trio.Event) -> None:
    """Throw so many, each burst from a port of its own, giving the others a turn between bursts."""
    for _ in range(0, count, BURST):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for number in range(BURST):
                sock.sendto(next(datagrams)[:1500], targets[number % len(targets)].address)
        await trio.lowlevel.checkpoint()
    done.set()


async def look_up(client: Dht, done: trio.Event, seconds: list[float]) -> None:
    """An honest client that goes on asking."""
    while not done.is_set():
        began = trio.current_time()
        assert (await client.get(CID, answers=1)).resource.cid == CID
        seconds.append(trio.current_time() - began)
        await trio.sleep(0.002)


async def survive(count: int) -> None:
    async with open_dhts(3) as nodes, open_dht(**dht_options("client", server=False)) as client:
        await client.join([nodes[0].address])
        await client.put(record_of(OWNER, CID))
        recorded = [data for packets in (await record_traffic(nodes[0])).values() for data in packets]
        known = [node.machine.sessions.counters.handshakes_accepted for node in nodes]
        dropped = sum(unbelieved(node) for node in (*nodes, client))
        before, began = resident_mib(), trio.current_time()
        done, seconds = trio.Event(), list[float]()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look_up, client, done, seconds)
            nursery.start_soon(
                flood, bad_datagrams(recorded, random.Random(1)), count, [*nodes, client], done
            )
        took, grown = trio.current_time() - began, resident_mib() - before
        for node in (*nodes, client):
            check_bounds(node)
        assert [node.machine.sessions.counters.handshakes_accepted for node in nodes] == known
        assert all(len(node.contacts()) == 2 for node in nodes)
        report(
            f"{count} bad datagrams in {took:.1f} s, {grown:+.1f} MiB; {len(seconds)} gets meanwhile: "
            f"p50 {percentile(seconds, 0.5) * 1e3:.2f} ms, p99 {percentile(seconds, 0.99) * 1e3:.2f} ms"
        )
        assert seconds
        assert sum(unbelieved(node) for node in (*nodes, client)) - dropped > count / 4, "the flood arrived"
        assert grown < MEMORY_GROWTH_MIB_MAX


async def test_a_flood_of_bad_datagrams() -> None:
    await survive(20_000)


@pytest.mark.slow
async def test_a_million_bad_datagrams() -> None:
    await survive(1_000_000)


@LINUX
async def test_ten_thousand_sources_leave_nothing_behind() -> None:
    """Each really sends from its address: a good KNOCK, a replayed HANDSHAKE and MESSAGE, noise."""
    dice = random.Random(2)
    async with open_dhts(1) as (bob,), open_dht(**dht_options("client", server=False)) as client:
        await client.join([bob.address])
        await client.put(record_of(OWNER, CID))
        recorded = await record_traffic(bob)
        counters = bob.machine.sessions.counters
        held, accepted, before = len(bob.machine.sessions), counters.handshakes_accepted, resident_mib()
        seconds: list[float] = []
        for number, host in enumerate(loopback_sources(SOURCES)):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind((host, 0))
                knock = Initiator(key_of("mallory"), NETWORK, dice).knock() if number < 50 else None
                sock.sendto(knock or recorded[wire.KNOCK][0], bob.address)
                sock.sendto(dice.choice(recorded[wire.HANDSHAKE]), bob.address)
                sock.sendto(dice.choice(recorded[wire.MESSAGE]), bob.address)
                sock.sendto(dice.randbytes(dice.randrange(300)), bob.address)
            if number % 16 == 0:
                await trio.lowlevel.checkpoint()
            if number % 100 == 0:
                began = trio.current_time()
                assert (await client.get(CID)).resource.cid == CID
                seconds.append(trio.current_time() - began)
        await trio.sleep(0.05)
        report(
            f"{SOURCES} sources: {resident_mib() - before:+.1f} MiB, "
            f"gets meanwhile p99 {percentile(seconds, 0.99) * 1e3:.2f} ms"
        )
        assert counters.replayed >= SOURCES * 0.9, "no HANDSHAKE is believed from another address"
        assert counters.refused >= SOURCES * 0.9, "nor a MESSAGE"
        assert (len(bob.machine.sessions), counters.handshakes_accepted) == (held, accepted)
        assert len(bob.machine.sessions._challenges._spent) <= accepted
        check_bounds(bob)


async def test_sources_all_over_the_internet_leave_nothing_behind() -> None:
    """Global addresses cannot be sent from here: these go straight into the machine of a running node."""
    dice = random.Random(3)
    async with open_dhts(1) as (bob,):
        recorded = [data for packets in (await record_traffic(bob)).values() for data in packets]
        held, bad = len(bob.machine.sessions), bad_datagrams(recorded, dice)
        for number in range(SOURCES):
            host = f"{dice.randrange(11, 100)}.{number >> 8}.{number & 255}.9"
            if number % 3 == 0:
                host = f"2a{dice.randrange(16, 256):02x}:{number:x}::1"
            data = next(bad) if number % 2 else Initiator(key_of("mallory"), NETWORK, dice).knock()
            sent = bob.machine.handle(
                DatagramReceived(data, (host, dice.randrange(1, 65536))), now=trio.current_time()
            )
            assert sum(len(effect.data) for effect in sent if isinstance(effect, SendDatagram)) <= len(data)
        assert len(bob.machine.sessions) == held
        check_bounds(bob)


async def enter(number: int, host: str, bob: Dht, dice: random.Random, flags: int = wire.FLAG_SERVER) -> bool:
    """A handshake with a good key from an address of its own; whether bob accepted."""
    crowd = Initiator(key_of(f"crowd {number}"), NETWORK, dice)
    first = encode(wire.Opening(None, wire.encode_message(wire.Ping(1))))
    with await bound(host) as sock, trio.move_on_after(2):
        await sock.sendto(crowd.knock(), bob.address)
        await sock.sendto(crowd.handshake(await sock.recv(2048), first, flags=flags), bob.address)
        return (await sock.recv(2048))[0] == wire.ACCEPT
    return False


async def crowd(count: int) -> None:
    """So many good keys at so many addresses, all of them servers as they say."""
    dice = random.Random(4)
    async with open_dhts(1) as (bob,), open_dht(**dht_options("client", server=False)) as client:
        await client.join([bob.address])
        await client.put(record_of(OWNER, CID))
        accepted, before = 0, resident_mib()
        seconds: list[float] = []
        for number, host in enumerate(loopback_sources(count)):
            accepted += await enter(number, host, bob, dice)
            if number % 20 == 0:
                began = trio.current_time()
                assert (await client.get(CID)).resource.cid == CID
                seconds.append(trio.current_time() - began)
        report(
            f"{accepted} of {count} strangers shook hands: {len(bob.machine.sessions)} sessions, "
            f"{len(bob.machine.table)} servers, {resident_mib() - before:+.1f} MiB, "
            f"gets p99 {percentile(seconds, 0.99) * 1e3:.2f} ms"
        )
        assert accepted > count * 0.9
        check_bounds(bob)


@LINUX
async def test_a_crowd_of_good_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "SESSIONS_MAX", 64)
    await crowd(200)


@LINUX
async def test_one_host_with_many_good_keys_is_slowed_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each handshake costs its responder; others are let in meanwhile."""
    monkeypatch.setattr(sessions, "HANDSHAKES_PER_SECOND", 5.0)
    dice = random.Random(5)
    async with open_dhts(1) as (bob,), trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(enter, number, "127.9.9.9", bob, dice, 0)
        await trio.sleep(0.2)
        async with open_dht(**dht_options("client", server=False)) as client:
            with trio.fail_after(2):
                assert await client.join([bob.address]) == 1
        assert bob.counters()["handshakes_accepted"] <= 1 + 5 + 5 * 3
        assert bob.counters()["limited"] >= 10
        nursery.cancel_scope.cancel()


@LINUX
async def test_who_lost_its_session_is_told_so_in_a_flood() -> None:
    """A server forgot its sessions and drowns in messages of sessions that never were, from all over: the honest
    client is told to knock again, as if it were alone."""
    dice, port = random.Random(6), 0
    async with open_dht(**dht_options("client", server=False)) as client:
        for life in range(2):
            async with open_dht(**dht_options("bob", port=port)) as bob, trio.open_nursery() as nursery:
                port = bob.address[1]
                if life == 0:
                    await client.join([bob.address])
                    await client.put(record_of(OWNER, CID))
                    continue
                bob.machine.answering.keep(
                    wire.Put(0, record_of(OWNER, CID), None), bob.machine.unix(trio.current_time()), []
                )
                nursery.start_soon(drown, bob, dice)
                await trio.sleep(0.3)
                began = trio.current_time()
                assert (await client.get(CID)).resource.cid == CID
                report(f"found again after {trio.current_time() - began:.3f} s")
                assert client.counters()["timed_out"] == 0
                nursery.cancel_scope.cancel()


async def drown(bob: Dht, dice: random.Random) -> None:
    while True:
        for host in loopback_sources(1000):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind((host, 0))
                for _ in range(5):
                    sock.sendto(bytes((wire.MESSAGE,)) + dice.randbytes(60), bob.address)
            await trio.lowlevel.checkpoint()


@LINUX
@pytest.mark.slow
async def test_a_crowd_larger_than_the_tables() -> None:
    await crowd(sessions.SESSIONS_MAX + 1000)
