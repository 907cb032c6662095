"""What a program may ask of a running node: the messages of the local control socket.

They are the same calls as the methods of `ioc_node.node.Node`. They never travel between nodes, so they are no part
of `wire/SPEC.md`; both ends are of one version. Times in seconds since 1970 unless the name says otherwise.
"""

from typing import Annotated, Final

import msgspec

from ioc_node import data_api
from ioc_node.data_api import *  # noqa: F403  # one set of messages, in two files
from ioc_node.errors import error_named
from ioc_wire import limits
from ioc_wire.authority import RevocationNews
from ioc_wire.bulletins import BulletinNews, Level
from ioc_wire.codec import Message
from ioc_wire.errors import error_of
from ioc_wire.links import UnionCodec
from ioc_wire.market import Cursor, Demand, OffersFound
from ioc_wire.metering import UsageRecord
from ioc_wire.signed import Signed
from ioc_wire.tasks import OutputBlob, State, TaskDefinition, TaskEvent, WorkflowDefinition

ROWS_MAX: Final = 4096
"""Rows in one answer; newest first where there are more."""


class Ok(Message, frozen=True, tag=100):
    """Plain success."""


class GetStatus(Message, frozen=True, tag=101):
    """Answer: `NodeStatus`."""


class Warned(Message, frozen=True):
    """Something that an operator should know, such as a runtime that is not offered, and why."""

    about: str
    text: str


class NodeStatus(Message, frozen=True, tag=102):
    """One node at a glance. `joined` is when it first reached a peer, 0 while it has not; `bootstrap` says in words
    how joining stands; `home_core` is the core node that a provider publishes to."""

    version: str
    node_id: str
    key: bytes
    role: str
    network: str
    host: str
    port: int
    pid: int
    started: float
    joined: float
    bootstrap: str
    servers_known: int
    links: int
    home_core: str
    identifiers: int
    catalogue_providers: int
    catalogue_records: int
    catalogue_digest: bytes
    records_stored: int
    runtimes: tuple[str, ...]
    tasks_running: int
    receipts: int
    blobs: int
    blob_bytes: int
    bytes_in: int
    bytes_out: int
    warnings: tuple[Warned, ...]
    reached: str = ""
    """How others reach a node that they cannot dial; empty where they can."""
    offloads: tuple[str, ...] = ()
    """Each offload, how it is, and how often it failed."""
    bulk_pid: int = 0
    """The process that moves bulk data now; 0 where none is needed, or the node does so itself."""


class GetPeers(Message, frozen=True, tag=103):
    """Answer: `Peers`."""


class PeerRow(Message, frozen=True):
    """A peer as this node sees it. `rtt_ms` is -1 where it was not measured."""

    node_id: str
    roles: tuple[str, ...]
    host: str
    port: int
    linked: bool
    in_table: bool
    rtt_ms: float


class Peers(Message, frozen=True, tag=104):
    rows: tuple[PeerRow, ...]


class ResolveCid(Message, frozen=True, tag=105):
    """Answer: `Resolved` or `Unresolved`."""

    cid: str
    version_min: int = 0


class Hop(Message, frozen=True):
    """One question of a lookup: whom, in which round (0: a core node, over its link), how long it took, what came
    back, and how often it had to be sent."""

    node_id: str
    host: str
    port: int
    round: int
    rtt_ms: float
    answer: str
    tries: int = 1


class Resolved(Message, frozen=True, tag=106):
    """The signed record, and how it was found. `source` is `dht`, `local catalogue`, or `core node` with its name.
    `ending` says why the search in the DHT ended: `stopped` (enough valid answers), `completed`, `starved`,
    `cancelled` (a core node was first), or empty where there was none. `hedged_ms` is after how long others were asked
    because the first were slow, -1 where that was not needed."""

    record: Signed
    holder: str
    source: str
    hops: int
    asked: int
    elapsed_ms: float
    trace: tuple[Hop, ...]
    ending: str = ""
    hedged_ms: float = -1.0


class Unresolved(Message, frozen=True, tag=140):
    """Nobody gave a valid record. `fault()` is the error, its `text` with each one's reason; `code` is that of a
    `WireError`, 0 for a local error named `error`."""

    code: int
    error: str
    text: str
    elapsed_ms: float
    trace: tuple[Hop, ...]
    ending: str
    hedged_ms: float

    def fault(self) -> Exception:
        """The error to raise."""
        return error_of(self.code, self.text) if self.code else error_named(self.error, self.text)


class WatchCid(Message, frozen=True, tag=141):
    """Stream of `CidChanged` until it is cancelled: what is newer than `version` now, then each change."""

    cid: str
    version: int = 0


