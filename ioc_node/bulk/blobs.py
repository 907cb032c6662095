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
import stat
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import trio

from ioc_node.bulk.arrivals import Arrivals
from ioc_node.bulk.disk import FILE_MODE, read_at, told_when_full, write_at
from ioc_node.bulk.partial import INFO_SUFFIX, load_partial_info_sync, remove_partial_sync
from ioc_node.bulk.quota import Quota
from ioc_node.bulk.shelf import blob_named
from ioc_node.errors import UsageError
from ioc_wire import limits
from ioc_wire.bulk import BlobId, BlobInfo, blob_id_of, chunk_hash, format_blob_id


class BlobStore(Arrivals):
    """Content-addressed files below `folder`, at most `bytes_max` of them together."""

    def __init__(self, folder: Path, *, bytes_max: int | None = None) -> None:
        self.quota = Quota(bytes_max)
        super().__init__(folder, self.quota)
        self.reclaim: Callable[[int], Awaitable[None]] | None = None
        """Asked to remove what may go when so many bytes have no room."""
        for used, blob, size in sorted(self.scan()):
            self.quota.add(blob, size, used)
        for left in self._incoming.iterdir():
            left.unlink()
        for path in self._partial.glob(f"*{INFO_SUFFIX}"):
            info = load_partial_info_sync(path.with_suffix(""))
            if info is None:
                remove_partial_sync(path.with_suffix(""))
            else:
                self.quota.reserve(path.stem, info.size, checked=False)

    # -- what is here

    def list_blobs(self) -> list[BlobId]:
        """All complete blobs."""
        return sorted(self.quota.by_use())

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
            descriptor = os.open(
                path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            )  # else a pipe is waited for
            try:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode):
                    raise UsageError(f"cannot read {path}: not a plain file")
                return self._add_sync(_pieces(descriptor), found.st_size, str(path))
            finally:
                os.close(descriptor)
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

    # -- receiving

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

    # -- what `Arrivals` asks

    def check_arrival(self, blob: bytes, size: int) -> None:
        """Raises `StorageFull` at once, unless what may go makes room."""
        if self.reclaim is None:
            self.check_space(blob, size)

    async def _reserve_arrival(self, blob: bytes, size: int) -> None:
        name = format_blob_id(blob)
        if self.quota.reserved(name) is None:
            await self.make_room(size)
            self.quota.reserve(name, size, name)

    def _is_reserved(self, name: str) -> bool:
        return self.quota.reserved(name) is not None

    def _reserve_sync(self, name: str, size: int, what: str) -> None:
        self.quota.reserve(name, size, what)

    def _release_sync(self, name: str) -> None:
        self.quota.release(name)

    def _arrived_sync(self, blob: BlobId, size: int) -> None:
        self.quota.add(blob, size, time.time())

    async def keep_small(self, found: Mapping[bytes, bytes | memoryview]) -> None:
        """Keep small blobs that were verified against their names. Raises `StorageFull`."""
        await self.make_room(sum(map(len, found.values())))
        await super().keep_small(found)

    # -- what another process did in this folder

    async def reserve_for_other(self, blob: bytes, size: int) -> None:
        """Reserve the room of a blob that another process brings here, until `settle`. Raises `StorageFull`."""
        await self._reserve_arrival(blob, size)

    async def settle(self, blobs: Iterable[bytes]) -> None:
        """Account for what another process left of these blobs: complete, partly here, or nothing."""
        await trio.to_thread.run_sync(self._settle_sync, tuple(blobs))

    def _settle_sync(self, blobs: Sequence[bytes]) -> None:
        for blob in blobs:
            name = format_blob_id(blob)
            size = self.find_size(blob)
            if size is not None:
                if not self.has(blob):
                    self.quota.add(BlobId(blob), size, time.time())
                self.quota.release(name)
            elif not (self._partial / (name + INFO_SUFFIX)).exists():
                self.quota.release(name)

    def look_again(self, blob: bytes) -> None:
        """Another process did not find a blob, or set it aside: forget it where it is gone from the disk."""
        if self.find_size(blob) is None:
            self._forget(BlobId(blob))


def _pieces(descriptor: int) -> Iterator[bytes]:
    offset = 0
    while data := read_at(descriptor, limits.CHUNK_BYTES, offset):
        yield data
        offset += len(data)
