"""ioc-node: one node of an Internet of Compute.

    import ioc_node

    async with ioc_node.open_node(ioc_node.NodeConfig.load()) as node: ...

See `docs/embedding.md`.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ioc_node.config import NodeConfig
    from ioc_node.market.demand import make_demand as Demand  # noqa: N812 - reads as the constructor it is
    from ioc_node.node import Node, open_node
    from ioc_node.tasks.definition import TaskSpec

_HOMES = {
    "Demand": ("ioc_node.market.demand", "make_demand"),
    "Node": ("ioc_node.node", "Node"),
    "NodeConfig": ("ioc_node.config", "NodeConfig"),
    "TaskSpec": ("ioc_node.tasks.definition", "TaskSpec"),
    "open_node": ("ioc_node.node", "open_node"),
}


def __getattr__(name: str) -> Any:
    """Load public names on first use: `ioc-node --help` should not wait for a QUIC engine."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)


__all__ = ["Demand", "Node", "NodeConfig", "TaskSpec", "__version__", "open_node"]
