"""How long a member stays suspected: the more accuse it independently, the sooner it is held dead.

Lifeguard (arXiv 1707.00788, section IV-B): max(low, high - (high - low) * log(C + 1) / log(K + 1)), C confirmations
by others than the first accuser; low = alpha * log10(n) periods, high = beta * low.
"""

import math
from dataclasses import dataclass, field

from ioc_node.core.membership_events import Settings
from ioc_wire.signed import Signed


def suspicion_seconds(members: int, confirmations: int, settings: Settings) -> float:
    """The length of a suspicion among `members` nodes."""
    low = settings.alpha * max(1.0, math.log10(max(members, 1))) * settings.period_seconds
    if not settings.lifeguard or settings.confirmations < 1:
        return low
    high = settings.beta * low
    share = math.log(confirmations + 1) / math.log(settings.confirmations + 1)
    return max(low, high - (high - low) * share)


@dataclass(slots=True)
class Suspicion:
    """Who accuses a member in its present incarnation; at most `confirmations` + 1 are kept."""

    started: float
    accusers: dict[bytes, Signed] = field(default_factory=dict)
    probed: bool = False
    """Whether this node itself could not reach the member since."""
    answered: bool = False
    """Whether this node reached it since: it lives, and its accusers are kept only to know what was heard."""

    def ends(self, members: int, settings: Settings) -> float:
        """When the member is held dead, unless it refutes."""
        confirmed = max(len(self.accusers) - 1, 0)
        return self.started + suspicion_seconds(members, min(confirmed, settings.confirmations), settings)
