"""One simulation from its first node to its figures.

The story: a network settles; every record is put by some honest node; then `churn` of the servers go off at once and
say nothing (they stay in everybody's tables, nobody replaces them, and malicious ones go off as often as honest ones);
`updates` of the records get a second version, put through the tables as they are now; then `trials` reads, each by a
random honest live node (a client, where there are any) of a random record, with the version that this reader saw
last as `min_version`. With `partition` the network is cut in two from the churn on, until the reads are done; then it
heals, publishers refresh once, and all has to be found everywhere.
"""

import random
import resource
import time
from collections.abc import Callable
from typing import Any, Final

from ioc_node.core.dht import DhtMachine
from ioc_node.core.events import GetReport, GetStarted, JoinStarted, PingStarted, PutReport, PutStarted
from ioc_node.core.operations import Search
from ioc_node.core.routing import FULL_TABLE_SERVERS_MAX, Contact
from ioc_testnet.sim import population
from ioc_testnet.sim.invariants import Bounds, Invariants
from ioc_testnet.sim.latency import read_latency
from ioc_testnet.sim.malice import MACHINES, collude, flood
from ioc_testnet.sim.options import MIXED, SimOptions
from ioc_testnet.sim.population import Oracle, Published, derived
from ioc_testnet.sim.world import Faults, SimNode, World
from ioc_wire import limits

PUT_SPACING_SECONDS: Final = 0.05
READ_SPACING_SECONDS: Final = 0.02
JOIN_SPACING_SECONDS: Final = 0.05
JOIN_ADDRESSES: Final = 3
SETTLE_SECONDS: Final = 10.0
OPERATION_SECONDS_MAX: Final = 120.0
"""An operation that takes longer in virtual time is a bug."""
PARTITION_SECONDS: Final = 60.0
HEAL_SECONDS: Final = 300.0
CONVERGENCE_READS_MAX: Final = 4000

Progress = Callable[[str], None]


