"""Folders that files of a dataset are written into, or were: nothing is ever touched outside of them.

Every step below the folder is opened by its own name in the folder before it, without following links (openat with
O_NOFOLLOW), so neither a link that lies there nor one that is slipped in meanwhile leads out. A file is written under
another name and renamed when it is whole. All of this blocks: call it in worker threads.
"""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Literal

from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.disk import read_at, told_when_full
from ioc_node.errors import UsageError
from ioc_wire import limits
from ioc_wire.bulk import blob_id_of, chunk_hash
from ioc_wire.datasets import FileEntry, check_path

FOLDER_MODE: Final = 0o755
FILE_MODE: Final = 0o644
PROGRAM_MODE: Final = 0o755
_STEP: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOK: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAKE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

State = Literal["same", "missing", "differs"]


class Folder:
    """One folder on this disk. Made by `open_folder`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._top = descriptor
        self._parent: tuple[tuple[str, ...], int] = (), os.dup(descriptor)
        """The folder used last: in the order of a list it is mostly the next one too."""

    def state(self, entry: FileEntry) -> State:
        """How the file of an entry stands; it is read where its size is right. Raises `UsageError`."""
        try:
            parent, name = self._walk(entry.path, make=False)
            descriptor = os.open(name, _LOOK, dir_fd=parent)
        except FileNotFoundError:
            return "missing"
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
                return "differs"  # a link, a file for a folder, a pipe
            raise self._cannot("read", entry.path, error) from None
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_size != entry.size:
                return "differs"
            return "same" if _blob_of(descriptor, entry.size) == entry.blob else "differs"
        except OSError as error:
            raise self._cannot("read", entry.path, error) from None
        finally:
            os.close(descriptor)

    def write(self, entry: FileEntry, store: BlobStore) -> None:
        """Put a file in its place, all or nothing; whatever had its name is replaced, but never a folder.

        Raises `UsageError`, `StorageUnusable`, or `NotFound` and `BlobCorrupt` of the store.
        """
        mode = PROGRAM_MODE if entry.executable else FILE_MODE
        try:
            parent, name = self._walk(entry.path, make=True)
            with told_when_full(entry.path, self.path):
                sibling = f".{secrets.token_hex(8)}.new"
                descriptor = os.open(sibling, _MAKE, 0o600, dir_fd=parent)
                try:
                    try:
                        store.pour_sync(entry.blob, descriptor)
                        os.fchmod(descriptor, mode)
                    finally:
                        os.close(descriptor)
                    os.rename(sibling, name, src_dir_fd=parent, dst_dir_fd=parent)
                except BaseException:
                    with suppress(OSError):
                        os.unlink(sibling, dir_fd=parent)
                    raise
        except OSError as error:
            raise self._cannot("write", entry.path, error) from None

    def files(self) -> Iterator[tuple[str, os.stat_result]]:
        """All plain files below, with `/` between the names, folder by folder in order.

        Raises `UsageError` for what is neither a file nor a folder.
        """
        for path, status in self._files(self._top, ""):
            if not stat.S_ISREG(status.st_mode):
                kind = "a link" if stat.S_ISLNK(status.st_mode) else "no plain file"
                raise UsageError(f"{self.path / path} is {kind}: a dataset holds plain files and folders")
            yield path, status

    def names(self) -> Iterator[str]:
        """Everything below that is no folder; links are not followed. Raises `UsageError`."""
        return (path for path, _ in self._files(self._top, ""))

    def _files(self, descriptor: int, before: str) -> Iterator[tuple[str, os.stat_result]]:
        try:
            with os.scandir(descriptor) as found:
                entries = sorted(found, key=lambda each: os.fsencode(each.name))
        except OSError as error:
            raise self._cannot("read", before or ".", error) from None
        for entry in entries:
            path = before + entry.name
            try:
                status = entry.stat(follow_symlinks=False)
                inner = os.open(entry.name, _STEP, dir_fd=descriptor) if stat.S_ISDIR(status.st_mode) else -1
            except OSError as error:
                raise self._cannot("read", path, error) from None
            if inner < 0:
                yield path, status
                continue
            try:
                yield from self._files(inner, path + "/")
            finally:
                os.close(inner)

    def open(self, path: str) -> int:
        """A descriptor of a plain file below, for reading. Raises `UsageError`."""
        try:
            parent, name = self._walk(path, make=False)
            return os.open(name, _LOOK, dir_fd=parent)
        except OSError as error:
            raise self._cannot("read", path, error) from None

    def close(self) -> None:
        """Give the descriptors back."""
        os.close(self._parent[1])
        os.close(self._top)

    def _walk(self, path: str, *, make: bool) -> tuple[int, str]:
        """The descriptor of the folder that a path lies in, good until the next call, and its last name."""
        *folders, name = check_path(path).split("/")
        if self._parent[0] == tuple(folders):
            return self._parent[1], name
        step = os.dup(self._top)
        try:
            for folder in folders:
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(folder, FOLDER_MODE, dir_fd=step)
                inner = os.open(folder, _STEP, dir_fd=step)
                os.close(step)
                step = inner
        except OSError:
            os.close(step)
            raise
        os.close(self._parent[1])
        self._parent = tuple(folders), step
        return step, name

    def _cannot(self, what: str, path: str, error: OSError) -> UsageError:
        why = error.strerror or str(error)
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            why = "a link, or a file where a folder should be, is in the way"
        return UsageError(f"cannot {what} {path!r} in {self.path}: {why}")


@contextmanager
def open_folder(path: Path, *, make: bool = False) -> Iterator[Folder]:
    """A folder to read from, or with `make` to write into. Raises `UsageError`."""
    try:
        if make:
            path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"cannot open the folder {path}: {error.strerror or error}") from None
    folder = Folder(path, descriptor)
    try:
        yield folder
    finally:
        folder.close()


def _blob_of(descriptor: int, size: int) -> bytes:
    chunks = []
    for at in range(0, size, limits.CHUNK_BYTES):
        chunks.append(chunk_hash(read_at(descriptor, min(limits.CHUNK_BYTES, size - at), at)))
    return blob_id_of(size, chunks)
