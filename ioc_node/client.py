"""A running node, asked over the control socket in its home folder: typed calls for the command line and the testnet.

Faults of the node and of its peers arrive as the `WireError` or `NodeError` that they are; a node that is not running
is `PeerUnreachable`. No timeouts: the caller's cancel scopes end a call, and cancel it at the node too.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from ioc_node import api
from ioc_node.errors import error_named
from ioc_node.runtime.control import open_control
from ioc_node.runtime.link_mux import Link
from ioc_node.tasks.definition import TaskSpec
from ioc_wire.authority import RevocationNews
from ioc_wire.codec import Message
from ioc_wire.errors import Malformed
from ioc_wire.market import Cursor, Demand
from ioc_wire.tasks import TaskDefinition

M = TypeVar("M", bound=Message)


class RemoteNode:
    """The calls of `ioc_node.api`, one method each. Made by `open_remote`."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def _ask(self, message: Message, expected: type[M]) -> M:
        return _expect(await self._link.request(message), expected)

    async def status(self) -> api.NodeStatus:
        return await self._ask(api.GetStatus(), api.NodeStatus)

    async def peers(self) -> tuple[api.PeerRow, ...]:
        return (await self._ask(api.GetPeers(), api.Peers)).rows

    async def overview(self) -> api.Overview:
        """What the core node holds, per node prefix. Raises `UsageError` for a node that is none."""
        return await self._ask(api.GetOverview(), api.Overview)

    async def relayed(self) -> api.Relayed:
        """What the core node passed on. Raises `UsageError` for a node that passes nothing on."""
        return await self._ask(api.GetRelayed(), api.Relayed)

    async def resolve(self, cid: str, *, version_min: int = 0) -> api.Resolved:
        """The signed record of an identifier and how it was found. Raises as `Node.resolve`."""
        found = await self.look_up(cid, version_min=version_min)
        if isinstance(found, api.Unresolved):
            raise found.fault()
        return found

    async def look_up(self, cid: str, *, version_min: int = 0) -> api.Resolved | api.Unresolved:
        """As `resolve`, with the trace of the search also where it fails. Raises `BadIdentifier`."""
        answer = await self._link.request(api.ResolveCid(cid, version_min))
        return answer if isinstance(answer, api.Unresolved) else _expect(answer, api.Resolved)

    @asynccontextmanager
    async def watch(self, cid: str, *, version: int = 0) -> AsyncIterator[AsyncIterator[api.CidChanged]]:
        """What an identifier's record is, and becomes, from versions above `version` on."""
        async with self._link.open_stream(api.WatchCid(cid, version)) as items:
            yield _changes(items)

    async def find(
        self,
        demand: Demand,
        *,
        policy: str = "cost",
        limit: int = 32,
        explain: bool = False,
        after: Cursor | None = None,
        verify: bool = False,
    ) -> api.Found:
        """Ranked offers for a demand; none is an answer too, whose `removals` say why. See `api.FindResources`."""
        return await self._ask(api.FindResources(demand, policy, limit, explain, after, verify), api.Found)

    async def register(self) -> tuple[api.RegisteredRow, ...]:
        return (await self._ask(api.RegisterNow(), api.Registered)).rows

    async def add_collector(self, collector: api.AddCollector) -> api.CollectorAdded:
        """Have the node look for hosts with one more collector. Raises `UsageError`, `ConfigError` and the like."""
        return await self._ask(collector, api.CollectorAdded)

    async def publish_bulletin(self, message: api.PublishBulletin) -> api.Bulletins:
        """Announce something to everybody; the node must be a core node. Raises `UsageError`, `RequestRefused`."""
        return await self._ask(message, api.Bulletins)

    async def bulletins(self) -> api.Bulletins:
        """What core nodes announce now. Raises `PeerUnreachable`."""
        return await self._ask(api.ListBulletins(), api.Bulletins)

    async def revoke(self, news: RevocationNews) -> api.KeyRevoked:
        """Have the node take in a revocation and tell everybody. Raises `NotEntitled` and the like."""
        return await self._ask(api.RevokeKey(news), api.KeyRevoked)

    async def submit(self, spec: TaskSpec) -> bytes:
        """Hand in a task or workflow; returns its ID, 32 bytes. Raises `Unplaceable`, `BadTask`."""
        folder = _absolute(spec.folder)
        message: api.SubmitTask | api.SubmitWorkflow
        if isinstance(spec.definition, TaskDefinition):
            message = api.SubmitTask(spec.definition, folder)
        else:
            message = api.SubmitWorkflow(spec.definition, folder)
        return (await self._ask(message, api.Submitted)).task

    async def tasks(self) -> tuple[api.TaskRow, ...]:
        return (await self._ask(api.ListTasks(), api.Tasks)).rows

    async def workflow(self, workflow: bytes) -> tuple[api.TaskRow, ...]:
        """The tasks of one workflow."""
        return (await self._ask(api.ListWorkflow(workflow), api.Tasks)).rows

    @asynccontextmanager
    async def follow(self, task: bytes, *, follow: bool = True) -> AsyncIterator[AsyncIterator[api.TaskNews]]:
        """Open the story of a task or workflow from its first event; with `follow` it lasts until the end."""
        async with self._link.open_stream(api.FollowTask(task, follow)) as items:
            yield _news(items)

    async def cancel(self, task: bytes) -> None:
        await self._ask(api.CancelSubmitted(task), api.Ok)

    async def result(self, task: bytes, *, folder: Path | None = None) -> api.Result:
        """Wait for the end; outputs are brought to the node, and written into `folder` where one is given."""
        target = _absolute(folder) if folder is not None else ""
        return await self._ask(api.GetResult(task, target), api.Result)

    async def receipts(self, *, verify: bool = False) -> api.Receipts:
        return await self._ask(api.ListReceipts(verify), api.Receipts)

    async def add(self, path: Path, *, announce: bool = True) -> api.Added:
        """Keep a copy of a local file as a blob. Raises `UsageError`'s line for a file that cannot be read."""
        return await self._ask(api.AddFile(_absolute(path), announce), api.Added)

    async def get(self, blob: bytes, path: Path) -> api.Got:
        """Fetch a blob from whoever holds it and write it to `path`. Raises `NotFound`, `BlobCorrupt`."""
        return await self._ask(api.GetBlob(blob, _absolute(path)), api.Got)

    @asynccontextmanager
    async def open_blob(
        self, blob: bytes, *, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Iterate over bytes `start` … `stop - 1` of a blob while they arrive. Raises as `Node.open_blob`."""
        async with self._link.open_stream(api.ReadBlob(blob, start, stop)) as items:
            yield _pieces(items)

    async def blobs(self) -> api.Blobs:
        """What is here, why it stays, and the room it takes."""
        return await self._ask(api.ListBlobs(), api.Blobs)

    async def pin(self, blob: bytes, *, pinned: bool = True) -> None:
        """Hold a blob that is here, or let it go. Raises `NotFound`, `UsageError`."""
        await self._ask(api.PinBlob(blob, pinned), api.Ok)

    async def collect_garbage(self, unused_seconds: float, *, dry_run: bool = False) -> api.Collected:
        """Remove copies that nothing holds, or count them."""
        return await self._ask(api.CollectGarbage(unused_seconds, dry_run), api.Collected)

    async def add_dataset(self, name: str, folder: Path, *, announce: bool = True) -> api.DatasetAdded:
        """Keep a local folder as the next version of a dataset of the node's owner."""
        return await self._ask(api.AddDataset(name, _absolute(folder), announce), api.DatasetAdded)

    async def datasets(self) -> tuple[api.DatasetRow, ...]:
        """The versions of datasets that are held here."""
        return (await self._ask(api.ListDatasets(), api.DatasetList)).rows

    async def show_dataset(
        self, dataset: str, path: str = "", version: int | None = None
    ) -> api.DatasetShown:
        """A dataset and its files at or below `path`. Raises `NotFound`, `RequestRefused` and the like."""
        return await self._ask(api.ShowDataset(dataset, path, version), api.DatasetShown)

    async def get_dataset(
        self,
        dataset: str,
        into: Path,
        *,
        path: str = "",
        version: int | None = None,
        replace: bool = False,
        share: bool = False,
    ) -> api.DatasetGot:
        """Write the files at or below `path` into a folder. Raises `UsageError` where others are in the way."""
        message = api.GetDataset(dataset, _absolute(into), path, version, replace, share)
        return await self._ask(message, api.DatasetGot)

    async def compare_dataset(
        self, dataset: str, folder: Path, *, path: str = "", version: int | None = None
    ) -> api.DatasetCompared:
        """How a folder differs from a dataset."""
        message = api.CompareDataset(dataset, _absolute(folder), path, version)
        return await self._ask(message, api.DatasetCompared)

    async def remove_dataset(self, dataset: str, version: int | None = None) -> int:
        """Hold a dataset, or one version of it, no longer; how many versions were held."""
        return (await self._ask(api.RemoveDataset(dataset, version), api.DatasetRemoved)).versions

    async def ship(self, message: api.SendShipment) -> api.ShipmentRow:
        """Order a shipment. Raises `UsageError`, `PeerUnreachable`, `RequestRefused`."""
        return (await self._ask(message, api.Shipments)).rows[0]

    async def shipments(self) -> tuple[api.ShipmentRow, ...]:
        """What this node sends and takes, the newest first."""
        return (await self._ask(api.ListShipments(), api.Shipments)).rows

    async def shipment(self, shipment: bytes) -> api.ShipmentRow:
        """One of them. Raises `UsageError`."""
        return (await self._ask(api.ListShipments(shipment), api.Shipments)).rows[0]

    async def cancel_shipment(self, shipment: bytes) -> api.ShipmentRow:
        """Stop one. Raises `UsageError` where it is over."""
        return (await self._ask(api.CancelShipping(shipment), api.Shipments)).rows[0]

    async def bandwidth(self) -> api.BandwidthTold:
        """Ceilings, weights, and who uses what now."""
        return await self._ask(api.GetBandwidth(), api.BandwidthTold)

    async def set_bandwidth(self, changes: Sequence[api.BandwidthChange]) -> api.BandwidthTold:
        """Change them until the node ends. Raises `UsageError`."""
        return await self._ask(api.SetBandwidth(tuple(changes)), api.BandwidthTold)

    async def transfers(self) -> tuple[api.TransferRow, ...]:
        return (await self._ask(api.GetTransfers(), api.Transfers)).rows

    async def stop(self) -> None:
        await self._ask(api.StopNode(), api.Ok)


@asynccontextmanager
async def open_remote(home: Path) -> AsyncIterator[RemoteNode]:
    """Connect to the node that runs from `home`. Raises `PeerUnreachable` where none does."""
    async with open_control(home, api.CONTROL_CODEC) as link:
        yield RemoteNode(link)


def _expect(answer: Message, expected: type[M]) -> M:
    if isinstance(answer, api.Refused):
        raise error_named(answer.error, answer.text)
    if not isinstance(answer, expected):
        raise Malformed(f"the node answered {type(answer).__name__} instead of {expected.__name__}")
    return answer


async def _news(items: AsyncIterator[Message]) -> AsyncIterator[api.TaskNews]:
    async for item in items:
        yield _expect(item, api.TaskNews)


async def _changes(items: AsyncIterator[Message]) -> AsyncIterator[api.CidChanged]:
    async for item in items:
        yield _expect(item, api.CidChanged)


async def _pieces(items: AsyncIterator[Message]) -> AsyncIterator[bytes]:
    async for item in items:
        yield _expect(item, api.BlobPiece).data


def _absolute(path: Path) -> str:
    """The node has another working folder."""
    return str(path.absolute())
