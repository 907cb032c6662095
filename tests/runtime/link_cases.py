"""What the link tests share: a small protocol, networks and nodes named alice, bob and carol."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_bootstrap.network import Network
from ioc_node.errors import StorageFull
from ioc_node.runtime.links import Handlers, Link, LinkEndpoint, LinkSettings, open_links
from ioc_wire.codec import Message
from ioc_wire.errors import NotFound
from ioc_wire.links import UnionCodec


class Ask(Message, tag=1, frozen=True):
    text: str
    data: bytes = b""


class Told(Message, tag=2, frozen=True):
    text: str
    data: bytes = b""


class Count(Message, tag=3, frozen=True):
    to: int
    size: int = 0


class Number(Message, tag=4, frozen=True):
    value: int
    data: bytes = b""


class Wait(Message, tag=5, frozen=True):
    name: str


class News(Message, tag=6, frozen=True):
    value: int


class Crash(Message, tag=7, frozen=True):
    how: str


class Unwanted(Message, tag=8, frozen=True):
    pass


CODEC = UnionCodec(Ask | Told | Count | Number | Wait | News | Crash | Unwanted)
QUICK = LinkSettings(handshake_seconds=0.5, dial_seconds=2.0, close_seconds=0.3)

ROOT = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def network_of(name: str = "testnet", admission: Any = "open", nonce: int = 0) -> Network:
    return Network(
        name=name,
        network_id=bytes([nonce]) * 32,
        admission=admission,
        root_keys=frozenset({ROOT.public_key().public_bytes_raw()}),
        threshold=1,
    )


def key_of(number: int) -> Ed25519PrivateKey:
    """A node key; keys are told apart by their number, not by their order."""
    return Ed25519PrivateKey.from_private_bytes(number.to_bytes(32, "big"))


class Answers:
    """Answers of one node, and what it saw."""

    def __init__(self) -> None:
        self.handlers = Handlers()
        self.news: list[int] = []
        self.waiting: set[str] = set()
        self.cancelled: set[str] = set()
        self.sent = 0
        self.changed = trio.lowlevel.ParkingLot()
        self.handlers.serve(Ask, self._tell)
        self.handlers.serve(Wait, self._wait)
        self.handlers.serve(Crash, self._crash)
        self.handlers.serve_stream(Count, self._count)
        self.handlers.serve_notify(News, self._note)

    async def _tell(self, link: Link, message: Ask) -> Told:
        return Told(message.text, message.data)

    async def _wait(self, link: Link, message: Wait) -> Told:
        self.waiting.add(message.name)
        self.changed.unpark_all()
        try:
            await trio.sleep_forever()
        finally:
            self.cancelled.add(message.name)
            self.changed.unpark_all()

    async def _count(self, link: Link, message: Count, send: Any) -> None:
        try:
            for value in range(message.to):
                await send(Number(value, bytes(message.size)))
                self.sent += 1
        finally:
            self.cancelled.add(f"count {message.to}")
            self.changed.unpark_all()

    async def _crash(self, link: Link, message: Crash) -> Told:
        match message.how:
            case "wire":
                raise NotFound("no such thing")
            case "node":
                raise StorageFull("the disk is full: free some space")
            case "group":
                async with trio.open_nursery():
                    raise NotFound("in a group")
            case "nothing":
                return None  # type: ignore[return-value]
        return Told(str({}[message.how]))

    def _note(self, link: Link, message: News) -> None:
        if message.value < 0:
            raise KeyError(message.value)
        self.news.append(message.value)
        self.changed.unpark_all()

    async def until(self, condition: Any) -> None:
        with trio.fail_after(5):
            while not condition(self):
                await self.changed.park()


@asynccontextmanager
async def open_node(
    number: int, *, answers: Answers | None = None, network: Network | None = None, **options: Any
) -> AsyncIterator[LinkEndpoint]:
    options.setdefault("settings", QUICK)
    options.setdefault("host", "127.0.0.1")
    options.setdefault("port", 0)
    options.setdefault("codec", CODEC)
    async with open_links(
        key_of(number),
        network or network_of(),
        handlers=(answers or Answers()).handlers,
        **options,
    ) as endpoint:
        yield endpoint


async def until(condition: Any, seconds: float = 5) -> None:
    """Poll for what has no event of its own."""
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.005)
