"""How each road has done towards each node: what failed and when it is tried again, and how fast it was.

Both are remembered for a while only, since networks and processes change, and for a bounded number of nodes.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from ioc_node.core.roads import QUIC, QUIC_ROAD, Capability, OwnRoad

COOL_SECONDS: Final = 2.0
COOL_SECONDS_MAX: Final = 300.0
MEASURED_BYTES_MIN: Final = 4 << 20
"""Smaller transfers measure set-up rather than speed."""
MEASURED_SECONDS_MAX: Final = 600.0
"""An older figure no longer counts: the offload is judged by what it declares again."""
WEIGHT: Final = 0.5
STANDINGS_MAX: Final = 1024


@dataclass(slots=True)
class _Standing:
    failures: int = 0
    until: float = 0.0
    failure: str = ""
    mb_s: float = 0.0
    measured_at: float = -MEASURED_SECONDS_MAX


class Standings:
    """Failures and speeds by node (public key) and road, of the `STANDINGS_MAX` used last. Times are seconds of one
    clock that the caller names."""

    def __init__(self) -> None:
        self._standings: OrderedDict[tuple[bytes, str], _Standing] = OrderedDict()

    def __len__(self) -> int:
        return len(self._standings)

    def failed(self, node: bytes, road: str, why: str, *, now: float) -> float:
        """Do not try `road` for a while, longer each time in a row; for how many seconds."""
        standing = self._of(node, road)
        seconds = float(min(COOL_SECONDS * 2.0 ** min(standing.failures, 16), COOL_SECONDS_MAX))
        standing.failures += 1
        standing.until = now + seconds
        standing.failure = why
        return seconds

    def succeeded(self, node: bytes, road: str, moved: int, seconds: float, *, now: float) -> None:
        """`road` brought `moved` bytes in so many seconds."""
        standing = self._of(node, road)
        standing.failures = 0
        standing.until = 0.0
        if moved < MEASURED_BYTES_MIN or seconds <= 0:
            return
        found = moved / 1e6 / seconds
        fresh = now - standing.measured_at < MEASURED_SECONDS_MAX
        standing.mb_s = WEIGHT * found + (1 - WEIGHT) * standing.mb_s if fresh else found
        standing.measured_at = now

    def own_road(self, node: bytes, road: str, capability: Capability, *, now: float) -> OwnRoad:
        """`road` as it stands towards `node`."""
        standing = self._standings.get((node, road))
        if standing is None:
            return OwnRoad(road, capability)
        fresh = now - standing.measured_at < MEASURED_SECONDS_MAX
        return OwnRoad(
            road,
            capability,
            measured_mb_s=standing.mb_s if fresh else None,
            cooling_seconds=max(0.0, standing.until - now),
            failure=standing.failure,
        )

    def quic(self, node: bytes, *, now: float) -> OwnRoad:
        """QUIC towards `node`."""
        return self.own_road(node, QUIC, QUIC_ROAD.capability, now=now)

    def _of(self, node: bytes, road: str) -> _Standing:
        standing = self._standings.setdefault((node, road), _Standing())
        self._standings.move_to_end((node, road))
        while len(self._standings) > STANDINGS_MAX:
            self._standings.popitem(last=False)
        return standing
