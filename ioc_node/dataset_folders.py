"""What becomes of a dataset's files in a folder: which are there, which are to be written, how it differs. Blocks."""

import os
from collections.abc import Sequence
from typing import Final

from ioc_node import api
from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.folders import Folder
from ioc_node.errors import UsageError
from ioc_wire.datasets import FileEntry, is_below

GROUP_FILES: Final = 512
GROUP_BYTES: Final = 512 << 20
"""So much of a dataset is brought here before it is written out, while the next as much arrives: what was written may
go again."""

NAMES_MAX: Final = 200
"""Paths of each kind that are told of a comparison."""


def groups_of(entries: Sequence[FileEntry]) -> list[list[FileEntry]]:
    """Cut a list into what is brought here at a time."""
    groups: list[list[FileEntry]] = []
    size = 0
    for entry in entries:
        if not groups or len(groups[-1]) == GROUP_FILES or size + entry.size > GROUP_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(entry)
        size += entry.size
    return groups


def outstanding(folder: Folder, entries: Sequence[FileEntry], replace: bool) -> list[FileEntry]:
    """The files to write. Raises `UsageError` where others are in their place."""
    todo, other = [], []
    for entry in entries:
        state = folder.state(entry)
        if state != "same":
            todo.append(entry)
        if state == "differs":
            other.append(entry.path)
    if other and not replace:
        raise UsageError(
            f"{len(other)} files in {folder.path} are there with other contents, such as {other[0]!r}: "
            "choose another folder, or --replace them"
        )
    return todo


def write_all(folder: Folder, entries: Sequence[FileEntry], store: BlobStore) -> None:
    """Write files that are in the store. Raises as `Folder.write`."""
    for entry in entries:
        folder.write(entry, store)


def compare_all(
    folder: Folder, entries: Sequence[FileEntry], path: str, row: api.DatasetRow
) -> api.DatasetCompared:
    """How a folder differs from the files of a dataset at or below `path`. Raises `UsageError`."""
    states = {entry.path: folder.state(entry) for entry in entries}
    found = (os.fsencode(name).decode("utf-8", "replace") for name in folder.names())
    extra = [name for name in found if name not in states and is_below(name, path)]
    changed = [name for name, state in states.items() if state == "differs"]
    missing = [name for name, state in states.items() if state == "missing"]
    return api.DatasetCompared(
        row=row,
        same=len(states) - len(changed) - len(missing),
        changed=tuple(changed[:NAMES_MAX]),
        missing=tuple(missing[:NAMES_MAX]),
        extra=tuple(extra[:NAMES_MAX]),
        differences=len(changed) + len(missing) + len(extra),
    )
