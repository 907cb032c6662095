"""Which servers a node knows: the full table of a small network, Kademlia buckets of a large one.

Only servers enter, and only after they answered us at the address in question, so everything here may be told
on. IDs are kept as sorted integers: the nearest of a target share its longest common prefixes, so they lie
side by side. Up to `FULL_TABLE_SERVERS_MAX` everybody is kept; above it each bucket (one per length of the
prefix shared with our own ID) keeps the `k` known longest and remembers `REPLACEMENTS_MAX` more, which are not
verified before there is room. In an open network no more than `GROUP_TABLE_MAX` come from one /24 (IPv6: /48);
loopback and private addresses are not counted, because they say nothing about who is behind them. *Replicas* are
chosen with `spread`: see `diversity`.
"""

import ipaddress
from bisect import bisect_left, bisect_right, insort
from collections import Counter, OrderedDict
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NamedTuple

from ioc_node.core.challenge import Address
from ioc_node.core.diversity import Labels, spread
from ioc_wire import dht as wire
from ioc_wire import limits
from ioc_wire.errors import Malformed

FULL_TABLE_SERVERS_MAX: Final = 1000
REPLACEMENTS_MAX: Final = 10
GROUP_BUCKET_MAX: Final = 2
GROUP_TABLE_MAX: Final = 3
CHOSEN_FROM_MAX: Final = 640
"""Of so many nearest servers replicas are chosen where their neighbourhood is crowded by few owners."""
_BITS: Final = 256


class Contact(NamedTuple):
    """A server as told by somebody: its node ID and where it listens (UDP)."""

    node_id: bytes
    address: Address


class Peer:
    """A verified server. `heard` is when it last answered, `since` when it entered. `operator` is the prefix that
    was delegated to it (certified networks).
    """

    __slots__ = ("contact", "heard", "labels", "node_id", "number", "operator", "packed", "since")

    def __init__(self, contact: Contact, now: float, operator: str | None = None) -> None:
        self.node_id = contact.node_id
        self.number = int.from_bytes(contact.node_id, "big")
        self.operator = operator
        self.heard = self.since = now
        self.move(contact)

    def move(self, contact: Contact) -> None:
        """It answers at this address now."""
        self.contact = contact
        self.packed = pack_contact(contact)
        self.labels = labels_of(contact.address[0], self.operator)


