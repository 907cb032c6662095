"""A node is no weapon: to an address that proved nothing goes no more than came from it, and nobody can make a node
knock at a victim without end by telling it contacts.
"""

import math
import random
from typing import Final

import pytest
import trio
import trio.testing

from ioc_node.core.events import DatagramReceived
from ioc_node.core.exchange import TRIES
from ioc_node.core.session import SendDatagram
from ioc_node.core.silence import SILENT_SECONDS
from ioc_node.runtime.dht import Dht, open_dht
from ioc_wire import dht as wire
from ioc_wire import limits
from ioc_wire.codec import encode
from tests.fuzz.crafted import Initiator
from tests.runtime.dht_nodes import NETWORK, dht_options, key_of, open_dhts, own_cid
from tests.runtime.hostile import (
    KINDS,
    OWNER,
    bad_datagrams,
    bound,
    corrupt,
    fault_of,
    open_relay,
    record_traffic,
    report,
)

RANDOM_DATAGRAMS: Final = 300
AT_ONCE: Final = 50
MACHINE_DATAGRAMS: Final = 5000
HOURS: Final = 1
BESIDE: Final = 2
"""A lookup may knock at a contact while it is being verified."""


async def answered(bob: Dht, datagrams: list[bytes]) -> list[tuple[int, int, int]]:
    """Send each from an address of its own; per datagram: its kind, its bytes, and the bytes that came back."""
    measured = []
    for start in range(0, len(datagrams), AT_ONCE):
        batch = [(data, await bound()) for data in datagrams[start : start + AT_ONCE]]
        for data, sock in batch:
            await sock.sendto(data, bob.address)
        await trio.sleep(0.03)
        for data, sock in batch:
            back = 0
            with sock, trio.move_on_after(0.002):
                while True:
                    answer = await sock.recv(2048)
                    back += len(answer)
            measured.append((data[0] if data else 0, len(data), back))
    return measured


async def test_every_kind_and_random_bytes_from_an_unproved_address() -> None:
    async with open_dhts(1) as (bob,):
        recorded = await record_traffic(bob)
        dice = random.Random(7)
        stranger = Initiator(key_of("mallory"), NETWORK, dice)
        good = [
            stranger.knock(),
            stranger.knock(version=9),
            Initiator(key_of("mallory"), bytes(32), dice).knock(),
            *(packet for packets in recorded.values() for packet in packets[:3]),
            *(bytes((kind,)) + bytes(size - 1) for kind in KINDS for size in (21, 22, 23, 192, 1200)),
        ]
        bad = bad_datagrams([packet for packets in recorded.values() for packet in packets], dice)
        measured = await answered(bob, good + [next(bad) for _ in range(RANDOM_DATAGRAMS)])
        for kind, name in KINDS.items():
            ratios = [back / size for of, size, back in measured if of == kind]
            report(f"{name}: at most {max(ratios):.2f} bytes for one, of {len(ratios)}")
        assert all(back <= size for _, size, back in measured)
        assert sum(back for _, _, back in measured) <= sum(size for _, size, _ in measured)
        assert any(back for _, _, back in measured), "something was answered, or this measured nothing"
        assert len(bob.machine.sessions) == 1, "of the client whose traffic was recorded"


async def test_no_datagram_of_thousands_earns_more_than_itself() -> None:
    """In the machine of a running node, for addresses all over the world."""
    async with open_dhts(1) as (bob,):
        recorded = [packet for packets in (await record_traffic(bob)).values() for packet in packets]
        dice, received, sent = random.Random(8), 0, 0
        bad = bad_datagrams(recorded, dice)
        for number in range(MACHINE_DATAGRAMS):
            data, source = next(bad), (f"{11 + number % 80}.1.{number >> 8}.{number & 255}", 4000)
            effects = bob.machine.handle(DatagramReceived(data, source), now=trio.current_time())
            back = [effect for effect in effects if isinstance(effect, SendDatagram)]
            assert all(effect.address == source for effect in back), "nor is a third one written to"
            assert sum(len(effect.data) for effect in back) <= len(data)
            received += len(data)
            sent += sum(len(effect.data) for effect in back)
        report(f"{MACHINE_DATAGRAMS} datagrams from anywhere: {sent / received:.3f} bytes back for one")


