"""Which core nodes a node is linked with: all of them, or as many as it has room for.

A node dials every core node that its peers are linked with, until its room is full. Of two that would dial each other,
the one with the smaller key does so at once, the other a little later. Where more core nodes are known than there is
room for, the mesh is *wide*: a node stops when it has links enough, but goes on looking for core nodes that nobody
hears of, because two islands may not know of each other.
"""

from dataclasses import dataclass
from typing import Final

from ioc_node.core.chance import Chance
from ioc_node.core.contacts import CONTACTS_MAX, ContactBook
from ioc_node.core.gossip_events import Dial, LinkUp, Notify, PeersReceived
from ioc_node.core.mesh import Mesh, Peer
from ioc_wire.gossip import PeersKnown
from ioc_wire.market import Contact

SEEK_MAX: Final = 16
"""Links above those that there is room for, to core nodes that nobody seemed to be linked with any more."""
PEERS_SECONDS: Final = 1.0
"""How long link changes are gathered before they are told."""
PEERS_WIDE_SECONDS: Final = 10.0
"""In a wide mesh nothing but dialing rests on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """How many core nodes a full mesh holds, which is also how many links a node dials."""

    mesh_max: int = 64
    """Where more are known, news goes along a tree."""
    mesh_again: int = 48
    """Where so few are known, everybody tells everybody again."""


ROOM: Final = Room()


class Linking:
    """Of the core node `me`. Says of the mesh whether it is wide."""

    def __init__(self, me: bytes, mesh: Mesh, chance: Chance, room: Room = ROOM) -> None:
        self._mesh, self._room = mesh, room
        self._contacts = ContactBook(me, chance)
        self._tell_at: float | None = None

    @property
    def known(self) -> int:
        """Core nodes in the contact book."""
        return len(self._contacts)

    def contacts(self) -> tuple[Contact, ...]:
        """The core nodes that this node is linked with, in order of key (to be told to others)."""
        return self._mesh.contacts(CONTACTS_MAX)

    def to_spare(self) -> int:
        """Links to core nodes above those that there is room for; none in a full mesh."""
        return max(0, len(self._mesh.cores) - self._room.mesh_max) if self._mesh.wide else 0

    # -- what happens

    def up(self, event: LinkUp, now: float) -> None:
        self._mesh.peers[event.peer] = Peer(event.core, event.contact, event.prefix)
        self._contacts.linked(event.peer, now)
        if event.core:
            self._tell_soon(now)
            if event.contact is not None:
                self.know(event.contact, now)

    def down(self, peer: bytes, now: float) -> None:
        gone = self._mesh.peers.pop(peer, None)
        if gone is not None and gone.core:
            self._tell_soon(now)
            self._contacts.lost(peer, now)

    def heard(self, event: PeersReceived, now: float) -> None:
        """A peer says whom it is linked with."""
        keys = (contact.key for contact in event.core)
        if self._mesh.told_links(event.peer, keys, tree=event.tree):
            for contact in event.core[:CONTACTS_MAX]:
                self._contacts.hear(contact, event.peer, now)
            self._measure(now)

    def know(self, contact: Contact, now: float) -> None:
        """A core node was reached there, or has signed that it is there."""
        self._contacts.know(contact, now, linked=self._mesh.peers)
        self._measure(now)

    def forget(self, key: bytes, now: float) -> None:
        """A core node is gone."""
        self._contacts.forget(key)
        self._measure(now)

    def _measure(self, now: float) -> None:
        """Whether there are too many core nodes for a full mesh; only those count that more than one tells of."""
        wide = self._contacts.believed() > (self._room.mesh_again if self._mesh.wide else self._room.mesh_max)
        if wide != self._mesh.wide:
            self._mesh.wide = wide
            self._tell_soon(now)

    def _tell_soon(self, now: float) -> None:
        seconds = PEERS_WIDE_SECONDS if self._mesh.wide else PEERS_SECONDS
        self._tell_at = min(self._tell_at or now + seconds, now + seconds)

    # -- time

    def deadline(self) -> float | None:
        times = (self._tell_at, self._contacts.deadline(self._mesh.peers))
        return min((at for at in times if at is not None), default=None)

    def pass_time(self, now: float) -> list[Notify | Dial]:
        """Links that are told, and core nodes that are dialed."""
        told: list[Notify | Dial] = []
        if self._tell_at is not None and now >= self._tell_at:
            self._tell_at = None
            known = PeersKnown(self.contacts(), self._mesh.wide)
            told += [Notify(key, known) for key in self._mesh.peers]
        return told + self._dial(now)

    def _dial(self, now: float) -> list[Notify | Dial]:
        peers = self._mesh.peers
        at = self._contacts.deadline(peers)
        if at is None or (at > now and not self._contacts.is_seeking(now)):
            return []
        room = self._room.mesh_max - len(self._mesh.cores)
        due = self._contacts.due(now, peers, room)
        if -SEEK_MAX < room <= 0:
            due = self._contacts.seek(now, peers)
        return [Dial(contact) for contact in due]
