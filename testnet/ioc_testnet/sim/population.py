"""Who takes part: keys, addresses, tables as settled nodes have them, and the records of a few publishers.

All of it follows from the seed. Servers stand in a /24 of their own each, because a table takes few of one; Sybils
share as few as their attacker has.
"""

import hashlib
import random
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.core.challenge import Address
from ioc_node.core.dht import DhtMachine
from ioc_node.core.routing import FULL_TABLE_SERVERS_MAX, Contact, address_scope
from ioc_node.core.trust import Trust
from ioc_wire import limits
from ioc_wire.cid import cid_key, self_certified_prefix
from ioc_wire.identity import node_id_of
from ioc_wire.records import Cpu, Place, ResourceRecord
from ioc_wire.signed import Signed, public_bytes, sign

UNIX: Final = 1_800_000_000
NETWORK: Final = hashlib.sha256(b"the simulator's network").digest()
PUBLISHERS: Final = 8
PORT: Final = 4000
RECORD_SECONDS: Final = 86400
SYBIL_KEYS_PER_NODE: Final = 1
_BITS: Final = 256
_GLOBAL: Final = 2


def derived(seed: int, *names: object) -> random.Random:
    """A generator of its own for each purpose, so that drawing more for one does not change another."""
    return random.Random("/".join(str(part) for part in (seed, *names)))  # noqa: S311 - a run must be repeatable


def key_of(chance: random.Random) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(chance.randbytes(32))


def open_addresses() -> Iterator[Address]:
    """Global IPv4 addresses, each in a /24 of its own."""
    for first in range(1, 224):
        for second in range(256):
            if address_scope(f"{first}.{second}.1.1") != _GLOBAL:
                continue
            for third in range(1, 255):
                yield (f"{first}.{second}.{third}.1", PORT)


def make_machine(
    kind: type[DhtMachine],
    key: Ed25519PrivateKey,
    address: Address,
    chance: random.Random,
    *,
    server: bool = True,
    skew: float = 0.0,
    servers: int,
    diverse: bool = True,
) -> DhtMachine:
    """A machine of the simulated network, which is open. In a network too large for a full table it begins with
    buckets, as one that has been there for a while.
    """
    trust = Trust(network_id=NETWORK, admission="open", roots=())
    full_max = FULL_TABLE_SERVERS_MAX if servers <= FULL_TABLE_SERVERS_MAX else 0
    return kind(
        key=key, trust=trust, chance=chance, unix_offset=UNIX + skew, server=server, address=address,
        full_max=full_max, diverse=diverse,
    )  # fmt: skip


class Oracle:
    """Knows all servers, in order of ID, and what a settled node knows of them."""

    def __init__(self, servers: list[Contact]) -> None:
        self.servers = sorted(servers)
        self._numbers = [int.from_bytes(contact.node_id, "big") for contact in self.servers]

    def nearest(self, target: bytes, count: int) -> list[Contact]:
        """The `count` servers nearest to a target."""
        point = int.from_bytes(target, "big")
        shared = max(0, (len(self._numbers) // (4 * count)).bit_length() - 1)
        while True:
            low, high = self._range(point, shared)
            if high - low >= count or shared == 0:
                break
            shared -= 1
        ranked = sorted(range(low, high), key=lambda index: self._numbers[index] ^ point)
        return [self.servers[index] for index in ranked[:count]]

    def warm(self, machine: DhtMachine, chance: random.Random) -> None:
        """Fill the machine's table: of every bucket up to k servers, drawn at random, or everybody where the table
        is a full one. Its own rules decide, as they would if these had been met one by one.
        """
        add, own = machine.table.add, int.from_bytes(machine.node_id, "big")
        if len(self.servers) <= FULL_TABLE_SERVERS_MAX:
            for contact in chance.sample(self.servers, len(self.servers)):
                add(contact, 0.0)
            return
        for bucket in range(_BITS):
            low, high = self._range(own ^ (1 << (_BITS - bucket - 1)), bucket + 1)
            # More are offered than fit: the table may refuse some, because of their addresses.
            room = limits.REPLICATION
            for index in chance.sample(range(low, high), min(high - low, 4 * limits.REPLICATION)):
                room -= add(self.servers[index], 0.0)
                if not room:
                    break
            if self._range(own, bucket + 1)[1] - self._range(own, bucket + 1)[0] <= 1:
                return

    def _range(self, point: int, shared: int) -> tuple[int, int]:
        """Slice of the IDs whose first `shared` bits are those of `point`."""
        rest = _BITS - shared
        low = point >> rest << rest
        return bisect_left(self._numbers, low), bisect_left(self._numbers, low + (1 << rest))


@dataclass
class Published:
    """One identifier: all that its owner signed so far, and the newest version (the first is 1)."""

    cid: str
    key: bytes
    owner: Ed25519PrivateKey
    history: list[Signed] = field(default_factory=list)
    version: int = 0

    def sign_next(self, now: float, *, refresh: bool = False) -> Signed:
        """Sign the next version; a refresh is the newest one again, issued later."""
        self.version += not refresh
        issued = UNIX + int(now)
        record = ResourceRecord(
            cid=self.cid, version=self.version, issued=issued, expires=issued + RECORD_SECONDS, type="node",
            place=Place("cn", "xinjiang", "az1"), cpu=Cpu("x86_64", "simulated", 8, 16), memory_mib=1024,
        )  # fmt: skip
        signed = sign(self.owner, record)
        self.history.append(signed)
        return signed


def make_records(seed: int, count: int) -> list[Published]:
    """Identifiers under self-certified prefixes, dealt out to `PUBLISHERS` owners."""
    owners = [key_of(derived(seed, "owner", number)) for number in range(PUBLISHERS)]
    prefixes = [self_certified_prefix(public_bytes(owner)) for owner in owners]
    made: list[Published] = []
    for number in range(count):
        which = number % PUBLISHERS
        cid = f"ioc:{prefixes[which]}/gen/xinjiang/az1/h{seed}-{number}"
        made.append(Published(cid, cid_key(cid), owners[which]))
    return made


def sybil_keys(seed: int, target: bytes, count: int, servers: int) -> list[Ed25519PrivateKey]:
    """Keys whose node IDs are nearer to `target` than nearly all of `servers`: what grinding `count` keys per server
    gives, the expected work for having the whole neighbourhood.
    """
    chance = derived(seed, "sybils")
    point = int.from_bytes(target, "big")
    ground: list[tuple[int, bytes]] = []
    for _ in range(count * servers * SYBIL_KEYS_PER_NODE):
        secret = chance.randbytes(32)
        public = Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
        distance = int.from_bytes(node_id_of(public), "big") ^ point
        if distance.bit_length() <= _BITS - max(0, servers.bit_length() - 1):
            ground.append((distance, secret))
    ground.sort()
    return [Ed25519PrivateKey.from_private_bytes(secret) for _, secret in ground[:count]]


def sybil_addresses(count: int, groups: int) -> list[Address]:
    """`count` addresses in `groups` /24s, which no server has."""
    return [(f"223.{200 + index % groups // 250}.{index % groups % 250 + 1}.{index // groups + 1}", PORT)
            for index in range(count)]  # fmt: skip
