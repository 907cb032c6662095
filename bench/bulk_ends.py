"""The two ends of one stream bench, each a process of its own; `bench.bulk_streams` starts them.

`serve ENGINE` prints its port, serves until its input ends, and prints what it used. `fetch`, `ask` and `greet` print
what they found. Every end's last line is one JSON object. ENGINE is qh3, aioquic or tls (trio's TLS over TCP). A
request has 64 bytes, the first nine of them kind and size: BULK asks for so many bytes, ECHO for the same 64 again.
"""

import contextlib
import json
import os
import ssl
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Protocol

import trio
import trio.abc
import trio.lowlevel
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench.report import quantile
from ioc_node.bulk.endpoint import Listener, open_channel
from ioc_node.bulk.engines import load_engine, self_signed_certificate
from ioc_node.bulk.quic import ChannelBroken
from ioc_node.bulk.udp import open_udp
from ioc_wire.signed import public_bytes

PIECE: Final = 1 << 20
WINDOW: Final = 16
"""Pieces that may be on their way, as in a blob transfer."""
CREDIT_STEP: Final = 4
KEY: Final = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
REQUEST: Final = struct.Struct(">BQ")
REQUEST_BYTES: Final = 64
BULK, ECHO = 0, 1


class Stream(Protocol):
    """What both kinds of connection can do."""

    async def send_all(self, data: bytes) -> None: ...

    async def receive_exactly(self, count: int) -> bytes: ...


