"""A blob on its way to this disk: which chunks are here survives a crash, whatever killed us.

Three files: `.info` (the verified hash list), `.data` (the blob's full length, claimed at once), `.marks`
(one byte per chunk, set after the chunk's bytes were written). Marks are only a hint: what they say is doubtful
after reopening, and hashed again (by `recheck_sync` all of it, by `recheck_some_sync` step by step while what is
missing arrives), so neither a torn write nor a changed byte is ever taken for a verified chunk.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import groupby, islice
from pathlib import Path
from typing import Final

import trio

from ioc_node.bulk.direct import DirectWriter
from ioc_node.bulk.disk import (
    FILE_MODE,
    copy_range,
    read_all_at,
    read_at,
    reserve_space,
    told_when_full,
    write_at,
    write_file,
)
from ioc_wire import limits
from ioc_wire.bulk import (
    RANGES_MAX,
    BlobInfo,
    ChunkRange,
    check_blob_info,
    check_chunk,
    chunk_hash,
    chunk_length,
    format_blob_id,
)
from ioc_wire.codec import decode, encode
from ioc_wire.errors import BlobCorrupt, WireError

INFO_BYTES_MAX: Final = limits.BLOB_CHUNKS_MAX * 34 + 128
RECHECK_THREADS: Final = min(4, os.cpu_count() or 1)
RECHECK_CHUNKS: Final = 16
"""Chunks that are verified again in one go: some milliseconds."""
INFO_SUFFIX: Final = ".info"
SUFFIXES: Final = (INFO_SUFFIX, ".data", ".marks", ".link")


class PartialBlob:
    """One blob's arrived chunks. Made by `BlobStore.begin`; the blocking methods end in `_sync`."""

    def __init__(self, info: BlobInfo, stem: Path, on_finished: Callable[[BlobInfo, Path], None]) -> None:
        self.info = info
        self._stem = stem
        self._on_finished = on_finished
        self._what = format_blob_id(info.blob)
        self._data = self._marks = -1
        self._writer: DirectWriter | None = None
        self._linked = False
        self._lock = threading.Lock()
        self._present = bytearray(len(info.chunks))
        self._bytes_present = 0
        self._doubtful = bytearray(len(info.chunks))
        self.bytes_resumed = 0
        """Bytes of the chunks that an earlier attempt had left, as far as they were found good."""

    # -- opening

    def open_sync(self) -> None:
        """Make the files, or take up those of an earlier attempt, as yet unverified. Raises `StorageFull`."""
        with told_when_full(self._what, self._stem.parent):
            _file(self._stem, ".link").unlink(missing_ok=True)
            if not _file(self._stem, INFO_SUFFIX).exists():
                write_file(_file(self._stem, INFO_SUFFIX), encode(self.info))
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            try:
                self._data = os.open(_file(self._stem, ".data"), flags, FILE_MODE)
                self._marks = os.open(_file(self._stem, ".marks"), flags, FILE_MODE)
                reserve_space(self._data, self.info.size)
                os.ftruncate(self._data, self.info.size)
                os.ftruncate(self._marks, len(self.info.chunks))
                marks = read_at(self._marks, len(self.info.chunks), 0)
            except OSError:
                self.close()
                raise
        self._writer = DirectWriter(self._data, self.info.size)
        self._doubtful[: len(marks)] = bytes(map(bool, marks))

    def recheck_sync(self) -> None:
        """Verify all that is doubtful."""
        if not self.is_doubtful:
            return
        runs = [
            run[at : at + RECHECK_CHUNKS]
            for run in _runs(self._doubtful, 1)
            for at in range(0, len(run), RECHECK_CHUNKS)
        ]
        with ThreadPoolExecutor(
            RECHECK_THREADS
        ) as threads:  # reading and hashing leave the interpreter's lock
            for _ in threads.map(self.recheck_some_sync, runs):
                pass

    def recheck_some_sync(self, indexes: Sequence[int]) -> list[int]:
        """Verify some of the doubtful chunks; the indexes of those that are no good."""
        spoiled = []
        with memoryview(bytearray(min(limits.CHUNK_BYTES, self.info.size))) as buffer:
            for index in indexes:
                data = buffer[: chunk_length(self.info.size, index)]
                try:
                    whole = read_all_at(self._data, [data], index * limits.CHUNK_BYTES)
                except OSError:  # a part of the disk that cannot be read
                    whole = False
                if whole and chunk_hash(data) == self.info.chunks[index]:
                    self._keep(index)
                    with self._lock:
                        self.bytes_resumed += len(data)
                else:
                    spoiled.append(index)
                    with told_when_full(self._what, self._stem.parent):
                        write_at(self._marks, b"\0", index)
                self._doubtful[index] = 0
        return spoiled

    def _keep(self, index: int) -> None:
        with self._lock:  # chunks may be kept from several threads
            if not self._present[index]:
                self._present[index] = 1
                self._bytes_present += chunk_length(self.info.size, index)

    def _read(self, index: int) -> bytes:
        return read_at(self._data, chunk_length(self.info.size, index), index * limits.CHUNK_BYTES)

    # -- what is here

    @property
    def complete(self) -> bool:
        """Whether every chunk is here."""
        return self._bytes_present == self.info.size

    @property
    def bytes_present(self) -> int:
        """Bytes of the verified chunks."""
        return self._bytes_present

    @property
    def is_doubtful(self) -> bool:
        """Whether chunks that an earlier attempt left are still to be verified."""
        return 1 in self._doubtful

    def doubtful_runs(self) -> Iterator[range]:
        """All runs of chunks that an earlier attempt left and that were not verified again yet."""
        return _runs(self._doubtful, 1)

    def absent_runs(self) -> Iterator[range]:
        """All runs of chunks that are neither here nor doubtful."""
        return _runs(bytes(map(int.__or__, self._present, self._doubtful)), 0)

    def missing_ranges(self) -> tuple[ChunkRange, ...]:
        """Runs of chunks that are not here yet, the first `RANGES_MAX` of them."""
        return tuple(ChunkRange(run.start, len(run)) for run in islice(self.missing_runs(), RANGES_MAX))

    def missing_runs(self) -> Iterator[range]:
        """All runs of chunks that are not here, or not verified yet."""
        return _runs(self._present, 0)

    def is_present(self, index: int) -> bool:
        """Whether chunk `index` is here, verified."""
        return bool(self._present[index])

    # -- filling it

    def write_chunk_sync(self, index: int, data: bytes | memoryview) -> None:
        """Verify and keep one chunk. Raises `BlobCorrupt` (nothing is kept) or `StorageFull`."""
        check_chunk(self.info, index, data)
        with told_when_full(self._what, self._stem.parent):
            self._write([data], index)
            write_at(self._marks, b"\1", index)
        self._keep(index)

    def keep_chunks_sync(self, chunks: Sequence[tuple[int, bytes | memoryview]]) -> list[int]:
        """Verify and keep chunks; the indexes of those that were no good. Raises `StorageFull`."""
        spoiled = [index for index, data in chunks if chunk_hash(data) != self.info.chunks[index]]
        good = sorted((index, data) for index, data in chunks if index not in spoiled)
        # Every system call waits for the interpreter's lock behind the busy trio loop: as few as can be.
        for _, run in groupby(enumerate(good), key=lambda each: each[1][0] - each[0]):
            members = [chunk for _, chunk in run]
            first = members[0][0]
            with told_when_full(self._what, self._stem.parent):
                self._write([data for _, data in members], first)
                write_at(self._marks, b"\1" * len(members), first)
            for index, _ in members:
                self._keep(index)
        return spoiled

    def _write(self, chunks: Sequence[bytes | memoryview], first: int) -> None:
        """Write chunks that follow one another to their place."""
        assert self._writer is not None
        self._writer.write(chunks, first * limits.CHUNK_BYTES)

    async def write_chunk(self, index: int, data: bytes | memoryview) -> None:
        """`write_chunk_sync` in a worker thread."""
        await trio.to_thread.run_sync(self.write_chunk_sync, index, data)

    def copy_chunk_sync(self, index: int, source: int) -> None:
        """Take chunk `index` from the same offset of the file descriptor `source`, and verify our copy."""
        length = chunk_length(self.info.size, index)
        with told_when_full(self._what, self._stem.parent):
            copy_range(source, self._data, length, index * limits.CHUNK_BYTES)
            check_chunk(self.info, index, self._read(index))
            write_at(self._marks, b"\1", index)
        self._keep(index)

    # -- a second name for a file that has it all

    def link_sync(self, source: int) -> bool:
        """Take an open file of this user as the whole blob, by a second name for it; False where that cannot be.

        Only for a blob of which nothing is here. Until all of it was verified, `unlink_sync` undoes it.
        """
        if self._bytes_present:
            return False
        folder = os.open(self._stem.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # a folder's descriptor makes Python follow the link in /proc, so that the file itself gets the name
            os.link(f"/proc/self/fd/{source}", f"{self._stem.name}.link", dst_dir_fd=folder)
        except OSError:  # another file system or mount, or a file that is not ours to link
            return False
        finally:
            os.close(folder)
        self._linked = True
        return True

    def verify_linked_sync(self, index: int, buffer: bytearray, source: int) -> None:
        """Check chunk `index` of the file that was linked, read into `buffer`. Raises `BlobCorrupt`."""
        with memoryview(buffer)[: chunk_length(self.info.size, index)] as data:
            if os.preadv(source, [data], index * limits.CHUNK_BYTES) != len(data):
                raise BlobCorrupt(f"chunk {index} of {self._what} is not all there")
            check_chunk(self.info, index, data)
        self._keep(index)

    def unlink_sync(self) -> None:
        """Let go of the linked file, with what was verified of it."""
        _file(self._stem, ".link").unlink(missing_ok=True)
        with self._lock:
            self._linked = False
            self._present = bytearray(len(self.info.chunks))
            self._bytes_present = self.bytes_resumed = 0

    async def finish(self) -> BlobInfo:
        """Make it a blob of the store; every chunk must be here."""
        if not self.complete:
            raise BlobCorrupt(f"{self._what} lacks chunks")
        await trio.to_thread.run_sync(self._finish_sync)
        return self.info

    def _finish_sync(self) -> None:
        with told_when_full(self._what, self._stem.parent):
            if not self._linked:
                os.fsync(self._data)
        self.close()
        self._on_finished(self.info, _file(self._stem, ".link" if self._linked else ".data"))
        remove_partial_sync(self._stem)

    def close(self) -> None:
        """Leave it as it is, to be taken up later."""
        for descriptor in (self._data, self._marks):
            if descriptor >= 0:
                os.close(descriptor)
        self._data = self._marks = -1
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _runs(states: bytes | bytearray, state: int) -> Iterator[range]:
    """Where `states` (zeros and ones) is `state`."""
    start = states.find(state)
    while start >= 0:
        stop = states.find(1 - state, start)
        yield range(start, stop if stop >= 0 else len(states))
        start = states.find(state, stop) if stop >= 0 else -1


def _file(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)


def load_partial_info_sync(stem: Path) -> BlobInfo | None:
    """The verified hash list of an earlier attempt, if there is one that can be used."""
    try:
        data = _file(stem, INFO_SUFFIX).read_bytes()
        return check_blob_info(decode(data, BlobInfo, size_max=INFO_BYTES_MAX))
    except (OSError, WireError):
        return None


def remove_partial_sync(stem: Path) -> None:
    """Forget an attempt."""
    for suffix in SUFFIXES:
        with suppress(OSError):
            _file(stem, suffix).unlink(missing_ok=True)
