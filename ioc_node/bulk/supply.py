"""Chunks on their way from the disk to one reader's connection, read a batch ahead of what is being sent.

The buffers go around: what was sent is read into again, since fresh memory costs about as much as reading does.
"""

from typing import Final

import trio

from ioc_node.bulk.orders import Batch, Orders
from ioc_node.bulk.shelf import BlobShelf
from ioc_wire import limits
from ioc_wire.bulk import BlobInfo
from ioc_wire.errors import WireError

BATCH_CHUNKS: Final = 4
"""Chunks read from disk in one go."""
BATCHES: Final = 2
"""While one is sent, the next is read: what bounds the memory of a conversation."""


class Supply:
    """Reads what a reader has ordered."""

    def __init__(self, store: BlobShelf, info: BlobInfo, orders: Orders) -> None:
        self._store = store
        self._info = info
        self._orders = orders
        self._spare: list[list[bytearray]] = [[] for _ in range(BATCHES)]
        self._room = trio.Semaphore(BATCHES, max_value=BATCHES)

    async def run(self) -> None:
        """Read ahead until cancelled. A chunk that cannot be read, or a blob that is gone, ends the conversation."""
        while True:
            await self._room.acquire()
            await self._orders.wait_for_chunks()
            indexes = self._orders.next_indexes(BATCH_CHUNKS)
            buffers = self._spare.pop()
            while len(buffers) < len(indexes):
                buffers.append(bytearray(min(limits.CHUNK_BYTES, self._info.size)))
            try:
                chunks = await self._store.read_chunks_into(self._info, indexes, buffers[: len(indexes)])
            except WireError as error:
                self._orders.fail(error)
                return
            self._orders.put_ready(Batch(list(zip(indexes, chunks, strict=True)), buffers))

    def give_back(self, batch: Batch) -> None:
        """The batch was sent: its buffers are read into again."""
        self._spare.append(batch.buffers)
        self._room.release()
