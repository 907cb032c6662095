"""Found a local network: root keys, network file, a home folder with key, configuration and delegations per node."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.cli.delegating import Issuer, delegate
from ioc_node.cli.homes import make_home
from ioc_node.cli.networks import found_network
from ioc_node.config import CHAIN_NAME, KEY_NAME, NodeConfig
from ioc_node.runtime.keys import create_key, load_key
from ioc_testnet.ports import free_ports
from ioc_testnet.topology import NodePlan, Topology
from ioc_wire.authority import CORE_ROLES, Role
from ioc_wire.cid import self_certified_prefix
from ioc_wire.codec import encode

HOST: Final = "127.0.0.1"
ROOTS: Final = 2
DAYS: Final = 30.0


@dataclass(frozen=True)
class Founded:
    """One node that can be started."""

    plan: NodePlan
    home: Path
    host: str
    port: int
    key: bytes
    bootstrap: str
    prefix: str


def found_testnet(topology: Topology, folder: Path) -> list[Founded]:
    """Make everything that the nodes of `topology` need, below `folder`. Raises `NodeError`, `NetworkFileError`."""
    roots_folder = folder / "roots"
    roots_folder.mkdir(mode=0o700)
    roots = [create_key(roots_folder / f"root-{number}.key") for number in range(1, ROOTS + 1)]
    network = found_network(f"testnet-{topology.name}", roots, ROOTS, topology.admission)
    (folder / "network.toml").write_text(network, encoding="utf-8")
    ports = dict(
        zip((plan.name for plan in topology.nodes), free_ports(len(topology.nodes), HOST), strict=True)
    )
    first_core = next(plan.name for plan in topology.nodes if plan.role in CORE_ROLES)
    issuers = {"": Issuer(roots[0], ())}
    founded = []
    for plan in topology.nodes:
        peer = plan.under or _other_core(plan.name, first_core, topology)
        bootstrap = f"{HOST}:{ports[peer]}" if peer else ""
        home = folder / plan.name
        key = make_home(home, _config(plan, topology, ports[plan.name], bootstrap), network)
        prefix = plan.prefix
        if topology.admission == "certified":
            _certify(plan, home, key, issuers)
        elif plan.role == "provider":
            prefix = self_certified_prefix(key)
        founded.append(Founded(plan, home, HOST, ports[plan.name], key, bootstrap, prefix))
    return founded


def _other_core(name: str, first_core: str, topology: Topology) -> str:
    """The one bootstrap peer of a node that stands under nobody: the first core node, for that one the second."""
    if name != first_core:
        return first_core
    return next((plan.name for plan in topology.nodes if plan.role in CORE_ROLES and plan.name != name), "")


def _config(plan: NodePlan, topology: Topology, port: int, bootstrap: str) -> NodeConfig:
    return NodeConfig(
        role=plan.role,
        host=HOST,
        port=port,
        bootstrap=(bootstrap,) if bootstrap else (),
        log_level=topology.log_level,
        resources=plan.resources,
        bulk=plan.bulk or topology.bulk,
        tasks=topology.tasks,
        gossip=plan.gossip or topology.gossip,
    )


def _certify(plan: NodePlan, home: Path, key: bytes, issuers: dict[str, Issuer]) -> None:
    """Delegate the plan's prefix to `key`, from the core node that it stands under or from the root."""
    role: Role = plan.role
    chain = delegate(issuers[plan.under], key, plan.prefix, (role,), now=time.time(), days=DAYS)
    (home / CHAIN_NAME).write_bytes(encode(chain))
    private: Ed25519PrivateKey = load_key(home / KEY_NAME)
    issuers[plan.name] = Issuer(private, chain)


class SavedNode(msgspec.Struct, frozen=True):
    """One line of the state file. `pid` 0 and no `mark` where the node is down."""

    name: str
    role: str
    home: str
    host: str
    port: int
    key: str
    bootstrap: str
    prefix: str
    place: str
    identifiers: tuple[str, ...]
    pid: int = 0
    mark: str = ""


class SavedTestnet(msgspec.Struct, frozen=True):
    """The state file of a network, `testnet.json` in its folder."""

    topology: str
    created: float
    owner_pid: int
    owner_mark: str
    nodes: tuple[SavedNode, ...]


def saved_node(node: Founded) -> SavedNode:
    """What is remembered of a node that is not started yet."""
    return SavedNode(
        name=node.plan.name,
        role=node.plan.role,
        home=str(node.home),
        host=node.host,
        port=node.port,
        key=node.key.hex(),
        bootstrap=node.bootstrap,
        prefix=node.prefix,
        place=node.plan.place,
        identifiers=tuple(f"ioc:{node.prefix}/{resource.path}" for resource in node.plan.resources),
    )
