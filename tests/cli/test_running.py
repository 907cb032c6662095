"""Commands that ask a running node, against a small network."""

import hashlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from ioc_testnet.network import Testnet
from ioc_testnet.programs import program_path
from tests.cli.inside import Cli
from tests.testnet.command import NODE

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def home(shared_net: Testnet) -> Path:
    return shared_net["consumer-1"].home


def task_file(folder: Path, program: str = "hello", *, more: str = "", command: str = '["x", "you"]') -> Path:
    path = folder / "task.toml"
    path.write_text(
        f'name = "{program}"\n{more}\n[executor]\nruntime = "wasm"\nprogram = "file:{program_path(program)}"\n'
        f"command = {command}\n[resources]\ncores = 1\nmemory_mib = 16\ndisk_mib = 1\n[limits]\nwall_seconds = 60\n"
    )
    return path


def test_status_and_peers(cli: Cli, home: Path) -> None:
    facts = cli.json(home, "status")
    assert (facts["role"], facts["network"]) == ("consumer", "testnet-small")
    assert facts["joined"] > 0
    assert facts["node_id"] in cli.text(home, "status")
    rows = cli.json(home, "peers")["peers"]
    assert any(peer["linked"] and peer["in_table"] and 0 < peer["rtt_ms"] < 1000 for peer in rows)
    assert "regional" in cli.text(home, "peers")


def test_overview_of_a_core_node(cli: Cli, home: Path, shared_net: Testnet) -> None:
    core = shared_net.with_role("regional")[0].home
    (row,) = cli.json(core, "overview")["rows"]
    assert row["providers"] == 2
    assert row["hosts"] <= row["identifiers"]
    assert f"of {row['providers']}" in cli.text(core, "overview")
    cli.refused(home, "overview", words=["a consumer node holds no catalogue"])


def test_a_provider_says_what_it_offers(cli: Cli, shared_net: Testnet) -> None:
    home = shared_net["provider-1"].home
    assert "wasm" in cli.json(home, "status")["runtimes"]
    (row,) = cli.json(home, "register")["registered"]
    assert (row["cid"], row["refused"]) == ("ioc:cn.r3301.20001/gen/3301/az1/h1", [])
    assert row["stored"] >= 1
    assert row["cid"] in cli.text(home, "register")


def test_resolve_with_its_trace(cli: Cli, home: Path) -> None:
    cid = "ioc:cn.r3301.20002/gen/3301/az1/h1"
    facts = cli.json(home, "resolve", cid, "--trace")
    while (
        facts["source"] != "dht"
    ):  # servers are still getting to know each other; a core node has it already
        time.sleep(0.1)
        facts = cli.json(home, "resolve", cid, "--trace")
    assert (facts["cid"], facts["cores"]) == (cid, 4)
    assert (facts["source"], facts["ending"]) == ("dht", "stopped")
    assert "record" in [hop["answer"] for hop in facts["trace"]]
    assert facts["trace"][0].keys() == {"node_id", "host", "port", "round", "rtt_ms", "answer", "tries"}
    text = cli.text(home, "resolve", cid, "--trace")
    assert "answered by" in text
    assert "127.0.0.1:" in text
    assert "search in the DHT stopped: enough valid answers" in text


def test_resolve_that_fails_shows_whom_it_asked(cli: Cli, home: Path) -> None:
    absent = "ioc:cn.r3301.29999/gen/3301/az1/h1"
    cli.refused(home, "resolve", absent, words=["not found", absent, "DHT: ", "core node "], code=5)
    code, out, err = cli.call(home, "resolve", absent, "--trace")
    assert code == 5
    assert "not held" in out
    assert " core " in out
    assert "search in the DHT completed: the nearest servers that live have all answered" in out
    assert err.startswith("error: not found: ")
    code, out, err = cli.call(home, "resolve", absent, "--trace", "--json")
    facts = json.loads(out.splitlines()[-1])
    assert (code, facts["exit_code"], facts["ending"]) == (5, 5, "completed")
    assert {hop["round"] for hop in facts["trace"]} >= {0, 1}
    assert err.count("\n") == 1


