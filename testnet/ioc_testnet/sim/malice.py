"""Malicious nodes. Each is a real machine with real sessions, so that it can speak to everybody; what differs is what
it answers. All of them answer PING, which keeps them in tables.
"""

import random
from functools import partial
from typing import Final, cast

import msgspec

from ioc_node.core.dht import DhtMachine
from ioc_node.core.events import FindStarted
from ioc_node.core.routing import Contact, pack_contact
from ioc_node.core.session import Outbox, Session
from ioc_testnet.sim.population import Oracle
from ioc_testnet.sim.world import SimNode, World
from ioc_wire import dht as wire
from ioc_wire import limits
from ioc_wire.cid import cid_key
from ioc_wire.errors import WireError
from ioc_wire.records import named_payload
from ioc_wire.signed import Signed

FLOOD_SECONDS: Final = 1.0
FLOOD_REQUESTS: Final = 4
"""Lookups that a flooding node begins each `FLOOD_SECONDS`; each is some twenty requests."""
FLOOD_GARBAGE: Final = 40
"""Datagrams of garbage that it sends beside them."""


class MaliciousMachine(DhtMachine):
    """Base: the real machine, with its answers replaced. `colluders` is set when all of them are known."""

    colluders: Oracle

    def lie(self, session: Session, request: wire.Request, now: float, out: Outbox) -> wire.Answer | None:
        """The answer to give, or None for none."""
        raise NotImplementedError

    def honest(self, session: Session, request: wire.Request, now: float, out: Outbox) -> wire.Answer:
        """What an honest node would answer."""
        return self.answering.answer(session, request, now, self.unix(now), out)

    def _on_message(self, session: Session, data: bytes, now: float, out: Outbox) -> None:
        try:
            message = wire.decode_message(data)
        except WireError:
            return
        if type(message) not in wire.REQUEST_TYPES:
            super()._on_message(session, data, now, out)
            return
        request = cast(wire.Request, message)
        honest = isinstance(request, wire.Ping)
        answer = self.honest(session, request, now, out) if honest else self.lie(session, request, now, out)
        if answer is not None:
            self.sessions.send(session, wire.encode_message(answer), out)


class SilentMachine(MaliciousMachine):
    """Answers nothing but PING: every question costs its asker all tries."""

    def lie(self, session: Session, request: wire.Request, now: float, out: Outbox) -> None:
        return None


class LyingMachine(MaliciousMachine):
    """Tells only of colluders, says that it stored and does not, never gives a record."""

    def told(self, target: bytes) -> tuple[wire.Contact, ...]:
        return tuple(pack_contact(contact) for contact in self.colluders.nearest(target, limits.REPLICATION))

    def lie(self, session: Session, request: wire.Request, now: float, out: Outbox) -> wire.Answer | None:
        if isinstance(request, wire.Get):
            return wire.Value(request.request, None, None, self.told(request.key)[: request.nodes_max])
        if isinstance(request, wire.FindNode):
            return wire.Nodes(request.request, self.told(request.target), limits.REPLICATION)
        if isinstance(request, wire.GetServers):
            return wire.Nodes(request.request, self.told(request.after), limits.REPLICATION)
        if isinstance(request, wire.GetHolders):
            return wire.Holders(request.request, (), 0, self.told(request.blob))
        return wire.Stored(request.request)


class InventingMachine(LyingMachine):
    """As lying, but tells of servers that do not exist, nearer to the target than anybody, at colluders' addresses."""

    def told(self, target: bytes) -> tuple[wire.Contact, ...]:
        near = self.colluders.nearest(target, limits.REPLICATION)
        return tuple(
            pack_contact(Contact(target[:28] + self.chance.randbytes(4), contact.address)) for contact in near
        )


class StaleMachine(MaliciousMachine):
    """Keeps the first version of a record that it was given, serves that, and says that it stored the later ones."""

    def lie(self, session: Session, request: wire.Request, now: float, out: Outbox) -> wire.Answer:
        if isinstance(request, wire.Get):
            request = wire.Get(request.request, request.key, 0, request.nodes_max)
        elif isinstance(request, wire.Put) and self._has(request.record, now):
            return wire.Stored(request.request)
        return self.honest(session, request, now, out)

    def _has(self, signed: Signed, now: float) -> bool:
        try:
            key = cid_key(named_payload(signed).cid)
        except WireError:
            return False
        return self.store.get(key, self.unix(now)) is not None


class ForgingMachine(MaliciousMachine):
    """Gives records that were altered, are somebody else's, or are signed with its own key."""

    def lie(self, session: Session, request: wire.Request, now: float, out: Outbox) -> wire.Answer:
        answer = self.honest(session, request, now, out)
        if isinstance(answer, wire.Value) and answer.record is not None:
            return wire.Value(answer.request, self._forge(answer.record), answer.chain_hash, answer.nodes)
        return answer

    def _forge(self, signed: Signed) -> Signed:
        payload = bytearray(signed.payload)
        payload[self.chance.randrange(len(payload))] ^= 1 << self.chance.randrange(8)
        which = self.chance.randrange(3)
        if which == 0:
            return msgspec.structs.replace(signed, payload=bytes(payload))
        if which == 1:
            return msgspec.structs.replace(signed, key=self.sessions.key)
        return msgspec.structs.replace(signed, signature=bytes(64))


class FloodingMachine(DhtMachine):
    """Answers as it should, and asks and sends garbage as fast as its bound allows (`flood`)."""


MACHINES: Final[dict[str, type[DhtMachine]]] = {
    "silent": SilentMachine,
    "lying": LyingMachine,
    "inventing": InventingMachine,
    "stale": StaleMachine,
    "forging": ForgingMachine,
    "flooding": FloodingMachine,
    "sybil": LyingMachine,
}


def collude(nodes: list[SimNode]) -> None:
    """Let the malicious know each other."""
    oracle = Oracle([node.machine.contact for node in nodes])
    for node in nodes:
        if isinstance(node.machine, MaliciousMachine):
            node.machine.colluders = oracle


def flood(world: World, node: SimNode, victims: list[SimNode], chance: random.Random, until: float) -> None:
    """One flooding node at work until then, once each `FLOOD_SECONDS`."""

    def burst() -> None:
        if not node.alive or world.now > until:
            return
        for _ in range(FLOOD_REQUESTS):
            world.start(node, partial(_find, chance.randbytes(32)), lambda result, now: None)
        for _ in range(FLOOD_GARBAGE):
            victim = victims[chance.randrange(len(victims))]
            garbage = bytes((chance.randrange(8),)) + chance.randbytes(
                chance.randrange(limits.DATAGRAM_BYTES_MAX - 1)
            )
            world.send(node, garbage, victim.address)
        world.call_at(world.now + FLOOD_SECONDS, burst)

    world.call_at(world.now, burst)


def _find(target: bytes, number: int) -> FindStarted:
    return FindStarted(number, target)
