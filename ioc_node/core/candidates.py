"""Servers that a node was told of and has not verified yet, and those it lost, for another try."""

from collections import Counter, OrderedDict
from typing import Final, NamedTuple

from ioc_node.core.routing import GROUP_TABLE_MAX, Contact, address_group

CANDIDATES_MAX: Final = 1024


class Candidate(NamedTuple):
    """A contact to verify, not before a time; it was verified once and then failed so many times."""

    contact: Contact
    not_before: float
    failures: int


class Candidates:
    """Servers heard of and not verified yet, and those that failed, for another try; at most `CANDIDATES_MAX`, and
    where `capped` no more of one address group than a table takes: nobody can send us to knock at a victim's door.
    """

    def __init__(self, *, capped: bool = False) -> None:
        self._capped = capped
        self._waiting: OrderedDict[bytes, Candidate] = OrderedDict()
        self._groups: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, contact: Contact, not_before: float, failures: int = 0) -> None:
        """Verify this contact, not before the given time."""
        if contact.node_id in self._waiting or len(self._waiting) >= CANDIDATES_MAX:
            return
        group = address_group(contact.address[0]) if self._capped else None
        if group is not None:
            if self._groups[group] >= GROUP_TABLE_MAX:
                return
            self._groups[group] += 1
        self._waiting[contact.node_id] = Candidate(contact, not_before, failures)

    def discard(self, node_id: bytes) -> None:
        """It was verified by other means."""
        candidate = self._waiting.pop(node_id, None)
        group = (
            address_group(candidate.contact.address[0]) if self._capped and candidate is not None else None
        )
        if group is not None:
            self._groups[group] -= 1
            if not self._groups[group]:
                del self._groups[group]

    def is_settled(self) -> bool:
        """Whether only known failures are left to try again."""
        return all(candidate.failures for candidate in self._waiting.values())

    def take(self, count: int, now: float) -> list[Candidate]:
        """Remove and return up to `count` whose time has come."""
        ready: list[Candidate] = []
        if count > 0:
            for candidate in self._waiting.values():
                if candidate.not_before <= now:
                    ready.append(candidate)
                    if len(ready) == count:
                        break
            for candidate in ready:
                self.discard(candidate.contact.node_id)
        return ready
