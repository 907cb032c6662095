"""An inventory added to a running provider: its hosts are found by others, bad rows are told, the file is followed."""

import json
from pathlib import Path

import pytest
import trio

from ioc_node import api
from ioc_node.collectors.collector import BUILT_IN
from ioc_node.config import NodeConfig
from ioc_node.errors import UsageError
from ioc_wire.tasks import AcceleratorDemand, Resources
from tests.cli.inside import Cli
from tests.node.conftest import MakeHome
from tests.node.test_collecting import Plugin
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
        results: list[api.CollectorAdded | str] = []

        async def add() -> None:
            try:
                results.append(await nodes.provider.add_collector(asked))
            except UsageError as error:
                results.append(str(error))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(add)
            nursery.start_soon(add)
        added, refused = results
        assert refused == "this collector is at work already"
        assert isinstance(added, api.CollectorAdded)
        assert (added.added, added.changed, added.removed) == (2, 0, 0)
        assert [reason.partition(":")[0] for reason in added.refused] == ["line 4", "line 5"]
        with trio.fail_after(10):
            while not (found := await nodes.consumer.find(DEMAND)).found.offers:
                await trio.sleep(0.05)
        assert found.found.offers[0].status.free_accelerators_milli == (8000,)
        (warned,) = (each for each in nodes.provider.status().warnings if each.about == "collector inventory")
        assert warned.text == "left out: line 4: cores: -4 is negative, and 1 more"
        file.write_text(HOSTS.replace("ai/3301/az1/x2,96", "ai/3301/az1/x2,32"))
        with trio.fail_after(10):
            while (await nodes.consumer.find(DEMAND)).found.offers:
                await trio.sleep(0.05)
        with pytest.raises(UsageError, match="at work already"):
            await nodes.provider.add_collector(asked)
        with pytest.raises(UsageError, match="no provider"):
            await nodes.consumer.add_collector(asked)


@pytest.fixture
def home(make_home: MakeHome) -> Path:
    """Of a provider that isn't running."""
    config = make_home("provider", "provider")
    (config.home / "config.toml").write_text(f'role = "provider"\nport = {config.port}\n')
    return config.home


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_the_command_looks_first_and_enters_the_configuration(home: Path, cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "hosts.csv"
    file.write_text(HOSTS)
    facts = cli.json(home, "register", "--inventory", file, "--dry-run")
    assert (facts["hosts"], facts["accelerators"], facts["refused"]) == (2, {"v100": 8}, 2)
    assert not NodeConfig.load(home).collectors
    for _ in range(2):  # the second time it is there already
        assert "registers them when it starts" in one_line(cli.text(home, "register", "--inventory", file))
    (collector,) = NodeConfig.load(home).collectors
    assert collector.options == {"file": str(file)}


def test_other_collectors_are_entered_with_their_options(home: Path, cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "hosts.csv"
    file.write_text(HOSTS)
    cli.text(home, "register", "--inventory", file)
    local = ["register", "--collector", "local", "--option", "path=gen/3301/az1/me"]
    for more in ("labels.rack=r1", "gpus=false", "labels.rack=r1"):
        said = cli.text(home, *local, "--option", more)
        assert one_line(said).startswith("this machine: 1 host, ")
    entered = [(each.name, each.options) for each in NodeConfig.load(home).collectors]
    assert entered == [
        ("inventory", {"file": str(file)}),
        ("local", {"path": "gen/3301/az1/me", "labels": {"rack": "r1"}}),
        ("local", {"path": "gen/3301/az1/me", "gpus": False}),
    ]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--dry-run", "goes with --inventory or --collector"),
        ("--mapping FILE", "--mapping goes with --inventory"),
        ("--option a=1", "--option goes with --collector"),
        ("--collector inventory --inventory FILE", "leave --collector out"),
        ("--collector local --option path", "does not read KEY=VALUE"),
        ("--collector local --option path=a --option path.b=a", "path has a value already"),
        ("--collector lokal", "collector 'lokal' is not installed; there are: inventory, local, slurm"),
        ("--collector slurm", "missing required field `path`"),
        ("--collector slurm --option path={node} --option command=none", "none is not installed"),
    ],
)
def test_a_command_that_cannot_be_meant(
    home: Path, cli: Cli, tmp_path: Path, words: str, reason: str
) -> None:
    file = tmp_path / "hosts.csv"
    file.write_text(HOSTS)
    code, _, said = cli.call(home, "register", *words.replace("FILE", str(file)).split())
    assert code in (1, 2)
    assert reason in one_line(said)
    assert not NodeConfig.load(home).collectors


def test_config_toml_stays_what_it_was_besides(home: Path, cli: Cli, tmp_path: Path) -> None:
    """Its mode (options may hold secrets), and whatever it is a link to."""
    file = tmp_path / "hosts.csv"
    file.write_text(HOSTS)
    path, elsewhere = home / "config.toml", tmp_path / "managed.toml"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    elsewhere.chmod(0o600)
    cli.text(home, "register", "--inventory", file)
    assert path.is_symlink()
    assert elsewhere.stat().st_mode & 0o777 == 0o600
    assert len(NodeConfig.load(home).collectors) == 1


def test_config_toml_with_no_place_for_a_collector(home: Path, cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "hosts.csv"
    file.write_text(HOSTS)
    path = home / "config.toml"
    begin = path.read_text()
    sixteen = "".join(f'[[collectors]]\nname = "a{number}"\n' for number in range(16))
    for more in ("collectors = []\n", sixteen):
        path.write_text(begin + more)
        code, _, said = cli.call(home, "register", "--inventory", file)
        assert code == 2
        assert "has no place for one more [[collectors]]" in one_line(said)
        assert path.read_text() == begin + more


def test_a_collector_of_others_that_crashes_is_one_line(
    home: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BUILT_IN, "plugin", "tests.node.test_collecting:Plugin")
    monkeypatch.setattr(Plugin, "answers", [KeyError("rack")])
    code, _, said = cli.call(home, "register", "--collector", "plugin", "--dry-run")
    assert code == 1
    assert one_line(said).startswith("error: collector plugin: it crashed: KeyError: 'rack' (")
    assert "a bug in ioc-node" not in said
