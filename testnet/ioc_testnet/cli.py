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


@group.command()
@click.argument("target", metavar="HOST:PORT")
@click.option(
    "--listen", default="127.0.0.1:0", show_default=True, metavar="HOST:PORT", help="Port 0: a free one."
)
@click.option("--loss", type=float, default=0.0, help="Share of the datagrams that is lost.")
@click.option("--delay-ms", type=float, default=0.0, help="One way; a round trip takes twice that.")
@click.option("--jitter-ms", type=float, default=0.0, help="Up to so much later, and so out of order.")
@click.option("--reorder", type=float, default=0.0, help="Share that is held back for --reorder-ms more.")
@click.option("--reorder-ms", type=float, default=5.0, show_default=True)
@click.option("--duplicate", type=float, default=0.0, help="Share that arrives twice.")
@click.option("--rate-mbit-s", type=float, default=0.0, help="What the line carries; 0: everything.")
@click.option("--mtu-bytes", type=int, default=65_507, show_default=True, help="Larger payloads vanish.")
@click.option(
    "--queue-bytes-max", type=int, default=8 << 20, show_default=True, help="What may wait, each way."
)
@click.option("--seed", type=int, default=1, show_default=True, help="All chance comes from it.")
@_json
def impair(target: str, listen: str, as_json: bool, **line: Any) -> int:
    """Put a bad line in front of the UDP port HOST:PORT, in both directions, until Ctrl-C.

    Who sends to the printed port talks to the target: bulk data (a node's port + 1) or the DHT.
    """
    from ioc_testnet.impair import Impairment
    from ioc_testnet.impair_view import run_impair

    return run_impair(target, listen, Impairment(**line), as_json=as_json)


@group.group()
def sim() -> None:
    """Simulate: the nodes' real machines, in virtual time, from one seed. The same seed gives the same run."""


_share = click.FloatRange(0, 1)


@sim.command()
@click.option("--nodes", type=int, default=200, show_default=True, help="Servers of the DHT.")
@click.option(
    "--clients",
    type=int,
    default=0,
    show_default=True,
    help="Clients beside them; if there are any, they do the reading.",
)
@click.option(
    "--seed", type=int, default=1, show_default=True, help="All chance, and all keys, come from it."
)
@click.option(
    "--start",
    type=click.Choice(["warm", "joined"]),
    default="warm",
    show_default=True,
    help="joined: every node joins through the protocol. warm: tables are filled by an oracle with what a "
    "settled node knows (of each bucket k random servers, under the table's own rules); sessions are made "
    "when they are needed, by the real handshake, either way.",
)
@click.option(
    "--churn",
    type=_share,
    default=0.0,
    help="Share of the servers, malicious or not, that go off at once after the first puts, without a word. "
    "They stay in all tables, and nobody replaces them.",
)
@click.option(
    "--malicious", default="0", metavar="[KIND:]SHARE", help="Share of the servers that is malicious."
)
@click.option(
    "--kind",
    default=None,
    metavar="KIND",
    help="How: silent, lying (tells only of colluders), inventing (tells of servers that do not exist), "
    "stale, forging, flooding, or mixed (the default: silent, lying, stale and forging in equal parts).",
)
@click.option(
    "--sybils", type=int, default=0, help="Malicious servers right beside one key, which all reads ask for."
)
@click.option("--groups", type=int, default=1, show_default=True, help="How many /24s the Sybils come from.")
@click.option(
    "--replica-groups/--no-replica-groups",
    "diverse",
    default=True,
    help="Whether replicas are chosen from different /24s, as the real node does.",
)
@click.option(
    "--latency",
    default="constant:50",
    show_default=True,
    metavar="FILE|constant:MS",
    help="Round trips: the same for all, or a square matrix of milliseconds (FILE:s for seconds). Nodes are "
    "dealt out to its rows.",
)
@click.option("--loss", type=_share, default=0.0, help="Share of the datagrams that is lost.")
@click.option("--duplicate", type=_share, default=0.0, help="Share that arrives twice.")
@click.option("--reorder", type=_share, default=0.0, help="Share that comes up to 0.2 s late.")
@click.option(
    "--partition",
    type=_share,
    default=0.0,
    help="Share of the nodes that is cut off from the others after the first puts, until the reads are done.",
)
@click.option(
    "--skew", type=float, default=0.0, metavar="SECONDS", help="Clocks are wrong by up to this much."
)
@click.option("--trials", type=int, default=200, show_default=True, help="Reads.")
@click.option("--records", type=int, default=50, show_default=True, help="Records to read.")
@click.option(
    "--updates",
    type=_share,
    default=0.25,
    show_default=True,
    help="Share of the records that gets a second version after the churn.",
)
@click.option(
    "--answers", type=int, default=1, show_default=True, help="Valid answers that a read waits for."
)
@_json
def dht(malicious: str, kind: str | None, as_json: bool, **rest: Any) -> int:
    """Simulate a DHT and measure it; check its invariants. A broken one is printed with the command to replay it.

    "Success" is the share of reads that gave a verified record, not older than what this reader saw before.
    "Replica recall": of the 20 live servers nearest to a key, which share of the honest ones holds its record after a
    put.
    """
    from ioc_testnet.sim.command import run_sim_dht
    from ioc_testnet.sim.options import SimOptions, parse_malicious

    share, kind_ = parse_malicious(malicious, kind)
    return run_sim_dht(SimOptions(malicious=share, kind=kind_, **rest).check(), as_json=as_json)


