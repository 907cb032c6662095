"""A task's folder, looked at from outside: how full it is, and its outputs taken out without following any
link.

What a program leaves behind is hostile: links to the host's files, pipes that block whoever opens them,
folders nobody may read. Everything here works on what is really there.
"""

import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import trio

from ioc_node.executors.executor import FolderUnusable

ENTRIES_MAX: Final = 10_000
"""Files and folders that a task may have in its folder at one time."""
WATCH_SECONDS: Final = 0.25


@dataclass(frozen=True, slots=True)
class Fill:
    """What a folder holds: the sum of its files' sizes (links count as themselves) and the number of
    entries."""

    size: int
    entries: int

    def excess(self, disk_mib: int) -> str | None:
        """One line that says how the bounds are broken, or None."""
        if self.entries > ENTRIES_MAX:
            return f"more than {ENTRIES_MAX} files in the task's folder"
        if self.size > disk_mib << 20:
            return f"{-(-self.size >> 20)} MiB in the task's folder, {disk_mib} MiB are allowed"
        return None


def measure_folder(folder: Path) -> Fill:
    """Walk `folder`; stops soon after `ENTRIES_MAX`. What vanishes meanwhile or may not be read counts as
    nothing."""
    size = entries = 0
    pending = [str(folder)]
    while pending and entries <= ENTRIES_MAX:
        try:
            with os.scandir(pending.pop()) as listing:
                for entry in listing:
                    entries += 1
                    if entries > ENTRIES_MAX:
                        break
                    size += _size_of(entry, pending)
        except OSError:
            continue
    return Fill(size, entries)


def _size_of(entry: os.DirEntry[str], pending: list[str]) -> int:
    try:
        if entry.is_dir(follow_symlinks=False):
            pending.append(entry.path)
            return 0
        return entry.stat(follow_symlinks=False).st_size
    except OSError:
        return 0


async def watch_folder(folder: Path, disk_mib: int) -> str:
    """Return the reason as soon as the folder is seen to be over its bounds; runs until then."""
    while True:
        await trio.sleep(WATCH_SECONDS)
        fill = await trio.to_thread.run_sync(measure_folder, folder)
        if (reason := fill.excess(disk_mib)) is not None:
            return reason


def open_output(folder: Path, path: str) -> BinaryIO:
    """Open the regular file at relative `path` in `folder` for reading, following no link on the way.

    Raises `FolderUnusable` with one line: missing, a link, not a file, or not readable.
    """
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        *parents, name = path.split("/")
        for part in parents:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = inner
        # O_NONBLOCK: opening a pipe that nobody writes must not wait.
        found = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=here)
    except FileNotFoundError:
        raise FolderUnusable(f"the task did not write its output {path!r}") from None
    except OSError as error:
        raise FolderUnusable(f"output {path!r} cannot be read: {error.strerror}") from None
    finally:
        os.close(here)
    if not stat.S_ISREG(os.fstat(found).st_mode):
        os.close(found)
        raise FolderUnusable(f"output {path!r} is not a regular file")
    return os.fdopen(found, "rb")


def remove_folder(folder: Path) -> None:
    """Remove a task's folder whatever modes its program left on it; one that is gone already is fine."""
    for root, names, _ in os.walk(folder):
        for name in names:
            inner = os.path.join(root, name)  # noqa: PTH118 (hot loop over hostile names)
            if not os.path.islink(inner):  # noqa: PTH114
                os.chmod(inner, 0o700)  # noqa: PTH101
    shutil.rmtree(folder, ignore_errors=True)


def check_folder(folder: Path) -> Path:
    """The absolute path of a folder that exists. Raises `FolderUnusable`."""
    if not folder.is_dir():
        raise FolderUnusable(f"task folder {folder} does not exist")
    return folder.resolve()
