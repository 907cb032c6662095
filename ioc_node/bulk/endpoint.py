"""Where QUIC connections begin: the holder's UDP port, and a reader's call to it.

A new client is always answered with Retry (RFC 9000 section 8.1): nothing larger than its own datagram
leaves, and nothing is remembered, before its address is proved. The Retry token is sealed with a key that
this process made. Path probes (`ioc_wire.pathprobe`) go out before the first packet, so that their echoes are
here when the Retry is.

A reader that waits and hears nothing asks for a sign of life, then takes a new local socket: where its address
has changed, the connection goes on from the new one once the holder has validated it (RFC 9000 section 9). Only
a holder that stays silent is given up.
"""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import structlog
import trio
from aioquic.quic.packet import encode_quic_retry, encode_quic_version_negotiation

from ioc_node.bulk.engines import CONNECTION_ID_BYTES, Engine
from ioc_node.bulk.firstpacket import QUIC_VERSION_1, LongHeader, RetryTokens, parse_long_header
from ioc_node.bulk.quic import Channel
from ioc_node.bulk.turnstile import current_turnstile
from ioc_node.bulk.udp import Address, Received, UdpSocket, connect_udp
from ioc_node.errors import NodeError
from ioc_wire.errors import WireError
from ioc_wire.pathprobe import (
    DATAGRAM_BYTES_MAX,
    NONCE_BYTES,
    PROBE_SIZES,
    echo_of,
    echoed_bytes,
    encode_probe,
)

CONNECTIONS_MAX: Final = 256
CONNECTIONS_PER_HOST_MAX: Final = 64
HANDSHAKE_SECONDS: Final = 10.0
QUIET_SECONDS: Final = 1.0
"""After so long without a datagram a waiting reader asks its holder for a sign of life."""
REBIND_SECONDS: Final = 2.0
"""After so long it goes on from a new local address."""
SILENT_SECONDS_MAX: Final = 4.0
"""Without an answer by then the holder is gone: its engine acknowledges a ping at once, however busy its
disk."""
INITIAL_BYTES_MIN: Final = 1200
QUIC_FIXED_BIT: Final = 0x40
SERVER_RECEIVED_BYTES_MAX: Final = 1 << 20

Converse = Callable[[Channel], Awaitable[None]]
Redial = Callable[[], Awaitable[tuple[UdpSocket, Address]]]
Dial = Callable[[str, int], Awaitable[tuple[UdpSocket, Address]]]
"""A fresh socket towards a host and port, and its address there. Raises `PeerUnreachable`."""

_log = structlog.get_logger()


