"""What an operator's limits make of transfers: shares of a ceiling by weight, and two paths beside one. Part of
`bench.bulk`; `python -m bench.bulk_sharing [--json] [--quick] [--runs N]` runs this part alone.

`weighted_share`: a task's blob (weight 4) and a bulk one (weight 1) below one ceiling of the holder; bytes of the one
by bytes of the other, the peer is what the weights say. `two_paths_ratio`: a blob of a holder with two addresses behind
impaired lines of `LINE_MB_S` each, beside the same over the first line alone. Everything runs in one process: the
ceilings and the lines are far below what that can carry.
"""

import argparse
import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec
import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench.report import Row, median, report
from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.transfers import BulkEndpoint, open_bulk
from ioc_node.core.bandwidth import Ceilings, Traffic
from ioc_node.runtime.throttle import Throttle, Throttles
from ioc_testnet.impair import Impairment, open_impaired
from ioc_wire.bulk import Endpoint, Ticket

HOLDER: Final = Ed25519PrivateKey.from_private_bytes(b"h" * 32)
READER: Final = Ed25519PrivateKey.from_private_bytes(b"r" * 32)
HOST, FURTHER = "127.0.0.1", "127.0.0.2"
WEIGHTS: Final[dict[Traffic, float]] = {"task": 4.0, "bulk": 1.0}
CEILING_MB_S: Final = 20.0
LINE_MB_S: Final = 10.0


async def weighted_share(folder: Path, size: int) -> float:
    """Bytes of the heavier class by bytes of the lighter one, at the moment when the heavier is done."""
    here: dict[Traffic, int] = dict.fromkeys(WEIGHTS, 0)
    limited = Throttle(Ceilings(total=CEILING_MB_S * 1e6), WEIGHTS)
    store = BlobStore(folder / "held")
    async with (
        open_bulk(store, HOLDER, throttles=Throttles(limited, Throttle(Ceilings(), WEIGHTS))) as holder,
        open_bulk(BlobStore(folder / "read"), READER) as reader,
        trio.open_nursery() as nursery,
    ):

        async def fetch(traffic: Traffic) -> None:
            info = await store.add_bytes(os.urandom(size))
            ticket = holder.issue_ticket(info.blob, reader.public_key, hosts=[HOST], traffic=traffic)
            await reader.fetch(ticket, on_progress=lambda present, _: here.update({traffic: present}))
            nursery.cancel_scope.cancel()

        for traffic in WEIGHTS:
            nursery.start_soon(fetch, traffic)
    return here["task"] / max(1, here["bulk"])


@asynccontextmanager
async def behind_lines(holder: BulkEndpoint) -> AsyncIterator[list[Endpoint]]:
    """Where the holder's addresses are reached, each over a line of its own."""
    line = Impairment(rate_mbit_s=8 * LINE_MB_S, delay_ms=2, queue_bytes_max=400_000)
    addresses = (Endpoint(HOST, holder.port), *holder.further)
    async with (
        open_impaired((addresses[0].host, addresses[0].port), line, host=HOST) as first,
        open_impaired((addresses[1].host, addresses[1].port), line, host=FURTHER) as second,
    ):
        yield [Endpoint(HOST, first.port), Endpoint(FURTHER, second.port)]


async def two_paths(folder: Path, size: int) -> float:
    """MB/s over both lines by MB/s over one."""
    store = BlobStore(folder / "held")
    info = await store.add_bytes(os.urandom(size))

    async def fetch(ticket: Ticket, name: str) -> float:
        async with open_bulk(BlobStore(folder / name), READER) as reader:
            return (await reader.fetch(ticket)).mb_s

    async with open_bulk(store, HOLDER, addresses=[FURTHER]) as holder, behind_lines(holder) as ways:
        ticket = holder.issue_ticket(info.blob, READER.public_key().public_bytes_raw(), hosts=[HOST])
        alone = await fetch(msgspec.structs.replace(ticket, endpoints=tuple(ways[:1])), "alone")
        return await fetch(msgspec.structs.replace(ticket, endpoints=tuple(ways)), "both") / alone


def measure_rows(*, quick: bool, runs: int) -> tuple[list[Row], list[str]]:
    """The rows of this part, and what is to be said about them."""
    size = (8 if quick else 32) << 20
    shares, ratios = [], []
    for _ in range(runs):
        with tempfile.TemporaryDirectory(prefix="ioc-bench-") as name:
            shares.append(trio.run(weighted_share, Path(name), size))
        with tempfile.TemporaryDirectory(prefix="ioc-bench-") as name:
            ratios.append(trio.run(two_paths, Path(name), size))
    rows = [
        Row(
            "weighted_share",
            "x",
            median(shares),
            WEIGHTS["task"] / WEIGHTS["bulk"],
            "weights",
            "higher",
            runs,
        ),
        Row("two_paths_ratio", "x", median(ratios), 2.0, "two lines", "higher", runs),
    ]
    return rows, [
        f"sharing: blobs of {size / 1e6:,.0f} MB below a ceiling of {CEILING_MB_S:g} MB/s; lines of {LINE_MB_S:g} MB/s"
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure this part alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a quarter of the bytes, one run")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args(arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    rows, notes = measure_rows(quick=options.quick, runs=1 if options.quick else options.runs)
    report("bulk_sharing", rows, as_json=options.json, notes=notes)


if __name__ == "__main__":
    main()
