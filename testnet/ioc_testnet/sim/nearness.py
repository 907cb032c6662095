"""The experiment "within T ms": whom estimates rule out, how many pings are left, and what is found, on a real matrix.

The matrix is one slice, and symmetric: there is no second measurement of any pair. So the final ping is the matrix's
own value, and precision after it is 1 by construction; what jitter would do to it, one slice cannot tell. Pings and
what core nodes measured earlier are disturbed on demand (`jitter`), by a made-up factor, and said so.

Core nodes' signed rows, the book of them, the estimates of a core node and the choice of whom to ping are those of real
nodes. A share of the gateways is measured by one core node alone, so that coordinates decide.
"""

import random
import statistics
from pathlib import Path
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.core.latency import LatencyBook
from ioc_node.core.near import estimate_of, finding_near, told_of, us_of
from ioc_node.core.nearness import Estimate, choose_probes
from ioc_node.core.steps import run_through
from ioc_node.core.trust import Trust
from ioc_node.core.vivaldi import Vivaldi
from ioc_node.errors import UsageError
from ioc_testnet.sim.latency import read_matrix
from ioc_wire import limits
from ioc_wire.latency import CoreRtt, LatencyNews, LatencyRow, ProviderRtt, Vantage
from ioc_wire.market import Contact
from ioc_wire.signed import public_bytes, sign

LIMITS_MS: Final = (10, 20, 50, 100)
CORE_NODES: Final = 8
CONSUMERS: Final = 120
NEIGHBOURS: Final = 32
"""Whom a node measures for its coordinate, as in the paper."""
ROUNDS: Final = 10
"""So often each."""
UNMEASURED: Final = 0.1
"""This share of gateways was measured by one core node alone: coordinates decide."""
UNIX: Final = 1_800_000_000
_Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]


class _World:
    """The matrix with its roles dealt out from one seed."""

    def __init__(self, matrix: _Matrix, core: int, seed: int, jitter: float) -> None:
        chance = random.Random(seed)  # noqa: S311 - a seed replays the run
        order = chance.sample(range(len(matrix)), len(matrix))
        self.matrix = matrix
        self.core = order[:core]
        self.gateways = order[core:]
        self.consumers = order[core : core + CONSUMERS]
        self.lonely = set(chance.sample(self.gateways, round(UNMEASURED * len(self.gateways))))
        self.places = self._settle(chance)
        self._chance, self._jitter = chance, jitter
        keys = (Ed25519PrivateKey.from_private_bytes(chance.randbytes(32)) for _ in self.core)
        self._keys = dict(zip(self.core, keys, strict=True))
        self.book = LatencyBook(Trust(network_id=bytes(32), admission="open", roots=()))
        for number, each in enumerate(self.core):
            self.book.take(self._row(each, alone=number == 0), unix=UNIX)

    def ping(self, one: int, other: int) -> float:
        """What a measurement says, in ms: the matrix, up to `jitter` more; nan where there is no value."""
        return float(self.matrix[one, other]) * (1 + self._jitter * self._chance.random())

    def is_known(self, one: int, other: int) -> bool:
        return one != other and float(self.matrix[one, other]) > 0

    def _row(self, core: int, *, alone: bool) -> LatencyNews:
        """What a core node measured; `alone` it measured all of them."""
        seen = [
            each for each in self.gateways if self.is_known(core, each) and (alone or each not in self.lonely)
        ]
        rtts = []
        for each in seen[: limits.LATENCY_RTTS_MAX]:
            rtt_us = us_of(self.ping(core, each))
            rtts.append(
                ProviderRtt(key_of(each), rtt_us, rtt_us, 1, 0, told_of(self.places[each].coordinate))
            )
        row = LatencyRow(1, UNIX, UNIX + 60, tuple(rtts), told_of(self.places[core].coordinate))
        return LatencyNews(sign(self._keys[core], row))

    def vantage(self, consumer: int) -> Vantage:
        """What a consumer measured."""
        rtts = tuple(
            CoreRtt(public_bytes(key), us_of(self.ping(core, consumer)))
            for core, key in self._keys.items()
            if self.is_known(core, consumer)
        )
        return Vantage(rtts[: limits.VANTAGE_CORES_MAX], told_of(self.places[consumer].coordinate))

    def _settle(self, chance: random.Random) -> list[Vivaldi]:
        count = len(self.matrix)
        nodes = [Vivaldi(chance) for _ in range(count)]
        neighbours = [chance.sample(range(count), min(NEIGHBOURS, count)) for _ in range(count)]
        for _ in range(ROUNDS):
            for place in range(min(NEIGHBOURS, count)):
                for one, node in enumerate(nodes):
                    other = neighbours[one][place]
                    if self.is_known(one, other):
                        node.observe(key_of(other), float(self.matrix[one, other]), nodes[other].coordinate)
        return nodes


