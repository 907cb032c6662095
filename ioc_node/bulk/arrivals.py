"""How blobs come onto this disk from others: begun, taken up again, put in their place. `partial.py` does the writing.

Who accounts for the room differs: a node's store does (`blobs.py`); the process that moves bulk data for a node has it
done by the node (`plane/store.py`).
"""

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from ioc_node.bulk.disk import BLOB_MODE, FOLDER_MODE, opened_folder, told_when_full, write_at, write_file
from ioc_node.bulk.partial import PartialBlob, load_partial_info_sync, remove_partial_sync
from ioc_node.bulk.shelf import HASHES_SUFFIX, BlobShelf, ShelfIndex
from ioc_node.errors import StorageUnusable
from ioc_wire.bulk import BlobId, BlobInfo, check_blob_info, format_blob_id

_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class Arrivals(BlobShelf):
    """A shelf that blobs come to. Subclasses say what has room."""

    def __init__(self, folder: Path, index: ShelfIndex) -> None:
        super().__init__(folder, index)
        self._partial = folder / "partial"
        self._incoming = folder / "incoming"
        for each in (self._partial, self._incoming):
            each.mkdir(mode=FOLDER_MODE, exist_ok=True)
        self._locks: dict[BlobId, trio.Lock] = {}

    # -- the room, in the hands of subclasses; those that end in `_sync` run in worker threads

    def check_arrival(self, blob: bytes, size: int) -> None:
        """Raise `StorageFull` where a blob of `size` bytes has no room, before any of it is asked for."""
        raise NotImplementedError

    async def _reserve_arrival(self, blob: bytes, size: int) -> None:
        """Reserve the room of a blob that begins, if it is not reserved. Raises `StorageFull`."""
        raise NotImplementedError

    def _is_reserved(self, name: str) -> bool:
        raise NotImplementedError

    def _reserve_sync(self, name: str, size: int, what: str) -> None:
        raise NotImplementedError

    def _release_sync(self, name: str) -> None:
        raise NotImplementedError

    def _arrived_sync(self, blob: BlobId, size: int) -> None:
        """A blob has its name now."""
        raise NotImplementedError

    # -- blobs on their way

    async def begin(self, info: BlobInfo, *, recheck: bool = True) -> PartialBlob:
        """Take up, or start, a blob on its way here. Raises `BlobCorrupt` for a wrong hash list, `StorageFull`.

        Without `recheck` what an earlier attempt left stays doubtful, to be verified by the caller."""
        check_blob_info(info)
        await self._reserve_arrival(info.blob, info.size)
        partial = PartialBlob(info, self._partial / format_blob_id(info.blob), self._place)
        try:
            await trio.to_thread.run_sync(partial.open_sync)
        except StorageUnusable:
            await self.discard_partial(info.id)
            raise
        try:
            if recheck:
                await trio.to_thread.run_sync(partial.recheck_sync)
        except BaseException:
            partial.close()
            raise
        return partial

    async def resume(self, blob: bytes, *, recheck: bool = True) -> PartialBlob | None:
        """What an earlier attempt left, its chunks verified again with `recheck`; None without one."""
        stem = self._partial / format_blob_id(blob)
        if not self._is_reserved(stem.name):
            return None
        info = await trio.to_thread.run_sync(load_partial_info_sync, stem)
        if info is None or info.blob != blob:
            await self.discard_partial(blob)
            return None
        return await self.begin(info, recheck=recheck)

    async def discard_partial(self, blob: bytes) -> None:
        """Forget what has arrived of a blob."""
        stem = self._partial / format_blob_id(blob)
        await trio.to_thread.run_sync(remove_partial_sync, stem)
        self._release_sync(stem.name)

    def lock_of(self, blob: bytes) -> trio.Lock:
        """The lock that lets one task at a time receive a blob."""
        self._locks = {key: lock for key, lock in self._locks.items() if lock.locked()}
        return self._locks.setdefault(BlobId(blob), trio.Lock())

    def _place(self, info: BlobInfo, data: Path) -> None:
        """Give verified bytes their name, by one rename. Runs in worker threads."""
        target = self._complete / format_blob_id(info.blob)
        with told_when_full(target.name, self.folder):
            if len(info.chunks) > 1:
                write_file(target.with_name(target.name + HASHES_SUFFIX), b"".join(info.chunks), BLOB_MODE)
            data.chmod(BLOB_MODE)
            data.replace(target)
        self._release_sync(target.name)
        self._arrived_sync(info.id, info.size)

    # -- small ones

    async def keep_small(self, found: Mapping[bytes, bytes | memoryview]) -> None:
        """Keep small blobs that were verified against their names. Raises `StorageFull`."""
        if found:
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
        self._reserve_sync(name, len(data), target)
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
            self._release_sync(name)
        self._arrived_sync(BlobId(blob), len(data))
