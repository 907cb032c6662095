"""Core nodes and providers of one certified network in one process, over real links on loopback."""

import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_bootstrap.network import Network
from ioc_node.core.interest import Interest
from ioc_node.core.linking import ROOM, Room
from ioc_node.core.own_catalogue import OwnCatalogue
from ioc_node.core.trust import Trust
from ioc_node.runtime.driver import open_background
from ioc_node.runtime.gossip import CoreGossip, make_gossip
from ioc_node.runtime.home import Home
from ioc_node.runtime.links import Handlers, LinkEndpoint, LinkSettings, open_links
from ioc_wire.authority import Delegation, Role
from ioc_wire.market import Contact
from ioc_wire.messages import NODE_CODEC
from ioc_wire.records import Cpu, Endpoint, Place, Price, ResourceRecord, StatusRow
from ioc_wire.signed import Signed, public_bytes, sign

SETTINGS = LinkSettings(handshake_seconds=1.0, dial_seconds=2.0, close_seconds=0.3)
ROOT = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
NETWORK = Network(
    name="testnet",
    network_id=bytes(32),
    admission="certified",
    root_keys=frozenset({public_bytes(ROOT)}),
    threshold=1,
)


def key_of(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(random.Random(name).randbytes(32))


def delegated(name: str, prefix: str, *roles: Role) -> tuple[Signed, ...]:
    now = int(time.time())
    subject = public_bytes(key_of(name))
    begun = now - 3600  # before any test module was imported, however long the run
    return (sign(ROOT, Delegation(subject, prefix, roles, begun, now + 86400)),)


def host_record(
    key: Ed25519PrivateKey,
    cid: str,
    *,
    version: int = 1,
    port: int = 7000,
    now: float | None = None,
    **fields: Any,
) -> Signed:
    """A signed record of a host with 8 cores at 0.12 per core-hour, changed by `fields`."""
    issued = int(now if now is not None else time.time())
    given: dict[str, Any] = {
        "type": "node",
        "place": Place("cn", cid.split("/")[2], "az1"),
        "cpu": Cpu("x86_64", "test", 8, 16),
        "memory_mib": 16384,
        "storage_mib": 100_000,
        "runtimes": ("wasm",),
        "prices": (Price("core-hour", 120_000),),
        "endpoints": (Endpoint("127.0.0.1", port),),
        **fields,
    }
    return sign(key, ResourceRecord(cid=cid, version=version, issued=issued, expires=issued + 86400, **given))


@dataclass
class CoreNode:
    links: LinkEndpoint
    gossip: CoreGossip
    scope: trio.CancelScope

    @property
    def contact(self) -> Contact:
        return Contact(self.links.local.public_key, "127.0.0.1", self.links.port)


@asynccontextmanager
async def open_core(
    name: str,
    *roles: Role,
    port: int = 0,
    shelf: Any = None,
    compare_seconds: float = 30.0,
    prepare: Any = None,
    interest: tuple[str, ...] = (),
    room: Room = ROOM,
    settings: LinkSettings = SETTINGS,
) -> AsyncIterator[CoreNode]:
    """A core node; `prepare(gossip, handlers)` may add what its market answers. It runs in a task of its own, so that
    cancelling its `scope` ends nothing else."""
    key = key_of(name)
    gossip = make_gossip(
        public_bytes(key),
        Trust(network_id=NETWORK.network_id, admission="certified", roots=NETWORK.root_keys),
        compare_seconds=compare_seconds,
        shelf=shelf,
        interest=Interest.told(interest),
        room=room,
    )
    handlers = Handlers()
    gossip.register(handlers)
    if prepare is not None:
        prepare(gossip, handlers)
    roles = roles or ("regional",)
    leaving, left = trio.Event(), trio.Event()

    async def run(task_status: trio.TaskStatus[CoreNode]) -> None:
        with trio.CancelScope() as scope:
            async with (
                open_links(
                    key, NETWORK, host="127.0.0.1", port=port, codec=NODE_CODEC, handlers=handlers,
                    roles=roles, chain=delegated(name, "cn", *roles), settings=settings,
                ) as links,
                trio.open_nursery() as nursery,
            ):  # fmt: skip
                nursery.start_soon(gossip.run, links)
                await trio.testing.wait_all_tasks_blocked()
                task_status.started(CoreNode(links, gossip, scope))
                await leaving.wait()
                nursery.cancel_scope.cancel()
        left.set()

    async with open_background() as nursery:
        yield await nursery.start(run)
        leaving.set()
        await left.wait()


@dataclass
class ProviderNode:
    key: Ed25519PrivateKey
    links: LinkEndpoint
    own: OwnCatalogue
    home: Home
    rows: list[StatusRow] = field(default_factory=list)

    def put(self, cid: str, *, free_milli: int = 8000, **fields: Any) -> None:
        record = host_record(self.key, cid, port=self.links.port or 7000, **fields)
        slot = self.own.put(record, unix=time.time())
        self.rows[:] = [row for row in self.rows if row.slot != slot]
        self.rows.append(StatusRow(slot, free_milli, 16384))
        self.home.catalogue_changed()


@asynccontextmanager
async def open_provider(
    name: str, prefix: str, *, status_seconds: float = 0.5, shelf: Any = None, outbound_only: bool = False
) -> AsyncIterator[ProviderNode]:
    key, handlers = key_of(name), Handlers()
    own = OwnCatalogue(key)
    chain = delegated(name, prefix, "provider")
    rows: list[StatusRow] = []
    home = Home(
        own,
        chain=lambda: chain,
        contact=lambda: None,
        status=lambda: rows,
        status_seconds=status_seconds,
        rng=random.Random(7),
    )
    home.register(handlers)
    async with (
        open_links(
            key, NETWORK, host="127.0.0.1", port=0, codec=NODE_CODEC, handlers=handlers, roles=("provider",),
            chain=chain, settings=SETTINGS, outbound_only=outbound_only,
        ) as links,
        trio.open_nursery() as nursery,
    ):  # fmt: skip
        nursery.start_soon(home.run, links, shelf)
        yield ProviderNode(key, links, own, home, rows)
        nursery.cancel_scope.cancel()


async def until(condition: Any, seconds: float = 5) -> None:
    """Poll for what has no event of its own."""
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.01)
