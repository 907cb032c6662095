"""One node: which rooms its role needs, wired together for as long as the block lasts.

    async with ioc_node.open_node(NodeConfig.load()) as node:
        offers = await node.find(Demand(...))
        task = await node.submit(TaskSpec.load("task.toml"))
        async for event in task.events(): ...
        result = await task.result()

Every node resolves, finds, submits and shares blobs. A core node also gossips and answers demand queries; a provider
also registers identifiers, gives leases and runs tasks.
"""

import importlib.metadata
import os
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import structlog
import trio

from ioc_node import api
from ioc_node.acquaintances import peer_rows
from ioc_node.answers import Answers
from ioc_node.bearings import Bearings
from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.offload import load_offloads
from ioc_node.bulk.plane.process import PlaneProcess
from ioc_node.bulk.transfers import BulkEndpoint, open_bulk
from ioc_node.config import CATALOGUE_NAME, DATABASE_NAME, NodeConfig
from ioc_node.core.events import RecordChanged
from ioc_node.core_links import CoreLinks
from ioc_node.core_side import CoreSide
from ioc_node.datasets import Datasets
from ioc_node.destinations import find_destinations
from ioc_node.entering import Entrance
from ioc_node.errors import ConfigError, RequestRefused, UsageError
from ioc_node.express import Express
from ioc_node.express_journal import ExpressJournal
from ioc_node.express_taking import ShipmentTaker
from ioc_node.finding import Finder
from ioc_node.identity import Identity, advertised_host, load_identity
from ioc_node.metering.ledger import Ledger
from ioc_node.provider_side import ProviderSide
from ioc_node.reaching import Through
from ioc_node.relaying import Relaying
from ioc_node.rendezvous import NodeRendezvous
from ioc_node.resolving import LocalRecords, Resolver
from ioc_node.runtime.bulletins import CoreBulletins, read_bulletins
from ioc_node.runtime.catalogue_store import open_catalogue
from ioc_node.runtime.circuits import Circuits
from ioc_node.runtime.control import open_control_server
from ioc_node.runtime.dht import Dht, open_dht
from ioc_node.runtime.driver import open_background
from ioc_node.runtime.link_handlers import Handlers
from ioc_node.runtime.links import LinkEndpoint, open_links
from ioc_node.runtime.pinging import Pinger
from ioc_node.runtime.record_shelf import RecordShelf
from ioc_node.runtime.revocations import RevocationKeeper
from ioc_node.runtime.store import PeerMemory, Store, open_store
from ioc_node.runtime.whereabouts import Whereabouts
from ioc_node.sharing import SharedBlobs
from ioc_node.tasks.consume import Consumer
from ioc_node.tasks.definition import Definition, TaskSpec
from ioc_node.tasks.exchange import BlobExchange
from ioc_node.tasks.handle import TaskHandle
from ioc_node.tasks.keeper import Keeper
from ioc_node.tasks.workflow import WorkflowHandle, Workflows
from ioc_node.throttling import change_bandwidth, make_throttles, told_bandwidth
from ioc_wire.authority import SERVER_ROLES
from ioc_wire.errors import WireError
from ioc_wire.gossip import PeersKnown
from ioc_wire.market import Cursor, Demand
from ioc_wire.messages import NODE_CODEC
from ioc_wire.tasks import TaskDefinition, WorkflowDefinition

FOLDER_MODE: Final = 0o700

_log = structlog.get_logger()


