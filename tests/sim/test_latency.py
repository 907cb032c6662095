"""Latency models: what a matrix means, and bad files."""

import random
from pathlib import Path

import pytest

from ioc_node.errors import UsageError
from ioc_testnet.sim.latency import read_latency


def written(folder: Path, text: str) -> Path:
    path = folder / "rtt.txt"
    path.write_text(text)
    return path


def placed(text: str, count: int) -> list[list[float]]:
    latency = read_latency(text)
    latency.place(count, random.Random(1))
    return [[latency.one_way(a, b) for b in range(count)] for a in range(count)]


def test_a_constant_is_a_round_trip_in_ms() -> None:
    assert placed("constant:80", 2)[0][1] == pytest.approx(0.04)
    assert placed("constant", 2)[0][1] == pytest.approx(0.025)


def test_a_matrix_is_halved_and_dealt_out(tmp_path: Path) -> None:
    ways = placed(str(written(tmp_path, "0 10 20\n10 0 30\n20 30 0\n")), 3)
    between = sorted(round(ways[a][b] * 2000) for a in range(3) for b in range(a))
    assert between == [10, 20, 30]


def test_nodes_beyond_the_matrix_share_rows(tmp_path: Path) -> None:
    ways = placed(str(written(tmp_path, "0 10\n10 0\n")), 5)
    assert {round(way * 2000) for row in ways for way in row} == {10}


def test_what_was_not_measured_takes_the_median(tmp_path: Path) -> None:
    ways = placed(str(written(tmp_path, "0 nan 20\n-1 0 0\n20 20 0\n")), 3)
    assert {round(way * 2000) for row in ways for way in row} == {20}


def test_seconds_may_be_said(tmp_path: Path) -> None:
    path = written(tmp_path, "0 0.5\n0.5 0\n")
    assert placed(f"{path}:s", 2)[0][1] == pytest.approx(0.25)


@pytest.mark.parametrize("text", ["", "1 2\n3\n", "1 2 3\n4 5 6\n", "a b\nc d\n", "0 0\n0 0\n"])
def test_a_bad_file_is_one_clear_error(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        read_latency(str(written(tmp_path, text)))
    assert "latency" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["constant:x", "constant:0", "constant:nan", "no/such/file"])
def test_a_bad_name_is_one_clear_error(text: str) -> None:
    with pytest.raises(UsageError):
        read_latency(text)
