"""Network coordinates: how far two nodes are from each other, foretold without a message between them.

Vivaldi (Dabek, Cox, Kaashoek, Morris: SIGCOMM 2004): every node has a point in a plane and a height above it, its
access link; the round trip of two nodes is the distance of their points plus both heights. Each measured round trip is
a spring that moves the measuring node; how far depends on how sure both ends are of their places (the adaptive
timestep). A peer's samples go through a median of the last few first (Ledlie, Gardner, Seltzer: NSDI 2007), so that one
slow answer does not move anybody.

A peer says its own coordinate, so it may lie. What it says is bounded, its claim to be sure counts only down to
`ERROR_MIN`, and no sample moves a node by more than `STEP_MS_MAX`. A node that lies always still shifts those that
measure it; so a coordinate only orders and rules out, and what is offered as near is pinged first.
"""

import math
import statistics
from collections import OrderedDict, deque
from typing import Final, NamedTuple

from ioc_node.core.chance import Chance

DIMENSIONS: Final = 3
GAIN_ERROR: Final = 0.25
"""Vivaldi's c_e: the weight of one sample in the error estimate."""
GAIN_STEP: Final = 0.25
"""Vivaldi's c_c: the share of the way to the sample's ideal place that one sample may move a node."""
ERROR_MIN: Final = 0.01
ERROR_MAX: Final = 1.5
HEIGHT_MS_MIN: Final = 0.01
RTT_MS_MIN: Final = 0.01
RTT_MS_MAX: Final = 60_000.0
COORDINATE_MS_MAX: Final = 60_000.0
STEP_MS_MAX: Final = 100.0
SAMPLES_KEPT: Final = 4
"""Samples of one peer whose median counts."""
PEERS_MAX: Final = 1024
"""Peers whose last samples are kept; the longest unheard one goes."""


class Coordinate(NamedTuple):
    """A place: `point` and `height` in milliseconds; `error` is the expected relative error, 1 knows nothing."""

    point: tuple[float, ...] = (0.0,) * DIMENSIONS
    height: float = HEIGHT_MS_MIN
    error: float = 1.0

    def distance_ms(self, other: "Coordinate") -> float:
        """The round trip that the two places foretell."""
        return math.dist(self.point, other.point) + self.height + other.height


def is_sound(coordinate: Coordinate) -> bool:
    """Whether a coordinate that a peer sent is finite and within bounds."""
    return (
        len(coordinate.point) == DIMENSIONS
        and all(math.isfinite(x) and abs(x) <= COORDINATE_MS_MAX for x in coordinate.point)
        and math.isfinite(coordinate.height)
        and 0 <= coordinate.height <= COORDINATE_MS_MAX
        and math.isfinite(coordinate.error)
        and 0 <= coordinate.error <= ERROR_MAX
    )


class Vivaldi:
    """The coordinate of one node. `observe` is fed every measured round trip."""

    def __init__(self, chance: Chance) -> None:
        self._chance = chance
        self._at = Coordinate()
        self._samples: OrderedDict[bytes, deque[float]] = OrderedDict()

    @property
    def coordinate(self) -> Coordinate:
        return self._at

    @property
    def peers(self) -> int:
        """Peers whose last samples are kept."""
        return len(self._samples)

    def observe(self, peer: bytes, rtt_ms: float, theirs: Coordinate) -> bool:
        """Move by one sample; False (and nothing happened) where the sample or the coordinate is out of bounds."""
        if not (math.isfinite(rtt_ms) and 0 <= rtt_ms <= RTT_MS_MAX and is_sound(theirs)):
            return False
        self._move(max(self._filtered(peer, rtt_ms), RTT_MS_MIN), theirs)
        return True

    def _filtered(self, peer: bytes, rtt_ms: float) -> float:
        kept = self._samples.setdefault(peer, deque(maxlen=SAMPLES_KEPT))
        self._samples.move_to_end(peer)
        if len(self._samples) > PEERS_MAX:
            self._samples.popitem(last=False)
        kept.append(rtt_ms)
        return statistics.median_low(kept)

    def _move(self, rtt_ms: float, theirs: Coordinate) -> None:
        at = self._at
        foretold = at.distance_ms(theirs)
        own_error, their_error = max(at.error, ERROR_MIN), max(theirs.error, ERROR_MIN)
        weight = own_error / (own_error + their_error)
        wrong = min(abs(foretold - rtt_ms) / rtt_ms, ERROR_MAX)
        gain = GAIN_ERROR * weight
        error = min(max(wrong * gain + at.error * (1 - gain), ERROR_MIN), ERROR_MAX)
        step = GAIN_STEP * weight * (rtt_ms - foretold)
        step = min(max(step, -STEP_MS_MAX), STEP_MS_MAX)
        away, apart = self._direction(at, theirs)
        # The unit vector of height vectors: heights add where points subtract, its length is the whole distance.
        whole = apart + at.height + theirs.height
        share = apart / whole if whole > 0 and apart > 0 else 1.0
        lift = (at.height + theirs.height) / whole if whole > 0 else 0.0
        point = tuple(
            min(max(x + step * share * u, -COORDINATE_MS_MAX), COORDINATE_MS_MAX)
            for x, u in zip(at.point, away, strict=True)
        )
        height = min(max(at.height + step * lift, HEIGHT_MS_MIN), COORDINATE_MS_MAX)
        self._at = Coordinate(point, height, error)

    def _direction(self, at: Coordinate, theirs: Coordinate) -> tuple[tuple[float, ...], float]:
        """Unit vector from them to us, and how far apart the points are; any direction where they are one."""
        difference = [x - y for x, y in zip(at.point, theirs.point, strict=True)]
        apart = math.hypot(*difference)
        if apart > 1e-9:
            return tuple(x / apart for x in difference), apart
        random = [self._chance.random() - 0.5 for _ in range(DIMENSIONS)]
        length = math.hypot(*random) or 1.0
        return tuple(x / length for x in random), 0.0
