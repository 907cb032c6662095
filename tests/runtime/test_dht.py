"""The DHT on real sockets: join, put, get, find, announce, ping; and what hostile or absent peers do to
it.
"""

import random
import socket

import pytest
import trio
import trio.lowlevel
import trio.testing

from ioc_node.errors import ConfigError, PeerUnreachable, PortInUse
from ioc_node.runtime.dht import open_dht
from ioc_wire import dht as wire
from ioc_wire.errors import NotFound, UnknownNetwork, WrongPeer
from tests.runtime.dht_nodes import dht_options, key_of, open_dhts, own_cid, record_of

PROVIDER = key_of("provider")
CID = own_cid(PROVIDER)


async def test_put_get_find_announce_and_ping_between_real_sockets() -> None:
    async with open_dhts(8) as nodes, open_dht(**dht_options("client", server=False)) as client:
        assert await client.join([("localhost", nodes[3].address[1])]) == 1
        report = await client.put(record_of(PROVIDER, CID))
        assert len(report.stored) == 8
        assert report.refused == report.unanswered == []
        got = await client.get(CID)
        assert (got.resource.cid, got.hops, got.record.key) == (CID, 1, record_of(PROVIDER, CID).key)
        with pytest.raises(NotFound, match="8 servers were asked"):
            await client.get(own_cid(PROVIDER, "nothing"))
        found = await nodes[0].find_node(bytes(32))
        assert len(found.nodes) == 7
        blob = bytes(range(32))
        await nodes[1].announce(blob, "127.0.0.1", 4000)
        holders = (await client.holders(blob)).holders
        assert [(key, holder.port) for key, holder in holders] == [(nodes[1].key, 4000)]
        for peer in (nodes[2].address, client.contacts()[0]):
            ping = await client.ping(peer)
            assert 0 < ping.seconds < 1
            assert ping.observed == client.address
        assert client.counters()["malformed"] == client.counters()["timed_out"] == 0


async def test_a_newer_version_replaces_an_older_one_everywhere() -> None:
    async with open_dhts(4) as nodes:
        for version in (1, 2, 3):
            await nodes[version].put(record_of(PROVIDER, CID, version))
            for node in nodes:
                assert (await node.get(CID)).resource.version == version


async def test_a_port_in_use_is_named() -> None:
    async with open_dhts(1) as (node,):
        port = node.address[1]
        with pytest.raises(PortInUse, match=f"UDP port {port} on 127.0.0.1"):
            async with open_dht(**dht_options("other", port=port)):
                pass
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
        async with open_dht(**dht_options("other", host="192.0.2.1")):
            pass


async def test_wrong_peer_other_network_and_own_address() -> None:
    async with open_dhts(2) as (alice, bob), open_dht(**dht_options("carol", network_id=bytes(32))) as carol:
        with pytest.raises(UnknownNetwork):
            await alice.ping(carol.address)
        report = await carol.join_report([alice.address, ("127.0.0.1", 9), ("no-such-host.invalid", 1)])
        assert report.reached == 0
        assert any(isinstance(fault, UnknownNetwork) for _, fault in report.failed)
        with pytest.raises(WrongPeer):
            await alice.ping(alice.contacts()[0]._replace(node_id=bytes(32)))
        with pytest.raises(WrongPeer, match="own"):
            await bob.ping(bob.address)


async def test_a_peer_that_says_nothing_costs_bounded_time(autojump_clock: trio.testing.MockClock) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        async with open_dht(**dht_options("alice")) as alice:
            began = trio.current_time()
            with pytest.raises(PeerUnreachable, match="did not answer"):
                await alice.ping(silent.getsockname())
            assert await alice.join([silent.getsockname()]) == 0
            assert trio.current_time() - began < 10


async def test_ten_thousand_garbage_datagrams_change_nothing() -> None:
    rng = random.Random(4)
    async with open_dhts(3) as nodes:
        await nodes[0].put(record_of(PROVIDER, CID))
        target = nodes[1]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            for number in range(10_000):
                size = rng.choice((0, 1, 20, 21, 23, 37, 181, 192, 198, 500, 1200, 1400))
                data = bytearray(rng.randbytes(size))
                if data and number % 2:
                    data[0] = rng.randrange(1, 7)
                if number % 5 == 0:
                    network = dht_options("x")["network_id"]
                    data = bytearray(wire.Knock(bytes(8), bytes(12), 1, network, rng.randbytes(32)).encode())
                sock.sendto(data, target.address)
                if number % 100 == 0:
                    await trio.lowlevel.checkpoint()
                if number % 2000 == 0:
                    assert (await nodes[2].ping(target.address)).seconds < 1
            await trio.sleep(0.2)
            sock.setblocking(False)
            assert sock.recv(2048), "knocks were answered all the time"
        counters = target.counters()
        assert counters["garbage"] > 1000
        assert 2 <= counters["sessions"] <= 4
        assert counters["records"] == 1
        assert not target.machine.sessions._attempts
        assert (await nodes[2].get(CID)).resource.version == 1
        assert (await nodes[2].ping(target.address)).seconds < 1


async def test_cancelling_leaves_nothing_behind() -> None:
    async with open_dht(**dht_options("alice")) as alice:
        with trio.move_on_after(0.05) as scope:
            await alice.ping(("127.0.0.1", 9))
        assert scope.cancelled_caught
        assert alice._waiting == {}
        assert alice.machine.operations == {}


async def test_an_exception_in_the_block_comes_out_as_itself() -> None:
    with pytest.raises(ValueError, match="mine"):
        async with open_dht(**dht_options("alice")):
            raise ValueError("mine")


async def test_the_dead_are_noticed_and_the_returned_are_taken_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_dht(**dht_options("alice")) as alice:
        async with open_dht(**dht_options("bob")) as bob:
            port = bob.address[1]
            await alice.join([bob.address])
            assert len(alice.contacts()) == 1
        await trio.sleep(700)
        assert alice.contacts() == []
        async with open_dht(**dht_options("bob", port=port)):
            await trio.sleep(500)
            assert len(alice.contacts()) == 1
