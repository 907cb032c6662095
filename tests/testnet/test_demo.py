"""The demonstration from end to end, and its clean end whatever happens in the middle of it."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.testnet.command import (
    TESTNET,
    port_is_free,
    processes_in,
    read_until,
    run,
    shared_memory,
    started,
    wait_for,
)

KEYS = {
    "nodes", "identifiers", "resolved", "offers", "tasks_total", "tasks_complete", "receipts_verified",
    "bytes_moved", "result_path", "result_sha256", "seconds",
}  # fmt: skip


@pytest.fixture
def temp() -> Iterator[Path]:
    """Where the demo makes its temporary folder; the name is short, as those are that people use."""
    with tempfile.TemporaryDirectory(prefix="ioc-t-") as folder:
        yield Path(folder)


def env_of(temp: Path) -> dict[str, str]:
    return {"TMPDIR": str(temp)}


def assert_nothing_left(temp: Path) -> None:
    assert processes_in(temp) == []
    assert list(temp.iterdir()) == []


def test_demo_makes_the_right_picture_and_leaves_nothing(temp: Path, tmp_path: Path) -> None:
    before = shared_memory()
    picture = tmp_path / "made" / "terrain.png"
    done = run(TESTNET, "demo", "--json", "--tiles", "3x2", "--out", picture, env=env_of(temp)).check()
    facts = done.json
    assert facts.keys() == KEYS
    roles = [node["role"] for node in facts["nodes"]]
    assert {role: roles.count(role) for role in roles} == {
        "national": 1, "regional": 2, "industry": 1, "provider": 4, "consumer": 1,
    }  # fmt: skip
    assert len(facts["identifiers"]) == 8
    assert facts["resolved"]["cid"] in facts["identifiers"]
    assert facts["resolved"]["hops"] >= 1
    assert [offer["price_micro"] for offer in facts["offers"]] == [20000, 30000, 45000, 60000]
    assert all(offer["reasons"] and offer["route"] for offer in facts["offers"])
    assert facts["tasks_total"] == facts["tasks_complete"] == facts["receipts_verified"] == 7
    assert facts["bytes_moved"] > 6 * 700 * 100
    assert Path(facts["result_path"]) == picture
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "554,528 pixels" in done.out
    for words in ("quic/", "MB/s", "COMPLETE", "verified with both signatures", "answered by", "Hangzhou"):
        assert words in done.out
    assert "Traceback" not in done.out + done.err
    assert_nothing_left(temp)
    assert all(port_is_free(node["port"]) for node in facts["nodes"])
    assert shared_memory() <= before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_leaves_nothing(number: signal.Signals, temp: Path, tmp_path: Path) -> None:
    with started(TESTNET, "demo", "--out", tmp_path / "t.png", env=env_of(temp)) as demo:
        read_until(demo, "Run the job" if number == signal.SIGINT else "Start a network")
        wait_for(lambda: len(processes_in(temp)) >= 9, "nine nodes")
        demo.send_signal(number)
        demo.send_signal(number)  # an impatient one changes nothing
        rest = demo.communicate(timeout=30)[0]
        assert demo.returncode == 128 + number
        assert "Traceback" not in rest
    assert_nothing_left(temp)
    assert not (tmp_path / "t.png").exists()


def test_a_failure_in_the_middle_is_one_line_and_leaves_nothing(temp: Path, tmp_path: Path) -> None:
    with started(TESTNET, "demo", "--out", tmp_path / "t.png", env=env_of(temp)) as demo:
        read_until(demo, "Ask who could do it")
        (consumer,) = [pid for pid in processes_in(temp) if "consumer-1" in command_of(pid)]
        os.kill(consumer, signal.SIGKILL)
        rest: Any = demo.communicate(timeout=60)[0]
        assert demo.returncode in (1, 3, 5)
        assert "Traceback" not in rest
        assert [line for line in rest.splitlines() if line.startswith("error: ")] == [rest.splitlines()[-1]]
    assert_nothing_left(temp)


def test_nodes_end_when_the_testnet_is_killed_and_its_folder_can_be_used_again(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    with started(TESTNET, "up", "--json", "--topology", "small", "--dir", folder) as up:
        read_until(up, '"folder"')
        assert len(processes_in(folder)) == 5
        up.kill()
        up.wait()
    wait_for(lambda: processes_in(folder) == [], "the nodes end by themselves")
    with started(TESTNET, "up", "--json", "--topology", "small", "--dir", folder) as up:
        read_until(up, '"folder"')
        refused = run(TESTNET, "up", "--dir", folder, "--topology", "small")
        refused.check_refused("is up in", "down")
        up.send_signal(signal.SIGINT)
        assert up.wait(20) == 130
    assert processes_in(folder) == []
    assert not folder.exists()


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--tiles", "0x4"], "ROWSxCOLUMNS"),
        (["--tiles", "99x99"], "at most 256"),
        (["--topology", "nowhere"], "there are: default, small"),
        (["--out", "/"], "is a folder"),
    ],
)
def test_bad_options(args: list[str], words: str) -> None:
    if args[0] == "--out":
        assert run(TESTNET, "demo", *args).code == 2
        return
    assert run(TESTNET, "demo", *args).check_refused(words).code == 2
