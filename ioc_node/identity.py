"""Who this node is: its key, its network, and the delegations that say what it may do."""

import datetime
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_bootstrap.network import Network, NetworkFileError, load_network
from ioc_node.config import CHAIN_NAME, KEY_NAME, NodeConfig
from ioc_node.errors import ConfigError
from ioc_node.runtime.keys import load_key
from ioc_wire import limits
from ioc_wire.authority import Chain, Grant, verify_chain
from ioc_wire.cid import self_certified_prefix
from ioc_wire.codec import decode, encode
from ioc_wire.errors import WireError
from ioc_wire.identity import NodeId, format_node_id, node_id_of
from ioc_wire.signed import Signed, public_bytes

CHAIN_BYTES_MAX: Final = 64 << 10
ENDS_SOON_SECONDS: Final = 7 * 86400
_WILDCARDS: Final = ("0.0.0.0", "::", "")  # noqa: S104 - names them to refuse them as an address for others


@dataclass(frozen=True)
class Identity:
    """A node's identity, checked. `grant` is None in an open network, unless another key endorsed this one."""

    key: Ed25519PrivateKey
    public_key: bytes
    network: Network
    chain: tuple[Signed, ...]
    grant: Grant | None

    @property
    def node_id(self) -> NodeId:
        return node_id_of(self.public_key)

    @property
    def name(self) -> str:
        return format_node_id(self.node_id)

    @property
    def prefix(self) -> str:
        """The prefix under which this node may name resources."""
        return self.grant.prefix if self.grant is not None else self_certified_prefix(self.public_key)

    def ends_soon(self, *, now: float) -> str:
        """One line where the delegation ends within `ENDS_SOON_SECONDS` of `now` or has ended, else empty."""
        if self.grant is None or (left := self.grant.not_after - now) > ENDS_SOON_SECONDS:
            return ""
        when = datetime.datetime.fromtimestamp(self.grant.not_after, datetime.UTC).strftime(
            "%Y-%m-%d %H:%M UTC"
        )
        what = f"ends on {when}" if left > 0 else f"ended on {when}: peers refuse this node"
        return f"{CHAIN_NAME} {what}; get another with `ioc-node authority issue`, and restart"


def load_identity(config: NodeConfig, *, now: float) -> Identity:
    """Read key, network file and delegations of a home folder, and check that they fit each other and the role.

    Raises `KeyFileUnsafe` or `ConfigError`, each one line that says what to do.
    """
    key = load_key(config.home / KEY_NAME)
    try:
        network = load_network(config.network_path)
    except NetworkFileError as error:
        raise ConfigError(str(error)) from None
    public = public_bytes(key)
    if not network.certified and not (config.home / CHAIN_NAME).exists():
        return Identity(key, public, network, (), None)
    chain = load_chain(config.home / CHAIN_NAME)
    try:
        grant = verify_chain(chain, roots=network.root_keys, now=now, self_certified=not network.certified)
    except WireError as error:
        raise ConfigError(
            f"{config.home / CHAIN_NAME} is no good in network {network.name!r}: {error}"
        ) from None
    if grant.subject != public:
        raise ConfigError(f"{config.home / CHAIN_NAME} was issued to another key than this node's")
    if config.role not in grant.roles:
        raise ConfigError(
            f"{config.home / CHAIN_NAME} grants {', '.join(grant.roles)}, but config.toml says role = {config.role!r}"
        )
    return Identity(key, public, network, chain, grant)


def load_chain(path: Path) -> tuple[Signed, ...]:
    """The delegation chain in a file, root first, not yet verified. Raises `ConfigError`."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(
            f"this network is certified and {path} does not exist: ask its operator for a delegation "
            "(`ioc-node authority issue` makes one)"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    try:
        chain: tuple[Signed, ...] = decode(data, Chain, size_max=CHAIN_BYTES_MAX)
    except WireError as error:
        raise ConfigError(f"{path} is not a delegation chain: {error}") from None
    return chain


def save_chain(path: Path, chain: Sequence[Signed]) -> None:
    """Write a chain so that a crash leaves either the old file or the new one. Raises `ConfigError`."""
    if not 1 <= len(chain) <= limits.CHAIN_LINKS_MAX:
        raise ConfigError(f"a chain has 1 to {limits.CHAIN_LINKS_MAX} links, not {len(chain)}")
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
            file.write(encode(tuple(chain)))
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


def advertised_host(config: NodeConfig) -> str:
    """The host that others are told. Raises `ConfigError` where only a wildcard is known."""
    host = config.advertise or config.host
    if host in _WILDCARDS:
        raise ConfigError(
            f'host = "{config.host}" listens everywhere, which others cannot dial: set advertise to the address '
            "under which this node is reached"
        )
    return host
