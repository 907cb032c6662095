"""`bandwidth` on a running node: what moved is shown, ceilings hold at once, wrong ones change nothing."""

import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from ioc_node import api
from ioc_node.cli.bandwidths import config_text
from ioc_node.config import NodeConfig, convert_document
from ioc_node.core.bandwidth import Ceilings
from ioc_node.errors import ConfigError
from ioc_node.throttling import make_throttles
from ioc_testnet.network import Testnet
from tests.cli.inside import Cli

MIB = 1 << 20


@pytest.fixture
def holder(shared_net: Testnet, cli: Cli) -> Iterator[Path]:
    home = shared_net["provider-1"].home
    yield home
    cli.text(
        home,
        "bandwidth",
        "set",
        "sending=none",
        "sending.bulk=none",
        "sending.each-peer=none",
        "weight.task=4",
    )


def test_what_moved_is_shown_and_a_ceiling_holds_at_once(
    cli: Cli, holder: Path, shared_net: Testnet, tmp_path: Path
) -> None:
    reader = shared_net["provider-2"].home
    blobs = []
    for number in range(2):
        file = tmp_path / f"{number}.bin"
        file.write_bytes(bytes([number]) * (3 * MIB + number))
        blobs.append(cli.json(holder, "add", file)["blob"])
    cli.json(reader, "get", blobs[0], "--range", "0-", "-o", tmp_path / "free")  # never by shared memory
    facts = cli.json(holder, "bandwidth")
    reader_id = cli.json(reader, "status")["node_id"]
    (use,) = [use for use in facts["sending"]["uses"] if use["node_id"] == reader_id]
    assert (use["traffic"], facts["sending"]["mb_s"]) == ("bulk", None)
    text = cli.text(holder, "bandwidth", "set", "sending=50", "sending.bulk=4", "weight.task=6")
    assert "This holds until the node ends" in text
    kept = convert_document(
        {"role": "provider", **tomllib.loads(text[text.index("[bandwidth") :])},
        NodeConfig,
        "printed",
    )
    assert kept.bandwidth.sending.ceilings("") == Ceilings(total=50e6, classes={"bulk": 4e6})
    assert kept.bandwidth.weights == {"interactive": 8, "task": 6, "bulk": 1}
    began = time.monotonic()
    cli.json(reader, "get", blobs[1], "--range", "0-", "-o", tmp_path / "slow")
    assert time.monotonic() - began >= (3 * MIB - 0.5e6) / 4e6
    assert (tmp_path / "slow").read_bytes() == bytes([1]) * (3 * MIB + 1)
    (read,) = cli.json(reader, "bandwidth")["receiving"]["uses"]
    assert (read["traffic"], read["bytes_moved"]) == ("interactive", 6 * MIB + 1)


def test_a_peer_may_be_named_by_the_beginning_of_its_id(cli: Cli, holder: Path, shared_net: Testnet) -> None:
    core = cli.json(shared_net.with_role("regional")[0].home, "status")["node_id"]
    facts = cli.json(holder, "bandwidth", "set", f"sending.{core[:20]}=7.5")
    assert facts["sending"]["peers_mb_s"] == {core: 7.5}
    assert "7.5" in cli.text(holder, "bandwidth")
    facts = cli.json(holder, "bandwidth", "set", f"sending.{core}=none")
    assert facts["sending"]["peers_mb_s"] == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("sending", ["sets nothing", "sending=100"]),
        ("upwards=3", ["'upwards=3' sets nothing"]),
        ("sending=fast", ["'fast' is no number of MB/s"]),
        ("sending=0", ["from 0.01 to 1e+06 MB/s, or none, not 0"]),
        ("sending=nan", ["not nan"]),
        ("sending.video=3", ["no peer begins with 'video'"]),
        ("weight.video=3", ["'video' is no class of traffic", "interactive, task, bulk"]),
        ("weight.task=none", ["weight of task", "not none"]),
        ("sending.n" + "1" * 52 + "=3", ["has no ceiling"]),
    ],
)
def test_a_wrong_change_is_refused_with_what_is_wrong_and_changes_nothing(
    cli: Cli, holder: Path, change: str, words: list[str]
) -> None:
    cli.refused(holder, "bandwidth", "set", "receiving=77", change, words=words)
    assert cli.json(holder, "bandwidth")["receiving"]["mb_s"] is None


def test_what_config_toml_is_to_say_is_what_holds() -> None:
    peer = "n" + "a" * 52
    side = api.DirectionTold(20, 2.5, {"bulk": 4}, {peer: 1}, ())
    text = config_text(api.BandwidthTold(side, api.DirectionTold(None, None, {}, {}, ()), {"task": 2}))
    config = convert_document({"role": "consumer", **tomllib.loads(text)}, NodeConfig, "printed")
    assert (config.bandwidth.sending.mb_s, config.bandwidth.sending.each_peer_mb_s) == (20, 2.5)
    assert config.bandwidth.sending.peers_mb_s == {peer: 1}
    assert config.bandwidth.receiving.mb_s is None
    assert config.bandwidth.weights["task"] == 2


def test_weights_that_are_the_usual_ones_need_not_be_written_down() -> None:
    none = api.DirectionTold(None, None, {}, {}, ())
    usual = {"interactive": 8.0, "task": 4.0, "bulk": 1.0}
    assert config_text(api.BandwidthTold(none, none, usual)) == ""
    assert config_text(api.BandwidthTold(none, none, usual | {"task": 6.0})).splitlines()[1:] == [
        "interactive = 8",
        "task = 6",
        "bulk = 1",
    ]


@pytest.mark.parametrize(
    "text", ["[bandwidth.sending]\nmb_s = inf", "[bandwidth.receiving]\nclasses_mb_s = { bulk = 1e-9 }",
             "[bandwidth.weights]\ntask = inf", "[tasks]\nlease_seconds = inf"],
)  # fmt: skip
def test_numbers_without_bounds_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected float"):
        make_throttles(NodeConfig.parse(f'role = "provider"\n{text}').bandwidth)
