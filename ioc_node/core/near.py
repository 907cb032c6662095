"""Coordinates and estimates in the form that travels, and the answer about who is near."""

import heapq
from collections.abc import Generator, Mapping
from typing import Final

from ioc_node.core.nearness import Estimate, is_far, order
from ioc_node.core.vivaldi import Coordinate, is_sound
from ioc_wire import limits
from ioc_wire.identity import format_node_id, node_id_of
from ioc_wire.latency import CoordinateTold, NearFound, NearProvider
from ioc_wire.market import Contact, RttEstimate

STEP_PROVIDERS: Final = 128
"""Looked at between two pauses."""


def coordinate_of(told: CoordinateTold | None) -> Coordinate | None:
    """A coordinate as another node told it; None where it is out of bounds."""
    if told is None:
        return None
    found = Coordinate(told.point, told.height, told.error)
    return found if is_sound(found) else None


def told_of(coordinate: Coordinate) -> CoordinateTold:
    """A coordinate in the form that travels."""
    return CoordinateTold(coordinate.point, coordinate.height, coordinate.error)


def us_of(rtt_ms: float) -> int:
    """Whole microseconds, within the bounds of the wire."""
    return min(max(round(rtt_ms * 1000), 0), limits.LATENCY_RTT_US_MAX)


def estimate_told(found: Estimate | None) -> RttEstimate | None:
    """An estimate in the form that travels; a measured value is none."""
    if found is None or found.how == "measured":
        return None
    low, high = us_of(found.low_ms), us_of(found.high_ms)
    return RttEstimate(us_of(found.rtt_ms), low, high, found.how, found.over)


def estimate_of(told: RttEstimate | None) -> Estimate | None:
    """An estimate as a core node told it."""
    if told is None:
        return None
    return Estimate(told.rtt_us / 1000, told.low_us / 1000, told.high_us / 1000, told.how, told.over)


def finding_near(
    contacts: Mapping[bytes, Contact], estimates: Mapping[bytes, Estimate | None], most_ms: float | None
) -> Generator[None, None, NearFound]:
    """The answer about providers with these `contacts`: those that may be within `most_ms`, the likeliest first; all by
    distance where it is None. In steps."""
    far: list[tuple[float, bytes]] = []
    near: list[tuple[tuple[int, float], bytes]] = []
    for number, key in enumerate(contacts):
        if number % STEP_PROVIDERS == STEP_PROVIDERS - 1:
            yield
        found = estimates[key]
        if found is not None and most_ms is not None and is_far(found, most_ms):
            far.append((found.low_ms, key))
        else:
            near.append((order(found, most_ms), key))
    yield
    told: list[NearProvider] = []
    for number, (_, key) in enumerate(heapq.nsmallest(limits.NEAR_PROVIDERS_MAX, near)):
        if number % STEP_PROVIDERS == 0:
            yield
        told.append(NearProvider(contacts[key], estimate_told(estimates[key])))
    nearest = ""
    if far and (found := estimates[min(far)[1]]) is not None:
        nearest = f"provider {name_of(min(far)[1])}: {found.text()}, at most {most_ms:g} ms are wanted"
    return NearFound(tuple(told), len(contacts), len(far), nearest)


def name_of(provider: bytes) -> str:
    """A provider in a line for people: the beginning of its node ID."""
    return format_node_id(node_id_of(provider))[:11]
