"""The node's configuration: `config.toml` in its home folder.

Every key has a default but `role`, unknown keys are refused, and units stand last in names. Relative paths are
relative to the home folder.
"""

import ipaddress
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar

import msgspec
import platformdirs

from ioc_node.core.bandwidth import Ceilings, Traffic
from ioc_node.core.interest import Interest
from ioc_node.errors import ConfigError
from ioc_wire import limits
from ioc_wire.authority import Role
from ioc_wire.codec import Name, Port, ShortText, UInt
from ioc_wire.errors import WireError
from ioc_wire.identity import parse_node_id
from ioc_wire.records import Tflops

CONFIG_NAME: Final = "config.toml"
NETWORK_NAME: Final = "network.toml"
KEY_NAME: Final = "node.key"
CHAIN_NAME: Final = "delegations.bin"
DATABASE_NAME: Final = "node.db"
CATALOGUE_NAME: Final = "catalogue.db"
"""What a core node holds of all providers: may be deleted while the node is down, it is fetched again."""
PORT_DEFAULT: Final = 7400
ADDRESSES_MAX: Final = 7

Positive = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
MB_S_MIN: Final = 0.01
"""A lower ceiling would have peers give up a chunk (1 MiB) before it is there."""
MB_S_MAX: Final = 1e6
Ceiling = Annotated[float, msgspec.Meta(ge=MB_S_MIN, le=MB_S_MAX)]
WEIGHT_MIN: Final = 0.001
WEIGHT_MAX: Final = 1000
Weight = Annotated[float, msgspec.Meta(ge=WEIGHT_MIN, le=WEIGHT_MAX)]


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of the tables of the file."""


class AcceleratorConfig(_Table, frozen=True, kw_only=True):
    """A group of equal accelerators that this provider offers."""

    type: Name = "gpu"
    vendor: ShortText = ""
    model: Name
    count: Annotated[int, msgspec.Meta(ge=1)]
    memory_mib: UInt
    sharing: Literal["exclusive", "shared"] = "exclusive"
    tflops: Tflops = msgspec.field(default_factory=dict)


class ResourceConfig(_Table, frozen=True, kw_only=True):
    """One identifier that this provider registers. What is left out is read off this machine.

    `path` is class/city/zone/host below the provider's prefix. `type` "pool" names an aggregate: it is registered
    and resolved, tasks are placed on "node" resources. Prices in millionths of the currency.
    """

    path: str
    type: Literal["pool", "node"] = "node"
    cores: Annotated[int, msgspec.Meta(ge=1)] | None = None
    memory_mib: Annotated[int, msgspec.Meta(ge=1)] | None = None
    storage_mib: UInt | None = None
    accelerators: tuple[AcceleratorConfig, ...] = ()
    price_micro_per_core_hour: UInt = 0
    latitude: Annotated[float, msgspec.Meta(ge=-90, le=90)] = 0.0
    longitude: Annotated[float, msgspec.Meta(ge=-180, le=180)] = 0.0
    services: tuple[Name, ...] = ()
    labels: dict[Name, ShortText] = msgspec.field(default_factory=dict)
    task_seconds_max: UInt = 86400


class CollectorConfig(_Table, frozen=True, kw_only=True):
    """Where more of a provider's hosts are found: a collector by name, how often it looks, and its own options."""

    name: Name
    interval_seconds: Positive = 10.0
    options: dict[str, Any] = msgspec.field(default_factory=dict)

    @property
    def key(self) -> str:
        """What tells this one from others over restarts: its name and options."""
        return f"{self.name} {msgspec.json.encode(self.options, order='sorted').decode()}"


class BulkConfig(_Table, frozen=True, kw_only=True):
    """Bulk data. `engine` "auto" takes qh3 where it is installed; `offloads` names those that may be used, each with
    its own options; a large blob takes up to `connections_max` connections to each of its holders. `addresses`: further
    ones of this machine, used beside the first. With `own_process`, what goes by QUIC is moved by a process of its own,
    whose priority is lower by `nice`: links and requests stay quick meanwhile."""

    engine: Literal["auto", "qh3", "aioquic"] = "auto"
    offloads: tuple[Name, ...] = ("shm",)
    offload_options: dict[Name, dict[str, Any]] = msgspec.field(default_factory=dict)
    blobs_mib_max: Annotated[int, msgspec.Meta(ge=1)] = 1 << 20
    connections_max: Annotated[int, msgspec.Meta(ge=1, le=16)] = 4
    addresses: Annotated[tuple[str, ...], msgspec.Meta(max_length=ADDRESSES_MAX)] = ()
    own_process: bool = True
    nice: Annotated[int, msgspec.Meta(ge=0, le=19)] = 5