async def test_a_refused_handshake_earns_no_more_than_itself() -> None:
    """With a good cookie and a bad inside: the address is proved, but not who is there."""
    async with open_dhts(1) as (bob,):
        dice = random.Random(9)
        for signer, plain in ((key_of("x"), encode(wire.Opening(None, b""))), (None, b"\xc1")):
            mallory = Initiator(key_of("mallory"), NETWORK, dice)
            with await bound() as sock:
                await sock.sendto(mallory.knock(), bob.address)
                shake = mallory.handshake(await sock.recv(2048), plain, signer=signer)
                await sock.sendto(shake, bob.address)
                with trio.fail_after(2):
                    refused = await sock.recv(2048)
            assert refused[0] == wire.REFUSED
            assert len(refused) <= len(shake)
        assert len(bob.machine.sessions) == 0


async def test_a_node_that_nobody_answers_gives_up(autojump_clock: trio.testing.MockClock) -> None:
    """Three KNOCKs for one request to an address, told by a caller, that stays silent."""
    with await bound() as victim:
        async with open_dht(**dht_options("alice")) as alice:
            await fault_of(alice.ping(victim.getsockname()))
            await trio.sleep(600)
        assert await received_bytes(victim) == 3 * wire.KNOCK_BYTES


async def received_bytes(victim: trio.socket.SocketType) -> int:
    total = 0
    with trio.move_on_after(0.05):
        while True:
            total += len(await victim.recv(2048))
    return total


@pytest.mark.parametrize("ports", [1, 50])
async def test_a_liar_cannot_aim_a_node_at_a_victim(
    ports: int, autojump_clock: trio.testing.MockClock
) -> None:
    """Mallory, a server, tells of ever new node IDs, all of them at the victim. Alice's knocks there are bounded."""
    dice = random.Random(10)
    sockets = [await bound() for _ in range(ports)]
    victims = [sock.getsockname() for sock in sockets]

    def lie(request: wire.Request, honest: wire.Answer) -> wire.Answer:
        def contacts() -> tuple[wire.Contact, ...]:
            drawn = sorted(dice.randbytes(32) for _ in range(limits.REPLICATION))
            if isinstance(request, wire.GetServers):
                drawn = sorted(max(request.after, each) for each in drawn)
            return tuple(
                wire.Contact(each, wire.pack_host("127.0.0.1"), dice.choice(victims)[1]) for each in drawn
            )

        if isinstance(request, wire.FindNode | wire.GetServers):
            return wire.Nodes(request.request, contacts(), 10_000)
        if isinstance(request, wire.Get):
            return wire.Value(request.request, None, None, contacts()[: request.nodes_max])
        return honest

    counted = 0
    try:
        async with (
            open_dht(**dht_options("mallory")) as mallory,
            open_dht(**dht_options("alice")) as alice,
            open_relay(mallory) as relay,
            trio.open_nursery() as nursery,
        ):
            corrupt(mallory, lie)

            async def count(sock: trio.socket.SocketType) -> None:
                nonlocal counted
                while True:
                    data = await sock.recv(2048)
                    counted += len(data)

            for sock in sockets:
                nursery.start_soon(count, sock)
            await alice.join([relay.address])
            for number in range(20):
                await fault_of(alice.get(own_cid(OWNER, f"h{number}")))
            await trio.sleep(HOURS * 3600)
            told = sum(len(data) for data in relay.packets(to_server=False))
            nursery.cancel_scope.cancel()
    finally:
        for sock in sockets:
            sock.close()
    report(
        f"{ports} ports: mallory told {told} bytes, the victim got {counted} ({counted / told:.2f} for one, "
        f"{counted / HOURS / 3600:.1f} a second)"
    )
    knocks = math.ceil(HOURS * 3600 / SILENT_SECONDS + 1) * TRIES * ports * BESIDE
    assert wire.KNOCK_BYTES <= counted <= knocks * wire.KNOCK_BYTES, (
        "aimed at, and left alone for most of the time"
    )
