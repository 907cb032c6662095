"""Homes for nodes that run inside the test's own trio loop."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from ioc_bootstrap.network import create_network, sign_network
from ioc_node.config import BulkConfig, NodeConfig, ResourceConfig
from ioc_node.runtime.keys import create_key
from ioc_testnet.ports import free_ports
from ioc_wire.authority import Role
from ioc_wire.signed import public_bytes

MakeHome = Callable[..., NodeConfig]


_given: set[int] = set()


def free_port() -> int:
    """A port that is free for TCP and UDP, and whose two neighbours are free for UDP: below those that the kernel gives
    to whoever asks for any, so that nobody is given it while a node is stopped and started again. Each only once.
    """
    while True:
        (port,) = free_ports(1)
        if port not in _given:
            _given.add(port)
            return port


@pytest.fixture
def network_text(tmp_path: Path) -> str:
    """An open network that nobody else is in."""
    root = create_key(tmp_path / "root.key")
    text = create_network("test", root_keys=[public_bytes(root)], threshold=1, admission="open")
    return sign_network(text, root)


@pytest.fixture
def make_home(tmp_path: Path, network_text: str) -> MakeHome:
    """Make the home folder of a node and return its configuration."""

    def make(name: str, role: Role, *, bootstrap: tuple[str, ...] = (), **more: object) -> NodeConfig:
        home = tmp_path / name
        home.mkdir(mode=0o700)
        create_key(home / "node.key")
        (home / "network.toml").write_text(network_text)
        # Bulk data in this process: quick to start, and open to these tests. Those of the CLI have the usual one.
        bulk = more.pop("bulk", BulkConfig())
        assert isinstance(bulk, BulkConfig)
        resources = (ResourceConfig(path="gen/3301/az1/h1", cores=2, memory_mib=1024),)
        return NodeConfig(
            role=role,
            home=home,
            port=free_port(),
            bootstrap=bootstrap,
            resources=resources if role == "provider" else (),
            bulk=msgspec.structs.replace(bulk, own_process=False),
            **more,  # type: ignore[arg-type]
        )

    return make
