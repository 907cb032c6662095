"""What must hold in every simulation, by name. The first that does not ends the run.

- `no_unverified_record`: what a get returns, and what an honest server stores, is what the owner signed, unexpired.
- `version_never_regresses`: a reader that says the version it saw last (`min_version`) is given that or a later one.
- `memory_per_peer_bounded`: tables, sessions, requests under way and stores of every honest node stay in their bounds.
- `messages_per_lookup_bounded`: no get asks more servers than its shortlist can hold.
- `healed_partitions_converge`: after a partition, and one refresh, every key reads as its newest version everywhere.
"""

from dataclasses import dataclass
from typing import Final

from ioc_node.core.dht import OPERATIONS_MAX
from ioc_node.core.events import GetReport, RecordStored
from ioc_node.core.exchange import REQUESTS_MAX
from ioc_node.core.lookup import SHORTLIST_MAX
from ioc_node.core.routing import FULL_TABLE_SERVERS_MAX
from ioc_node.core.sessions import SESSIONS_MAX
from ioc_node.core.storage import RECORDS_MAX
from ioc_node.errors import NodeError
from ioc_testnet.sim.options import SimOptions
from ioc_testnet.sim.population import UNIX, Published
from ioc_testnet.sim.world import SimNode
from ioc_wire.errors import WireError
from ioc_wire.records import verify_record
from ioc_wire.signed import Signed

INVARIANTS: Final = (
    "no_unverified_record",
    "version_never_regresses",
    "memory_per_peer_bounded",
    "messages_per_lookup_bounded",
    "healed_partitions_converge",
)


class InvariantBroken(NodeError):
    """Something that must hold did not; says which, the seed and the command that shows it again."""

    def __init__(self, name: str, what: str, options: SimOptions) -> None:
        super().__init__(f"invariant {name} broken: {what}; seed {options.seed}; replay: {options.command()}")
        self.name = name


@dataclass(frozen=True)
class Bounds:
    """The named bounds of one node, as the machine's rooms state them."""

    servers: int = FULL_TABLE_SERVERS_MAX
    sessions: int = SESSIONS_MAX
    requests: int = REQUESTS_MAX
    operations: int = OPERATIONS_MAX
    records: int = RECORDS_MAX
    asked: int = SHORTLIST_MAX


class Invariants:
    """The checks of one run."""

    def __init__(self, options: SimOptions, records: list[Published], bounds: Bounds) -> None:
        self._options = options
        self._by_key = {record.key: record for record in records}
        self._bounds = bounds
        self._verified: set[bytes] = set()
        self._seen: dict[tuple[int, bytes], int] = {}
        self.checked = dict.fromkeys(INVARIANTS, 0)

    def fail(self, name: str, what: str) -> InvariantBroken:
        return InvariantBroken(name, what, self._options)

    # -- records

    def on_stored(self, node: SimNode, effect: RecordStored, now: float) -> None:
        """An honest server says that it keeps a record."""
        if not node.kind:
            self._check_signed(effect.key, effect.record, node, "stored", now)

    def seen(self, node: SimNode, key: bytes) -> int:
        """The latest version that this reader knows of; 0 for none."""
        return self._seen.get((node.index, key), 0)

    def on_read(self, node: SimNode, key: bytes, asked_version: int, report: GetReport, now: float) -> int:
        """A get returned a record; return its version."""
        self._check_signed(key, report.record, node, "returned", now)
        version = report.resource.version
        self.checked["version_never_regresses"] += 1
        if version < asked_version:
            what = f"node {node.index} at {now:.3f} s knew version {asked_version} and was given {version}"
            raise self.fail("version_never_regresses", what)
        name = (node.index, key)
        self._seen[name] = max(version, self._seen.get(name, 0))
        return version

    def _check_signed(self, key: bytes, signed: Signed, node: SimNode, did: str, now: float) -> None:
        self.checked["no_unverified_record"] += 1
        name = signed.signature + key
        if name in self._verified:
            return
        published = self._by_key.get(key)
        fault = ""
        if published is None:
            fault = "nobody published that key"
        elif not any(signed == each for each in published.history):
            fault = "its owner never signed that"
        else:
            try:
                verify_record(signed, now=UNIX + now)
            except WireError as error:
                fault = str(error)
        if fault:
            raise self.fail(
                "no_unverified_record", f"node {node.index} {did} a record of {key.hex()[:16]}: {fault}"
            )
        self._verified.add(name)

    # -- bounds

    def on_asked(self, node: SimNode, asked: int) -> None:
        """A get ended after asking so many servers."""
        self.checked["messages_per_lookup_bounded"] += 1
        if asked > self._bounds.asked:
            what = f"node {node.index} asked {asked} servers in one get, at most {self._bounds.asked} may be"
            raise self.fail("messages_per_lookup_bounded", what)

    def check_memory(self, nodes: list[SimNode]) -> None:
        """Look at what every honest node holds."""
        bounds = self._bounds
        for node in nodes:
            if node.kind:
                continue
            self.checked["memory_per_peer_bounded"] += 1
            machine = node.machine
            for what, count, most in (
                ("servers in its table", len(machine.table), bounds.servers),
                ("sessions", len(machine.sessions), bounds.sessions),
                ("requests under way", len(machine.exchange), bounds.requests),
                ("operations", len(machine.operations), bounds.operations),
                ("records", len(machine.store), bounds.records),
            ):
                if count > most:
                    raise self.fail(
                        "memory_per_peer_bounded", f"node {node.index} has {count} {what} of {most}"
                    )
