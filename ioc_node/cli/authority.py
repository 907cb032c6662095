"""`authority issue` and `authority show`: who may use which prefix in which role, from the root key down."""

import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console

from ioc_bootstrap.network import load_network
from ioc_node.cli.common import pairs, short, show, span_text, table, with_home
from ioc_node.cli.homes import ROLES
from ioc_node.config import CHAIN_NAME, KEY_NAME, NETWORK_NAME
from ioc_node.errors import RequestRefused, UsageError
from ioc_node.runtime.keys import load_key
from ioc_wire import limits
from ioc_wire.authority import Chain, Delegation, Role, verify_chain
from ioc_wire.cid import check_prefix
from ioc_wire.codec import decode, encode
from ioc_wire.errors import WireError
from ioc_wire.identity import format_node_id, node_id_of
from ioc_wire.signed import Signed, public_bytes, sign, verify

DAYS_DEFAULT: Final = 30
SLACK_SECONDS: Final = 60
"""A delegation starts so much in the past, for subjects whose clocks are behind."""


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
    verify_chain(chain, roots={chain[0].key}, now=now)
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


@click.group()
def authority() -> None:
    """Delegate a prefix and roles to a key, and show delegations."""


@authority.command()
@click.option("--issuer", required=True, type=click.Path(path_type=Path),
              help="Who grants: a root key file, or the home folder of a core node.")  # fmt: skip
@click.option(
    "--to", "to", required=True, metavar="KEY|HOME", help="Who receives: public key, or home folder."
)
@click.option("--prefix", default="", help="Prefix granted, such as cn.r3301 (default: all).")
@click.option("--role", "roles", multiple=True, required=True, type=click.Choice(ROLES))
@click.option("--days", type=click.FloatRange(min=0, min_open=True), default=DAYS_DEFAULT, show_default=True)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="File to write (default: into the HOME)."
)
@with_home
def issue(
    home: Path,
    issuer: Path,
    to: str,
    prefix: str,
    roles: tuple[Role, ...],
    days: float,
    output: Path | None,
    as_json: bool,
) -> None:
    """Sign a delegation. A node finds it as delegations.bin in its home folder."""
    check_prefix(prefix)
    signer = (
        Issuer(load_key(issuer / KEY_NAME), read_chain(issuer / CHAIN_NAME))
        if issuer.is_dir()
        else Issuer(load_key(issuer), ())
    )
    target = Path(to)
    subject = public_bytes(load_key(target / KEY_NAME)) if target.is_dir() else _public_key(to)
    path = output or (target / CHAIN_NAME if target.is_dir() else None)
    if path is None:
        raise UsageError("say where to write it: --output FILE (or --to HOME instead of a key)")
    try:
        chain = delegate(signer, subject, prefix, roles, now=time.time(), days=days)
    except WireError as error:
        raise RequestRefused(f"the issuer cannot grant this: {error}") from None
    try:
        path.write_bytes(encode(chain))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None
    show(as_json, {"file": str(path), "links": chain_facts(chain)}, lambda console: _render(console, chain))


def _public_key(text: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != limits.KEY_BYTES:
        raise UsageError(f"--to: expected 64 hexadecimal digits or a home folder, not {text[:80]!r}")
    return key


@authority.command("show")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option(
    "--network", "network_file", type=click.Path(path_type=Path), help="Verify against its root keys."
)
@with_home
def show_chain(home: Path, file: Path | None, network_file: Path | None, as_json: bool) -> None:
    """Show the delegations in FILE (default: those of this home) and whether they hold in the network."""
    chain = read_chain(file or home / CHAIN_NAME)
    path = network_file or (home / NETWORK_NAME if (home / NETWORK_NAME).exists() else None)
    fault = ""
    if path is not None:
        roots = load_network(path).root_keys
        try:
            verify_chain(chain, roots=roots, now=time.time())
        except WireError as error:
            fault = str(error)
    facts = {"links": chain_facts(chain), "verified": path is not None and not fault, "fault": fault}

    def render(console: Console) -> None:
        _render(console, chain)
        checked = (
            f"does not hold: {fault}" if fault else f"holds in {path}" if path else "no network file at hand"
        )
        pairs(console, [("chain", checked)])

    show(as_json, facts, render)
    if fault:
        raise RequestRefused(f"these delegations do not hold: {fault}")


def chain_facts(chain: Collection[Signed]) -> list[dict[str, Any]]:
    """Every link, root first."""
    links = []
    for signed in chain:
        link = verify(signed, Delegation)
        links.append(
            {
                "issuer": signed.key.hex(),
                "subject": link.subject.hex(),
                "node_id": format_node_id(node_id_of(link.subject)),
                "prefix": link.prefix,
                "roles": list(link.roles),
                "not_before": link.not_before,
                "not_after": link.not_after,
            }
        )
    return links


def _render(console: Console, chain: Collection[Signed]) -> None:
    made = table("link", "issuer key", "subject", "prefix", "roles", "ends", fold=("roles",))
    for number, link in enumerate(chain_facts(chain), 1):
        left = link["not_after"] - time.time()
        ends = f"in {span_text(left)}" if left > 0 else f"{span_text(-left)} ago"
        roles = ", ".join(link["roles"])
        made.add_row(
            str(number), link["issuer"][:10], short(link["node_id"]), link["prefix"] or "(all)", roles, ends
        )
    console.print(made)
