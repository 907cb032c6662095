"""A provider in front of a real Slurm cluster: what its nodes have and have free, as jobs run, nodes drain, go, and the
controller is away."""

import os
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from ioc_node.collecting import Collecting
from ioc_node.config import CollectorConfig, NodeConfig
from ioc_node.core.own_catalogue import OwnCatalogue
from ioc_node.registering import Registrar
from ioc_node.runtime.home import Home
from ioc_node.runtime.store import Store
from tests.collectors.slurm_cluster import SlurmCluster, missing_programs, open_slurm
from tests.node.test_collecting import ENDPOINT, new_registrar
from tests.node.test_registering import KEY, PREFIX, cid, wait_for
from tests.runtime.dht_nodes import open_dhts

NODES = {
    "h1": "CPUs=4 RealMemory=2000 Gres=gpu:a100:2",
    "h2": "CPUs=8 RealMemory=4000 Feature=ib",
    "h3": "CPUs=8 RealMemory=4000 State=DOWN Reason=fan",
}
ALL_OF_H1 = (4000, 2000, (2000,))
ALL_OF_H2 = (8000, 4000, ())


@pytest.fixture
def slurm() -> Iterator[SlurmCluster]:
    missing = missing_programs()
    if missing and os.environ.get("IOC_REQUIRE_SLURM") != "1":
        pytest.skip(f"no Slurm here: {', '.join(missing)} is missing; make system-packages installs it")
    assert not missing
    with open_slurm(NODES) as cluster:
        for name in ("h1", "h2"):
            cluster.start_node(name)
        yield cluster


async def offered(registrar: Registrar, own: OwnCatalogue, expected: dict[str, tuple[object, ...]]) -> None:
    """Wait until exactly these hosts are offered, with these free amounts."""
    seen: dict[str | None, tuple[object, ...]] = {}
    with trio.move_on_after(20):
        while seen != expected:
            await trio.sleep(0.05)
            names = {own.slot_of(cid(host)): host for host in NODES}
            seen = {
                names.get(row.slot): (row.free_cores_milli, row.free_memory_mib, row.free_accelerators_milli)
                for row in registrar.status_rows()
            }
    assert seen == expected


async def test_a_cluster_is_followed(tmp_path: Path, slurm: SlurmCluster) -> None:
    options = {
        "path": "gen/3301/az1/{node}", "conf": str(slurm.conf), "timeout_seconds": 1.0,
        "architecture": platform.machine(),
    }  # fmt: skip
    table = CollectorConfig(name="slurm", interval_seconds=0.1, options=options)
    config = NodeConfig(role="provider", home=tmp_path, collectors=(table,))
    own = OwnCatalogue(KEY)
    home = Home(own, chain=lambda: (), contact=lambda: None, status=lambda: ())
    async with open_dhts(3) as nodes, trio.open_nursery() as nursery:
        with Store(tmp_path / "node.db") as store:
            registrar = new_registrar(store, own, table.key)
            registrar.publish(nodes[0], home)
            collecting = Collecting(config, registrar, prefix=PREFIX, endpoint=ENDPOINT)
            nursery.start_soon(collecting.run)
            await offered(registrar, own, {"h1": ALL_OF_H1, "h2": ALL_OF_H2})
            await wait_for(nodes[2], {"h1": 1, "h2": 1, "h3": 1})  # h3 is down, and registered
            (group,) = (await nodes[2].get(cid("h1"), answers=2)).resource.accelerators
            assert (group.model, group.count) == ("a100", 2)

            await trio.to_thread.run_sync(submit_job, slurm)
            await offered(registrar, own, {"h1": (1000, 1700, (1000,)), "h2": ALL_OF_H2})
            slurm.run("scontrol", "update", "nodename=h2", "state=drain", "reason=State=IDLE fan")
            await offered(registrar, own, {"h1": (1000, 1700, (1000,))})
            slurm.run("scancel", "--name", "busy")
            slurm.run("scontrol", "update", "nodename=h2", "state=resume")
            await offered(registrar, own, {"h1": ALL_OF_H1, "h2": ALL_OF_H2})

            await trio.to_thread.run_sync(slurm.stop, "slurmctld")
            await offered(registrar, own, {})  # registered, but who knows what is free?
            assert "did not answer within 1 s" in collecting.warnings()[0].text
            slurm.remove_node("h3")
            await trio.to_thread.run_sync(slurm.start_controller)
            slurm.run("scontrol", "reconfigure")  # has the nodes register at once
            await offered(registrar, own, {"h1": ALL_OF_H1, "h2": ALL_OF_H2})
            await wait_for(nodes[2], {"h1": 1, "h2": 1, "h3": "Withdrawn"})
            assert list(own.records()) == [cid("h1"), cid("h2")]
            assert collecting.warnings() == ()
            nursery.cancel_scope.cancel()


def submit_job(slurm: SlurmCluster) -> None:
    """Three cores, 300 MiB and a GPU of h1, for as long as the cluster is there."""
    script = "while [ -e slurm.conf ]; do sleep 0.1; done"
    slurm.run(
        "sbatch", "--job-name=busy", "--nodelist=h1", "--cpus-per-task=3", "--mem=300", "--gres=gpu:a100:1",
        "--output=/dev/null", f"--chdir={slurm.folder}", "--wrap", script,
    )  # fmt: skip
