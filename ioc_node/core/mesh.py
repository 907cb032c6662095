"""The links of a core node, and what the core nodes at their other ends say of their own.

In a full mesh each message travels each edge from its origin once, because nobody passes on to those that the sender
is linked with itself. A link counts only if both its ends say so. Still a core node may claim links and then tell one
peer only; so whatever was not passed on for that reason is checked soon, by comparing with one of those it should have
reached. A sender that is found out is no longer believed for a while, and everything it tells is passed on to all.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ioc_node.core.chance import Chance
from ioc_wire.market import Contact

CHECK_SECONDS: Final = 2.0
"""Between what was not passed on and the comparison that shows whether it arrived."""
CHECKED_MAX: Final = 1024
"""Providers whose heads are waiting for that comparison; what comes beyond that is passed on to everybody."""
DISBELIEVE_SECONDS: Final = 600.0
FANOUT: Final = 10
"""How many are told, chosen at random each time, where there are too many core nodes for a full mesh and a node has no
neighbours in the tree yet."""


@dataclass(slots=True)
class Peer:
    """The other end of a link. `prefix` is the one that it was granted, empty where none was."""

    core: bool
    contact: Contact | None
    prefix: str = ""
    linked: frozenset[bytes] = frozenset()
    """Core nodes that this peer says it is linked with."""
    tree: bool = False
    """Whether it passes news on along a tree, not to all that it is linked with."""
    disbelieved_until: float = 0.0


class Mesh:
    """The peers of one core node, by key."""

    def __init__(self, chance: Chance) -> None:
        self._chance = chance
        self.peers: dict[bytes, Peer] = {}
        self._unproven: dict[bytes, tuple[bytes, float]] = {}
        """By provider: who had told of its head when nobody else was told, and when."""
        self._probed: bytes | None = None
        self.check_at: float | None = None
        self.wide = False
        """Whether there are more core nodes than a full mesh has."""

    @property
    def cores(self) -> list[bytes]:
        """The core nodes that this node is linked with, in the order of their links."""
        return [key for key, peer in self.peers.items() if peer.core]

    def contacts(self, most: int) -> tuple[Contact, ...]:
        """Where the linked core nodes are, in order of key."""
        found = [peer.contact for peer in self.peers.values() if peer.core and peer.contact is not None]
        return tuple(sorted(found, key=lambda contact: contact.key)[:most])

    def told_links(self, peer: bytes, linked: Iterable[bytes], *, tree: bool = False) -> bool:
        """A peer says whom it is linked with; False where it is no core node, or has no link here."""
        told = self.peers.get(peer)
        if told is None or not told.core:
            return False
        told.linked, told.tree = frozenset(linked), tree
        return True

    def to_compare(self) -> list[bytes]:
        """Any linked core node, and one with another prefix: what a region lost together, another one has."""
        cores = sorted(self.cores)
        if not cores:
            return []
        first = cores[self._chance.randrange(len(cores))]
        others = [key for key in cores if self.peers[key].prefix != self.peers[first].prefix]
        return [first, others[self._chance.randrange(len(others))]] if others else [first]

    # -- whom to pass something on to

    def spread_to(self, sender: bytes | None, provider: bytes | None, now: float) -> list[bytes]:
        """The core nodes that `sender` has not told itself of this provider's head (None: of something else)."""
        if self.wide:
            others = [key for key, peer in self.peers.items() if peer.core and key != sender]
            return self._chance.sample(others, min(FANOUT, len(others)))
        covered = self._covered(sender, now)
        if covered and sender is not None and provider is not None:
            if len(self._unproven) >= CHECKED_MAX and provider not in self._unproven:
                covered = frozenset()
            else:
                self._unproven[provider] = (sender, now)
                if self.check_at is None:
                    self.check_at = now + CHECK_SECONDS * (0.75 + self._chance.random() / 2)
        return [key for key, peer in self.peers.items() if peer.core and key != sender and key not in covered]

    def _covered(self, sender: bytes | None, now: float) -> frozenset[bytes]:
        told = self.peers.get(sender) if sender is not None else None
        if told is None or not told.core or told.tree or told.disbelieved_until > now:
            return frozenset()
        return frozenset(
            key for key in told.linked if (peer := self.peers.get(key)) is not None and sender in peer.linked
        )

    # -- whether the sender has told them

    def check(self) -> bytes | None:
        """It is time to compare: with whom? One of those that somebody should have told."""
        self.check_at = None
        senders = {sender for sender, _ in self._unproven.values()}
        covered = {
            key
            for sender in senders
            if (told := self.peers.get(sender)) is not None
            for key in told.linked & self.peers.keys() - senders
            if self.peers[key].core
        }
        if not covered:
            self._unproven.clear()
            return None
        chosen = sorted(covered)
        self._probed = chosen[self._chance.randrange(len(chosen))]
        return self._probed

    def checked(self, peer: bytes, lacking: Iterable[bytes], now: float) -> list[bytes]:
        """A comparison shows what `peer` lacks: the providers that nobody was told of because a sender, which is no
        longer believed, had claimed to tell all."""
        if peer != self._probed:
            return []
        self._probed = None
        lying: set[bytes] = set()
        for provider in lacking:
            sender, at = self._unproven.get(provider, (b"", now))
            told = self.peers.get(sender)
            if told is not None and peer in told.linked and now - at >= CHECK_SECONDS / 2:
                told.disbelieved_until = now + DISBELIEVE_SECONDS
                lying.add(sender)
        found = [provider for provider, (sender, _) in self._unproven.items() if sender in lying]
        self._unproven.clear()
        return found
