"""The list of a dataset made from a folder: every file becomes a blob of the store, and so does every page."""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import trio

from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.disk import read_at
from ioc_node.bulk.folders import Folder, open_folder
from ioc_node.errors import UsageError
from ioc_wire import limits
from ioc_wire.bulk import SMALL_BYTES_MAX, blob_id_of, chunk_hash
from ioc_wire.datasets import FileEntry, Page, Paths, encode_page
from ioc_wire.errors import Malformed

BATCH_FILES_MAX: Final = 256
BATCH_BYTES_MAX: Final = 8 << 20

Kept = Callable[[Sequence[bytes]], None]
"""Told of blobs as soon as they are in the store, so that they are held from then on."""
_Found = tuple[str, os.stat_result]


async def list_folder(store: BlobStore, path: Path, kept: Kept) -> list[FileEntry]:
    """Copy every file below a folder into the store; their entries in canonical order.

    Raises `UsageError` for a folder that cannot be a dataset, with the first reason, or `StorageUnusable`.
    """
    found = await trio.to_thread.run_sync(_find, path)
    entries: list[FileEntry] = []
    with open_folder(path) as folder:
        for batch in _batches(found):
            if batch[0][1].st_size > SMALL_BYTES_MAX:
                entries.append(await _add_large(store, folder, *batch[0]))
            else:
                entries.extend(await _add_small(store, folder, batch))
            kept([entry.blob for entry in entries[-len(batch) :]])
    return entries


async def add_pages(store: BlobStore, entries: Sequence[FileEntry], kept: Kept) -> tuple[Page, ...]:
    """Keep the pages of a list in the store."""
    pages = []
    for start in range(0, len(entries), limits.DATASET_PAGE_FILES_MAX):
        part = entries[start : start + limits.DATASET_PAGE_FILES_MAX]
        info = await store.add_bytes(encode_page(part))
        kept([info.blob])
        pages.append(Page(part[0].path, info.blob, len(part)))
    return tuple(pages)


def _find(path: Path) -> list[_Found]:
    found: list[_Found] = []
    paths = Paths()
    with open_folder(path) as folder:
        for name, status in folder.files():
            try:
                paths.add(name)
            except Malformed as error:
                raise UsageError(f"{path} cannot be a dataset: {error.detail}") from None
            found.append((name, status))
            if len(found) > limits.DATASET_FILES_MAX:
                raise UsageError(f"{path} has more than the {limits.DATASET_FILES_MAX} files of a dataset")
    return sorted(found, key=lambda each: each[0].encode())


def _batches(found: Sequence[_Found]) -> Iterator[Sequence[_Found]]:
    """Large files one by one, small ones together, in order."""
    batch: list[_Found] = []
    total = 0
    for each in found:
        size = each[1].st_size
        large = size > SMALL_BYTES_MAX
        if batch and (large or len(batch) == BATCH_FILES_MAX or total + size > BATCH_BYTES_MAX):
            yield batch
            batch, total = [], 0
        if large:
            yield [each]
        else:
            batch.append(each)
            total += size
    if batch:
        yield batch


async def _add_large(store: BlobStore, folder: Folder, path: str, status: os.stat_result) -> FileEntry:
    descriptor = await trio.to_thread.run_sync(folder.open, path)
    try:
        info = await store.add_file(Path(f"/proc/self/fd/{descriptor}"))
    finally:
        os.close(descriptor)
    return FileEntry(path, info.blob, info.size, _is_program(status))


async def _add_small(store: BlobStore, folder: Folder, batch: Sequence[_Found]) -> list[FileEntry]:
    found, entries = await trio.to_thread.run_sync(_read_small, folder, batch)
    await store.keep_small({blob: data for blob, data in found.items() if not store.has(blob)})
    return entries


def _read_small(folder: Folder, batch: Sequence[_Found]) -> tuple[dict[bytes, bytes], list[FileEntry]]:
    found: dict[bytes, bytes] = {}
    entries = []
    for path, status in batch:
        descriptor = folder.open(path)
        try:
            data = read_at(descriptor, SMALL_BYTES_MAX + 1, 0)
        except OSError as error:
            raise UsageError(f"cannot read {folder.path / path}: {error.strerror or error}") from None
        finally:
            os.close(descriptor)
        if len(data) > SMALL_BYTES_MAX:
            raise UsageError(f"{folder.path / path} grew while it was read; try again")
        blob = blob_id_of(len(data), (chunk_hash(data),) if data else ())
        found[blob] = data
        entries.append(FileEntry(path, blob, len(data), _is_program(status)))
    return found, entries


def _is_program(status: os.stat_result) -> bool:
    return bool(status.st_mode & stat.S_IXUSR)
