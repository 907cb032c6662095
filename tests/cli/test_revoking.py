"""Revocations and endorsements on the command line, without a running node."""

from pathlib import Path

import pytest

from ioc_node.cli.revoking import read_revocation
from ioc_node.config import CHAIN_NAME, KEY_NAME, NodeConfig
from ioc_node.identity import load_identity
from ioc_node.runtime.keys import load_key
from ioc_wire.authority import verify_chain
from ioc_wire.cid import self_certified_prefix
from ioc_wire.signed import public_bytes
from tests.cli.inside import Cli


def _into(folder: Path) -> tuple[object, ...]:
    folder.mkdir(exist_ok=True)
    return ("-o", folder / "network.toml", "--keys", folder / "roots")


@pytest.fixture
def town(cli: Cli, tmp_path: Path) -> Path:
    """A certified network by hand: one root key, a core node, a provider and another core node."""
    cli.text(None, "network", "create", "town", "--roots", 1, "--threshold", 1, *_into(tmp_path))
    for name, role in (("core", "regional"), ("box", "provider"), ("other", "regional")):
        path = ("--path", "gen/3301/az1/h1") if role == "provider" else ()
        cli.text(
            tmp_path / name,
            "init",
            "--role",
            role,
            "--network",
            tmp_path / "network.toml",
            "--port",
            7500,
            *path,
        )
    root = tmp_path / "roots" / "root-1.key"
    for to, prefix in (("core", "cn.r3301"), ("other", "cn.r3302")):
        issue = ("authority", "issue", "--issuer", root, "--to", tmp_path / to, "--role", "regional")
        cli.text(None, *issue, "--prefix", prefix, "--days", 90)
    issue = (
        "authority",
        "issue",
        "--issuer",
        tmp_path / "core",
        "--to",
        tmp_path / "box",
        "--role",
        "provider",
    )
    cli.text(None, *issue, "--prefix", "cn.r3301.20004")
    return tmp_path


def test_revoking_a_provider_by_key_home_and_file(cli: Cli, town: Path) -> None:
    key = cli.json(town / "box", "id")["public_key"]
    until = set()
    for of in (key, town / "box", town / "box" / CHAIN_NAME):
        file = town / "revocation.bin"
        revoke = ("authority", "revoke", "--issuer", town / "core", "--of", of, "-o", file)
        facts = cli.json(None, *revoke, "--reason", "sold")
        assert (facts["revoked"], facts["reason"]) == (key, "sold")
        assert facts["bytes"] < 1200
        until.add(facts["until"])
        shown = cli.json(None, "authority", "show", file, "--network", town / "network.toml")
        assert shown["verified"]
    assert len(until) == 1
    assert until.pop() > facts["issued"] + 89 * 86400, "all that the core node can have granted so far"
    assert "sold" in cli.text(None, "authority", "show", town / "revocation.bin")


def test_a_root_key_and_the_key_itself_revoke(cli: Cli, town: Path) -> None:
    key = cli.json(town / "core", "id")["public_key"]
    for issuer, of in ((town / "roots" / "root-1.key", ("--of", key)), (town / "core", ())):
        file = town / "revocation.bin"
        facts = cli.json(None, "authority", "revoke", "--issuer", issuer, *of, "-o", file)
        assert facts["revoked"] == key
        shown = cli.json(None, "authority", "show", file, "--network", town / "network.toml")
        assert shown["verified"]


def test_refusals_say_what_to_do(cli: Cli, town: Path) -> None:
    key = cli.json(town / "box", "id")["public_key"]
    revoke = ("authority", "revoke", "--issuer", town / "other")
    file = town / "revocation.bin"
    cli.refused(None, *revoke, "--of", town / "box", words=["--output FILE", "--announce"], code=2)
    cli.refused(
        None, *revoke, "--of", town / "box", "-o", file, words=["may not revoke", "granted nothing"], code=4
    )
    cli.refused(
        None, *revoke, "--of", key, "-o", file, words=["keeps no delegation", "authority issue -o"], code=2
    )
    cli.refused(None, *revoke, "--of", "nobody", "-o", file, words=["--of", "64 hexadecimal digits"], code=2)
    cli.refused(None, *revoke, "--reason", "x" * 129, "-o", file, words=["129 characters"], code=2)
    assert not file.exists()
    cli.refused(town / "core", "authority", "announce", town / "network.toml", words=["holds no revocation"])
    cli.text(None, "authority", "revoke", "--issuer", town / "core", "--of", key, "-o", file)
    cli.refused(town / "core", "authority", "announce", file, words=["no node"], code=3)
    stranger = ("network", "create", "else", "--roots", 1, "--threshold", 1, *_into(town / "else"))
    cli.text(None, *stranger)
    elsewhere = town / "else" / "network.toml"
    cli.refused(None, "authority", "show", file, "--network", elsewhere, words=["does not hold"], code=4)


def test_another_key_for_a_self_certified_prefix(cli: Cli, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    cli.text(old, "init", "--new-network", "harbour", "--port", 7500, "--path", "gen/local/z1/h1")
    join = ("--role", "provider", "--network", old / "network.toml", "--port", 7510)
    cli.text(new, "init", *join, "--path", "gen/local/z1/h1")
    prefix = self_certified_prefix(public_bytes(load_key(old / KEY_NAME)))
    issue = ("authority", "issue", "--issuer", old, "--to", new)
    cli.refused(None, *issue, "--role", "regional", words=["grants provider, no more"], code=4)
    facts = cli.json(None, *issue, "--role", "provider")
    assert facts["links"][0]["prefix"] == prefix
    assert cli.json(new, "authority", "show")["verified"]
    identity = load_identity(NodeConfig.load(new), now=facts["links"][0]["not_before"] + 100)
    assert identity.prefix == prefix
    now = facts["links"][0]["not_before"]
    assert verify_chain(identity.chain, roots=(), now=now, self_certified=True).roles == ("provider",)
    file = tmp_path / "revocation.bin"
    cli.text(None, "authority", "revoke", "--issuer", old, "--of", new, "-o", file)
    assert read_revocation(file).chain == identity.chain
    assert cli.json(old, "authority", "show", file)["verified"]
