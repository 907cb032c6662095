"""Addresses of peers as people write them: `host:port`, `192.0.2.1:4600`, `[2001:db8::1]:4600`."""

import ipaddress
import re
from typing import Final, NamedTuple

_NAME: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")
_FORM: Final = re.compile(r"(?:\[(?P<v6>[^\[\]]*)\]|(?P<host>[^\[\]:]*)):(?P<port>[0-9]{1,5})", re.ASCII)


class BadAddress(ValueError):
    """Not the address of a peer; `str()` says what is wrong with it."""


class Address(NamedTuple):
    """Where a peer takes links. Unpacks as `(host, port)`."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Parse `host:port` or `[v6]:port`; raises `BadAddress`."""
    shown = repr(text[:80])
    match = _FORM.fullmatch(text.strip())
    if match is None:
        if text.count(":") > 1 and not text.startswith("["):
            raise BadAddress(f"{shown}: write an IPv6 address in brackets, [2001:db8::1]:4600")
        if ":" not in text:
            raise BadAddress(f"{shown} has no port: write host:port")
        raise BadAddress(f"{shown} does not read host:port or [v6]:port")
    port = int(match["port"])
    if not 1 <= port <= 65535:
        raise BadAddress(f"{shown}: port {port} is not between 1 and 65535")
    if match["v6"] is not None:
        try:
            return Address(str(ipaddress.IPv6Address(match["v6"])), port)
        except ValueError:
            raise BadAddress(f"{shown}: {match['v6'][:80]!r} is not an IPv6 address") from None
    return Address(_check_host(match["host"], shown), port)


def _check_host(host: str, shown: str) -> str:
    if not host:
        raise BadAddress(f"{shown} has no host: write host:port")
    if re.fullmatch(r"[0-9.]+", host):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise BadAddress(f"{shown}: {host!r} is not an IPv4 address") from None
    if len(host) > 253 or _NAME.fullmatch(host) is None:
        raise BadAddress(f"{shown}: {host[:80]!r} is not a host name")
    return host.lower()
