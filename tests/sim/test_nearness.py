"""The experiment "within T ms": on a made-up plane always, on a measured matrix where `IOC_LATENCY_FILE` is set."""

import json
import math
import os
import random
from pathlib import Path

import pytest

from ioc_node.errors import UsageError
from ioc_testnet.cli import main
from ioc_testnet.sim.nearness import run_nearness


@pytest.fixture
def plane(tmp_path: Path) -> Path:
    chance = random.Random(7)
    places = [(chance.uniform(0, 80), chance.uniform(0, 80)) for _ in range(40)]
    path = tmp_path / "plane.txt"
    lines = (" ".join(f"{math.dist(a, b) + 2 if a != b else 0:.3f}" for b in places) for a in places)
    path.write_text("\n".join(lines) + "\n", encoding="ascii")
    return path


def test_near_ones_are_found_with_fewer_pings(plane: Path) -> None:
    result = run_nearness(plane, core=6)
    rows = {row["within_ms"]: row for row in result["rows"]}
    assert all(row["recall"] >= 0.95 and row["precision"] == 1.0 for row in rows.values())
    assert rows[20]["probes_p50"] < rows[20]["probes_everybody"]
    assert run_nearness(plane, core=6) == result


def test_the_command_prints_the_same_figures(plane: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["sim", "nearness", "--matrix", str(plane), "--core", "6", "--json"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out) == run_nearness(plane, core=6)


def test_senseless_numbers_of_core_nodes_are_refused(plane: Path) -> None:
    with pytest.raises(UsageError, match="--core 21"):
        run_nearness(plane, core=21)


@pytest.mark.skipif("IOC_LATENCY_FILE" not in os.environ, reason="IOC_LATENCY_FILE names no matrix")
@pytest.mark.slow
def test_on_measured_round_trips() -> None:
    for seed in (1, 4, 5):
        for row in run_nearness(Path(os.environ["IOC_LATENCY_FILE"]), seed=seed)["rows"]:
            assert row["precision"] >= 0.99
            assert row["recall"] >= 0.95
