"""The links of a node: one TCP port, TLS 1.3 and WebSocket, both keys proved, one link per peer.

Two nodes may dial each other at the same moment. Both then keep the connection that the node with the smaller key
dialed. The other one is retired, not cut: it takes no new requests from the table, and goes when it is idle.
"""

import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_bootstrap.network import Network
from ioc_node.errors import PeerUnreachable, UsageError
from ioc_node.runtime.driver import open_background
from ioc_node.runtime.link_flow import ByteBudget
from ioc_node.runtime.link_handlers import Handlers, contained
from ioc_node.runtime.link_handshake import (
    LocalIdentity,
    RefusedByPeer,
    accept_peer,
    prove_key,
    read_server_hello,
    refuse,
)
from ioc_node.runtime.link_keep import KeptLink
from ioc_node.runtime.link_mux import Link, LinkSettings, PeerIdentity
from ioc_node.runtime.link_sockets import Way, accept_tls, dial_tls, open_listener, remote_host, way_to
from ioc_node.runtime.link_transport import TransportBroken, WebSocketTransport, run_websocket
from ioc_node.runtime.tls import certificate_key, client_context, server_context
from ioc_wire.authority import Role
from ioc_wire.codec import encode
from ioc_wire.errors import Busy, Closing, Revoked, WireError
from ioc_wire.links import BodyCodec, Listen, Welcome
from ioc_wire.market import Contact
from ioc_wire.signed import Signed

if TYPE_CHECKING:
    from trio import TaskStatus

log = structlog.get_logger()

RETIRE_SECONDS: Final = 5.0
"""A duplicate link goes when it was without streams for so long."""
REFUSALS_LOGGED_PER_S: Final = 10
KEPT_MAX: Final = 256
LINKS_PER_PEER_MAX: Final = 8
"""Two at a time are needed (simultaneous dials); more are what a peer lost and this node has not noticed yet."""

LinkEvent = Callable[[Link], None]


