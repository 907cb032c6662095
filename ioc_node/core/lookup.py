"""One iterative search for the servers nearest to a target, as pure state.

Each server of the shortlist is *heard* (not asked yet), *waiting* (asked), *late* (asked, and nobody is kept waiting
for it any more), *queried* (answered) or *unreachable*. A lookup ends *completed* when the `k` nearest that are not
unreachable have all answered, *starved* when nobody is left to ask and nobody answered, *stopped* when its owner has
what it wanted. It sends nothing: the owner asks `next` whom to ask.

"Nearest" is meant as replicas are chosen (`diversity`): of servers with a label in common the nearest one that is
not unreachable, and the others only where there are too few labels. So a swarm beside the target is one server.
"""

from bisect import insort
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Final, Literal

from ioc_node.core.diversity import Labels, Spread, spread
from ioc_node.core.routing import Contact
from ioc_wire import limits

SHORTLIST_MAX: Final = 8 * limits.REPLICATION

Ending = Literal["completed", "starved", "stopped"]


class State(Enum):
    """Of one server in one lookup."""

    HEARD = "heard"
    WAITING = "waiting"
    LATE = "late"
    QUERIED = "queried"
    UNREACHABLE = "unreachable"


class Entry:
    """A server on the shortlist; `hop` is 1 for those known from the start."""

    __slots__ = ("contact", "distance", "hop", "labels", "state")

    def __init__(self, contact: Contact, distance: int, hop: int, labels: Labels) -> None:
        self.contact = contact
        self.distance = distance
        self.hop = hop
        self.labels = labels
        self.state = State.HEARD

    def __lt__(self, other: "Entry") -> bool:
        return self.distance < other.distance


def _labels(entry: Entry) -> Labels:
    return entry.labels


def _no_labels(contact: Contact) -> Labels:
    return ()


class Lookup:
    """State of one search. `width` is how many requests may be under way at once, those that are late not counted in;
    `labels_of` says what a server has in common with others of its owner.
    """

    def __init__(
        self,
        target: int,
        seeds: Iterable[Contact],
        *,
        own_id: bytes,
        width: int = limits.PARALLELISM,
        count: int = limits.REPLICATION,
        labels_of: Callable[[Contact], Labels] = _no_labels,
    ) -> None:
        self.target = target
        self.width = width
        self.count = count
        self.ending: Ending | None = None
        self._own_id = own_id
        self._labels_of = labels_of
        self._shortlist: list[Entry] = []
        self._entries: dict[bytes, Entry] = {}
        self._waiting = 0
        self._answered = 0
        for contact in seeds:
            self._hear(contact, 1)

    def next(self) -> list[Contact]:
        """Whom to ask now; they count as waiting from here on. Sets `ending` when there is nothing left to
        do.
        """
        asked: list[Contact] = []
        if self.ending is not None:
            return asked
        unsettled = False
        live = (entry for entry in self._shortlist if entry.state is not State.UNREACHABLE)
        for entry in spread(live, self.count, _labels):
            if entry.state is State.HEARD and self._waiting < self.width:
                entry.state = State.WAITING
                self._waiting += 1
                asked.append(entry.contact)
            unsettled = unsettled or entry.state is not State.QUERIED
        if not unsettled:
            self.ending = "completed" if self._answered else "starved"
        return asked

    def ask_first(self, contact: Contact) -> None:
        """The owner asked this one out of turn."""
        self._hear(contact, 1)
        entry = self._entries[contact.node_id]
        if entry.state is State.HEARD:
            entry.state = State.WAITING
            self._waiting += 1

    def late(self, node_id: bytes) -> None:
        """`node_id` should have answered by now: another one is asked in its place. It may answer still."""
        entry = self._entries[node_id]
        if entry.state is State.WAITING:
            self._waiting -= 1
            entry.state = State.LATE

    def answered(self, node_id: bytes, told: Iterable[Contact] = ()) -> None:
        """`node_id` answered and told of these."""
        entry = self._entries[node_id]
        if entry.state is State.WAITING:
            self._waiting -= 1
        if entry.state is not State.QUERIED:
            self._answered += 1
            entry.state = State.QUERIED
        for contact in told:
            self._hear(contact, entry.hop + 1)

    def failed(self, node_id: bytes) -> None:
        """`node_id` did not answer, or not usefully."""
        entry = self._entries[node_id]
        if entry.state is State.WAITING:
            self._waiting -= 1
        elif entry.state is State.QUERIED:
            self._answered -= 1
        entry.state = State.UNREACHABLE

    def stop(self) -> None:
        """The owner has what it wanted."""
        if self.ending is None:
            self.ending = "stopped"

    def go_on(self, count: int) -> None:
        """Not enough: search on, until the nearest `count` have answered."""
        self.count = count
        self.ending = None

    def hop(self, node_id: bytes) -> int:
        """How many steps from what we knew this server was found."""
        return self._entries[node_id].hop

    def asked(self) -> int:
        """How many servers were asked so far."""
        return sum(entry.state is not State.HEARD for entry in self._entries.values())

    def has_dead(self) -> bool:
        """Whether somebody did not answer, or not usefully."""
        return any(entry.state is State.UNREACHABLE for entry in self._entries.values())

    def waiting(self) -> list[Contact]:
        """Those that were asked and have not answered yet."""
        return [entry.contact for entry in self._shortlist if entry.state in (State.WAITING, State.LATE)]

    def nearest(self) -> list[Contact]:
        """The nearest `count` that answered, as replicas are chosen."""
        found = (entry.contact for entry in self._shortlist if entry.state is State.QUERIED)
        return spread(found, self.count, self._labels_of)

    def _hear(self, contact: Contact, hop: int) -> None:
        node_id = contact.node_id
        if node_id in self._entries or node_id == self._own_id:
            return
        distance = int.from_bytes(node_id, "big") ^ self.target
        entry = Entry(contact, distance, hop, self._labels_of(contact))
        insort(self._shortlist, entry)
        self._entries[node_id] = entry
        if len(self._shortlist) > SHORTLIST_MAX:
            self._trim()

    def _trim(self) -> None:
        """Drop one that was never asked; the shortlist does not grow with what peers tell. The farthest of those
        that have a nearer one of their owner goes first, so that a swarm cannot push others out.
        """
        places = Spread()
        first = [places.take(entry.labels) for entry in self._shortlist]
        for doubled in (True, False):
            for index in range(len(self._shortlist) - 1, -1, -1):
                entry = self._shortlist[index]
                if entry.state is State.HEARD and not (doubled and first[index]):
                    del self._entries[self._shortlist.pop(index).contact.node_id]
                    return
