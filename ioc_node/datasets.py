"""Datasets of this node's owner, and of others: made, announced, found, fetched whole or in part, compared.

A node that holds all of a version says so in the DHT at the dataset's point, and gives the newest version it has to
whoever asks over a link. Everything else, the list included, is blobs.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node import api
from ioc_node.bulk.folders import Folder, open_folder
from ioc_node.bulk.listing import add_pages, list_folder
from ioc_node.bulk.transfers import BulkEndpoint
from ioc_node.dataset_folders import compare_all, groups_of, outstanding, write_all
from ioc_node.errors import NodeError, RequestRefused, UsageError
from ioc_node.fetching_many import ManyBlobs, Wanted
from ioc_node.runtime.driver import open_background
from ioc_node.runtime.link_handlers import Handlers
from ioc_node.runtime.links import Link, LinkEndpoint
from ioc_node.runtime.store import Store
from ioc_node.sharing import SharedBlobs
from ioc_node.sources import ASK_SECONDS, SOURCES_MAX, Holder
from ioc_node.tasks.keeper import DATASET, Keeper
from ioc_wire import limits
from ioc_wire.bulk import BlobId, blob_id_of, chunk_hash, parse_blob_id
from ioc_wire.codec import decode, encode
from ioc_wire.datasets import (
    VERSION_BYTES_MAX,
    DatasetTold,
    DatasetVersion,
    FileEntry,
    Page,
    Paths,
    RequestDataset,
    check_name,
    check_owner,
    check_path,
    dataset_point,
    decode_version,
    format_dataset,
    is_below,
    pages_of,
    parse_dataset,
    read_page,
    verify_version,
)
from ioc_wire.errors import Malformed, NotFound, Revoked, WireError
from ioc_wire.identity import node_id_of
from ioc_wire.signed import Signed, public_bytes, sign

BLOB_CHARS: Final = 53
DATASETS_MAX: Final = 10_000
STEPS_MAX: Final = 1000
"""Versions that are stepped back from the newest one."""
SHOWN_MAX: Final = 512
"""Files in one answer to `show`: paths may be long, and an answer is one frame."""

_SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS datasets (
         point BLOB NOT NULL, version INTEGER NOT NULL, owner BLOB NOT NULL, name TEXT NOT NULL, blob BLOB NOT NULL,
         signed BLOB NOT NULL, files INTEGER NOT NULL, size INTEGER NOT NULL, made INTEGER NOT NULL,
         PRIMARY KEY (point, version)) WITHOUT ROWID""",
    # The last number of each dataset that was removed here: others may hold that version.
    "CREATE TABLE IF NOT EXISTS datasets_removed (point BLOB PRIMARY KEY, version INTEGER NOT NULL)",
)
_log = structlog.get_logger()


@dataclass(frozen=True)
class Known:
    """A version whose signature holds, the blob that it is, and who has it."""

    signed: Signed
    version: DatasetVersion
    blob: BlobId
    holders: tuple[Holder, ...]

    @property
    def owner(self) -> bytes:
        """The owner's node ID."""
        return node_id_of(self.signed.key)

    @property
    def text(self) -> str:
        """`n…/name`."""
        return format_dataset(self.owner, self.version.name)


