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
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from ioc_node.bulk.disk import (
    BLOB_MODE,
    FILE_MODE,
    FOLDER_MODE,
    opened_folder,
    read_at,
    told_when_full,
    write_at,
    write_file,
)
from ioc_node.bulk.partial import PartialBlob, load_partial_info_sync, remove_partial_sync
from ioc_node.bulk.quota import Quota
from ioc_node.bulk.shelf import HASHES_SUFFIX, BlobShelf, blob_named
from ioc_node.errors import StorageUnusable, UsageError
from ioc_wire import limits
from ioc_wire.bulk import (
    BlobId,
    BlobInfo,
    blob_id_of,
    check_blob_info,
    chunk_hash,
    format_blob_id,
)

_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class BlobStore(BlobShelf):
    """Content-addressed files below `folder`, at most `bytes_max` of them together."""

    def __init__(self, folder: Path, *, bytes_max: int | None = None) -> None:
        super().__init__(folder, Quota(bytes_max))
        self.reclaim: Callable[[int], Awaitable[None]] | None = None
        """Asked to remove what may go when so many bytes have no room."""
        self._partial = folder / "partial"
        self._incoming = folder / "incoming"
        for each in (self._partial, self._incoming):
            each.mkdir(mode=FOLDER_MODE, exist_ok=True)
        for left in self._incoming.iterdir():
            left.unlink()
        self._locks: dict[BlobId, trio.Lock] = {}
        for path in self._partial.glob("*.info"):
            info = load_partial_info_sync(path.with_suffix(""))
            if info is None:
                remove_partial_sync(path.with_suffix(""))
            else:
                self.quota.reserve(path.stem, info.size, checked=False)

    # -- room

    def check_space(self, blob: bytes, size: int) -> None:
        """Raise `StorageFull` where a blob of `size` bytes has no room, before any of it is asked for."""
        name = format_blob_id(blob)
        if self.quota.reserved(name) is None:
            self.quota.require(size, name)

    async def make_room(self, size: int) -> None:
        """Have what may go removed until `size` more bytes fit; says nothing where they do not."""
        if self.reclaim is not None and size > self.quota.bytes_free:
            await self.reclaim(size - self.quota.bytes_free)

    @property
    def bytes_total(self) -> int:
        """Bytes of all blobs, with the full size of those on their way."""
        return self.quota.bytes_total

    def list_partials(self) -> list[BlobId]:
        """Blobs of which some chunks may be here."""
        found = (blob_named(name) for name in self.quota.reservations())
        return sorted(blob for blob in found if blob is not None)

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
        with (
            told_when_full("small blobs", self.folder),
            opened_folder(self._incoming) as incoming,
            opened_folder(self._complete) as complete,
        ):
            for blob, data in found.items():
                self._keep_one_small_sync(blob, data, incoming, complete)

    def _keep_one_small_sync(
        self, blob: bytes, data: bytes | memoryview, incoming: int, complete: int
    ) -> None:
        name, target = secrets.token_hex(16), format_blob_id(blob)
        self.quota.reserve(name, len(data), target)
        try:
            with told_when_full(target, self.folder):
                descriptor = os.open(name, _NEW, BLOB_MODE, dir_fd=incoming)
                try:
                    write_at(descriptor, data, 0)
                finally:
                    os.close(descriptor)
                os.rename(name, target, src_dir_fd=incoming, dst_dir_fd=complete)
        except BaseException:
            with suppress(OSError):
                os.unlink(name, dir_fd=incoming)
            raise
        finally:
            self.quota.release(name)
        self.quota.add(BlobId(blob), len(data), time.time())

    # -- receiving

    async def begin(self, info: BlobInfo, *, recheck: bool = True) -> PartialBlob:
        """Take up, or start, a blob on its way here. Raises `BlobCorrupt` for a wrong hash list, `StorageFull`.

        Without `recheck` what an earlier attempt left stays doubtful, to be verified by the caller."""
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
        if recheck:
            await trio.to_thread.run_sync(partial.recheck_sync)
        return partial

    async def resume(self, blob: bytes, *, recheck: bool = True) -> PartialBlob | None:
        """What an earlier attempt left, its chunks verified again with `recheck`; None without one."""
        stem = self._partial / format_blob_id(blob)
        if self.quota.reserved(stem.name) is None:
            return None
        info = await trio.to_thread.run_sync(load_partial_info_sync, stem)
        if info is None or info.blob != blob:
            await self.discard_partial(blob)
            return None
        return await self.begin(info, recheck=recheck)

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

    def lock_of(self, blob: bytes) -> trio.Lock:
        """The lock that lets one task at a time receive a blob."""
        self._locks = {key: lock for key, lock in self._locks.items() if lock.locked()}
        return self._locks.setdefault(BlobId(blob), trio.Lock())


def _pieces(descriptor: int) -> Iterator[bytes]:
    offset = 0
    while data := read_at(descriptor, limits.CHUNK_BYTES, offset):
        yield data
        offset += len(data)
