"""Collectors at work: what they find becomes resources of this provider, again and again.

A collector that fails leaves its hosts registered; after `FAILURES_MAX` failures in a row they are not offered any
more, until it answers again. Collected hosts offer none of this machine's runtimes and take no leases here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import structlog
import trio

from ioc_node.api import AddCollector, CollectorAdded
from ioc_node.collectors.collector import (
    Collected,
    CollectedHost,
    Collector,
    Free,
    Host,
    RefusedRow,
    load_collector,
)
from ioc_node.collectors.local import LocalMachine
from ioc_node.config import CollectorConfig, NodeConfig, ResourceConfig
from ioc_node.errors import ConfigError, NodeError, UsageError
from ioc_node.registering import Registrar, Replaced
from ioc_node.resources import Resource, plan_resources
from ioc_wire.records import Endpoint

FAILURES_MAX: Final = 3
COLLECTORS_MAX: Final = 16
REFUSED_LOGGED_MAX: Final = 20

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Round:
    """What one look of a collector came to."""

    collected: Collected
    replaced: Replaced


def plan_host(host: Host, *, prefix: str, endpoint: Endpoint) -> Resource:
    """The resource of a collected host. Raises `ConfigError`."""
    document = msgspec.to_builtins(host)
    architecture, cpu_model = document.pop("architecture"), document.pop("cpu_model")
    try:
        config = msgspec.convert(document, ResourceConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error)) from None
    machine = LocalMachine(architecture, cpu_model, host.cores, host.memory_mib, host.storage_mib)
    (resource,) = plan_resources(
        [config], prefix=prefix, machine=machine, runtimes=(), offloads=(), endpoint=endpoint
    )
    return resource


class Collecting:
    """The collectors of one provider. Raises `ConfigError` for one that cannot be used."""

    def __init__(self, config: NodeConfig, registrar: Registrar, *, prefix: str, endpoint: Endpoint) -> None:
        self._collectors = [
            (each, load_collector(each.name, each.options, config.home)) for each in config.collectors
        ]
        self._folder = config.home
        self._nursery: trio.Nursery | None = None
        self._registrar = registrar
        self._prefix = prefix
        self._endpoint = endpoint

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for config, collector in self._collectors:
                nursery.start_soon(self._keep_looking, config, collector)
            await trio.sleep_forever()

    async def add(self, message: AddCollector) -> CollectorAdded:
        """One more, from now on. Raises `BadCollector`, or what its first look raises."""
        if self._nursery is None:
            raise UsageError("this node is starting: ask again in a moment")
        try:
            options = msgspec.json.decode(message.options, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise UsageError(f"options of the collector: {error}") from None
        config = CollectorConfig(
            name=message.name, interval_seconds=message.interval_seconds, options=options
        )
        if len(self._collectors) >= COLLECTORS_MAX:
            raise UsageError(f"{COLLECTORS_MAX} collectors are at work already")
        if any(each.key == config.key for each, _ in self._collectors):
            raise UsageError("this collector is at work already")
        collector = load_collector(config.name, config.options, self._folder)
        looked = await self.look(config, collector)
        self._collectors.append((config, collector))
        self._nursery.start_soon(self._keep_looking, config, collector)
        if looked is None:
            return CollectorAdded(0, 0, 0, 0, ())
        faults = [str(fault) for fault in looked.collected.refused]
        faults += [f"{cid}: {reason}" for cid, reason in looked.replaced.refused]
        done = looked.replaced
        return CollectorAdded(
            done.added, done.changed, done.removed, done.unchanged, tuple(faults[:REFUSED_LOGGED_MAX])
        )

    async def _keep_looking(self, config: CollectorConfig, collector: Collector) -> None:
        failures = 0
        while True:
            try:
                await self.look(config, collector)
                failures = 0
            except NodeError as error:
                failures += 1
                _log.warning("collector_failed", collector=config.name, reason=str(error), failures=failures)
                if failures >= FAILURES_MAX:
                    self._registrar.silence(config.key)
            await trio.sleep(config.interval_seconds)

    async def look(self, config: CollectorConfig, collector: Collector) -> Round | None:
        """Look once; None where nothing changed. Raises `CollectorFailed`, `StorageFull`."""
        started = trio.current_time()
        collected = await collector.collect()
        if collected is None:
            return None
        hosts, refused = await trio.to_thread.run_sync(self._plan, collected.hosts)
        faults = [*collected.refused, *refused]
        replaced = await self._registrar.replace(config.key, hosts)
        for fault in faults[:REFUSED_LOGGED_MAX]:
            _log.warning("row_refused", source=collected.source, reason=str(fault))
        for cid, reason in replaced.refused[:REFUSED_LOGGED_MAX]:
            _log.warning("row_refused", source=collected.source, cid=cid, reason=reason)
        _log.info(
            "collected", collector=config.name, source=collected.source, hosts=len(hosts), added=replaced.added,
            changed=replaced.changed, removed=replaced.removed, refused=len(faults) + len(replaced.refused),
            ms=math.ceil((trio.current_time() - started) * 1000),
        )  # fmt: skip
        return Round(Collected(collected.source, collected.hosts, tuple(faults)), replaced)

    def _plan(
        self, hosts: Sequence[CollectedHost]
    ) -> tuple[list[tuple[Resource, Free | None]], list[RefusedRow]]:
        return plan_hosts(hosts, prefix=self._prefix, endpoint=self._endpoint)


def plan_hosts(
    hosts: Sequence[CollectedHost], *, prefix: str, endpoint: Endpoint
) -> tuple[list[tuple[Resource, Free | None]], list[RefusedRow]]:
    """The resources of collected hosts, with what is free, and what cannot be one."""
    planned: list[tuple[Resource, Free | None]] = []
    refused: list[RefusedRow] = []
    for each in hosts:
        try:
            planned.append((plan_host(each.host, prefix=prefix, endpoint=endpoint), each.free))
        except ConfigError as error:
            refused.append(RefusedRow(each.line, "", str(error).removeprefix("resources[0].")))
    return planned, refused