class CidChanged(Message, frozen=True, tag=142):
    """A watched identifier has this record, or this tombstone. `holder` told it."""

    record: Signed
    holder: str


class FindResources(Message, frozen=True, tag=107):
    """Answer: `Found`. `explain` and `after` as in `FindOffers`; to `verify`, two core nodes are asked and compared."""

    demand: Demand
    policy: str = "cost"
    limit: Annotated[int, msgspec.Meta(ge=1, le=limits.OFFERS_MAX)] = 32
    explain: bool = False
    after: Cursor | None = None
    verify: bool = False


class Omission(Message, frozen=True):
    """`core` did not offer `cid`, though it holds the same heads as another core node that does."""

    core: str
    cid: str


class Verdict(Message, frozen=True):
    """What comparing the answers of two core nodes came to. Without `conclusive` they never held the same heads."""

    cores: tuple[str, str]
    conclusive: bool
    comparisons: int
    omissions: tuple[Omission, ...] = ()


class Probes(Message, frozen=True):
    """What it took to know who is near. Of `matching` providers that can serve the demand, `far` were ruled out by
    estimates; `pinged` were pinged for this query, and `known` had been a moment before. `matching` is 0 where nobody
    asked who is near."""

    pinged: int
    known: int = 0
    matching: int = 0
    far: int = 0


class Found(Message, frozen=True, tag=108):
    """Ranked offers. `routes[i]` says in words how `offers[i]` would be reached: RTT and transport."""

    found: OffersFound
    routes: tuple[str, ...]
    answered_by: str
    elapsed_ms: float
    verdict: Verdict | None = None
    probes: Probes = Probes(0)


class SubmitTask(Message, frozen=True, tag=109):
    """`file:` URLs are absolute paths, read by the node. Answer: `Submitted`."""

    definition: TaskDefinition
    folder: str


class SubmitWorkflow(Message, frozen=True, tag=110):
    """As `SubmitTask`, for a DAG."""

    definition: WorkflowDefinition
    folder: str


class Submitted(Message, frozen=True, tag=111):
    """`task` is a task ID, or a workflow's ID."""

    task: bytes


class ListTasks(Message, frozen=True, tag=112):
    """Answer: `Tasks`: this node's own tasks as consumer, and those it runs for others as provider."""


class TaskRow(Message, frozen=True):
    """One task. `side` is `consumer` or `provider`; `place` the identifier it was leased at; `peer` the other side."""

    task: bytes
    name: str
    side: str
    state: State
    attempt: int
    place: str
    peer: str
    progress_milli: int
    reason: str
    submitted_ms: int
    ended_ms: int
    workflow: bytes = b""


class Tasks(Message, frozen=True, tag=113):
    rows: tuple[TaskRow, ...]


class FollowTask(Message, frozen=True, tag=114):
    """Stream of `TaskNews`, from the first event on, until the task or workflow has ended.

    Without `follow` the stream ends after what is known now.
    """

    task: bytes
    follow: bool = True


class TaskNews(Message, frozen=True, tag=115):
    """An event of one task; in a workflow `name` tells which."""

    task: bytes
    name: str
    attempt: int
    place: str
    event: TaskEvent


class CancelSubmitted(Message, frozen=True, tag=116):
    """Answer: `Ok`."""

    task: bytes


class GetResult(Message, frozen=True, tag=117):
    """Wait for the end. Outputs are brought here, and with `folder` also written into it. Answer: `Result`."""

    task: bytes
    folder: str = ""


class Result(Message, frozen=True, tag=118):
    """How a task or workflow ended. `files` are the paths that were written; a workflow has several receipts."""

    task: bytes
    state: State
    reason: str
    outputs: tuple[OutputBlob, ...]
    files: tuple[str, ...]
    receipts: tuple[Signed, ...]


class ListReceipts(Message, frozen=True, tag=119):
    """Answer: `Receipts`: the newest, or with `verify` all that there are, up to the bound. Each is checked."""

    verify: bool = False


class ReceiptRow(Message, frozen=True):
    """`fault` is empty for a receipt whose two signatures hold; of one that is no good `usage` is not shown."""

    receipt: bytes
    usage: UsageRecord | None
    side: str
    fault: str


class Receipts(Message, frozen=True, tag=120):
    rows: tuple[ReceiptRow, ...]
    total: int


class RegisterNow(Message, frozen=True, tag=127):
    """Register all own identifiers again at once. Answer: `Registered`."""


class RegisteredRow(Message, frozen=True):
    """`stored` replica holders took it; each refusal is one line."""

    cid: str
    version: int
    stored: int
    refused: tuple[str, ...]


