"""`register`: identifiers of this provider, and hosts that a collector finds: an inventory, a cluster, this machine."""

import stat
import time
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import tomli_w
import trio
from rich.console import Console

from ioc_node import api
from ioc_node.bulk.disk import write_file
from ioc_node.cli.common import ask, plain, print_json, show, stdout, table, with_home
from ioc_node.collecting import collect_once, plan_hosts
from ioc_node.collectors.collector import Collected, CollectorFailed, load_collector
from ioc_node.config import CONFIG_NAME, CollectorConfig, NodeConfig
from ioc_node.errors import ConfigError, PeerUnreachable, UsageError
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
@click.option(
    "--collector", metavar="NAME", help="Register what this collector finds: slurm, local, or another's."
)
@click.option(
    "--option", "given", multiple=True, metavar="KEY=VALUE", help="An option of the collector; repeatable."
)
@click.option("--dry-run", is_flag=True, help="Only say what would be registered, and what is refused.")
@with_home
def register(
    home: Path,
    inventory: Path | None,
    mapping: Path | None,
    collector: str | None,
    given: Sequence[str],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Register all identifiers of this provider again, now, and show who took them and who refused; or the hosts of an
    inventory or another collector. For example: register --inventory hosts.csv --dry-run"""
    config = _collector(inventory, mapping, collector, given)
    if config is None:
        if dry_run:
            raise UsageError("--dry-run goes with --inventory or --collector")
        rows = ask(home, lambda node: node.register())
        facts = [{name: getattr(row, name) for name in row.__struct_fields__} for row in rows]
        show(as_json, {"registered": facts}, lambda console: render_registered(console, rows))
        return
    facts_of = _look(home, config)
    if not dry_run:
        facts_of |= _add(home, config)
    if as_json:
        print_json(facts_of)
    else:
        render_inventory(stdout(), facts_of)


def _collector(
    inventory: Path | None, mapping: Path | None, name: str | None, given: Sequence[str]
) -> CollectorConfig | None:
    """What the options of the command mean, if they mean a collector."""
    if inventory is not None and name is not None:
        raise UsageError("--inventory is a collector of its own: leave --collector out")
    if mapping is not None and inventory is None:
        raise UsageError("--mapping goes with --inventory")
    if given and name is None:
        raise UsageError("--option goes with --collector")
    options: dict[str, Any] = {}
    if inventory is not None:
        name = "inventory"
        options["file"] = str(inventory.resolve())
        if mapping is not None:
            options["mapping"] = str(mapping.resolve())
    elif name is None:
        return None
    for each in given:
        _set_option(options, each)
    return CollectorConfig(name=name, interval_seconds=INTERVAL_SECONDS, options=options)


def _set_option(options: dict[str, Any], text: str) -> None:
    """Enter `gpus.a100.memory_mib=40960`. A value that TOML doesn't know is text."""
    key, equals, value = text.partition("=")
    *tables, last = key.split(".")
    if not equals or not all((*tables, last)):
        raise UsageError(f"--option {text!r} does not read KEY=VALUE, as path=sup/3301/az1/{{node}}")
    for name in tables:
        options = options.setdefault(name, {})
        if not isinstance(options, dict):
            raise UsageError(f"--option {text!r}: {name} has a value already")
    try:
        options[last] = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        options[last] = value


def _look(home: Path, collector: CollectorConfig) -> dict[str, Any]:
    """What there is, as this provider would register it."""
    config = NodeConfig.load(home)
    if config.role != "provider":
        raise UsageError(f"{home} is the home of a {config.role} node: only a provider registers hosts")
    prefix = load_identity(config, now=time.time()).prefix
    looking = load_collector(collector.name, collector.options, config.home)
    try:
        collected = trio.run(collect_once, looking) or Collected(collector.name, ())
        planned, refused = plan_hosts(
            collected.hosts, prefix=prefix, endpoint=Endpoint("localhost", config.port)
        )
    except CollectorFailed as error:
        raise CollectorFailed(f"collector {collector.name}: {error}") from None
    faults = [str(fault) for fault in (*collected.refused, *refused)]
    records = [resource.description for resource, _ in planned]
    devices: Counter[str] = Counter()
    for group in (group for record in records for group in record.accelerators):
        devices[group.model] += group.count
    return {
        "source": collected.source,
        "prefix": prefix,
        "hosts": len(records),
        "in_service": sum(free is not None for _, free in planned),
        "cores": sum(record.cpu.cores for record in records),
        "accelerators": dict(devices.most_common()),
        "first": records[0].cid if records else None,
        "refused": len(faults),
        "reasons": faults[:REFUSED_SHOWN_MAX],
    }


def _add(home: Path, collector: CollectorConfig) -> dict[str, Any]:
    """Enter the collector into the configuration, and tell the node if it runs."""
    message = api.AddCollector(
        collector.name, collector.interval_seconds, msgspec.json.encode(collector.options)
    )
    text = _config_with(home, collector)
    try:
        added = ask(home, lambda node: node.add_collector(message))
    except PeerUnreachable:
        added = None
    if text is not None:
        _replace_config(home, text)
    if added is None:
        return {"running": False}
    return {
        "running": True,
        "added": added.added,
        "changed": added.changed,
        "removed": added.removed,
        "unchanged": added.unchanged,
    }


def _config_with(home: Path, collector: CollectorConfig) -> str | None:
    """config.toml with one more collector; None where it is there. Raises `UsageError` where it has no place for it."""
    if any(each.key == collector.key for each in NodeConfig.load(home).collectors):
        return None
    facts = {"name": collector.name, "interval_seconds": collector.interval_seconds}
    more = f"[[collectors]]\n{tomli_w.dumps(facts)}"  # the whole at once might become an inline list: for the end only
    if collector.options:
        more += f"\n{tomli_w.dumps({'collectors': {'options': collector.options}})}"
    path = home / CONFIG_NAME
    text = f"{path.read_text(encoding='utf-8').rstrip()}\n\n{more}"
    try:
        NodeConfig.parse(text)
    except ConfigError as error:
        raise UsageError(f"{path} has no place for one more [[collectors]] at its end ({error})") from None
    return text


def _replace_config(home: Path, text: str) -> None:
    """It keeps its mode, and the place that it is a link to."""
    path = (home / CONFIG_NAME).resolve()
    try:
        write_file(path, text.encode(), stat.S_IMODE(path.stat().st_mode))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None


def render_inventory(console: Console, facts: dict[str, Any]) -> None:
    """A few lines."""
    devices = (
        ", ".join(f"{count} {model}" for model, count in facts["accelerators"].items()) or "no accelerators"
    )
    away = facts["hosts"] - facts["in_service"]
    hosts = f"{facts['hosts']} host{'s' * (facts['hosts'] != 1)}" + (
        f" ({away} out of service)" if away else ""
    )
    console.print(plain(f"{facts['source']}: {hosts}, {facts['cores']} cores, {devices}"))
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
        console.print(plain(f"registered: {counts}; config.toml follows it from now on"))
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
