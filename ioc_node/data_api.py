"""What a program may ask of a running node about blobs and datasets; part of `ioc_node.api`."""

from typing import Annotated, Final, Literal

import msgspec

from ioc_node.core.bandwidth import Traffic
from ioc_wire.bulk import Ticket
from ioc_wire.codec import Message, UInt
from ioc_wire.express import ORDER_SECONDS_MAX


class AddFile(Message, frozen=True, tag=121):
    """Keep a copy of a local file as a blob and announce it. Answer: `Added`."""

    path: str
    announce: bool = True


class Added(Message, frozen=True, tag=122):
    blob: bytes
    size: int
    announced_to: int
    elapsed_ms: float


class GetBlob(Message, frozen=True, tag=123):
    """Find the holders of a blob, fetch it, and write it to `path`. Answer: `Got`."""

    blob: bytes
    path: str
    ticket: Ticket | None = None


class Got(Message, frozen=True, tag=124):
    """`transport` is `quic/qh3`, `quic/aioquic`, `shm` or `local`; `reason` says why it was chosen."""

    blob: bytes
    size: int
    bytes_moved: int
    seconds: float
    transport: str
    reason: str
    holder: str


class GetTransfers(Message, frozen=True, tag=125):
    """Answer: `Transfers`: what moved lately, newest first."""


class TransferRow(Message, frozen=True):
    """One blob that this node fetched."""

    blob: bytes
    size: int
    bytes_moved: int
    seconds: float
    transport: str
    reason: str
    holder: str
    ended: float


class Transfers(Message, frozen=True, tag=126):
    rows: tuple[TransferRow, ...]


class ReadBlob(Message, frozen=True, tag=180):
    """Stream of `BlobPiece`: bytes `start` … `stop - 1` of a blob, in order, verified, while they arrive. Nothing is
    kept on the node. A local fault ends it with `Refused`."""

    blob: bytes
    start: int = 0
    stop: int | None = None


class BlobPiece(Message, frozen=True, tag=181):
    """Consecutive bytes, at most `PIECE_BYTES_MAX`."""

    data: bytes


PIECE_BYTES_MAX: Final = 512 << 10


class ListBlobs(Message, frozen=True, tag=182):
    """Answer: `Blobs`."""


class BlobRow(Message, frozen=True):
    """One blob that is here. `held`: why it stays (`pinned`, `dataset`, `task`, `task input`); empty for a copy that
    goes when room is needed. `used`: when it was last, seconds since 1970."""

    blob: bytes
    size: int
    held: tuple[str, ...]
    shared: bool
    used: float


class Blobs(Message, frozen=True, tag=183):
    """The blobs used last, and how much room all of them take of what there is."""

    rows: tuple[BlobRow, ...]
    total: int
    bytes_total: int
    bytes_max: int


class PinBlob(Message, frozen=True, tag=184):
    """Hold a blob until it is let go (`pinned`), or let it go. Answer: `Ok`."""

    blob: bytes
    pinned: bool


class CollectGarbage(Message, frozen=True, tag=185):
    """Remove copies that nothing holds and nobody used for so long; with `dry_run` only count them. Answer:
    `Collected`."""

    unused_seconds: float
    dry_run: bool = False


class Collected(Message, frozen=True, tag=186):
    blobs: int
    bytes: int


class AddDataset(Message, frozen=True, tag=190):
    """Keep a local folder as the next version of this node's dataset `name`. Answer: `DatasetAdded`."""

    name: str
    path: str
    announce: bool = True


class DatasetRow(Message, frozen=True):
    """One version. `dataset` is `n…/name`, `blob` names this version for ever, `own` says that this node signs it."""

    dataset: str
    version: int
    blob: bytes
    files: int
    size: int
    made: int
    own: bool


class DatasetAdded(Message, frozen=True, tag=191):
    """`new` is false where nothing had changed and the version that there was stays."""

    row: DatasetRow
    new: bool
    announced_to: int
    seconds: float


class ListDatasets(Message, frozen=True, tag=192):
    """Answer: `DatasetList`: the versions held here."""


class DatasetList(Message, frozen=True, tag=193):
    rows: tuple[DatasetRow, ...]


class ShowDataset(Message, frozen=True, tag=194):
    """Find a dataset by `n…/name`, by the name of an own one, or by the blob of a version, and list the files at or
    below `path`. Answer: `DatasetShown`."""

    dataset: str
    path: str = ""
    version: int | None = None


class FileRow(Message, frozen=True):
    """One file of a dataset."""

    path: str
    blob: bytes
    size: int
    executable: bool


class DatasetShown(Message, frozen=True, tag=195):
    """`rows` are the first files of `matching`; `holders` have this version."""

    row: DatasetRow
    holders: tuple[str, ...]
    matching: int
    rows: tuple[FileRow, ...]


