"""How quickly heads and status reach all core nodes: silent ones among them, a partition, all restarted at once.

Everything follows from the seed: who is silent, who is on which side, which provider changes at which home node.
"""

import random
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Final

from ioc_node.core import gossip_events as ev
from ioc_node.core.catalogue import Catalogue
from ioc_node.core.gossip import COMPARE_SECONDS, Gossip
from ioc_node.core.own_catalogue import OwnCatalogue
from ioc_node.core.trust import Trust
from ioc_node.errors import UsageError
from ioc_testnet.sim.gossip_world import GossipNode, GossipWorld, unix
from ioc_testnet.sim.latency import read_latency
from ioc_testnet.sim.options import LATENCY_DEFAULT
from ioc_testnet.sim.population import NETWORK, UNIX, derived, key_of
from ioc_testnet.sim.simulation import Progress, percentile
from ioc_wire.cid import self_certified_prefix
from ioc_wire.gossip import HeadNews
from ioc_wire.market import Contact
from ioc_wire.records import Cpu, Place, ResourceRecord, StatusRow
from ioc_wire.signed import Signed, public_bytes, sign

NODES_MAX: Final = 2000
JOIN_SECONDS: Final = 0.1
KNOWN_AT_FIRST: Final = 3
"""Earlier core nodes that a new one knows."""
REMEMBERED: Final = 8
"""Core nodes that a restarted one remembers."""
SETTLE_SECONDS: Final = 60.0
CHANGE_SECONDS: Final = 1.0
HEAL_SECONDS_MAX: Final = 600.0
GOAL_SECONDS: Final = 2.0
"""Within so long 99 % of the core nodes that speak are to have a head."""


@dataclass(frozen=True)
class GossipOptions:
    """One run. `silent` is a share, `latency` a file or `constant[:ms]` (round trip). Without `tree` no node finds
    neighbours: where there are too many for a full mesh, each tells ten at random."""

    nodes: int = 50
    silent: float = 0.2
    partition_seconds: float = 600.0
    providers: int = 20
    changes: int = 60
    latency: str = LATENCY_DEFAULT
    tree: bool = True
    seed: int = 1

    def check(self) -> "GossipOptions":
        """Return these options if they can be meant; raises `UsageError`."""
        bounds = {"nodes": (2, NODES_MAX), "silent": (0, 0.9), "partition_seconds": (0, 7200), "providers": (1, 1000),
                  "changes": (1, 100_000)}  # fmt: skip
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(f"--{name.replace('_', '-')} {value:g}: must be from {low:g} to {high:g}")
        if self.nodes - round(self.silent * self.nodes) < 2:
            raise UsageError("fewer than two core nodes would speak")
        return self

    def command(self) -> str:
        """The exact command of this run: only what differs from the defaults, and always nodes and seed."""
        words = ["ioc-testnet sim gossip"]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "tree":
                words += [] if value else ["--no-tree"]
            elif value != field.default or field.name in ("nodes", "seed"):
                shown = f"{value:g}" if isinstance(value, float) else value
                words.append(f"--{field.name.replace('_', '-')} {shown}")
        return " ".join(words)


class _Provider:
    """A provider and its home core node."""

    def __init__(self, chance: random.Random, home: GossipNode) -> None:
        self._key = key_of(chance)
        self.public = public_bytes(self._key)
        self.own = OwnCatalogue(self._key)
        self.home = home
        self._version = 0

    def change(self, now: float) -> tuple[HeadNews, tuple[bytes, ...]]:
        """One record anew: the head, and all entries."""
        self._version += 1
        issued = int(unix(now))
        record = ResourceRecord(
            cid=f"ioc:{self_certified_prefix(self.public)}/gen/0/az1/h{self._version % 4}",
            version=self._version,
            issued=issued,
            expires=issued + 86400,
            type="node",
            place=Place("cn", "0", "az1"),
            cpu=Cpu("x86_64", "simulated", 8, 16),
            memory_mib=1024,
        )
        self.own.put(sign(self._key, record), unix=unix(now))
        self.own.commit(unix=unix(now))
        assert self.own.head is not None
        return HeadNews(self.own.head, (), None), self.own.entries_after(0)

    def status(self, now: float) -> Signed:
        return self.own.sign_status([StatusRow(0, 1000, 1)], unix=unix(now))[0]


