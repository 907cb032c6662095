"""How often core nodes suspect others that live: SWIM alone, with Lifeguard, and with this node's own precautions.

Each is run in the same world (same seed): some nodes stall again and again, as overloaded ones do, and messages are
lost. Nobody has died, so every suspicion is false. At the end some nodes crash for good: how soon that is noticed is
the other side of the bargain.
"""

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Final

from ioc_node.core import membership_events as ev
from ioc_node.core.membership_events import LIFEGUARD, OURS, SWIM, Settings
from ioc_node.errors import UsageError
from ioc_testnet.sim.latency import read_latency
from ioc_testnet.sim.membership_world import MemberNode, MemberWorld
from ioc_testnet.sim.options import LATENCY_DEFAULT
from ioc_testnet.sim.population import derived
from ioc_testnet.sim.simulation import Progress, percentile

NODES_MAX: Final = 256
KINDS: Final[Mapping[str, Settings]] = {"swim": SWIM, "lifeguard": LIFEGUARD, "ours": OURS}
INTRODUCED: Final = 3
JOIN_SECONDS_MAX: Final = 300.0
SETTLE_SECONDS: Final = 30.0
RUN_SECONDS: Final = 20.0
"""How long a slow node goes on between two stalls, on average."""
CRASH_SECONDS: Final = 120.0
"""How long crashes are waited for."""


@dataclass(frozen=True)
class MembershipOptions:
    """One run. `slow` and `loss` are shares, `stall` is how long a slow node stalls at most, `seconds` how long
    suspicions are counted."""

    nodes: int = 32
    seconds: float = 1800.0
    slow: float = 0.2
    stall: float = 8.0
    loss: float = 0.02
    crashes: int = 3
    latency: str = LATENCY_DEFAULT
    seed: int = 1

    def check(self) -> "MembershipOptions":
        """Return these options if they can be meant; raises `UsageError`."""
        bounds = {"nodes": (3, NODES_MAX), "seconds": (10, 86400), "slow": (0, 0.9), "stall": (0, 60), "loss": (0, 0.9),
                  "crashes": (0, self.nodes // 3)}  # fmt: skip
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(f"--{name} {value:g}: must be from {low:g} to {high:g}")
        return self

    def command(self) -> str:
        """The exact command of this run: only what differs from the defaults, and always nodes and seed."""
        words = ["ioc-testnet sim membership"]
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default or field.name in ("nodes", "seed"):
                words.append(
                    f"--{field.name} {value:g}" if isinstance(value, float) else f"--{field.name} {value}"
                )
        return " ".join(words)

    @cached_property
    def node_hours(self) -> float:
        return self.nodes * self.seconds / 3600


class _Run:
    """One kind of settings in the world of `options`."""

    def __init__(self, options: MembershipOptions, settings: Settings) -> None:
        self._options = options
        latency = read_latency(options.latency)
        self._world = MemberWorld(options.nodes, settings, latency, seed=options.seed, loss=options.loss)
        self._world.on_effect = self._note
        chance = derived(options.seed, "fates")
        fated = chance.sample(self._world.nodes, len(self._world.nodes))
        slow = round(options.slow * options.nodes)
        for node in fated[:slow]:
            node.slow = True
        self._doomed = fated[slow:][: options.crashes]
        self._counting = False
        self._suspicions = {True: 0, False: 0}
        self._deaths = {True: 0, False: 0}
        """By whether the accused is a slow node."""
        self._crashed: dict[bytes, float] = {}
        self._noticed: list[float] = []

    def figures(self) -> dict[str, Any]:
        world, options = self._world, self._options
        joined = self._join()
        before = world.messages, world.message_bytes
        self._counting = True
        self._stall(options.seconds)
        self._counting = False
        messages, size = world.messages - before[0], world.message_bytes - before[1]
        self._crash()
        hours, node_seconds = options.node_hours, options.nodes * options.seconds
        witnesses = len(self._doomed) * (options.nodes - len(self._doomed))
        return {
            "false_suspicions_per_node_hour": round(sum(self._suspicions.values()) / hours, 4),
            "false_suspicions_of_healthy_per_node_hour": round(self._suspicions[False] / hours, 4),
            "false_deaths_per_node_hour": round(sum(self._deaths.values()) / hours, 4),
            "false_deaths_of_healthy_per_node_hour": round(self._deaths[False] / hours, 4),
            "crash_noticed_p50_s": round(percentile(self._noticed, 50), 2) if self._noticed else None,
            "crash_noticed_p99_s": round(percentile(self._noticed, 99), 2) if self._noticed else None,
            "crash_noticed_share": round(len(self._noticed) / witnesses, 4) if witnesses else None,
            "messages_per_node_s": round(messages / node_seconds, 3),
            "bytes_per_node_s": round(size / node_seconds, 1),
            "joined_s": joined,
            "trace_hash": world.trace_hash(),
        }

    def _join(self) -> float:
        world = self._world
        world.start(INTRODUCED)
        while not world.is_one():
            if world.now >= JOIN_SECONDS_MAX:
                raise AssertionError(f"not one membership after {world.now:.0f} s: {self._options.command()}")
            world.run(world.now + 1)
        joined = world.now
        world.run(joined + SETTLE_SECONDS)
        return joined

    def _stall(self, seconds: float) -> None:
        """Let time pass in which slow nodes stall. Each has its own chance, so that all kinds see the same stalls."""
        world, ends = self._world, self._world.now + seconds
        slow = [
            (node, derived(self._options.seed, "stalls", node.index)) for node in world.nodes if node.slow
        ]
        nexts = [(world.now + _pause(chance), node, chance) for node, chance in slow]
        while nexts:
            at, node, chance = min(nexts, key=lambda one: (one[0], one[1].index))
            if at >= ends:
                break
            world.run(at)
            node.stalled_until = at + chance.random() * self._options.stall
            nexts.remove((at, node, chance))
            nexts.append((node.stalled_until + _pause(chance), node, chance))
        world.run(ends)

    def _crash(self) -> None:
        world = self._world
        world.run(world.now + SETTLE_SECONDS)  # nobody stalls any more
        for node in self._doomed:
            node.alive = False
            self._crashed[node.key] = world.now
        world.run(world.now + CRASH_SECONDS)

    def _note(self, node: MemberNode, effect: ev.Effect) -> None:
        match effect:
            case ev.MemberSuspected(key) if self._counting:
                self._suspicions[self._is_slow(key)] += 1
            case ev.MemberWent(key) if self._counting:
                self._deaths[self._is_slow(key)] += 1
            case ev.MemberWent(key) if key in self._crashed:
                self._noticed.append(self._world.now - self._crashed[key])

    def _is_slow(self, key: bytes) -> bool:
        return self._world.nodes[self._world.numbers[key]].slow


def _pause(chance: random.Random) -> float:
    return chance.expovariate(1 / RUN_SECONDS)


def simulate_membership(
    options: MembershipOptions, *, progress: Progress = lambda line: None
) -> dict[str, Any]:
    """All kinds of settings, one after the other; ready for JSON. Times are virtual seconds but for `seconds`."""
    began = time.monotonic()
    found: dict[str, Any] = {}
    for name, settings in KINDS.items():
        found[name] = row = _Run(options.check(), settings).figures()
        progress(f"{name}: {row['false_suspicions_per_node_hour']} false suspicions per node-hour")
    return {
        **found,
        "node_hours": round(options.node_hours, 3),
        "nodes": options.nodes,
        "slow": options.slow,
        "loss": options.loss,
        "stall_s": options.stall,
        "seconds": round(time.monotonic() - began, 2),
        "command": options.command(),
    }
