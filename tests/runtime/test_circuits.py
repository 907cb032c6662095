"""Links through a core node that passes circuits on: real endpoints on loopback, two of which take no links."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from ioc_node.errors import PeerUnreachable
from ioc_node.runtime import circuits as circuits_module
from ioc_node.runtime.circuits import Circuits
from ioc_node.runtime.links import Link, LinkEndpoint
from ioc_wire import relay
from ioc_wire.errors import WrongPeer
from ioc_wire.links import UnionCodec
from tests.runtime.link_cases import (
    Answers,
    Ask,
    Count,
    Crash,
    News,
    Number,
    Told,
    Unwanted,
    Wait,
    key_of,
    open_node,
    until,
)

CODEC = UnionCodec(
    Ask | Told | Count | Number | Wait | News | Crash | Unwanted
    | relay.OpenCircuit | relay.AcceptCircuit | relay.FeedCircuit | relay.CircuitData
)  # fmt: skip


class Party:
    """A node of the story: its links, its circuits, what it answered."""

    def __init__(self, links: LinkEndpoint, circuits: Circuits, answers: Answers) -> None:
        self.links, self.circuits, self.answers = links, circuits, answers
        self.key = links.local.public_key


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def party(number: int, *, core: bool = False, hidden: bool = False) -> AsyncIterator[Party]:
    answers = Answers()
    circuits = Circuits(passes_on=core, outbound_only=hidden)
    circuits.register(answers.handlers)
    options: dict[str, Any] = {"outbound_only": hidden, "codec": CODEC}
    if not hidden:
        options["port"] = free_port()
        options["advertise"] = ("127.0.0.1", options["port"])
    async with open_node(number, answers=answers, **options) as links:
        circuits.links = links
        yield Party(links, circuits, answers)


@asynccontextmanager
async def town(*, bob_hidden: bool = True) -> AsyncIterator[tuple[Party, Party, Party, Link]]:
    """Alice, whom nobody can dial; bob; carol, a core node that both have dialed; bob's link to carol."""
    async with (
        party(3, core=True) as carol,
        party(1, hidden=True) as alice,
        party(2, hidden=bob_hidden) as bob,
    ):
        await alice.links.connect(("127.0.0.1", carol.links.port), carol.key)
        via = await bob.links.connect(("127.0.0.1", carol.links.port), carol.key)
        await until(lambda: carol.links.link(alice.key) is not None)
        yield alice, bob, carol, via


async def test_two_hidden_nodes_talk_both_ways_through_a_core_node() -> None:
    async with town() as (alice, bob, carol, via):
        link = await bob.circuits.connect(via, alice.key)
        assert (link.relayed, link.peer.key) == (True, alice.key)
        assert await link.request(Ask("hello"), Told) == Told("hello")
        back = alice.links.link(bob.key)
        assert back is not None
        assert back.relayed
        assert back.peer.endpoint is None
        assert await back.request(Ask("and back"), Told) == Told("and back")
        assert await bob.circuits.connect(via, alice.key) is link
        assert carol.circuits.passed_on == 1
        await link.aclose()
        await until(lambda: carol.circuits.passed_on == 0 and alice.links.link(bob.key) is None)


async def test_a_large_answer_arrives_whole_and_is_metered() -> None:
    async with town() as (alice, bob, carol, via):
        metered: dict[tuple[bytes, bytes], int] = {}

        def meter(caller: bytes, target: bytes, size: int) -> None:
            metered[caller, target] = metered.get((caller, target), 0) + size

        carol.circuits.meter = meter
        link = await bob.circuits.connect(via, alice.key)
        async with link.open_stream(Count(40, 200_000), Number) as numbers:
            assert [number.value async for number in numbers] == list(range(40))
        assert 40 * 200_000 < metered[bob.key, alice.key] < 40 * 210_000


