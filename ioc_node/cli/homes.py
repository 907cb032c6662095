"""`init`: make a home folder. The testnet makes its homes with the same function."""

import platform
import re
from pathlib import Path
from typing import Any, Final, get_args

import click
import tomli_w
from rich.console import Console

from ioc_bootstrap.addresses import parse_address
from ioc_bootstrap.network import Network, parse_network
from ioc_node.cli.common import pairs, show, with_home
from ioc_node.cli.networks import found_network
from ioc_node.config import (
    CONFIG_NAME,
    KEY_NAME,
    NETWORK_NAME,
    PORT_DEFAULT,
    NodeConfig,
    ResourceConfig,
    convert_document,
)
from ioc_node.errors import UsageError
from ioc_node.market.demand import mebibytes
from ioc_node.runtime.keys import create_key
from ioc_wire.authority import Role
from ioc_wire.cid import parse_cid, self_certified_prefix
from ioc_wire.identity import format_node_id, node_id_of
from ioc_wire.signed import public_bytes

ROLES: Final[tuple[str, ...]] = get_args(Role)
ROOT_KEY_NAME: Final = "root.key"

_ABOUT: Final = """\
# Configuration of one ioc-node. Every key but `role` has a default; unknown keys are refused.
#
# role       national, regional and industry are core nodes; provider serves tasks; consumer only asks
# host       address to listen at; 0.0.0.0 for all, and then `advertise` says how others reach this node
# port       TCP for links and UDP for the DHT; bulk data takes UDP port + 1
# bootstrap  first peers as host:port; the network file's are tried after these
# outbound_only  true behind NAT or a firewall: nobody can dial this node, core nodes pass on what is for it
# network    the network file, relative to this folder
#
# [[resources]] of a provider, one per identifier: path (class/city/zone/host below its prefix), type (pool or node),
# cores, memory_mib, storage_mib, price_micro_per_core_hour, accelerators, services, labels. What is left out is
# read off this machine. Also [bulk], [tasks] and [gossip]; docs/operating.md lists all keys.

"""