class Listener:
    """The holder's side of one UDP port."""

    def __init__(self, udp: UdpSocket, engine: Engine, converse: Converse) -> None:
        self._udp = udp
        self._engine = engine
        self._converse = converse
        self._tokens = RetryTokens()
        self._channels: dict[bytes, Channel] = {}
        self._open: set[Channel] = set()
        self._per_host: dict[str, int] = {}

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        return len(self._open)

    def close_nowait(self) -> None:
        """Say goodbye to all."""
        for channel in self._open:
            channel.close_nowait("closing")

    async def serve(self) -> None:
        """Answer until cancelled."""
        turnstile = current_turnstile()
        async with trio.open_nursery() as nursery:
            while True:
                await self._udp.wait_readable()
                if turnstile.share_seconds() <= 0:
                    await turnstile.admit()
                began = turnstile.clock()
                arrived: dict[Channel, list[Received]] = {}
                for received in self._udp.receive_nowait(self._engine.buffers_per_turn):
                    channel = self._route(received, nursery)
                    if channel is not None:
                        arrived.setdefault(channel, []).append(received)
                turnstile.charge(began)
                for channel, batch in arrived.items():
                    channel.feed(batch)

    def _route(self, received: Received, nursery: trio.Nursery) -> Channel | None:
        data, size, address = received
        if not data:
            return None
        if not data[0] & 0x80:
            if not data[0] & QUIC_FIXED_BIT:
                self._echo(data, size, address)
                return None
            return self._channels.get(data[1 : 1 + CONNECTION_ID_BYTES])
        header = parse_long_header(data)
        if header is None:
            return None
        known = self._channels.get(header.destination)
        if known is not None:
            return known
        if len(data) < INITIAL_BYTES_MIN or header.version == 0:
            return None
        if header.version != QUIC_VERSION_1:
            self._answer(
                encode_quic_version_negotiation(header.destination, header.source, [QUIC_VERSION_1]), address
            )
            return None
        return self._welcome(header, address, nursery) if header.is_initial else None

    def _welcome(self, header: LongHeader, address: Address, nursery: trio.Nursery) -> Channel | None:
        if not header.token:
            retry_id = os.urandom(CONNECTION_ID_BYTES)
            token = self._tokens.make(address, header.destination, retry_id)
            retry = encode_quic_retry(
                version=header.version,
                source_cid=retry_id,
                destination_cid=header.source,
                original_destination_cid=header.destination,
                retry_token=token,
            )
            self._answer(retry, address)
            return None
        original_id = self._tokens.open(header.token, address, header.destination)
        if original_id is None:
            return None
        at_host = self._per_host.get(address[0], 0)
        if len(self._open) >= CONNECTIONS_MAX or at_host >= CONNECTIONS_PER_HOST_MAX:
            _log.warning("bulk_connection_refused", peer=address[0], open=len(self._open))
            return None
        pipe = self._engine.open_server(original_id, header.destination)
        channel = Channel(pipe, self._udp, address, received_bytes_max=SERVER_RECEIVED_BYTES_MAX)
        ids = {header.destination, pipe.source_id}
        self._channels.update(dict.fromkeys(ids, channel))
        channel.on_ids_changed = lambda each, added: self._change_id(channel, ids, each, added)
        self._open.add(channel)
        self._per_host[address[0]] = at_host + 1
        nursery.start_soon(self._own, channel, ids, address[0])
        return channel

    def _echo(self, data: bytes, size: int, address: Address) -> None:
        for start in range(0, len(data), size):
            echo = echo_of(data[start : start + size])
            if echo is not None:
                self._answer(echo, address)

    def _answer(self, datagram: bytes, address: Address) -> None:
        try:
            self._udp.send_nowait([datagram], address)
        except OSError as error:
            _log.debug("bulk_answer_lost", peer=address[0], error=str(error))

    def _change_id(self, channel: Channel, ids: set[bytes], connection_id: bytes, added: bool) -> None:
        if added:
            ids.add(connection_id)
            self._channels[connection_id] = channel
        else:
            ids.discard(connection_id)
            self._channels.pop(connection_id, None)

    async def _own(self, channel: Channel, ids: set[bytes], host: str) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(channel.drive)
                await self._talk(channel)
                nursery.cancel_scope.cancel()
        finally:
            channel.close_nowait("closing")
            for each in ids:
                self._channels.pop(each, None)
            self._open.discard(channel)
            left = self._per_host[host] - 1
            if left:
                self._per_host[host] = left
            else:
                del self._per_host[host]

    async def _talk(self, channel: Channel) -> None:
        try:
            with trio.move_on_after(HANDSHAKE_SECONDS) as scope:
                await channel.wait_ready()
            if not scope.cancelled_caught:
                await self._converse(channel)
        except (WireError, NodeError, OSError) as error:
            _log.debug("bulk_connection_ended", peer=channel.peer[0], error=str(error))


