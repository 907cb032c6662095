"""A client written in JavaScript from `wire/SPEC.md` talks to a running node, on real sockets."""

import json
from pathlib import Path
from typing import Any, Final

import trio

from ioc_node.runtime.dht import open_dht
from tests.runtime.dht_nodes import NETWORK, dht_options

SCRIPT: Final = Path(__file__).resolve().parent / "ask_node.mjs"


async def ask(node: str, port: int, network: bytes) -> tuple[int, str, str]:
    words = [node, str(SCRIPT), "127.0.0.1", str(port), network.hex()]
    done = await trio.run_process(words, capture_stdout=True, capture_stderr=True, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


async def test_it_opens_a_session_stores_a_record_and_reads_it_back(node: str) -> None:
    async with open_dht(**dht_options("bob")) as bob:
        with trio.fail_after(30):
            status, out, err = await ask(node, bob.address[1], NETWORK)
        assert (status, err) == (0, "")
        saw: dict[str, Any] = json.loads(out)
        assert saw["peer"] == bob.key.hex()
        assert saw["seen"] == f"127.0.0.1:{saw['bound']}"
        assert (saw["stored"], saw["got"], saw["verified"]) == ("Stored", saw["cid"], True)
        assert (saw["older"], saw["forged"], saw["newer"], saw["unknown"]) == (20, 5, None, 2)
        # And a node of ours believes the record that JavaScript signed.
        got = await bob.get(saw["cid"])
        assert (got.resource.version, got.resource.cpu.model) == (2, "JavaScript")
        assert bob.contacts() == [], "a client enters no table"


async def test_it_is_refused_in_another_network(node: str) -> None:
    async with open_dht(**dht_options("bob")) as bob:
        with trio.fail_after(30):
            status, out, err = await ask(node, bob.address[1], bytes(32))
        assert status != 0
        assert out == ""
        assert "REFUSED 9" in err
