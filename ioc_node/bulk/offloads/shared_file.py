"""From an open file of another node of this host and user to a verified blob of one's own.

Where both stores lie on one mounted file system, the blob is not copied at all: the file gets a second name in the
reader's store after every chunk was verified. That gives nobody a right that was not there: only the same user's
processes with the same mount can do it, and they can open the holder's files by name. Nothing writes to a blob's
file; each node deletes its own name. Elsewhere (another mount, another owner, an operator who sets `links = false`)
the kernel copies the chunks, or shares their blocks where the file system can (copy_file_range), and the reader's own
copy is verified, so that the holder cannot change anything afterwards.

Files are read, not mapped: a mapped file that is cut short kills whoever reads it.
"""

import os
from collections.abc import Callable
from typing import Final

import trio

from ioc_node.bulk.partial import PartialBlob
from ioc_wire.limits import CHUNK_BYTES

THREADS_MAX: Final = 4
CHUNKS_PER_TURN: Final = 32


async def take_over(partial: PartialBlob, source: int, *, links: bool) -> str:
    """Bring the missing chunks from the file `source`; how. Raises `BlobCorrupt` or `OSError`."""
    if (
        links
        and os.fstat(source).st_uid == os.geteuid()
        and await trio.to_thread.run_sync(partial.link_sync, source)
    ):
        try:
            await _each_chunk(
                partial, lambda index, buffer: partial.verify_linked_sync(index, buffer, source)
            )
        except BaseException:
            partial.unlink_sync()
            raise
        return "shared"
    await _each_chunk(partial, lambda index, _buffer: partial.copy_chunk_sync(index, source))
    return "copied"


async def _each_chunk(partial: PartialBlob, take: Callable[[int, bytearray], None]) -> None:
    """Call `take` for every missing chunk, in as many threads as there are processors, within bounds."""
    turns = [
        run[at : at + CHUNKS_PER_TURN]
        for run in partial.missing_runs()
        for at in range(0, len(run), CHUNKS_PER_TURN)
    ]
    turns.reverse()

    async def work() -> None:
        buffer = bytearray(CHUNK_BYTES)

        def turn(indexes: range) -> None:
            for index in indexes:
                take(index, buffer)

        while turns:
            await trio.to_thread.run_sync(turn, turns.pop())

    async with trio.open_nursery() as nursery:
        for _ in range(min(THREADS_MAX, os.cpu_count() or 1, len(turns))):
            nursery.start_soon(work)