class Registered(Message, frozen=True, tag=128):
    rows: tuple[RegisteredRow, ...]


class StopNode(Message, frozen=True, tag=129):
    """Shut down in order. Answer: `Ok`, before the end."""


class ListWorkflow(Message, frozen=True, tag=130):
    """The tasks of one workflow. Answer: `Tasks`."""

    workflow: bytes


class Refused(Message, frozen=True, tag=131):
    """Instead of any answer: a local error by the name of its class in `ioc_node.errors`, and its one line."""

    error: str
    text: str


class RevokeKey(Message, frozen=True, tag=150):
    """Take in a signed revocation and tell everybody. Answer: `KeyRevoked`, or the fault."""

    news: RevocationNews


class KeyRevoked(Message, frozen=True, tag=151):
    """`known`: it was remembered here already. `told` is how many links it went out on."""

    known: bool
    told: int


class GetOverview(Message, frozen=True, tag=160):
    """What a core node holds, per node prefix. Answer: `Overview`, or `UsageError` on other nodes."""


class OverviewRow(Message, frozen=True):
    """All that lies under one node prefix (`cn.r3301`). `connected` providers told their status of late; of their
    hosts, `hosts_told`, `cores_free_milli` of `cores_told_milli` are free, and `accelerators_free_milli` of
    `accelerators_told_milli`. `peak_gops`: billions of operations per second of all
    accelerators together, by precision. `head_issued`: of the newest head, seconds since 1970."""

    node: str
    providers: int
    connected: int
    identifiers: int
    hosts: int
    cores_milli: int
    cores_told_milli: int
    cores_free_milli: int
    accelerators: int
    peak_gops: tuple[tuple[str, int], ...]
    head_issued: int
    hosts_told: int = 0
    accelerators_told_milli: int = 0
    accelerators_free_milli: int = 0


class GetRelayed(Message, frozen=True, tag=164):
    """What a core node passed on for peers that cannot reach each other. Answer: `Relayed`, or `UsageError` on other
    nodes."""


class RelayedRow(Message, frozen=True):
    """For one pair of peers on one day (UTC): bytes both ways."""

    day: str
    caller: str
    target: str
    circuit_bytes: int
    datagram_bytes: int


class Relayed(Message, frozen=True, tag=165):
    """The newest days first. `circuits` and `sessions` are open now; datagrams go over UDP `port`."""

    circuits: int
    sessions: int
    port: int
    rows: tuple[RelayedRow, ...]


class Overview(Message, frozen=True, tag=161):
    """`interest`: the prefixes that the node replicates; none: everything. `made`: when, seconds since 1970."""

    rows: tuple[OverviewRow, ...]
    interest: tuple[str, ...]
    made: float


class AddCollector(Message, frozen=True, tag=162):
    """Look for hosts with one more collector from now on; `options` is its TOML table as JSON. Answer: `CollectorAdded`
    after its first look, or the fault."""

    name: str
    interval_seconds: float
    options: bytes


class CollectorAdded(Message, frozen=True, tag=163):
    """What the first look came to. `refused`: lines with their reasons, the first few."""

    added: int
    changed: int
    removed: int
    unchanged: int
    refused: tuple[str, ...]


class PublishBulletin(Message, frozen=True, tag=170):
    """Sign a bulletin with this core node's key and tell it to everybody. Answer: `Bulletins` with that one, or the
    fault."""

    title: str
    text: str
    about: str
    level: Level
    seconds: int


class ListBulletins(Message, frozen=True, tag=171):
    """What core nodes announce now. Answer: `Bulletins`, or `PeerUnreachable`."""


class Bulletins(Message, frozen=True, tag=172):
    """Verified bulletins, the newest first."""

    news: tuple[BulletinNews, ...]


CONTROL_CODEC: Final = UnionCodec(
    data_api.DataMessage
    | Ok
    | PublishBulletin
    | ListBulletins
    | Bulletins
    | AddCollector
    | CollectorAdded
    | GetStatus
    | NodeStatus
    | GetPeers
    | Peers
    | ResolveCid
    | Resolved
    | Unresolved
    | WatchCid
    | CidChanged
    | FindResources
    | Found
    | SubmitTask
    | SubmitWorkflow
    | Submitted
    | ListTasks
    | Tasks
    | FollowTask
    | TaskNews
    | CancelSubmitted
    | GetResult
    | Result
    | ListReceipts
    | Receipts
    | RegisterNow
    | Registered
    | StopNode
    | ListWorkflow
    | Refused
    | RevokeKey
    | KeyRevoked
    | GetRelayed
    | Relayed
    | GetOverview
    | Overview
)