class Node:
    """A running node. Made by `open_node`; its methods may be called from any task of the same trio loop."""

    def __init__(
        self,
        config: NodeConfig,
        identity: Identity,
        *,
        store: Store,
        dht: Dht,
        bulk: BulkEndpoint,
        links: LinkEndpoint,
        revocations: RevocationKeeper,
        entrance: Entrance,
        cores: CoreLinks,
        finder: Finder,
        resolver: Resolver,
        shared: SharedBlobs,
        datasets: Datasets,
        express: Express,
        consumer: Consumer,
        workflows: Workflows,
        ledger: Ledger,
        core: CoreSide | None,
        bulletins: CoreBulletins | None,
        provider: ProviderSide | None,
        where: Whereabouts,
        relaying: Relaying | None,
    ) -> None:
        self.config = config
        self.identity = identity
        self.store = store
        self.dht = dht
        self.bulk = bulk
        self.links = links
        self.revocations = revocations
        self.entrance = entrance
        self.cores = cores
        self.finder = finder
        self.resolver = resolver
        self.shared = shared
        self.datasets = datasets
        self.express = express
        self.consumer = consumer
        self.workflows = workflows
        self.ledger = ledger
        self.core = core
        self.bulletins = bulletins
        self.provider = provider
        self.where = where
        self.relaying = relaying
        self.started = time.time()
        self.stop_wanted = trio.Event()
        """Set when somebody asked this node to stop; whoever runs it then leaves the block."""

    # -- the network

    async def wait_joined(self) -> None:
        """Wait until the node has reached a peer."""
        await self.entrance.wait_joined()

    async def resolve(self, cid: str, *, version_min: int = 0) -> api.Resolved:
        """The verified record of an identifier, from this node's own catalogue, the DHT, or a core node, whichever is
        first. Raises `BadIdentifier`, `Withdrawn`, or with each one's reason `NotFound` or `PeerUnreachable`.
        """
        return await self.resolver.resolve(cid, version_min)

    async def look_up(self, cid: str, *, version_min: int = 0) -> api.Resolved | api.Unresolved:
        """As `resolve`, with the trace of the search also where it fails. Raises `BadIdentifier`."""
        return await self.resolver.look_up(cid, version_min)

    @asynccontextmanager
    async def watch(self, cid: str, *, version: int = 0) -> AsyncIterator[AsyncIterator[RecordChanged]]:
        """Iterate over the verified records of an identifier with versions above `version`: the one there is, then
        each as it comes; a `Tombstone` where it is withdrawn. Who reads slowly gets the newest. Raises
        `BadIdentifier`.
        """
        async with self.dht.watch(cid, version) as changes:
            yield changes

    async def find(
        self,
        demand: Demand,
        *,
        policy: str = "cost",
        limit: int = 32,
        explain: bool = False,
        after: Cursor | None = None,
        verify: bool = False,
    ) -> api.Found:
        """Offers for a demand, ranked by `policy`, from a core node. Raises `PeerUnreachable`, `UsageError`."""
        return await self.finder.find(
            demand, policy=policy, limit=limit, explain=explain, after=after, verify=verify
        )

    def peers(self) -> tuple[api.PeerRow, ...]:
        """Linked peers and known DHT servers."""
        return peer_rows(self.dht, self.links)

    async def overview(self) -> api.Overview:
        """What this core node holds, per node prefix. Raises `UsageError` where it is none."""
        if self.core is None:
            raise UsageError(
                f"a {self.config.role} node holds no catalogue: ask a core node for its overview"
            )
        return await self.core.overview()

    def relayed(self) -> api.Relayed:
        """What this core node passed on for others. Raises `UsageError` where it passes nothing on."""
        if self.relaying is None:
            raise UsageError(
                "this node passes nothing on: core nodes do, unless their config.toml says otherwise"
            )
        return self.relaying.told()

    def publish_bulletin(self, message: api.PublishBulletin) -> api.Bulletins:
        """Announce something to everybody. Raises `UsageError` where this is no core node, `RequestRefused`."""
        if self.bulletins is None:
            raise UsageError(
                f"a {self.config.role} node publishes no bulletins: ask an operator of a core node"
            )
        try:
            posted = self.bulletins.publish(
                message.title, message.text, about=message.about, level=message.level, seconds=message.seconds
            )
        except WireError as error:
            raise RequestRefused(f"this bulletin cannot be published: {error}") from None
        return api.Bulletins((posted.news,))

    async def list_bulletins(self) -> api.Bulletins:
        """What core nodes announce now, from a core node where this is none. Raises `PeerUnreachable`."""
        if self.bulletins is not None:
            posted = self.bulletins.posted()
        else:
            posted = await read_bulletins(await self.cores.any(), self.dht.machine.trust)
        return api.Bulletins(tuple(each.news for each in posted))

    async def add_collector(self, message: api.AddCollector) -> api.CollectorAdded:
        """Look for hosts with one more collector, until this node stops. Raises `UsageError`, `BadCollector`."""
        if self.provider is None:
            raise UsageError("this node is no provider: it registers no hosts")
        return await self.provider.collecting.add(message)

    async def register(self) -> tuple[api.RegisteredRow, ...]:
        """Store all own identifiers again now; nothing on a node that has none."""
        if self.provider is None:
            return ()
        return await self.provider.registrar.register_now(self.dht)

    # -- blobs

    async def add(self, path: str | Path, *, announce: bool = True) -> api.Added:
        """Share a copy of a file with all members of the network. Raises `UsageError` or `StorageFull`."""
        return await self.shared.add(Path(path), announce=announce)

    async def get(self, blob: bytes, path: str | Path) -> api.Got:
        """Find a blob, fetch it from all its holders at once and write it to `path`. Raises `NotFound`, `UsageError`,
        `StorageUnusable`, `RequestRefused`."""
        return await self.shared.get(blob, Path(path), self.links)

    @asynccontextmanager
    async def open_blob(
        self, blob: bytes, *, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[AsyncIterator[memoryview]]:
        """Iterate over bytes `start` … `stop - 1` of a blob, in order and verified, while they arrive from whoever
        holds it. Nothing is kept here, and holders send no faster than they are taken. Raises `NotFound`,
        `RequestRefused`; iterating raises `UsageError` for bytes beyond the end, or why the last holder failed.
        """
        async with self.shared.open_blob(blob, self.links, start=start, stop=stop) as pieces:
            yield pieces

    def list_blobs(self) -> api.Blobs:
        """The blobs that are here, why they stay, and the room they take."""
        quota = self.bulk.store.quota
        return api.Blobs(self.shared.rows(), len(quota), quota.bytes_total, quota.bytes_max or 0)

    def pin(self, blob: bytes, *, pinned: bool = True) -> None:
        """Hold a blob that is here until it is let go with `pinned=False`. Raises `NotFound`, `UsageError`."""
        self.shared.pin(blob, pinned=pinned)

    async def collect_garbage(self, unused_seconds: float = 60.0, *, dry_run: bool = False) -> api.Collected:
        """Remove copies that nothing holds and that were not used for so long."""
        collected = await self.shared.keeper.collect(unused_seconds=unused_seconds, dry_run=dry_run)
        return api.Collected(collected.blobs, collected.bytes)

    async def bandwidth(self) -> api.BandwidthTold:
        """The ceilings and weights of bulk data, and who uses what now."""
        return told_bandwidth(self.bulk.throttles, *await self.bulk.uses())

    async def set_bandwidth(self, changes: Sequence[api.BandwidthChange]) -> api.BandwidthTold:
        """Change ceilings and weights at once, for this run of the node. Raises `UsageError`, and changes nothing."""
        change_bandwidth(self.bulk.throttles, changes)
        await self.bulk.set_bandwidth()
        return await self.bandwidth()

    # -- tasks

    async def submit(self, task: TaskSpec | Definition) -> TaskHandle:
        """Journal a task and begin its story. Raises `ConfigError`, `UsageError`, `StorageFull`."""
        if isinstance(task, WorkflowDefinition):
            task = TaskSpec.of(task)
        assert isinstance(task, (TaskSpec, TaskDefinition))
        return await self.consumer.submit(task)

    async def submit_workflow(self, workflow: TaskSpec | WorkflowDefinition) -> WorkflowHandle:
        """Journal a workflow and begin its story. Raises as `submit` does."""
        return await self.workflows.submit(workflow)

    # -- itself

    def status(self) -> api.NodeStatus:
        """This node at a glance."""
        core, provider = self.core, self.provider
        counted = self.dht.counters()
        return api.NodeStatus(
            version=importlib.metadata.version("ioc-node"),
            node_id=self.identity.name,
            key=self.identity.public_key,
            role=self.config.role,
            network=self.identity.network.name,
            host=self.config.advertise or self.config.host,
            port=self.config.port,
            pid=os.getpid(),
            started=self.started,
            joined=self.entrance.joined_at,
            bootstrap=self.entrance.state(),
            servers_known=counted["servers"],
            links=len(self.links.links),
            home_core=provider.home.state if provider is not None else "",
            identifiers=len(provider.registrar.resources) if provider is not None else 0,
            catalogue_providers=core.providers if core is not None else 0,
            catalogue_records=core.records if core is not None else 0,
            catalogue_digest=core.digest if core is not None else b"",
            records_stored=counted["records"],
            runtimes=provider.runtimes if provider is not None else (),
            tasks_running=provider.tasks_running if provider is not None else 0,
            receipts=self.ledger.totals().receipts,
            blobs=len(self.bulk.store.list_blobs()),
            blob_bytes=self.bulk.store.bytes_total,
            bytes_in=self.bulk.counters.bytes_received,
            bytes_out=self.bulk.counters.bytes_sent,
            warnings=self._warnings(),
            reached=self.where.text(),
            offloads=self.bulk.offloads.lines(),
            bulk_pid=self.bulk.plane.pid,
        )

    def _warnings(self) -> tuple[api.Warned, ...]:
        side = self.provider or self.core
        own = side.warnings if side is not None else ()
        said = (
            ("revoked", self.revocations.own_fault or self.links.revoked_elsewhere()),
            ("delegation", self.identity.ends_soon(now=time.time())),
            *((f"offload {name}", why) for name, why in self.bulk.offloads.refused.items()),
        )
        return (*own, *(api.Warned(what, text) for what, text in said if text))


@asynccontextmanager
async def open_node(config: NodeConfig, *, bootstrap: Sequence[str] = ()) -> AsyncIterator[Node]:
    """Run a node until the block ends. `bootstrap` addresses are tried before those of `config`.

    The node joins in the background: `wait_joined` waits for it, `status` says how it stands. Raises `ConfigError`,
    `KeyFileUnsafe`, `PortInUse`, `DatabaseCorrupt`, or `NodeError` where another node runs on this home folder.
    """
    identity = load_identity(config, now=time.time())
    host = advertised_host(config)
    _make_folders(config.home)
    answers = Answers()
    async with open_background(), AsyncExitStack() as stack:
        await stack.enter_async_context(open_control_server(config.home, api.CONTROL_CODEC, answers.handlers))
        store = stack.enter_context(open_store(config.home / DATABASE_NAME))
        blobs = await trio.to_thread.run_sync(_open_blobs, config)
        dht = await stack.enter_async_context(_open_dht(config, identity, store))
        bulk = await stack.enter_async_context(_open_bulk(config, identity, blobs))
        handlers = Handlers()
        trust = dht.machine.trust
        revocations = RevocationKeeper(
            trust, own_key=identity.public_key, own_chain=identity.chain, store=store
        )
        revocations.on_ended(dht.key_revoked)
        revocations.on_ended(lambda ended: bulk.tickets.revoke_readers(ended.keys))
        revocations.register(handlers)
        revocations.load()
        keeper, ledger = Keeper(store, blobs), Ledger(store)
        where = Whereabouts(identity.public_key, host, config.port, outbound_only=config.outbound_only)
        exchange = BlobExchange(bulk, where.hosts, where.via)
        shared = SharedBlobs(store, bulk, dht, keeper, where)
        shared.register(handlers)
        datasets = Datasets(store, bulk, shared, keeper, key=identity.key)
        datasets.is_revoked = lambda key: key in trust.revoked
        datasets.register(handlers)
        express = _make_express(config, identity, store, bulk, shared, datasets, keeper, ledger, where)
        express.register(handlers)
        exchange.on_fetched = shared.note
        local = None
        core = None
        if config.is_core:
            shelf = stack.enter_context(open_catalogue(config.home / CATALOGUE_NAME))
            core = CoreSide(config, identity, shelf, trust)
        if core is not None:
            core.register(handlers)
            revocations.on_ended(core.key_revoked)
            local = LocalRecords(dht, core.gossip.catalogue, core.forwarding)
            local.register(handlers)
        bulletins = None
        if config.is_core:
            bulletins = CoreBulletins(identity.key, identity.chain, trust, store=store)
            bulletins.register(handlers)
            revocations.on_ended(bulletins.key_revoked)
        circuits = Circuits(
            passes_on=config.is_core and config.relay.enabled, outbound_only=config.outbound_only
        )
        circuits.register(handlers)
        rendezvous = NodeRendezvous(bulk, where.host)
        rendezvous.register(handlers)
        relaying = None
        if config.is_core and config.relay.enabled:
            relaying = Relaying(config, circuits, store, bulk.throttles.sending)
            stack.callback(relaying.close)
            relaying.register(handlers)
        provider = None
        if config.role == "provider":
            provider = await ProviderSide.make(
                config,
                identity,
                store=store,
                exchange=exchange,
                keeper=keeper,
                ledger=ledger,
                bulk=bulk,
                where=where,
            )
            provider.register(handlers)
        links = await stack.enter_async_context(
            open_links(
                identity.key,
                identity.network,
                host=config.host,
                port=config.port,
                codec=NODE_CODEC,
                handlers=handlers,
                roles=(config.role,),
                chain=identity.chain,
                advertise=(host, config.port),
                outbound_only=config.outbound_only,
                revoked=trust.revoked,
                ended=trust.revocations.ended,
            )
        )
        datasets.links = links
        memory = PeerMemory(store)
        cores = CoreLinks(links, memory)
        circuits.links = links
        links.through = Through(links, circuits, cores)
        where.core = (lambda: provider.home.link) if provider is not None else cores.first
        if core is None and provider is None:  # the others' rooms take this notice themselves
            handlers.serve_notify(PeersKnown, cores.hear)
        elif provider is not None:
            provider.home.on_peers(cores.hear)  # so that they are remembered over a restart
        pinger = Pinger(dht, links)
        bearings = Bearings(cores, pinger)
        finder = Finder(
            links,
            cores,
            core,
            pinger=pinger,
            bearings=bearings,
            host=host,
            engine=bulk.engine,
            offloads=bulk.offloads,
        )
        consumer = Consumer(
            key=identity.key,
            store=store,
            exchange=exchange,
            keeper=keeper,
            ledger=ledger,
            find=finder.offers,
            connect=links.reach,
            settings=config.tasks,
        )
        workflows = Workflows(store, consumer)
        entrance = Entrance(
            config, identity.network, option=bootstrap, links=links, dht=dht, cores=cores, memory=memory
        )
        node = Node(
            config,
            identity,
            store=store,
            dht=dht,
            bulk=bulk,
            links=links,
            revocations=revocations,
            entrance=entrance,
            cores=cores,
            finder=finder,
            resolver=Resolver(dht, cores, local),
            shared=shared,
            datasets=datasets,
            express=express,
            consumer=consumer,
            workflows=workflows,
            ledger=ledger,
            core=core,
            bulletins=bulletins,
            provider=provider,
            where=where,
            relaying=relaying,
        )
        tasks = await stack.enter_async_context(open_background())
        await tasks.start(rendezvous.run, links)
        if relaying is not None:
            tasks.start_soon(relaying.run)
        if core is not None:
            await core.start(tasks, links, pinger)
        if bulletins is not None:
            tasks.start_soon(bulletins.run, links)
        tasks.start_soon(revocations.run, links)
        tasks.start_soon(entrance.run)
        tasks.start_soon(shared.keep_announced, entrance.wait_joined)
        tasks.start_soon(shared.keep_withdrawn, entrance.wait_joined)
        tasks.start_soon(datasets.keep_announced, entrance.wait_joined)
        express.destinations = partial(find_destinations, dht, links, finder)
        tasks.start_soon(express.run, links)
        await tasks.start(consumer.run)
        await tasks.start(workflows.run)
        if provider is not None:
            await provider.start(tasks, links, dht)
            tasks.start_soon(bearings.tell)
        answers.open(node)
        stack.callback(
            answers.close
        )  # first of all, whatever ends the block: nobody asks a node that is half gone
        _log.info("node_up", role=config.role, node=identity.name[:11], host=host, port=config.port)
        yield node
        answers.close()
        if provider is not None:
            await provider.stop()


def _make_express(
    config: NodeConfig,
    identity: Identity,
    store: Store,
    bulk: BulkEndpoint,
    shared: SharedBlobs,
    datasets: Datasets,
    keeper: Keeper,
    ledger: Ledger,
    where: Whereabouts,
) -> Express:
    journal = ExpressJournal(store)
    key = identity.key
    taker = ShipmentTaker(store, journal, bulk, datasets, keeper, ledger, key, config.express)
    return Express(store, journal, taker, bulk, shared, datasets, ledger, key, where)


def _make_folders(home: Path) -> None:
    for folder in (home, home / "blobs", home / "tasks", home / "run"):
        try:
            folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"folder {folder} cannot be made: {error.strerror}") from None


