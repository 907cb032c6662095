"""The complete blobs on this disk: which there are, their verified bytes, and their end."""

import os
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Final, Protocol

import structlog
import trio

from ioc_node.bulk.buffers import ChunkBuffers
from ioc_node.bulk.direct import DirectWriter
from ioc_node.bulk.disk import (
    BLOB_MODE,
    FOLDER_MODE,
    read_all_at,
    read_at,
    told_when_full,
    write_at,
    write_file,
)
from ioc_node.errors import StorageFull, UsageError
from ioc_wire import limits
from ioc_wire.bulk import (
    SMALL_BYTES_MAX,
    BlobId,
    BlobInfo,
    check_blob_info,
    check_chunk,
    chunk_count,
    chunk_hash,
    chunk_length,
    format_blob_id,
    is_blob,
    parse_blob_id,
)
from ioc_wire.errors import BlobCorrupt, Malformed, NotFound, TooLarge, WireError

INFOS_CACHED_MAX: Final = 64
TOUCHED_SECONDS: Final = 60.0
"""A blob's last use is written down at most this often."""
COPIED_CHUNKS: Final = 8
"""Chunks that are copied in one go."""
HASHES_SUFFIX: Final = ".hashes"

_log = structlog.get_logger()


class ShelfIndex(Protocol):
    """Which complete blobs there are. Called from the trio loop and from worker threads."""

    def __contains__(self, blob: BlobId) -> bool: ...

    def size(self, blob: BlobId) -> int | None: ...

    def touch(self, blob: BlobId, used: float) -> float:
        """A blob is used now; when it was before, as far as is known."""
        ...

    def remove(self, blob: BlobId) -> bool:
        """A blob is no longer here; whether that is news."""
        ...


