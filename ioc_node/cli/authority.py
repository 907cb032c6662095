"""`authority`: who may use which prefix in which role, from the root key down, and who may no more."""

import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ioc_bootstrap.network import load_network
from ioc_node.cli.common import pairs, short, show, span_text, table, with_home
from ioc_node.cli.delegating import (
    DAYS_DEFAULT,
    Issuer,
    delegate,
    keep_issued,
    load_issuer,
    public_key_of,
    read_chain,
)
from ioc_node.cli.homes import ROLES
from ioc_node.cli.revoking import announce, read_revocation, render_revocation, revocation_facts, revoke
from ioc_node.config import CHAIN_NAME, KEY_NAME, NETWORK_NAME
from ioc_node.errors import RequestRefused, UsageError
from ioc_node.runtime.keys import load_key
from ioc_wire.authority import Delegation, RevocationNews, Role, verify_chain, verify_revocation
from ioc_wire.cid import check_prefix, self_certified_prefix
from ioc_wire.codec import encode
from ioc_wire.errors import WireError
from ioc_wire.identity import format_node_id, node_id_of
from ioc_wire.signed import Signed, public_bytes, verify


@click.group()
def authority() -> None:
    """Delegate a prefix and roles to a key, revoke that, and show both."""


authority.add_command(revoke)
authority.add_command(announce)


@authority.command()
@click.option("--issuer", required=True, type=click.Path(path_type=Path),
              help="Who grants: a root key file, or the home folder of a core node (in an open network: of any node, "
              "which lets another key sign for its own names).")  # fmt: skip
@click.option(
    "--to", "to", required=True, metavar="KEY|HOME", help="Who receives: public key, or home folder."
)
@click.option(
    "--prefix", default="", help="Prefix granted, such as cn.r3301 (default: all that the issuer has)."
)
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
    signer = load_issuer(issuer)
    if not prefix:
        prefix = _whole_prefix(signer, is_home=issuer.is_dir())
    target = Path(to)
    subject = public_bytes(load_key(target / KEY_NAME)) if target.is_dir() else public_key_of(to, "--to")
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
    keep_issued(issuer, subject, chain)
    show(as_json, {"file": str(path), "links": chain_facts(chain)}, lambda console: _render(console, chain))


def _whole_prefix(signer: Issuer, *, is_home: bool) -> str:
    """All that a signer can grant: what it holds; everything for a root key; its own names in an open network."""
    if signer.chain:
        return verify(signer.chain[-1], Delegation).prefix
    return self_certified_prefix(public_bytes(signer.key)) if is_home else ""


@authority.command("show")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option(
    "--network", "network_file", type=click.Path(path_type=Path), help="Verify against its root keys."
)
@with_home
def show_chain(home: Path, file: Path | None, network_file: Path | None, as_json: bool) -> None:
    """Show the delegations, or the revocation, in FILE (default: the delegations of this home) and whether they hold
    in the network."""
    path = network_file or (home / NETWORK_NAME if (home / NETWORK_NAME).exists() else None)
    try:
        chain = read_chain(file or home / CHAIN_NAME)
    except UsageError:
        if file is None or (news := _revocation(file)) is None:
            raise
        _show_revocation(news, path, as_json)
        return
    fault = ""
    if path is not None:
        network = load_network(path)
        try:
            verify_chain(
                chain, roots=network.root_keys, now=time.time(), self_certified=not network.certified
            )
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


def _revocation(file: Path) -> RevocationNews | None:
    try:
        return read_revocation(file)
    except UsageError:
        return None


def _show_revocation(news: RevocationNews, path: Path | None, as_json: bool) -> None:
    fault = ""
    if path is not None:
        network = load_network(path)
        try:
            verify_revocation(news, roots=network.root_keys, now=time.time(), certified=network.certified)
        except WireError as error:
            fault = str(error)
    facts = revocation_facts(news) | {"verified": path is not None and not fault, "fault": fault}
    show(as_json, facts, lambda console: render_revocation(console, facts))
    if fault:
        raise RequestRefused(f"this revocation does not hold: {fault}")


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
    made = table("link", "issuer key", "subject", "prefix", "roles", "ends", fold=("prefix", "roles"))
    for number, link in enumerate(chain_facts(chain), 1):
        left = link["not_after"] - time.time()
        ends = f"in {span_text(left)}" if left > 0 else f"{span_text(-left)} ago"
        roles = ", ".join(link["roles"])
        made.add_row(
            str(number), link["issuer"][:10], short(link["node_id"]), link["prefix"] or "(all)", roles, ends
        )
    console.print(made)