@pytest.mark.parametrize("as_json", [False, True])
def test_watching_an_identifier_until_interrupted(home: Path, as_json: bool) -> None:
    cid = "ioc:cn.r3301.20002/gen/3301/az1/h1"
    words = [*NODE, "--home", str(home), "resolve", "--watch", cid, *(["--json"] if as_json else [])]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        line = watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        _, err = watching.communicate(timeout=20)
    assert watching.returncode == 130, err
    if as_json:
        facts = json.loads(line)
        assert (facts["cid"], facts["withdrawn"], facts["cores"]) == (cid, False, 4)
    else:
        assert f"{cid} version " in line
        assert "told by" in line


def test_find_ranks_and_says_what_was_left_out(cli: Cli, home: Path) -> None:
    facts = cli.json(home, "find", "--cores", "2", "--runtime", "wasm", "--policy", "latency")
    assert len(facts["offers"]) == 2
    assert facts["offers"][0]["reasons"]
    assert facts["offers"][0]["route"]
    text = cli.text(home, "find", "--cores", "2", "--within", "cn.r3301.20002")
    assert " 1  ioc:cn.r3301.20002" in text
    assert " 2  ioc:" not in text
    assert "left out 1 by" in text
    none = cli.json(home, "find", "--gpu", "gpu:h100:8")
    assert none["offers"] == []
    assert sum(row["removed"] for row in none["removed"]) == 2
    cli.refused(home, "find", "--policy", "magic", words=["magic"])


def test_pages_of_offers_until_there_are_no_more(cli: Cli, home: Path) -> None:
    seen, words = [], ["--page"]
    for _ in range(2):
        page = cli.json(home, "find", "--limit", "1", *words)
        seen += [offer["cid"] for offer in page["offers"]]
        words = ["--after", page["cursor"]]
    assert len(set(seen)) == 2
    assert "no more offers: the page before was the last" in cli.text(home, "find", "--limit", "1", *words)
    cli.refused(home, "find", "--after", "0x1p+9:zz", words=["is no cursor; take it from the page before"])


def test_a_file_goes_in_and_comes_out_elsewhere(cli: Cli, shared_net: Testnet, tmp_path: Path) -> None:
    source, target = tmp_path / "in.bin", tmp_path / "out.bin"
    source.write_bytes(os.urandom(700_001))
    added = cli.json(shared_net["consumer-1"].home, "add", source)
    assert added["size"] == 700_001
    data = source.read_bytes()
    home = shared_net["provider-1"].home
    for span, part in (("3-9", data[3:10]), ("699999-", data[-2:])):  # from its holder: no copy is here
        cli.text(home, "get", added["blob"], "-o", target, "--range", span)
        assert target.read_bytes() == part
    cli.refused(home, "get", added["blob"], "-o", target, "--range", "0-999999", words=["not within"], code=2)
    cli.refused(home, "get", added["blob"], "-o", target, "--range", "9-3", words=["ends before"], code=2)
    cli.refused(home, "get", added["blob"], "-o", "-", "--json", words=["both want stdout"], code=2)
    command = [*NODE, "--home", str(home), "get", added["blob"], "-o", "-"]
    assert subprocess.run(command, check=True, capture_output=True, timeout=60).stdout == data
    got = cli.json(shared_net["provider-1"].home, "get", added["blob"], "-o", target)
    assert got["bytes_moved"] == 700_001
    assert hashlib.sha256(target.read_bytes()).digest() == hashlib.sha256(source.read_bytes()).digest()
    assert "MB/s" in cli.text(shared_net["provider-2"].home, "get", added["blob"], "-o", target)
    absent = "b" + "a" * 52
    cli.refused(shared_net["provider-1"].home, "get", absent, "-o", tmp_path / "no", words=["not found"])
    assert not (tmp_path / "no").exists()


