"""Commands that need no running node: homes, networks, delegations, and how mistakes are told."""

import json
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ioc_node.cli.common import span_text, unabbreviate
from ioc_node.cli.faults import explain
from ioc_node.config import NodeConfig
from ioc_node.errors import NodeError, PeerUnreachable, UsageError
from ioc_wire.errors import LeaseRefused, RemoteFault
from tests.cli.inside import Cli
from tests.testnet.command import NODE, run


def test_help_is_quick_and_lists_every_command() -> None:
    run(NODE, "--help")
    began = time.perf_counter()
    done = run(NODE, "--help").check()
    assert time.perf_counter() - began < 2
    for command in (
        "init",
        "up",
        "status",
        "peers",
        "resolve",
        "find",
        "add",
        "get",
        "submit",
        "tasks",
        "receipts",
    ):
        assert f"  {command} " in done.out


def test_init_makes_a_safe_home_and_never_overwrites_it(cli: Cli, tmp_path: Path) -> None:
    home = tmp_path / "home"
    facts = cli.json(home, "init", "--new-network", "harbour", "--port", "7500", "--path", "gen/local/z1/h1")
    assert stat.S_IMODE((home / "node.key").stat().st_mode) == 0o600
    config = NodeConfig.load(home)
    assert (config.role, config.port) == ("provider", 7500)
    assert facts["identifiers"][0].endswith("/gen/local/z1/h1")
    assert "# role " in (home / "config.toml").read_text()
    before = {path.name: path.read_bytes() for path in home.iterdir()}
    cli.refused(home, "init", "--new-network", "harbour", words=["exists already"], code=2)
    assert {path.name: path.read_bytes() for path in home.iterdir()} == before
    assert cli.json(home, "id")["node_id"] == facts["node_id"]
    assert cli.json(home, "network", "show")["network_id"] == facts["network_id"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "--network FILE"),
        (("--network", "/nowhere/network.toml"), "/nowhere/network.toml"),
        (("--new-network", "x", "--bootstrap", "host"), "has no port"),
        (("--new-network", "x", "--path", "GEN/a/b"), "not a compute identifier"),
        (("--new-network", "x", "--memory", "many"), "--memory"),
        (("--new-network", "x", "--role", "king"), "king"),
        (("--new-network", "x", "--port", "70000"), "70000"),
        (("--new-network", "x", "--port", "many"), "'many' is no whole number"),
        (("--home", "x"), "--home belongs before the command"),
    ],
)
def test_init_refuses_what_cannot_be_meant(
    args: tuple[str, ...], words: str, cli: Cli, tmp_path: Path
) -> None:
    cli.refused(tmp_path / "home", "init", *args, words=[words], code=2)
    assert not (tmp_path / "home" / "config.toml").exists()


def test_a_network_and_its_delegations(cli: Cli, tmp_path: Path) -> None:
    file, keys = tmp_path / "network.toml", tmp_path / "roots"
    facts = cli.json(None, "network", "create", "harbour", "-o", file, "--keys", keys, "--roots", "3")
    assert (facts["threshold"], len(facts["root_keys"])) == (2, 3)
    assert all(stat.S_IMODE(Path(path).stat().st_mode) == 0o600 for path in facts["key_files"])
    cli.refused(
        None, "network", "create", "harbour", "-o", file, "--keys", keys, words=["exists already"], code=2
    )
    core, provider = tmp_path / "core", tmp_path / "provider"
    for home, role in ((core, "regional"), (provider, "provider")):
        cli.json(home, "init", "--network", file, "--role", role, "--path", "gen/3301/z1/h1")
    root = keys / "root-1.key"
    cli.json(
        None,
        "authority",
        "issue",
        "--issuer",
        root,
        "--to",
        core,
        "--prefix",
        "cn.r3301",
        "--role",
        "regional",
    )
    issue = ("authority", "issue", "--issuer", core, "--to", provider, "--role", "provider")
    cli.refused(None, *issue, "--prefix", "cn.r1101.20001", words=["cannot grant"], code=4)
    cli.refused(None, *issue, "--prefix", "CN", words=["CN"], code=2)
    assert not (provider / "delegations.bin").exists()
    cli.json(None, *issue, "--prefix", "cn.r3301.20001")
    shown = cli.json(provider, "authority", "show")
    assert shown["verified"] is True
    assert [link["roles"] for link in shown["links"]] == [["regional"], ["provider"]]
    other = tmp_path / "other.toml"
    cli.json(None, "network", "create", "other", "-o", other, "--keys", tmp_path / "others")
    cli.refused(provider, "authority", "show", "--network", other, words=["not signed by a root key"], code=4)
    file.write_text(file.read_text().replace("harbour", "harvest"))
    cli.refused(None, "network", "show", file, words=["signed by 0 of its root keys"], code=2)


@pytest.mark.parametrize("command", ["status", "peers", "tasks", "receipts", "register"])
def test_a_node_that_does_not_run_is_unreachable(command: str, cli: Cli, tmp_path: Path) -> None:
    cli.refused(tmp_path, command, words=["no node is running"], code=3)