class DirectionConfig(_Table, frozen=True, kw_only=True):
    """Ceilings of what goes out, or comes in, in MB/s (10^6 bytes): in total, for each peer by itself, by class of
    traffic, and for single peers by node ID. None, or not named: no ceiling."""

    mb_s: Ceiling | None = None
    each_peer_mb_s: Ceiling | None = None
    classes_mb_s: dict[Traffic, Ceiling] = msgspec.field(default_factory=dict)
    peers_mb_s: dict[str, Ceiling] = msgspec.field(default_factory=dict)

    def ceilings(self, where: str) -> Ceilings:
        """In bytes per second. Raises `ConfigError` for a peer that is no node ID."""
        peers = {}
        for name, mb_s in self.peers_mb_s.items():
            try:
                peers[bytes(parse_node_id(name))] = mb_s * 1e6
            except WireError as error:
                raise ConfigError(f"{where}.peers_mb_s: {error}") from None
        return Ceilings(
            total=None if self.mb_s is None else self.mb_s * 1e6,
            each_peer=None if self.each_peer_mb_s is None else self.each_peer_mb_s * 1e6,
            classes={traffic: mb_s * 1e6 for traffic, mb_s in self.classes_mb_s.items()},
            peers=peers,
        )


class BandwidthConfig(_Table, frozen=True, kw_only=True):
    """What bulk data may take, and how transfers that wait for one ceiling share it: by the weight of their class."""

    weights: dict[Traffic, Weight] = msgspec.field(
        default_factory=lambda: {"interactive": 8.0, "task": 4.0, "bulk": 1.0}
    )
    sending: DirectionConfig = DirectionConfig()
    receiving: DirectionConfig = DirectionConfig()


class ExpressConfig(_Table, frozen=True, kw_only=True):
    """What this node takes of what others ship to it: for a price per 10^9 bytes in millionths of the currency (None:
    nothing), at most so much at a time, and expecting so many MB/s where nothing was measured."""

    price_micro_per_gb: UInt | None = None
    mib_max: Annotated[int, msgspec.Meta(ge=1)] = 1 << 20
    expected_mb_s: Positive = 50.0


class RelayConfig(_Table, frozen=True, kw_only=True):
    """What a core node passes on between peers that cannot reach each other: datagrams by UDP `port` (None: the node's
    port + 2), so many MiB per second and session, so many sessions at a time."""

    enabled: bool = True
    port: Port | None = None
    mib_per_second_max: Positive = 64.0
    sessions_max: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 256


class TasksConfig(_Table, frozen=True, kw_only=True):
    """Tasks, from both sides."""

    running_max: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 64
    lost_contact_seconds: Positive = 10.0
    lease_seconds: Positive = 30.0
    retention_seconds: Positive = 86400.0


class GossipConfig(_Table, frozen=True, kw_only=True):
    """How often status is sent without a change, and how often two core nodes compare what they hold. `interest`: the
    prefixes (`cn.r3301`; `cn.i` for all industry nodes) that a regional or industry node replicates; none: everything.
    """

    status_seconds: Positive = 5.0
    compare_seconds: Positive = 30.0
    interest: Annotated[tuple[str, ...], msgspec.Meta(max_length=limits.INTEREST_PREFIXES_MAX)] = ()


