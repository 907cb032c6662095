"""`ioc-testnet`: a local network of node processes, and the demonstration."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from ioc_node.cli.faults import run_group

_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
_dir = click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="IOC_TESTNET",
    help="The network's folder (default: one per user, among the temporary files).",
)
_topology = click.option("--topology", default="default", show_default=True, help="A name, or a FILE.toml.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ioc-node", prog_name="ioc-testnet")
def group() -> None:
    """A network of real node processes on this machine, over loopback, with keys of its own."""


@group.command()
@click.option("--detach", is_flag=True, help="Leave it running; end it with `ioc-testnet down`.")
@_topology
@_dir
@_json
def up(detach: bool, topology: str, folder: Path | None, as_json: bool) -> int:
    """Start a network: found it, start its nodes, wait until they have joined.

    Without --detach it lasts until Ctrl-C; then every process and the folder are gone.
    """
    from ioc_testnet.commands import run_up

    return run_up(folder, topology, detach=detach, as_json=as_json)


@group.command()
@_dir
@_json
def down(folder: Path | None, as_json: bool) -> int:
    """End the network and remove its folder. A process is ended only if it is the one that was started."""
    from ioc_testnet.commands import run_down

    return run_down(folder, as_json=as_json)


@group.command()
@_dir
@_json
def status(folder: Path | None, as_json: bool) -> int:
    """Show the nodes, their processes and whether they have joined."""
    from ioc_testnet.commands import run_status

    return run_status(folder, as_json=as_json)


@group.command()
@click.argument("node")
@_dir
@_json
def kill(node: str, folder: Path | None, as_json: bool) -> int:
    """End NODE at once (SIGKILL), as a power cut would."""
    from ioc_testnet.commands import run_kill

    return run_kill(folder, node, as_json=as_json)


@group.command()
@click.argument("node")
@_dir
@_json
def start(node: str, folder: Path | None, as_json: bool) -> int:
    """Start NODE again after `kill`."""
    from ioc_testnet.commands import run_start

    return run_start(folder, node, as_json=as_json)


@group.command()
@click.option("--keep", is_flag=True, help="Leave the network up and say how to use it.")
@click.option("--tiles", default="4x4", show_default=True, metavar="RxC", help="Rows and columns of tiles.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=Path("out/terrain.png"),
              show_default=True, help="Where the picture goes.")  # fmt: skip
@_topology
@_dir
@_json
def demo(keep: bool, tiles: str, out: Path, topology: str, folder: Path | None, as_json: bool) -> int:
    """The main job, end to end, on a real elevation model: cut into tiles, shaded by several providers in a sandbox,
    joined to a picture, and compared with NumPy pixel by pixel."""
    from ioc_testnet.demo import run_demo

    return run_demo(folder, topology, tiles=tiles, out=out, keep=keep, as_json=as_json)


def main(args: Sequence[str] | None = None, **_: Any) -> NoReturn:
    """Entry point: run the command line and exit with its code."""
    sys.exit(run_group(group, args, "ioc-testnet"))


if __name__ == "__main__":
    main()
