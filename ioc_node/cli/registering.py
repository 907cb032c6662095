"""`register`: this provider's identifiers, and the hosts of an inventory."""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from rich.console import Console

from ioc_node import api
from ioc_node.cli.common import ask, plain, print_json, show, stdout, table, with_home
from ioc_node.collecting import plan_hosts
from ioc_node.collectors.inventory import read_inventory
from ioc_node.collectors.mapping import load_mapping
from ioc_node.config import CONFIG_NAME, CollectorConfig, NodeConfig
from ioc_node.errors import PeerUnreachable, UsageError
from ioc_node.identity import load_identity
from ioc_wire.records import Endpoint

REFUSED_SHOWN_MAX: Final = 20
INTERVAL_SECONDS: Final = 10.0


@click.command()
@click.option(
    "--inventory",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Register the hosts of this CSV, TOML or JSON file, and follow it as it changes.",
)
@click.option(
    "--mapping",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What the columns of the inventory mean, where they are other people's.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be registered, and what is refused.")
@with_home
def register(home: Path, inventory: Path | None, mapping: Path | None, dry_run: bool, as_json: bool) -> None:
    """Register all identifiers of this provider again, now, and show who took them and who refused; or the hosts of an
    inventory. For example: register --inventory hosts.csv --dry-run"""
    if inventory is None:
        if mapping is not None or dry_run:
            raise UsageError("--mapping and --dry-run go with --inventory")
        rows = ask(home, lambda node: node.register())
        facts = [{name: getattr(row, name) for name in row.__struct_fields__} for row in rows]
        show(as_json, {"registered": facts}, lambda console: render_registered(console, rows))
        return
    facts_of = _look(home, inventory, mapping)
    if not dry_run:
        facts_of |= _add(home, inventory, mapping)
    if as_json:
        print_json(facts_of)
    else:
        render_inventory(stdout(), facts_of)


def _look(home: Path, inventory: Path, mapping: Path | None) -> dict[str, Any]:
    """What the file holds, as this provider would register it."""
    config = NodeConfig.load(home)
    if config.role != "provider":
        raise UsageError(f"{home} is the home of a {config.role} node: only a provider registers hosts")
    prefix = load_identity(config, now=time.time()).prefix
    collected = read_inventory(inventory, load_mapping(mapping))
    planned, refused = plan_hosts(collected.hosts, prefix=prefix, endpoint=Endpoint("localhost", config.port))
    faults = [str(fault) for fault in (*collected.refused, *refused)]
    devices = Counter(
        group.model
        for each in collected.hosts
        for group in each.host.accelerators
        for _ in range(group.count)
    )
    return {
        "source": collected.source,
        "prefix": prefix,
        "hosts": len(planned),
        "cores": sum(each.host.cores for each in collected.hosts),
        "accelerators": dict(devices.most_common()),
        "first": planned[0][0].cid if planned else None,
        "refused": len(faults),
        "reasons": faults[:REFUSED_SHOWN_MAX],
    }


def _add(home: Path, inventory: Path, mapping: Path | None) -> dict[str, Any]:
    """Enter the collector into the configuration, and tell the node if it runs."""
    options = {"file": str(inventory.resolve())}
    if mapping is not None:
        options["mapping"] = str(mapping.resolve())
    collector = CollectorConfig(name="inventory", interval_seconds=INTERVAL_SECONDS, options=options)
    message = api.AddCollector(collector.name, collector.interval_seconds, msgspec.json.encode(options))
    try:
        added = ask(home, lambda node: node.add_collector(message))
    except PeerUnreachable:
        _enter(home, collector)
        return {"running": False}
    _enter(home, collector)
    return {
        "running": True,
        "added": added.added,
        "changed": added.changed,
        "removed": added.removed,
        "unchanged": added.unchanged,
    }


def _enter(home: Path, collector: CollectorConfig) -> None:
    """Add a collector to config.toml, unless it is there."""
    if any(each.key == collector.key for each in NodeConfig.load(home).collectors):
        return
    path, written = home / CONFIG_NAME, home / f"{CONFIG_NAME}.new"
    options = ", ".join(f"{name} = {json.dumps(value)}" for name, value in collector.options.items())
    table_text = (
        f'[[collectors]]\nname = "{collector.name}"\ninterval_seconds = {collector.interval_seconds}\n'
        f"options = {{ {options} }}\n"
    )
    written.write_text(f"{path.read_text(encoding='utf-8').rstrip()}\n\n{table_text}", encoding="utf-8")
    written.replace(path)
    NodeConfig.load(home)


def render_inventory(console: Console, facts: dict[str, Any]) -> None:
    """A few lines."""
    devices = (
        ", ".join(f"{count} {model}" for model, count in facts["accelerators"].items()) or "no accelerators"
    )
    console.print(plain(f"{facts['source']}: {facts['hosts']} hosts, {facts['cores']} cores, {devices}"))
    if facts["first"]:
        console.print(plain(f"the first is {facts['first']}"))
    for reason in facts["reasons"]:
        console.print(plain(f"refused: {reason}"), style="red")
    if facts["refused"] > len(facts["reasons"]):
        console.print(plain(f"and {facts['refused'] - len(facts['reasons'])} more refused"), style="red")
    if "running" not in facts:
        console.print("nothing was registered: this was a dry run")
    elif facts["running"]:
        counts = ", ".join(f"{facts[name]} {name}" for name in ("added", "changed", "removed", "unchanged"))
        console.print(plain(f"registered: {counts}; config.toml follows the file from now on"))
    else:
        console.print("entered in config.toml; the node is not running and registers them when it starts")


def render_registered(console: Console, rows: tuple[api.RegisteredRow, ...]) -> None:
    """One line per identifier."""
    made = table("identifier", "version", "stored at", "refused", right=("version", "stored at"))
    made.columns[0].no_wrap = made.columns[3].no_wrap = False
    for row in rows:
        made.add_row(plain(row.cid), str(row.version), str(row.stored), plain("; ".join(row.refused) or "-"))
    console.print(
        made if rows else plain("this node has no identifiers: its config.toml names no [[resources]]")
    )
