"""`authority revoke` and `authority announce`: end what was delegated to a key, and tell the network."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console

from ioc_node.api import KeyRevoked
from ioc_node.cli.common import ask, pairs, show, span_text, with_home
from ioc_node.cli.delegating import Issuer, issued_path, load_issuer, public_key_of, read_chain
from ioc_node.client import RemoteNode
from ioc_node.config import CHAIN_NAME, KEY_NAME
from ioc_node.errors import RequestRefused, UsageError
from ioc_node.runtime.keys import load_key
from ioc_wire import limits
from ioc_wire.authority import Delegation, Revocation, RevocationNews, verify_revocation
from ioc_wire.codec import decode, encode
from ioc_wire.errors import WireError
from ioc_wire.identity import format_node_id, node_id_of
from ioc_wire.signed import Signed, public_bytes, sign, verify

DAYS_UNBOUNDED: Final = 3650
"""Of a revocation by a root key or by the key itself, where no delegation says when it would have ended."""


def revoke_key(
    issuer: Issuer,
    subject: bytes,
    chain: tuple[Signed, ...],
    *,
    now: float,
    reason: str = "",
    days: float | None = None,
) -> RevocationNews:
    """The revocation of `subject`, whose delegations are `chain` (none where the issuer needs to show none).

    It is remembered until everything has ended that the issuer can have granted so far, or for `days`. Raises
    `WireError` where the issuer may not revoke that key.
    """
    until = int(now + (DAYS_UNBOUNDED if days is None and not chain else days or 0) * 86400)
    if chain:
        links = [verify(link, Delegation) for link in chain]
        above = [link.not_after for link in links if link.subject == public_bytes(issuer.key)]
        until = max(until, links[-1].not_after, *above)
    revocation = Revocation(subject, int(now), until, reason)
    news = RevocationNews(sign(issuer.key, revocation), chain)
    roots = {chain[0].key} if chain else {public_bytes(issuer.key)}
    verify_revocation(news, roots=roots, now=now, certified=False)
    return news


def read_revocation(path: Path) -> RevocationNews:
    """The revocation in a file. Raises `UsageError`."""
    try:
        return decode(path.read_bytes(), RevocationNews, size_max=limits.REVOCATION_BYTES_MAX)
    except OSError as error:
        raise UsageError(f"cannot read the revocation in {path}: {error.strerror or error}") from None
    except WireError as error:
        raise UsageError(f"{path} holds no revocation: {error}") from None


@click.command()
@click.option("--issuer", required=True, type=click.Path(path_type=Path), help="Who revokes: a root key file, "
              "or the home folder of who granted it, or of the key itself.")  # fmt: skip
@click.option("--of", "of", metavar="KEY|HOME|FILE", help="What is revoked: a public key, the home folder "
              "of its node, or a file of its delegations (default: the issuer's own key).")  # fmt: skip
@click.option("--reason", default="", help=f"At most {limits.REASON_CHARS_MAX} characters; all nodes see it.")
@click.option("--days", type=click.FloatRange(min=0, min_open=True),
              help="Remember it for so long (default: until the delegation would have ended).")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write.")
@click.option(
    "--announce", "at_once", is_flag=True, help="Hand it to the running node, which tells everybody."
)
@with_home
def revoke(
    home: Path,
    issuer: Path,
    of: str | None,
    reason: str,
    days: float | None,
    output: Path | None,
    at_once: bool,
    as_json: bool,
) -> None:
    """Sign a revocation: all that the issuer granted to a key ends, at once and for good."""
    if output is None and not at_once:
        raise UsageError("say where it goes: --output FILE, or --announce to hand it to the running node")
    if len(reason) > limits.REASON_CHARS_MAX:
        raise UsageError(f"--reason has {len(reason)} characters, {limits.REASON_CHARS_MAX} are allowed")
    signer = load_issuer(issuer)
    subject, chain = _revoked(of, issuer, signer)
    try:
        news = revoke_key(signer, subject, chain, now=time.time(), reason=reason, days=days)
    except WireError as error:
        raise RequestRefused(f"the issuer cannot revoke this: {error}") from None
    facts = revocation_facts(news)
    if output is not None:
        try:
            output.write_bytes(encode(news))
        except OSError as error:
            raise UsageError(f"cannot write {output}: {error.strerror or error}") from None
        facts["file"] = str(output)
    _finish(home, news, facts, at_once=at_once, as_json=as_json)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@with_home
def announce(home: Path, file: Path, as_json: bool) -> None:
    """Hand the revocation in FILE to the running node, which honours it and tells everybody."""
    news = read_revocation(file)
    _finish(home, news, revocation_facts(news), at_once=True, as_json=as_json)


def _finish(home: Path, news: RevocationNews, facts: dict[str, Any], *, at_once: bool, as_json: bool) -> None:
    if at_once:
        told: KeyRevoked = ask(home, _hand_in(news))
        facts |= {"known": told.known, "told": told.told}
    show(as_json, facts, lambda console: render_revocation(console, facts))


def _hand_in(news: RevocationNews) -> Callable[[RemoteNode], Any]:
    async def hand_in(node: RemoteNode) -> KeyRevoked:
        return await node.revoke(news)

    return hand_in


def _revoked(of: str | None, issuer: Path, signer: Issuer) -> tuple[bytes, tuple[Signed, ...]]:
    """The key to revoke and the chain that shows the right to it."""
    if of is None:
        return public_bytes(signer.key), signer.chain
    path = Path(of)
    if path.is_dir():
        chain = read_chain(path / CHAIN_NAME) if (path / CHAIN_NAME).exists() else ()
        return public_bytes(load_key(path / KEY_NAME)), chain
    if path.is_file():
        chain = read_chain(path)
        return verify(chain[-1], Delegation).subject, chain
    key = public_key_of(of, "--of")
    kept = issued_path(issuer, key)
    if kept is not None and kept.exists():
        return key, read_chain(kept)
    if signer.chain:
        raise UsageError(
            f"{issuer} keeps no delegation of its own to that key: name the file that `authority issue -o` wrote, "
            "or the home folder of that node"
        )
    return key, ()


def revocation_facts(news: RevocationNews) -> dict[str, Any]:
    """What a revocation says."""
    revocation = verify(news.revocation, Revocation)
    return {
        "revoked": revocation.subject.hex(),
        "node_id": format_node_id(node_id_of(revocation.subject)),
        "revoker": news.revocation.key.hex(),
        "issued": revocation.issued,
        "until": revocation.until,
        "reason": revocation.reason,
        "bytes": len(encode(news)),
    }


def render_revocation(console: Console, facts: dict[str, Any]) -> None:
    """A revocation, for people."""
    rows = [
        ("revoked", f"{facts['node_id']} (key {facts['revoked'][:10]}…)"),
        ("by key", f"{facts['revoker'][:10]}…"),
        ("reason", facts["reason"]),
        ("remembered", f"for {span_text(max(0, facts['until'] - time.time()))}"),
        ("file", facts.get("file", "")),
    ]
    if "told" in facts:
        known = "was known already" if facts["known"] else "is in force"
        rows.append(("network", f"{known}; {facts['told']} linked nodes were told"))
    pairs(console, rows)