class Simulation:
    """Made from options; `run` returns the figures. `machine` is the class of the honest nodes."""

    def __init__(
        self,
        options: SimOptions,
        *,
        machine: type[DhtMachine] = DhtMachine,
        bounds: Bounds | None = None,
        progress: Progress = lambda line: None,
    ) -> None:
        self.options = options.check()
        self.latency = read_latency(options.latency)
        self.records = population.make_records(options.seed, 1 if options.sybils else options.records)
        self.invariants = Invariants(options, self.records, bounds or Bounds())
        faults = Faults(options.loss, options.duplicate, options.reorder)
        self.world = World(self.latency, faults, derived(options.seed, "wire"))
        self.world.on_stored = self.invariants.on_stored
        self.readings = Readings()
        self._machine = machine
        self._progress = progress
        self._chance = derived(options.seed, "scenario")
        self._servers: list[SimNode] = []
        self._readers: list[SimNode] = []
        self._oracle: Oracle

    def run(self) -> dict[str, Any]:
        """Run it. Raises `InvariantBroken`."""
        began = time.perf_counter()
        options, world = self.options, self.world
        self._build()
        self._say(f"{len(world.nodes)} nodes are up ({options.start} start)")
        self._put(self.records, measured=not options.churn and not options.updates)
        self._strike()
        count = round(options.updates * len(self.records))
        if count or options.churn:
            # What was put before may stand on servers that are gone now: recall is of what is put after that.
            self._put(self._chance.sample(self.records, max(1, count)), measured=True)
        self._measure_recall()
        mark = world.datagrams
        self._read()
        self.readings.datagrams = world.datagrams - mark
        if options.partition:
            self._heal()
        self.invariants.check_memory(world.nodes)
        return self._figures(time.perf_counter() - began)

    # -- the network

    def _build(self) -> None:
        options, seed = self.options, self.options.seed
        addresses = population.open_addresses()
        bad = round(options.malicious * options.nodes)
        kinds = [""] * (options.nodes - bad)
        kinds += [
            MIXED[index % len(MIXED)] if options.kind == "mixed" else options.kind for index in range(bad)
        ]
        derived(seed, "kinds").shuffle(kinds)
        plan = [(population.key_of(derived(seed, "node", index)), next(addresses), kind, True)
                for index, kind in enumerate(kinds)]  # fmt: skip
        if options.sybils:
            keys = population.sybil_keys(seed, self.records[0].key, options.sybils, options.nodes)
            places = population.sybil_addresses(options.sybils, options.groups)
            plan += [(key, address, "sybil", True) for key, address in zip(keys, places, strict=True)]
        plan += [(population.key_of(derived(seed, "client", index)), next(addresses), "", False)
                 for index in range(options.clients)]  # fmt: skip
        self.latency.place(len(plan), derived(seed, "places"))
        skews = derived(seed, "skew")
        for index, (key, address, kind, server) in enumerate(plan):
            machine = population.make_machine(
                MACHINES[kind] if kind else self._machine, key, address, derived(seed, "machine", index),
                server=server, skew=options.skew * (2 * skews.random() - 1), servers=options.nodes + options.sybils,
                diverse=options.diverse,
            )  # fmt: skip
            self.world.add(machine, address, kind)
        nodes = self.world.nodes
        self._servers = [node for node in nodes if node.machine.server]
        self._readers = [node for node in nodes if not node.machine.server] or self._servers
        self._oracle = Oracle([node.machine.contact for node in self._servers])
        collude([node for node in nodes if node.kind])
        if options.start == "warm":
            self._warm()
        else:
            self._join()

    def _warm(self) -> None:
        """Fill the tables. Where they are full ones each node is left to find the last server itself, and reads a
        whole table on that occasion, after which it knows that it has a full view.
        """
        chance = derived(self.options.seed, "warm")
        whole = len(self._servers) <= FULL_TABLE_SERVERS_MAX
        for node in self.world.nodes:
            self._oracle.warm(node.machine, chance)
            if whole:
                left_out = self._server_other_than(node, chance)
                node.machine.table.remove(left_out.node_id)
                self._later(JOIN_SPACING_SECONDS / 10 * node.index, self._ping, node, left_out)
        if whole:
            self.world.run(JOIN_SPACING_SECONDS / 10 * len(self.world.nodes) + SETTLE_SECONDS)

    def _ping(self, node: SimNode, contact: Contact) -> None:
        self.world.start(node, lambda n: PingStarted(n, contact.address, contact.node_id), _ignore)

    def _server_other_than(self, node: SimNode, chance: random.Random) -> Contact:
        while True:
            contact = self._servers[chance.randrange(len(self._servers))].machine.contact
            if contact.node_id != node.machine.node_id:
                return contact

    def _join(self) -> None:
        """Everybody joins through the protocol, one after the other, by up to three that were there before."""
        chance = derived(self.options.seed, "join")
        for node in self.world.nodes[1:]:
            before = self._servers[: min(node.index, len(self._servers))]
            addresses = tuple(
                each.address for each in chance.sample(before, min(JOIN_ADDRESSES, len(before)))
            )
            self._later(JOIN_SPACING_SECONDS * node.index, self._begin_join, node, addresses)
        self.world.run(JOIN_SPACING_SECONDS * len(self.world.nodes) + 6 * SETTLE_SECONDS)

    def _begin_join(self, node: SimNode, addresses: tuple[tuple[str, int], ...]) -> None:
        self.world.start(node, lambda number: JoinStarted(number, addresses), _ignore)

    def _strike(self) -> None:
        """Churn, the partition and the floods begin."""
        options, world = self.options, self.world
        for node in self._chance.sample(self._servers, round(options.churn * len(self._servers))):
            node.alive = False
        if options.partition:
            for node in self._chance.sample(world.nodes, round(options.partition * len(world.nodes))):
                node.side = 1
            world.faults.parted = True
        victims = [node for node in world.nodes if not node.kind]
        until = world.now + options.trials * READ_SPACING_SECONDS + 2 * SETTLE_SECONDS
        for node in world.nodes:
            if node.kind == "flooding":
                flood(world, node, victims, derived(options.seed, "flood", node.index), until)

    def _honest(self, nodes: list[SimNode]) -> list[SimNode]:
        return [node for node in nodes if node.alive and not node.kind]

    # -- what is done

    def _put(self, records: list[Published], *, measured: bool) -> None:
        writers = self._honest(self.world.nodes)
        for index, record in enumerate(records):
            writer = writers[self._chance.randrange(len(writers))]
            self._later(PUT_SPACING_SECONDS * index, self._begin_put, writer, record, False)
            if measured:
                self.readings.put.append(record)
        self._finish("puts", PUT_SPACING_SECONDS * len(records))

    def _begin_put(self, writer: SimNode, record: Published, refresh: bool) -> None:
        signed = record.sign_next(self.world.now, refresh=refresh)
        self.readings.open += 1
        self.world.start(writer, lambda number: PutStarted(number, signed, ()), self._on_put)

    def _on_put(self, result: object, now: float) -> None:
        self.readings.open -= 1
        self.readings.puts += 1
        self.readings.stored += len(result.stored) if isinstance(result, PutReport) else 0

    def _measure_recall(self) -> None:
        """Of the k nearest live servers of each key, those that are honest: what share of them holds the record?"""
        shares: list[float] = []
        for record in self.readings.put:
            near: list[SimNode] = []
            for contact in self._oracle.nearest(record.key, len(self._servers)):
                node = self.world.at(contact.address)
                if node is not None and node.alive and (not near or node.side == near[0].side):
                    near.append(node)
                if len(near) == limits.REPLICATION:
                    break
            honest = [node for node in near if not node.kind]
            holding = [self._holds(node, record) for node in honest]
            if holding:
                shares.append(sum(holding) / len(holding))
        self.readings.recall = sum(shares) / len(shares) if shares else 0.0

    def _holds(self, node: SimNode, record: Published) -> bool:
        held = node.machine.store.get(record.key, node.machine.unix(self.world.now))
        return held is not None and held.order[0] == record.version

    def _read(self) -> None:
        readers = self._honest(self._readers)
        for index in range(self.options.trials):
            reader = readers[self._chance.randrange(len(readers))]
            record = self.records[self._chance.randrange(len(self.records))]
            self._later(
                READ_SPACING_SECONDS * index, self._begin_read, reader, record, self.readings.on_trial
            )
            if index % 1000 == 999:
                self._later(READ_SPACING_SECONDS * index, self._say, f"{index + 1} reads begun")
        self._finish("reads", READ_SPACING_SECONDS * self.options.trials)

    def _begin_read(self, node: SimNode, record: Published, report: "OnTrial", *, answers: int = 0) -> None:
        known = self.invariants.seen(node, record.key)
        self.readings.open += 1
        if report == self.readings.on_trial:
            self.readings.ideal.append(self._one_hop(node, record))
        asked = _Asked()

        def ended(result: object, now: float) -> None:
            self.readings.open -= 1
            version = 0
            if isinstance(result, GetReport):
                version = self.invariants.on_read(node, record.key, known, result, now)
            count = asked.count(result)
            self.invariants.on_asked(node, count)
            report(node, record, version, result, count)

        number = self.world.start(
            node, lambda number: GetStarted(number, record.cid, known, answers or self.options.answers), ended
        )
        asked.operation = node.machine.operations.get(number)

    def _one_hop(self, node: SimNode, record: Published) -> float:
        """The round trip to the quickest live honest server among the k nearest of the key, in seconds: what a read
        would take if the reader knew that server and had a session with it.
        """
        ways = [0.0] if self._holds(node, record) else []
        for contact in self._oracle.nearest(record.key, limits.REPLICATION):
            there = self.world.at(contact.address)
            if there is not None and there is not node and there.alive and not there.kind:
                latency = self.latency
                ways.append(
                    latency.one_way(node.index, there.index) + latency.one_way(there.index, node.index)
                )
        return min(ways, default=0.0)

    def _heal(self) -> None:
        """Mend the wires, let everybody refresh once, and read everything from everywhere."""
        world = self.world
        world.run(max(world.now, PARTITION_SECONDS))
        world.faults.parted = False
        self._say("the partition heals")
        world.run(world.now + HEAL_SECONDS)
        writers = self._honest(world.nodes)
        for index, record in enumerate(self.records):
            writer = writers[self._chance.randrange(len(writers))]
            self._later(PUT_SPACING_SECONDS * index, self._begin_put, writer, record, True)
        self._finish("refreshes", PUT_SPACING_SECONDS * len(self.records))
        each = max(2, CONVERGENCE_READS_MAX // len(self.records))
        for index, record in enumerate(self.records):
            readers = self._chance.sample(writers, min(each, len(writers)))
            for reader in readers:
                self._later(
                    READ_SPACING_SECONDS * index, self._begin_read, reader, record, self._on_converged
                )
        self._finish("reads after healing", READ_SPACING_SECONDS * len(self.records))

    def _on_converged(
        self, node: SimNode, record: Published, version: int, result: object, asked: int
    ) -> None:
        self.invariants.checked["healed_partitions_converge"] += 1
        if version != record.version:
            what = (
                f"node {node.index} (side {node.side}) found version {version} of {record.key.hex()[:16]}, "
                f"{record.version} is the newest"
            )
            raise self.invariants.fail("healed_partitions_converge", what)

    def _later(self, seconds: float, call: Callable[..., None], *args: Any) -> None:
        self.world.call_at(self.world.now + seconds, lambda: call(*args))

    def _finish(self, what: str, seconds: float) -> None:
        """Run until all that was begun has ended, and a little longer."""
        world, readings = self.world, self.readings
        world.run(world.now + seconds)
        if not world.run(world.now + OPERATION_SECONDS_MAX, lambda: not readings.open):
            raise AssertionError(f"{readings.open} {what} did not end: replay with {self.options.command()}")
        world.run(world.now + SETTLE_SECONDS)
        self.invariants.check_memory(world.nodes)
        self._say(f"{what} done at {world.now:.0f} s of virtual time, {world.datagrams} datagrams so far")

    def _say(self, line: str) -> None:
        self._progress(line)

    # -- the figures

    def _figures(self, seconds: float) -> dict[str, Any]:
        options, readings, world = self.options, self.readings, self.world
        trials = max(1, readings.trials)
        return {
            "success": round(readings.successes / trials, 6),
            "replica_recall": round(readings.recall, 6),
            "hops_p50": percentile(readings.hops, 50),
            "hops_p99": percentile(readings.hops, 99),
            "messages_per_lookup": round(sum(readings.asked) / trials, 3),
            "latency_p50_ms": round(percentile(readings.seconds, 50) * 1000, 3),
            "latency_p99_ms": round(percentile(readings.seconds, 99) * 1000, 3),
            "one_hop_p50_ms": round(percentile(readings.ideal, 50) * 1000, 3),
            "one_hop_p99_ms": round(percentile(readings.ideal, 99) * 1000, 3),
            "bytes_per_node": round(world.datagram_bytes / len(world.nodes)),
            "seconds": round(seconds, 3),
            "memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            "trace_hash": world.trace_hash(),
            "newest": round(readings.newest / max(1, readings.successes), 6),
            "messages_per_lookup_max": max(readings.asked, default=0),
            "datagrams_per_lookup": round(readings.datagrams / trials, 3),
            "stored_per_put": round(readings.stored / max(1, readings.puts), 3),
            "datagrams": world.datagrams,
            "events": world.events,
            "virtual_seconds": round(world.now, 3),
            "rejected": sum(node.machine.rejected for node in world.nodes if not node.kind),
            "faults": dict(sorted(readings.faults.items())),
            "invariants": self.invariants.checked,
            **{name: getattr(options, name) for name in options.__dataclass_fields__},
            "command": options.command(),
        }


OnTrial = Callable[[SimNode, Published, int, object, int], None]


class Readings:
    """What was counted on the way."""

    def __init__(self) -> None:
        self.open = self.trials = self.successes = self.newest = 0
        self.puts = self.stored = self.datagrams = 0
        self.recall = 0.0
        self.put: list[Published] = []
        self.hops: list[float] = []
        self.asked: list[int] = []
        self.seconds: list[float] = []
        self.ideal: list[float] = []
        self.faults: dict[str, int] = {}

    def on_trial(self, node: SimNode, record: Published, version: int, result: object, asked: int) -> None:
        """One read ended."""
        self.trials += 1
        self.asked.append(asked)
        if isinstance(result, GetReport):
            self.successes += 1
            self.newest += version == record.version
            self.hops.append(result.hops)
            self.seconds.append(result.seconds)
        else:
            name = type(result).__name__
            self.faults[name] = self.faults.get(name, 0) + 1


class _Asked:
    """Counts whom a get asked, also when it found nothing."""

    def __init__(self) -> None:
        self.operation: object = None

    def count(self, result: object) -> int:
        operation = self.operation
        if isinstance(operation, Search) and "lookup" in vars(operation):
            return operation.lookup.asked()
        return result.queried if isinstance(result, GetReport) else 0


def percentile(values: list[float], share: int) -> float:
    """Nearest rank; 0 for nothing."""
    ranked = sorted(values)
    return ranked[max(0, -(-share * len(ranked) // 100) - 1)] if ranked else 0.0


def _ignore(result: object, now: float) -> None:
    """Whatever came of it."""
