"""Delegations as the commands of `authority` make, keep and read them."""

from collections.abc import Collection
from pathlib import Path
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.config import CHAIN_NAME, KEY_NAME
from ioc_node.errors import UsageError
from ioc_node.runtime.keys import load_key
from ioc_wire import limits
from ioc_wire.authority import Chain, Delegation, Role, verify_chain
from ioc_wire.cid import check_prefix, self_certified_prefix
from ioc_wire.codec import decode, encode
from ioc_wire.errors import WireError
from ioc_wire.identity import format_node_id, node_id_of
from ioc_wire.signed import Signed, sign, verify

DAYS_DEFAULT: Final = 30
SLACK_SECONDS: Final = 60
"""A delegation starts so much in the past, for subjects whose clocks are behind."""
ISSUED_FOLDER: Final = "issued"
"""Where a home folder keeps what its key granted, for the day on which it has to be revoked."""


class Issuer(NamedTuple):
    """Whoever signs: the key, and how it came to its own rights (nothing for a root key)."""

    key: Ed25519PrivateKey
    chain: tuple[Signed, ...]


def delegate(
    issuer: Issuer,
    subject: bytes,
    prefix: str,
    roles: Collection[Role],
    *,
    now: float,
    days: float = DAYS_DEFAULT,
) -> tuple[Signed, ...]:
    """The chain that gives `subject` `prefix` and `roles` for `days`, never for longer than the issuer holds its own.

    Raises `WireError` where the issuer may not grant this.
    """
    check_prefix(prefix)
    start, end = int(now) - SLACK_SECONDS, int(now + days * 86400)
    if issuer.chain:
        own = verify(issuer.chain[-1], Delegation)
        start, end = max(start, own.not_before), min(end, own.not_after)
    link = sign(issuer.key, Delegation(subject, prefix, tuple(roles), start, end))
    chain = (*issuer.chain, link)
    names_alone = not issuer.chain and prefix == self_certified_prefix(link.key)
    verify_chain(chain, roots=() if names_alone else {chain[0].key}, now=now, self_certified=names_alone)
    return chain


def read_chain(path: Path) -> tuple[Signed, ...]:
    """The delegations in a file. Raises `UsageError`."""
    try:
        chain: tuple[Signed, ...] = decode(path.read_bytes(), Chain)
    except OSError as error:
        raise UsageError(f"cannot read the delegations in {path}: {error.strerror or error}") from None
    except WireError as error:
        raise UsageError(f"{path} holds no delegations: {error}") from None
    return chain


def load_issuer(path: Path) -> Issuer:
    """Who signs: a key file, or a home folder with its delegations, where it has some. Raises `UsageError`."""
    if not path.is_dir():
        return Issuer(load_key(path), ())
    chain = read_chain(path / CHAIN_NAME) if (path / CHAIN_NAME).exists() else ()
    return Issuer(load_key(path / KEY_NAME), chain)


def issued_path(issuer: Path, subject: bytes) -> Path | None:
    """Where a home folder keeps the newest chain that it granted to a key; None for a bare key file."""
    return issuer / ISSUED_FOLDER / f"{format_node_id(node_id_of(subject))}.bin" if issuer.is_dir() else None


def keep_issued(issuer: Path, subject: bytes, chain: Collection[Signed]) -> None:
    """Keep what a home folder granted. Raises `UsageError`."""
    path = issued_path(issuer, subject)
    if path is None:
        return
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.write_bytes(encode(tuple(chain)))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None


def public_key_of(text: str, option: str) -> bytes:
    """A public key in hexadecimal digits. Raises `UsageError`."""
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != limits.KEY_BYTES:
        raise UsageError(f"{option}: expected 64 hexadecimal digits or a home folder, not {text[:80]!r}")
    return key
