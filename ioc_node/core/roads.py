"""Which road a blob takes to or from another node: one of the offloads that both ends have, or QUIC.

One pure function decides, for the market (which names the transport of a match, from what the other end
advertises in its record) and for every transfer (from the descriptors in the ticket), so that both say the
same for the same reasons. A road is taken only if it is expected to be quicker than QUIC for so many bytes:
its speed is what was measured towards that node, or what the offload declares.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

QUIC: Final = "quic"
LARGE_BYTES: Final = 64 << 20
"""What a blob of unknown size counts as."""

Scope = Literal["host", "network"]
"""`host`: a road between processes of one machine only."""


@dataclass(frozen=True)
class Capability:
    """What one end knows of a road of its own: whether it works here and why (not), how far it reaches, and the
    speed that it declares (10^6 bytes per second, and seconds before the first byte)."""

    usable: bool
    reason: str
    scope: Scope = "network"
    mb_s: float = 100.0
    set_up_seconds: float = 0.01


@dataclass(frozen=True)
class OwnRoad:
    """A road of this end, as things stand between it and one other node."""

    name: str
    capability: Capability
    measured_mb_s: float | None = None
    cooling_seconds: float = 0.0
    """How long it is not tried, because it failed towards that node."""
    failure: str = ""

    def seconds(self, size: int) -> float:
        """How long `size` bytes are expected to take."""
        return self.capability.set_up_seconds + size / 1e6 / (self.measured_mb_s or self.capability.mb_s)


QUIC_ROAD: Final = OwnRoad(QUIC, Capability(True, "always there", mb_s=200.0, set_up_seconds=0.02))


@dataclass(frozen=True)
class Reach:
    """Whether a road of that name can lead to the other end, and why (not)."""

    reachable: bool
    reason: str


@dataclass(frozen=True)
class Road:
    """One road and the reason why it is taken, or why not."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


@dataclass(frozen=True)
class Choice:
    """`roads` in the order in which they are tried, QUIC after them; `passed` are those that are not tried."""

    roads: tuple[Road, ...]
    passed: tuple[Road, ...]

    def text(self, engine: str) -> str:
        """`shm (same host)`, or `quic/qh3 (shm: another host)`."""
        if self.roads:
            return str(self.roads[0])
        return f"quic/{engine} ({self.why_quic})"

    @property
    def why_quic(self) -> str:
        """What speaks against each offload, in one line."""
        return "; ".join(f"{each.name}: {each.reason}" for each in self.passed) or "no offload in common"


def reach_by_scope(scope: Scope, *, same_host: bool) -> Reach:
    """How far a road reaches, for all that is known from addresses."""
    if scope == "network":
        return Reach(True, "both ends have it")
    return Reach(True, "same host") if same_host else Reach(False, "another host")


def choose_roads(
    own: Sequence[OwnRoad], theirs: Mapping[str, Reach], *, size: int | None, quic: OwnRoad = QUIC_ROAD
) -> Choice:
    """Order this end's offloads for `size` bytes (None: unknown) from or to an end that has `theirs`.

    The quickest comes first; equal ones are ordered by name. An offload only one end has is passed over in
    silence where the other end does not offer it, with a reason where this end lacks it.
    """
    count = LARGE_BYTES if size is None else size
    mine = {road.name: road for road in own}
    taken: list[tuple[float, Road]] = []
    passed: list[Road] = []
    for name, reach in sorted(theirs.items()):
        road = mine.get(name)
        against = "not here" if road is None else _against(road, reach, count, quic)
        if road is None or against:
            passed.append(Road(name, against))
        else:
            taken.append((road.seconds(count), Road(name, _reason(road, reach))))
    taken.sort(key=lambda each: (each[0], each[1].name))
    return Choice(tuple(road for _, road in taken), tuple(passed))


def _against(road: OwnRoad, reach: Reach, size: int, quic: OwnRoad) -> str:
    if not road.capability.usable:
        return road.capability.reason
    if not reach.reachable:
        return reach.reason
    if road.cooling_seconds > 0:
        return f"failed, tried again in {road.cooling_seconds:.0f} s: {road.failure}"
    if road.seconds(size) >= quic.seconds(size):
        return f"no quicker than QUIC for {size:,} bytes"
    return ""


def _reason(road: OwnRoad, reach: Reach) -> str:
    measured = road.measured_mb_s
    return reach.reason if measured is None else f"{reach.reason}, {measured:,.0f} MB/s measured"
