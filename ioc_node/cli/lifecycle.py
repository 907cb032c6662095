"""`up`: run a node until it is told to stop, by a signal, over the control socket, or by the end of its parent."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import click
import structlog
import trio

from ioc_node.cli.common import with_home
from ioc_node.cli.interrupts import SIGNALS, note_signals
from ioc_node.config import NodeConfig
from ioc_node.errors import UsageError
from ioc_node.node import Node, open_node
from ioc_node.runtime.garbage import open_garbage_rounds
from ioc_node.runtime.logs import configure_logs

log = structlog.get_logger()


@click.command()
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Overrides the file."
)
@click.option("--log-format", type=click.Choice(["console", "json"]), help="Overrides the file.")
@click.option("--bootstrap", multiple=True, metavar="HOST:PORT", help="Tried before the file's peers.")
@click.option(
    "--ready-fd", type=int, help="Write one line of JSON to this descriptor when listening, and close it."
)
@click.option("--parent-fd", type=int, help="End when this descriptor reaches its end (the parent has gone).")
@with_home
def up(
    home: Path,
    log_level: Any,
    log_format: Any,
    bootstrap: tuple[str, ...],
    ready_fd: int | None,
    parent_fd: int | None,
    as_json: bool,
) -> None:
    """Run the node of this home folder until Ctrl-C, SIGTERM, or `ioc-node` stops it. Logs go to stderr."""
    config = NodeConfig.load(home)
    configure_logs(log_level or config.log_level, log_format or config.log_format)
    trio.run(_up, config, bootstrap, ready_fd, parent_fd, as_json, note_signals())


async def _up(
    config: NodeConfig,
    bootstrap: tuple[str, ...],
    ready_fd: int | None,
    parent_fd: int | None,
    as_json: bool,
    noted: list[int],
) -> None:
    stop = Stop()
    async with trio.open_nursery() as nursery:
        stop.scope = nursery.cancel_scope
        # The signals are ours before anything is opened, so that an early Ctrl-C ends in order too.
        await nursery.start(_stop_on_signal, stop, noted)
        if parent_fd is not None:
            nursery.start_soon(_stop_on_end, parent_fd, stop)
        async with open_node(config, bootstrap=bootstrap) as node, open_garbage_rounds():
            stop.node = node
            _say_ready(node, ready_fd, as_json)
            await node.stop_wanted.wait()
            log.info("stopping")
            stop.node = None
        nursery.cancel_scope.cancel()


class Stop:
    """How the end is asked for: in order once the node is up, at once before that or when asked a second time."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.node: Node | None = None

    def ask(self) -> None:
        if self.node is not None and not self.node.stop_wanted.is_set():
            self.node.stop_wanted.set()
        else:
            self.scope.cancel()


async def _stop_on_signal(
    stop: Stop, noted: list[int], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(*SIGNALS) as received:
        task_status.started()
        if noted:  # before this receiver was open
            stop.ask()
        async for number in received:
            log.info("stop_asked", signal=signal.Signals(number).name)
            stop.ask()


async def _stop_on_end(descriptor: int, stop: Stop) -> None:
    try:
        stream = trio.lowlevel.FdStream(descriptor)
    except OSError as error:
        raise UsageError(f"--parent-fd {descriptor}: {error.strerror}") from None
    async with stream:
        while await stream.receive_some(64):
            pass
    log.info("stop_asked", reason="the parent process has gone")
    stop.ask()


def _say_ready(node: Node, ready_fd: int | None, as_json: bool) -> None:
    status = node.status()
    facts = {
        "ready": True,
        "node_id": status.node_id,
        "role": status.role,
        "host": status.host,
        "port": status.port,
        "pid": os.getpid(),
        "network": status.network,
    }
    if ready_fd is not None:
        try:
            with os.fdopen(ready_fd, "w") as file:
                file.write(json.dumps(facts) + "\n")
        except OSError as error:
            raise UsageError(f"--ready-fd {ready_fd}: {error.strerror}") from None
    elif as_json:
        click.echo(json.dumps(facts))
    else:
        where = f"{status.host}:{status.port}"
        click.echo(f"ready: {status.role} {status.node_id} at {where}, network {status.network}")
