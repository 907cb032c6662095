"""Core nodes in processes of their own, as `bench.catalogue` drives them, and the homes that they run on."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from bench.catalogue_files import Made
from ioc_bootstrap.network import create_network, sign_network
from ioc_node.identity import save_chain
from ioc_node.runtime.keys import create_key
from ioc_wire.signed import public_bytes


class CoreNode:
    """A running `bench.catalogue_member`."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._input: IO[str] = process.stdin
        self._output: IO[str] = process.stdout
        opened = self.hear()
        self.began: float = opened["began"]
        """When its process began to open the node, on the clock that all processes share."""

    def tell(self, do: str, **told: Any) -> None:
        """Send one line."""
        self._input.write(json.dumps({"do": do, **told}) + "\n")
        self._input.flush()

    def hear(self) -> dict[str, Any]:
        """The next answer; raises `RuntimeError` when the process has ended."""
        line = self._output.readline()
        if not line:
            raise RuntimeError("a core node of the bench ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, do: str, **told: Any) -> dict[str, Any]:
        """Send one line and wait for its answer."""
        self.tell(do, **told)
        return self.hear()


class Homes:
    """Home folders of core nodes of one certified network that rests on a population's root key."""

    def __init__(self, folder: Path, made: Made) -> None:
        self._folder = folder
        self._made = made
        root = made.population.root
        self._network = sign_network(
            create_network("bench", root_keys=[public_bytes(root)], threshold=1), root
        )

    def make(self, name: str, *, bootstrap: str = "") -> tuple[Path, str]:
        """The home of a national node, and the address where it will listen."""
        home = self._folder / name
        home.mkdir(mode=0o700)
        population = self._made.population
        key = create_key(home / "node.key")
        save_chain(home / "delegations.bin", [population.grant(population.root, key, "cn", "national")])
        (home / "network.toml").write_text(self._network)
        port = free_port()
        lines = [
            'role = "national"',
            f"port = {port}",
            f"bootstrap = {json.dumps([bootstrap] if bootstrap else [])}",
        ]
        (home / "config.toml").write_text("\n".join(lines) + "\n")
        return home, f"127.0.0.1:{port}"


@contextmanager
def open_core_node(home: Path, made: Made) -> Iterator[CoreNode]:
    """Run a node until the block ends."""
    command = [sys.executable, "-m", "bench.catalogue_member", str(home), str(made.folder)]
    process = subprocess.Popen(
        [*command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONHASHSEED": "0"},
    )
    try:
        yield CoreNode(process)
    finally:
        process.kill()
        process.communicate()


def free_port() -> int:
    """A port that is free for TCP and UDP, and whose neighbour is free for UDP."""
    while True:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bulk,
        ):
            tcp.bind(("127.0.0.1", 0))
            port: int = tcp.getsockname()[1]
            try:
                udp.bind(("127.0.0.1", port))
                bulk.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