class RoutingTable:
    """The verified servers of one node. `capped` turns the limits per address group on, `diverse` the choice of
    replicas by label.
    """

    def __init__(
        self, own_id: bytes, *, capped: bool, diverse: bool = True, full_max: int = FULL_TABLE_SERVERS_MAX
    ) -> None:
        self.full = True
        self._own = int.from_bytes(own_id, "big")
        self._capped = capped
        self._diverse = diverse
        self._full_max = full_max
        self._labels: Counter[bytes] = Counter()
        self._numbers: list[int] = []
        self._peers: dict[int, Peer] = {}
        self._replacements: dict[int, OrderedDict[bytes, Contact]] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, node_id: bytes) -> bool:
        return int.from_bytes(node_id, "big") in self._peers

    def get(self, node_id: bytes) -> Peer | None:
        return self._peers.get(int.from_bytes(node_id, "big"))

    def peers(self) -> list[Peer]:
        """All of them, in order of ID."""
        return [self._peers[number] for number in self._numbers]

    def wants(self, contact: Contact) -> bool:
        """Whether there is room for a server that is not in the table; without, it is remembered for later."""
        number = int.from_bytes(contact.node_id, "big")
        if number in self._peers or number == self._own:
            return False
        if self._has_room(number, contact):
            return True
        self._remember(number, contact)
        return False

    def add(self, contact: Contact, now: float, operator: str | None = None) -> bool:
        """Note that the server just answered at this address. False if there is no room for it."""
        number = int.from_bytes(contact.node_id, "big")
        known = self._peers.get(number)
        if known is not None:
            known.heard = now
            if known.contact != contact:
                self._unlabel(known)
                known.move(contact)
                self._labels.update(known.labels)
            return True
        if number == self._own:
            return False
        if not self._has_room(number, contact):
            self._remember(number, contact)
            return False
        self._insert(Peer(contact, now, operator))
        if self.full and len(self._numbers) > self._full_max:
            self._become_buckets()
        return number in self._peers

    def remove(self, node_id: bytes) -> Contact | None:
        """Take a server out that stopped answering; return one to verify in its place, if one is
        remembered.
        """
        number = int.from_bytes(node_id, "big")
        if number not in self._peers:
            return None
        self._delete(number)
        bucket = self._bucket(number)
        spare = self._replacements.get(bucket)
        if spare is None:
            return None
        _, contact = spare.popitem()
        if not spare:
            del self._replacements[bucket]
        return contact

    def nearest(self, target: int, count: int) -> list[Peer]:
        """The `count` servers nearest to `target` by XOR, nearest first."""
        numbers = self._numbers
        low, high = 0, len(numbers)
        if high > 2 * count:
            shared = max(0, (high // count).bit_length() - 1)
            low, high = self._range(target, shared)
            while high - low < count:
                shared -= 1
                low, high = self._range(target, shared)
            while shared < _BITS:
                shared += 1
                inner = self._range(target, shared)
                if inner[1] - inner[0] < count:
                    break
                low, high = inner
        peers = self._peers
        return [peers[n] for n in sorted(numbers[low:high], key=target.__xor__)[:count]]

    def replicas(self, target: int, count: int) -> list[Peer]:
        """The `count` servers nearest to `target` that share no label, as far as there are so many."""
        if not self._diverse or not self._labels:
            return self.nearest(target, count)
        looked_at = 2 * count
        while True:
            near = self.nearest(target, looked_at)
            chosen = spread(near, count, _labels)
            if len(near) < looked_at or looked_at >= CHOSEN_FROM_MAX or _are_spread(chosen):
                return chosen
            looked_at *= 2

    def after(self, node_id: bytes, count: int) -> list[Peer]:
        """The first `count` servers with an ID above `node_id`; fewer at the end of the ring."""
        start = bisect_right(self._numbers, int.from_bytes(node_id, "big"))
        return [self._peers[n] for n in self._numbers[start : start + count]]

    def _range(self, target: int, shared: int) -> tuple[int, int]:
        """Slice of the IDs whose first `shared` bits are those of `target`."""
        rest = _BITS - shared
        low = target >> rest << rest
        return bisect_left(self._numbers, low), bisect_left(self._numbers, low + (1 << rest))

    def _bucket(self, number: int) -> int:
        return _BITS - (number ^ self._own).bit_length()

    def _members(self, bucket: int) -> list[Peer]:
        low, high = self._range(self._own ^ (1 << (_BITS - bucket - 1)), bucket + 1)
        return [self._peers[n] for n in self._numbers[low:high]]

    def _has_room(self, number: int, contact: Contact) -> bool:
        bucket = self._bucket(number)
        if not self.full and len(self._members(bucket)) >= limits.REPLICATION:
            return False
        group = address_group(contact.address[0]) if self._capped else None
        if group is None or not self._labels[group]:
            return True
        if self._labels[group] >= GROUP_TABLE_MAX:
            return False
        near = sum(group in peer.labels for peer in self._members(bucket))
        return near < GROUP_BUCKET_MAX

    def _insert(self, peer: Peer) -> None:
        insort(self._numbers, peer.number)
        self._peers[peer.number] = peer
        self._labels.update(peer.labels)

    def _delete(self, number: int) -> None:
        del self._numbers[bisect_left(self._numbers, number)]
        self._unlabel(self._peers.pop(number))

    def _unlabel(self, peer: Peer) -> None:
        for label in peer.labels:
            self._labels[label] -= 1
            if not self._labels[label]:
                del self._labels[label]

    def _remember(self, number: int, contact: Contact) -> None:
        if self.full:
            return
        spare = self._replacements.setdefault(self._bucket(number), OrderedDict())
        spare[contact.node_id] = contact
        spare.move_to_end(contact.node_id)
        if len(spare) > REPLACEMENTS_MAX:
            spare.popitem(last=False)

    def _become_buckets(self) -> None:
        """The network outgrew the full table: keep the servers known longest of each bucket."""
        self.full = False
        for bucket in {self._bucket(n) for n in self._numbers}:
            members = sorted(self._members(bucket), key=lambda peer: peer.since)
            for peer in members[limits.REPLICATION :]:
                self._delete(peer.number)
                self._remember(peer.number, peer.contact)


def _labels(peer: Peer) -> Labels:
    return peer.labels


def _are_spread(chosen: list[Peer]) -> bool:
    labels = [label for peer in chosen for label in peer.labels]
    return len(labels) == len(set(labels))


@lru_cache(maxsize=8192)
def address_scope(host: str) -> int:
    """0 loopback, 1 private or link-local, 2 global, -1 unusable (multicast, unspecified, reserved)."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.is_loopback:
        return 0
    if address.is_multicast or address.is_unspecified or address.is_reserved:
        return -1
    return 1 if address.is_private or address.is_link_local else 2


@lru_cache(maxsize=8192)
def address_group(host: str) -> bytes | None:
    """The /24 (IPv6: /48) of a global address, None for others and for names."""
    try:
        if address_scope(host) != 2:
            return None
    except ValueError:
        return None
    packed = wire.pack_host(host)
    return packed[:3] if len(packed) == 4 else packed[:6]


@lru_cache(maxsize=8192)
def labels_of(host: str, operator: str | None = None) -> Labels:
    """By what a server may be one owner's with others: its address group and its operator."""
    group = address_group(host)
    known = (operator.encode(),) if operator is not None else ()
    return known if group is None else (group, *known)


def pack_contact(contact: Contact) -> wire.Contact:
    """As it goes over the wire."""
    return wire.Contact(contact.node_id, wire.pack_host(contact.address[0]), contact.address[1])


def usable_contacts(told: Iterable[wire.Contact], teller: Address) -> list[Contact]:
    """The contacts that `teller` may tell: nobody on the Internet sends us to a loopback or private address, and
    nobody to one address twice.
    """
    scope = address_scope(teller[0])
    contacts: dict[Address, Contact] = {}
    for node in told:
        try:
            host = wire.unpack_host(node.host)
        except Malformed:
            continue
        if address_scope(host) >= scope:
            contacts.setdefault((host, node.port), Contact(node.node_id, (host, node.port)))
    return list(contacts.values())
