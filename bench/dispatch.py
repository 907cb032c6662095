"""From submit to receipt: a task that does nothing, on a real network of node processes.

`dispatch_p50_ms` and `dispatch_p99_ms` are measured one task after the other, from the call of `submit` to its
result with the countersigned receipt; `tasks_per_s` with many tasks under way. No peer does this job: there is none
beside it (a scheduler without leases, sandbox and receipts answers another question).
"""

import argparse
import statistics
import time
from pathlib import Path

import msgspec
import trio

from bench.report import Row, report
from ioc_node.client import RemoteNode
from ioc_node.tasks.definition import TaskSpec
from ioc_testnet.network import open_testnet
from ioc_testnet.programs import program_path
from ioc_testnet.topology import NodePlan, Topology, load_topology
from ioc_wire.tasks import Resources

TARGET_MS = 100.0
WARM_UP = 5


def topology() -> Topology:
    """The small network, with cores enough on paper that placing never waits for one."""
    plan = load_topology("small")
    return msgspec.structs.replace(
        plan, log_level="warning", nodes=tuple(_roomy(node) for node in plan.nodes)
    )


def _roomy(node: NodePlan) -> NodePlan:
    resources = tuple(msgspec.structs.replace(item, cores=64) for item in node.resources)
    return msgspec.structs.replace(node, resources=resources)


def noop() -> TaskSpec:
    """The task."""
    document = {
        "name": "noop",
        "executor": {"runtime": "wasm", "program": f"file:{program_path('noop')}", "command": ["noop"]},
        "resources": msgspec.to_builtins(Resources(cores=1, memory_mib=16, disk_mib=1)),
        "limits": {"wall_seconds": 30},
    }
    return TaskSpec.parse(document, folder=Path("/"))


async def one_task(node: RemoteNode, spec: TaskSpec) -> float:
    """Milliseconds from submit to receipt."""
    began = time.perf_counter()
    ended = await node.result(await node.submit(spec))
    spent = (time.perf_counter() - began) * 1000
    if ended.state != "COMPLETE" or len(ended.receipts) != 1:
        raise SystemExit(f"a task ended as {ended.state} with {len(ended.receipts)} receipts: {ended.reason}")
    return spent


async def measure(singles: int, together: int, width: int) -> tuple[list[float], float]:
    """Milliseconds of each single task, and tasks per second of `together` tasks, `width` at a time."""
    async with open_testnet(topology()) as net:
        await net.wait_joined()
        await net.wait_offered(2, "consumer-1")
        spec = noop()
        async with net["consumer-1"].client() as node:
            for _ in range(WARM_UP):
                await one_task(node, spec)
            times = [await one_task(node, spec) for _ in range(singles)]
            slots = trio.CapacityLimiter(width)

            async def limited() -> None:
                async with slots:
                    await one_task(node, spec)

            began = time.perf_counter()
            async with trio.open_nursery() as nursery:
                for _ in range(together):
                    nursery.start_soon(limited)
            return times, together / (time.perf_counter() - began)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="few tasks")
    arguments = parser.parse_args()
    singles, together, width = (20, 40, 8) if arguments.quick else (200, 400, 16)
    times, rate = trio.run(measure, singles, together, width)
    p50, p99 = statistics.median(times), sorted(times)[max(0, round(len(times) * 0.99) - 1)]
    rows = [
        Row("dispatch_p50_ms", "ms", p50, None, None, "lower", singles),
        Row("dispatch_p99_ms", "ms", p99, None, None, "lower", singles),
        Row("tasks_per_s", "1/s", rate, None, None, "higher", together),
    ]
    notes = [
        f"target: p50 under {TARGET_MS:.0f} ms: {'met' if p50 < TARGET_MS else 'MISSED'}",
        f"4 node processes, 2 providers; submit, find, lease, stage, run in wasm, receipt; rate with {width} at a time",
    ]
    report("dispatch", rows, as_json=arguments.json, notes=notes)


if __name__ == "__main__":
    main()
