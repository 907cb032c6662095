"""Collectors at work: what they find becomes resources of this provider, again and again.

A collector that fails leaves its hosts registered; after `FAILURES_MAX` failures in a row they are not offered any
more, until it answers again. Collected hosts offer none of this machine's runtimes and take no leases here. Collectors
may be code of others: whatever one raises or returns costs nothing but its own hosts. The same trouble is logged once,
and `warnings` tells it for as long as it lasts.
"""

import math
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import structlog
import trio

from ioc_node.api import AddCollector, CollectorAdded, Warned
from ioc_node.collectors.collector import (
    HOSTS_MAX,
    REASON_CHARS_MAX,
    Collected,
    CollectedHost,
    Collector,
    CollectorFailed,
    Free,
    Host,
    RefusedRow,
    check_host,
    free_fault,
    load_collector,
)
from ioc_node.collectors.local import LocalMachine
from ioc_node.config import CollectorConfig, NodeConfig, ResourceConfig, convert_document
from ioc_node.errors import ConfigError, NodeError, UsageError
from ioc_node.registering import Registrar, Replaced
from ioc_node.resources import Resource, plan_resources
from ioc_wire.records import Endpoint

FAILURES_MAX: Final = 3
COLLECTORS_MAX: Final = 16
REFUSED_LOGGED_MAX: Final = 20

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class LeftOut:
    """How many things a look left out, and why: the first few."""

    count: int
    reasons: tuple[str, ...]


@dataclass(slots=True, eq=False)
class AtWork:
    """One collector, and what is wrong with it now: why it fails, and what it left out."""

    config: CollectorConfig
    collector: Collector
    failures: int = 0
    failure: str = ""
    left_out: LeftOut = LeftOut(0, ())
    unsettled: Collected | None = None
    """What was found and not registered, since something failed in between: a collector may not tell it again."""

    def warning(self) -> str:
        """For people; empty where all is well."""
        if self.failures >= FAILURES_MAX:
            return f"{self.failure}; its hosts are not offered until it answers again"
        if self.failure or not self.left_out.count:
            return self.failure
        more = f", and {self.left_out.count - 1} more" if self.left_out.count > 1 else ""
        return f"left out: {self.left_out.reasons[0]}{more}"


@dataclass(frozen=True, slots=True)
class Round:
    """What one look of a collector came to."""

    collected: Collected
    replaced: Replaced


def plan_host(host: Host, *, prefix: str, endpoint: Endpoint | None) -> Resource:
    """The resource of a collected host. Raises `ConfigError`."""
    try:
        document = msgspec.to_builtins(check_host(host))
        architecture, cpu_model = document.pop("architecture"), document.pop("cpu_model")
        config = msgspec.convert(document, ResourceConfig)
    except (msgspec.ValidationError, TypeError) as error:
        raise ConfigError(str(error)) from None
    machine = LocalMachine(architecture, cpu_model, host.cores, host.memory_mib, host.storage_mib)
    (resource,) = plan_resources(
        [config], prefix=prefix, machine=machine, runtimes=(), offloads=(), endpoint=endpoint
    )
    return resource


