"""Circuits: links to nodes that nobody can dial, through a core node that both ends are linked with.

Three parts that never meet in one circuit: the *caller* (`Circuits.open`), the core node that passes on (`_pass_on`),
and the *target* (`_on_accept`), which takes the circuit in as if it were a connection that somebody had dialed. What
runs through it is TLS between the ends. Each direction is a stream of a link with the credit of that stream, so a
reader that is slow holds up its sender and nobody else. See `ioc_wire.relay`.
"""

import secrets
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from ioc_node.errors import PeerUnreachable
from ioc_node.runtime.link_handlers import Handlers, SendItem
from ioc_node.runtime.link_mux import ItemStream, Link
from ioc_node.runtime.link_sockets import Way
from ioc_node.runtime.links import LinkEndpoint
from ioc_wire import limits
from ioc_wire.errors import NotFound, OverQuota, Unserved, WireError
from ioc_wire.identity import format_node_id, node_id_of
from ioc_wire.relay import AcceptCircuit, CircuitData, FeedCircuit, OpenCircuit

CIRCUITS_MAX: Final = 512
"""Circuits that a core node passes on at a time."""
CIRCUITS_PER_PEER_MAX: Final = 32
"""Of these, opened by one peer; as many may lead to one."""
CIRCUIT_ID_BYTES: Final = 16

log = structlog.get_logger()

Meter = Callable[[bytes, bytes, int], None]
"""Told `(caller, target, bytes)` of what a core node passes on."""


