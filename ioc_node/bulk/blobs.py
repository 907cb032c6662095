"""The blobs on this disk.

`complete/` holds the blobs under their names, read-only, those of more than one chunk with their hash lists beside
them; a name appears there by one rename, after the last byte. `partial/` holds what is on its way (see `partial.py`),
`incoming/` what is being added, `corrupt/` what was found changed on disk. A blob's time of modification is when it
was last used. Blocking work runs in worker threads.

Small blobs that come in numbers are not forced to disk one by one: a power failure may lose them, or leave a name with
other bytes, which are found out (as any change on disk is) before they are given to anybody.
"""

import os
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog
import trio

from ioc_node.bulk.disk import (
    BLOB_MODE,
    FILE_MODE,
    FOLDER_MODE,
    read_at,
    told_when_full,
    write_at,
    write_file,
)
from ioc_node.bulk.partial import PartialBlob, load_partial_info_sync, remove_partial_sync
from ioc_node.bulk.quota import Quota
from ioc_node.errors import StorageFull, StorageUnusable, UsageError
from ioc_wire import limits
from ioc_wire.bulk import (
    SMALL_BYTES_MAX,
    BlobId,
    BlobInfo,
    blob_id_of,
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
HASHES_SUFFIX: Final = ".hashes"

_log = structlog.get_logger()


class BlobStore:
    """Content-addressed files below `folder`, at most `bytes_max` of them together."""

    def __init__(self, folder: Path, *, bytes_max: int | None = None) -> None:
        self.folder = folder
        self.quota = Quota(bytes_max)
        self.reclaim: Callable[[int], Awaitable[None]] | None = None
        """Asked to remove what may go when so many bytes have no room."""
        self.on_gone: Callable[[BlobId], None] = lambda _blob: None
        """Told when a blob is no longer here, whatever the reason."""
        self._complete = folder / "complete"
        self._partial = folder / "partial"
        self._incoming = folder / "incoming"
        self._corrupt = folder / "corrupt"
        for each in (folder, self._complete, self._partial, self._incoming, self._corrupt):
            each.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        for left in self._incoming.iterdir():
            left.unlink()
        self._infos: OrderedDict[BlobId, BlobInfo] = OrderedDict()
        self._locks: dict[BlobId, trio.Lock] = {}
        self._scan()

    def _scan(self) -> None:
        found: list[tuple[float, BlobId, int]] = []
        for path in self._complete.iterdir():
            blob = _blob_of(path.name)
            if blob is None:
                continue
            stat = path.stat()
            if stat.st_size <= limits.CHUNK_BYTES or path.with_name(path.name + HASHES_SUFFIX).exists():
                found.append((stat.st_mtime, blob, stat.st_size))
        for used, blob, size in sorted(found):
            self.quota.add(blob, size, used)
        for path in self._partial.glob("*.info"):
            info = load_partial_info_sync(path.with_suffix(""))
            if info is None:
                remove_partial_sync(path.with_suffix(""))
            else:
                self.quota.reserve(path.stem, info.size, checked=False)

    # -- what is here

    def has(self, blob: bytes) -> bool:
        """Whether all of the blob is here."""
        return BlobId(blob) in self.quota

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

    def check_space(self, blob: bytes, size: int) -> None:
        """Raise `StorageFull` where a blob of `size` bytes has no room, before any of it is asked for."""
        name = format_blob_id(blob)
        if self.quota.reserved(name) is None:
            self.quota.require(size, name)

    async def make_room(self, size: int) -> None:
        """Have what may go removed until `size` more bytes fit; says nothing where they do not."""
        if self.reclaim is not None and size > self.quota.bytes_free:
            await self.reclaim(size - self.quota.bytes_free)

    def size(self, blob: bytes) -> int:
        """The blob's size in bytes. Raises `NotFound`."""
        return self._require(blob)

    def list_blobs(self) -> list[BlobId]:
        """All complete blobs."""
        return sorted(self.quota.by_use())

    def list_partials(self) -> list[BlobId]:
        """Blobs of which some chunks may be here."""
        found = (_blob_of(name) for name in self.quota.reservations())
        return sorted(blob for blob in found if blob is not None)

    @property
    def bytes_total(self) -> int:
        """Bytes of all blobs, with the full size of those on their way."""
        return self.quota.bytes_total

    def touch(self, blob: BlobId) -> None:
        """The blob is used: it is the last to go."""
        now = time.time()
        if now - self.quota.touch(blob, now) > TOUCHED_SECONDS:
            with suppress(OSError):
                os.utime(self._complete / format_blob_id(blob), (now, now))

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

    def pour_sync(self, blob: bytes, descriptor: int) -> None:
        """Write all of a blob, verified, into an open file. Blocks. Raises `NotFound`, `BlobCorrupt`, `OSError`."""
        size = self._require(blob)
        if size <= SMALL_BYTES_MAX:
            write_at(descriptor, self._read_one_small_sync(blob), 0)
            return
        info = self._load_info_sync(blob, size)
        for index, data in enumerate(self._iterate_sync(info, range(len(info.chunks)))):
            write_at(descriptor, data, index * limits.CHUNK_BYTES)
        self.touch(info.id)

    async def iterate(
        self, info: BlobInfo, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[memoryview]:
        """Bytes `start` … `stop - 1` in order, verified. Raises as `read_chunks`."""
        end = info.size if stop is None else stop
        for index in range(start // limits.CHUNK_BYTES, chunk_count(end)):
            data = await self.read_chunk(info, index)
            begin = index * limits.CHUNK_BYTES
            yield memoryview(data)[max(0, start - begin) : max(0, end - begin)]

    async def read_small(self, blobs: Iterable[bytes]) -> dict[bytes, bytes | WireError]:
        """Whole small blobs, verified; for each that cannot be read, why."""
        return await trio.to_thread.run_sync(self._read_small_sync, list(blobs))

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
            data = (self._complete / format_blob_id(blob)).read_bytes()
        except OSError:
            self._forget(BlobId(blob))
            raise NotFound(format_blob_id(blob)) from None
        if not is_blob(blob, data):
            self._set_aside(BlobId(blob))
            raise BlobCorrupt(format_blob_id(blob))
        self.touch(BlobId(blob))
        return data

    async def read_bytes(self, blob: bytes, *, bytes_max: int) -> bytes:
        """A whole small blob, verified. Raises `NotFound`, `BlobCorrupt`, or `StorageFull` above
        `bytes_max`."""
        info = await self.info(blob)
        if info.size > bytes_max:
            raise StorageFull(f"{format_blob_id(blob)} has {info.size} bytes, at most {bytes_max} fit here")
        return b"".join(await trio.to_thread.run_sync(self._read_chunks_sync, info, range(len(info.chunks))))

    def _read_chunks_sync(self, info: BlobInfo, indexes: Iterable[int]) -> list[bytes]:
        return list(self._iterate_sync(info, indexes))

    def _iterate_sync(self, info: BlobInfo, indexes: Iterable[int]) -> Iterator[bytes]:
        path = self.path(info.blob)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._forget(info.id)
            raise NotFound(format_blob_id(info.blob)) from None
        try:
            for index in indexes:
                data = read_at(descriptor, chunk_length(info.size, index), index * limits.CHUNK_BYTES)
                try:
                    check_chunk(info, index, data)
                except BlobCorrupt:
                    self._set_aside(info.id)
                    raise
                yield data
        finally:
            os.close(descriptor)

    # -- adding

    async def add_file(self, path: Path) -> BlobInfo:
        """Copy a file into the store. Raises `UsageError` when it cannot be read, or `StorageFull`."""
        with suppress(OSError):  # told by the attempt to read it
            await self.make_room((await trio.Path(path).stat()).st_size)
        return await trio.to_thread.run_sync(self._add_file_sync, path)

    async def add_bytes(self, data: bytes) -> BlobInfo:
        """Keep bytes as a blob. Raises `StorageFull`."""
        await self.make_room(len(data))
        view = memoryview(data)
        pieces = (view[at : at + limits.CHUNK_BYTES] for at in range(0, len(view), limits.CHUNK_BYTES))
        return await trio.to_thread.run_sync(self._add_sync, pieces, len(data), f"{len(data)} bytes")

    def _add_file_sync(self, path: Path) -> BlobInfo:
        try:
            with path.open("rb", buffering=0) as source:
                size = os.fstat(source.fileno()).st_size
                pieces = _pieces(source.fileno())
                return self._add_sync(pieces, size, str(path))
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror or error}") from None

    def _add_sync(self, pieces: Iterator[bytes] | Iterator[memoryview], size: int, what: str) -> BlobInfo:
        temporary = self._incoming / secrets.token_hex(16)
        self.quota.reserve(temporary.name, size, what)
        try:
            with told_when_full(what, self.folder):
                descriptor = os.open(
                    temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE
                )
                try:
                    info = self._write_pieces(descriptor, pieces, temporary.name, what)
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                self._place(info, temporary)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            self.quota.release(temporary.name)
        return info

    def _write_pieces(
        self, descriptor: int, pieces: Iterator[bytes] | Iterator[memoryview], name: str, what: str
    ) -> BlobInfo:
        chunks: list[bytes] = []
        size = 0
        for piece in pieces:
            if size + len(piece) > (self.quota.reserved(name) or 0):  # the file grew while it was read
                self.quota.reserve(name, size + len(piece), what)
            write_at(descriptor, piece, size)
            chunks.append(chunk_hash(piece))
            size += len(piece)
        return BlobInfo(blob_id_of(size, chunks), size, tuple(chunks))

    def _place(self, info: BlobInfo, data: Path) -> None:
        """Give verified bytes their name, by one rename. Runs in worker threads."""
        target = self._complete / format_blob_id(info.blob)
        with told_when_full(target.name, self.folder):
            if len(info.chunks) > 1:
                write_file(target.with_name(target.name + HASHES_SUFFIX), b"".join(info.chunks), BLOB_MODE)
            data.chmod(BLOB_MODE)
            data.replace(target)
        self.quota.release(target.name)
        self.quota.add(info.id, info.size, time.time())

    async def keep_small(self, found: Mapping[bytes, bytes | memoryview]) -> None:
        """Keep small blobs that were verified against their names. Raises `StorageFull`."""
        if not found:
            return
        await self.make_room(sum(map(len, found.values())))
        await trio.to_thread.run_sync(self._keep_small_sync, found)

    def _keep_small_sync(self, found: Mapping[bytes, bytes | memoryview]) -> None:
        temporary = self._incoming / secrets.token_hex(16)
        for blob, data in found.items():
            target = self._complete / format_blob_id(blob)
            self.quota.reserve(temporary.name, len(data), target.name)
            try:
                with told_when_full(target.name, self.folder):
                    descriptor = os.open(
                        temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, BLOB_MODE
                    )
                    try:
                        write_at(descriptor, data, 0)
                    finally:
                        os.close(descriptor)
                    temporary.replace(target)
            finally:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)
                self.quota.release(temporary.name)
            self.quota.add(BlobId(blob), len(data), time.time())

    # -- receiving

    async def begin(self, info: BlobInfo) -> PartialBlob:
        """Take up, or start, a blob on its way here. Raises `BlobCorrupt` for a wrong hash list,
        `StorageFull`."""
        check_blob_info(info)
        name = format_blob_id(info.blob)
        if self.quota.reserved(name) is None:
            await self.make_room(info.size)
            self.quota.reserve(name, info.size, name)
        partial = PartialBlob(info, self._partial / name, self._place)
        try:
            await trio.to_thread.run_sync(partial.open_sync)
        except StorageUnusable:
            await self.discard_partial(info.id)
            raise
        return partial

    async def resume(self, blob: bytes) -> PartialBlob | None:
        """What an earlier attempt left, its chunks verified again; None without one."""
        stem = self._partial / format_blob_id(blob)
        if self.quota.reserved(stem.name) is None:
            return None
        info = await trio.to_thread.run_sync(load_partial_info_sync, stem)
        if info is None or info.blob != blob:
            await self.discard_partial(blob)
            return None
        return await self.begin(info)

    async def list_abandoned(self, before: float) -> list[tuple[BlobId, int]]:
        """Blobs of which something arrived, but nothing since `before` (seconds since 1970), and that nobody is
        fetching now; with the room that is reserved for each."""
        found = []
        for blob in self.list_partials():
            if blob in self._locks and self._locks[blob].locked():
                continue
            marks = self._partial / (format_blob_id(blob) + ".marks")
            try:
                changed = (await trio.Path(marks).stat()).st_mtime
            except OSError:
                changed = 0.0
            if changed <= before:
                found.append((blob, self.quota.reserved(format_blob_id(blob)) or 0))
        return found

    async def discard_partial(self, blob: bytes) -> None:
        """Forget what has arrived of a blob."""
        stem = self._partial / format_blob_id(blob)
        await trio.to_thread.run_sync(remove_partial_sync, stem)
        self.quota.release(stem.name)

    # -- giving and taking away

    async def export(self, blob: bytes, target: Path) -> None:
        """Write a verified copy to `target`, all or nothing. Raises `StorageFull` or `BlobCorrupt`."""
        info = await self.info(blob)
        await trio.to_thread.run_sync(self._export_sync, info, target)

    def _export_sync(self, info: BlobInfo, target: Path) -> None:
        sibling = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        try:
            with told_when_full(str(target), target.parent):
                descriptor = os.open(sibling, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
                try:
                    for index, data in enumerate(self._iterate_sync(info, range(len(info.chunks)))):
                        write_at(descriptor, data, index * limits.CHUNK_BYTES)
                finally:
                    os.close(descriptor)
                sibling.replace(target)
        except OSError as error:
            raise UsageError(f"cannot write {target}: {error.strerror or error}") from None
        finally:
            with suppress(OSError):
                sibling.unlink(missing_ok=True)

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

    def lock_of(self, blob: bytes) -> trio.Lock:
        """The lock that lets one task at a time receive a blob."""
        self._locks = {key: lock for key, lock in self._locks.items() if lock.locked()}
        return self._locks.setdefault(BlobId(blob), trio.Lock())

    def _require(self, blob: bytes) -> int:
        size = self.quota.size(BlobId(blob))
        if size is None:
            raise NotFound(f"blob {format_blob_id(blob)} is not here")
        return size

    def _remember(self, info: BlobInfo) -> None:
        self._infos[info.id] = info
        while len(self._infos) > INFOS_CACHED_MAX:
            self._infos.popitem(last=False)

    def _forget(self, blob: BlobId) -> None:
        if self.quota.remove(blob):
            self._infos.pop(blob, None)
            self.on_gone(blob)

    def _set_aside(self, blob: BlobId) -> None:
        name = format_blob_id(blob)
        _log.warning("blob_corrupt", blob=name, kept_in=str(self._corrupt))
        self._forget(blob)
        with suppress(OSError):
            (self._complete / name).replace(self._corrupt / name)
            (self._complete / (name + HASHES_SUFFIX)).unlink(missing_ok=True)


def _blob_of(name: str) -> BlobId | None:
    try:
        return parse_blob_id(name)
    except Malformed:
        return None


def _pieces(descriptor: int) -> Iterator[bytes]:
    offset = 0
    while data := read_at(descriptor, limits.CHUNK_BYTES, offset):
        yield data
        offset += len(data)