def _open_blobs(config: NodeConfig) -> BlobStore:
    return BlobStore(config.home / "blobs", bytes_max=config.bulk.blobs_mib_max << 20)


@asynccontextmanager
async def _open_dht(config: NodeConfig, identity: Identity, store: Store) -> AsyncIterator[Dht]:
    is_server = config.role in SERVER_ROLES and not config.outbound_only
    async with open_dht(
        key=identity.key,
        host=config.host,
        port=config.port,
        network_id=identity.network.network_id,
        roots=identity.network.root_keys,
        admission=identity.network.admission,
        chain=identity.chain,
        server=is_server,
        advertise_host=config.advertise,
        rng=random.SystemRandom(),
        store=RecordShelf(store) if is_server else None,
    ) as dht:
        yield dht


@asynccontextmanager
async def _open_bulk(config: NodeConfig, identity: Identity, blobs: BlobStore) -> AsyncIterator[BulkEndpoint]:
    loaded = load_offloads(config.home / "run", config.bulk.offloads, config.bulk.offload_options)
    async with open_bulk(
        blobs,
        identity.key,
        host=config.host,
        port=config.port + 1,
        engine=config.bulk.engine,
        offloads=loaded.usable,
        connections_max=config.bulk.connections_max,
        throttles=make_throttles(config.bandwidth),
        addresses=config.bulk.addresses,
        process=_plane_process(config),
    ) as bulk:
        bulk.offloads.refused = loaded.refused
        yield bulk


def _plane_process(config: NodeConfig) -> PlaneProcess | None:
    if not config.bulk.own_process:
        return None
    return PlaneProcess(config.bulk.nice, log_level=config.log_level, log_format=config.log_format)
