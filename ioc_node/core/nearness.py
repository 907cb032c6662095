"""How far a provider is from a consumer, before anybody pings: from what core nodes measured, else from coordinates.

Both ends of a path are measured against the same core nodes. With round trips a (consumer to core node) and b (core
node to provider), the path between them takes at least |a - b| and at most a + b wherever the triangle inequality holds
(IDMaps: Francis et al. 2001). On the Internet it often does not: one detour to one core node moves |a - b| far above
the truth. So the low end is not the largest |a - b| but the one that three quarters of the common core nodes agree on.
It is an estimate for choosing whom to ping and in which order; what is offered as near has been pinged.
"""

import math
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from ioc_node.core.vivaldi import RTT_MS_MAX, Coordinate, is_sound

How = Literal["measured", "triangulated", "coordinates", "same provider"]

QUARTILE: Final = 4
"""The low end is the |a - b| that a quarter of the common core nodes stay at or below."""
SLACK_MS: Final = 5.0
"""An undecided provider is ruled out only if its low end is beyond the limit by this: access links jitter by it."""
COMMON_MIN: Final = 2
"""So many core nodes in common make a triangulation; one alone says too little about the direction."""
PROBES_MAX: Final = 512
"""Pings for one demand, whatever it asks for."""


class Estimate(NamedTuple):
    """A round trip in ms, between which bounds it probably is, how that is known, over how many core nodes."""

    rtt_ms: float
    low_ms: float
    high_ms: float
    how: How
    over: int = 0

    def text(self) -> str:
        """`measured 12.3 ms`, `estimated 40 ms (triangulated over 5 core nodes)`, `estimated 40 ms (coordinates)`."""
        if self.how == "measured":
            return f"measured {self.rtt_ms:.1f} ms"
        basis = f"triangulated over {self.over} core nodes" if self.how == "triangulated" else self.how
        return f"estimated {self.rtt_ms:.0f} ms ({basis})"


SAME_PROVIDER: Final = Estimate(0.0, 0.0, 0.0, "same provider")
"""From a provider to its own hosts."""


def measured(rtt_ms: float) -> Estimate:
    """A ping's result."""
    return Estimate(rtt_ms, rtt_ms, rtt_ms, "measured")


def triangulate(consumer: Mapping[bytes, float], provider: Mapping[bytes, float]) -> Estimate | None:
    """From milliseconds by core node key of both ends; None with fewer than `COMMON_MIN` core nodes in common.

    Values that are not finite, negative or above 60 s count as not measured.
    """
    pairs = [
        (a, provider[key])
        for key, a in consumer.items()
        if key in provider and _is_rtt(a) and _is_rtt(provider[key])
    ]
    if len(pairs) < COMMON_MIN:
        return None
    apart = sorted(abs(a - b) for a, b in pairs)
    high = min(a + b for a, b in pairs)
    low = min(apart[len(apart) // QUARTILE], high)
    return Estimate((low + high) / 2, low, high, "triangulated", len(pairs))


def from_coordinates(consumer: Coordinate, provider: Coordinate) -> Estimate | None:
    """From both ends' coordinates; None where one is out of bounds. The bounds are four expected errors wide: measured
    on real round trips, two lose near providers, whose relative errors are the largest."""
    if not (is_sound(consumer) and is_sound(provider)):
        return None
    rtt_ms = consumer.distance_ms(provider)
    share = min(4 * max(consumer.error, provider.error), 1.0)
    return Estimate(rtt_ms, rtt_ms * (1 - share), rtt_ms * (1 + share), "coordinates")


def estimate(
    consumer: Mapping[bytes, float],
    provider: Mapping[bytes, float],
    places: tuple[Coordinate, Coordinate] | None = None,
) -> Estimate | None:
    """Triangulated where rows allow it, else from `places` (consumer, provider); None where nothing is known."""
    found = triangulate(consumer, provider)
    if found is None and places is not None:
        found = from_coordinates(*places)
    return found


def choose_probes(
    estimates: Mapping[bytes, Estimate | None], most_ms: float, *, probes_max: int = PROBES_MAX
) -> tuple[bytes, ...]:
    """Whom to ping for "within `most_ms`", the likeliest first, at most `probes_max` and never above `PROBES_MAX`.

    Left out is who was measured before, and who is surely farther. Who is surely inside comes first, and is pinged as
    well. Of the unknown ones, who are last, some may still be in the budget.
    """
    chances = [(order(each, most_ms), key) for key, each in estimates.items() if _may_be_near(each, most_ms)]
    return tuple(key for _, key in sorted(chances)[: min(max(probes_max, 0), PROBES_MAX)])


def is_far(found: Estimate | None, most_ms: float) -> bool:
    """Surely farther than `most_ms`, as far as estimates are sure."""
    slack = 0.0 if found is not None and found.how == "measured" else SLACK_MS
    return found is not None and found.low_ms > most_ms + slack


def order(found: Estimate | None, most_ms: float | None) -> tuple[int, float]:
    """The likeliest first: surely within `most_ms`, then perhaps, then unknown. By distance where it is None."""
    if found is None:
        return 2, 0.0
    if most_ms is None:
        return 0, found.rtt_ms
    return (0, found.high_ms) if found.high_ms <= most_ms else (1, found.low_ms + found.rtt_ms)


def _may_be_near(found: Estimate | None, most_ms: float) -> bool:
    return not is_far(found, most_ms) and (found is None or found.how != "measured")


def _is_rtt(rtt_ms: float) -> bool:
    return math.isfinite(rtt_ms) and 0 <= rtt_ms <= RTT_MS_MAX