class Collecting:
    """The collectors of one provider. Raises `BadCollector` for one that cannot be used."""

    def __init__(
        self, config: NodeConfig, registrar: Registrar, *, prefix: str, endpoint: Endpoint | None
    ) -> None:
        self.at_work = [
            AtWork(each, load_collector(each.name, each.options, config.home)) for each in config.collectors
        ]
        self._folder = config.home
        self._nursery: trio.Nursery | None = None
        self._adding = trio.Lock()
        self._registrar = registrar
        self._prefix = prefix
        self._endpoint = endpoint

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for work in self.at_work:
                nursery.start_soon(self._keep_looking, work)
            await trio.sleep_forever()

    def warnings(self) -> tuple[Warned, ...]:
        """Which collectors fail or leave something out, and why."""
        said = ((work.config.name, work.warning()) for work in self.at_work)
        return tuple(Warned(f"collector {name}", text) for name, text in said if text)

    async def add(self, message: AddCollector) -> CollectorAdded:
        """One more, from now on. Raises `BadCollector`, or what its first look raises."""
        async with self._adding:  # of two that are the same, the second is refused
            return await self._add(message)

    async def _add(self, message: AddCollector) -> CollectorAdded:
        if self._nursery is None:
            raise UsageError("this node is starting: ask again in a moment")
        try:
            options = msgspec.json.decode(message.options, type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError) as error:
            raise UsageError(f"options of the collector: {error}") from None
        config = convert_document(
            {"name": message.name, "interval_seconds": message.interval_seconds, "options": options},
            CollectorConfig,
            "collector",
        )
        if len(self.at_work) >= COLLECTORS_MAX:
            raise UsageError(f"{COLLECTORS_MAX} collectors are at work already")
        if any(each.config.key == config.key for each in self.at_work):
            raise UsageError("this collector is at work already")
        work = AtWork(config, load_collector(config.name, config.options, self._folder))
        looked = await self.look(work)
        self.at_work.append(work)
        self._nursery.start_soon(self._keep_looking, work)
        if looked is None:
            return CollectorAdded(0, 0, 0, 0, ())
        faults = [str(fault) for fault in looked.collected.refused]
        faults += [f"{cid}: {reason}" for cid, reason in looked.replaced.refused]
        done = looked.replaced
        return CollectorAdded(
            done.added, done.changed, done.removed, done.unchanged, tuple(faults[:REFUSED_LOGGED_MAX])
        )

    async def _keep_looking(self, work: AtWork) -> None:
        while True:
            try:
                await self.look(work)
                work.failures, work.failure = 0, ""
            except NodeError as error:
                self._failed(work, str(error))
            await trio.sleep(work.config.interval_seconds)

    def _failed(self, work: AtWork, reason: str) -> None:
        reason = " ".join(reason.split())[:REASON_CHARS_MAX]  # others' words
        work.failures += 1
        if reason != work.failure or work.failures == FAILURES_MAX:
            _log.warning(
                "collector_failed", collector=work.config.name, reason=reason, failures=work.failures
            )
        work.failure = reason
        if work.failures >= FAILURES_MAX:
            self._registrar.silence(work.config.key)

    async def look(self, work: AtWork) -> Round | None:
        """Look once; None where nothing changed. Raises `CollectorFailed`, `StorageFull`."""
        started = trio.current_time()
        collected = await collect_once(work.collector) or work.unsettled
        if collected is None:
            self._registrar.offer_again(work.config.key)
            return None
        work.unsettled = collected
        hosts, refused = await trio.to_thread.run_sync(self._plan, collected.hosts)
        faults = [*collected.refused, *refused]
        replaced = await self._registrar.replace(work.config.key, hosts)
        reasons = (*map(str, faults), *(f"{cid}: {reason}" for cid, reason in replaced.refused))
        left_out = LeftOut(len(reasons), reasons[:REFUSED_LOGGED_MAX])
        if left_out != work.left_out:
            for reason in left_out.reasons:
                _log.warning("row_refused", source=collected.source, reason=reason)
        if left_out != work.left_out or replaced.added or replaced.changed or replaced.removed:
            _log.info(
                "collected", collector=work.config.name, source=collected.source, hosts=len(hosts),
                added=replaced.added, changed=replaced.changed, removed=replaced.removed, refused=left_out.count,
                ms=math.ceil((trio.current_time() - started) * 1000),
            )  # fmt: skip
        work.left_out, work.unsettled = left_out, None
        return Round(Collected(collected.source, collected.hosts, tuple(faults)), replaced)

    def _plan(
        self, hosts: Sequence[CollectedHost]
    ) -> tuple[list[tuple[Resource, Free | None]], list[RefusedRow]]:
        return plan_hosts(hosts, prefix=self._prefix, endpoint=self._endpoint)


def _where(error: BaseException) -> str:
    """An exception in a line, for whoever wrote the code that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({last.filename}, line {last.lineno})"


async def collect_once(collector: Collector) -> Collected | None:
    """One look. Raises `CollectorFailed`, also for what a collector should not raise."""
    try:
        collected = await collector.collect()
    except NodeError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a collector of others may raise anything
        raise CollectorFailed(f"it crashed: {_where(error)}") from None
    if collected is None:
        return None
    if not isinstance(collected, Collected):
        raise CollectorFailed(f"it returned a {type(collected).__name__}, not what it collected")
    for name in ("hosts", "refused"):
        found = getattr(collected, name)
        if not isinstance(found, tuple | list):
            raise CollectorFailed(f"it returned {name}: a {type(found).__name__}, not a tuple")
    if len(collected.hosts) > HOSTS_MAX:
        raise CollectorFailed(f"{len(collected.hosts)} hosts, at most {HOSTS_MAX}: use several providers")
    return collected


def plan_hosts(
    hosts: Sequence[CollectedHost], *, prefix: str, endpoint: Endpoint | None
) -> tuple[list[tuple[Resource, Free | None]], list[RefusedRow]]:
    """The resources of collected hosts, with what is free, and what cannot be one. Of two with one path the first
    counts; a host whose free amounts cannot be is out of service. Raises `CollectorFailed`.
    """
    try:
        return _plan_each(hosts, prefix, endpoint)
    except (AttributeError, TypeError, ValueError) as error:  # made of other things than it should be
        raise CollectorFailed(f"what it returned cannot be used: {error}") from None


def _plan_each(
    hosts: Sequence[CollectedHost], prefix: str, endpoint: Endpoint | None
) -> tuple[list[tuple[Resource, Free | None]], list[RefusedRow]]:
    planned: dict[str, tuple[Resource, Free | None]] = {}
    refused: list[RefusedRow] = []
    for each in hosts:
        try:
            resource = plan_host(each.host, prefix=prefix, endpoint=endpoint)
        except ConfigError as error:
            refused.append(RefusedRow(each.line, "", str(error).removeprefix("resources[0].")))
            continue
        if resource.cid in planned:
            refused.append(RefusedRow(each.line, "path", f"{each.host.path} is named twice"))
            continue
        fault = free_fault(each.host, each.free) if each.free is not None else ""
        if fault:
            refused.append(RefusedRow(each.line, "", f"{each.host.path}: {fault}"))
        planned[resource.cid] = resource, None if fault else each.free
    return list(planned.values()), refused
