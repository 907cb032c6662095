"""Probes under way: in which order members are probed, who is asked to help, and Lifeguard's local health."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from ioc_node.core.chance import Chance
from ioc_node.core.membership_events import Settings

RELAYED_MAX: Final = 256
"""Probes under way for others; more are not made."""
NACK_SHARE: Final = 0.8
"""Of `answer_seconds`: so long an asked member waits until it says that it was given no answer."""


@dataclass(slots=True)
class Pending:
    """A probe under way. `asked` says of each asked member whether it answered that it reached nobody."""

    target: bytes
    ask_at: float
    ends: float
    relay: tuple[bytes, int] | None = None
    """Who asked for it, and under which seq."""
    asked: dict[bytes, bool] = field(default_factory=dict)


class Probes:
    """What waits for an answer."""

    def __init__(self, settings: Settings, chance: Chance) -> None:
        self._settings, self._chance = settings, chance
        self._pending: dict[int, Pending] = {}
        self._order: list[bytes] = []
        self._seq = chance.randrange(1 << 32)
        self._busy: set[bytes] = set()
        self._relayed = 0
        self.health = 0
        """Lifeguard's local health multiplier less one: 0 is healthy."""

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def slowness(self) -> int:
        """How many times longer than usual this node waits, since it may be the slow one itself."""
        return self.health + 1 if self._settings.lifeguard else 1

    def is_probing(self, target: bytes) -> bool:
        return target in self._busy

    def feel(self, change: int) -> None:
        """Worse or better of itself."""
        if self._settings.lifeguard:
            self.health = min(max(self.health + change, 0), self._settings.health_max)

    def next_target(self, members: Collection[bytes]) -> bytes | None:
        """Round-robin in an order that is shuffled anew each round, so each is probed within 2n - 1 periods."""
        for _ in range(2):
            while self._order:
                target = self._order.pop()
                if target in members and target not in self._busy:
                    return target
            self._order = self._chance.sample(list(members), len(members))
        return None

    def begin(self, target: bytes, now: float) -> int:
        """A probe of this node's own is sent; returns its seq."""
        slowness = self.slowness
        settings = self._settings
        ask_at = now + settings.answer_seconds * slowness
        self._busy.add(target)
        return self._add(Pending(target, ask_at, now + settings.period_seconds * slowness))

    def begin_for(self, asker: bytes, seq: int, target: bytes, now: float) -> int | None:
        """A probe is sent for another; None where too many are."""
        if self._relayed >= RELAYED_MAX:
            return None
        self._relayed += 1
        ends = now + NACK_SHARE * self._settings.answer_seconds
        return self._add(Pending(target, ends, ends, (asker, seq)))

    def _add(self, pending: Pending) -> int:
        self._seq += 1
        self._pending[self._seq] = pending
        return self._seq

    def answer(self, peer: bytes, seq: int, *, reached: bool) -> Pending | None:
        """The probe that this answer ends well, if it does."""
        pending = self._pending.get(seq)
        if pending is None or (peer != pending.target and peer not in pending.asked):
            return None
        if not reached:
            if peer in pending.asked:
                pending.asked[peer] = True
            return None
        self._drop(seq)
        if pending.relay is None:
            self.feel(-1)
        return pending

    def _drop(self, seq: int) -> Pending:
        pending = self._pending.pop(seq)
        if pending.relay is None:
            self._busy.discard(pending.target)
        else:
            self._relayed -= 1
        return pending

    def unanswered(self, now: float) -> list[tuple[int, Pending]]:
        """Own probes that others are to be asked for now; each is told once."""
        due = [(seq, one) for seq, one in self._pending.items() if one.ask_at <= now < one.ends]
        for _, one in due:
            one.ask_at = one.ends
        return due

    def failed(self, now: float) -> list[Pending]:
        """Probes that nobody answered, which are over now. Who was asked and did not even say that it reached nobody
        is a sign that this node is the slow one (Lifeguard's NACK)."""
        over = [self._drop(seq) for seq in [seq for seq, one in self._pending.items() if one.ends <= now]]
        for one in over:
            if one.relay is None:
                self.feel(sum(not said for said in one.asked.values()) if one.asked else 1)
        return over

    def drop_all(self) -> list[bytes]:
        """Blame nobody for what is under way; returns the targets of this node's own probes."""
        targets = sorted(self._busy)
        for seq in list(self._pending):
            self._drop(seq)
        return targets

    def deadline(self) -> float:
        return min((one.ask_at for one in self._pending.values()), default=float("inf"))