def make_home(home: Path, config: NodeConfig, network: str) -> bytes:
    """Write key (0600), config.toml and network file into `home`; returns the public key.

    Raises `UsageError`, and writes nothing, where there is a key or a configuration already.
    """
    check_new(home)
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = create_key(home / KEY_NAME)
        (home / NETWORK_NAME).write_text(network, encoding="utf-8")
        (home / CONFIG_NAME).write_text(config_text(config), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot make the home folder {home}: {error.strerror or error}") from None
    return public_bytes(key)


def check_new(home: Path) -> None:
    """Raise `UsageError` where `home` is a home folder already."""
    for name in (CONFIG_NAME, KEY_NAME):
        if (home / name).exists():
            raise UsageError(
                f"{home / name} exists already; init makes new homes only (choose another --home)"
            )


def config_text(config: NodeConfig) -> str:
    """`config.toml` with its comments."""
    document = config.document()
    first = {
        "role": config.role,
        "host": config.host,
        "port": config.port,
        "bootstrap": list(config.bootstrap),
    }
    return _ABOUT + tomli_w.dumps({**first, **{key: document[key] for key in document if key not in first}})


@click.command()
@click.option("--role", type=click.Choice(ROLES), default="provider", show_default=True)
@click.option("--network", "network_file", type=click.Path(path_type=Path), help="Network file to join.")
@click.option("--new-network", metavar="NAME", help="Found an open network of your own instead.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--advertise", help="Address under which others reach this node, where it differs.")
@click.option("--port", type=click.IntRange(1, 65534), default=PORT_DEFAULT, show_default=True)
@click.option(
    "--outbound-only",
    is_flag=True,
    help="Nobody can dial this node (NAT, firewall): reach it through core nodes.",
)
@click.option("--bootstrap", multiple=True, metavar="HOST:PORT", help="A first peer; may be given again.")
@click.option("--path", "path_", metavar="CLASS/CITY/ZONE/HOST", help="What a provider's identifier reads.")
@click.option("--cores", type=click.IntRange(min=1), help="Cores to offer (all of this machine).")
@click.option("--memory", help="Memory to offer, such as 8GiB (all of this machine).")
@click.option("--price", type=click.FloatRange(min=0), default=0.0, help="Price per core-hour.")
@with_home
def init(
    home: Path,
    role: Role,
    network_file: Path | None,
    new_network: str | None,
    host: str,
    advertise: str | None,
    port: int,
    outbound_only: bool,
    bootstrap: tuple[str, ...],
    path_: str | None,
    cores: int | None,
    memory: str | None,
    price: float,
    as_json: bool,
) -> None:
    """Make a home folder: a fresh key (mode 0600), config.toml with comments, and the network file.

    An existing home is never overwritten.
    """
    for address in bootstrap:
        parse_address(address)
    check_new(home)
    text = _network_text(home, network_file, new_network)
    network = parse_network(text.encode(), str(network_file or "the new network file"))
    resources: tuple[ResourceConfig, ...] = ()
    if role == "provider":
        resource: dict[str, Any] = {"path": path_ or f"edge/local/home/{_host_segment()}"}
        if cores is not None:
            resource["cores"] = cores
        if memory is not None:
            resource["memory_mib"] = mebibytes("--memory", memory)
        resource["price_micro_per_core_hour"] = round(price * 1e6)
        parse_cid(f"ioc:{self_certified_prefix(bytes(32))}/{resource['path']}")
        resources = (convert_document(resource, ResourceConfig, "init"),)
    config = NodeConfig(
        role=role,
        outbound_only=outbound_only,
        host=host,
        advertise=advertise,
        port=port,
        bootstrap=bootstrap,
        resources=resources,
    )
    config.check()
    key = make_home(home, config, text)
    _show_home(home, key, network, config, as_json)


def _network_text(home: Path, network_file: Path | None, new_network: str | None) -> str:
    if (network_file is None) == (new_network is None):
        raise UsageError(
            "name the network: --network FILE to join one (its operator hands the file out), "
            "or --new-network NAME to found an open one"
        )
    if network_file is not None:
        try:
            return network_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read the network file {network_file}: {error}") from None
    assert new_network is not None
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UsageError(f"cannot make the home folder {home}: {error.strerror or error}") from None
    return found_network(new_network, [create_key(home / ROOT_KEY_NAME)], 1, "open")


def _host_segment() -> str:
    """This machine's name as a segment of an identifier."""
    name = re.sub(r"[^a-z0-9_-]", "-", platform.node().lower().partition(".")[0])[:32]
    return name if re.match(r"[a-z0-9]", name) else "host"


def _show_home(home: Path, key: bytes, network: Network, config: NodeConfig, as_json: bool) -> None:
    node_id = format_node_id(node_id_of(key))
    prefix = self_certified_prefix(key)
    identifiers = [f"ioc:{prefix}/{resource.path}" for resource in config.resources]
    facts = {
        "home": str(home),
        "node_id": node_id,
        "public_key": key.hex(),
        "network": network.name,
        "network_id": network.network_id.hex(),
        "role": config.role,
        "port": config.port,
        "identifiers": identifiers,
    }
    needs = ""
    if network.certified:
        needs = f"this network is certified: have {key.hex()} delegated (ioc-node authority issue)"

    def render(console: Console) -> None:
        pairs(
            console,
            [
                ("home", home),
                ("node", node_id),
                ("public key", key.hex()),
                ("network", f"{network.name} ({network.admission})"),
                ("role", f"{config.role}, port {config.port}"),
                ("identifiers", "\n".join(identifiers) if not network.certified else ""),
                ("needs", needs),
                ("next", f"ioc-node --home {home} up"),
            ],
        )

    show(as_json, facts, render)
