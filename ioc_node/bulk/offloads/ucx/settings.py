"""What the operator sets for UCX, and what follows from it: where to listen, whom to trust, which devices to use."""

import ipaddress
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
import psutil

from ioc_node.bulk.offload import Options
from ioc_node.errors import ConfigError

INTERFACES_MAX: Final = 4
Transport = Literal["ib", "rc", "ud", "dc", "tcp", "sm", "posix", "sysv", "cma", "xpmem", "knem"]
"""UCX's names; with one that it does not know, and no other, it crashes."""
SHARED_MEMORY: Final = frozenset(("sm", "posix", "sysv", "cma", "xpmem", "knem"))
_CLASS_NET: Final = Path("/sys/class/net")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class UcxOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table `[bulk.offload_options.ucx]`."""

    interfaces: Annotated[tuple[str, ...], msgspec.Meta(max_length=INTERFACES_MAX)] = ()
    networks: Annotated[tuple[str, ...], msgspec.Meta(max_length=64)] = ()
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    transports: tuple[Transport, ...] = ("ib", "tcp", "sm")
    """RDMA verbs where there are any, else TCP; shared memory between processes of one host."""
    library: str = ""


class UcxSettings:
    """Options that were found to make sense on this machine. Raises `ConfigError` with one line."""

    def __init__(self, options: Options) -> None:
        try:
            self.options = msgspec.convert(dict(options), UcxOptions)
        except msgspec.ValidationError as error:
            raise ConfigError(f"bulk.offload_options.ucx: {error}") from None
        if not self.options.interfaces:
            raise ConfigError("bulk.offload_options.ucx: name the interfaces, such as interfaces = ['ib0']")
        if "tcp" not in self.options.transports:
            raise ConfigError("bulk.offload_options.ucx: transports must contain tcp, by which nodes meet")
        addresses = psutil.net_if_addrs()
        self.hosts: list[str] = []
        attached: list[Network] = []
        for name in self.options.interfaces:
            found = [
                each for each in addresses.get(name, ()) if each.family == socket.AF_INET and each.netmask
            ]
            if not found:
                known = ", ".join(sorted(addresses))
                raise ConfigError(
                    f"bulk.offload_options.ucx: no interface {name} with an IPv4 address; there are {known}"
                )
            self.hosts.append(found[0].address)
            attached.append(ipaddress.ip_network(f"{found[0].address}/{found[0].netmask}", strict=False))
        self.networks: Sequence[Network] = _networks(self.options.networks) or attached
        self.rdma_devices = tuple(rdma_devices(self.options.interfaces))

    def trusts(self, host: str) -> bool:
        """Whether UCX may talk to this address."""
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return any(address in network for network in self.networks)

    def is_here(self, host: str) -> bool:
        """Whether an address is this host's own."""
        return any(each.address == host for found in psutil.net_if_addrs().values() for each in found)

    def shares_memory(self, host: str) -> bool:
        """Whether UCX may use shared memory towards this address."""
        return not SHARED_MEMORY.isdisjoint(self.options.transports) and self.is_here(host)

    def down(self) -> str:
        """The first interface that is down; empty if all are up."""
        found = psutil.net_if_stats()
        return next(
            (name for name in self.options.interfaces if not (name in found and found[name].isup)), ""
        )

    def ucx(self) -> dict[str, str]:
        """Settings of UCX's context."""
        return {
            "TLS": ",".join((*self.options.transports, "self")),
            "NET_DEVICES": ",".join((*self.rdma_devices, *self.options.interfaces)),
            "SOCKADDR_TLS_PRIORITY": "tcp",  # readers meet holders on the named addresses, whatever carries the bytes
            "TCP_PUT_ENABLE": "n",
            "TCP_TX_SEG_SIZE": "64k",  # 8k and 64k are meant for messages: half as much again of processors' time
            "TCP_RX_SEG_SIZE": "256k",
            "KEEPALIVE_INTERVAL": "2s",
        }


def rdma_devices(interfaces: Iterable[str], class_net: Path = _CLASS_NET) -> list[str]:
    """The RDMA devices behind network interfaces, as UCX names them: `mlx5_0:1`."""
    found = []
    for name in interfaces:
        for device in sorted((class_net / name / "device" / "infiniband").glob("*")):
            ports = sorted(port.name for port in (device / "ports").glob("*"))
            found += [f"{device.name}:{port}" for port in ports or ("1",)]
    return found


def _networks(names: Iterable[str]) -> list[Network]:
    try:
        return [ipaddress.ip_network(name) for name in names]
    except ValueError as error:
        raise ConfigError(f"bulk.offload_options.ucx: networks: {error}") from None
