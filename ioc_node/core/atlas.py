"""Where many records belong, without a lookup for each: what a sweep in key order learns of the servers.

Theory of operation. A lookup at a point `t` that found its `k` replica holders, the farthest at distance `D`, proves
that no other holder lies at a distance up to `D`. That ball, `{t ^ z : z <= D}`, is one aligned block of IDs per set
bit of `D + 1`; the `Atlas` keeps the union of such blocks, the ranges known *whole*. For another key the `k` nearest
of the servers known so far are its replica holders if the ball up to the farthest of them is known whole. If it is
not, one lookup goes to the nearest point of that ball that is not, and there it finds the next twenty or so servers at
once. So lookups grow with the servers (about two per `k` of them), not with the records, and with a full view of the
network there are none.

Keys that lie side by side mostly have the same replica holders: the order of two servers changes only at the highest
bit in which they differ. So a whole *cell* of keys is placed at once.

Where servers share labels (see `diversity`), a lookup shows one server per label, the nearest to its target; for the
keys nearby that one stands for its label. Where there are fewer labels than replicas, a lookup says nothing of the
keys nearby, and each key has one.
"""

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from ioc_node.core.diversity import Labels, spread
from ioc_node.core.routing import Contact
from ioc_wire import limits

SERVERS_MAX: Final = 16384
"""Known to one atlas at once, about 0.5 KiB each; beyond that it forgets and starts anew."""
RANGES_MAX: Final = 8192
PRECISION_BITS: Final = 24
"""A ball is kept to a 2^-24 part of it, rounded up: once in a million lookups that hides one server."""
TRIES_MAX: Final = 8
"""Lookups for one key before it goes to whom we know."""
CHOSEN_FROM_MAX: Final = 640
_BITS: Final = 256
_EVERYTHING: Final = 1 << _BITS


class Choice(NamedTuple):
    """The replica holders of a point, as far as known, the farthest one's distance, and that of the nearest server
    which is not among them; -1 where only this very point has this choice.
    """

    servers: tuple[Contact, ...]
    farthest: int
    beyond: int


class Placement(NamedTuple):
    """`keys[first:end]` all belong to these servers, nearest to the first key first."""

    first: int
    end: int
    servers: tuple[Contact, ...]


class Plan(NamedTuple):
    """What a sweep would cost: `lookups`, `messages` that carry records, `writes` of one record at one server,
    `servers` written to, and `unplaced` keys for which no server was known.
    """

    lookups: int
    messages: int
    writes: int
    servers: int
    unplaced: int


