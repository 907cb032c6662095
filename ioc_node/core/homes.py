"""Which core node a provider lives at: those that may become home, in what order, and when another is worth a move.

A core node of the own region or industry comes first, the national node last; among equals each provider begins with
another one, so that they spread. It moves when its home fails (that one is *shunned* for a while), and gently when
another is better: one whose prefix covers the provider after WINS_COVERING reviews in a row, one of the same kind
only when it was much nearer in WINS_NEARER reviews in a row, and not within SETTLED_SECONDS of the last move. Round
trips are measured by heartbeats that core nodes answer themselves, so that a busy one looks far.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from ioc_wire.identity import node_id_of
from ioc_wire.market import Contact

CONTACTS_MAX: Final = 64
SHUNNED_SECONDS: Final = 5.0
"""A core node that failed is not tried again for so long, while there are others."""
SETTLED_SECONDS: Final = 300.0
WINS_COVERING: Final = 2
WINS_NEARER: Final = 3
NEARER_PART: Final = 0.67
NEARER_SECONDS: Final = 0.005
"""Another is nearer when its round trip is this part of the home's at most, and this much shorter at least."""


class Candidate(NamedTuple):
    """A linked core node as the provider sees it; `round_trip_seconds` None where it was not measured yet."""

    key: bytes
    covers: bool
    national: bool
    round_trip_seconds: float | None

    @property
    def kind(self) -> tuple[bool, bool]:
        """Smaller is better."""
        return (not self.covers, self.national)


@dataclass(slots=True)
class _Known:
    contact: Contact
    failures: int = 0


class Homes:
    """The choice of the provider with key `me`. `now` is seconds of any one clock."""

    def __init__(self, me: bytes) -> None:
        self._me = me
        self._id = node_id_of(me)
        self._known: dict[bytes, _Known] = {}
        self._shunned: dict[bytes, float] = {}
        self._moved_at: float | None = None
        self._winner: bytes | None = None
        self._wins = 0

    @property
    def contacts(self) -> tuple[Contact, ...]:
        return tuple(known.contact for known in self._known.values())

    def know(self, contact: Contact) -> None:
        """A core node that may become home. Where the table is full, it takes the place of one that fails."""
        known = self._known.get(contact.key)
        if known is not None:
            known.contact = contact
            return
        if contact.key == self._me:
            return
        if len(self._known) >= CONTACTS_MAX:
            worst = max(self._known, key=lambda key: self._known[key].failures)
            if not self._known[worst].failures:
                return
            del self._known[worst]
        self._known[contact.key] = _Known(contact)

    # -- what failed

    def shun(self, key: bytes, now: float) -> None:
        """It failed: rather not for a while."""
        self._shunned[key] = now + SHUNNED_SECONDS
        if known := self._known.get(key):
            known.failures += 1

    def served(self, key: bytes, now: float) -> None:
        """It took the catalogue in: it is home now."""
        self._shunned.pop(key, None)
        self._moved_at = now
        self._winner, self._wins = None, 0
        if known := self._known.get(key):
            known.failures = 0

    def is_shunned(self, key: bytes, now: float) -> bool:
        return self._shunned.get(key, now) > now

    # -- where to go

    def choose(self, linked: Iterable[Candidate], now: float) -> Candidate | None:
        """The best of those linked, shunned ones only where all are (then the one that failed first)."""
        candidates = list(linked)
        good = [candidate for candidate in candidates if not self.is_shunned(candidate.key, now)]
        if good:
            return min(good, key=lambda candidate: (candidate.kind, self._spread(candidate.key)))
        return min(candidates, key=lambda candidate: self._shunned[candidate.key], default=None)

    def to_dial(self, linked: Collection[bytes], now: float) -> list[Contact]:
        """Those that are neither linked nor shunned, the most reliable first."""
        self._shunned = {key: until for key, until in self._shunned.items() if until > now}
        known = [
            entry for key, entry in self._known.items() if key not in linked and key not in self._shunned
        ]
        known.sort(key=lambda entry: (entry.failures, self._spread(entry.contact.key)))
        return [entry.contact for entry in known]

    def review(self, home: Candidate, others: Iterable[Candidate], now: float) -> bytes | None:
        """The key of the core node to move to, where one has been better for long enough."""
        better = [
            other for other in others if _is_better(other, home) and not self.is_shunned(other.key, now)
        ]
        if not better:
            self._winner, self._wins = None, 0
            return None
        best = min(better, key=lambda other: (other.kind, _distance(other), self._spread(other.key)))
        self._wins = self._wins + 1 if best.key == self._winner else 1
        self._winner = best.key
        if best.kind < home.kind:
            return best.key if self._wins >= WINS_COVERING else None
        settled = self._moved_at is None or now - self._moved_at >= SETTLED_SECONDS
        return best.key if settled and self._wins >= WINS_NEARER else None

    def _spread(self, key: bytes) -> bytes:
        return bytes(a ^ b for a, b in zip(self._id, node_id_of(key), strict=True))


def _distance(candidate: Candidate) -> float:
    return candidate.round_trip_seconds if candidate.round_trip_seconds is not None else float("inf")


def _is_better(other: Candidate, home: Candidate) -> bool:
    if other.kind != home.kind:
        return other.kind < home.kind
    if other.round_trip_seconds is None or home.round_trip_seconds is None:
        return False
    gained = home.round_trip_seconds - other.round_trip_seconds
    return gained >= NEARER_SECONDS and other.round_trip_seconds <= NEARER_PART * home.round_trip_seconds
