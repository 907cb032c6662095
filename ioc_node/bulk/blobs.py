"""The blobs on this disk.

`complete/` holds the blobs under their names, read-only, each with its hash list beside it; a name
appears there by one rename, after the last byte. `partial/` holds what is on its way (see `partial.py`),
`incoming/` what is being added, `corrupt/` what was found changed on disk. Blocking work runs in worker
threads.
"""

import os
import secrets
from collections import OrderedDict
from collections.abc import Iterable, Iterator
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
from ioc_node.errors import StorageFull, UsageError
from ioc_wire import limits
from ioc_wire.bulk import (
    BlobId,
    BlobInfo,
    blob_id_of,
    check_blob_info,
    check_chunk,
    chunk_hash,
    chunk_length,
    format_blob_id,
    parse_blob_id,
)
from ioc_wire.errors import BlobCorrupt, Malformed, NotFound

INFOS_CACHED_MAX: Final = 64
HASHES_SUFFIX: Final = ".hashes"

_log = structlog.get_logger()


class BlobStore:
    """Content-addressed files below `folder`, at most `bytes_max` of them together."""

    def __init__(self, folder: Path, *, bytes_max: int | None = None) -> None:
        self.folder = folder
        self.bytes_max = bytes_max
        self._complete = folder / "complete"
        self._partial = folder / "partial"
        self._incoming = folder / "incoming"
        self._corrupt = folder / "corrupt"
        for each in (folder, self._complete, self._partial, self._incoming, self._corrupt):
            each.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        for left in self._incoming.iterdir():
            left.unlink()
        self._sizes: dict[BlobId, int] = {}
        self._reserved: dict[str, int] = {}
        self._infos: OrderedDict[BlobId, BlobInfo] = OrderedDict()
        self._locks: dict[BlobId, trio.Lock] = {}
        self._scan()

    def _scan(self) -> None:
        for path in self._complete.iterdir():
            blob = _blob_of(path.name)
            if blob is not None and path.with_name(path.name + HASHES_SUFFIX).exists():
                self._sizes[blob] = path.stat().st_size
        for path in self._partial.glob("*.info"):
            info = load_partial_info_sync(path.with_suffix(""))
            if info is None:
                remove_partial_sync(path.with_suffix(""))
            else:
                self._reserved[path.stem] = info.size

    # -- what is here

    def has(self, blob: bytes) -> bool:
        """Whether all of the blob is here."""
        return BlobId(blob) in self._sizes

    def path(self, blob: bytes) -> Path:
        """The blob's file; never write to it. Raises `NotFound`."""
        self._require(blob)
        return self._complete / format_blob_id(blob)

    def hashes_path(self, blob: bytes) -> Path:
        """The file of the blob's chunk hashes, 32 bytes each. Raises `NotFound`."""
        self._require(blob)
        return self._complete / (format_blob_id(blob) + HASHES_SUFFIX)

    def check_space(self, blob: bytes, size: int) -> None:
        """Raise `StorageFull` where a blob of `size` bytes has no room, before any of it is asked for."""
        name = format_blob_id(blob)
        if name not in self._reserved:
            self._require_space(name, size, name)

    def size(self, blob: bytes) -> int:
        """The blob's size in bytes. Raises `NotFound`."""
        return self._require(blob)

    def list_blobs(self) -> list[BlobId]:
        """All complete blobs."""
        return sorted(self._sizes)

    def list_partials(self) -> list[BlobId]:
        """Blobs of which some chunks may be here."""
        found = (_blob_of(name) for name in self._reserved)
        return sorted(blob for blob in found if blob is not None)

    @property
    def bytes_total(self) -> int:
        """Bytes of all blobs, with the full size of those on their way."""
        return sum(self._sizes.values()) + sum(self._reserved.values())

    async def info(self, blob: bytes) -> BlobInfo:
        """The blob's verified hash list. Raises `NotFound`, or `BlobCorrupt` when it changed on disk."""
        known = self._infos.get(BlobId(blob))
        if known is not None:
            return known
        size = self._require(blob)
        path = self._complete / (format_blob_id(blob) + HASHES_SUFFIX)
        try:
            hashes = await trio.to_thread.run_sync(path.read_bytes)
            chunks = tuple(hashes[start : start + 32] for start in range(0, len(hashes), 32))
            info = check_blob_info(BlobInfo(blob, size, chunks))
        except (OSError, BlobCorrupt) as error:
            self._set_aside(BlobId(blob))
            raise BlobCorrupt(f"{format_blob_id(blob)} on this disk: {error}") from None
        self._remember(info)
        return info

    async def read_chunk(self, info: BlobInfo, index: int) -> bytes:
        """One verified chunk. Raises `NotFound`, or `BlobCorrupt` (the blob is then set aside)."""
        return (await trio.to_thread.run_sync(self._read_chunks_sync, info, range(index, index + 1)))[0]

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
            self._sizes.pop(info.id, None)
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
        return await trio.to_thread.run_sync(self._add_file_sync, path)

    async def add_bytes(self, data: bytes) -> BlobInfo:
        """Keep bytes as a blob. Raises `StorageFull`."""
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
        self._reserve(temporary.name, size, what)
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
            temporary.unlink(missing_ok=True)
            self._reserved.pop(temporary.name, None)
        return info

    def _write_pieces(
        self, descriptor: int, pieces: Iterator[bytes] | Iterator[memoryview], name: str, what: str
    ) -> BlobInfo:
        chunks: list[bytes] = []
        size = 0
        for piece in pieces:
            if size + len(piece) > self._reserved[name]:  # the file grew while it was read
                self._reserve(name, size + len(piece), what)
            write_at(descriptor, piece, size)
            chunks.append(chunk_hash(piece))
            size += len(piece)
        return BlobInfo(blob_id_of(size, chunks), size, tuple(chunks))

    def _place(self, info: BlobInfo, data: Path) -> None:
        """Give verified bytes their name, by one rename. Runs in worker threads."""
        target = self._complete / format_blob_id(info.blob)
        with told_when_full(target.name, self.folder):
            write_file(target.with_name(target.name + HASHES_SUFFIX), b"".join(info.chunks), BLOB_MODE)
            data.chmod(BLOB_MODE)
            data.replace(target)
        self._sizes[info.id] = info.size
        self._reserved.pop(target.name, None)

    def _reserve(self, name: str, size: int, what: str) -> None:
        self._require_space(name, size, what)
        self._reserved[name] = size

    def _require_space(self, name: str, size: int, what: str) -> None:
        if self.bytes_max is None:
            return
        free = self.bytes_max - self.bytes_total + self._reserved.get(name, 0)
        if size > free:
            raise StorageFull(
                f"no space left for {what}: {size} bytes, but only {max(free, 0)} of the "
                f"{self.bytes_max} that blobs may take are free; remove some or raise the limit"
            )

    # -- receiving

    async def begin(self, info: BlobInfo) -> PartialBlob:
        """Take up, or start, a blob on its way here. Raises `BlobCorrupt` for a wrong hash list,
        `StorageFull`."""
        check_blob_info(info)
        name = format_blob_id(info.blob)
        if name not in self._reserved:
            self._reserve(name, info.size, name)
        partial = PartialBlob(info, self._partial / name, self._place)
        try:
            await trio.to_thread.run_sync(partial.open_sync)
        except StorageFull:
            await self.discard_partial(info.id)
            raise
        return partial

    async def resume(self, blob: bytes) -> PartialBlob | None:
        """What an earlier attempt left, its chunks verified again; None without one."""
        stem = self._partial / format_blob_id(blob)
        if stem.name not in self._reserved:
            return None
        info = await trio.to_thread.run_sync(load_partial_info_sync, stem)
        if info is None or info.blob != blob:
            await self.discard_partial(blob)
            return None
        return await self.begin(info)

    async def discard_partial(self, blob: bytes) -> None:
        """Forget what has arrived of a blob."""
        stem = self._partial / format_blob_id(blob)
        await trio.to_thread.run_sync(remove_partial_sync, stem)
        self._reserved.pop(stem.name, None)

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
        """Delete a blob; whether it was here. Transfers that hold it open still end."""
        if self._sizes.pop(BlobId(blob), None) is None:
            return False
        self._infos.pop(BlobId(blob), None)
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
        size = self._sizes.get(BlobId(blob))
        if size is None:
            raise NotFound(f"blob {format_blob_id(blob)} is not here")
        return size

    def _remember(self, info: BlobInfo) -> None:
        self._infos[info.id] = info
        while len(self._infos) > INFOS_CACHED_MAX:
            self._infos.popitem(last=False)

    def _set_aside(self, blob: BlobId) -> None:
        name = format_blob_id(blob)
        _log.warning("blob_corrupt", blob=name, kept_in=str(self._corrupt))
        self._sizes.pop(blob, None)
        self._infos.pop(blob, None)
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