@sim.command()
@click.option("--nodes", type=int, default=50, show_default=True, help="Core nodes.")
@click.option(
    "--silent", type=_share, default=0.2, show_default=True, help="Share that listens and says nothing."
)
@click.option(
    "--partition-seconds", type=float, default=600.0, show_default=True, help="Two halves apart; 0: never."
)
@click.option("--providers", type=int, default=20, show_default=True, help="Providers that publish.")
@click.option(
    "--changes", type=int, default=60, show_default=True, help="Heads and status batches that are measured."
)
@click.option("--latency", default="constant:50", show_default=True, metavar="FILE|constant[:MS]",
              help="Round trips: a square matrix, FILE[:ms|:s|:us], or the same everywhere.")  # fmt: skip
@click.option("--tree/--no-tree", default=True,
              help="Whether more than 64 find neighbours in a tree; otherwise each tells ten at random.")  # fmt: skip
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed gives the same run.")
@_json
def gossip(as_json: bool, **rest: Any) -> int:
    """Simulate how heads and status spread between core nodes: with silent ones, through a partition, and after all
    restart at once."""
    from ioc_testnet.sim.command import run_sim_gossip
    from ioc_testnet.sim.gossip import GossipOptions

    return run_sim_gossip(GossipOptions(**rest).check(), as_json=as_json)


@sim.command()
@click.option("--nodes", type=int, default=32, show_default=True, help="Core nodes.")
@click.option(
    "--seconds", type=float, default=1800.0, show_default=True, help="How long suspicions are counted."
)
@click.option("--slow", type=_share, default=0.2, show_default=True,
              help="Share of the nodes that stall again and again, as overloaded ones do.")  # fmt: skip
@click.option(
    "--stall", type=float, default=8.0, show_default=True, help="How many seconds they stall at most."
)
@click.option(
    "--loss", type=_share, default=0.02, show_default=True, help="Share of the messages that is lost."
)
@click.option(
    "--crashes", type=int, default=3, show_default=True, help="Nodes that crash at the end, to be noticed."
)
@click.option("--latency", default="constant:50", show_default=True, metavar="FILE|constant[:MS]",
              help="Round trips: a square matrix, FILE[:ms|:s|:us], or the same everywhere.")  # fmt: skip
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed gives the same run.")
@_json
def membership(as_json: bool, **rest: Any) -> int:
    """Simulate how often core nodes suspect others that live: SWIM alone, with Lifeguard, and as this node does."""
    from ioc_testnet.sim.command import run_sim_membership
    from ioc_testnet.sim.membership import MembershipOptions

    return run_sim_membership(MembershipOptions(**rest).check(), as_json=as_json)


@sim.command()
@click.option(
    "--matrix",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="Square matrix of round trips, in ms.",
)
@click.option("--core", type=int, default=8, show_default=True, help="Core nodes that measured all others.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option(
    "--jitter",
    type=click.FloatRange(0, 10),
    default=0.0,
    help="Made-up: a ping takes up to this share longer.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
def nearness(matrix: Path, core: int, seed: int, jitter: float, as_json: bool) -> int:
    """Find gateways within T ms: precision, recall and pings, against Vivaldi alone."""
    from ioc_testnet.sim.command import run_sim_nearness

    return run_sim_nearness(matrix, core=core, seed=seed, jitter=jitter, as_json=as_json)


@sim.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("docs/experiments"),
              show_default=True, help="Where a JSON file and a plot of each go, and a page about all.")  # fmt: skip
@click.option(
    "--latency",
    default=None,
    metavar="FILE",
    help="Matrix of round trips for the latency experiment (without it: one constant).",
)
@_json
def experiments(names: tuple[str, ...], out: Path, latency: str | None, as_json: bool) -> int:
    """Run experiments: resilience, sybils, sweep, latency; all of them without a NAME. Takes many minutes."""
    from ioc_testnet.sim.campaign import run_sim_experiments

    return run_sim_experiments(names, out, latency, as_json=as_json)


def main(args: Sequence[str] | None = None, **_: Any) -> NoReturn:
    """Entry point: run the command line and exit with its code."""
    sys.exit(run_group(group, args, "ioc-testnet"))


if __name__ == "__main__":
    main()
