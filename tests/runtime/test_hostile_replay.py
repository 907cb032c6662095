"""What was recorded between others is worth nothing: sent to another node, from another address, twice, or later."""

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
import trio.testing

from ioc_node.core import challenge, sessions
from ioc_node.core.events import RecordStored
from ioc_node.core.upkeep import ROUND_SECONDS
from ioc_node.runtime.dht import Change, Dht, open_dht
from ioc_wire import dht as wire
from ioc_wire.signed import Signed
from tests.runtime.dht_nodes import dht_options, record_of
from tests.runtime.hostile import CID, OWNER, Relay, bound, open_relay, unbelieved

COOKIE_SECONDS = challenge.COOKIE_STEP_SECONDS * challenge.COOKIE_STEPS
SESSION_SECONDS = 600
"""Not twelve hours: virtual time is quick, but not that quick."""


class Ledger:
    """Counts what a server really stored: a request that is executed twice is here twice."""

    def __init__(self) -> None:
        self.stored = 0

    def load(self) -> Iterable[tuple[Signed, tuple[Signed, ...]]]:
        return ()

    async def save(self, changes: list[Change]) -> None:
        self.stored += sum(isinstance(change, RecordStored) for change in changes)


class Scene:
    """Alice talked to bob through a relay, which recorded everything; carol heard nothing of it."""

    def __init__(self, alice: Dht, bob: Dht, carol: Dht, relay: Relay, ledger: Ledger) -> None:
        self.alice, self.bob, self.carol, self.relay, self.ledger = alice, bob, carol, relay, ledger
        self.packets = relay.packets(to_server=True)
        self.answers = relay.packets(to_server=False)

    def of_kind(self, kind: int) -> list[bytes]:
        return [data for data in self.packets if data[0] == kind]


@asynccontextmanager
async def open_scene() -> AsyncIterator[Scene]:
    ledger = Ledger()
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        bob = await enter(open_dht(**dht_options("bob", store=ledger)))
        carol = await enter(open_dht(**dht_options("carol")))
        alice = await enter(open_dht(**dht_options("alice", server=False)))
        relay = await enter(open_relay(bob))
        await alice.join([relay.address])
        for version in (1, 2):
            await alice.put(record_of(OWNER, CID, version))
        await alice.get(CID, answers=1)
        await trio.sleep(0.1)
        scene = Scene(alice, bob, carol, relay, ledger)
        assert {data[0] for data in scene.packets} == {wire.KNOCK, wire.HANDSHAKE, wire.MESSAGE}
        assert ledger.stored == 2
        yield scene


def state(node: Dht) -> dict[str, int]:
    """What a replay must not change."""
    names = ("handshakes_accepted", "handshakes_made", "sessions", "servers", "records", "blobs", "malformed")
    return {name: node.counters()[name] for name in names}


async def throw(packets: list[bytes], target: Dht) -> list[bytes]:
    """Send from an address of its own; return what comes back."""
    back: list[bytes] = []
    with await bound() as sock:
        for data in packets:
            await sock.sendto(data, target.address)
        with trio.move_on_after(0.2):
            while True:
                back.append(await sock.recv(2048))
    return back


async def test_to_another_node() -> None:
    async with open_scene() as scene:
        before = state(scene.carol)
        back = await throw(scene.packets + scene.answers, scene.carol)
        assert {data[0] for data in back} <= {wire.WHOAREYOU, wire.REFUSED}
        assert state(scene.carol) == before
        believed = len(scene.of_kind(wire.KNOCK)) + sum(data[0] in (2, 4) for data in scene.answers)
        assert unbelieved(scene.carol) == len(scene.packets + scene.answers) - believed, (
            "silence to what it never began"
        )


