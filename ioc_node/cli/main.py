"""`ioc-node`: the command line of the node. Each command is imported only when it is called, so `--help` is quick."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from ioc_node.cli.faults import run_group

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "init": ("homes:init", "Make a home folder: key, config.toml, network file."),
    "up": ("lifecycle:up", "Run the node until it is told to stop."),
    "status": ("overview:status", "Show the running node at a glance."),
    "peers": ("overview:peers", "List the peers of the running node."),
    "overview": ("overview:overview", "Show what a core node holds, per node prefix."),
    "relayed": ("overview:relayed", "Show what a core node passed on for others."),
    "bulletin": ("bulletins:bulletin", "Read what core nodes announce, or publish something."),
    "id": ("overview:show_id", "Print the node ID and public key of a home folder."),
    "resolve": ("identifiers:resolve", "Look up the signed record of an identifier."),
    "find": ("finding:find", "Ask who could serve a demand, ranked with reasons."),
    "register": ("registering:register", "Register identifiers again now, or hosts that a collector finds."),
    "add": ("blobs:add", "Keep a file as a blob and announce it."),
    "get": ("blobs:get", "Fetch a blob from whoever holds it."),
    "dataset": (
        "datasets:dataset",
        "Share folders as signed, versioned datasets, and fetch those of others.",
    ),
    "blobs": ("garbage:blobs", "List the blobs of this node, and why they stay."),
    "pin": ("garbage:pin", "Hold a blob until it is unpinned."),
    "unpin": ("garbage:unpin", "Hold and share a blob no longer."),
    "gc": ("garbage:gc", "Remove copies of blobs that nothing holds."),
    "express": ("expresses:express", "Ship a blob or dataset to a node by a deadline, for a price."),
    "bandwidth": ("bandwidths:bandwidth", "Show what moves, and set ceilings and weights."),
    "submit": ("submit:submit", "Submit a task or a workflow."),
    "tasks": ("tasks:tasks", "List the tasks of this node."),
    "logs": ("tasks:logs", "Print what a task wrote."),
    "cancel": ("tasks:cancel", "Cancel a task."),
    "result": ("tasks:result", "Wait for a task and fetch what it made."),
    "receipts": ("receipts:receipts", "List receipts, and verify them."),
    "network": ("networks:network", "Create or check a network file."),
    "authority": ("authority:authority", "Delegate a prefix and roles to a key."),
}
"""Name → where it is (module of this room and its command) and what it does in one line."""


class LazyGroup(click.Group):
    """A group that knows the one-line help of its commands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(f"ioc_node.cli.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="IOC_HOME",
    help="The node's home folder (default: the platform's place for user data).",
)
@click.version_option(package_name="ioc-node", prog_name="ioc-node")
@click.pass_context
def group(ctx: click.Context, home: Path | None) -> None:
    """A node of an Internet of Compute: find compute by name or by need, run tasks there, keep the receipts.

    Every command takes --json and then prints one JSON object as its last line. Exit codes: 0 done, 2 usage,
    3 unreachable, 4 refused, 5 failed. Identifiers of tasks, blobs and receipts may be cut to a unique beginning.
    """
    ctx.obj = home


def main(args: Sequence[str] | None = None, **_: Any) -> NoReturn:
    """Entry point: run the command line and exit with its code."""
    sys.exit(run_group(group, args, "ioc-node"))


if __name__ == "__main__":
    main()