def test_submit_follow_result_logs_and_receipt(cli: Cli, home: Path, tmp_path: Path) -> None:
    text = cli.text(home, "submit", EXAMPLES / "hello.toml", "--follow", "-o", tmp_path / "made")
    for words in ("submitted hello as t", "RUNNING", "Hello, world!", "COMPLETE", "wrote "):
        assert words in text
    assert "world" in (tmp_path / "made" / "greeting.txt").read_text()
    listed = cli.json(home, "tasks")["tasks"][0]
    assert (listed["name"], listed["state"]) == ("hello", "COMPLETE")
    task = listed["task"]
    assert task[:10] in cli.text(home, "tasks")
    assert "Hello, world!" in cli.text(home, "logs", task[:12])
    facts = cli.json(home, "result", task[:12], "-o", tmp_path / "again")
    assert facts["state"] == "COMPLETE"
    assert (tmp_path / "again" / "greeting.txt").is_file()
    (mine,) = [row for row in cli.json(home, "receipts", "--verify")["receipts"] if row["task"] == task]
    assert (mine["verified"], mine["state"]) == (True, "COMPLETE")
    assert mine["receipt"] == facts["receipts"][0]
    assert "verified with both signatures" in cli.text(home, "receipts", "--verify")


def test_cancel_a_running_task(cli: Cli, home: Path) -> None:
    task = cli.text(home, "submit", EXAMPLES / "sleeper.toml").strip()
    while cli.json(home, "tasks")["tasks"][0]["state"] != "RUNNING":
        pass
    cli.text(home, "cancel", task[:12])
    cli.refused(home, "result", task, words=["CANCELED"], code=5)
    assert "had ended already: CANCELED" in cli.text(home, "cancel", task)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('name = "x"\nexecutor = 5\n', ["task.toml", "executor"]),
        ('name = "x"\ncolour = 1\n[executor]\nruntime = "wasm"\n', ["colour", "unknown key"]),
        (
            'name = "x"\n[executor]\nruntime = "wasm"\nprogram = "file:none.wasm"\n',
            ["none.wasm", "does not exist"],
        ),
        ('name = "x"\n[resources]\ncores = "many"\n[executor]\nruntime = "wasm"\n', ["resources.cores"]),
        ("name = ", ["not valid TOML"]),
    ],
)
def test_a_bad_task_file_is_refused_before_anything_is_sent(
    text: str, words: list[str], cli: Cli, home: Path, tmp_path: Path
) -> None:
    before = cli.json(home, "tasks")["tasks"]
    (tmp_path / "task.toml").write_text(text)
    cli.refused(home, "submit", tmp_path / "task.toml", words=words, code=2)
    assert cli.json(home, "tasks")["tasks"] == before


def test_a_missing_input_is_refused(cli: Cli, home: Path, tmp_path: Path) -> None:
    path = task_file(tmp_path, more='inputs = [{path = "a", url = "file:absent.bin"}]')
    cli.refused(home, "submit", path, words=["inputs[0].url", "absent.bin", "does not exist"], code=2)


def test_an_impossible_demand_names_the_nearest_miss_at_once(cli: Cli, home: Path, tmp_path: Path) -> None:
    path = task_file(tmp_path)
    path.write_text(path.read_text().replace("cores = 1", "cores = 64"))
    code, out, err = cli.call(home, "submit", path, "--follow")
    assert code not in (0, 1)
    assert "Traceback" not in out + err
    for words in ("cannot be placed", "nearest", "of the 64 cores"):
        assert words in err, (out, err)


def test_an_output_that_is_never_written_fails_the_task(cli: Cli, home: Path, tmp_path: Path) -> None:
    path = task_file(tmp_path, "noop", more='outputs = [{path = "never.txt"}]')
    code, out, err = cli.call(home, "submit", path, "--follow")
    assert code == 5, (out, err)
    assert "never.txt" in err
    assert err.count("\n") == 1


def test_ids_that_nobody_knows(cli: Cli, home: Path) -> None:
    cli.refused(home, "logs", "tzzzzzz", words=["no task begins with"], code=2)
    cli.refused(home, "cancel", "t" + "a" * 52, words=["there is no task"], code=2)
    cli.refused(home, "result", "t" + "!" * 52, words=["base32"])