class _Spread:
    """When each head and status was told, and when each node had it."""

    def __init__(self) -> None:
        self.told: dict[tuple[bytes, str, int], float] = {}
        self.reached: dict[tuple[bytes, str, int], dict[int, float]] = {}

    def tell(self, provider: bytes, what: str, seq: int, now: float) -> None:
        self.told[provider, what, seq] = now
        self.reached[provider, what, seq] = {}

    def note(self, node: int, provider: bytes, what: str, seq: int, now: float) -> None:
        reached = self.reached.get((provider, what, seq))
        if reached is not None:
            reached.setdefault(node, now)

    def seconds(self, what: str, nodes: int) -> tuple[list[float], list[float]]:
        """Of each that was told: until 99 % of `nodes` had it (600 where they never did); and all delays."""
        until, delays = [], []
        need = max(1, -(-99 * nodes // 100))
        for name, at in self.told.items():
            if name[1] != what:
                continue
            passed = sorted(reached - at for reached in self.reached[name].values())
            until.append(passed[need - 1] if len(passed) >= need else HEAL_SECONDS_MAX)
            delays += passed
        return until, delays

    def reached_share(self, what: str, nodes: int) -> float:
        """Of all that was told: how many of `nodes` got it in the end."""
        counts = [len(reached) for name, reached in self.reached.items() if name[1] == what]
        return sum(counts) / len(counts) / nodes if counts else 1.0


def components(edges: Mapping[int, Iterable[int]]) -> list[set[int]]:
    """In which parts a graph falls; edges to what is no node of it don't count."""
    unseen, found = set(edges), []
    while unseen:
        part, left = set(), [unseen.pop()]
        while left:
            part.add(one := left.pop())
            more = unseen.intersection(edges[one])
            unseen -= more
            left += more
        found.append(part)
    return found


class GossipSimulation:
    """One run of `options`."""

    def __init__(self, options: GossipOptions, *, progress: Progress = lambda line: None) -> None:
        self.options = options.check()
        self._progress = progress
        self._chance = derived(options.seed, "gossip")
        latency = read_latency(options.latency)
        latency.place(options.nodes, derived(options.seed, "places"))
        self.world = GossipWorld(latency)
        self.world.tree = options.tree
        self.world.on_effect = self._on_effect
        self._spread = _Spread()
        for index in range(options.nodes):
            key = public_bytes(key_of(derived(options.seed, "core", index)))
            contact = Contact(key, f"10.{index >> 8}.{index & 255}.1", 4000)
            self.world.add(self._machine(key, "machine", index), contact)
        homes = self._chance.sample(self.world.nodes, min(options.providers, options.nodes))
        self.providers = [
            _Provider(derived(options.seed, "provider", number), homes[number % len(homes)])
            for number in range(options.providers)
        ]

    def _machine(self, key: bytes, *name: object, catalogue: Catalogue | None = None) -> Gossip:
        trust = Trust(network_id=NETWORK, admission="open", roots=())
        held = catalogue or Catalogue(trust)
        return Gossip(key, held, derived(self.options.seed, *name), unix_offset=UNIX)

    @property
    def speaking(self) -> list[GossipNode]:
        return [node for node in self.world.nodes if not node.silent]

    def run(self) -> dict[str, Any]:
        """All of it; the figures, ready for JSON. Times are virtual seconds but for `seconds`."""
        began = time.monotonic()
        formed = self._form()
        self._silence()
        before = self.world.message_bytes, self.world.now
        sent, copies = self._measure()
        traffic = (self.world.message_bytes - before[0]) / len(self.world.nodes)
        traffic_seconds = self.world.now - before[1]
        tree = self._tree()
        healed = self._part_and_heal() if self.options.partition_seconds else 0.0
        restarted = self._restart()
        speaking = len(self.speaking)
        heads, _ = self._spread.seconds("head", speaking)
        statuses, _ = self._spread.seconds("status", speaking)
        return {
            "head_99_p50_s": round(percentile(heads, 50), 4),
            "head_99_p99_s": round(percentile(heads, 99), 4),
            "status_99_p99_s": round(percentile(statuses, 99), 4),
            "within_2s_share": round(sum(each <= GOAL_SECONDS for each in heads) / len(heads), 6),
            "reached_share": round(self._spread.reached_share("head", speaking), 6),
            "copies_per_head": round(copies, 3),
            "sent_per_head": round(sent, 3),
            "bytes_per_node_s": round(traffic / traffic_seconds),
            "formed_s": round(formed, 3),
            "healed_s": round(healed, 3),
            "restarted_s": round(restarted, 3),
            "compare_s": COMPARE_SECONDS,
            "links_per_node": round(sum(len(node.links) for node in self.world.nodes) / len(self.world.nodes), 2),
            **tree,
            "messages": self.world.messages,
            "bytes_per_node": round(self.world.message_bytes / len(self.world.nodes)),
            "virtual_seconds": round(self.world.now, 3),
            "seconds": round(time.monotonic() - began, 2),
            "trace_hash": self.world.trace_hash(),
            "command": self.options.command(),
        }  # fmt: skip

    # -- what happens

    def _form(self) -> float:
        """Core nodes start one after the other, knowing some that came before, and every provider publishes once.
        How long after the last start all hold the same."""
        world = self.world
        for node in world.nodes:
            earlier = self._chance.sample(world.nodes[: node.index], min(KNOWN_AT_FIRST, node.index))
            world.call_at(JOIN_SECONDS * node.index, partial(self._start, node, earlier))
        last = JOIN_SECONDS * len(world.nodes)
        world.run(last)
        for provider in self.providers:
            self._change(provider)
        took = self._until_one(last)
        world.run(last + SETTLE_SECONDS)
        self._progress(f"{len(world.nodes)} core nodes are one network after {took:.1f} s")
        return took

    def _start(self, node: GossipNode, known: list[GossipNode]) -> None:
        for other in known:
            self.world.feed(node, ev.ContactKnown(other.contact))
        self.world.feed(node, ev.Tick())

    def _silence(self) -> None:
        homes = {provider.home.index for provider in self.providers}
        others = [node for node in self.world.nodes if node.index not in homes]
        silent = round(self.options.silent * len(self.world.nodes))
        if silent > len(others):  # fewer homes then, so that nobody's home is silent
            kept = [node for node in self.world.nodes if node.index in homes][
                : len(self.world.nodes) - silent
            ]
            for number, provider in enumerate(self.providers):
                provider.home = kept[number % len(kept)]
            others = [node for node in self.world.nodes if node not in kept]
        for node in self._chance.sample(others, silent):
            node.silent = True

    def _measure(self) -> tuple[float, float]:
        """Providers change one after the other. How often a head was sent per node, and how often it came to each node
        that speaks."""
        world = self.world
        before = world.heads_told, world.heads_heard
        for number in range(self.options.changes):
            provider = self.providers[self._chance.randrange(len(self.providers))]
            seq = self._change(provider)
            self._spread.tell(provider.public, "head", seq, world.now)
            self._note(provider.home, provider.public, "head")
            world.run(world.now + CHANGE_SECONDS * (0.5 + self._chance.random() / 2))
            self._tell_status(provider)
            world.run(world.now + CHANGE_SECONDS * (0.5 + self._chance.random() / 2))
            if number % 100 == 99:
                self._progress(f"{number + 1} changes")
        told, heard = world.heads_told - before[0], world.heads_heard - before[1]
        world.run(world.now + 2 * COMPARE_SECONDS)
        changes = self.options.changes
        return told / changes / (len(world.nodes) - 1), heard / changes / (len(self.speaking) - 1)

    def _tree(self) -> dict[str, float]:
        """What the nodes that speak know of others: neighbours, core nodes in their books, and in how many parts the
        tree would fall if it were made of these neighbours only."""
        speaking = self.speaking
        found = {node.index: [self.world.number(key) for key in node.machine.neighbours] for node in speaking}
        parts = len(components(found))
        count = len(speaking)
        return {
            "neighbours_per_node": round(sum(map(len, found.values())) / count, 2),
            "neighbours_silent": sum(
                self.world.nodes[other].silent for others in found.values() for other in others
            ),
            "tree_parts": parts if any(found.values()) else 0,
            "known_per_node": round(sum(node.machine.known for node in speaking) / count, 1),
        }

    def _part_and_heal(self) -> float:
        world = self.world
        for node in self._chance.sample(world.nodes, len(world.nodes) // 2):
            node.side = 1
        world.part()
        until = world.now + self.options.partition_seconds
        for provider in self.providers:
            world.run(world.now + self.options.partition_seconds / (len(self.providers) + 1))
            self._change(provider)
        world.run(until)
        world.parted = False
        took = self._until_one(world.now)
        self._progress(
            f"after {self.options.partition_seconds:.0f} s apart all were the same again in {took:.1f} s"
        )
        world.run(world.now + SETTLE_SECONDS)
        return took

    def _restart(self) -> float:
        """All at once, with a catalogue each and a few remembered contacts; something changes before they find each
        other."""
        world = self.world
        for node in world.nodes:
            for index in sorted(node.links):
                world.unlink(node, world.nodes[index])
        for node in world.nodes:
            catalogue = node.machine.catalogue
            node.machine = self._machine(node.key, "again", node.index, catalogue=catalogue)
        for provider in self.providers:
            self._change(provider)
        began = world.now
        for node in world.nodes:
            others = [other for other in world.nodes if other is not node]
            self._start(node, self._chance.sample(others, min(REMEMBERED, len(others))))
        took = self._until_one(began)
        self._progress(f"all restarted at once: one network again after {took:.1f} s")
        return took

    def _until_one(self, began: float) -> float:
        """Run until those that speak are one network and hold the same."""
        while self.world.now < began + HEAL_SECONDS_MAX:
            self.world.run(self.world.now + 0.1)
            if len({node.machine.catalogue.digest() for node in self.speaking}) == 1 and self._is_connected():
                return self.world.now - began
        raise AssertionError(
            f"not one network after {HEAL_SECONDS_MAX:.0f} s: replay with {self.options.command()}"
        )

    def _is_connected(self) -> bool:
        return len(components({node.index: node.links for node in self.speaking})) == 1

    # -- providers

    def _change(self, provider: _Provider) -> int:
        news, entries = provider.change(self.world.now)
        self.world.feed(provider.home, ev.NewsReceived(None, (news,)))
        self.world.feed(provider.home, ev.EntriesFetched(None, provider.public, 0, news.head, entries))
        return provider.own.seq

    def _tell_status(self, provider: _Provider) -> None:
        batch = provider.status(self.world.now)
        self.world.feed(provider.home, ev.StatusReceived(None, (batch,)))
        replica = provider.home.machine.catalogue.replica(provider.public)
        assert replica is not None
        self._spread.tell(provider.public, "status", replica.status_seq, self.world.now)
        self._note(provider.home, provider.public, "status")

    def _on_effect(self, node: GossipNode, effect: ev.Effect) -> None:
        match effect:
            case ev.Persist(provider):
                self._note(node, provider, "head")
            case ev.StatusChanged(provider, _):
                self._note(node, provider, "status")

    def _note(self, node: GossipNode, provider: bytes, what: str) -> None:
        replica = node.machine.catalogue.replica(provider)
        if replica is not None and not node.silent:
            seq = replica.held_seq if what == "head" else replica.status_seq
            self._spread.note(node.index, provider, what, seq, self.world.now)