@pytest.mark.parametrize(
    ("args", "words", "code"),
    [
        (("bogus",), "No such command", 2),
        (("find", "--cores"), "--cores", 2),
        (("find", "--cores", "0"), "--cores", 2),
        (("find", "--gpu", "a:b:c:d"), "TYPE:MODEL:COUNT", 2),
        (("find", "--within", "CN"), "prefix", 2),
        (("resolve", "ioc:nonsense"), "ioc:ROOT.NODE.PROVIDER", 2),
        (("submit", "/nowhere.toml"), "/nowhere.toml", 2),
        (("get", "b123456", "-o", "/"), "is a folder", 2),
        (("get", "b123456", "-o", "/dev/null"), "not a plain file", 2),
        (("get", "b" + "!" * 52, "-o", "/blob"), "base32", 5),
        (("add", "/nowhere"), "does not exist", 2),
    ],
)
def test_bad_words_on_the_command_line(
    args: tuple[str, ...], words: str, code: int, cli: Cli, tmp_path: Path
) -> None:
    assert code
    cli.refused(tmp_path, *args, words=[words])


def up_refused(home: Path, *words: str) -> None:
    """`up` fails with one clear line; a machine's fault has exit code 1, so it is checked here."""
    done = run(NODE, "--home", home, "up")
    assert done.code != 0
    assert "Traceback" not in done.out + done.err
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done
    assert "internal error" not in lines[0]
    for word in words:
        assert word in lines[0], done


@pytest.fixture
def home(cli: Cli, tmp_path: Path) -> Path:
    cli.json(tmp_path / "home", "init", "--new-network", "harbour", "--port", "7600")
    return tmp_path / "home"


def test_up_refuses_a_config_with_an_unknown_key(home: Path) -> None:
    config = home / "config.toml"
    config.write_text(config.read_text().replace("port =", "prot =", 1))
    up_refused(home, "config.toml", "prot", "unknown key")


def test_up_refuses_an_unsafe_or_unreadable_key(home: Path) -> None:
    (home / "node.key").chmod(0o644)
    up_refused(home, "0644", "chmod 600")
    (home / "node.key").chmod(0o600)
    (home / "node.key").write_text("not a key")
    up_refused(home, "node.key", "no usable private key")
    (home / "node.key").unlink()
    up_refused(home, "node.key", "does not exist")


def test_up_refuses_a_network_file_that_was_tampered_with(home: Path) -> None:
    file = home / "network.toml"
    file.write_text(file.read_text().replace("harbour", "harvest"))
    up_refused(home, "network.toml", "signed by 0")


def test_up_keeps_a_corrupt_database_aside(home: Path) -> None:
    garbage = b"not a database at all" * 1000
    (home / "node.db").write_bytes(garbage)
    up_refused(home, "node.db")
    assert garbage in [path.read_bytes() for path in home.glob("node.db*")]


def test_up_without_a_home(tmp_path: Path) -> None:
    up_refused(tmp_path / "nothing", "does not exist", "init")


def test_a_bug_is_one_line_and_its_traceback_is_kept(tmp_path: Path) -> None:
    program = (
        "import sys, click\n"
        "from ioc_node.cli.faults import run_group\n"
        "@click.group()\n"
        "@click.option('--home')\n"
        "def group(home): pass\n"
        "@group.command()\n"
        "def bug(): raise ExceptionGroup('many', [ZeroDivisionError('by nought')])\n"
        "sys.exit(run_group(group, None, 'x'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "--home", str(tmp_path), "bug"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "internal error: ZeroDivisionError: by nought" in done.stderr
    assert "Traceback" in (tmp_path / "crash.log").read_text()


def test_a_reader_that_goes_away_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m ioc_node.cli.main --help | head -1; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 141)
    assert done.stderr == ""


def test_explain_finds_the_expected_error_in_groups() -> None:
    group = BaseExceptionGroup(
        "a", [ExceptionGroup("b", [PeerUnreachable("nobody\nthere")]), KeyboardInterrupt()]
    )
    assert explain(group)[:2] == ("nobody there", 3)
    assert explain(KeyboardInterrupt()).exit_code == 130
    assert explain(RemoteFault("the disk is full"))[:2] == ("the disk is full", 5)
    assert explain(LeaseRefused("full")).exit_code == 4
    assert explain(NodeError("odd")).exit_code == 1
    assert explain(ExceptionGroup("c", [UsageError("x"), ValueError("y")])).bug is not None


def test_spans() -> None:
    assert [span_text(value) for value in (0.34, 12, 200, 7500, 273600)] == [
        "340 ms", "12 s", "3 min 20 s", "2 h 5 min", "3 d 4 h",
    ]  # fmt: skip


def test_abbreviations() -> None:
    known = ["tabc1", "tabd2"]
    assert unabbreviate("tabd", known, "task") == "tabd2"
    for word, message in (("tab", "2 tasks begin"), ("x", "no task begins")):
        with pytest.raises(UsageError, match=message):
            unabbreviate(word, known, "task")


def test_errors_are_json_too(cli: Cli, tmp_path: Path) -> None:
    code, out, _ = cli.call(tmp_path, "status", "--json")
    told: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert (code, told["exit_code"]) == (3, 3)
    assert "no node is running" in told["error"]
