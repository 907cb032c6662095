"""Small blocking file operations with the errors an operator understands. Call them in worker threads."""

import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from ioc_node.errors import StorageFull, StorageUnusable

FILE_MODE: Final = 0o600
BLOB_MODE: Final = 0o444
FOLDER_MODE: Final = 0o700
_FULL: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_LOCKED: Final = frozenset((errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOENT))
_NO_COPY: Final = frozenset((errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM))
COPY_BYTES: Final = 1 << 20


@contextmanager
def told_when_full(what: str, folder: Path) -> Iterator[None]:
    """Turn a full disk, a used-up quota or a file size limit into `StorageFull` with its one line, and a folder that
    cannot be written into `StorageUnusable`."""
    try:
        yield
    except OSError as error:
        if error.errno in _LOCKED:
            raise StorageUnusable(
                f"cannot write {what} in {folder} ({error.strerror}); see to the folder and try again"
            ) from None
        if error.errno not in _FULL:
            raise
        raise StorageFull(
            f"no space left for {what} in {folder} ({error.strerror}); make room and try again"
        ) from None


@contextmanager
def opened_folder(path: Path) -> Iterator[int]:
    """A descriptor of a folder, for many files in it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write_file(path: Path, data: bytes, mode: int = FILE_MODE) -> None:
    """Write a whole small file so that a reader finds all of it or none: a sibling first, then a rename."""
    sibling = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")  # two threads may write the same file
    try:
        descriptor = os.open(sibling, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE)
        try:
            write_at(descriptor, data, 0)
            os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)
        sibling.replace(path)
    except OSError:
        with suppress(OSError):
            sibling.unlink(missing_ok=True)
        raise


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written


def write_all_at(descriptor: int, pieces: Sequence[bytes | memoryview], offset: int) -> None:
    """Write all pieces, one after the other, from `offset` on: mostly with one system call."""
    written = os.pwritev(descriptor, pieces, offset)
    for piece in pieces:
        if written < len(piece):
            write_at(descriptor, memoryview(piece)[max(0, written) :], offset + max(0, written))
        written -= len(piece)
        offset += len(piece)


def read_at(descriptor: int, count: int, offset: int) -> bytes:
    """Up to `count` bytes from `offset`; fewer only at the end of the file."""
    data = os.pread(descriptor, count, offset)
    while len(data) < count:
        more = os.pread(descriptor, count - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def read_all_at(descriptor: int, targets: Sequence[memoryview], offset: int) -> bool:
    """Fill all targets, one after the other, from `offset` on, mostly with one system call; False at the file's end."""
    left = [target for target in targets if target]
    while left:
        count = os.preadv(descriptor, left, offset)
        if not count:
            return False
        offset += count
        while left and count >= len(left[0]):
            count -= len(left.pop(0))
        if count:
            left[0] = left[0][count:]
    return True


def copy_range(source: int, target: int, count: int, offset: int) -> int:
    """Copy bytes between files at the same offset inside the kernel where it can; how many were copied."""
    copied = 0
    while copied < count:
        at = offset + copied
        try:
            step = os.copy_file_range(source, target, count - copied, at, at)
        except OSError as error:
            if error.errno not in _NO_COPY:
                raise
            data = read_at(source, min(COPY_BYTES, count - copied), at)
            write_at(target, data, at)
            step = len(data)
        if not step:
            break
        copied += step
    return copied


def reserve_space(descriptor: int, size: int) -> None:
    """Claim the blocks of a file before they are written, so that a full disk shows at once."""
    if size:
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in _NO_COPY:
                raise
            os.ftruncate(descriptor, size)