async def test_who_does_not_read_holds_up_its_sender_and_nobody_else() -> None:
    async with town() as (alice, bob, _carol, via):
        link = await bob.circuits.connect(via, alice.key)
        async with link.open_stream(Count(10_000, 100_000), Number):
            await trio.sleep(0.3)
            sent = alice.answers.sent
            assert sent < 200  # the credit of the stream, and no more
            assert await link.request(Ask("still there"), Told) == Told("still there")


async def test_where_one_of_two_can_be_dialed_the_hidden_one_dials_it() -> None:
    async with town(bob_hidden=False) as (alice, bob, carol, via):
        link = await bob.circuits.connect(via, alice.key)
        assert await link.request(Ask("first"), Told) == Told("first")

        def direct() -> bool:
            now = bob.links.link(alice.key)
            return now is not None and not now.relayed

        await until(direct)
        now = bob.links.link(alice.key)
        assert now is not None
        assert await now.request(Ask("directly"), Told) == Told("directly")
        await until(lambda: carol.circuits.passed_on == 0, seconds=10)  # the circuit goes when it is idle


async def test_a_core_node_that_dies_ends_the_circuit_and_another_one_is_opened() -> None:
    async with party(4, core=True) as dave, town() as (alice, bob, carol, via):
        link = await bob.circuits.connect(via, alice.key)
        await carol.links.close()
        await until(lambda: bob.links.link(alice.key) is None)
        with pytest.raises(PeerUnreachable):
            await link.request(Ask("gone"))
        await alice.links.connect(("127.0.0.1", dave.links.port), dave.key)
        other = await bob.links.connect(("127.0.0.1", dave.links.port), dave.key)
        await until(lambda: dave.links.link(alice.key) is not None)
        again = await bob.circuits.connect(other, alice.key)
        assert await again.request(Ask("again"), Told) == Told("again")


async def test_refusals_say_why() -> None:
    async with town() as (alice, bob, carol, via):
        unknown = key_of(9).public_key().public_bytes_raw()
        with pytest.raises(PeerUnreachable, match="not found: a link from here to"):
            await bob.circuits.connect(via, unknown)
        async with party(5) as erin:  # takes links, and no circuits
            await erin.links.connect(("127.0.0.1", carol.links.port), carol.key)
            await until(lambda: carol.links.link(erin.key) is not None)
            with pytest.raises(PeerUnreachable, match="circuits to a node that can be dialed"):
                await bob.circuits.connect(via, erin.key)
            with pytest.raises(PeerUnreachable, match="ask a core node"):
                await bob.circuits.connect(
                    await bob.links.connect(("127.0.0.1", erin.links.port), erin.key), alice.key
                )
        assert carol.circuits.passed_on == 0


async def test_a_core_node_cannot_stand_in_for_the_target() -> None:
    """Carol takes the circuit in herself instead of passing it on: she has not got alice's key."""
    async with town() as (alice, bob, carol, via):
        carol.circuits._passes_on = False

        async def impersonate(link: Link, message: relay.OpenCircuit, send: Any) -> None:
            stream = circuits_module.CircuitStream("bob")
            await stream.attach(link, relay.FeedCircuit(message.circuit))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.feed, send)
                await carol.links.take_in_circuit(stream, "bob")
                await stream.aclose()

        carol.answers.handlers._answers.pop(relay.OpenCircuit)
        carol.answers.handlers.serve_stream(relay.OpenCircuit, impersonate)
        with pytest.raises(WrongPeer):
            await bob.circuits.connect(via, alice.key)


async def test_circuits_of_one_peer_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuits_module, "CIRCUITS_PER_PEER_MAX", 1)
    async with town() as (alice, bob, carol, via), party(6, hidden=True) as frank:
        await frank.links.connect(("127.0.0.1", carol.links.port), carol.key)
        await until(lambda: carol.links.link(frank.key) is not None)
        link = await bob.circuits.connect(via, alice.key)
        with pytest.raises(PeerUnreachable, match="1 circuits of one peer"):
            await bob.circuits.connect(via, frank.key)
        await link.aclose()
        await until(lambda: carol.circuits.passed_on == 0)
        assert (await bob.circuits.connect(via, frank.key)).peer.key == frank.key
