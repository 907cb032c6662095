"""Streams between two processes: QUIC on trio with both engines beside TLS over TCP on trio and libp2p's QUIC.

The sender repeats one buffer; the receiver takes 1 MiB at a time and throws it away, as a blob transfer does without
hashing and disk. At 1452 bytes a datagram fits Ethernet; `_path` rows take what the path (loopback) carries. Slow
systems move fewer bytes. All systems of one run alternate, so that a busy moment hits all. `python -m
bench.bulk_streams [--json] [--quick] [--runs N]`; also part of `bench.bulk`.
"""

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from bench.peers import setup
from bench.report import Row, median, quantile, report
from ioc_wire.pathprobe import DATAGRAM_BYTES_MAX

ETHERNET: Final = 1452
ANY: Final = DATAGRAM_BYTES_MAX
SHARES: Final = {"aioquic": 0.05, "libp2p": 0.005}
"""How much of the bytes the slow ones move."""
ASK_SECONDS: Final = 3.0
GREETINGS: Final = 40
LIBP2P: Final = Path(__file__).resolve().parent / "peers" / "libp2p_stream.py"

Samples = dict[str, list[float]]


def measure_rows(*, quick: bool, runs: int) -> tuple[list[Row], list[str]]:
    """Measure; the rows, and what is to be said about them."""
    size = 100_000_000 if quick else 1_000_000_000
    with_libp2p = setup.is_made("libp2p")
    found: Samples = defaultdict(list)
    for _ in range(runs):
        _measure_streams(found, size)
        _measure_latency(found, size)
        if with_libp2p:
            found["libp2p"].append(_libp2p(int(size * SHARES["libp2p"])))
    notes = [
        f"1 GB per run and row; aioquic {SHARES['aioquic']:.0%} and libp2p {SHARES['libp2p']:.1%} of it"
        if not quick
        else "a tenth of the bytes",
        "request: 64 bytes there and back on its own connection to the sender, while one stream runs at full speed",
    ]
    if not with_libp2p:
        notes.append("no libp2p: make bench-peers ARGS=libp2p makes it")
    return list(_rows(found, runs)), notes


def measure_stream(engine: str, size: int, datagram: int = ANY) -> float:
    """MB/s of one connection with datagrams as large as the path carries, or no larger than `datagram`."""
    with _Server(engine) as server:
        return float(_end("fetch", engine, server.port, size, 1, datagram)["mb_s"])


def _rows(found: Samples, runs: int) -> Iterator[Row]:
    def row(
        name: str, unit: str, ours: str, peer: str | None, peer_name: str | None, better: str = "higher"
    ) -> Row:
        theirs = median(found[peer]) if peer else None
        return Row(name, unit, median(found[ours]), theirs, peer_name, better, runs)  # type: ignore[arg-type]

    yield row("stream_qh3_mb_s", "MB/s", "qh3", "tls", "tls_tcp")
    yield row("stream_qh3_mb_s", "MB/s", "qh3", "aioquic", "aioquic")
    if found["libp2p"]:
        yield row("stream_qh3_mb_s", "MB/s", "qh3", "libp2p", "libp2p")
    yield row("stream_aioquic_mb_s", "MB/s", "aioquic", "tls", "tls_tcp")
    yield row("stream_qh3_2_mb_s", "MB/s", "qh3_2", "tls_2", "tls_tcp")
    yield row("stream_qh3_4_mb_s", "MB/s", "qh3_4", "tls_4", "tls_tcp")
    yield row("stream_qh3_path_mb_s", "MB/s", "qh3_path", "tls", "tls_tcp")
    yield row("stream_aioquic_path_mb_s", "MB/s", "aioquic_path", "tls", "tls_tcp")
    for what in ("qh3", "qh3_path"):
        name = what.removeprefix("qh3").removeprefix("_")
        suffix = f"_{name}" if name else ""
        yield row(f"sender_cpu_s_per_gb{suffix}", "s/GB", f"{what} sender", "tls sender", "tls_tcp", "lower")
        yield row(
            f"receiver_cpu_s_per_gb{suffix}", "s/GB", f"{what} receiver", "tls receiver", "tls_tcp", "lower"
        )
    yield row("handshake_ms", "ms", "qh3 handshake", "tls handshake", "tls_tcp", "lower")
    yield row("handshake_cpu_ms", "ms", "qh3 handshake cpu", "tls handshake cpu", "tls_tcp", "lower")
    yield row("request_64_p99_ms", "ms", "qh3 request", "tls request", "tls_tcp", "lower")
    yield row("request_64_p50_ms", "ms", "qh3 request p50", "tls request p50", "tls_tcp", "lower")
    yield row("loop_pass_4_p99_ms", "ms", "qh3_4 pass", "tls_4 pass", "tls_tcp", "lower")


