"""What `ioc-testnet up`, `down`, `status`, `kill` and `start` do."""

import shutil
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio
from rich.console import Console

from ioc_node.cli.common import plain, print_json, short, span_text, stdout, table
from ioc_node.errors import NodeError, UsageError
from ioc_testnet.interrupts import run_in_order
from ioc_testnet.network import Testnet, TestnetNode, attach_testnet, default_folder, open_testnet
from ioc_testnet.topology import load_topology
from ioc_wire.errors import WireError
from ioc_wire.identity import format_node_id, node_id_of


def run_up(folder: Path | None, topology: str, *, detach: bool, as_json: bool) -> int:
    """Start a network; stay, or leave it running."""
    plan = load_topology(topology)
    console = Console(stderr=True, highlight=False) if as_json else stdout()

    async def program() -> None:
        began = time.monotonic()
        async with open_testnet(plan, folder=folder or default_folder(), detached=detach, start=False) as net:
            with console.status(f"starting {len(net.nodes)} nodes"):
                await net.start()
                await net.wait_joined()
            seconds = time.monotonic() - began
            if as_json:
                print_json({**testnet_facts(net), "seconds": round(seconds, 3)})
            else:
                render_nodes(console, net)
                console.print(f"{len(net.nodes)} nodes joined in {span_text(seconds)}\n")
                print_usage(console, net, detached=detach)
            if detach:
                net.keep = True
                return
            await trio.sleep_forever()

    return run_in_order(program)


def run_down(folder: Path | None, *, as_json: bool) -> int:
    """End a network that was left running."""
    net = attach_testnet(folder or default_folder())
    count = sum(node.alive for node in net)
    trio.run(net.end)
    if net.folder.exists():
        raise NodeError(f"the folder {net.folder} could not be removed; remove it by hand")
    if as_json:
        print_json({"ended": count, "folder": str(net.folder)})
    else:
        stdout().print(plain(f"ended {count} nodes and removed {net.folder}"), soft_wrap=True)
    return 0


def run_status(folder: Path | None, *, as_json: bool) -> int:
    """Show a network that is running."""
    net = attach_testnet(folder or default_folder())
    joined: dict[str, str] = {}

    async def ask_all() -> None:
        async with trio.open_nursery() as nursery:
            for node in net:
                nursery.start_soon(_ask_joined, node, joined)

    trio.run(ask_all)
    if as_json:
        facts = testnet_facts(net)
        for row in facts["nodes"]:
            row["state"] = joined[row["name"]]
        print_json(facts)
    else:
        render_nodes(stdout(), net, joined)
    return 0


async def _ask_joined(node: TestnetNode, joined: dict[str, str]) -> None:
    joined[node.name] = "down"
    if not node.alive:
        return
    joined[node.name] = "no answer"
    with trio.move_on_after(5):
        try:
            async with node.client() as client:
                status = await client.status()
        except (NodeError, WireError) as error:
            joined[node.name] = str(error)
        else:
            entered = status.joined or not node.saved.bootstrap  # else it is the one that others come to
            joined[node.name] = "joined" if entered else status.bootstrap or "joining"


def run_kill(folder: Path | None, name: str, *, as_json: bool) -> int:
    """SIGKILL one node."""
    node = attach_testnet(folder or default_folder())[name]
    if not node.alive:
        raise UsageError(f"{name} is down already; `ioc-testnet start {name}` starts it")
    pid = node.pid
    trio.run(node.kill)
    _say({"node": name, "killed": pid}, f"killed {name} (pid {pid})", as_json)
    return 0


def run_start(folder: Path | None, name: str, *, as_json: bool) -> int:
    """Start one node again."""
    node = attach_testnet(folder or default_folder())[name]
    code = run_in_order(_calling(node.start))
    _say({"node": name, "pid": node.pid}, f"started {name} (pid {node.pid})", as_json)
    return code


def _calling(call: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    async def program() -> None:
        await call()

    return program


def _say(facts: dict[str, Any], line: str, as_json: bool) -> None:
    if as_json:
        print_json(facts)
    else:
        stdout().print(plain(line))


def testnet_facts(net: Testnet) -> dict[str, Any]:
    """The nodes for programs."""
    return {
        "folder": str(net.folder),
        "topology": net.topology,
        "nodes": [
            {
                "name": node.name,
                "role": node.role,
                "node_id": node_id_text(node),
                "prefix": node.saved.prefix,
                "identifiers": list(node.saved.identifiers),
                "host": node.saved.host,
                "port": node.port,
                "home": str(node.home),
                "pid": node.pid,
                "bootstrap": node.saved.bootstrap,
            }
            for node in net
        ],
    }


def node_id_text(node: TestnetNode) -> str:
    return format_node_id(node_id_of(bytes.fromhex(node.saved.key)))


def render_nodes(console: Console, net: Testnet, joined: dict[str, str] | None = None) -> None:
    """Nodes and roles, their prefixes, and where each listens."""
    made = table(
        "node", "ID", "prefix", "port", "pid", "place", right=("port", "pid"), fold=("place", "prefix")
    )
    for node in net:
        saved = node.saved
        where = joined[node.name] if joined is not None else saved.place
        prefix = saved.prefix or "-"
        prefix = prefix if len(prefix) < 30 else f"{prefix[:20]}…"
        pid = str(node.pid) if node.alive else "down"
        made.add_row(node.name, short(node_id_text(node)), prefix, str(node.port), pid, plain(where))
    if joined is not None:
        made.columns[5].header = "state"
    console.print(made)


def print_usage(console: Console, net: Testnet, *, detached: bool) -> None:
    """Exact commands to go on with."""
    consumer = next(iter(net.with_role("consumer")), next(iter(net)))
    node = f"{program_name('ioc-node')} --home {consumer.home}"
    testnet = program_name("ioc-testnet")
    lines = [f"{node} status", f"{node} peers"]
    lines += [f"{node} resolve {identifier}" for identifier in _identifiers(net)[-1:]]
    lines += [f"{node} find --cores 2 --runtime wasm", f"{node} tasks", f"{node} receipts --verify"]
    if detached:
        custom = "" if net.folder == default_folder() else f" --dir {net.folder}"
        lines += [f"{testnet} status{custom}", f"{testnet} down{custom}"]
    console.print("try:")
    for line in lines:
        console.print(plain(f"  {line}"), soft_wrap=True)
    if not detached:
        console.print("Ctrl-C ends it.")


def program_name(name: str) -> str:
    """How this shell would call the program: by its name where it is on the PATH, else by the path beside Python."""
    beside = Path(sys.executable).parent / name
    if shutil.which(name) or not beside.exists():
        return name
    return str(beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside)


def _identifiers(net: Testnet) -> list[str]:
    return [identifier for node in net for identifier in node.saved.identifiers]
