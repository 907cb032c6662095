"""False suspicions in virtual time: counted the same way for SWIM, Lifeguard and this node's own settings."""

import json

import pytest
from click.testing import CliRunner

from ioc_node.errors import UsageError
from ioc_testnet.cli import group
from ioc_testnet.sim.membership import KINDS, MembershipOptions, simulate_membership

SMALL = MembershipOptions(nodes=9, seconds=120, crashes=2)


def test_where_all_is_well_nobody_is_suspected_and_who_crashes_is_missed() -> None:
    found = simulate_membership(MembershipOptions(nodes=8, seconds=60, slow=0, loss=0, crashes=2))
    for kind in KINDS:
        assert found[kind]["false_suspicions_per_node_hour"] == 0
        assert found[kind]["false_deaths_per_node_hour"] == 0
        assert found[kind]["crash_noticed_share"] == 1
        assert found[kind]["crash_noticed_p99_s"] < 30


def test_who_stalls_is_suspected_and_the_same_seed_gives_the_same_run() -> None:
    once, again = simulate_membership(SMALL), simulate_membership(SMALL)
    other = simulate_membership(MembershipOptions(nodes=9, seconds=120, crashes=2, seed=2))
    for kind in KINDS:
        assert once[kind] == again[kind]
        assert once[kind]["trace_hash"] != other[kind]["trace_hash"]
        assert once[kind]["false_suspicions_per_node_hour"] > 0


def test_options_that_cannot_be_meant_are_refused() -> None:
    for options in (
        MembershipOptions(nodes=2),
        MembershipOptions(loss=1.0),
        MembershipOptions(nodes=6, crashes=3),
    ):
        with pytest.raises(UsageError):
            options.check()
    told = MembershipOptions(nodes=64, loss=0.1).command()
    assert told == "ioc-testnet sim membership --nodes 64 --loss 0.1 --seed 1"


def test_the_command_shows_the_figures() -> None:
    words = ["sim", "membership", "--nodes", "5", "--seconds", "30", "--crashes", "1"]
    shown = CliRunner().invoke(group, words)
    assert shown.exit_code == 0, shown.output
    done = CliRunner().invoke(group, [*words, "--json"])
    assert json.loads(done.output)["ours"]["crash_noticed_share"] == 1


@pytest.mark.slow
def test_lifeguard_and_what_we_add_hold_fewer_dead_that_live() -> None:
    found = simulate_membership(MembershipOptions())
    dead = [found[kind]["false_deaths_per_node_hour"] for kind in KINDS]
    assert dead == sorted(dead, reverse=True)
    assert dead[-1] < dead[0]
    healthy = [found[kind]["false_suspicions_of_healthy_per_node_hour"] for kind in KINDS]
    assert healthy[-1] < healthy[0] / 2
    assert all(found[kind]["crash_noticed_share"] == 1 for kind in KINDS)
