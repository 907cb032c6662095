"""A provider and a consumer, each in a private network behind masquerade: a task and blobs through the core node."""

import contextlib
import json
import os
from pathlib import Path

from tests.cli.inside import Cli
from tests.cli.private_networks import CORE_ADDRESS, inside, open_private_networks, require_namespaces
from tests.testnet.command import NODE, processes_in, read_until, started, wait_for

HELLO = Path(__file__).parents[2] / "examples" / "hello.toml"
SIZE = 5 * (1 << 20) + 11


def test_a_task_and_blobs_between_two_private_networks(cli: Cli, tmp_path: Path) -> None:
    require_namespaces()
    core, alice, bob = (tmp_path / name for name in ("core", "alice", "bob"))
    at_core = ("--bootstrap", f"{CORE_ADDRESS}:7400", "--outbound-only", "--network", core / "network.toml")
    cli.json(
        core, "init", "--role", "regional", "--new-network", "city", "--host", CORE_ADDRESS, "--port", "7400"
    )
    cli.json(alice, "init", "--role", "provider", "--host", "10.1.0.2", *at_core)
    cli.json(bob, "init", "--role", "consumer", "--host", "10.2.0.2", *at_core)
    for home in (alice, bob):  # they are on one machine after all, and would share its memory
        config = home / "config.toml"
        config.write_text(config.read_text() + "\n[bulk]\noffloads = []\n")
    with open_private_networks() as spaces, contextlib.ExitStack() as stack:
        for space, home in ((spaces.core, core), (spaces.alice, alice), (spaces.bob, bob)):
            process = stack.enter_context(started(inside(space, *NODE), "--home", home, "up", "--json"))
            read_until(process, '"ready"')
        wait_for(lambda: cli.json(bob, "status")["joined"] > 0, "bob joins")
        find = ("find", "--runtime", "wasm")
        wait_for(lambda: bool(cli.json(bob, *find)["offers"]), "bob finds alice's machine")
        reached = cli.json(alice, "status")["reached"]
        assert reached.startswith("through core node n")
        done = cli.json(bob, "submit", HELLO, "--follow")
        assert done["state"] == "COMPLETE", json.dumps(done)

        payload = os.urandom(SIZE)
        for number, (holder, reader) in enumerate(((alice, bob), (bob, alice))):
            (tmp_path / "data").write_bytes(payload + bytes([number]))
            blob = cli.json(holder, "add", tmp_path / "data")["blob"]
            got = cli.json(reader, "get", blob, "-o", tmp_path / "copy")
            assert (tmp_path / "copy").read_bytes() == payload + bytes([number])
            assert got["transport"].startswith("quic")

        def metered() -> int:
            return sum(row["datagram_bytes"] for row in cli.json(core, "relayed")["rows"])

        wait_for(lambda: metered() > 2 * SIZE, "the core node has metered both blobs")
        assert metered() < 2.5 * SIZE
    assert processes_in(tmp_path) == []
