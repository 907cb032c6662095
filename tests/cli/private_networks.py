"""Two private networks behind masquerade and a public host, made of network namespaces; needs root, ip and nft.

    alice 10.1.0.2 ── 10.1.0.1 NAT 198.51.100.2 ── 198.51.100.1 core
      bob 10.2.0.2 ── 10.2.0.1 NAT 198.51.101.2 ── 198.51.101.1 core

The core node listens at 192.0.2.1. It has no route to the private networks, and they have none to each other.
"""

import contextlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pytest

CORE_ADDRESS: Final = "192.0.2.1"
_MASQUERADE: Final = (
    "table ip nat {{ chain out {{ type nat hook postrouting priority srcnat; "
    "oifname {uplink} masquerade; }}; }}"
)


@dataclass(frozen=True)
class PrivateNetworks:
    """The namespaces of the three nodes."""

    core: str
    alice: str
    bob: str


def inside(namespace: str, *command: str) -> tuple[str, ...]:
    """`command` in a namespace."""
    return ("ip", "netns", "exec", namespace, *command)


def require_namespaces() -> None:
    """Skip where this machine cannot make them; a failure where it is expected to (IOC_REQUIRE_NAT=1)."""
    lacking = [name for name in ("ip", "nft") if shutil.which(name) is None]
    if os.geteuid() != 0:
        lacking.append("root")
    if not lacking:
        return
    reason = f"private networks need {', '.join(lacking)}"
    if os.environ.get("IOC_REQUIRE_NAT") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@contextlib.contextmanager
def open_private_networks() -> Iterator[PrivateNetworks]:
    """Make them; all is gone when the block ends."""
    name = f"ioc{secrets.token_hex(3)}"
    spaces = {each: f"{name}-{each}" for each in ("core", "alice", "bob", "nat1", "nat2")}
    with contextlib.ExitStack() as stack:
        for space in spaces.values():
            _do("ip", "netns", "add", space)
            stack.callback(_do, "ip", "netns", "del", space)
            _do(*inside(space, "ip", "link", "set", "lo", "up"))
        _do(*inside(spaces["core"], "ip", "addr", "add", f"{CORE_ADDRESS}/32", "dev", "lo"))
        for number, host in ((1, "alice"), (2, "bob")):
            nat, public = spaces[f"nat{number}"], f"198.51.{99 + number}"
            _pair(spaces["core"], f"{public}.1/24", nat, f"{public}.2/24", f"up{number}")
            _pair(nat, f"10.{number}.0.1/24", spaces[host], f"10.{number}.0.2/24", f"in{number}")
            _do(*inside(nat, "ip", "route", "add", "default", "via", f"{public}.1"))
            _do(*inside(spaces[host], "ip", "route", "add", "default", "via", f"10.{number}.0.1"))
            _do(*inside(nat, "tee", "/proc/sys/net/ipv4/ip_forward"), given="1\n")
            _do(*inside(nat, "nft", _MASQUERADE.format(uplink=f"up{number}b")))
        yield PrivateNetworks(spaces["core"], spaces["alice"], spaces["bob"])


def _pair(first: str, first_address: str, second: str, second_address: str, name: str) -> None:
    """A cable between two namespaces: `name`a in the first one, `name`b in the second."""
    ends = ((first, first_address, f"{name}a"), (second, second_address, f"{name}b"))
    _do(
        "ip",
        "link",
        "add",
        f"{name}a",
        "netns",
        first,
        "type",
        "veth",
        "peer",
        "name",
        f"{name}b",
        "netns",
        second,
    )
    for space, address, device in ends:
        _do(*inside(space, "ip", "addr", "add", address, "dev", device))
        _do(*inside(space, "ip", "link", "set", device, "up"))


def _do(*command: str, given: str = "") -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, input=given)
    assert done.returncode == 0, (command, done.stderr)