def key_of(node: int) -> bytes:
    """What stands for a gateway's public key."""
    return node.to_bytes(32, "big")


def run_nearness(path: Path, *, core: int = CORE_NODES, seed: int = 1, jitter: float = 0.0) -> dict[str, Any]:
    """One row for each limit: precision and recall after the final ping, pings per query; Vivaldi alone beside it."""
    matrix = read_matrix(path)
    if not 2 <= core <= len(matrix) // 2:
        raise UsageError(f"--core {core}: between 2 and half of the matrix's {len(matrix)} rows")
    world = _World(matrix, core, seed, jitter)
    queries = [_estimates(world, consumer) for consumer in world.consumers]
    return {
        "experiment": "nearness",
        "matrix": path.name,
        "slices": 1,
        "jitter": jitter,
        "core": core,
        "seed": seed,
        "gateways": len(world.gateways),
        "measured_once": len(world.lonely),
        "consumers": len(world.consumers),
        "rows": [_judge(world, queries, limit) for limit in LIMITS_MS],
        "command": f"ioc-testnet sim nearness --matrix {path.name} --core {core} --seed {seed} --jitter {jitter:g}",
    }


def _estimates(world: _World, consumer: int) -> dict[bytes, Estimate | None]:
    """As a core node finds them."""
    asked = [key_of(each) for each in world.gateways if world.is_known(consumer, each)]
    return run_through(world.book.estimating(world.vantage(consumer), asked))


def _chosen(estimates: dict[bytes, Estimate | None], limit_ms: int) -> list[int]:
    """Whom a consumer pings, by a core node's answer."""
    contacts = {key: Contact(key, "192.0.2.1", 7400) for key in estimates}
    told = run_through(finding_near(contacts, estimates, limit_ms))
    named = {each.contact.key: estimate_of(each.estimate) for each in told.providers}
    return [int.from_bytes(key, "big") for key in choose_probes(named, limit_ms)]


def _judge(world: _World, queries: list[dict[bytes, Estimate | None]], limit_ms: int) -> dict[str, Any]:
    ours, alone = [0, 0], [0, 0]  # offered and near, offered
    near_all = 0
    probes: list[int] = []
    everybody: list[int] = []
    for consumer, estimates in zip(world.consumers, queries, strict=True):
        truth = {int.from_bytes(key, "big") for key in estimates}
        near = {each for each in truth if world.matrix[consumer, each] <= limit_ms}
        asked = _chosen(estimates, limit_ms)
        offered = {each for each in asked if world.ping(consumer, each) <= limit_ms}
        place = world.places[consumer].coordinate
        believed = {each for each in truth if place.distance_ms(world.places[each].coordinate) <= limit_ms}
        near_all += len(near)
        for counts, found in ((ours, offered), (alone, believed)):
            counts[0] += len(found & near)
            counts[1] += len(found)
        probes.append(len(asked))
        everybody.append(len(truth))
    return {
        "within_ms": limit_ms,
        "near_mean": round(near_all / len(queries), 1),
        "precision": _share(ours[0], ours[1]),
        "recall": _share(ours[0], near_all),
        "probes_p50": int(statistics.median(probes)),
        "probes_p99": sorted(probes)[min(len(probes) - 1, int(0.99 * len(probes)))],
        "probes_everybody": int(statistics.median(everybody)),
        "vivaldi_precision": _share(alone[0], alone[1]),
        "vivaldi_recall": _share(alone[0], near_all),
    }


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 1.0