class Datasets:
    """The node's datasets, in its database and its blob store."""

    def __init__(
        self, store: Store, bulk: BulkEndpoint, shared: SharedBlobs, keeper: Keeper, *, key: Ed25519PrivateKey
    ) -> None:
        store.require("datasets", _SCHEMA)
        self._store = store
        self._bulk = bulk
        self._shared = shared
        self._keeper = keeper
        self._key = key
        self._own = node_id_of(public_bytes(key))
        self._adding = trio.Lock()
        """Who adds next begins from the version that was added last."""
        self.links: LinkEndpoint
        """Set once links are open."""
        self.is_revoked: Callable[[bytes], bool] = lambda _key: False

    def register(self, handlers: Handlers) -> None:
        """Answer peers that ask for the newest version of a dataset; before links are opened."""
        handlers.serve(RequestDataset, self._on_request)

    async def _on_request(self, link: Link, message: RequestDataset) -> DatasetTold:
        known = self._newest_here(message.owner, message.name)
        if known is None:
            raise NotFound(f"dataset {format_dataset(message.owner, message.name)} is not held here")
        return DatasetTold(encode(known.signed))

    def points(self) -> list[bytes]:
        """Where in the DHT this node says that it holds something."""
        found = {point for (point,) in self._store.fetch("SELECT DISTINCT point FROM datasets")}
        return sorted(found | {blob for (blob,) in self._store.fetch("SELECT blob FROM datasets")})

    def _holds(self, point: bytes) -> bool:
        return bool(self._store.fetch("SELECT 1 FROM datasets WHERE ? IN (point, blob) LIMIT 1", (point,)))

    def rows(self) -> tuple[api.DatasetRow, ...]:
        """The versions held here, the newest of each dataset first."""
        query = (
            "SELECT owner, name, version, blob, files, size, made FROM datasets"
            " ORDER BY name, owner, version DESC LIMIT ?"
        )
        return tuple(
            api.DatasetRow(format_dataset(owner, name), version, blob, files, size, made, owner == self._own)
            for owner, name, version, blob, files, size, made in self._store.fetch(query, (api.ROWS_MAX,))
        )

    # -- making one

    async def add(self, name: str, folder: Path, *, announce: bool) -> api.DatasetAdded:
        """Keep all files of a folder as the next version of our dataset `name`, and say so in the DHT.

        Where nothing has changed, the version there is stays. Raises `UsageError`, `StorageUnusable`.
        """
        started = trio.current_time()
        try:
            check_name(name)
        except Malformed as error:
            raise UsageError(error.detail) from None
        async with self._adding:
            known, is_new = await self._add_version(name, folder)
        told = 0
        if is_new and announce:
            told = await self._shared.announce(dataset_point(self._own, name))
            await self._shared.announce(known.blob)
        return api.DatasetAdded(_row(known, self._own), is_new, told, trio.current_time() - started)

    async def _add_version(self, name: str, folder: Path) -> tuple[Known, bool]:
        """The newest version, and whether it is a new one."""
        before = self._newest_here(self._own, name)
        (count,) = self._store.fetch("SELECT count(*) FROM datasets")[0]
        if count >= DATASETS_MAX:
            raise UsageError(f"{DATASETS_MAX} versions of datasets are held here already: remove some")
        point = dataset_point(self._own, name)
        number = max(self._last_removed(point), before.version.version if before is not None else 0) + 1
        reason = _reason(point, number)

        def kept(blobs: Sequence[bytes]) -> None:
            with self._store.transaction():
                self._keeper.hold(blobs, reason)

        done = False
        try:
            entries = await list_folder(self._bulk.store, folder, kept)
            pages = await add_pages(self._bulk.store, entries, kept)
            if before is not None and before.version.pages == pages:
                return before, False
            version = DatasetVersion(
                name=name,
                version=number,
                made=int(time.time()),
                files=len(entries),
                size=sum(entry.size for entry in entries),
                pages=pages,
                previous=before.blob if before is not None else None,
            )
            known = await self._keep(sign(self._key, version), reason)
            done = True
        finally:
            if not done:
                self._keeper.hold_until(reason, 0)
        return known, True

    async def _keep(self, signed: Signed, reason: bytes) -> Known:
        version = verify_version(signed)
        info = await self._bulk.store.add_bytes(encode(signed))
        owner = node_id_of(signed.key)
        with self._store.transaction():
            self._store.execute(
                "INSERT OR REPLACE INTO datasets VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    dataset_point(owner, version.name),
                    version.version,
                    owner,
                    version.name,
                    info.blob,
                    encode(signed),
                    version.files,
                    version.size,
                    version.made,
                ),
            )
            self._keeper.hold((info.blob,), reason)
        return Known(signed, version, info.id, ())

    async def remove(self, reference: str, version: int | None) -> int:
        """Hold a dataset no longer, or one version of it; how many versions were. Raises `NotFound`, `UsageError`."""
        owner, name = self._parse(reference)
        point = dataset_point(owner, name)
        removed = 0
        for number, blob in self._store.fetch("SELECT version, blob FROM datasets WHERE point = ?", (point,)):
            if version is None or number == version:
                with self._store.transaction():
                    self._store.execute(
                        "DELETE FROM datasets WHERE point = ? AND version = ?", (point, number)
                    )
                    self._keeper.hold_until(_reason(point, number), 0)
                    self._note_removed(point, number)
                self._shared.withdraw(blob)
                removed += 1
        if not removed:
            raise NotFound(f"no such version of dataset {reference} is held here")
        if self._newest_here(owner, name) is None:
            self._shared.withdraw(point)
        return removed

    def _last_removed(self, point: bytes) -> int:
        found = self._store.fetch("SELECT version FROM datasets_removed WHERE point = ?", (point,))
        return int(found[0][0]) if found else 0

    def _note_removed(self, point: bytes, number: int) -> None:
        number = max(number, self._last_removed(point))
        self._store.execute("INSERT OR REPLACE INTO datasets_removed VALUES (?, ?)", (point, number))
        self._store.execute(
            "DELETE FROM datasets_removed WHERE rowid NOT IN"
            " (SELECT rowid FROM datasets_removed ORDER BY rowid DESC LIMIT ?)",
            (DATASETS_MAX,),
        )

    # -- finding one

    async def find(self, reference: str, version: int | None = None) -> Known:
        """The newest version of a dataset that this node or a holder has, or the one numbered `version`; with a blob's
        ID for a reference, that one.

        Raises `UsageError`, `NotFound`, `Revoked`, or `RequestRefused` with each holder's reason.
        """
        if len(reference) == BLOB_CHARS and reference.startswith("b"):
            known = await self._find_blob(reference)
        else:
            owner, name = self._parse(reference)
            here = self._newest_here(owner, name)
            own = here is not None and owner == self._own
            known = here if here is not None and own else await self._find_newest(owner, name, here)
        if self.is_revoked(known.signed.key):
            raise Revoked(f"the key of the owner of dataset {known.text}")
        return await self._step_back(known, version) if version is not None else known

    async def _find_blob(self, reference: str) -> Known:
        blob = parse_blob_id(reference)
        holders = () if self._bulk.store.has(blob) else tuple(await self._shared.sources.holders(blob))
        return await self._load(blob, holders)

    async def _find_newest(self, owner: bytes, name: str, here: Known | None) -> Known:
        found: list[tuple[Holder, Known]] = []
        refusals: list[str] = []

        async def ask(holder: Holder) -> None:
            try:
                with trio.fail_after(ASK_SECONDS):
                    found.append((holder, await self._ask(holder, owner, name)))
            except trio.TooSlowError:
                refusals.append(f"{holder.name}: no answer within {ASK_SECONDS:g} s")
            except (WireError, NodeError) as error:
                refusals.append(f"{holder.name}: {error}")

        try:
            holders = await self._shared.sources.holders(dataset_point(owner, name))
        except NotFound:
            if here is None:
                raise NotFound(
                    f"dataset {format_dataset(owner, name)}: nobody told the DHT of holding it"
                ) from None
            return here
        except NodeError:
            if here is None:
                raise
            return here
        async with trio.open_nursery() as nursery:
            for holder in holders[:SOURCES_MAX]:
                nursery.start_soon(ask, holder)
        candidates = [known for _, known in found] + ([here] if here is not None else [])
        if not candidates:
            told = "; ".join(refusals)
            raise RequestRefused(
                f"none of {len(refusals)} holders told of {format_dataset(owner, name)}: {told}"
            )
        best = max(candidates, key=lambda known: (known.version.version, known.blob))
        having = tuple(holder for holder, known in found if known.blob == best.blob)
        others = tuple(holder for holder, known in found if known.blob != best.blob)
        return Known(best.signed, best.version, best.blob, having + others)

    async def _ask(self, holder: Holder, owner: bytes, name: str) -> Known:
        link = await self.links.reach(holder.contact)
        told = await link.request(RequestDataset(owner, name), DatasetTold)
        signed, version = decode_version(told.version)
        check_owner(signed, version, owner, name)
        return Known(signed, version, _id_of(told.version), (holder,))

    async def _step_back(self, known: Known, version: int) -> Known:
        for _ in range(STEPS_MAX):
            if known.version.version <= version or known.version.previous is None:
                break
            before = await self._load(known.version.previous, known.holders)
            check_owner(before.signed, before.version, known.owner, known.version.name)
            if before.version.version >= known.version.version:
                raise Malformed(f"version {known.version.version} of {known.text} follows a later one")
            known = before
        if known.version.version != version:
            raise NotFound(
                f"version {version} of dataset {known.text}: the nearest is {known.version.version}"
            )
        return known

    async def _load(self, blob: bytes, holders: tuple[Holder, ...]) -> Known:
        await self._bring(((blob, None),), holders)
        data = await self._bulk.store.read_bytes(blob, bytes_max=VERSION_BYTES_MAX + 512)
        signed, version = decode_version(data)
        return Known(signed, version, BlobId(blob), holders)

    def _newest_here(self, owner: bytes, name: str) -> Known | None:
        query = "SELECT signed, blob FROM datasets WHERE point = ? ORDER BY version DESC LIMIT 1"
        for data, blob in self._store.fetch(query, (dataset_point(owner, name),)):
            signed = decode(data, Signed)
            return Known(signed, verify_version(signed), BlobId(blob), ())
        return None

    def _parse(self, reference: str) -> tuple[bytes, str]:
        """`NAME` alone is one of our own."""
        try:
            return parse_dataset(reference) if "/" in reference else (self._own, check_name(reference))
        except Malformed as error:
            raise UsageError(error.detail) from None

    # -- its files

    async def entries(self, known: Known, path: str = "") -> list[FileEntry]:
        """The files at or below `path`, in order. Raises `NotFound` where there is none, `Malformed` for a list that
        could do harm, or why a page could not be fetched."""
        wanted: list[FileEntry] = []
        paths = Paths()
        pages = pages_of(known.version, _checked(path))
        await self._bring([(page.blob, None) for page in pages], known.holders)
        for page in pages:
            for entry in await self._page_files(page):
                if is_below(entry.path, path):
                    paths.add(entry.path)
                    wanted.append(entry)
        if path and not wanted:
            raise NotFound(f"{path!r} in dataset {known.text}")
        return wanted

    async def _page_files(self, page: Page) -> tuple[FileEntry, ...]:
        data = await self._bulk.store.read_bytes(page.blob, bytes_max=limits.LINK_FRAME_BYTES_MAX * 4)
        return await trio.to_thread.run_sync(read_page, data, page)

    async def _bring(self, wanted: Sequence[Wanted], holders: Sequence[Holder]) -> int:
        """Have blobs here; bytes that moved. Raises `RequestRefused`, `StorageUnusable`."""
        many = ManyBlobs(self._bulk, self.links, holders, wanted)
        await many.run()
        return many.bytes_moved

    async def show(self, reference: str, path: str = "", *, version: int | None = None) -> api.DatasetShown:
        """A dataset and its files at or below `path`. Raises as `find` and `entries`."""
        known = await self.find(reference, version)
        entries = await self.entries(known, path)
        rows = tuple(
            api.FileRow(entry.path, entry.blob, entry.size, entry.executable) for entry in entries[:SHOWN_MAX]
        )
        holders = tuple(holder.name for holder in known.holders)
        return api.DatasetShown(_row(known, self._own), holders, len(entries), rows)

    async def get(
        self,
        reference: str,
        folder: Path,
        *,
        path: str = "",
        version: int | None = None,
        replace: bool = False,
        share: bool = False,
    ) -> api.DatasetGot:
        """Write the files of a dataset at or below `path` into a folder. Files that are the same there are left alone.
        With `share`, this node gives the dataset out from then on.

        Raises `UsageError` where other files are in the way, unless `replace`; `StorageUnusable`, and as `find` and
        `entries` do.
        """
        started = trio.current_time()
        if share and path:
            raise UsageError("only a whole dataset can be shared: leave --path out")
        known = await self.find(reference, version)
        entries = await self.entries(known, path)
        moved = 0
        reason = _reason(dataset_point(known.owner, known.version.name), known.version.version)
        with open_folder(folder, make=True) as opened:
            todo = await trio.to_thread.run_sync(outstanding, opened, entries, replace)
            if share:
                for group in groups_of(entries):
                    moved += await self._bring([(entry.blob, entry.size) for entry in group], known.holders)
                    with self._store.transaction():
                        self._keeper.hold((entry.blob for entry in group), reason)
                await trio.to_thread.run_sync(write_all, opened, todo, self._bulk.store)
            else:
                moved += await self._bring_and_write(todo, known.holders, opened)
        if share:
            self._keeper.hold((page.blob for page in known.version.pages), reason)
            await self._keep(known.signed, reason)
            await self._shared.announce(dataset_point(known.owner, known.version.name))
            await self._shared.announce(known.blob)
        return api.DatasetGot(
            row=_row(known, self._own),
            written=len(todo),
            same=len(entries) - len(todo),
            size=sum(entry.size for entry in todo),
            bytes_moved=moved,
            seconds=trio.current_time() - started,
        )

    async def _bring_and_write(
        self, entries: Sequence[FileEntry], holders: Sequence[Holder], folder: Folder
    ) -> int:
        """Bring files group by group, each written out while the next arrives; bytes that moved."""
        moved = 0
        arrived, written = trio.open_memory_channel[list[FileEntry]](0), trio.Event()

        async def write() -> None:
            async for group in arrived[1]:
                await trio.to_thread.run_sync(write_all, folder, group, self._bulk.store)
            written.set()

        async with open_background() as background:
            background.start_soon(write)
            async with arrived[0]:
                for group in groups_of(entries):
                    moved += await self._bring([(entry.blob, entry.size) for entry in group], holders)
                    await arrived[0].send(group)
            await written.wait()
        return moved

    def is_version(self, blob: bytes) -> bool:
        """Whether a blob is a version of a dataset that is held here."""
        return bool(self._store.fetch("SELECT 1 FROM datasets WHERE blob = ?", (blob,)))

    async def take_over(self, blob: bytes, holder: Holder, on_moved: Callable[[int], None]) -> None:
        """Have the version of a dataset that `blob` is, and all that it names, from that holder, and give it out from
        then on. `on_moved` is told bytes that were verified and kept. Raises `RequestRefused`, `StorageUnusable`,
        `Malformed` for a list that could do harm, `Revoked`.
        """

        async def bring(wanted: list[Wanted]) -> None:
            on_moved(await self._bring(wanted, (holder,)))

        await bring([(blob, None)])
        known = await self._load(blob, (holder,))
        if self.is_revoked(known.signed.key):
            raise Revoked(f"the key of the owner of dataset {known.text}")
        await bring([(page.blob, None) for page in known.version.pages])
        reason = _reason(dataset_point(known.owner, known.version.name), known.version.version)
        for group in groups_of(await self.entries(known)):
            await bring([(entry.blob, entry.size) for entry in group])
            with self._store.transaction():
                self._keeper.hold((entry.blob for entry in group), reason)
        self._keeper.hold((page.blob for page in known.version.pages), reason)
        await self._keep(known.signed, reason)
        await self._shared.announce(dataset_point(known.owner, known.version.name))
        await self._shared.announce(known.blob)

    async def compare(
        self, reference: str, folder: Path, *, path: str = "", version: int | None = None
    ) -> api.DatasetCompared:
        """How a folder differs from the files at or below `path`. Raises `UsageError`, and as `find` and `entries`."""
        known = await self.find(reference, version)
        entries = await self.entries(known, path)
        with open_folder(folder) as opened:
            return await trio.to_thread.run_sync(compare_all, opened, entries, path, _row(known, self._own))

    async def keep_announced(self, wait_joined: Callable[[], Awaitable[None]]) -> None:
        """Announce what is held here once the node has joined, and again and again, until cancelled."""
        await wait_joined()
        await self._shared.announce_again_and_again(self.points, self._holds)


def _reason(point: bytes, version: int) -> bytes:
    return DATASET + point + version.to_bytes(8, "big")


def _row(known: Known, own: bytes) -> api.DatasetRow:
    version = known.version
    return api.DatasetRow(
        known.text, version.version, known.blob, version.files, version.size, version.made, known.owner == own
    )


def _id_of(data: bytes) -> BlobId:
    """The blob that a signed version is: it has one chunk."""
    return blob_id_of(len(data), (chunk_hash(data),))


def _checked(path: str) -> str:
    try:
        return check_path(path) if path else path
    except Malformed as error:
        raise UsageError(error.detail) from None
