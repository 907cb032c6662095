"""`express` on the command line: between two running nodes, and what is refused."""

from pathlib import Path

from ioc_testnet.network import Testnet
from tests.cli.inside import Cli


def test_orders_that_nobody_takes_are_refused_in_a_line(
    cli: Cli, shared_net: Testnet, tmp_path: Path
) -> None:
    home, other = shared_net["consumer-1"].home, shared_net["provider-1"].home
    file = tmp_path / "file.bin"
    file.write_bytes(b"express" * 1000)
    blob = cli.json(home, "add", file)["blob"]
    receiver = cli.json(other, "status")["node_id"]
    cli.refused(
        home, "express", "send", blob, "--to", receiver, words=["takes no shipments", "price_micro_per_gb"]
    )
    cli.refused(home, "express", "send", blob, "--to", "cn.r9999", words=["nobody at cn.r9999"])
    cli.refused(home, "express", "send", blob, "--to", "nowhere", words=["to: 'nowhere' is not a prefix"])
    cli.refused(home, "express", "send", "b" + "a" * 52, "--to", receiver, words=["not shared here"])
    cli.refused(home, "express", "send", blob, "--to", receiver, "--within", "soon", words=["no duration"])
    cli.refused(
        home, "express", "send", blob, "--to", receiver, "--price-max", "x", words=["'x' is no number"]
    )
    cli.refused(home, "express", "show", "s" + "a" * 52, words=["no shipment begins with", "express list"])
    assert cli.json(home, "express", "list") == {"shipments": []}
    assert "no shipments yet" in cli.text(home, "express", "list")
