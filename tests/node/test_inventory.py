"""An inventory added to a running provider: its hosts are found by others, bad rows are told, the file is followed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from ioc_node import api
from ioc_node.config import NodeConfig
from ioc_node.errors import UsageError
from ioc_wire.tasks import AcceleratorDemand, Resources
from tests.node.conftest import MakeHome
from tests.node.three_nodes import open_three

HOSTS = """path,cores,memory_mib,gpu_count,gpu_model,gpu_memory_mib
gen/3301/az1/x1,16,65536,0,,
ai/3301/az1/x2,96,393216,8,V100,32768
gen/3301/az1/x3,-4,65536,0,,
gen/3301/az1/x1,8,1024,0,,
"""
DEMAND = api.Demand(
    resources=Resources(
        cores=64, disk_mib=0, accelerators=(AcceleratorDemand(models=("v100",), count_milli=8000),)
    )
)


async def test_hosts_of_an_inventory_are_found_by_others(make_home: MakeHome, tmp_path: Path) -> None:
    file = tmp_path / "hosts.csv"
    file.write_text(HOSTS)
    asked = api.AddCollector("inventory", 0.1, json.dumps({"file": str(file)}).encode())
    async with open_three(make_home) as nodes:
        added = await nodes.provider.add_collector(asked)
        assert (added.added, added.changed, added.removed) == (2, 0, 0)
        assert [reason.partition(":")[0] for reason in added.refused] == ["line 4", "line 5"]
        with trio.fail_after(10):
            while not (found := await nodes.consumer.find(DEMAND)).found.offers:
                await trio.sleep(0.05)
        assert found.found.offers[0].status.free_accelerators_milli == (8000,)
        file.write_text(HOSTS.replace("ai/3301/az1/x2,96", "ai/3301/az1/x2,32"))
        with trio.fail_after(10):
            while (await nodes.consumer.find(DEMAND)).found.offers:
                await trio.sleep(0.05)
        with pytest.raises(UsageError, match="at work already"):
            await nodes.provider.add_collector(asked)
        with pytest.raises(UsageError, match="no provider"):
            await nodes.consumer.add_collector(asked)


def test_the_command_looks_first_and_enters_the_configuration(make_home: MakeHome, tmp_path: Path) -> None:
    config = make_home("provider", "provider")
    (config.home / "config.toml").write_text(f'role = "provider"\nport = {config.port}\n')
    file = tmp_path / "hosts.csv"
    file.write_text(HOSTS)
    program = shutil.which("ioc-node", path=str(Path(sys.executable).parent))
    assert program is not None

    def run(*words: object) -> tuple[int, str]:
        done = subprocess.run(
            [program, "--home", config.home, "register", *map(str, words)],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    def line(text: str) -> str:
        return " ".join(text.split())

    code, said = run("--inventory", file, "--dry-run", "--json")
    facts = json.loads(said.splitlines()[-1])
    assert code == 0
    assert (facts["hosts"], facts["accelerators"], facts["refused"]) == (2, {"V100": 8}, 2)
    assert not NodeConfig.load(config.home).collectors
    for _ in range(2):  # the second time it is there already
        code, said = run("--inventory", file)
        assert (code, "registers them when it starts" in line(said)) == (0, True)
    (collector,) = NodeConfig.load(config.home).collectors
    assert collector.options == {"file": str(file)}
    code, said = run("--dry-run")
    assert (code, "go with --inventory" in line(said)) == (2, True)