def _measure_streams(found: Samples, size: int) -> None:
    plans = (
        ("qh3", "qh3", 1, ETHERNET),
        ("tls", "tls", 1, ANY),
        ("qh3_path", "qh3", 1, ANY),
        ("aioquic", "aioquic", 1, ETHERNET),
        ("aioquic_path", "aioquic", 1, ANY),
        ("qh3_2", "qh3", 2, ETHERNET),
        ("tls_2", "tls", 2, ANY),
        ("qh3_4", "qh3", 4, ETHERNET),
        ("tls_4", "tls", 4, ANY),
    )
    for name, engine, connections, datagram in plans:
        moved = int(size * SHARES.get(engine, 1.0))
        with _Server(engine) as server:
            got = _end("fetch", engine, server.port, moved, connections, datagram)
            used = server.finish()
        found[name].append(got["mb_s"])
        found[f"{name} sender"].append(used["cpu_s"] / got["gb"])
        found[f"{name} receiver"].append(got["cpu_s"] / got["gb"])
        found[f"{name} pass"].append(used["pass_p99_ms"])


def _measure_latency(found: Samples, size: int) -> None:
    for engine in ("qh3", "tls"):
        with _Server(engine) as server, _running("fetch", engine, server.port, 100 * size, 1, ETHERNET):
            took = _end("ask", engine, server.port, ASK_SECONDS)["seconds"]
        found[f"{engine} request"].append(1000 * quantile(took, 0.99))
        found[f"{engine} request p50"].append(1000 * median(took))
        with _Server(engine) as server:
            got = _end("greet", engine, server.port, GREETINGS)
            used = server.finish()
        found[f"{engine} handshake"].append(1000 * median(got["seconds"]))
        found[f"{engine} handshake cpu"].append(1000 * (got["cpu_s"] + used["cpu_s"]) / GREETINGS)


class _Server:
    """The serving end, until `finish` or the end of the block."""

    def __init__(self, engine: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.bulk_ends", "serve", engine],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def __enter__(self) -> "_Server":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def finish(self) -> dict[str, float]:
        """Let it end; what it used."""
        out, _ = self._process.communicate(timeout=60)
        return dict(json.loads(out.splitlines()[-1]))


def _end(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.bulk_ends", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=600)
    return dict(json.loads(done.stdout.splitlines()[-1]))


@contextmanager
def _running(*arguments: object) -> Iterator[None]:
    command = [sys.executable, "-m", "bench.bulk_ends", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


def _libp2p(size: int) -> float:
    done = subprocess.run(
        [str(setup.python_of("libp2p")), str(LIBP2P), str(size)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=300,
    )
    return float(json.loads(done.stdout.splitlines()[-1])["mb_s"])


def main() -> None:
    """These rows alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a tenth of the bytes, one run")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    runs = 1 if options.quick else options.runs
    rows, notes = measure_rows(quick=options.quick, runs=runs)
    report("bulk", rows, as_json=options.json, notes=notes)


if __name__ == "__main__":
    main()