class CircuitStream(trio.abc.Stream):
    """One end of a circuit, as a byte stream."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._stack = AsyncExitStack()
        self._incoming: ItemStream[CircuitData] | None = None
        self._rest = b""
        self._to_feed, self._outgoing = trio.open_memory_channel[bytes](0)
        self._fed = trio.Event()
        self._closed = False

    async def attach(self, link: Link, message: OpenCircuit | FeedCircuit) -> None:
        """Read from now on what `link` answers to `message`. Raises `PeerUnreachable`."""
        self._incoming = await self._stack.enter_async_context(link.open_stream(message, CircuitData))

    async def wait_open(self) -> None:
        """Until the other end asks for what this one sends. Raises the `WireError` or `PeerUnreachable` for which
        nobody will."""
        fault: WireError | PeerUnreachable | None = None
        assert self._incoming is not None

        async def listen(incoming: ItemStream[CircuitData]) -> None:
            nonlocal fault
            try:
                item = await anext(incoming, None)
                self._rest = item.data if item is not None else b""
                fault = None if item is not None else PeerUnreachable("closed by the other end")
            except (WireError, PeerUnreachable) as error:
                fault = error  # kept out of the nursery, which would wrap it in a group
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, self._incoming)
            await self._fed.wait()
            nursery.cancel_scope.cancel()
        if fault is not None:
            raise fault

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._closed:
            raise trio.ClosedResourceError
        view = memoryview(data)
        for start in range(0, len(view), limits.CIRCUIT_DATA_BYTES_MAX):
            await self._to_feed.send(bytes(view[start : start + limits.CIRCUIT_DATA_BYTES_MAX]))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._closed or self._incoming is None:
            raise trio.ClosedResourceError
        if not self._rest:
            try:
                item = await anext(self._incoming, None)
            except (WireError, PeerUnreachable) as error:
                raise trio.BrokenResourceError(str(error)) from None
            self._rest = item.data if item is not None else b""
        taken = self._rest if max_bytes is None else self._rest[:max_bytes]
        self._rest = self._rest[len(taken) :]
        return taken

    async def feed(self, send: SendItem) -> None:
        """Send what this end writes, until it closes."""
        self._fed.set()
        with self._outgoing:  # who writes afterwards finds a broken stream
            async for data in self._outgoing:
                await send(CircuitData(data))

    async def aclose(self) -> None:
        self._closed = True
        self._to_feed.close()
        await self._stack.aclose()
        await trio.lowlevel.checkpoint()


@dataclass(frozen=True, slots=True)
class _Passed:
    """A circuit that this core node passes on: the caller's link, and the circuit's name there."""

    caller: Link
    circuit: bytes
    target: bytes


class Circuits:
    """All circuits of this node: a core node passes on (`passes_on`), one that nobody can dial is a target
    (`outbound_only`), all are callers. `links` is set before any link is up."""

    links: LinkEndpoint

    def __init__(self, *, passes_on: bool = False, outbound_only: bool = False) -> None:
        self._passes_on = passes_on
        self._outbound_only = outbound_only
        self._own: dict[tuple[bytes, bytes], CircuitStream] = {}
        """Circuits that end here, by the key of the core node's link and the circuit's name on it."""
        self._passed: dict[tuple[bytes, bytes], _Passed] = {}
        """Circuits that are passed on, by the target's key and the circuit's name on its link."""
        self._per_peer: Counter[bytes] = Counter()
        self.meter: Meter = lambda _caller, _target, _size: None

    @property
    def passed_on(self) -> int:
        """Circuits that this node passes on now."""
        return len(self._passed)

    def register(self, handlers: Handlers) -> None:
        """Answer both ends' requests; before links are opened."""
        handlers.serve_stream(OpenCircuit, self._on_open)
        handlers.serve_stream(AcceptCircuit, self._on_accept)
        handlers.serve_stream(FeedCircuit, self._on_feed)

    # -- the caller

    async def connect(self, via: Link, target: bytes) -> Link:
        """The link to the node with key `target`, through the core node `via` unless there is one already. Raises as
        `LinkEndpoint.connect` does."""
        name = f"{format_node_id(node_id_of(target))[:11]} through {via.peer.name}"
        return await self.links.connect_over(Way(name, lambda: self._open(via, target, name)), target)

    async def _open(self, via: Link, target: bytes, name: str) -> CircuitStream:
        circuit = secrets.token_bytes(CIRCUIT_ID_BYTES)
        stream = CircuitStream(name)
        own = (via.peer.key, circuit)
        self._own[own] = stream
        stream._stack.callback(self._own.pop, own, None)
        try:
            await stream.attach(via, OpenCircuit(target, circuit))
            await stream.wait_open()
        except (WireError, PeerUnreachable) as error:
            await stream.aclose()
            raise PeerUnreachable(f"no circuit to {stream.name}: {error}") from None
        except trio.Cancelled:
            await trio.aclose_forcefully(stream)
            raise
        return stream

    # -- the target

    async def _on_accept(self, link: Link, message: AcceptCircuit, send: SendItem) -> None:
        if not self._outbound_only:
            raise Unserved("circuits to a node that can be dialed")
        name = (link.peer.key, message.circuit)
        caller = format_node_id(node_id_of(message.caller))[:11]
        stream = CircuitStream(f"{caller} through {link.peer.name}")
        self._own[name] = stream
        try:
            await stream.attach(link, FeedCircuit(message.circuit))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.feed, send)
                await self.links.take_in_circuit(stream, stream.name)
                await stream.aclose()
        finally:
            self._own.pop(name, None)
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await stream.aclose()

    # -- in between

    async def _on_open(self, link: Link, message: OpenCircuit, send: SendItem) -> None:
        if not self._passes_on:
            raise Unserved("circuits; ask a core node")
        caller, target = link.peer.key, message.target
        to_target = self.links.link(target)
        if to_target is None or target == caller:
            raise NotFound(f"a link from here to {format_node_id(node_id_of(target))[:11]}")
        if len(self._passed) >= CIRCUITS_MAX:
            raise OverQuota(f"{CIRCUITS_MAX} circuits are passed on here")
        ends = (b"from" + caller, b"to" + target)
        if any(self._per_peer[end] >= CIRCUITS_PER_PEER_MAX for end in ends):
            raise OverQuota(f"{CIRCUITS_PER_PEER_MAX} circuits of one peer are passed on here")
        onward = secrets.token_bytes(CIRCUIT_ID_BYTES)
        name = (target, onward)
        self._passed[name] = _Passed(link, message.circuit, target)
        self._per_peer.update(ends)
        log.debug("circuit_opened", caller=link.peer.name, target=to_target.peer.name)
        try:
            async with to_target.open_stream(AcceptCircuit(caller, onward), CircuitData) as items:
                await self._pass_on(items, send, caller, target)
        finally:
            del self._passed[name]
            self._per_peer.subtract(ends)
            self._per_peer += Counter()  # forget those that stand at zero

    async def _on_feed(self, link: Link, message: FeedCircuit, send: SendItem) -> None:
        name = (link.peer.key, message.circuit)
        own = self._own.get(name)
        if own is not None:
            return await own.feed(send)
        passed = self._passed.get(name)
        if passed is None:
            raise NotFound("that circuit")
        async with passed.caller.open_stream(FeedCircuit(passed.circuit), CircuitData) as items:
            await self._pass_on(items, send, passed.caller.peer.key, passed.target)
        return None

    async def _pass_on(
        self, items: ItemStream[CircuitData], send: SendItem, caller: bytes, target: bytes
    ) -> None:
        async for item in items:
            self.meter(caller, target, len(item.data))
            await send(item)
