"""`network create` and `network show`: the file that says what a network is and who vouches for it."""

from pathlib import Path

import click
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console

from ioc_bootstrap.network import (
    Admission,
    Network,
    create_network,
    load_network,
    parse_network,
    sign_network,
)
from ioc_node.cli.common import pairs, show, with_home
from ioc_node.config import NETWORK_NAME
from ioc_node.errors import UsageError
from ioc_node.runtime.keys import create_key
from ioc_wire.signed import public_bytes


@click.group()
def network() -> None:
    """Create or check a network file."""


@network.command()
@click.argument("name")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path(NETWORK_NAME), show_default=True
)
@click.option("--keys", type=click.Path(path_type=Path, file_okay=False), default=Path("roots"), show_default=True,
              help="Folder for the new root keys. Keep them off line.")  # fmt: skip
@click.option("--roots", type=click.IntRange(1, 32), default=1, show_default=True, help="Root keys to make.")
@click.option(
    "--threshold", type=click.IntRange(1, 32), help="Signatures needed (default: most of the keys)."
)
@click.option("--admission", type=click.Choice(["open", "certified"]), default="certified", show_default=True)
@click.option("--bootstrap", multiple=True, metavar="HOST:PORT", help="A first peer; may be given again.")
@with_home
def create(
    home: Path,
    name: str,
    output: Path,
    keys: Path,
    roots: int,
    threshold: int | None,
    admission: Admission,
    bootstrap: tuple[str, ...],
    as_json: bool,
) -> None:
    """Found the network NAME: make its root keys, and a network file signed by all of them."""
    paths = [keys / f"root-{number}.key" for number in range(1, roots + 1)]
    for path in (output, *paths):
        if path.exists():
            raise UsageError(f"{path} exists already; nothing was changed")
    threshold = threshold or roots // 2 + 1
    if threshold > roots:
        raise UsageError(f"--threshold {threshold}: there are only {roots} root keys")
    try:
        keys.mkdir(parents=True, exist_ok=True, mode=0o700)
        text = found_network(name, [create_key(path) for path in paths], threshold, admission, bootstrap)
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write the new network: {error.filename}: {error.strerror}") from None
    _show(parse_network(text.encode()), output, as_json, [str(path) for path in paths])


def found_network(
    name: str,
    roots: list[Ed25519PrivateKey],
    threshold: int,
    admission: Admission,
    bootstrap: tuple[str, ...] = (),
) -> str:
    """The text of a new network file, signed by all `roots`. Raises `NetworkFileError`."""
    keys = [public_bytes(key) for key in roots]
    text = create_network(name, root_keys=keys, threshold=threshold, admission=admission, bootstrap=bootstrap)
    for key in roots:
        text = sign_network(text, key)
    return text


@network.command("show")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@with_home
def show_network(home: Path, file: Path | None, as_json: bool) -> None:
    """Verify a network FILE (default: that of this home) and show what it says."""
    path = file or home / NETWORK_NAME
    _show(load_network(path), path, as_json)


def _show(found: Network, path: Path, as_json: bool, keys: list[str] | None = None) -> None:
    facts = {
        "file": str(path),
        "name": found.name,
        "network_id": found.network_id.hex(),
        "admission": found.admission,
        "threshold": found.threshold,
        "root_keys": sorted(key.hex() for key in found.root_keys),
        "bootstrap": [str(address) for address in found.bootstrap],
        "key_files": keys or [],
    }

    def render(console: Console) -> None:
        pairs(
            console,
            [
                ("network", f"{found.name} ({found.admission})"),
                ("file", f"{path}: signatures verified"),
                ("network ID", facts["network_id"]),
                ("root keys", "\n".join(sorted(key.hex() for key in found.root_keys))),
                ("threshold", f"{found.threshold} of {len(found.root_keys)}"),
                ("bootstrap", ", ".join(str(address) for address in found.bootstrap) or "none"),
                ("key files", "\n".join(keys or [])),
            ],
        )

    show(as_json, facts, render)
