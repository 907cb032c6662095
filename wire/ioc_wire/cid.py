"""Compute identifiers: `ioc:cn.r3301.20004/ai/3301/az1/h7f3a/gpu0`.

The grammar (ABNF in `wire/SPEC.md`) is this project's own: no public standard gives one. Capacity is never part of
a name, because it changes and the name does not. A path cut short names the aggregate.
"""

import functools
import hashlib
import re
from typing import Final, NamedTuple

from ioc_wire import limits
from ioc_wire.errors import BadIdentifier
from ioc_wire.identity import base32

_ROOT = r"(?:[a-z]{2}|p2p)"
_NODE = r"(?:n0|r[0-9]{4}|i[a-z0-9]{2,8})"
_PROVIDER = r"(?:[0-9]{5}|k[a-z2-7]{52})"
_SEGMENT = r"[a-z0-9][a-z0-9_-]{0,31}"
_CID = re.compile(
    rf"ioc:(?P<prefix>{_ROOT}\.{_NODE}\.{_PROVIDER})"
    rf"/(?P<path>(?:gen|ai|sup|edge)/{_SEGMENT}/{_SEGMENT}(?:/{_SEGMENT}){{0,2}})"
)
_PREFIX = re.compile(rf"(?:{_ROOT}(?:\.{_NODE}(?:\.{_PROVIDER})?)?)?")
_AREA = re.compile(rf"ioc:{_ROOT}\.{_NODE}\.{_PROVIDER}(?:/(?:gen|ai|sup|edge)(?:/{_SEGMENT}){{0,4}})?/?")

EXAMPLE_AREA: Final = "ioc:cn.r3301.20004/ai/3301"
CLASSES: Final = ("gen", "ai", "sup", "edge")
CITIES_CN: Final = re.compile(r"[0-9]{4}")


class Cid(NamedTuple):
    """A parsed identifier. `path` holds class, city, zone and, where given, host and device."""

    prefix: str
    path: tuple[str, ...]

    def __str__(self) -> str:
        return f"ioc:{self.prefix}/{'/'.join(self.path)}"

    @property
    def resource_class(self) -> str:
        """General, AI, supercomputing or edge: `gen`, `ai`, `sup`, `edge`."""
        return self.path[0]

    @property
    def city(self) -> str:
        """Four digits of GB/T 2260 under root `cn`."""
        return self.path[1]

    @property
    def zone(self) -> str:
        return self.path[2]

    def contains(self, other: "Cid") -> bool:
        """Whether `other` is this identifier or one below it (a host of this zone, a device of this host)."""
        return self.prefix == other.prefix and other.path[: len(self.path)] == self.path


@functools.lru_cache(maxsize=4096)
def parse_cid(text: str) -> Cid:
    """Parse the canonical text of an identifier; raises `BadIdentifier` saying what is wrong with it."""
    if len(text) > limits.CID_BYTES_MAX:
        raise BadIdentifier(f"{len(text)} characters, at most {limits.CID_BYTES_MAX} are allowed")
    match = _CID.fullmatch(text)
    if match is None:
        raise BadIdentifier(
            f"{text[:80]!r} does not read ioc:ROOT.NODE.PROVIDER/CLASS/CITY/ZONE[/HOST[/DEVICE]] in lower case"
        )
    cid = Cid(match["prefix"], tuple(match["path"].split("/")))
    if cid.prefix.startswith("cn.") and not CITIES_CN.fullmatch(cid.city):
        raise BadIdentifier(
            f"{text[:80]!r}: under root cn the city is a four-digit GB/T 2260 code, not {cid.city!r}"
        )
    return cid


def cid_key(text: str) -> bytes:
    """The DHT key of an identifier: SHA-256 of its canonical text, 32 bytes. Raises `BadIdentifier`."""
    parse_cid(text)
    return hashlib.sha256(text.encode()).digest()


def check_prefix(prefix: str) -> str:
    """Return `prefix` if it is a (possibly empty, possibly partial) identifier prefix, else raise `BadIdentifier`."""
    if _PREFIX.fullmatch(prefix) is None:
        raise BadIdentifier(f"{prefix[:80]!r} is not a prefix such as cn, cn.r3301 or cn.r3301.20004")
    return prefix


def check_area(area: str) -> str:
    """Return `area` if it is a prefix or the beginning of an identifier, else raise `BadIdentifier`."""
    if not area.startswith("ioc:"):
        return check_prefix(area)
    if len(area) > limits.CID_BYTES_MAX or _AREA.fullmatch(area) is None:
        raise BadIdentifier(f"{area[:80]!r} is not the beginning of an identifier such as {EXAMPLE_AREA}")
    return area


def provider_prefix_of(area: str) -> str:
    """The prefix of the provider that `area` names: its prefix, or the beginning of an identifier of its. Raises
    `BadIdentifier`.
    """
    prefix = check_area(area).removeprefix("ioc:").partition("/")[0]
    if prefix.count(".") != 2:
        raise BadIdentifier(f"{area[:80]!r} names no provider, as cn.r3301.20004 or {EXAMPLE_AREA} do")
    return prefix


def prefix_covers(outer: str, inner: str) -> bool:
    """Whether `inner` is `outer` or lies inside it, label by label (`cn.r33` does not cover `cn.r3301`)."""
    return outer in ("", inner) or inner.startswith(outer + ".")


@functools.lru_cache(maxsize=4096)
def self_certified_prefix(public_key: bytes) -> str:
    """The prefix that a key owns without any authority: `p2p.n0.k<base32 SHA-256(public key)>`."""
    return "p2p.n0.k" + base32(hashlib.sha256(public_key).digest())
