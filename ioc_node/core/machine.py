"""What every machine of this room has in common.

A machine is fed *events* (past facts) and answers with *effects* (commands for the driver that owns it). It never
reads a clock: `now` is seconds of whatever clock its driver uses, and the same call sequence with the same random
generator gives the same effects.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

Event_contra = TypeVar("Event_contra", contravariant=True)
Effect_co = TypeVar("Effect_co", covariant=True)


class Machine(Protocol[Event_contra, Effect_co]):
    """State that changes only in `handle`, and says when it next wants to be woken."""

    def handle(self, event: Event_contra, *, now: float) -> Sequence[Effect_co]:
        """Take one event in; return the commands that follow from it, in order."""
        ...

    def deadline(self) -> float:
        """When to send the next tick: `math.inf` when idle; after a tick it is later than `now`."""
        ...
