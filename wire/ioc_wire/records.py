"""Resource records, status rows and the signed heads that vouch for a provider's whole catalogue.

Names and units follow GLUE 2.0, DMTF Redfish and Slurm GRES. Memory and storage are MiB, bandwidth Mbit/s, prices
integers of one millionth of the network's currency, shares of an accelerator thousandths. TFLOPS of different
precisions are never added together.
"""

from typing import Annotated, ClassVar, Literal

import msgspec

from ioc_wire import limits
from ioc_wire.cid import Cid, parse_cid
from ioc_wire.codec import Digest, Host, Message, Name, Port, ShortText, UInt, decode, encode
from ioc_wire.errors import BadIdentifier, Expired, NotYetValid, TooLarge
from ioc_wire.signed import Check, Signed, SignedPayload, verify

Milli = Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)]
"""Thousandths: of one accelerator, or of one core."""


class Endpoint(Message, frozen=True):
    """Where a node listens: TCP `port` for links, UDP `port` for the DHT, UDP `port + 1` for QUIC."""

    host: Host
    port: Port


class Place(Message, frozen=True):
    """Where a resource stands. `city` is GB/T 2260 under root `cn`; coordinates in millionths of a degree."""

    country: Annotated[str, msgspec.Meta(min_length=2, max_length=2)]
    city: Annotated[str, msgspec.Meta(max_length=32)]
    zone: Annotated[str, msgspec.Meta(max_length=32)]
    latitude_e6: Annotated[int, msgspec.Meta(ge=-90_000_000, le=90_000_000)] = 0
    longitude_e6: Annotated[int, msgspec.Meta(ge=-180_000_000, le=180_000_000)] = 0


class Cpu(Message, frozen=True):
    """`architecture` as `uname -m` prints it; `cores` are physical or virtual cores that tasks can be given."""

    architecture: Name
    model: ShortText
    cores: UInt
    threads: UInt