async def test_from_another_address() -> None:
    async with open_scene() as scene:
        before, counted = state(scene.bob), unbelieved(scene.bob)
        back = await throw(scene.packets, scene.bob)
        assert {data[0] for data in back} <= {wire.WHOAREYOU, wire.REFUSED}
        assert state(scene.bob) == before
        assert unbelieved(scene.bob) - counted == len(scene.packets) - len(scene.of_kind(wire.KNOCK))
        assert scene.ledger.stored == 2


async def test_from_the_same_address() -> None:
    """As the network itself may double a datagram. A HANDSHAKE earns the ACCEPT that it earned before, and no more."""
    async with open_scene() as scene:
        before, replayed = state(scene.bob), scene.bob.counters()["replayed"]
        told = len(scene.relay.seen)
        for data in scene.packets:
            await scene.relay.replay(data, to_server=True)
        await trio.sleep(0.1)
        back = [data for data, to_server in scene.relay.seen[told:] if not to_server]
        accepts = [data for data in back if data[0] == wire.ACCEPT]
        assert len(accepts) == len(scene.of_kind(wire.HANDSHAKE))
        assert set(accepts) <= set(scene.answers)
        assert {data[0] for data in back} <= {wire.WHOAREYOU, wire.ACCEPT}
        assert state(scene.bob) == before
        assert scene.bob.counters()["replayed"] - replayed == len(scene.of_kind(wire.MESSAGE))
        assert scene.ledger.stored == 2


async def test_one_handshake_is_answered_a_few_times_at_most() -> None:
    """ACCEPT may be larger than HANDSHAKE, and who saw one can repeat it with a forged source."""
    async with open_scene() as scene:
        (shake,) = scene.of_kind(wire.HANDSHAKE)
        told, replayed = len(scene.relay.seen), scene.bob.counters()["replayed"]
        for _ in range(50):
            await scene.relay.replay(shake, to_server=True)
        await trio.sleep(0.1)
        back = [data for data, to_server in scene.relay.seen[told:] if not to_server]
        assert len(back) == sessions.ACCEPTS_MAX - 1
        assert scene.bob.counters()["replayed"] - replayed == 50 - len(back)


async def test_answers_to_their_asker_again() -> None:
    async with open_scene() as scene:
        before, counted = state(scene.alice), unbelieved(scene.alice)
        for data in scene.answers:
            await scene.relay.replay(data, to_server=False)
        await trio.sleep(0.1)
        assert state(scene.alice) == before
        messages = sum(data[0] == wire.MESSAGE for data in scene.answers)
        assert unbelieved(scene.alice) - counted == messages
        assert (await scene.alice.get(CID)).resource.version == 2, "the session still works"


@pytest.mark.parametrize("late", [COOKIE_SECONDS + 1, SESSION_SECONDS + 1], ids=["cookie", "session"])
async def test_later(
    late: float, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the cookie's life and after the session's: the HANDSHAKE is worthless, then the messages too."""
    monkeypatch.setattr(sessions, "SESSION_SECONDS", SESSION_SECONDS)
    async with open_scene() as scene:
        scene.relay.bend = lambda data, to_server: []  # alice herself would shake hands again
        await trio.sleep(late + ROUND_SECONDS * 2)
        before, replayed = state(scene.bob), scene.bob.counters()["replayed"]
        told = len(scene.relay.seen)
        for data in scene.packets:
            await scene.relay.replay(data, to_server=True)
        await trio.sleep(1)
        back = {data[0] for data, to_server in scene.relay.seen[told:] if not to_server}
        assert back <= {wire.WHOAREYOU, wire.REFUSED}, "no ACCEPT any more"
        assert state(scene.bob) == before
        assert scene.ledger.stored == 2
        shakes, messages = len(scene.of_kind(wire.HANDSHAKE)), len(scene.of_kind(wire.MESSAGE))
        if late > SESSION_SECONDS:
            assert scene.bob.counters()["replayed"] - replayed == shakes
            assert wire.REFUSED in back
        else:
            assert scene.bob.counters()["replayed"] - replayed == shakes + messages
