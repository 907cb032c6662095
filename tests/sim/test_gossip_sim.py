"""Gossip in virtual time: quickly to all, one network again after a partition and a restart of all."""

import json

import pytest
from click.testing import CliRunner

from ioc_node.errors import UsageError
from ioc_testnet.cli import group
from ioc_testnet.sim.gossip import GossipOptions, GossipSimulation

SMALL = GossipOptions(nodes=12, changes=10, providers=5, partition_seconds=120)


def test_heads_reach_all_and_islands_become_one() -> None:
    figures = GossipSimulation(SMALL).run()
    assert figures["head_99_p99_s"] <= 2
    assert figures["status_99_p99_s"] <= 2
    assert figures["healed_s"] <= figures["compare_s"]
    assert figures["restarted_s"] <= figures["compare_s"]
    assert 1 <= figures["copies_per_head"] < 3


def test_the_same_seed_gives_the_same_run() -> None:
    once, again = GossipSimulation(SMALL).run(), GossipSimulation(SMALL).run()
    other = GossipSimulation(
        GossipOptions(nodes=12, changes=10, providers=5, partition_seconds=120, seed=2)
    ).run()
    assert once["trace_hash"] == again["trace_hash"] != other["trace_hash"]


def test_options_that_cannot_be_meant_are_refused() -> None:
    for options in (GossipOptions(nodes=1), GossipOptions(silent=0.95), GossipOptions(nodes=2, silent=0.5)):
        with pytest.raises(UsageError):
            options.check()
    told = GossipOptions(nodes=500, silent=0.1).command()
    assert told == "ioc-testnet sim gossip --nodes 500 --silent 0.1 --seed 1"


def test_the_command_shows_the_figures() -> None:
    words = [
        "sim",
        "gossip",
        "--nodes",
        "6",
        "--changes",
        "2",
        "--providers",
        "2",
        "--partition-seconds",
        "60",
        "--json",
    ]
    done = CliRunner().invoke(group, words)
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["head_99_p99_s"] <= 2


def test_where_there_are_too_many_for_a_full_mesh_a_tree_brings_one_copy_each() -> None:
    options = GossipOptions(nodes=72, changes=8, providers=4, partition_seconds=0)
    figures = GossipSimulation(options).run()
    assert figures["within_2s_share"] == 1
    assert figures["reached_share"] == 1
    assert figures["copies_per_head"] < 2
    assert figures["tree_parts"] == 1


@pytest.mark.slow
def test_fifty_core_nodes_meet_the_goal() -> None:
    figures = GossipSimulation(GossipOptions(nodes=50)).run()
    assert figures["head_99_p99_s"] <= 2
    assert figures["healed_s"] <= figures["compare_s"]


@pytest.mark.slow
def test_more_core_nodes_than_links_still_heal() -> None:
    options = GossipOptions(nodes=160, changes=20, providers=5, partition_seconds=120)
    figures = GossipSimulation(options).run()
    assert figures["copies_per_head"] < 2
    assert figures["head_99_p99_s"] <= 2
    assert figures["healed_s"] <= figures["compare_s"]
