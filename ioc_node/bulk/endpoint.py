"""Where QUIC connections begin: the holder's UDP port, and a reader's call to it.

A new client is always answered with Retry (RFC 9000 section 8.1): nothing larger than its own datagram
leaves, and nothing is remembered, before its address is proved. The Retry token is sealed with a key that
this process made.
"""

import os
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

import structlog
import trio
from aioquic.quic.packet import encode_quic_retry, encode_quic_version_negotiation
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ioc_node.bulk.engines import CONNECTION_ID_BYTES, Engine
from ioc_node.bulk.quic import Channel
from ioc_node.bulk.udp import Address, Received, UdpSocket, connect_udp
from ioc_node.errors import NodeError
from ioc_wire.errors import WireError

CONNECTIONS_MAX: Final = 256
CONNECTIONS_PER_HOST_MAX: Final = 64
HANDSHAKE_SECONDS: Final = 10.0
TOKEN_SECONDS: Final = 10
QUIET_SECONDS: Final = 1.0
"""After so long without a datagram a reader asks its holder for a sign of life."""
SILENT_SECONDS_MAX: Final = 4.0
"""Without an answer by then the holder is gone: its engine acknowledges a ping at once, however busy its
disk."""
INITIAL_BYTES_MIN: Final = 1200
QUIC_VERSION_1: Final = 1
SERVER_RECEIVED_BYTES_MAX: Final = 1 << 20

Converse = Callable[[Channel], Awaitable[None]]

_log = structlog.get_logger()


class LongHeader(NamedTuple):
    """What RFC 8999 and 9000 put in front of every first packet."""

    version: int
    destination: bytes
    source: bytes
    is_initial: bool
    token: bytes


def parse_long_header(data: bytes) -> LongHeader | None:
    """The header of a long-header packet, or None where the bytes are none."""
    try:
        version = int.from_bytes(data[1:5], "big")
        destination, at = _field(data, 5)
        source, at = _field(data, at)
        is_initial = version == QUIC_VERSION_1 and data[0] & 0xF0 == 0xC0
        token = b""
        if is_initial:
            size = 1 << (data[at] >> 6)
            length = int.from_bytes(data[at : at + size], "big") & ((1 << (8 * size - 2)) - 1)
            token = data[at + size : at + size + length]
    except IndexError:
        return None
    return LongHeader(version, destination, source, is_initial, token)


def _field(data: bytes, at: int) -> tuple[bytes, int]:
    end = at + 1 + data[at]
    if data[at] > 20 or end > len(data):
        raise IndexError
    return data[at + 1 : end], end


class RetryTokens:
    """Makes and opens Retry tokens; each is good for one address, one connection ID and `TOKEN_SECONDS`."""

    _TIME: Final = struct.Struct(">Q")

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._seal = AESGCM(AESGCM.generate_key(128))
        self._clock = clock

    def make(self, address: Address, original_id: bytes, retry_id: bytes) -> bytes:
        """A token that says: this address asked for `original_id` just now, and was told `retry_id`."""
        nonce = os.urandom(12)
        plain = self._TIME.pack(int(self._clock())) + original_id
        return nonce + self._seal.encrypt(nonce, plain, self._bound(address, retry_id))

    def open(self, token: bytes, address: Address, retry_id: bytes) -> bytes | None:
        """The original connection ID, or None for a token that is forged, old or another's."""
        try:
            plain = self._seal.decrypt(token[:12], token[12:], self._bound(address, retry_id))
            made = self._TIME.unpack_from(plain)[0]
        except (InvalidTag, ValueError, struct.error):
            return None
        return plain[self._TIME.size :] if self._clock() - made <= TOKEN_SECONDS else None

    @staticmethod
    def _bound(address: Address, retry_id: bytes) -> bytes:
        return f"{address[0]} {address[1]} ".encode() + retry_id


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

    async def serve(self) -> None:
        """Answer until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._udp.wait_readable()
                arrived: dict[Channel, list[Received]] = {}
                for received in self._udp.receive_nowait():
                    channel = self._route(received, nursery)
                    if channel is not None:
                        arrived.setdefault(channel, []).append(received)
                for channel, batch in arrived.items():
                    channel.feed(batch)

    def _route(self, received: Received, nursery: trio.Nursery) -> Channel | None:
        data, _, address = received
        if not data:
            return None
        if not data[0] & 0x80:
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
    engine: Engine, host: str, port: int, key: bytes, *, received_bytes_max: int
) -> AsyncIterator[Channel]:
    """A connection to the holder whose node key is `key`.

    Raises `PeerUnreachable` (also when the connection breaks later) or `WrongPeer`.
    """
    udp, address = await connect_udp(host, port)
    channel = Channel(engine.open_client(), udp, address, received_bytes_max=received_bytes_max)
    fault: WireError | NodeError | OSError | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_read, udp, channel)
            nursery.start_soon(channel.drive)
            nursery.start_soon(_keep_asking, channel)
            try:
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
        udp.close()
    if fault is not None:
        raise fault


async def _read(udp: UdpSocket, channel: Channel) -> None:
    while not channel.ended:
        await udp.wait_readable()
        try:
            received = udp.receive_nowait()
        except OSError as error:
            channel.fail(error)
            return
        if received:
            channel.feed(received)


async def _keep_asking(channel: Channel) -> None:
    """A reader that waits for chunks has nothing to send, and would not notice that its holder has died."""
    while not channel.ended:
        await trio.sleep(QUIET_SECONDS)
        silent_seconds = trio.current_time() - channel.heard_at
        if silent_seconds >= SILENT_SECONDS_MAX:
            channel.fail(TimeoutError(f"no sign of life for {silent_seconds:.0f} s"))
        elif silent_seconds >= QUIET_SECONDS:
            channel.ping()
