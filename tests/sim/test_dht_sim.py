"""The simulator: the same seed gives the same run, every fault and every attack does what it says, and every invariant
fails on a machine that breaks it."""

import json
import os
import subprocess
import sys
from typing import Any, cast

import pytest

from ioc_node.core.dht import DhtMachine
from ioc_node.core.events import Effect, Event, GetStarted
from ioc_node.core.getting import GetOperation
from ioc_node.core.operations import Operation
from ioc_node.errors import UsageError
from ioc_testnet.cli import main
from ioc_testnet.sim.invariants import Bounds, InvariantBroken
from ioc_testnet.sim.malice import StaleMachine
from ioc_testnet.sim.options import KINDS, SimOptions, parse_malicious
from ioc_testnet.sim.simulation import Simulation, percentile
from ioc_wire.codec import decode
from ioc_wire.records import ResourceRecord

KEYS = {
    "success", "replica_recall", "hops_p50", "hops_p99", "messages_per_lookup", "latency_p50_ms", "latency_p99_ms",
    "bytes_per_node", "seconds", "memory_mb", "trace_hash",
}  # fmt: skip


def run(
    machine: type[DhtMachine] = DhtMachine, bounds: Bounds | None = None, **changes: Any
) -> dict[str, Any]:
    options = SimOptions(**{**{"nodes": 30, "records": 10, "trials": 40}, **changes})
    return Simulation(options, machine=machine, bounds=bounds).run()


# -- determinism


def test_one_seed_gives_one_run() -> None:
    changes = {"loss": 0.1, "duplicate": 0.1, "reorder": 0.2, "churn": 0.2, "malicious": 0.2}
    first, again, other = run(**changes), run(**changes), run(**changes, seed=2)
    assert first["trace_hash"] == again["trace_hash"] != other["trace_hash"]
    for key in ("seconds", "memory_mb"):
        del first[key], again[key]
    assert first == again


def test_the_trace_does_not_depend_on_the_process() -> None:
    words = [sys.executable, "-m", "ioc_testnet.cli", "sim", "dht", "--nodes", "20", "--trials", "20",
             "--records", "5", "--malicious", "0.2", "--loss", "0.1", "--json"]  # fmt: skip
    seen = set()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        seen.add(json.loads(done.stdout.splitlines()[-1])["trace_hash"])
    assert len(seen) == 1


# -- a healthy network, and faults


@pytest.mark.parametrize("start", ["warm", "joined"])
def test_a_healthy_network_finds_everything(start: str) -> None:
    figures = run(start=start)
    assert figures["success"] == figures["newest"] == figures["replica_recall"] == 1.0
    assert figures["stored_per_put"] == 20
    assert figures["hops_p99"] == 1
    assert figures["start"] == start


def test_clients_read_and_are_in_no_table() -> None:
    simulation = Simulation(SimOptions(nodes=25, clients=5, records=5, trials=30))
    assert simulation.run()["success"] == 1.0
    clients = [node.machine.node_id for node in simulation.world.nodes if not node.machine.server]
    assert len(clients) == 5
    assert not any(client in node.machine.table for node in simulation.world.nodes for client in clients)


def test_loss_is_repaired_by_repetition() -> None:
    clean, lossy = run(), run(loss=0.1)
    assert lossy["success"] == 1.0
    assert lossy["datagrams"] > clean["datagrams"]
    assert lossy["latency_p99_ms"] > clean["latency_p99_ms"]


def test_duplicates_are_delivered() -> None:
    simulation = Simulation(SimOptions(nodes=30, records=10, trials=40, duplicate=0.5))
    assert simulation.run()["success"] == 1.0
    assert sum(node.machine.sessions.counters.replayed for node in simulation.world.nodes) > 0
    received = sum(node.received for node in simulation.world.nodes)
    assert received > 1.3 * sum(node.sent for node in simulation.world.nodes)


def test_reordering_delays() -> None:
    assert run(reorder=0.8, clients=10)["latency_p50_ms"] > run(clients=10)["latency_p50_ms"]


def test_clocks_may_be_five_minutes_wrong_and_not_hours() -> None:
    assert run(skew=290)["success"] == 1.0
    assert run(skew=40_000)["success"] < 1.0


def test_the_dead_stay_in_the_tables() -> None:
    figures = run(churn=0.4, nodes=60)
    assert figures["success"] == 1.0
    assert figures["latency_p99_ms"] > run(nodes=60)["latency_p99_ms"]


def test_dead_replica_holders_are_replaced_after_the_put_was_reported() -> None:
    assert run(churn=0.4, nodes=80, records=15, updates=1.0, trials=1)["replica_recall"] >= 0.95


def test_a_partition_heals() -> None:
    figures = run(partition=0.3, records=4, nodes=30, trials=30)
    assert figures["invariants"]["healed_partitions_converge"] > 0
    assert figures["newest"] < 1.0, "during the partition one side cannot see what was put on the other"


# -- attacks


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_malicious_do_no_harm(kind: str) -> None:
    share, parsed = parse_malicious(f"{kind}:0.2", None)
    figures = run(malicious=share, kind=parsed, records=5, trials=15)
    assert figures["success"] == 1.0