class TlsStream:
    """TLS over TCP with the same two verbs; pieces of bulk data are not joined, as nobody needs that."""

    def __init__(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        self._stream = stream
        self.send_all: Callable[[bytes], Awaitable[None]] = stream.send_all

    async def receive_exactly(self, count: int) -> bytes:
        """Take `count` bytes; returns the last that came."""
        data = b""
        while count:
            data = bytes(await self._stream.receive_some(count))
            if not data:
                raise ChannelBroken("the peer is gone")
            count -= len(data)
        return data


async def converse(stream: Stream) -> None:
    """Answer requests until the reader is gone."""
    piece = os.urandom(PIECE)
    with contextlib.suppress(ChannelBroken, trio.BrokenResourceError):
        while True:
            request = await stream.receive_exactly(REQUEST_BYTES)
            kind, size = REQUEST.unpack_from(bytes(request))
            if kind == ECHO:
                await stream.send_all(bytes(request))
                continue
            for sent in range(-(-size // PIECE)):
                if sent >= WINDOW and sent % CREDIT_STEP == 0:
                    await stream.receive_exactly(1)
                await stream.send_all(piece)


class Passes(trio.abc.Instrument):
    """What each pass of the loop took, in seconds of processor time: other processes are not this one's fault."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def after_io_wait(self, timeout: float) -> None:
        """A pass begins."""
        self._began = time.thread_time()

    def before_io_wait(self, timeout: float) -> None:
        """It has ended."""
        self.seconds.append(time.thread_time() - self._began)


async def serve(engine: str) -> None:
    """Serve until the standard input ends."""
    passes = Passes()
    trio.lowlevel.add_instrument(passes)
    async with trio.open_nursery() as nursery:
        if engine == "tls":
            context = _tls_context(server=True)
            listeners = await trio.open_ssl_over_tcp_listeners(0, context, host="127.0.0.1")

            async def answer(stream: trio.SSLStream[trio.SocketStream]) -> None:
                await converse(TlsStream(stream))

            nursery.start_soon(trio.serve_listeners, answer, listeners)
            transport = listeners[0].transport_listener
            assert isinstance(transport, trio.SocketListener)
            port = transport.socket.getsockname()[1]
        else:
            udp = open_udp("127.0.0.1", 0)
            loaded = load_engine(engine, KEY)  # type: ignore[arg-type]
            nursery.start_soon(Listener(udp, loaded, converse).serve)
            port = udp.port
        print(port, flush=True)
        used = time.process_time()
        passes.seconds.clear()
        await trio.lowlevel.wait_readable(sys.stdin)
        used = time.process_time() - used
        nursery.cancel_scope.cancel()
    busy = [each for each in passes.seconds if each > 0.0002]
    print(json.dumps({"cpu_s": used, "pass_p99_ms": 1000 * quantile(busy or [0.0], 0.99)}), flush=True)


@asynccontextmanager
async def calling(engine: str, port: int, datagram: int) -> AsyncIterator[Stream]:
    """A connection to the serving end."""
    if engine == "tls":
        tls = await trio.open_ssl_over_tcp_stream(
            "127.0.0.1", port, ssl_context=_tls_context(server=False), https_compatible=True
        )
        async with tls:
            await tls.do_handshake()
            yield TlsStream(tls)
        return
    loaded = load_engine(engine, Ed25519PrivateKey.generate())  # type: ignore[arg-type]
    async with open_channel(
        loaded,
        "127.0.0.1",
        port,
        public_bytes(KEY),
        received_bytes_max=(WINDOW + 2) * PIECE,
        datagram_bytes_max=datagram,
    ) as channel:
        yield channel


def _tls_context(*, server: bool) -> ssl.SSLContext:
    if not server:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "both.pem"
        pem = KEY.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.write_bytes(pem + self_signed_certificate(KEY).public_bytes(serialization.Encoding.PEM))
        context.load_cert_chain(path)
    return context


async def fetch(engine: str, port: int, size: int, connections: int, datagram: int) -> None:
    """Take `size` bytes over so many connections at once; print megabytes per second and processor seconds."""
    ready = 0
    all_ready = trio.Event()
    each = size // connections

    async def take() -> None:
        nonlocal ready
        async with calling(engine, port, datagram) as stream:
            ready += 1
            if ready == connections:
                all_ready.set()
            await all_ready.wait()
            await stream.send_all(REQUEST.pack(BULK, each).ljust(REQUEST_BYTES))
            pieces = -(-each // PIECE)
            for index in range(pieces):
                await stream.receive_exactly(PIECE)
                if index % CREDIT_STEP == CREDIT_STEP - 1 and index + 1 + WINDOW - CREDIT_STEP < pieces:
                    await stream.send_all(b"\x04")

    async with trio.open_nursery() as nursery:
        for _ in range(connections):
            nursery.start_soon(take)
        await all_ready.wait()
        began, used = time.perf_counter(), time.process_time()
    moved = -(-each // PIECE) * PIECE * connections
    seconds, used = time.perf_counter() - began, time.process_time() - used
    print(json.dumps({"mb_s": moved / 1e6 / seconds, "cpu_s": used, "gb": moved / 1e9}))


async def ask(engine: str, port: int, seconds: float) -> None:
    """Send a 64-byte request, wait for its answer, and again; print the seconds of each."""
    took: list[float] = []
    request = REQUEST.pack(ECHO, 0).ljust(REQUEST_BYTES)
    async with calling(engine, port, 1452) as stream:
        until = time.perf_counter() + seconds
        while (began := time.perf_counter()) < until:
            await stream.send_all(request)
            await stream.receive_exactly(REQUEST_BYTES)
            took.append(time.perf_counter() - began)
            await trio.sleep(0.002)
    print(json.dumps({"seconds": took}))


async def greet(engine: str, port: int, count: int) -> None:
    """Connect, be answered once and leave, `count` times; print the seconds of each."""
    took: list[float] = []
    used = time.process_time()
    for _ in range(count):
        began = time.perf_counter()
        async with calling(engine, port, 1452) as stream:
            await stream.send_all(REQUEST.pack(ECHO, 0).ljust(REQUEST_BYTES))
            await stream.receive_exactly(REQUEST_BYTES)
            took.append(time.perf_counter() - began)
    print(json.dumps({"seconds": took, "cpu_s": time.process_time() - used}))


def main(arguments: list[str]) -> None:
    """One end."""
    role, engine, *rest = arguments
    if role == "serve":
        trio.run(serve, engine)
    elif role == "fetch":
        trio.run(fetch, engine, *map(int, rest))
    elif role == "ask":
        trio.run(ask, engine, int(rest[0]), float(rest[1]))
    else:
        trio.run(greet, engine, *map(int, rest))


if __name__ == "__main__":
    main(sys.argv[1:])