class LinkEndpoint:
    """All links of this node. Made by `open_links`."""

    def __init__(
        self,
        local: LocalIdentity,
        codec: BodyCodec,
        handlers: Handlers,
        settings: LinkSettings,
        nursery: trio.Nursery,
        rng: random.Random,
    ) -> None:
        self.local = local
        self.links: dict[bytes, Link] = {}
        """The link to use for each peer, by its public key."""
        self.port = 0
        self.through: Callable[[Contact], Awaitable[Link]] | None = None
        """How peers are reached that cannot be dialed."""
        self.refused = 0
        """Connections that were turned away, for any reason."""
        self._codec = codec
        self._handlers = handlers
        self._settings = settings
        self._nursery = nursery
        self._rng = rng
        self._budget = ByteBudget(settings.bytes_max)
        self._server_tls = server_context(local.key)
        self._client_tls = client_context()
        self._half_open: dict[trio.CancelScope, None] = {}
        self._running: set[Link] = set()
        self._dialing: dict[bytes | tuple[str, int], trio.Lock] = {}
        self._dialed: dict[tuple[str, int], Link] = {}
        self._told_revoked: dict[tuple[str, int], None] = {}
        self._kept: dict[tuple[str, int], KeptLink] = {}
        self._up: list[LinkEvent] = []
        self._down: list[LinkEvent] = []
        self._refusals_logged = (0.0, 0)
        self._stopping = False
        self._accepting = trio.CancelScope()

    # -- what users of links call

    def link(self, key: bytes) -> Link | None:
        """The link to a peer's key, if there is one now."""
        return self.links.get(key)

    def on_link_up(self, tell: LinkEvent) -> None:
        """Have `tell(link)` called, synchronously, whenever a peer gets its link (or another one in its place)."""
        self._up.append(tell)

    def on_link_down(self, tell: LinkEvent) -> None:
        """Have `tell(link)` called, synchronously, whenever a peer is without a link that it had."""
        self._down.append(tell)

    async def connect(self, address: tuple[str, int], expected_key: bytes | None = None) -> Link:
        """The link to the peer at `address`, dialed unless there is one already.

        Without `expected_key` whoever answers there, in this network, is the peer. Raises `PeerUnreachable`, or
        the `WireError` for which either side refused (`WrongPeer`, `UnknownNetwork`, `BrokenChain`, ...).
        """
        target = (address[0], address[1])
        if (link := self._existing(target, expected_key)) is not None:
            return link
        async with self._dial_lock(target):
            if (link := self._existing(target, expected_key)) is not None:
                return link
            if self._stopping:
                raise PeerUnreachable("this node is stopping")
            link = await self._nursery.start(self._run_dialed, way_to(target), expected_key)
        assert isinstance(link, Link)
        return link

    async def reach(self, contact: Contact) -> Link:
        """The link to the peer of a contact: dialed, or through the core node that it names. Raises as `connect`."""
        if (link := self.links.get(contact.key)) is not None:
            return link
        if contact.via is None:
            return await self.connect((contact.host, contact.port), contact.key)
        if self.through is None:
            raise PeerUnreachable(
                f"no link through {contact.host}:{contact.port}: no circuits are opened here"
            )
        return await self.through(contact)

    async def connect_over(self, way: Way, key: bytes) -> Link:
        """The link to the peer with this key, dialed this way unless there is one that is as good. Raises as `connect`
        does."""
        async with self._dial_lock((way.name, 0)):
            if (link := self._as_good(key, way)) is not None:
                return link
            if self._stopping:
                raise PeerUnreachable("this node is stopping")
            link = await self._nursery.start(self._run_dialed, way, key)
        assert isinstance(link, Link)
        return link

    def keep(self, address: tuple[str, int], expected_key: bytes | None = None) -> KeptLink:
        """Hold a link to `address` from now on, dialing again whenever it is gone. `forget()` ends that."""
        target = (address[0], address[1])
        if (kept := self._kept.get(target)) is not None:
            return kept
        if len(self._kept) >= KEPT_MAX:
            raise UsageError(f"{KEPT_MAX} links are kept already")
        kept = KeptLink(target, expected_key, self._rng, lambda: self._kept.pop(target, None))
        self._kept[target] = kept
        self._nursery.start_soon(kept.run, self.connect)
        return kept

    def close_revoked(self, has_ended: Callable[[bytes, tuple[Signed, ...]], bool]) -> int:
        """Close all links of peers whose key, or whose chain, has ended; returns how many. What was queued is sent."""
        closing = [link for link in self._running if has_ended(link.peer.key, link.peer.chain)]
        for link in closing:
            link.close_nowait("the peer's key or delegation was revoked")
        return len(closing)

    def revoked_elsewhere(self) -> str:
        """One line where peers refuse this node as revoked, for an operator; empty while none does."""
        if not self._told_revoked:
            return ""
        host, port = next(iter(self._told_revoked))
        more = f" and {len(self._told_revoked) - 1} others" if len(self._told_revoked) > 1 else ""
        return (
            f"{host}:{port}{more} refused this node: its key or delegation was revoked; "
            "ask whoever issued delegations.bin"
        )

    def _note_revoked(self, way: Way, error: WireError) -> None:
        if isinstance(error, Revoked) and way.address is not None and len(self._told_revoked) < KEPT_MAX:
            if not self._told_revoked:
                log.error("refused_as_revoked", peer=way.name, error=str(error))
            self._told_revoked[way.address] = None

    # -- dialing

    def _as_good(self, key: bytes, way: Way) -> Link | None:
        """The link to a peer, but no circuit where the peer can be dialed now."""
        link = self.links.get(key)
        return None if link is not None and link.relayed and way.address is not None else link

    def _existing(self, target: tuple[str, int], expected_key: bytes | None) -> Link | None:
        if expected_key is not None:
            return self.links.get(expected_key)
        link = self._dialed.get(target)
        return self.links.get(link.peer.key) if link is not None and not link.closed.is_set() else None

    @asynccontextmanager
    async def _dial_lock(self, name: bytes | tuple[str, int]) -> AsyncIterator[None]:
        lock = self._dialing.setdefault(name, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if lock.statistics().tasks_waiting == 0 and not lock.locked():
                self._dialing.pop(name, None)

    async def _run_dialed(
        self,
        way: Way,
        expected_key: bytes | None,
        task_status: "TaskStatus[Link]",
    ) -> None:
        started = False

        def start(link: Link) -> None:
            nonlocal started
            started = True
            task_status.started(link)

        try:
            await self._dial(way, expected_key, start)
        except RefusedByPeer as error:
            self._note_revoked(way, error.error)
            self._log_refused("by_peer", way.name, error.error)
            raise error.error from None
        except WireError as error:
            self._log_refused("here", way.name, error)
            raise
        except TransportBroken as error:
            if not started:  # afterwards the link itself says why it broke
                raise PeerUnreachable(f"no link to {way.name}: {error}") from None

    async def _dial(self, way: Way, expected_key: bytes | None, start: Callable[[Link], None]) -> None:
        deadline = trio.CancelScope(deadline=trio.current_time() + self._settings.dial_seconds)
        with deadline:
            stream = await dial_tls(way, self._client_tls)

            async def use(transport: WebSocketTransport) -> None:
                channel_key = certificate_key(stream)
                peer, nonce = await read_server_hello(
                    transport,
                    self.local,
                    channel_key=channel_key,
                    expected_key=expected_key,
                    address=way.address,
                )
                async with self._dial_lock(peer.key):
                    if (existing := self._as_good(peer.key, way)) is not None:
                        await refuse(transport, Busy("there is a link already"))
                        self._note_dialed(way, existing)
                        return start(existing)
                    await prove_key(transport, self.local, peer, nonce)
                    link = self._make(transport, peer, dialed=True, relayed=way.address is None)
                    self._note_dialed(way, link)
                    self._enter(link)
                deadline.deadline = float("inf")
                start(self.links.get(peer.key, link))
                return await self._run(link)

            await run_websocket(stream, way.address[0] if way.address is not None else "circuit", use)
        if deadline.cancelled_caught:
            raise PeerUnreachable(
                f"no link to {way.name}: no answer within {self._settings.dial_seconds:.0f} s"
            )

    def _note_dialed(self, way: Way, link: Link) -> None:
        if way.address is not None:
            self._dialed[way.address] = link
            self._told_revoked.pop(way.address, None)

    # -- accepting

    async def serve(self, listener: trio.SocketListener) -> None:
        """Accept connections until `close`."""
        async with listener:
            with self._accepting:
                await trio.serve_listeners(self._accept, [listener], handler_nursery=self._nursery)

    async def _accept(self, stream: trio.SocketStream) -> None:
        host = remote_host(stream)
        await self._own(stream, host, host)

    async def take_in_circuit(self, stream: trio.abc.Stream, name: str) -> None:
        """Own a circuit that a peer has opened, until its end; `name` says through whom it comes."""
        await self._own(stream, name, "")

    async def _own(self, stream: trio.abc.Stream, where: str, host: str) -> None:
        """A connection that a peer has opened, from `host` if that is known."""
        scope = trio.CancelScope(deadline=trio.current_time() + self._settings.handshake_seconds)
        if len(self._half_open) >= self._settings.half_open_max:
            # The oldest goes: a flood that stays silent cannot keep out those who speak at once.
            oldest = next(iter(self._half_open))
            del self._half_open[oldest]
            oldest.cancel()
        self._half_open[scope] = None
        try:
            with scope:
                await self._take_in(stream, host, scope)
            if scope.cancelled_caught:
                self._log_refused("here", where, "it did not finish the handshake in time")
        except RefusedByPeer as error:
            self._log_refused("by_peer", where, error.error)
        except (WireError, TransportBroken) as error:
            self._log_refused("here", where, error)
        finally:
            self._half_open.pop(scope, None)
            await trio.aclose_forcefully(stream)

    async def _take_in(self, stream: trio.abc.Stream, host: str, scope: trio.CancelScope) -> None:
        tls = await accept_tls(stream, self._server_tls)

        async def use(transport: WebSocketTransport) -> None:
            if len(self._running) >= self._settings.links_max:
                return await refuse(transport, Busy(f"{self._settings.links_max} links are open"))
            if self._stopping:
                return await refuse(transport, Closing())
            peer = await accept_peer(transport, self.local, host)
            self._make_room_of(peer.key)
            link = self._make(transport, peer, dialed=False, relayed=not host)
            # In the table before the peer hears so: it may send, and be sent, requests from then on.
            self._enter(link)
            try:
                await transport.send(encode(Welcome()))
            except TransportBroken as error:
                link.close_nowait(str(error))
            scope.deadline = float("inf")
            self._half_open.pop(scope, None)
            if link.relayed and peer.endpoint is not None:
                self._nursery.start_soon(self._dial_back, way_to(peer.endpoint), peer)
            return await self._run(link)

        await run_websocket(tls, None, use)

    async def _dial_back(self, way: Way, peer: PeerIdentity) -> None:
        """Whoever came through a circuit takes links itself: the one that can be dialed should listen."""
        try:
            await self.connect_over(way, peer.key)
        except (PeerUnreachable, WireError) as error:
            log.info("circuit_stays", peer=peer.name, error=str(error))

    # -- the table

    def _make_room_of(self, key: bytes) -> None:
        """One peer cannot take up all links: its oldest go, which are those that it has most likely lost."""
        same = [link for link in self._running if link.peer.key == key]
        same.sort(key=lambda link: link.opened_at, reverse=True)
        for old in same[LINKS_PER_PEER_MAX - 1 :]:
            old.drop_nowait(f"the peer has opened {LINKS_PER_PEER_MAX} newer links")

    def _make(
        self, transport: WebSocketTransport, peer: PeerIdentity, *, dialed: bool, relayed: bool
    ) -> Link:
        return Link(
            transport,
            peer,
            codec=self._codec,
            handlers=self._handlers,
            settings=self._settings,
            budget=self._budget,
            dialed=dialed,
            relayed=relayed,
        )

    async def _run(self, link: Link) -> None:
        try:
            await link.run()
        finally:
            self._remove(link)

    def _enter(self, link: Link) -> None:
        self._running.add(link)
        key = link.peer.key
        old = self.links.get(key)
        if old is not None and not self._replaces(link, old):
            self._nursery.start_soon(_retire, link)
            return
        self.links[key] = link
        if old is not None:
            self._nursery.start_soon(_retire, old)
        log.debug("link_up", peer=link.peer.name, dialed=link.dialed)
        self._tell(self._up, link)

    def _replaces(self, new: Link, old: Link) -> bool:
        if old.relayed != new.relayed and not old.closed.is_set():
            return old.relayed  # whatever is dialed goes before a circuit
        if old.closed.is_set() or new.dialed == old.dialed:
            return True  # a peer dials again only if it lost the link before
        if new.opened_at - old.opened_at > self._settings.dial_seconds:
            return True  # not a simultaneous dial: the peer no longer has the old one
        smaller_is_here = self.local.public_key < new.peer.key
        return new.dialed == smaller_is_here

    def _remove(self, link: Link) -> None:
        self._running.discard(link)
        for target in [target for target, dialed in self._dialed.items() if dialed is link]:
            del self._dialed[target]
        if self.links.get(link.peer.key) is not link:
            return
        del self.links[link.peer.key]
        log.debug("link_down", peer=link.peer.name, reason=link.close_reason)
        self._tell(self._down, link)

    def _tell(self, listeners: list[LinkEvent], link: Link) -> None:
        for tell in listeners:
            with contained("link event", link.peer.name):
                tell(link)

    def _log_refused(self, where: str, peer: str, error: object) -> None:
        self.refused += 1
        second, count = self._refusals_logged
        now = trio.current_time()
        if now - second >= 1:
            second, count = now, 0
        self._refusals_logged = (second, count + 1)
        if count < REFUSALS_LOGGED_PER_S:
            log.info("link_refused", refused=where, peer=peer, error=str(error), total=self.refused)

    async def close(self) -> None:
        """Say goodbye on every link; at most `close_seconds` for all together."""
        self._stopping = True
        self._accepting.cancel()
        for kept in list(self._kept.values()):
            kept.forget()
        for link in list(self._running):
            link.close_nowait("this node is stopping")
        with trio.move_on_after(self._settings.close_seconds):
            for link in list(self._running):
                await link.closed.wait()


@asynccontextmanager
async def open_links(
    key: Ed25519PrivateKey,
    network: Network,
    *,
    host: str,
    port: int,
    codec: BodyCodec,
    handlers: Handlers,
    roles: tuple[Role, ...] = (),
    chain: tuple[Signed, ...] = (),
    advertise: tuple[str, int] | None = None,
    outbound_only: bool = False,
    revoked: Collection[bytes] = frozenset(),
    ended: Collection[tuple[bytes, bytes]] = frozenset(),
    settings: LinkSettings | None = None,
    rng: random.Random | None = None,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[LinkEndpoint]:
    """Take links on `host:port` (0 picks a port) and dial others, until the block ends.

    Peers are told `advertise` as this node's address, else its port on the address they see; nothing when it is
    `outbound_only`, and then nothing is listened on. `clock` is seconds since 1970, for delegations only. Raises
    `PortInUse`.
    """
    listener = None if outbound_only else await open_listener(host, port)
    bound = listener.socket.getsockname()[1] if listener else 0
    listen = Listen(*(advertise or ("", bound))) if listener else None
    local = LocalIdentity(
        key=key,
        network=network,
        roles=roles,
        chain=chain,
        listen=listen,
        revoked=revoked,
        ended=ended,
        clock=clock,
    )
    async with open_background() as nursery:
        chance = rng or random.Random()  # noqa: S311 - jitter of back-off, not a secret
        endpoint = LinkEndpoint(local, codec, handlers, settings or LinkSettings(), nursery, chance)
        endpoint.port = bound
        if listener is not None:
            nursery.start_soon(endpoint.serve, listener)
        try:
            yield endpoint
        finally:
            with trio.CancelScope(shield=True):
                await endpoint.close()


async def _retire(link: Link) -> None:
    idle_since = trio.current_time()
    while not link.closed.is_set():
        with trio.move_on_after(RETIRE_SECONDS / 5):
            await link.closed.wait()
        now = trio.current_time()
        if link.streams:
            idle_since = now
        elif now - idle_since >= RETIRE_SECONDS:
            link.close_nowait("another link to this peer is used")


__all__ = ["Handlers", "Link", "LinkEndpoint", "LinkSettings", "PeerIdentity", "open_links"]
