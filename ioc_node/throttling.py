"""The bandwidth of bulk data as an operator sees it: ceilings in MB/s (10^6 bytes) by direction, weights by class."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from ioc_node import api
from ioc_node.config import MB_S_MAX, MB_S_MIN, WEIGHT_MAX, WEIGHT_MIN, BandwidthConfig
from ioc_node.core.bandwidth import TRAFFIC, Ceilings, Traffic, Use
from ioc_node.errors import UsageError
from ioc_node.runtime.throttle import Throttle, Throttles
from ioc_wire.errors import WireError
from ioc_wire.identity import format_node_id, parse_node_id

EACH_PEER: Final = "each-peer"
MB: Final = 1e6

_Name = TypeVar("_Name")


def make_throttles(config: BandwidthConfig) -> Throttles:
    """What the configuration says. Raises `ConfigError`."""
    return Throttles(
        Throttle(config.sending.ceilings("bandwidth.sending"), config.weights),
        Throttle(config.receiving.ceilings("bandwidth.receiving"), config.weights),
    )


def told_bandwidth(
    throttles: Throttles, sending: Sequence[Use], receiving: Sequence[Use]
) -> api.BandwidthTold:
    """Ceilings, weights, and who uses what now."""
    weights = dict(throttles.sending.machine.weights)
    return api.BandwidthTold(
        _told(throttles.sending, sending), _told(throttles.receiving, receiving), weights
    )


def change_bandwidth(throttles: Throttles, changes: Sequence[api.BandwidthChange]) -> None:
    """All changes at once, or none. Raises `UsageError`."""
    weights = dict(throttles.sending.machine.weights)
    sides = {"sending": throttles.sending, "receiving": throttles.receiving}
    ceilings = {what: throttle.machine.ceilings for what, throttle in sides.items()}
    for change in changes:
        if change.what == "weight":
            weights |= _weight(change)
        else:
            ceilings[change.what] = _changed(ceilings[change.what], change)
    for what, throttle in sides.items():
        throttle.set(ceilings[what], weights)


def _weight(change: api.BandwidthChange) -> dict[Traffic, float]:
    traffic = _traffic(change.name)
    if traffic is None:
        raise UsageError(
            f"{change.name!r} is no class of traffic that has a weight; there are {', '.join(TRAFFIC)}"
        )
    if change.value is None or not WEIGHT_MIN <= change.value <= WEIGHT_MAX:
        raise UsageError(
            f"the weight of {traffic} has to be from {WEIGHT_MIN:g} to {WEIGHT_MAX:g}, not {_number(change.value)}"
        )
    return {traffic: change.value}


def _changed(ceilings: Ceilings, change: api.BandwidthChange) -> Ceilings:
    if change.value is not None and not MB_S_MIN <= change.value <= MB_S_MAX:
        raise UsageError(
            f"a ceiling has to be from {MB_S_MIN:g} to {MB_S_MAX:g} MB/s, or none, not {_number(change.value)}"
        )
    rate = None if change.value is None else change.value * MB
    if not change.name:
        return replace(ceilings, total=rate)
    if change.name == EACH_PEER:
        return replace(ceilings, each_peer=rate)
    traffic = _traffic(change.name)
    if traffic is not None:
        return replace(ceilings, classes=_put(ceilings.classes, traffic, rate))
    try:
        peer = bytes(parse_node_id(change.name))
    except WireError:
        raise UsageError(
            f"{change.name!r} has no ceiling: name a class ({', '.join(TRAFFIC)}), {EACH_PEER}, or a node ID"
        ) from None
    return replace(ceilings, peers=_put(ceilings.peers, peer, rate))


def _put(table: Mapping[_Name, float], name: _Name, rate: float | None) -> dict[_Name, float]:
    kept = {each: value for each, value in table.items() if each != name}
    return kept if rate is None else {**kept, name: rate}


def _traffic(name: str) -> Traffic | None:
    return next((traffic for traffic in TRAFFIC if traffic == name), None)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


def _told(throttle: Throttle, uses: Sequence[Use]) -> api.DirectionTold:
    ceilings = throttle.machine.ceilings
    return api.DirectionTold(
        mb_s=None if ceilings.total is None else ceilings.total / MB,
        each_peer_mb_s=None if ceilings.each_peer is None else ceilings.each_peer / MB,
        classes_mb_s={traffic: rate / MB for traffic, rate in ceilings.classes.items()},
        peers_mb_s={format_node_id(peer): rate / MB for peer, rate in ceilings.peers.items()},
        uses=tuple(
            api.BandwidthUse(
                node_id=format_node_id(use.peer),
                traffic=use.traffic,
                mb_s=use.bytes_per_second / MB,
                bytes_moved=use.bytes_moved,
                transfers=use.flows,
                waiting=use.waiting,
            )
            for use in uses[: api.ROWS_MAX]
        ),
    )
