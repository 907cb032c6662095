"""Topologies: which nodes a local network has. TOML files in `topologies/` beside this, or a file of one's own.

A node's `under` is the core node that delegates its prefix to it and that is its one bootstrap address; without it the
root key delegates, and the node starts from the first core node of the file. `count` makes several of one kind: their
names get a number, and a provider whose prefix has no provider code yet gets one.
"""

import importlib.resources
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from ioc_node.config import BulkConfig, GossipConfig, ResourceConfig, TasksConfig, convert_document
from ioc_node.errors import ConfigError, UsageError
from ioc_wire.authority import CORE_ROLES, Role
from ioc_wire.cid import check_prefix
from ioc_wire.errors import BadIdentifier

NODES_MAX: Final = 200
DEFAULT: Final = "default"
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the tables of a topology file."""


class NodePlan(_Table, frozen=True, kw_only=True):
    """One node, or `count` of a kind."""

    name: str
    role: Role
    prefix: str = ""
    under: str = ""
    place: str = ""
    """Words for people: where it stands."""
    count: Annotated[int, msgspec.Meta(ge=1, le=NODES_MAX)] = 1
    resources: tuple[ResourceConfig, ...] = ()
    bulk: BulkConfig | None = None
    gossip: GossipConfig | None = None
    """Both instead of the network's."""


class Topology(_Table, frozen=True, kw_only=True):
    """A network to start."""

    name: str
    nodes: Annotated[tuple[NodePlan, ...], msgspec.Meta(min_length=1, max_length=NODES_MAX)]
    admission: Literal["certified", "open"] = "certified"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    bulk: BulkConfig = BulkConfig()
    tasks: TasksConfig = TasksConfig()
    gossip: GossipConfig = GossipConfig()

    def role_count(self, role: str) -> int:
        return sum(plan.role == role for plan in self.nodes)


def load_topology(name: str | Path = DEFAULT) -> Topology:
    """The topology of that name, or in that file, with its counts spelled out. Raises `UsageError`, `ConfigError`."""
    path = Path(name)
    if path.suffix != ".toml":
        path = topologies_folder() / f"{name}.toml"
        if not path.is_file():
            known = ", ".join(sorted(item.stem for item in topologies_folder().glob("*.toml")))
            raise UsageError(f"there is no topology {str(name)!r}; there are: {known}; or name a FILE.toml")
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the topology {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    topology = convert_document(document, Topology, str(path))
    nodes = tuple(single for plan in topology.nodes for single in _spelled_out(plan))
    topology = msgspec.structs.replace(topology, nodes=nodes)
    check_topology(topology, str(path))
    return topology


def check_topology(topology: Topology, source: str = "topology") -> None:
    """Names are unique, prefixes well formed, and `under` names an earlier core node. Raises `ConfigError`."""
    core: set[str] = set()
    seen: set[str] = set()
    if len(topology.nodes) > NODES_MAX:
        raise ConfigError(f"{source}: {len(topology.nodes)} nodes, at most {NODES_MAX} are allowed")
    for plan in topology.nodes:
        if not _NAME.fullmatch(plan.name) or plan.name in seen:
            raise ConfigError(
                f"{source}: node name {plan.name!r} is taken or not lower case letters and digits"
            )
        seen.add(plan.name)
        try:
            check_prefix(plan.prefix)
        except BadIdentifier as error:
            raise ConfigError(f"{source}: {plan.name}: prefix: {error.detail}") from None
        if plan.under and plan.under not in core:
            raise ConfigError(f"{source}: {plan.name}: under: there is no core node {plan.under!r} above it")
        if plan.role in CORE_ROLES:
            core.add(plan.name)
    if not core:
        raise ConfigError(f"{source}: a network needs a core node (national, regional or industry)")


def topologies_folder() -> Path:
    """Where the shipped topologies lie: in the package."""
    return Path(str(importlib.resources.files("ioc_testnet"))) / "topologies"


def _spelled_out(plan: NodePlan) -> Iterator[NodePlan]:
    for number in range(1, plan.count + 1):
        prefix = plan.prefix
        if plan.role == "provider" and prefix.count(".") == 1:
            prefix = f"{prefix}.{20000 + number}"
        name = f"{plan.name}-{number}" if plan.count > 1 else plan.name
        yield msgspec.structs.replace(plan, name=name, prefix=prefix, count=1)
