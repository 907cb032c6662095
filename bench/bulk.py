"""One connection, one stream, two processes: QUIC on trio with both engines beside TLS over TCP on trio.

`python -m bench.bulk [--json] [--quick] [--runs N]`. Stream level: the sender repeats one buffer, the
receiver takes 1 MiB at a time and throws it away, as a blob transfer does without hashing and disk.
aioquic moves a tenth of the bytes. The processes inherit the payload sizes as arguments; all traffic is
on loopback.
"""

import argparse
import contextlib
import os
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trio
import trio.abc
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench import bulk_blobs, bulk_offloads
from bench.report import Row, median, report
from ioc_node.bulk.endpoint import Listener, open_channel
from ioc_node.bulk.engines import load_engine, self_signed_certificate
from ioc_node.bulk.quic import Channel
from ioc_node.bulk.udp import open_udp
from ioc_wire.signed import public_bytes

PIECE = 1 << 20
WINDOW = 16
"""Pieces that may be on their way, as in a blob transfer."""
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


async def serve_quic(engine: str, size: int) -> None:
    """Send `size` bytes to whoever asks, then wait for the end."""
    udp = open_udp("127.0.0.1", 0)
    piece = os.urandom(PIECE)

    async def converse(channel: Channel) -> None:
        left = -(-size // PIECE)
        while left:
            credit = (await channel.receive_exactly(1))[0]
            for _ in range(min(credit, left)):
                await channel.send_all(piece)
                left -= 1
        while True:  # until the reader closes
            await channel.receive_exactly(1)

    print(udp.port, flush=True)
    await Listener(udp, load_engine(engine, KEY), converse).serve()  # type: ignore[arg-type]


async def fetch_quic(engine: str, port: int, size: int) -> float:
    """MB/s of one connection."""
    loaded = load_engine(engine, Ed25519PrivateKey.generate())  # type: ignore[arg-type]
    bound = (WINDOW + 2) * PIECE
    async with open_channel(
        loaded, "127.0.0.1", port, public_bytes(KEY), received_bytes_max=bound
    ) as channel:
        pieces = -(-size // PIECE)
        start = time.perf_counter()
        await channel.send_all(bytes([WINDOW]))
        for index in range(pieces):
            await channel.receive_exactly(PIECE)
            if index % 4 == 3:
                await channel.send_all(b"\x04")
        return pieces * PIECE / 1e6 / (time.perf_counter() - start)
    raise AssertionError


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


async def serve_tls(size: int) -> None:
    """The peer: trio's own TLS over TCP."""
    listener = (await trio.open_ssl_over_tcp_listeners(0, _tls_context(server=True), host="127.0.0.1"))[0]
    piece = os.urandom(PIECE)

    async def answer(stream: trio.abc.Stream) -> None:
        await stream.receive_some(1)
        for _ in range(-(-size // PIECE)):
            await stream.send_all(piece)
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.receive_some(1)  # until the reader closes

    transport = listener.transport_listener
    assert isinstance(transport, trio.SocketListener)
    print(transport.socket.getsockname()[1], flush=True)
    await trio.serve_listeners(answer, [listener])


async def fetch_tls(port: int, size: int) -> float:
    """MB/s of one connection."""
    stream = await trio.open_ssl_over_tcp_stream(
        "127.0.0.1", port, ssl_context=_tls_context(server=False), https_compatible=True
    )
    async with stream:
        await stream.do_handshake()
        total = -(-size // PIECE) * PIECE
        left = total
        start = time.perf_counter()
        await stream.send_all(b"\1")
        while left:
            left -= len(await stream.receive_some(PIECE))
        return total / 1e6 / (time.perf_counter() - start)


def measure(what: str, size: int) -> float:
    """One run in two processes of their own."""
    command = [sys.executable, "-m", "bench.bulk", "--role"]
    server = subprocess.Popen([*command, "serve", what, "0", str(size)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        client = subprocess.run(
            [*command, "fetch", what, port, str(size)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=300,
        )
        return float(client.stdout)
    finally:
        server.kill()
        server.wait()


def play(side: str, what: str, port: int, size: int) -> None:
    """A child process."""
    if side == "serve" and what == "tls":
        trio.run(serve_tls, size)
    elif side == "serve":
        trio.run(serve_quic, what, size)
    elif what == "tls":
        print(trio.run(fetch_tls, port, size))
    else:
        print(trio.run(fetch_quic, what, port, size))


def main() -> None:
    """Measure, alternating the three so that a busy moment hits all, and report medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a tenth of the bytes, one run")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--role", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        play(options.role[0], options.role[1], int(options.role[2]), int(options.role[3]))
        return
    runs = 1 if options.quick else options.runs
    whole = 100_000_000 if options.quick else 1_000_000_000
    sizes = {"qh3": whole, "aioquic": whole // 10, "tls": whole}
    found: dict[str, list[float]] = {what: [] for what in sizes}
    for _ in range(runs):
        for what, size in sizes.items():
            found[what].append(measure(what, size))
    tls = median(found["tls"])
    rows = [
        Row(f"stream_{what}_mb_s", "MB/s", median(found[what]), tls, "tls_tcp", "higher", runs)
        for what in ("qh3", "aioquic")
    ]
    notes = [f"{what}: {size / 1e6:,.0f} MB per run" for what, size in sizes.items()]
    more_rows, more_notes = bulk_offloads.measure_rows(quick=options.quick, runs=runs)
    rows += more_rows
    notes += more_notes
    stream_mb_s = median(found["qh3"])
    more_rows, more_notes = bulk_blobs.measure_rows(quick=options.quick, runs=runs, stream_mb_s=stream_mb_s)
    rows += more_rows
    notes += more_notes
    report("bulk", rows, as_json=options.json, notes=notes)


if __name__ == "__main__":
    main()
