"""Core nodes stapled together in memory: membership machines, a wire that may lose or stall, a clock that jumps."""

import heapq
import itertools
import random
from collections.abc import Callable

from ioc_node.core import membership_events as ev
from ioc_node.core.checked import CheckedSignatures
from ioc_node.core.membership import Membership
from ioc_node.core.trust import Trust
from ioc_wire.authority import Delegation
from ioc_wire.market import Contact
from ioc_wire.signed import Signed, public_bytes, sign
from tests.core.staple import UNIX, key_of

ROOT = key_of("root")
DELAY_SECONDS = 0.02


def chain_of(name: str, role: str = "regional") -> tuple[Signed, ...]:
    subject = public_bytes(key_of(name))
    return (sign(ROOT, Delegation(subject, "cn", (role,), UNIX - 10, UNIX + 864000)),)  # type: ignore[arg-type]


class Island:
    """All nodes; `cut(a, b)` says whether a message from one to the other is lost."""

    def __init__(
        self, count: int, *, seed: int = 1, settings: ev.Settings = ev.OURS, loss: float = 0.0
    ) -> None:
        self.now = 0.0
        self.settings, self.loss = settings, loss
        self.chance = random.Random(seed)
        self.trust = Trust(
            network_id=bytes(32),
            admission="certified",
            roots={public_bytes(ROOT)},
            checked=CheckedSignatures(),
        )
        self.nodes: dict[bytes, Membership] = {}
        self.dead: set[bytes] = set()
        self.stalled_until: dict[bytes, float] = {}
        self.cut: Callable[[bytes, bytes], bool] = lambda a, b: False
        self.came: list[tuple[bytes, bytes]] = []
        self.went: list[tuple[bytes, bytes]] = []
        self.refused: list[ev.Refused] = []
        self.messages = 0
        self._queue: list[tuple[float, int, bytes, ev.Event]] = []
        self._number = itertools.count()
        self.keys = [public_bytes(key_of(f"core{i}")) for i in range(count)]
        for i in range(count):
            self.start(i, *self.keys[: min(i, 1)])

    def contact(self, key: bytes) -> Contact:
        return Contact(key, "127.0.0.1", 7000 + self.keys.index(key))

    def start(self, i: int, *introduced: bytes) -> Membership:
        key = self.keys[i]
        self.dead.discard(key)
        node = self.nodes[key] = Membership(
            key_of(f"core{i}"), self.contact(key), chain_of(f"core{i}"), self.trust, self.chance,
            unix_offset=UNIX, settings=self.settings,
        )  # fmt: skip
        self.give(key, ev.Introduced(tuple(self.contact(each) for each in introduced)))
        return node

    def give(self, key: bytes, event: ev.Event) -> None:
        for effect in self.nodes[key].handle(event, now=self.now):
            match effect:
                case ev.Send(contact, message):
                    self.messages += 1
                    lost = self.cut(key, contact.key) or self.chance.random() < self.loss
                    if not lost and contact.key in self.nodes:
                        self._at(self.now + DELAY_SECONDS, contact.key, ev.Received(key, message))
                case ev.MemberCame(contact):
                    self.came.append((key, contact.key))
                case ev.MemberWent(gone):
                    self.went.append((key, gone))
                case ev.Refused():
                    self.refused.append(effect)
        self._at(self.nodes[key].deadline(), key, ev.Tick())

    def _at(self, when: float, key: bytes, event: ev.Event) -> None:
        if when < float("inf"):
            heapq.heappush(self._queue, (when, next(self._number), key, event))

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> float | None:
        """Let time pass; with `until`, how long it took, None if it did not come."""
        began, ends = self.now, self.now + seconds
        while self._queue and self._queue[0][0] <= ends:
            when, _, key, event = heapq.heappop(self._queue)
            self.now = max(self.now, when)
            stalled = self.stalled_until.get(key, 0.0)
            if key in self.dead:
                continue
            if stalled > self.now:
                self._at(stalled, key, event)
            elif not isinstance(event, ev.Tick) or self.nodes[key].deadline() <= self.now:
                self.give(key, event)
                if until is not None and until():
                    return self.now - began
        self.now = ends
        return None

    def living(self) -> list[bytes]:
        return [key for key in self.keys if key not in self.dead]

    def all_see(self, keys: list[bytes] | None = None) -> bool:
        keys = self.living() if keys is None else keys
        good = (ev.State.ALIVE, ev.State.SUSPECT)
        return all(self.nodes[a].state(b) in good for a in keys for b in keys if a != b)

    def all_miss(self, key: bytes) -> bool:
        return all(
            self.nodes[a].state(key) in (ev.State.DEAD, ev.State.LEFT) for a in self.living() if a != key
        )

    def all_miss_from(self, keys: set[bytes], gone: bytes) -> bool:
        return all(self.nodes[key].state(gone) is ev.State.DEAD for key in keys)