@asynccontextmanager
async def open_channel(
    engine: Engine,
    host: str,
    port: int,
    key: bytes,
    *,
    received_bytes_max: int,
    dial: Dial = connect_udp,
    datagram_bytes_max: int = DATAGRAM_BYTES_MAX,
) -> AsyncIterator[Channel]:
    """A connection to the node whose key is `key`, with datagrams as large as the path carries.

    `dial(host, port)` makes the sockets.

    Raises `PeerUnreachable` (also when the connection breaks later) or `WrongPeer`.
    """
    redial = partial(dial, host, port)
    udp, address = await redial()
    channel = Channel(engine.open_client(), udp, address, received_bytes_max=received_bytes_max)
    nonce = os.urandom(NONCE_BYTES)
    fault: WireError | NodeError | OSError | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_read, channel, nonce)
            nursery.start_soon(channel.drive)
            nursery.start_soon(keep_asking, channel, redial)
            try:
                _send_probes(channel, nonce, datagram_bytes_max)
                channel.connect()
                await channel.wait_ready()
                channel.check_peer(key)
                yield channel
            except (WireError, NodeError, OSError) as error:
                fault = error  # kept out of the nursery, which would wrap it in a group
            finally:
                channel.close_nowait("done")
                nursery.cancel_scope.cancel()
    finally:
        channel.udp.close()
    if fault is not None:
        raise fault


def _send_probes(channel: Channel, nonce: bytes, datagram_bytes_max: int) -> None:
    room = min(channel.udp.payload_bytes_max, datagram_bytes_max)
    try:
        for size in PROBE_SIZES:
            if size <= room:
                channel.udp.send_nowait([encode_probe(nonce, size)], channel.peer)
    except OSError as error:
        channel.fail(error)


def _take_echoes(channel: Channel, received: list[Received], nonce: bytes) -> list[Received]:
    """What is left when echoes of our probes have been noted."""
    packets = []
    for each in received:
        data, size, _ = each
        if not data or data[0] & QUIC_FIXED_BIT:
            packets.append(each)
            continue
        for start in range(0, len(data), size):
            found = echoed_bytes(data[start : start + size], nonce)
            if found is not None:
                channel.path_carries(found)
    return packets


async def _read(channel: Channel, nonce: bytes) -> None:
    turnstile = current_turnstile()
    while not channel.ended:
        udp = channel.udp
        try:
            await udp.wait_readable()
            if turnstile.share_seconds() <= 0:
                await turnstile.admit()
            began = turnstile.clock()
            received = udp.receive_nowait(channel.pipe.buffers_per_turn)
            turnstile.charge(began)
        except (trio.ClosedResourceError, OSError) as error:
            if udp is not channel.udp:
                continue  # it was exchanged for another
            channel.fail(error)
            return
        if channel.path_is_open:
            received = _take_echoes(channel, received, nonce)
        if received:
            channel.feed(received)


async def keep_asking(channel: Channel, redial: Redial | None) -> None:
    """A reader that waits for chunks has nothing to send, and would not notice that its holder has died.

    One that waits for nothing costs no wake-ups. Where it has dialed, it does so again before it gives up.
    """
    while not channel.ended:
        await channel.wait_expecting()
        silent_seconds = channel.silent_seconds()
        if silent_seconds < QUIET_SECONDS:
            await trio.sleep(QUIET_SECONDS - silent_seconds)
            continue
        if silent_seconds >= SILENT_SECONDS_MAX:
            channel.fail(TimeoutError(f"no sign of life for {silent_seconds:.0f} s"))
        elif silent_seconds >= REBIND_SECONDS and redial is not None:
            await _rebind(channel, redial)
        else:
            channel.ping()
        await trio.sleep(QUIET_SECONDS)


async def _rebind(channel: Channel, redial: Redial) -> None:
    host = channel.peer[0]
    try:
        udp, address = await redial()
    except NodeError as error:
        _log.debug("bulk_rebind_failed", peer=host, error=str(error))
        return
    if address != channel.peer:
        udp.close()  # the name leads elsewhere now; a connection does not
        return
    _log.info("bulk_rebound", peer=host, local_port=udp.port)
    channel.rebind(udp)
