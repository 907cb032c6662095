"""Whole machines under fire: alice (a client), bob and carol (servers) with sessions between them, and mallory.

The fuzzed bytes are a *script*: `opcode (1) | argument (1) | length (2) | data`, again and again. Datagrams come raw,
as changed copies of recorded ones, or properly sealed with foreign plaintext inside, for that is where the decoders
are. Between them, time passes and operations begin. What must hold at every moment is in `check`.
"""

import random
from collections.abc import Callable, Iterator
from typing import Final

from ioc_node.core import sessions
from ioc_node.core.candidates import CANDIDATES_MAX
from ioc_node.core.challenge import SPENT_MAX, Address
from ioc_node.core.dht import DhtMachine
from ioc_node.core.events import (
    DatagramReceived,
    FindStarted,
    GetStarted,
    HoldersStarted,
    JoinStarted,
    PingStarted,
    PutStarted,
)
from ioc_node.core.session import SendDatagram
from ioc_wire import dht as wire
from ioc_wire import limits
from ioc_wire.cid import self_certified_prefix
from ioc_wire.signed import public_bytes
from tests.core.staple import NETWORK, UNIX, Network, key_of, record_of
from tests.fuzz.crafted import Initiator, Responder

OPCODES: Final = 10
STEPS_MAX: Final = 24
ALICE: Final = ("192.0.2.1", 4000)
BOB: Final = ("198.51.100.1", 4000)
CAROL: Final = ("203.0.113.1", 4000)
MALLORY: Final = ("203.0.113.66", 6666)
OWNER: Final = key_of("owner")
CID: Final = f"ioc:{self_certified_prefix(public_bytes(OWNER))}/ai/3301/az1/h1"
RECORD: Final = record_of(OWNER, CID)


def script(*steps: tuple[int, int, bytes]) -> bytes:
    """The bytes of a script."""
    return b"".join(
        bytes((op, argument)) + len(data).to_bytes(2, "big") + data for op, argument, data in steps
    )


