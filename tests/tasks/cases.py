"""What the task tests share: whole nodes on loopback (links, bulk, journal, sandbox), and a market to find them."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from wasmtime import wat2wasm

from ioc_bootstrap.network import Network
from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.transfers import open_bulk
from ioc_node.config import TasksConfig
from ioc_node.executors.executor import load_executors
from ioc_node.market.leases import Capacity, LeaseBook
from ioc_node.metering.ledger import Ledger
from ioc_node.runtime.links import Handlers, Link, LinkSettings, open_links
from ioc_node.runtime.store import Store, open_store
from ioc_node.tasks.consume import Consumer
from ioc_node.tasks.exchange import BlobExchange
from ioc_node.tasks.handle import TaskHandle
from ioc_node.tasks.keeper import Keeper
from ioc_node.tasks.provide import Provider
from ioc_node.tasks.staging import Workshop
from ioc_node.tasks.story import Ending
from ioc_node.tasks.workflow import Workflows
from ioc_wire.market import Contact, Demand, Offer, OffersFound, Removal
from ioc_wire.messages import NODE_CODEC
from ioc_wire.records import Cpu, Place, ResourceRecord, StatusRow
from ioc_wire.signed import public_bytes, sign
from ioc_wire.tasks import ExecutorStep, Input, Limits, Output, Resources, TaskDefinition, TaskEvent

QUICK = LinkSettings(handshake_seconds=2.0, dial_seconds=2.0, close_seconds=0.2)
NETWORK = Network(
    name="testnet", network_id=bytes(32), admission="open", root_keys=frozenset({bytes(32)}), threshold=1
)
SETTINGS = TasksConfig(lost_contact_seconds=1.5, lease_seconds=5.0)


def key_of(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(name.encode().ljust(32, b"."))


class TaskNode:
    """One node with both sides of the task story. Made by `open_task_node`."""

    def __init__(self, name: str, home: Path, port: int) -> None:
        self.name = name
        self.home = home
        self.key = key_of(name)
        self.public = public_bytes(self.key)
        self.port = port
        self.scope = trio.CancelScope()
        self.store: Store
        self.exchange: BlobExchange
        self.book: LeaseBook
        self.provider: Provider
        self.consumer: Consumer
        self.workflows: Workflows
        self.ledger: Ledger
        self.keeper: Keeper

    @property
    def contact(self) -> Contact:
        return Contact(self.public, "127.0.0.1", self.port)


class Town:
    """All nodes of a test, and their market: offers in order of name, from whoever is in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: dict[str, TaskNode] = {}
        self.offered: dict[str, Capacity] = {}
        self.contacts: dict[str, Contact] = {}
        self.removals: tuple[Removal, ...] = ()
        self.asked = 0
        self._bulk_ports: dict[str, int] = {}

    async def find(self, demand: Demand, policy: str) -> OffersFound:
        self.asked += 1
        offers = [self.offer(name) for name in sorted(self.offered)]
        return OffersFound(tuple(offers), len(offers) + len(self.removals), self.removals, bytes(32))

    def offer(self, name: str) -> Offer:
        capacity = self.offered[name]
        record = ResourceRecord(
            cid=cid_of(name),
            version=1,
            issued=0,
            expires=1,
            type="node",
            place=Place("cn", "3301", "az1"),
            cpu=Cpu("x86_64", "", capacity.cores_milli // 1000, capacity.cores_milli // 1000),
            memory_mib=capacity.memory_mib,
        )
        return Offer(
            sign(key_of(name), record), self.contacts[name], StatusRow(0, 0, 0), capacity.price_micro
        )

    @asynccontextmanager
    async def open_node(
        self, name: str, *, capacity: Capacity | None = None, port: int = 0, settings: TasksConfig = SETTINGS
    ) -> AsyncIterator[TaskNode]:
        """A running node; with a capacity it provides. Its folder is kept from one opening to the next."""
        home = self.folder / name
        home.mkdir(exist_ok=True)
        node = TaskNode(name, home, port)
        async with AsyncExitStack() as stack:
            node.store = stack.enter_context(open_store(home / "node.db"))
            blobs = BlobStore(home / "blobs")
            # Reopened on the port that it had, as a node is: those who fetch from it find it again.
            bulk_port = self._bulk_ports.get(name, 0)
            bulk = await stack.enter_async_context(open_bulk(blobs, node.key, port=bulk_port))
            self._bulk_ports[name] = bulk.port
            handlers = Handlers()
            capacities = {} if capacity is None else {cid_of(name): capacity}
            node.ledger = Ledger(node.store)
            node.keeper = Keeper(node.store, blobs)
            node.exchange = BlobExchange(bulk, ["127.0.0.1"])
            node.book = LeaseBook(node.store, node.key, capacities, lease_seconds=int(settings.lease_seconds))
            node.provider = Provider(
                key=node.key,
                home=home,
                store=node.store,
                book=node.book,
                workshop=Workshop(node.exchange, {"wasm": WASM}),
                exchange=node.exchange,
                keeper=node.keeper,
                ledger=node.ledger,
                settings=settings,
            )
            node.provider.serve_on(handlers)
            links = await stack.enter_async_context(
                open_links(
                    node.key,
                    NETWORK,
                    host="127.0.0.1",
                    port=port,
                    codec=NODE_CODEC,
                    handlers=handlers,
                    settings=QUICK,
                )
            )
            node.port = links.port

            async def connect(contact: Contact) -> Link:
                return await links.connect((contact.host, contact.port), contact.key)

            node.consumer = Consumer(
                key=node.key,
                store=node.store,
                exchange=node.exchange,
                keeper=node.keeper,
                ledger=node.ledger,
                find=self.find,
                connect=connect,
                settings=settings,
                rng=random.Random(1),
            )
            node.workflows = Workflows(node.store, node.consumer)
            self.nodes[name] = node
            self.contacts[name] = node.contact
            if capacity is not None:
                self.offered[name] = capacity
            async with trio.open_nursery() as nursery:
                await nursery.start(node.provider.run)
                await nursery.start(node.consumer.run)
                await nursery.start(node.workflows.run)
                yield node
                nursery.cancel_scope.cancel()


WASM = load_executors()[0]["wasm"]


def cid_of(name: str) -> str:
    return f"ioc:p2p.n0.k{'a' * 52}/gen/3301/az1/{name}"


def capacity_of(cores: int = 2, price_micro: int = 3_600_000) -> Capacity:
    return Capacity(cores * 1000, 4096, 4096, runtimes=("wasm",), price_micro=price_micro)


_WASI = """
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 4)
"""
_SAY = """
  (func $say (param $at i32) (param $size i32)
    (i32.store (i32.const 300) (local.get $at)) (i32.store (i32.const 304) (local.get $size))
    (drop (call $fd_write (i32.const 1) (i32.const 300) (i32.const 1) (i32.const 308))))
"""
PROGRAMS = {
    "noop": '(func (export "_start"))',
    "fail": '(func (export "_start") (call $proc_exit (i32.const 3)))',
    "sleep": """
      (data (i32.const 400) "ioc:progress 0.5 half\\nstill here\\n")
      (func (export "_start")
        (call $say (i32.const 400) (i32.const 33))
        (i32.store (i32.const 516) (i32.const 1))
        (i64.store (i32.const 524) (i64.const 60000000000))
        (drop (call $poll_oneoff (i32.const 500) (i32.const 600) (i32.const 1) (i32.const 700))))""",
    "nap": """
      (data (i32.const 16) "out")
      (func (export "_start")
        (i32.store (i32.const 516) (i32.const 1))
        (i64.store (i32.const 524) (i64.const 500000000))
        (drop (call $poll_oneoff (i32.const 500) (i32.const 600) (i32.const 1) (i32.const 700)))
        (drop (call $path_open (i32.const 3) (i32.const 0) (i32.const 16) (i32.const 3) (i32.const 9)
          (i64.const 64) (i64.const 64) (i32.const 0) (i32.const 104))))""",
    "copy": """
      (data (i32.const 0) "in") (data (i32.const 16) "out") (data (i32.const 400) "copied\\n")
      (func (export "_start")
        (drop (call $path_open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 2) (i32.const 0)
          (i64.const 2) (i64.const 2) (i32.const 0) (i32.const 100)))
        (drop (call $path_open (i32.const 3) (i32.const 0) (i32.const 16) (i32.const 3) (i32.const 9)
          (i64.const 64) (i64.const 64) (i32.const 0) (i32.const 104)))
        (i32.store (i32.const 200) (i32.const 1024)) (i32.store (i32.const 204) (i32.const 60000))
        (drop (call $fd_read (i32.load (i32.const 100)) (i32.const 200) (i32.const 1) (i32.const 208)))
        (i32.store (i32.const 204) (i32.load (i32.const 208)))
        (drop (call $fd_write (i32.load (i32.const 104)) (i32.const 200) (i32.const 1) (i32.const 208)))
        (call $say (i32.const 400) (i32.const 7)))""",
}
"""`copy` writes its file `in` to `out`; `nap` makes an empty `out` after half a second; `sleep` says something and
sleeps for a minute."""


def program(folder: Path, name: str) -> Path:
    """The .wasm file of one of `PROGRAMS`."""
    path = folder / f"{name}.wasm"
    if not path.exists():
        path.write_bytes(wat2wasm(f"(module {_WASI} {_SAY} {PROGRAMS[name]})"))
    return path


def task_of(folder: Path, runs: str, **more: Any) -> TaskDefinition:
    """A task that runs one of `PROGRAMS`; other fields as given."""
    task = TaskDefinition(
        name=runs,
        executor=ExecutorStep(runtime="wasm", program=f"file:{program(folder, runs)}", command=(runs,)),
        resources=Resources(cores=1, memory_mib=64, disk_mib=64),
        limits=Limits(wall_seconds=60),
    )
    return msgspec.structs.replace(task, **more)


def copy_task(folder: Path, url: str, **more: Any) -> TaskDefinition:
    """A task that copies its input `in` to its output `out`."""
    inputs, outputs = (Input(path="in", url=url),), (Output(path="out"),)
    return task_of(folder, "copy", **{"inputs": inputs, "outputs": outputs, **more})


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait until `condition()` holds; it is about a node's own state, which tells nobody when it changes."""
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.005)


async def story_of(handle: TaskHandle, *, follow: bool = True) -> list[TaskEvent]:
    """All events of a task."""
    return [each.event async for each in handle.events(follow=follow)]


async def ending_of(handle: TaskHandle, seconds: float = 10.0) -> Ending:
    with trio.fail_after(seconds):
        return await handle.wait()


@asynccontextmanager
async def mortal(
    town: Town, name: str, *, port: int = 0
) -> AsyncIterator[tuple[TaskNode, trio.CancelScope, trio.Event]]:
    """A provider that dies, without a goodbye to its tasks, when its scope is cancelled."""
    async with trio.open_nursery() as nursery:
        scope, gone = trio.CancelScope(), trio.Event()

        async def live(task_status: trio.TaskStatus[TaskNode] = trio.TASK_STATUS_IGNORED) -> None:
            with scope:
                async with town.open_node(name, capacity=capacity_of()) as node:
                    task_status.started(node)
                    await trio.sleep_forever()
            gone.set()

        node = await nursery.start(live)
        yield node, scope, gone
        nursery.cancel_scope.cancel()
