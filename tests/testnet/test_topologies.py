"""Topology files, ports, and processes that are found by pid and start time."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ioc_node.errors import ConfigError, UsageError
from ioc_testnet.network import Testnet, open_testnet
from ioc_testnet.ports import free_ports
from ioc_testnet.processes import NodeProcess, start_mark
from ioc_testnet.topology import load_topology
from tests.testnet.command import TESTNET, port_is_free, run


def test_default_topology_is_the_promised_one() -> None:
    plan = load_topology()
    roles = {
        role: plan.role_count(role) for role in ("national", "regional", "industry", "provider", "consumer")
    }
    assert roles == {"national": 1, "regional": 2, "industry": 1, "provider": 4, "consumer": 1}
    providers = [node for node in plan.nodes if node.role == "provider"]
    assert len({node.prefix for node in providers}) == 4
    assert all({resource.type for resource in node.resources} == {"pool", "node"} for node in providers)


def test_counts_are_spelled_out() -> None:
    names = {node.name: node.prefix for node in load_topology("small").nodes}
    assert names["provider-1"] == "cn.r3301.20001"
    assert names["provider-2"] == "cn.r3301.20002"


async def test_a_core_node_that_replicates_a_part_is_waited_for_only_so_far(tmp_path: Path) -> None:
    path = tmp_path / "partly.toml"
    node = "[[nodes]]\nname = '{}'\nrole = '{}'\nprefix = '{}'\n"
    host = "[[nodes.resources]]\npath = 'gen/{}/az1/h1'\ncores = 1\nmemory_mib = 64\nstorage_mib = 64\n"
    path.write_text(
        "name = 'partly'\n"
        + node.format("national", "national", "cn")
        + node.format("region", "regional", "cn.r3301")
        + "under = 'national'\ngossip = { interest = ['cn.r3301'] }\n"
        + node.format("here", "provider", "cn.r3301.20001")
        + f"under = 'region'\n{host.format(3301)}"
        + node.format("elsewhere", "provider", "cn.r1101.20002")
        + f"under = 'national'\n{host.format(1101)}"
    )
    with tempfile.TemporaryDirectory() as temp:
        async with (
            open_testnet(path, folder=Path(temp) / "net") as net,
            net["region"].client() as region,
            net["national"].client() as national,
        ):
            await net.wait_joined()
            assert (await region.status()).catalogue_records == 1
            assert (await national.status()).catalogue_records == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name = 'x'\nnodes = []", "nodes"),
        ("name = 'x'\nnodes = [{name = 'a', role = 'king'}]", "nodes[0].role"),
        ("name = 'x'\nnodes = [{name = 'a', role = 'provider'}]", "needs a core node"),
        ("name = 'x'\nnodes = [{name = 'A b', role = 'national'}]", "'A b'"),
        ("name = 'x'\nnodes = [{name = 'a', role = 'national', prefix = 'CN'}]", "prefix"),
        (
            "name = 'x'\nnodes = [{name = 'a', role = 'national'}, {name = 'b', role = 'provider', under = 'c'}]",
            "'c'",
        ),
        ("name = 'x'\ncolour = 'red'\nnodes = [{name = 'a', role = 'national'}]", "colour: unknown key"),
        ("name = ", "not valid TOML"),
    ],
)
def test_a_bad_topology_is_refused_in_one_line(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_topology(path)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_topology_names_those_there_are() -> None:
    with pytest.raises(UsageError, match="default, small"):
        load_topology("larger")


def test_free_ports_are_free_and_apart() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert all(port % 2 == 0 for port in ports)
    assert all(port_is_free(port) for port in ports)


def test_a_pid_that_went_to_another_process_is_not_touched() -> None:
    import signal

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        other = NodeProcess(child.pid, start_mark(os.getpid()))
        other.send(signal.SIGKILL)
        assert child.poll() is None
        assert not other.alive
        same = NodeProcess(child.pid, start_mark(child.pid))
        assert same.alive
        same.send(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        assert not same.alive


def test_commands_of_a_running_network(shared_net: Testnet) -> None:
    folder = shared_net.folder
    states = {
        node["name"]: node["state"]
        for node in run(TESTNET, "status", "--json", "--dir", folder).check().json["nodes"]
    }
    assert states == dict.fromkeys(["regional-1", "provider-1", "provider-2", "consumer-1"], "joined")
    killed = run(TESTNET, "kill", "provider-2", "--json", "--dir", folder).check().json["killed"]
    assert start_mark(killed) == ""
    run(TESTNET, "kill", "provider-2", "--dir", folder).check_refused("is down already")
    assert "down" in run(TESTNET, "status", "--dir", folder).check().out
    assert run(TESTNET, "start", "provider-2", "--json", "--dir", folder).check().json["pid"] != killed
    run(TESTNET, "start", "provider-2", "--dir", folder).check_refused("is running already")
    run(TESTNET, "kill", "provider-9", "--dir", folder).check_refused("there is no node 'provider-9'")


def test_nothing_to_end(tmp_path: Path) -> None:
    run(TESTNET, "down", "--dir", tmp_path).check_refused("no testnet is up")