def steps_of(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """A script's steps; a last one may be cut off."""
    at = 0
    for _ in range(STEPS_MAX):
        if at + 4 > len(data):
            return
        end = at + 4 + int.from_bytes(data[at + 2 : at + 4], "big") % (limits.DATAGRAM_BYTES_MAX + 100)
        yield data[at] % OPCODES, data[at + 1], data[at + 4 : end]
        at = end


class Stage:
    """Three nodes that know each other, and what mallory was sent and sent."""

    def __init__(self) -> None:
        self.net = Network(5)
        for name, address in (("bob", BOB), ("carol", CAROL)):
            self.net.add(name, address=address)
        self.net.add("alice", address=ALICE, server=False)
        self.alice, self.bob = self.net.nodes[ALICE], self.net.nodes[BOB]
        self.net.do(CAROL, JoinStarted(1, (BOB,)))
        self.net.do(ALICE, JoinStarted(1, (BOB,)))
        self.net.run(1)
        self.net.do(ALICE, PutStarted(2, RECORD, ()))
        self.net.run(1)
        self.recorded = list(self.net.wire)
        self.received = self.answered = 0
        self.dice = random.Random(6)
        self.number = 10
        self.acts: tuple[Callable[[int, bytes], None], ...] = (
            self.raw, self.raw_from_a_peer, self.replayed, self.from_alice, self.from_bob, self.answer,
            self.wait, self.operate, self.opening, self.acceptance,
        )  # fmt: skip

    def play(self, data: bytes) -> None:
        for opcode, argument, rest in steps_of(data):
            self.acts[opcode](argument, rest)
            self.check()

    def deliver(self, data: bytes, source: Address, target: Address = BOB) -> list[bytes]:
        """One datagram; what comes back from the target at once."""
        before = len(self.net.wire)
        self.net.do(target, DatagramReceived(data, source))
        return [sent for sent, _, to in self.net.wire[before:] if to == source]

    # -- the steps

    def raw(self, argument: int, data: bytes) -> None:
        """From an address that proved nothing, so the answer may not be larger."""
        self.received += len(data)
        self.answered += sum(map(len, self.deliver(data, ("203.0.113.67", 1 + argument))))

    def raw_from_a_peer(self, argument: int, data: bytes) -> None:
        self.deliver(data, (ALICE, CAROL, MALLORY)[argument % 3])

    def replayed(self, argument: int, data: bytes) -> None:
        """A recorded datagram, changed where `data` says (position, byte), to anybody from anybody."""
        packet, source, target = self.recorded[argument % len(self.recorded)]
        mutant = bytearray(packet)
        for at, value in zip(data[1::2], data[2::2], strict=False):
            mutant[at % len(mutant)] ^= value
        where = data[0] if data else 0
        self.deliver(bytes(mutant), MALLORY if where & 1 else source, CAROL if where & 2 else target)

    def from_alice(self, argument: int, data: bytes) -> None:
        self._in_session(self.alice, self.bob, ALICE, BOB, data)

    def from_bob(self, argument: int, data: bytes) -> None:
        self._in_session(self.bob, self.alice, BOB, ALICE, data)

    def _in_session(
        self, sender: DhtMachine, receiver: DhtMachine, source: Address, target: Address, data: bytes
    ) -> None:
        session = sender.sessions.with_node(receiver.node_id, self.net.now)
        if session is not None:
            out: list[SendDatagram] = []
            sender.sessions.send(session, data[: wire.PLAINTEXT_BYTES_MAX], out)
            for effect in out:
                self.deliver(effect.data, source, target)

    def answer(self, argument: int, data: bytes) -> None:
        """Bob answers what alice asked last; `data` is the answer without its request number."""
        pending = list(self.alice.exchange._pending)
        if pending and len(data) >= 2:
            number = pending[argument % len(pending)].to_bytes(8, "big")
            self.from_bob(0, data[:2] + b"\xcf" + number + data[2:])

    def wait(self, argument: int, data: bytes) -> None:
        self.net.run((argument % 64) ** 2 / 100)

    def operate(self, argument: int, data: bytes) -> None:
        self.number += 1
        point = data[:32].ljust(32, b"\0")
        event = (
            GetStarted(self.number, CID, argument >> 3), GetStarted(self.number, CID, 0, 3),
            FindStarted(self.number, point), HoldersStarted(self.number, point),
            PingStarted(self.number, MALLORY, None), PutStarted(self.number, RECORD, ()),
            JoinStarted(self.number, (MALLORY, BOB)), GetStarted(self.number, f"{CID}x"),
        )[argument % 8]  # fmt: skip
        self.net.do(ALICE, event)

    def opening(self, argument: int, data: bytes) -> None:
        """Mallory shakes hands with bob by hand, `data` inside the HANDSHAKE."""
        mallory = Initiator(key_of("mallory"), NETWORK, self.dice)
        (who,) = self.deliver(mallory.knock(), MALLORY)
        self.deliver(mallory.handshake(who, data[: wire.OPENING_BYTES_MAX], flags=argument), MALLORY)

    def acceptance(self, argument: int, data: bytes) -> None:
        """Alice knocks at mallory, who answers by hand, `data` inside the ACCEPT."""
        mallory = Responder(key_of("mallory"), NETWORK, self.dice)
        before = len(self.net.wire)
        self.operate(4, b"")
        knocks = [sent for sent, _, to in self.net.wire[before:] if to == MALLORY and sent[0] == wire.KNOCK]
        if knocks:
            shakes = self.deliver(mallory.whoareyou(knocks[0], UNIX + 3600), MALLORY, ALICE)
            if shakes:
                self.deliver(mallory.accept(shakes[0], data[: wire.PLAINTEXT_BYTES_MAX]), MALLORY, ALICE)

    # -- what must hold

    def check(self) -> None:
        assert self.answered <= self.received, "more went to an address than came from it"
        for node in self.net.nodes.values():
            assert len(node.sessions) <= sessions.SESSIONS_MAX
            assert len(node.sessions._attempts) <= sessions.ATTEMPTS_MAX
            assert len(node.sessions._by_node) <= len(node.sessions)
            assert len(node.sessions._challenges._spent) <= SPENT_MAX
            assert len(node.upkeep._candidates) <= CANDIDATES_MAX
            assert len(node.store) + len(node.holders) <= 64
            assert len(node.exchange) <= 256


def play(data: bytes) -> None:
    """Run a script on a fresh stage."""
    Stage().play(data)
