"""Many small blobs over one connection: whole blobs by the secrets of their tickets, batch after batch."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.bulk.arrivals import Arrivals
from ioc_node.bulk.counters import BulkCounters
from ioc_node.bulk.fetching import Reading, open_reading
from ioc_node.bulk.meeting import Dialer
from ioc_node.errors import PeerUnreachable
from ioc_node.runtime.throttle import Throttle
from ioc_wire.bulk import SMALL_BATCH_MAX, SMALL_BYTES_MAX, Ticket, format_blob_id, is_blob
from ioc_wire.errors import BlobCorrupt, WireError

BATCH_BYTES_MAX: Final = 4 << 20
BATCHES_ASKED: Final = 2
"""Batches on their way: while one is put away, the next arrives."""


async def fetch_small(
    dialer: Dialer,
    key: Ed25519PrivateKey,
    store: Arrivals,
    counters: BulkCounters,
    tickets: Sequence[Ticket],
    throttle: Throttle,
) -> dict[bytes, WireError]:
    """Bring the small blobs of `tickets` here, all of one holder, verified. Returns those it did not give, with why.

    Every ticket that is shown is used up. Raises `PeerUnreachable` or `BlobCorrupt` when the conversation ends early;
    what came before is kept. Raises `StorageUnusable`.
    """
    missed: dict[bytes, WireError] = {}
    wanted = [ticket for ticket in tickets if not store.has(ticket.blob)]
    empty = [ticket.blob for ticket in wanted if ticket.size == 0]
    await store.keep_small({blob: b"" for blob in empty if is_blob(blob, b"")})
    waiting = deque(_batches([ticket for ticket in wanted if ticket.size]))
    if not waiting:
        return missed
    first = waiting[0][0]
    if not first.endpoints:
        raise PeerUnreachable("the ticket names no endpoint; ask the holder for another")
    with throttle.open(first.holder, "interactive", None) as lane:
        async with open_reading(dialer, first.endpoints[0], first, key, lane) as reading:
            await _read(reading, waiting, missed, store, counters)
    return missed


async def _read(
    reading: Reading,
    waiting: deque[Sequence[Ticket]],
    missed: dict[bytes, WireError],
    store: Arrivals,
    counters: BulkCounters,
) -> None:
    asked: deque[Sequence[Ticket]] = deque()
    while waiting or asked:
        while waiting and len(asked) < BATCHES_ASKED:
            asked.append(batch := waiting.popleft())
            size = sum(ticket.size or 0 for ticket in batch)
            await reading.ask_small([ticket.secret for ticket in batch], size)
        found = await _receive(reading, asked.popleft(), missed)
        await _keep(store, counters, found)


async def _receive(
    reading: Reading, batch: Sequence[Ticket], missed: dict[bytes, WireError]
) -> dict[bytes, memoryview]:
    found: dict[bytes, memoryview] = {}
    for place, ticket in enumerate(batch):
        answer = await reading.receive_small(place, ticket.size or 0)
        if isinstance(answer, WireError):
            missed[ticket.blob] = answer
        else:
            found[ticket.blob] = answer
    return found


async def _keep(store: Arrivals, counters: BulkCounters, found: dict[bytes, memoryview]) -> None:
    spoiled = await trio.to_thread.run_sync(_spoiled, found)
    good = {blob: data for blob, data in found.items() if blob not in spoiled}
    await store.keep_small(good)
    counters.bytes_received += sum(map(len, good.values()))
    counters.corrupt_chunks += len(spoiled)
    if spoiled:
        counters.liars += 1
        raise BlobCorrupt(format_blob_id(min(spoiled)))


def _spoiled(found: dict[bytes, memoryview]) -> set[bytes]:
    return {blob for blob, data in found.items() if not is_blob(blob, data)}


def _batches(tickets: Sequence[Ticket]) -> Iterator[Sequence[Ticket]]:
    batch: list[Ticket] = []
    total = 0
    for ticket in tickets:
        size = min(ticket.size or 0, SMALL_BYTES_MAX)
        if batch and (len(batch) == SMALL_BATCH_MAX or total + size > BATCH_BYTES_MAX):
            yield batch
            batch, total = [], 0
        batch.append(ticket)
        total += size
    if batch:
        yield batch