class BlobShelf:
    """Verified, read-only files below `folder`. What changed on disk is given to nobody."""

    def __init__(self, folder: Path, index: ShelfIndex) -> None:
        self.folder = folder
        self.on_gone: Callable[[BlobId], None] = lambda _blob: None
        """Told when a blob is no longer here, whatever the reason, from whatever thread."""
        self._index = index
        self._complete = folder / "complete"
        self._corrupt = folder / "corrupt"
        for each in (folder, self._complete, self._corrupt):
            each.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        self._infos: OrderedDict[BlobId, BlobInfo] = OrderedDict()

    def scan(self) -> Iterator[tuple[float, BlobId, int]]:
        """All complete blobs on the disk: last use, name, size."""
        for path in self._complete.iterdir():
            blob = blob_named(path.name)
            if blob is not None and (size := self.find_size(blob)) is not None:
                yield path.stat().st_mtime, blob, size

    def find_size(self, blob: bytes) -> int | None:
        """The size of a complete blob as the disk has it, whatever the index says."""
        path = self._complete / format_blob_id(blob)
        try:
            size = path.stat().st_size
            if size > limits.CHUNK_BYTES:
                path.with_name(path.name + HASHES_SUFFIX).stat()
        except OSError:
            return None
        return size

    # -- what is here

    def has(self, blob: bytes) -> bool:
        """Whether all of the blob is here."""
        return BlobId(blob) in self._index

    def path(self, blob: bytes) -> Path:
        """The blob's file; never write to it. Raises `NotFound`."""
        self._require(blob)
        return self._complete / format_blob_id(blob)

    def hashes_path(self, blob: bytes) -> Path:
        """The file of the blob's chunk hashes, 32 bytes each. Raises `NotFound`."""
        size = self._require(blob)
        path = self._complete / (format_blob_id(blob) + HASHES_SUFFIX)
        if size <= limits.CHUNK_BYTES and not path.exists():  # who reads it wants a file
            data = self.path(blob).read_bytes()
            write_file(path, chunk_hash(data) if data else b"", BLOB_MODE)
        return path

    def size(self, blob: bytes) -> int:
        """The blob's size in bytes. Raises `NotFound`."""
        return self._require(blob)

    def touch(self, blob: BlobId) -> None:
        """The blob is used: it is the last to go."""
        now = time.time()
        if now - self._index.touch(blob, now) > TOUCHED_SECONDS:
            with suppress(OSError):
                os.utime(self._complete / format_blob_id(blob), (now, now))

    # -- reading

    async def info(self, blob: bytes) -> BlobInfo:
        """The blob's verified hash list. Raises `NotFound`, or `BlobCorrupt` when it changed on disk."""
        size = self._require(blob)
        self.touch(BlobId(blob))
        known = self._infos.get(BlobId(blob))
        if known is not None:
            return known
        info = await trio.to_thread.run_sync(self._load_info_sync, blob, size)
        self._remember(info)
        return info

    def _load_info_sync(self, blob: bytes, size: int) -> BlobInfo:
        try:
            hashes = self._read_hashes_sync(blob, size)
            chunks = tuple(hashes[start : start + 32] for start in range(0, len(hashes), 32))
            return check_blob_info(BlobInfo(blob, size, chunks))
        except (OSError, BlobCorrupt) as error:
            self._set_aside(BlobId(blob))
            raise BlobCorrupt(f"{format_blob_id(blob)} on this disk: {error}") from None

    def _read_hashes_sync(self, blob: bytes, size: int) -> bytes:
        path = self._complete / format_blob_id(blob)
        if size > limits.CHUNK_BYTES:
            return path.with_name(path.name + HASHES_SUFFIX).read_bytes()
        data = path.read_bytes()
        return chunk_hash(data) if data else b""

    async def read_chunk(self, info: BlobInfo, index: int) -> bytes:
        """One verified chunk. Raises `NotFound`, or `BlobCorrupt` (the blob is then set aside)."""
        return (await self.read_chunks(info, (index,)))[0]

    async def read_chunks(self, info: BlobInfo, indexes: Sequence[int]) -> list[bytes]:
        """Verified chunks. Raises `NotFound`, or `BlobCorrupt` (the blob is then set aside)."""
        return await trio.to_thread.run_sync(self._read_chunks_sync, info, indexes)

    async def read_chunks_into(
        self, info: BlobInfo, indexes: Sequence[int], buffers: Sequence[bytearray]
    ) -> list[memoryview]:
        """Verified chunks in as many `buffers` of `limits.CHUNK_BYTES`. Raises as `read_chunks`."""
        return await trio.to_thread.run_sync(self._read_chunks_into_sync, info, indexes, buffers)

    async def iterate(
        self, info: BlobInfo, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[memoryview]:
        """Bytes `start` … `stop - 1` in order, verified. Raises as `read_chunks`."""
        end = info.size if stop is None else stop
        for index in range(start // limits.CHUNK_BYTES, chunk_count(end)):
            data = await self.read_chunk(info, index)
            begin = index * limits.CHUNK_BYTES
            yield memoryview(data)[max(0, start - begin) : max(0, end - begin)]

    async def read_bytes(self, blob: bytes, *, bytes_max: int) -> bytes:
        """A whole small blob, verified. Raises `NotFound`, `BlobCorrupt`, or `StorageFull` above
        `bytes_max`."""
        info = await self.info(blob)
        if info.size > bytes_max:
            raise StorageFull(f"{format_blob_id(blob)} has {info.size} bytes, at most {bytes_max} fit here")
        return b"".join(await trio.to_thread.run_sync(self._read_chunks_sync, info, range(len(info.chunks))))

    async def read_small(self, blobs: Iterable[bytes]) -> dict[bytes, bytes | WireError]:
        """Whole small blobs, verified; for each that cannot be read, why."""
        return await trio.to_thread.run_sync(self._read_small_sync, list(blobs))

    def pour_sync(self, blob: bytes, descriptor: int) -> None:
        """Write all of a blob, verified, into an open file. Blocks. Raises `NotFound`, `BlobCorrupt`, `OSError`."""
        size = self._require(blob)
        if size <= SMALL_BYTES_MAX:
            write_at(descriptor, self._read_one_small_sync(blob), 0)
            return
        info = self._load_info_sync(blob, size)
        self._copy_sync(info, descriptor)
        self.touch(info.id)

    def _read_small_sync(self, blobs: Sequence[bytes]) -> dict[bytes, bytes | WireError]:
        read: dict[bytes, bytes | WireError] = {}
        for blob in blobs:
            try:
                read[blob] = self._read_one_small_sync(blob)
            except WireError as error:
                read[blob] = error
        return read

    def _read_one_small_sync(self, blob: bytes) -> bytes:
        size = self._require(blob)
        if size > SMALL_BYTES_MAX:
            raise TooLarge(f"{format_blob_id(blob)} has {size} bytes: it is no small blob")
        try:
            descriptor = os.open(f"{self._complete}/{format_blob_id(blob)}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                data = read_at(descriptor, size + 1, 0)
            finally:
                os.close(descriptor)
        except OSError:
            self._forget(BlobId(blob))
            raise NotFound(format_blob_id(blob)) from None
        if not is_blob(blob, data):
            self._set_aside(BlobId(blob))
            raise BlobCorrupt(format_blob_id(blob))
        self.touch(BlobId(blob))
        return data

    def _read_chunks_sync(self, info: BlobInfo, indexes: Iterable[int]) -> list[bytes]:
        return list(self._iterate_sync(info, indexes))

    def _read_chunks_into_sync(
        self, info: BlobInfo, indexes: Sequence[int], buffers: Sequence[bytearray | memoryview]
    ) -> list[memoryview]:
        chunks = [
            memoryview(buffer)[: chunk_length(info.size, index)]
            for index, buffer in zip(indexes, buffers, strict=True)
        ]
        with self._opened(info) as descriptor:
            # Every call waits for the interpreter's lock behind the busy trio loop: as few as can be.
            for _, run in groupby(enumerate(indexes), key=lambda each: each[1] - each[0]):
                places = [place for place, _ in run]
                start = indexes[places[0]] * limits.CHUNK_BYTES
                read_all_at(descriptor, chunks[places[0] : places[-1] + 1], start)
        for index, data in zip(indexes, chunks, strict=True):
            self._check(info, index, data)
        return chunks

    def _iterate_sync(self, info: BlobInfo, indexes: Iterable[int]) -> Iterator[bytes]:
        with self._opened(info) as descriptor:
            for index in indexes:
                data = read_at(descriptor, chunk_length(info.size, index), index * limits.CHUNK_BYTES)
                self._check(info, index, data)
                yield data

    @contextmanager
    def _opened(self, info: BlobInfo) -> Iterator[int]:
        try:
            descriptor = os.open(self.path(info.blob), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._forget(info.id)
            raise NotFound(format_blob_id(info.blob)) from None
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _check(self, info: BlobInfo, index: int, data: bytes | memoryview) -> None:
        try:
            check_chunk(info, index, data)
        except BlobCorrupt:
            self._set_aside(info.id)
            raise

    # -- giving and taking away

    async def export(self, blob: bytes, target: Path) -> None:
        """Write a verified copy to `target`, all or nothing. Raises `StorageFull` or `BlobCorrupt`."""
        info = await self.info(blob)
        await trio.to_thread.run_sync(self._export_sync, info, target)

    def _export_sync(self, info: BlobInfo, target: Path) -> None:
        if target.exists() and not target.is_file():  # it would be replaced, be it /dev/null
            raise UsageError(f"cannot write {target}: not a plain file")
        sibling = target.with_name(f".{secrets.token_hex(8)}.new")
        try:
            with told_when_full(str(target), target.parent):
                descriptor = os.open(sibling, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
                try:
                    self._copy_sync(info, descriptor)
                finally:
                    os.close(descriptor)
                sibling.replace(target)
        except OSError as error:
            raise UsageError(f"cannot write {target}: {error.strerror or error}") from None
        finally:
            with suppress(OSError):
                sibling.unlink(missing_ok=True)

    def _copy_sync(self, info: BlobInfo, descriptor: int) -> None:
        """Write a verified copy to an open file."""
        writer = DirectWriter(descriptor, info.size)
        memory = ChunkBuffers()
        buffers = [memory.take(limits.CHUNK_BYTES) for _ in range(min(COPIED_CHUNKS, len(info.chunks)))]
        try:
            for first in range(0, len(info.chunks), COPIED_CHUNKS):
                indexes = range(len(info.chunks))[first : first + COPIED_CHUNKS]
                chunks = self._read_chunks_into_sync(info, indexes, buffers[: len(indexes)])
                writer.write(chunks, first * limits.CHUNK_BYTES)
        finally:
            writer.close()

    async def remove(self, blob: bytes) -> bool:
        """Delete a blob; whether it was here. Transfers of it end with `NotFound`."""
        if not self.has(blob):
            return False
        self._forget(BlobId(blob))
        await trio.to_thread.run_sync(self._unlink, format_blob_id(blob))
        return True

    def _unlink(self, name: str) -> None:
        for each in (name, name + HASHES_SUFFIX):
            (self._complete / each).unlink(missing_ok=True)

    # -- inside

    def _require(self, blob: bytes) -> int:
        size = self._index.size(BlobId(blob))
        if size is None:
            raise NotFound(f"blob {format_blob_id(blob)} is not here")
        return size

    def _remember(self, info: BlobInfo) -> None:
        self._infos[info.id] = info
        while len(self._infos) > INFOS_CACHED_MAX:
            self._infos.popitem(last=False)

    def _forget(self, blob: BlobId) -> None:
        if self._index.remove(blob):
            self._infos.pop(blob, None)
            self.on_gone(blob)

    def _set_aside(self, blob: BlobId) -> None:
        name = format_blob_id(blob)
        _log.warning("blob_corrupt", blob=name, kept_in=str(self._corrupt))
        with suppress(OSError):
            (self._complete / name).replace(self._corrupt / name)
            (self._complete / (name + HASHES_SUFFIX)).unlink(missing_ok=True)
        self._forget(blob)  # last: who is told looks at the disk


def blob_named(name: str) -> BlobId | None:
    """The blob that a file is named after."""
    try:
        return parse_blob_id(name)
    except Malformed:
        return None