class GetDataset(Message, frozen=True, tag=196):
    """Write the files at or below `path` into the local folder `into`. Answer: `DatasetGot`."""

    dataset: str
    into: str
    path: str = ""
    version: int | None = None
    replace: bool = False
    share: bool = False


class DatasetGot(Message, frozen=True, tag=197):
    """Files that were `written`, of `size` bytes, and those that were there already."""

    row: DatasetRow
    written: int
    same: int
    size: int
    bytes_moved: int
    seconds: float


class CompareDataset(Message, frozen=True, tag=198):
    """Compare a local folder with the files at or below `path`. Answer: `DatasetCompared`."""

    dataset: str
    folder: str
    path: str = ""
    version: int | None = None


class DatasetCompared(Message, frozen=True, tag=199):
    """The first paths of each kind, and how many differences there are in all."""

    row: DatasetRow
    same: int
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    differences: int


class RemoveDataset(Message, frozen=True, tag=200):
    """Hold a dataset, or one version, no longer. Answer: `DatasetRemoved`."""

    dataset: str
    version: int | None = None


class DatasetRemoved(Message, frozen=True, tag=201):
    versions: int


class GetBandwidth(Message, frozen=True, tag=210):
    """Answer: `BandwidthTold`."""


class BandwidthChange(Message, frozen=True):
    """`name` is empty for the total, `each-peer`, a class of traffic, or a node ID; of `weight` only a class. A ceiling
    in MB/s (10^6 bytes); None takes it away."""

    what: Literal["sending", "receiving", "weight"]
    name: str
    value: float | None


class SetBandwidth(Message, frozen=True, tag=211):
    """Change ceilings and weights at once, until the node ends. Answer: `BandwidthTold`, or `UsageError` and nothing
    is changed."""

    changes: tuple[BandwidthChange, ...]


class BandwidthUse(Message, frozen=True):
    """What one peer moves in one class: MB/s now, bytes since the start, transfers that are open, requests that wait
    for a ceiling."""

    node_id: str
    traffic: Traffic
    mb_s: float
    bytes_moved: int
    transfers: int
    waiting: int


class DirectionTold(Message, frozen=True):
    """Ceilings in MB/s, as in config.toml, and who uses them."""

    mb_s: float | None
    each_peer_mb_s: float | None
    classes_mb_s: dict[Traffic, float]
    peers_mb_s: dict[str, float]
    uses: tuple[BandwidthUse, ...]


class BandwidthTold(Message, frozen=True, tag=212):
    sending: DirectionTold
    receiving: DirectionTold
    weights: dict[Traffic, float]


class SendShipment(Message, frozen=True, tag=220):
    """Have a blob or a dataset that is here at the node `to` (a node ID, or a prefix for any node there that takes it),
    for at most so many millionths of the currency. Answer: `Shipments` with that one, or the fault."""

    subject: str
    to: str
    within_seconds: Annotated[int, msgspec.Meta(ge=1, le=ORDER_SECONDS_MAX)]
    price_max_micro: UInt


class ListShipments(Message, frozen=True, tag=221):
    """Answer: `Shipments`, the newest first; with `shipment` that one, or `UsageError`."""

    shipment: bytes = b""


class CancelShipping(Message, frozen=True, tag=222):
    """Stop a shipment, from either side; nothing is paid. Answer: `Shipments` with that one, or `UsageError`."""

    shipment: bytes


class ShipmentRow(Message, frozen=True):
    """One shipment. This node `sends` or `takes` it; `state` is offered, moving, delivered, late, failed, disputed or
    cancelled. `bytes_done` were fetched and verified (the sender knows them at the end). `expected_seconds` is what the
    receiver expected; `text` says why it does not go on, or ended."""

    shipment: bytes
    side: str
    peer: str
    subject: bytes
    dataset: bool
    size: int
    state: str
    bytes_done: int
    price_micro_per_gb: int
    price_max_micro: int
    expected_seconds: int
    made_ms: int
    deadline: int
    ended_ms: int
    receipt: bytes
    text: str


class Shipments(Message, frozen=True, tag=223):
    rows: tuple[ShipmentRow, ...]


DataMessage = (
    AddFile
    | Added
    | GetBlob
    | Got
    | GetTransfers
    | Transfers
    | ReadBlob
    | BlobPiece
    | ListBlobs
    | Blobs
    | PinBlob
    | CollectGarbage
    | Collected
    | AddDataset
    | DatasetAdded
    | ListDatasets
    | DatasetList
    | ShowDataset
    | DatasetShown
    | GetDataset
    | DatasetGot
    | CompareDataset
    | DatasetCompared
    | RemoveDataset
    | DatasetRemoved
    | GetBandwidth
    | SetBandwidth
    | BandwidthTold
    | SendShipment
    | ListShipments
    | CancelShipping
    | Shipments
)