Precision = Literal["fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "int8"]
Tflops = dict[Precision, Annotated[float, msgspec.Meta(ge=0, le=1e9)]]
"""Peak of one device by precision as people write it; of int8 it is TOPS."""


class Accelerator(Message, frozen=True):
    """A group of equal devices. `peak` pairs a precision (`fp64`, `fp32`, `tf32`, `bf16`, `fp16`, `fp8`) with
    billions of operations per second of one device (TFLOPS times 1,000)."""

    type: Name
    vendor: ShortText
    model: Name
    count: UInt
    memory_mib: UInt
    sharing: Literal["exclusive", "shared"] = "exclusive"
    peak: Annotated[tuple[tuple[str, UInt], ...], msgspec.Meta(max_length=8)] = ()
    int8_gops: UInt = 0
    peak_source: Literal["nominal", "measured"] = "nominal"


class Network(Message, frozen=True):
    """Bandwidth towards other nodes in Mbit/s, and the offloads (`shm`, `ucx`, …) that this node has."""

    bandwidth_mbit: UInt = 0
    offloads: Annotated[tuple[Name, ...], msgspec.Meta(max_length=8)] = ()


class Price(Message, frozen=True):
    """`micro` millionths of the currency per `unit`."""

    unit: Literal["core-hour", "accelerator-hour", "gib-hour", "gib-moved", "task"]
    micro: UInt


class ResourceRecord(SignedPayload, frozen=True):
    """The static description of one identifier, signed by its provider, at most 1 KiB with its envelope.

    `version` grows with every change; of two records the higher `(version, issued)` wins. Times are seconds since
    1970, UTC; `expires - issued` is at most 48 hours.
    """

    kind: ClassVar[str] = "record"
    cid: Annotated[str, msgspec.Meta(max_length=limits.CID_BYTES_MAX)]
    version: UInt
    issued: UInt
    expires: UInt
    type: Literal["pool", "node", "accelerator", "service"]
    place: Place
    cpu: Cpu
    memory_mib: UInt
    storage_mib: UInt = 0
    accelerators: Annotated[tuple[Accelerator, ...], msgspec.Meta(max_length=8)] = ()
    network: Network = Network()
    runtimes: Annotated[tuple[Name, ...], msgspec.Meta(max_length=16)] = ()
    services: Annotated[tuple[Name, ...], msgspec.Meta(max_length=16)] = ()
    prices: Annotated[tuple[Price, ...], msgspec.Meta(max_length=8)] = ()
    management: Literal["operating", "management", "cluster", "bare"] = "operating"
    labels: Annotated[tuple[tuple[Name, ShortText], ...], msgspec.Meta(max_length=16)] = ()
    endpoints: Annotated[tuple[Endpoint, ...], msgspec.Meta(max_length=4)] = ()
    task_seconds_max: UInt = 86400

    @property
    def order(self) -> tuple[int, int]:
        """What decides between two records of one identifier."""
        return (self.version, self.issued)


class Tombstone(SignedPayload, frozen=True):
    """The identifier was withdrawn: stands in the place of its record for as long as an older record could still
    be about, at most 48 hours. The same order decides: a later record with a higher version ends it.
    """

    kind: ClassVar[str] = "tombstone"
    cid: Annotated[str, msgspec.Meta(max_length=limits.CID_BYTES_MAX)]
    version: UInt
    issued: UInt
    expires: UInt

    @property
    def order(self) -> tuple[int, int]:
        """As `ResourceRecord.order`."""
        return (self.version, self.issued)


NamedRecord = ResourceRecord | Tombstone
"""What the DHT keeps under an identifier's key."""


def verify_tombstone(signed: Signed, *, now: float, check: Check | None = None) -> tuple[Tombstone, Cid]:
    """As `verify_record`, for a tombstone; raises the same."""
    _check_size(signed)
    tombstone = verify(signed, Tombstone, check=check)
    cid = parse_cid(tombstone.cid)
    check_period(tombstone.issued, tombstone.expires, limits.RECORD_SECONDS_MAX, now, tombstone.cid)
    return tombstone, cid


def verify_named(signed: Signed, *, now: float, check: Check | None = None) -> tuple[NamedRecord, Cid]:
    """A record or a tombstone, told apart by the signed kind; raises as `verify_record`, and `UnknownType`. `check`
    as in `ioc_wire.signed.verify`."""
    if signed.kind == Tombstone.kind:
        return verify_tombstone(signed, now=now, check=check)
    return verify_record(signed, now=now, check=check)


def named_payload(signed: Signed) -> NamedRecord:
    """The payload of what was verified before; raises `Malformed`."""
    if signed.kind == Tombstone.kind:
        return decode(signed.payload, Tombstone)
    return decode(signed.payload, ResourceRecord)


def _check_size(signed: Signed) -> None:
    size = len(encode(signed))
    if size > limits.RECORD_BYTES_MAX:
        raise TooLarge(f"record of {size} bytes, at most {limits.RECORD_BYTES_MAX} are allowed")


def verify_record(signed: Signed, *, now: float, check: Check | None = None) -> tuple[ResourceRecord, Cid]:
    """Check a record's size, signature, identifier and period. Authority over the prefix is checked separately
    (`ioc_wire.authority.check_names`), because chains are verified once and cached.

    Raises `TooLarge`, `BadSignature`, `BadIdentifier`, `Expired`, `NotYetValid` or `Malformed`.
    """
    _check_size(signed)
    record = verify(signed, ResourceRecord, check=check)
    cid = parse_cid(record.cid)
    if record.place.city and record.place.city != cid.city:
        raise BadIdentifier(f"{record.cid} stands in city {record.place.city!r}, its name says {cid.city!r}")
    check_period(record.issued, record.expires, limits.RECORD_SECONDS_MAX, now, record.cid)
    return record, cid


def check_period(issued: int, expires: int, seconds_max: int, now: float, what: str) -> None:
    """Raise `Expired` or `NotYetValid` unless `now` lies in the period (give or take the tolerated skew), and
    `Expired` too for a period that is reversed or longer than `seconds_max`."""
    if expires <= issued or expires - issued > seconds_max:
        raise Expired(f"{what}: a period of {expires - issued} s, 1 to {seconds_max} are allowed")
    if now > expires + limits.CLOCK_SKEW_SECONDS:
        raise Expired(f"{what}: {int(now - expires)} s ago")
    if now < issued - limits.CLOCK_SKEW_SECONDS:
        raise NotYetValid(f"{what}: issued {int(issued - now)} s in the future")


class CatalogueEntry(Message, frozen=True):
    """One slot of a provider's catalogue. `seq` is the head at which it last changed; without a record the slot is
    a tombstone and its identifier is gone. Leaves of the Merkle tree are the encoded entries."""

    slot: UInt
    seq: UInt
    cid: Annotated[str, msgspec.Meta(max_length=limits.CID_BYTES_MAX)]
    record: Signed | None


class Head(SignedPayload, frozen=True):
    """A provider's signed commitment to its catalogue: `root` is the RFC 9162 Merkle root over the slots in order.

    `previous` is the SHA-256 of the payload of the head before it (32 zero bytes for the first). `seq` grows with
    every head, not always by one: a provider that lost its state starts at the clock's seconds and forks nothing.
    Two heads with one `seq` are a fork. One signature vouches for all `slots` entries, at most 48 hours long.
    """

    kind: ClassVar[str] = "head"
    seq: UInt
    previous: Digest
    root: Digest
    slots: UInt
    issued: UInt
    expires: UInt


class StatusRow(Message, frozen=True):
    """The changing part of one slot: what is free, how long the queue is, what a core-hour costs now (0: as the
    record says). Accelerators: one number per group of the record's `accelerators`, all its devices together."""

    slot: UInt
    free_cores_milli: UInt
    free_memory_mib: UInt
    free_accelerators_milli: Annotated[tuple[Milli, ...], msgspec.Meta(max_length=8)] = ()
    queued: UInt = 0
    price_micro: UInt = 0


class StatusBatch(SignedPayload, frozen=True):
    """Status rows under one signature, good for at most ten minutes: those of slots `part * 1024` to
    `part * 1024 + 1023`. The higher `seq` of a part wins whole; the last of two rows for one slot counts."""

    kind: ClassVar[str] = "status"
    seq: UInt
    issued: UInt
    expires: UInt
    rows: Annotated[tuple[StatusRow, ...], msgspec.Meta(max_length=limits.STATUS_ROWS_MAX)]
    part: Annotated[int, msgspec.Meta(ge=0, lt=limits.STATUS_PARTS_MAX)] = 0


def entry_bytes(entry: CatalogueEntry) -> bytes:
    return encode(entry)


def decode_entry(data: bytes) -> CatalogueEntry:
    """Raises `Malformed` or `TooLarge`."""
    return decode(data, CatalogueEntry, size_max=limits.RECORD_BYTES_MAX + 512)
