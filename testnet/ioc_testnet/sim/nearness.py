"""The experiment "within T ms": whom estimates rule out, how many pings are left, and what is found, on a real matrix.

The matrix is one slice, and symmetric: there is no second measurement of any pair. So the final ping is the matrix's
own value, and precision after it is 1 by construction; what jitter would do to it, one slice cannot tell. Pings and
what core nodes measured earlier are disturbed on demand (`jitter`), by a made-up factor, and said so.
"""

import random
import statistics
from pathlib import Path
from typing import Any, Final

import numpy as np

from ioc_node.core.nearness import Estimate, choose_probes, estimate
from ioc_node.core.vivaldi import Vivaldi
from ioc_node.errors import UsageError
from ioc_testnet.sim.latency import read_matrix

LIMITS_MS: Final = (10, 20, 50, 100)
CORE_NODES: Final = 8
CONSUMERS: Final = 120
NEIGHBOURS: Final = 32
"""Whom a node measures for its coordinate, as in the paper."""
ROUNDS: Final = 10
"""So often each."""
UNMEASURED: Final = 0.1
"""This share of gateways has no row at any core node: coordinates instead."""
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
        self.rowless = set(chance.sample(self.gateways, round(UNMEASURED * len(self.gateways))))
        self.places = self._settle(chance)
        self._chance, self._jitter = chance, jitter
        self.rows = {
            gateway: {} if gateway in self.rowless else self._row(gateway) for gateway in self.gateways
        }

    def ping(self, one: int, other: int) -> float:
        """What a measurement says, in ms: the matrix, up to `jitter` more; nan where there is no value."""
        return float(self.matrix[one, other]) * (1 + self._jitter * self._chance.random())

    def is_known(self, one: int, other: int) -> bool:
        return one != other and float(self.matrix[one, other]) > 0

    def _row(self, node: int) -> dict[bytes, float]:
        return {
            each.to_bytes(4, "big"): self.ping(each, node) for each in self.core if self.is_known(each, node)
        }

    def own_row(self, consumer: int) -> dict[bytes, float]:
        return self._row(consumer)

    def _settle(self, chance: random.Random) -> list[Vivaldi]:
        count = len(self.matrix)
        nodes = [Vivaldi(chance) for _ in range(count)]
        neighbours = [chance.sample(range(count), min(NEIGHBOURS, count)) for _ in range(count)]
        for _ in range(ROUNDS):
            for place in range(min(NEIGHBOURS, count)):
                for one, node in enumerate(nodes):
                    other = neighbours[one][place]
                    if self.is_known(one, other):
                        node.observe(
                            other.to_bytes(4, "big"), self.matrix[one, other], nodes[other].coordinate
                        )
        return nodes


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
        "without_row": len(world.rowless),
        "consumers": len(world.consumers),
        "rows": [_judge(world, queries, limit) for limit in LIMITS_MS],
        "command": f"ioc-testnet sim nearness --matrix {path.name} --core {core} --seed {seed} --jitter {jitter:g}",
    }


def _estimates(world: _World, consumer: int) -> dict[bytes, Estimate | None]:
    own, place = world.own_row(consumer), world.places[consumer].coordinate
    return {
        each.to_bytes(4, "big"): estimate(own, world.rows[each], (place, world.places[each].coordinate))
        for each in world.gateways
        if world.is_known(consumer, each)
    }


def _judge(world: _World, queries: list[dict[bytes, Estimate | None]], limit_ms: int) -> dict[str, Any]:
    ours, alone = [0, 0], [0, 0]  # offered and near, offered
    near_all = 0
    probes: list[int] = []
    everybody: list[int] = []
    for consumer, estimates in zip(world.consumers, queries, strict=True):
        truth = {int.from_bytes(key, "big") for key in estimates}
        near = {each for each in truth if world.matrix[consumer, each] <= limit_ms}
        asked = [int.from_bytes(key, "big") for key in choose_probes(estimates, limit_ms)]
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
