"""What a core node replicates: by whole labels, both ways of containing, and what two have in common."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ioc_node.config import GossipConfig, NodeConfig
from ioc_node.core.interest import EVERYTHING, NOTHING, Interest
from ioc_node.errors import ConfigError
from ioc_wire.authority import Role
from ioc_wire.errors import BadIdentifier, TooLarge

LABELS = ("cn", "p2p"), ("r3301", "r3302", "ibank", "icar", "n0"), ("20001", "20002")
PREFIXES = ["", *LABELS[0]]
PREFIXES += [f"{root}.{node}" for root in LABELS[0] for node in LABELS[1]]
PREFIXES += [f"{upper}.{provider}" for upper in PREFIXES if "." in upper for provider in LABELS[2]]
NAMES = [prefix for prefix in PREFIXES if prefix.count(".") == 2]
KINDS = ["cn.r", "cn.i", "p2p.i"]
interests = st.lists(st.sampled_from(PREFIXES + KINDS), max_size=5).map(Interest)


@pytest.mark.parametrize(
    ("interest", "prefix", "covers", "overlaps"),
    [
        ("cn.r3301", "cn.r3301", True, True),
        ("cn.r3301", "cn.r3301.20001", True, True),
        ("cn.r3301", "cn.r33010", False, False),
        ("cn.r3301", "cn", False, True),
        ("cn.r3301", "", False, True),
        ("cn.r3301.20001", "cn.r3301", False, True),
        ("cn.r3301.20001", "cn.r3301.20002", False, False),
        ("cn.i", "cn.ibank.20001", True, True),
        ("cn.i", "cn.r3301.20001", False, False),
        ("cn.i", "cn", False, True),
        ("cn.r", "cn.r3301", True, True),
        ("cn", "p2p.n0.kabc", False, False),
    ],
)
def test_prefixes_cover_by_whole_labels(interest: str, prefix: str, covers: bool, overlaps: bool) -> None:
    told = Interest.told([interest])
    assert (told.covers(prefix), told.overlaps(prefix)) == (covers, overlaps)


def test_no_prefix_told_means_everything() -> None:
    assert Interest.told(()) == EVERYTHING
    assert EVERYTHING.covers("")
    assert EVERYTHING.covers_places(())
    assert not NOTHING.overlaps("")
    assert (str(EVERYTHING), str(NOTHING), str(Interest.told(["cn.r3302", "cn.r3301"]))) == (
        "everything", "nothing", "cn.r3301, cn.r3302",
    )  # fmt: skip


def test_places_of_a_demand() -> None:
    told = Interest.told(["cn.r3301"])
    assert told.covers_places(["cn.r3301.20001", "ioc:cn.r3301.20002/ai/3301"])
    assert not told.covers_places(["cn.r3301", "ioc:cn.r3302.20002/ai"])
    assert not told.covers_places(())
    assert not told.covers_places(["ioc:" + "." * 100_000])


@pytest.mark.parametrize("prefix", ["cn.x", "CN", "cn.r33", "cn.r3301.", "ioc:cn.r3301.20001/ai", "cn.*", ""])
def test_what_is_no_prefix_is_refused(prefix: str) -> None:
    with pytest.raises(BadIdentifier):
        Interest.told([prefix])


def test_too_many_prefixes_are_refused() -> None:
    with pytest.raises(TooLarge):
        Interest.told([f"cn.r{number:04}" for number in range(65)])


@given(interests, interests, st.sampled_from(NAMES))
def test_a_name_is_in_common_where_both_cover_it(one: Interest, other: Interest, name: str) -> None:
    common = one.intersect(other)
    assert common.covers(name) == (one.covers(name) and other.covers(name))
    assert common == other.intersect(one)
    assert len(common.prefixes) <= len(one.prefixes) + len(other.prefixes)


@given(interests, st.sampled_from(PREFIXES))
def test_what_holds_a_covered_name_overlaps(interest: Interest, prefix: str) -> None:
    inside = [name for name in NAMES if Interest([prefix]).covers(name)]
    if any(map(interest.covers, inside)):
        assert interest.overlaps(prefix)
    if interest.covers(prefix):
        assert all(map(interest.covers, inside))


def config(role: Role, *prefixes: str) -> NodeConfig:
    return NodeConfig(role=role, gossip=GossipConfig(interest=prefixes))


def test_an_interest_is_configured_for_regional_and_industry_nodes_alone() -> None:
    assert config("regional", "cn.r3301").interest() == Interest(["cn.r3301"])
    assert config("industry").interest() == config("national").interest() == EVERYTHING
    others: tuple[Role, ...] = ("national", "provider", "consumer")
    for role in others:
        with pytest.raises(ConfigError, match=f"a {role} node replicates"):
            config(role, "cn.r3301").interest()
    with pytest.raises(ConfigError, match=r"'cn\.r33' is not a prefix"):
        config("regional", "cn.r33").interest()


def test_a_bad_interest_is_found_when_the_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('role = "national"\n[gossip]\ninterest = ["cn.r3301"]\n')
    with pytest.raises(ConfigError, match=r"config\.toml: gossip\.interest: a national node"):
        NodeConfig.load(tmp_path)
