"""Two terminals without a testnet: `init` and `up` twice, one bootstrap address, an open network."""

import json
import signal
from pathlib import Path

from ioc_testnet.ports import free_ports
from tests.cli.inside import Cli
from tests.testnet.command import NODE, processes_in, read_until, run, started, wait_for


def test_init_and_up_on_two_homes(cli: Cli, tmp_path: Path) -> None:
    alice, bob = tmp_path / "alice", tmp_path / "bob"
    first, second = free_ports(2)
    made = cli.json(alice, "init", "--new-network", "harbour", "--port", first, "--cores", "2")
    cli.json(
        bob, "init", "--network", alice / "network.toml", "--role", "consumer", "--port", second,
        "--bootstrap", f"127.0.0.1:{first}",
    )  # fmt: skip
    (cid,) = made["identifiers"]
    with (
        started(NODE, "--home", alice, "up") as up_alice,
        started(NODE, "--home", bob, "up", "--json") as up_bob,
    ):
        read_until(up_alice, "ready: provider n")
        ready = json.loads(read_until(up_bob, '"ready"').splitlines()[-1])
        assert ready["port"] == second
        wait_for(lambda: cli.json(bob, "status")["joined"] > 0, "bob joins")
        wait_for(lambda: cli.call(bob, "resolve", cid)[0] == 0, "bob resolves alice's identifier")
        taken = run(NODE, "--home", alice, "up")
        assert taken.code != 0
        assert "another node is running" in taken.err
        assert "Traceback" not in taken.err
        busy = tmp_path / "busy"
        cli.json(busy, "init", "--network", alice / "network.toml", "--port", first)
        in_use = run(NODE, "--home", busy, "up")
        assert in_use.code != 0
        assert str(first) in in_use.err.splitlines()[-1]
        assert "Traceback" not in in_use.err
        for process, number in ((up_bob, signal.SIGINT), (up_alice, signal.SIGTERM)):
            process.send_signal(number)
            assert process.wait(10) == 0
    assert processes_in(tmp_path) == []
