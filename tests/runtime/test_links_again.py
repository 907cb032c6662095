"""One link per peer, whoever dials how often; and links that come back."""

import random

import pytest
import trio

from ioc_node.errors import PeerUnreachable
from ioc_node.runtime import link_keep
from ioc_node.runtime.links import LinkEndpoint
from tests.runtime.link_cases import Ask, Told, Wait, open_node, until


async def test_many_callers_share_one_dial():
    async with open_node(1) as alice, open_node(2) as bob:
        found = set()

        async def dial() -> None:
            found.add(await alice.connect(("127.0.0.1", bob.port)))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(dial)
        assert len(found) == len(bob._running) == 1
        assert await bob.connect(("127.0.0.1", alice.port)) is bob.link(alice.local.public_key)
        assert len(bob._running) == len(alice._running) == 1


@pytest.mark.parametrize("seed", range(6))
async def test_simultaneous_dials_settle_on_one_connection_without_losing_a_request(seed: int):
    rng = random.Random(seed)
    async with open_node(1) as alice, open_node(2) as bob:

        async def dial_and_ask(here: LinkEndpoint, there: LinkEndpoint) -> None:
            await trio.sleep(rng.random() * 0.003)
            link = await here.connect(("127.0.0.1", there.port))
            for _ in range(50):
                assert await link.request(Ask("x"), Told) == Told("x")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial_and_ask, alice, bob)
            nursery.start_soon(dial_and_ask, bob, alice)
        ours, theirs = alice.link(bob.local.public_key), bob.link(alice.local.public_key)
        assert ours is not None
        assert theirs is not None
        assert ours.dialed != theirs.dialed  # the two ends of one connection


async def test_kept_link_comes_back_when_the_peer_does(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(link_keep, "PAUSE_SECONDS_MIN", 0.02)
    async with open_node(1) as alice:
        async with open_node(2) as bob:
            port = bob.port
            kept = alice.keep(("127.0.0.1", port), bob.local.public_key)
            assert alice.keep(("127.0.0.1", port)) is kept
            await until(lambda: kept.state == "up")
        await until(lambda: "refused" in kept.state)
        async with open_node(2, port=port) as bob:
            await until(lambda: kept.state == "up")
            link = alice.link(bob.local.public_key)
            assert link is not None
            assert await link.request(Ask("again"), Told) == Told("again")
            kept.forget()
            await link.aclose()
            await trio.sleep(0.1)
            assert alice.link(bob.local.public_key) is None


async def test_cancelled_dial_leaves_nothing_behind():
    async with open_node(1) as alice, open_node(2) as bob:
        for milliseconds in range(8):
            with trio.move_on_after(milliseconds / 1000):
                link = await alice.connect(("127.0.0.1", bob.port))
                await link.request(Wait("w"))
        link = await alice.connect(("127.0.0.1", bob.port))
        assert await link.request(Ask("x"), Told) == Told("x")
        await until(lambda: len(bob._running) == 1 and not bob._half_open)


async def test_outbound_only_node_listens_on_nothing_and_is_reached_through_its_own_link():
    async with open_node(1, outbound_only=True) as alice, open_node(2) as bob:
        assert alice.port == 0
        await alice.connect(("127.0.0.1", bob.port))
        back = bob.link(alice.local.public_key)
        assert back is not None
        assert back.peer.endpoint is None
        assert await back.request(Ask("reached"), Told) == Told("reached")


async def test_error_in_the_block_is_not_wrapped_and_leaves_no_port_open():
    with pytest.raises(PeerUnreachable, match="mine"):
        async with open_node(1) as alice:
            raise PeerUnreachable("mine")
    async with open_node(2) as bob:
        with pytest.raises(PeerUnreachable, match="refused"):
            await bob.connect(("127.0.0.1", alice.port))