class Atlas:
    """Servers by ID, and the ranges of IDs of which every replica holder is known."""

    def __init__(
        self, labels_of: Callable[[Contact], Labels] | None = None, *, count: int = limits.REPLICATION
    ) -> None:
        self.count = count
        self._labels_of = labels_of
        self._numbers: list[int] = []
        self._servers: dict[int, tuple[Contact, Labels]] = {}
        self._lows: list[int] = []
        self._highs: list[int] = []

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, contact: Contact) -> None:
        """A server that is known to live."""
        number = int.from_bytes(contact.node_id, "big")
        if number not in self._servers:
            if len(self._numbers) >= SERVERS_MAX:
                self._forget()
            insort(self._numbers, number)
        labels = self._labels_of(contact) if self._labels_of is not None else ()
        self._servers[number] = (contact, labels)

    def discard(self, node_id: bytes) -> None:
        """It does not answer: the next nearest takes its place."""
        number = int.from_bytes(node_id, "big")
        if self._servers.pop(number, None) is not None:
            del self._numbers[bisect_left(self._numbers, number)]

    def learn(self, target: int, found: Sequence[Contact], *, whole: bool = False) -> None:
        """A lookup at `target` found these servers, nearest first. `whole`: there are no others at all."""
        if len(self._numbers) + len(found) > SERVERS_MAX:
            self._forget()
        for contact in found:
            self.add(contact)
        if whole:
            self._lows, self._highs = [0], [_EVERYTHING]
        elif len(found) >= self.count and self._are_spread(int.from_bytes(c.node_id, "big") for c in found):
            farthest = max(int.from_bytes(contact.node_id, "big") ^ target for contact in found)
            self._cover_ball(target, farthest + 1)

    def choose(self, point: int) -> Choice:
        """The replica holders of `point` among the servers known."""
        near = self._nearest(point, self.count + 1)
        if not near:
            return Choice((), 0, _EVERYTHING)
        chosen = near[: self.count]
        if self._are_spread(chosen):
            beyond = near[-1] ^ point if len(near) > self.count else _EVERYTHING
            return Choice(self._contacts(chosen), chosen[-1] ^ point, beyond)
        looked_at = 2 * self.count
        while True:
            near = self._nearest(point, looked_at)
            chosen = spread(near, self.count, self._labels)
            if len(near) < looked_at or looked_at >= CHOSEN_FROM_MAX or self._are_spread(chosen):
                return Choice(self._contacts(chosen), max(n ^ point for n in chosen), -1)
            looked_at *= 2

    def reach(self, point: int, farthest: int) -> int:
        """Every holder at a smaller distance from `point` than this is known; looks little further than
        `farthest`.
        """
        top = min(farthest.bit_length() + 1, _BITS)
        reach = 0
        for bit in range(top, max(top - PRECISION_BITS - 2, -1), -1):
            start = (point ^ reach) >> bit << bit
            if self._covers(start, start + (1 << bit)):
                reach += 1 << bit
                if bit == top or reach > farthest:
                    break
        return reach

    def _cover_ball(self, target: int, size: int) -> None:
        rest = max(size.bit_length() - PRECISION_BITS, 0)
        size = -(-size >> rest) << rest
        done = 0
        for bit in range(size.bit_length() - 1, -1, -1):
            if size >> bit & 1:
                start = (target ^ done) >> bit << bit
                self._cover(start, start + (1 << bit))
                done += 1 << bit

    def _cover(self, low: int, high: int) -> None:
        first = bisect_left(self._highs, low)
        end = bisect_right(self._lows, high)
        if first < end:
            low = min(low, self._lows[first])
            high = max(high, self._highs[end - 1])
        self._lows[first:end] = [low]
        self._highs[first:end] = [high]
        if len(self._lows) > RANGES_MAX:
            self._lows, self._highs = [], []

    def _covers(self, low: int, high: int) -> bool:
        index = bisect_right(self._lows, low) - 1
        return index >= 0 and self._highs[index] >= high

    def _nearest(self, point: int, count: int) -> list[int]:
        """IDs by distance: those of the smallest aligned block around `point` that holds so many."""
        numbers = self._numbers
        low, high = 0, len(numbers)
        if high > 2 * count:
            rest = _BITS - max(0, (high // count).bit_length() - 1)
            low, high = self._block(point, rest)
            while high - low < count:
                rest += 1
                low, high = self._block(point, rest)
            while rest:
                rest -= 1
                inner = self._block(point, rest)
                if inner[1] - inner[0] < count:
                    break
                low, high = inner
        return sorted(numbers[low:high], key=point.__xor__)[:count]

    def _block(self, point: int, rest: int) -> tuple[int, int]:
        low = point >> rest << rest
        return bisect_left(self._numbers, low), bisect_left(self._numbers, low + (1 << rest))

    def _labels(self, number: int) -> Labels:
        return self._servers[number][1]

    def _are_spread(self, chosen: Iterable[int]) -> bool:
        labels = [label for number in chosen for label in self._servers[number][1]]
        return len(labels) == len(set(labels))

    def _contacts(self, numbers: Iterable[int]) -> tuple[Contact, ...]:
        return tuple([self._servers[number][0] for number in numbers])

    def _forget(self) -> None:
        self._numbers, self._servers = [], {}
        self._lows, self._highs = [], []


class Planner:
    """Walks over sorted keys: `next` gives a placement, or the point at which to look up first, or None at the end.
    After a point, `learned` or `gave_up` has to be called.
    """

    def __init__(self, keys: Sequence[int], atlas: Atlas) -> None:
        self._keys = keys
        self._atlas = atlas
        self._at = 0
        self._tries = 0
        self._is_known = False

    def next(self) -> Placement | int | None:
        if self._at == len(self._keys):
            return None
        key = self._keys[self._at]
        choice = self._atlas.choose(key)
        reach = self._atlas.reach(key, choice.farthest)
        if reach <= choice.farthest and not self._is_known and self._tries < TRIES_MAX:
            self._tries += 1
            return key if self._tries == TRIES_MAX else key ^ reach
        return self._place(key, choice, reach)

    def learned(self, target: int, found: Sequence[Contact], *, whole: bool = False) -> None:
        """The lookup at `target` found these; `whole` as in `Atlas.learn`."""
        self._atlas.learn(target, found, whole=whole)
        self._is_known = target == self._keys[self._at]

    def gave_up(self) -> None:
        """The lookup failed: take whom we know."""
        self._tries = TRIES_MAX

    def _place(self, key: int, choice: Choice, reach: int) -> Placement:
        first = self._at
        end = first + 1
        beyond = min(choice.beyond, reach)
        if beyond > choice.farthest:
            bit = (choice.farthest ^ beyond).bit_length() - 1
            end = max(end, bisect_left(self._keys, (key >> bit) + 1 << bit, first))
        self._at = end
        self._tries = 0
        self._is_known = False
        return Placement(first, end, choice.servers)


def plan(
    keys: Sequence[int],
    ask: Callable[[int], Sequence[Contact]],
    *,
    atlas: Atlas | None = None,
    records_per_message: int = 4,
    on_placement: Callable[[Placement], None] | None = None,
) -> Plan:
    """Count what a sweep over these sorted keys (256-bit integers, of one publisher under one chain) would cost.

    `ask` answers a lookup: the replica holders of a point, nearest first; fewer than `atlas.count` mean that there
    are no others. `atlas` is what is known before.
    """
    atlas = atlas if atlas is not None else Atlas()
    planner = Planner(keys, atlas)
    writes: Counter[bytes] = Counter()
    lookups = unplaced = 0
    while (step := planner.next()) is not None:
        if isinstance(step, int):
            lookups += 1
            found = ask(step)
            planner.learned(step, found, whole=len(found) < atlas.count)
            continue
        if on_placement is not None:
            on_placement(step)
        size = step.end - step.first
        if not step.servers:
            unplaced += size
        for contact in step.servers:
            writes[contact.node_id] += size
    messages = sum(-(-count // records_per_message) for count in writes.values())
    return Plan(lookups, messages, writes.total(), len(writes), unplaced)