class NodeConfig(_Table, frozen=True, kw_only=True):
    """One node. `port` is TCP for links and UDP for the DHT; QUIC takes UDP `port + 1`, a core node's relay UDP `port
    + 2`. `outbound_only`: nobody can dial this node, since it is behind NAT or a firewall; it is reached through its
    core node."""

    role: Role
    outbound_only: bool = False
    home: Path = Path()
    host: str = "127.0.0.1"
    port: Port = PORT_DEFAULT
    advertise: str | None = None
    bootstrap: Annotated[tuple[str, ...], msgspec.Meta(max_length=64)] = ()
    network: str = NETWORK_NAME
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "console"
    resources: Annotated[tuple[ResourceConfig, ...], msgspec.Meta(max_length=8192)] = ()
    collectors: Annotated[tuple[CollectorConfig, ...], msgspec.Meta(max_length=16)] = ()
    bulk: BulkConfig = BulkConfig()
    tasks: TasksConfig = TasksConfig()
    gossip: GossipConfig = GossipConfig()
    relay: RelayConfig = RelayConfig()
    bandwidth: BandwidthConfig = BandwidthConfig()
    express: ExpressConfig = ExpressConfig()

    @classmethod
    def load(cls, home: str | Path | None = None) -> Self:
        """Read `config.toml` of a home folder (the platform's user data folder by default).

        Raises `ConfigError`: one line that names the file, the key and what was expected.
        """
        folder = home_folder(home)
        path = folder / CONFIG_NAME
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ConfigError(
                f"{path} does not exist: make it with `ioc-node --home {folder} init`"
            ) from None
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: not valid TOML: {error}") from None
        return msgspec.structs.replace(cls.parse(text, str(path)), home=folder)

    @classmethod
    def parse(cls, text: str, source: str = CONFIG_NAME) -> Self:
        """What the text of a `config.toml` says. Raises `ConfigError`."""
        try:
            document = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # also of numbers with thousands of digits
            raise ConfigError(f"{source}: not valid TOML: {error}") from None
        if "home" in document:
            raise ConfigError(f"{source}: home: unknown key; the home folder is the one that the file is in")
        config = convert_document(document, cls, source)
        config.check(source)
        return config

    def document(self) -> dict[str, Any]:
        """What `config.toml` says: every key that differs from its default. The home folder is where the file is."""
        document: dict[str, Any] = msgspec.to_builtins(self, enc_hook=str)
        document.pop("home", None)
        return document

    def check(self, source: str = CONFIG_NAME) -> None:
        """Raise `ConfigError` for keys that do not go together."""
        self.interest(source)
        for address in self.bulk.addresses:
            try:
                ipaddress.ip_address(address)
            except ValueError:
                raise ConfigError(f"{source}: bulk.addresses: {address!r} is no IP address") from None
        self.bandwidth.sending.ceilings(f"{source}: bandwidth.sending")
        self.bandwidth.receiving.ceilings(f"{source}: bandwidth.receiving")
        if self.outbound_only and self.is_core:
            raise ConfigError(
                f"{source}: outbound_only: a {self.role} node has to be reached by others; leave it out"
            )

    def interest(self, source: str = CONFIG_NAME) -> Interest:
        """What this core node replicates. Raises `ConfigError`: only regional and industry nodes may leave out some,
        since the national node is where others ask for what they lack.
        """
        prefixes = self.gossip.interest
        if prefixes and self.role not in ("regional", "industry"):
            raise ConfigError(
                f"{source}: gossip.interest: a {self.role} node replicates "
                f"{'everything' if self.is_core else 'nothing'}; leave it out"
            )
        try:
            return Interest.told(prefixes)
        except WireError as error:
            raise ConfigError(f"{source}: gossip.interest: {error}") from None

    @property
    def network_path(self) -> Path:
        return self.home / self.network

    @property
    def is_core(self) -> bool:
        return self.role in ("national", "regional", "industry")


def home_folder(home: str | Path | None) -> Path:
    """The home folder meant by an option that may be absent."""
    return Path(home).absolute() if home is not None else Path(platformdirs.user_data_dir("ioc-node"))


_T = TypeVar("_T")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>.*?)`")
_MISSING = re.compile(r"Object missing required field `(?P<key>.*?)`")
_WHERE = re.compile(r" - at `\$\.?(?P<where>[^`]*)`$")


def convert_document(document: Mapping[str, Any], kind: type[_T], source: str) -> _T:
    """A checked struct from a parsed TOML or JSON document.

    Raises `ConfigError` in one line: the source, the key, and what was expected of it.
    """
    try:
        return msgspec.convert(document, kind, strict=True)
    except (msgspec.ValidationError, RecursionError) as error:
        raise ConfigError(f"{source}: {explain_mistake(str(error))}") from None


def explain_mistake(message: str) -> str:
    """msgspec's words with the key in front: `resources[0].cores: expected int, got str`."""
    where_match = _WHERE.search(message)
    where = where_match["where"] if where_match else ""
    what = _WHERE.sub("", message)
    if unknown := _UNKNOWN.match(what):
        return f"{_join(where, unknown['key'])}: unknown key; the spelling is wrong or it belongs elsewhere"
    if missing := _MISSING.match(what):
        return f"{_join(where, missing['key'])}: missing; this key is required"
    return f"{where or 'document'}: {what[:1].lower()}{what[1:].replace('`', '')}"


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
