"""Answers to the control socket: each message of `ioc_node.api` becomes a call of `Node`.

A `NodeError` goes back by name and line (`api.Refused`), so that the command line can say exactly what the node said.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from ioc_node import api
from ioc_node.errors import NodeError, TaskFailed
from ioc_node.metering.ledger import Checked
from ioc_node.runtime.link_handlers import Handlers, SendItem
from ioc_node.runtime.links import Link
from ioc_node.tasks.definition import TaskSpec
from ioc_node.tasks.live import LiveTask
from ioc_node.tasks.shelf import ProvidedRow
from ioc_node.tasks.workflow import WorkflowHandle
from ioc_wire.codec import Message
from ioc_wire.errors import Busy
from ioc_wire.identity import format_node_id, node_id_of
from ioc_wire.signed import Signed
from ioc_wire.tasks import OutputBlob

if TYPE_CHECKING:
    from ioc_node.node import Node

_M = TypeVar("_M", bound=Message)


class Answers:
    """The table of the control socket. Requests before `open` and after `close` are answered `Busy`."""

    def __init__(self) -> None:
        self.handlers = Handlers()
        self._node: Node | None = None
        for kind, answer in self._table().items():
            self.handlers.serve(kind, _told(answer))
        self.handlers.serve_stream(api.FollowTask, self._follow)
        self.handlers.serve_stream(api.WatchCid, self._watch)
        self.handlers.serve_stream(api.ReadBlob, self._read)

    def open(self, node: "Node") -> None:
        self._node = node

    def close(self) -> None:
        self._node = None

    @property
    def node(self) -> "Node":
        if self._node is None:
            raise Busy("the node is starting or stopping")
        return self._node

    def _table(self) -> dict[type[Message], Callable[[Any], Awaitable[Message]]]:
        return {
            api.GetStatus: self._status,
            api.GetPeers: self._peers,
            api.GetOverview: self._overview,
            api.GetRelayed: self._relayed,
            api.ResolveCid: self._resolve,
            api.FindResources: self._find,
            api.RegisterNow: self._register,
            api.AddCollector: self._add_collector,
            api.SubmitTask: self._submit,
            api.SubmitWorkflow: self._submit,
            api.ListTasks: self._tasks,
            api.ListWorkflow: self._workflow,
            api.CancelSubmitted: self._cancel,
            api.GetResult: self._result,
            api.ListReceipts: self._receipts,
            api.AddFile: self._add,
            api.GetBlob: self._get,
            api.GetTransfers: self._transfers,
            api.ListBlobs: self._list_blobs,
            api.PinBlob: self._pin,
            api.CollectGarbage: self._collect,
            api.AddDataset: self._add_dataset,
            api.ListDatasets: self._list_datasets,
            api.SendShipment: self._send_shipment,
            api.ListShipments: self._shipments,
            api.CancelShipping: self._cancel_shipment,
            api.GetBandwidth: self._bandwidth,
            api.SetBandwidth: self._set_bandwidth,
            api.ShowDataset: self._show_dataset,
            api.GetDataset: self._get_dataset,
            api.CompareDataset: self._compare_dataset,
            api.RemoveDataset: self._remove_dataset,
            api.RevokeKey: self._revoke,
            api.PublishBulletin: self._publish_bulletin,
            api.ListBulletins: self._bulletins,
            api.StopNode: self._stop,
        }

    # -- the network

    async def _status(self, message: api.GetStatus) -> Message:
        return self.node.status()

    async def _peers(self, message: api.GetPeers) -> Message:
        return api.Peers(self.node.peers())

    async def _overview(self, message: api.GetOverview) -> Message:
        return await self.node.overview()

    async def _relayed(self, message: api.GetRelayed) -> Message:
        return self.node.relayed()

    async def _resolve(self, message: api.ResolveCid) -> Message:
        return await self.node.look_up(message.cid, version_min=message.version_min)

    async def _watch(self, link: Link, message: api.WatchCid, send: SendItem) -> None:
        async with self.node.watch(message.cid, version=message.version) as changes:
            async for change in changes:
                await send(api.CidChanged(change.record, format_node_id(change.holder.node_id)))

    async def _find(self, message: api.FindResources) -> Message:
        return await self.node.find(
            message.demand,
            policy=message.policy,
            limit=message.limit,
            explain=message.explain,
            after=message.after,
            verify=message.verify,
        )

    async def _register(self, message: api.RegisterNow) -> Message:
        return api.Registered(await self.node.register())

    async def _add_collector(self, message: api.AddCollector) -> Message:
        return await self.node.add_collector(message)

    async def _revoke(self, message: api.RevokeKey) -> Message:
        told = len(self.node.links.links)
        return api.KeyRevoked(not self.node.revocations.take(message.news), told)

    async def _publish_bulletin(self, message: api.PublishBulletin) -> Message:
        return self.node.publish_bulletin(message)

    async def _bulletins(self, message: api.ListBulletins) -> Message:
        return await self.node.list_bulletins()

    # -- blobs

    async def _add(self, message: api.AddFile) -> Message:
        return await self.node.add(message.path, announce=message.announce)

    async def _get(self, message: api.GetBlob) -> Message:
        return await self.node.get(message.blob, message.path)

    async def _read(self, link: Link, message: api.ReadBlob, send: SendItem) -> None:
        try:
            async with self.node.open_blob(message.blob, start=message.start, stop=message.stop) as pieces:
                async for piece in pieces:
                    for at in range(0, len(piece), api.PIECE_BYTES_MAX):
                        await send(api.BlobPiece(bytes(piece[at : at + api.PIECE_BYTES_MAX])))
        except NodeError as error:
            await send(_refused(error))

    async def _list_blobs(self, message: api.ListBlobs) -> Message:
        return self.node.list_blobs()

    async def _pin(self, message: api.PinBlob) -> Message:
        self.node.pin(message.blob, pinned=message.pinned)
        return api.Ok()

    async def _collect(self, message: api.CollectGarbage) -> Message:
        return await self.node.collect_garbage(message.unused_seconds, dry_run=message.dry_run)

    async def _transfers(self, message: api.GetTransfers) -> Message:
        return api.Transfers(tuple(self.node.shared.transfers))

    # -- datasets

    async def _add_dataset(self, message: api.AddDataset) -> Message:
        return await self.node.datasets.add(message.name, Path(message.path), announce=message.announce)

    async def _list_datasets(self, message: api.ListDatasets) -> Message:
        return api.DatasetList(self.node.datasets.rows())

    async def _show_dataset(self, message: api.ShowDataset) -> Message:
        return await self.node.datasets.show(message.dataset, message.path, version=message.version)

    async def _get_dataset(self, message: api.GetDataset) -> Message:
        return await self.node.datasets.get(
            message.dataset,
            Path(message.into),
            path=message.path,
            version=message.version,
            replace=message.replace,
            share=message.share,
        )

    async def _compare_dataset(self, message: api.CompareDataset) -> Message:
        return await self.node.datasets.compare(
            message.dataset, Path(message.folder), path=message.path, version=message.version
        )

    async def _remove_dataset(self, message: api.RemoveDataset) -> Message:
        return api.DatasetRemoved(await self.node.datasets.remove(message.dataset, message.version))

    async def _bandwidth(self, message: api.GetBandwidth) -> Message:
        return await self.node.bandwidth()

    async def _set_bandwidth(self, message: api.SetBandwidth) -> Message:
        return await self.node.set_bandwidth(message.changes)

    async def _send_shipment(self, message: api.SendShipment) -> Message:
        return api.Shipments((await self.node.express.send(message),))

    async def _shipments(self, message: api.ListShipments) -> Message:
        express = self.node.express
        return api.Shipments((express.show(message.shipment),) if message.shipment else express.list())

    async def _cancel_shipment(self, message: api.CancelShipping) -> Message:
        return api.Shipments((await self.node.express.cancel(message.shipment),))

    # -- tasks

    async def _submit(self, message: api.SubmitTask | api.SubmitWorkflow) -> Message:
        spec = TaskSpec.of(message.definition, folder=Path(message.folder), source=message.definition.name)
        if spec.is_workflow:
            return api.Submitted((await self.node.submit_workflow(spec)).id)
        return api.Submitted((await self.node.submit(spec)).id)

    async def _tasks(self, message: api.ListTasks) -> Message:
        node = self.node
        rows = [_flow_row(flow) for flow in node.workflows.latest(api.ROWS_MAX)]
        rows += [_task_row(live) for live in node.consumer.tasks(api.ROWS_MAX)]
        if node.provider is not None:
            rows += [_provided_row(row) for row in node.provider.provided.rows(api.ROWS_MAX)]
        rows.sort(key=lambda row: row.submitted_ms, reverse=True)
        return api.Tasks(tuple(rows[: api.ROWS_MAX]))

    async def _workflow(self, message: api.ListWorkflow) -> Message:
        handles = self.node.workflows.handle(message.workflow).tasks()
        return api.Tasks(tuple(_task_row(handle.live) for handle in handles.values() if handle is not None))

    async def _follow(self, link: Link, message: api.FollowTask, send: SendItem) -> None:
        node = self.node
        try:
            if node.workflows.knows(message.task):
                async for told in node.workflows.handle(message.task).events(follow=message.follow):
                    story = told.story
                    await send(api.TaskNews(told.task, told.name, story.attempt, story.place, story.event))
                return
            handle = node.consumer.handle(message.task)
            async for story in handle.events(follow=message.follow):
                await send(api.TaskNews(handle.id, handle.name, story.attempt, story.place, story.event))
        except NodeError as error:
            await send(_refused(error))

    async def _cancel(self, message: api.CancelSubmitted) -> Message:
        if self.node.workflows.knows(message.task):
            self.node.workflows.cancel(message.task)
        else:
            self.node.consumer.cancel(message.task)
        return api.Ok()

    async def _result(self, message: api.GetResult) -> Message:
        node = self.node
        if node.workflows.knows(message.task):
            flow = node.workflows.handle(message.task)
            await flow.wait()
            if flow.state != "COMPLETE":
                return api.Result(message.task, flow.state, flow.text, (), (), ())
            result = await flow.result()
            named = [(f"{each.name}/{each.output.path}", each.output) for each in result.outputs]
            files = await self._write(message.folder, named)
            outputs = tuple(output for _, output in named)
            return api.Result(message.task, "COMPLETE", flow.text, outputs, files, result.receipts)
        handle = node.consumer.handle(message.task)
        ending = await handle.wait()
        if not ending.succeeded:
            receipt = node.consumer.receipt_of(handle.live)
            return api.Result(message.task, ending.state, ending.text, (), (), _those(receipt))
        done = await handle.result()
        files = await self._write(message.folder, [(output.path, output) for output in done.outputs])
        return api.Result(message.task, done.state, ending.text, done.outputs, files, _those(done.receipt))

    async def _write(self, folder: str, outputs: list[tuple[str, OutputBlob]]) -> tuple[str, ...]:
        if not folder:
            return ()
        files = []
        for name, output in outputs:
            target = Path(folder) / name
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                await self.node.bulk.export(output.blob, target)
            except OSError as error:
                raise TaskFailed(f"cannot write {target}: {error.strerror or error}") from None
            files.append(str(target))
        return tuple(files)

    # -- receipts, the end

    async def _receipts(self, message: api.ListReceipts) -> Message:
        ledger, own = self.node.ledger, self.node.identity.public_key
        if message.verify:
            bad: list[Checked] = []
            good = deque[Checked](maxlen=api.ROWS_MAX)
            for number, each in enumerate(ledger.verify_all()):
                (good if each.error is None else bad).append(each)
                if number % 16 == 0:
                    await trio.lowlevel.checkpoint()
            checked = [*bad, *reversed(good)]  # a bad one is never cut off by the bound
        else:
            checked = ledger.latest(api.ROWS_MAX)
        rows = [_receipt_row(each, own) for each in checked[: api.ROWS_MAX]]
        return api.Receipts(tuple(rows), ledger.totals().receipts)

    async def _stop(self, message: api.StopNode) -> Message:
        self.node.stop_wanted.set()
        return api.Ok()


def _told(answer: Callable[[Any], Awaitable[Message]]) -> Callable[[Link, Any], Awaitable[Message]]:
    async def told(link: Link, message: Any) -> Message:
        try:
            return await answer(message)
        except NodeError as error:
            return _refused(error)

    return told


def _refused(error: NodeError) -> api.Refused:
    return api.Refused(type(error).__name__, str(error))


def _those(receipt: Signed | None) -> tuple[Signed, ...]:
    return () if receipt is None else (receipt,)


def _receipt_row(checked: Checked, own: bytes) -> api.ReceiptRow:
    if checked.usage is None:
        return api.ReceiptRow(checked.id, None, "", str(checked.error))
    side = "provider" if checked.usage.provider == own else "consumer"
    return api.ReceiptRow(checked.id, checked.usage, side, "")


def _task_row(live: LiveTask) -> api.TaskRow:
    return api.TaskRow(
        task=live.id,
        name=live.name,
        side="consumer",
        state=live.state,
        attempt=live.attempt,
        place=live.place,
        peer="",
        progress_milli=live.progress_milli,
        reason=live.text,
        submitted_ms=live.row.submitted_ms,
        ended_ms=live.ended_ms or 0,
        workflow=live.row.workflow or b"",
    )


def _flow_row(flow: WorkflowHandle) -> api.TaskRow:
    tasks = flow.tasks().values()
    done = sum(handle is not None and handle.state == "COMPLETE" for handle in tasks)
    return api.TaskRow(
        task=flow.id,
        name=flow.name,
        side="workflow",
        state=flow.state,
        attempt=0,
        place="",
        peer="",
        progress_milli=1000 * done // max(1, len(tasks)),
        reason=flow.text,
        submitted_ms=flow.submitted_ms,
        ended_ms=0,
    )


def _provided_row(row: ProvidedRow) -> api.TaskRow:
    return api.TaskRow(
        task=row.task,
        name=row.name,
        side="provider",
        state=row.state,
        attempt=row.attempt,
        place=row.cid,
        peer=format_node_id(node_id_of(row.owner)),
        progress_milli=1000 if row.state == "COMPLETE" else 0,
        reason="",
        submitted_ms=row.started_ms,
        ended_ms=row.ended_ms or 0,
    )