def test_forgeries_are_rejected() -> None:
    assert run(malicious=0.5, kind="forging", nodes=40)["rejected"] > 0


def test_stale_servers_do_not_fool_who_knows_better() -> None:
    figures = run(malicious=0.5, kind="stale", nodes=40, updates=1.0, trials=200)
    assert figures["success"] == 1.0
    assert figures["newest"] < 1.0


def test_sybils_of_many_groups_win_and_of_few_do_not() -> None:
    few = run(sybils=24, groups=4, nodes=30, trials=10)
    many = run(sybils=24, groups=24, nodes=30, trials=10)
    assert few["success"] == 1.0
    assert many["success"] == 0.0


# -- invariants


class Credulous(DhtMachine):
    """Believes every record."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        honest = self.trust.check_record

        def believe(signed: Any, chain: bytes | None, *, unix: float) -> Any:
            record = decode(signed.payload, ResourceRecord)
            return record, None

        assert callable(honest)
        self.trust.check_record = believe  # type: ignore[method-assign]


class Forgetful(DhtMachine):
    """Does not ask for the version that its user knows."""

    def handle(self, event: Event, *, now: float) -> list[Effect]:
        if isinstance(event, GetStarted):
            event = event._replace(min_version=0)
        return super().handle(event, now=now)


class Greedy(DhtMachine):
    """Asks everybody."""

    def _operation(self, event: Event, now: float) -> Operation:
        operation = super()._operation(event, now)
        if isinstance(operation, GetOperation):
            operation.answers = 1000
            operation.lookup.count = 1000
        return operation


def broken(
    name: str, machine: type[DhtMachine] = DhtMachine, bounds: Bounds | None = None, **changes: Any
) -> None:
    with pytest.raises(InvariantBroken) as raised:
        run(machine, bounds, **changes)
    assert raised.value.name == name
    assert raised.value.exit_code == 1
    text = str(raised.value)
    assert name in text
    assert "seed 1" in text
    assert "ioc-testnet sim dht --nodes" in text


def test_serving_what_was_not_verified_is_caught() -> None:
    broken("no_unverified_record", Credulous, malicious=0.6, kind="forging", nodes=40)


def test_a_version_that_regresses_is_caught() -> None:
    changes = {"malicious": 0.5, "kind": "stale", "updates": 1.0, "nodes": 40}
    broken("version_never_regresses", Forgetful, clients=3, loss=0.3, trials=300, **changes)


def test_unbounded_memory_is_caught() -> None:
    broken("memory_per_peer_bounded", bounds=Bounds(sessions=3))
    broken("memory_per_peer_bounded", bounds=Bounds(servers=10))


def test_asking_everybody_is_caught() -> None:
    broken("messages_per_lookup_bounded", Greedy, Bounds(asked=25), nodes=40)


def test_a_network_that_does_not_converge_is_caught() -> None:
    broken("healed_partitions_converge", StaleMachine, partition=0.3, updates=1.0, records=3, trials=5)


# -- options


def test_the_command_replays_the_run() -> None:
    options = SimOptions(nodes=30, seed=7, churn=0.25, malicious=0.5, kind="lying", diverse=False)
    words = "ioc-testnet sim dht --nodes 30 --seed 7 --churn 0.25 --malicious 0.5 --kind lying --no-replica-groups"
    assert options.command() == words


@pytest.mark.parametrize(
    "changes",
    [{"nodes": 1}, {"churn": 1.5}, {"loss": -0.1}, {"groups": 3}, {"trials": 0}, {"sybils": 5, "malicious": 0.1},
     {"nodes": 4, "churn": 0.9}, {"skew": -1}, {"answers": 0}],
)  # fmt: skip
def test_options_that_cannot_be_meant_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        SimOptions(**changes).check()


@pytest.mark.parametrize("text", ["evil:0.2", "0.2x", "lying:", ""])
def test_bad_shares_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_malicious(text, None)


def test_percentiles_are_of_the_nearest_rank() -> None:
    assert percentile([3, 1, 2], 50) == 2
    assert percentile([float(number) for number in range(1, 101)], 99) == 99
    assert percentile([], 50) == 0


def invoke(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    return cast(int, ended.value.code)


def test_the_command_prints_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke("sim", "dht", "--nodes", "25", "--records", "5", "--trials", "10", "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert set(figures) >= KEYS
    assert figures["nodes"] == 25


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke("sim", "dht", "--nodes", "25", "--records", "5", "--trials", "10") == 0
    out = capsys.readouterr().out
    assert "replica recall" in out
    assert "again: ioc-testnet sim dht --nodes 25 --seed 1" in out


@pytest.mark.parametrize(
    "words",
    [("--nodes", "1"), ("--malicious", "evil:0.2"), ("--latency", "no/such/file"), ("--churn", "2"),
     ("--latency", "constant:-5"), ("--start", "cold"), ("--malicious", "lying:0.2", "--kind", "stale")],
)  # fmt: skip
def test_bad_options_are_one_line_and_exit_2(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke("sim", "dht", *words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
