"""What a provider does more than others: it registers identifiers, gives leases and runs tasks."""

from collections.abc import Mapping
from typing import Self

import structlog
import trio

from ioc_node.api import Warned
from ioc_node.bulk.transfers import BulkEndpoint
from ioc_node.collecting import Collecting
from ioc_node.collectors.local import look_at_machine
from ioc_node.config import NodeConfig, ResourceConfig
from ioc_node.core.own_catalogue import OwnCatalogue
from ioc_node.errors import ConfigError
from ioc_node.executors.executor import Executor, load_executors
from ioc_node.identity import Identity
from ioc_node.market.leases import LeaseBook
from ioc_node.metering.ledger import Ledger
from ioc_node.registering import Registrar
from ioc_node.resources import RecordSigner, plan_resources
from ioc_node.runtime.dht import Dht
from ioc_node.runtime.home import Home
from ioc_node.runtime.link_handlers import Handlers
from ioc_node.runtime.links import LinkEndpoint
from ioc_node.runtime.own_shelf import OwnCatalogueShelf
from ioc_node.runtime.store import Store
from ioc_node.runtime.whereabouts import Whereabouts
from ioc_node.tasks.exchange import BlobExchange
from ioc_node.tasks.keeper import Keeper
from ioc_node.tasks.provide import Provider
from ioc_node.tasks.staging import Workshop
from ioc_wire.records import Endpoint

_log = structlog.get_logger()


class ProviderSide:
    """The rooms of a provider. Made by `make`."""

    def __init__(
        self,
        *,
        provider: Provider,
        home: Home,
        registrar: Registrar,
        shelf: OwnCatalogueShelf,
        collecting: Collecting,
        executors: Mapping[str, Executor],
        missing: Mapping[str, str],
    ) -> None:
        self.home = home
        self.registrar = registrar
        self.runtimes = tuple(sorted(executors))
        self._missing = tuple(Warned(f"runtime {name}", reason) for name, reason in sorted(missing.items()))
        self._provider = provider
        self._shelf = shelf
        self.collecting = collecting

    @classmethod
    async def make(
        cls,
        config: NodeConfig,
        identity: Identity,
        *,
        store: Store,
        exchange: BlobExchange,
        keeper: Keeper,
        ledger: Ledger,
        bulk: BulkEndpoint,
        where: Whereabouts,
    ) -> Self:
        """Probe executors, plan and sign the resources. Raises `ConfigError`."""
        executors, missing = await trio.to_thread.run_sync(load_executors)
        for name, reason in missing.items():
            _log.warning("runtime_missing", runtime=name, reason=reason)
        endpoint = Endpoint(where.host, config.port) if where.host is not None else None
        resources = plan_resources(
            config.resources,
            prefix=identity.prefix,
            machine=look_at_machine(config.home),
            runtimes=sorted(executors),
            offloads=bulk.offloads.names,
            endpoint=endpoint,
        )
        if not config.collectors and not any(resource.type == "node" for resource in resources):
            raise ConfigError(
                'this provider offers nothing: add a [[resources]] table with path = "gen/CITY/ZONE/HOST"'
            )
        book = LeaseBook(
            store,
            identity.key,
            {resource.cid: resource.capacity for resource in resources if resource.type == "node"},
            lease_seconds=max(1, round(config.tasks.lease_seconds)),
        )
        own = OwnCatalogue(identity.key)
        shelf = OwnCatalogueShelf(store)
        shelf.load_own(own)
        registrar = Registrar(
            resources,
            signer=RecordSigner(store, identity.key),
            chain=identity.chain,
            own=own,
            book=book,
            prefix=identity.prefix,
        )
        collecting = Collecting(config, registrar, prefix=identity.prefix, endpoint=endpoint)
        registrar.enter_catalogue([each.key for each in config.collectors])
        home = Home(
            own,
            chain=lambda: identity.chain,
            contact=where.contact,
            status=registrar.status_rows,
            status_seconds=config.gossip.status_seconds,
        )
        provider = Provider(
            key=identity.key,
            home=config.home,
            store=store,
            book=book,
            workshop=Workshop(exchange, executors),
            exchange=exchange,
            keeper=keeper,
            ledger=ledger,
            settings=config.tasks,
            on_change=home.status_changed,
        )
        return cls(
            provider=provider,
            home=home,
            registrar=registrar,
            shelf=shelf,
            collecting=collecting,
            executors=executors,
            missing=missing,
        )

    @property
    def warnings(self) -> tuple[Warned, ...]:
        """What an operator should know of runtimes and collectors."""
        return (*self._missing, *self.collecting.warnings())

    @property
    def tasks_running(self) -> int:
        return self._provider.tasks_running

    @property
    def provided(self) -> Provider:
        """The tasks of others that run or ran here."""
        return self._provider

    def register(self, handlers: Handlers) -> None:
        """Answer consumers and core nodes; before links are opened."""
        self._provider.serve_on(handlers)
        self.home.register(handlers)

    async def start(self, nursery: trio.Nursery, links: LinkEndpoint, dht: Dht) -> None:
        """Publish, register and run tasks until the nursery ends."""
        await nursery.start(self._provider.run)
        nursery.start_soon(self.home.run, links, self._shelf)
        self.registrar.publish(dht, self.home)
        nursery.start_soon(self.collecting.run)
        _log.info(
            "provider_up",
            resources=len(self.registrar.resources),
            runtimes=self.runtimes,
        )

    async def stop(self) -> None:
        """Preempt what runs and see its consumers told; before `start`'s nursery ends."""
        await self._provider.stop()


def default_resources(city: str) -> tuple[ResourceConfig, ...]:
    """What `ioc-node init` offers unless told otherwise: this machine, whole, for nothing."""
    return (ResourceConfig(path=f"gen/{city}/az1/h1"),)
