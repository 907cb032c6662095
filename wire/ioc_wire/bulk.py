"""Blobs, tickets, and what travels on a bulk QUIC stream.

A blob's name commits to its size, the chunk size and the list of its chunk hashes, so one wrong byte is known
as soon as its chunk has arrived, and chunks may come from anywhere in any order.

A bulk stream is a sequence of frames: one byte of type, four bytes of length (big endian), the payload. A
CHUNK payload is a four-byte index and the bytes themselves, every other payload one MessagePack struct. The
reader speaks first:

    reader                              holder
    Hello(version, ticket digest)  →
                                   ←    Challenge(nonce)
    Claim(secret, key, signature)  →
                                   ←    Accept(size, chunks) | Refusal(code, detail)
    WantHashes()                   →
                                   ←    Hashes(start, digests) …
    Want(ranges, credit)           →
                                   ←    CHUNK …                       at most `credit` of them
    Credit(chunks)                 →                                  … and as many more
    WantSmall(secrets)             →
                                   ←    CHUNK | Missed …              one for each secret, in order

A Want adds to those before it: its chunks come after theirs, its credit counts for all. WantSmall asks for whole
blobs of at most `SMALL_BYTES_MAX`, each by the secret of a ticket of its own (for the same reader, who has proved
itself on this connection). A CHUNK that answers it carries the place of the secret in the question as its index; the
blob's name is enough to verify it. Such a ticket is used up when its blob was sent.

The claim's signature covers holder key, nonce and ticket digest. The reader makes it only after it has found
the holder's key in the certificate of this very TLS connection, so nobody in between can use it; a second use
fails because each nonce is asked once.
"""

import functools
import struct
from collections.abc import Sequence
from typing import Annotated, Final, NewType

import msgspec
from blake3 import blake3

from ioc_wire import limits
from ioc_wire.codec import Digest, Host, Key, Message, Name, Port, ShortText, Signature, UInt, decode, encode
from ioc_wire.errors import BlobCorrupt, Malformed, TooLarge, UnknownType
from ioc_wire.identity import base32, unbase32
from ioc_wire.signed import DOMAIN, signed_bytes

BULK_VERSION: Final = 1
BULK_ALPN: Final = "ioc-bulk/1"
TICKET_SECRET_BYTES: Final = 32
OFFLOADS_MAX: Final = 8
OFFLOAD_PAYLOAD_BYTES_MAX: Final = 1024
ENDPOINTS_MAX: Final = 8
RANGES_MAX: Final = 4096
"""Ranges in one Want; a reader with more holes asks again."""
RANGES_WAITING_MAX: Final = 2 * RANGES_MAX
"""Ranges that a reader may have asked for and not been sent."""
SMALL_BYTES_MAX: Final = 64 << 10
"""A small blob: one that WantSmall may ask for."""
SMALL_BATCH_MAX: Final = 256
"""Small blobs in one WantSmall."""
SMALL_BATCHES_WAITING_MAX: Final = 4
TICKETS_ASKED_MAX: Final = 1024
HASHES_PER_FRAME_MAX: Final = 8192
CREDIT_CHUNKS_MAX: Final = 64
"""Chunks that may be on their way on one stream."""
FRAME_PAYLOAD_BYTES_MAX: Final = limits.CHUNK_BYTES + 4
MESSAGE_BYTES_MAX: Final = HASHES_PER_FRAME_MAX * 36
BLOB_BYTES_MAX: Final = limits.CHUNK_BYTES * limits.BLOB_CHUNKS_MAX

BlobId = NewType("BlobId", bytes)
"""BLAKE3 of a blob's size, chunk size and chunk hashes, 32 bytes."""

_ID_CONTEXT: Final = b"ioc/1 blob"
_ID_HEADER: Final = struct.Struct(">QI")


def chunk_count(size: int) -> int:
    """Chunks of a blob of `size` bytes: all but the last have `limits.CHUNK_BYTES`."""
    return -(-size // limits.CHUNK_BYTES)


def chunk_length(size: int, index: int) -> int:
    """Bytes of chunk `index` of a blob of `size` bytes."""
    return min(limits.CHUNK_BYTES, size - index * limits.CHUNK_BYTES)


def chunk_hash(data: bytes | bytearray | memoryview) -> bytes:
    """BLAKE3 of one chunk, 32 bytes."""
    return blake3(data).digest()


def blob_id_of(size: int, chunks: Sequence[bytes]) -> BlobId:
    """The name of the blob of `size` bytes whose chunks hash to `chunks`.

    BLAKE3 over `ioc/1 blob`, size (8 bytes, big endian), chunk size (4 bytes), and the hashes in order.
    """
    root = blake3(_ID_CONTEXT)
    root.update(_ID_HEADER.pack(size, limits.CHUNK_BYTES))
    root.update(b"".join(chunks))
    return BlobId(root.digest())


@functools.lru_cache(maxsize=4096)
def format_blob_id(blob: bytes) -> str:
    """`b` and 52 characters of base32."""
    return "b" + base32(blob)


def parse_blob_id(text: str) -> BlobId:
    """Inverse of `format_blob_id`; raises `Malformed`."""
    if not text.startswith("b") or len(text) != 53:
        raise Malformed(f"a blob is named by 'b' and 52 characters of base32, not {text[:60]!r}")
    return BlobId(unbase32(text[1:]))


class BlobInfo(Message, frozen=True):
    """A blob's name and the hash list it commits to; trust it only after `check_blob_info`."""

    blob: Digest
    size: Annotated[int, msgspec.Meta(ge=0, le=BLOB_BYTES_MAX)]
    chunks: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=limits.BLOB_CHUNKS_MAX)]

    @property
    def id(self) -> BlobId:
        """`blob` under its own type."""
        return BlobId(self.blob)


def check_blob_info(info: BlobInfo) -> BlobInfo:
    """The same `info`, once its hash list has been found to give its name; raises `BlobCorrupt`."""
    if len(info.chunks) != chunk_count(info.size):
        raise BlobCorrupt(f"{info.size} bytes are {chunk_count(info.size)} chunks, not {len(info.chunks)}")
    if blob_id_of(info.size, info.chunks) != info.blob:
        raise BlobCorrupt(f"hash list of {format_blob_id(info.blob)}")
    return info


def check_chunk(info: BlobInfo, index: int, data: bytes | bytearray | memoryview) -> None:
    """Raise `BlobCorrupt` unless `data` is chunk `index` of the blob."""
    if not 0 <= index < len(info.chunks) or chunk_hash(data) != info.chunks[index]:
        raise BlobCorrupt(f"chunk {index} of {format_blob_id(info.blob)}")


# -- tickets


class Endpoint(Message, frozen=True):
    """Where a holder's QUIC socket listens; or, with `via`, where the core node with that key takes links, through
    which the holder is asked how to meet."""

    host: Host
    port: Port
    via: Key | None = None


class OffloadDescriptor(Message, frozen=True):
    """How to reach a blob by another road than QUIC; only the offload called `name` reads `payload`."""

    name: Name
    payload: Annotated[bytes, msgspec.Meta(max_length=OFFLOAD_PAYLOAD_BYTES_MAX)]


class Ticket(Message, frozen=True):
    """The right of one reader to one blob at one holder until `expires` (Unix seconds)."""

    secret: Digest
    blob: Digest
    holder: Key
    reader: Key
    expires: UInt
    size: Annotated[int, msgspec.Meta(ge=0, le=BLOB_BYTES_MAX)] | None = None
    endpoints: Annotated[tuple[Endpoint, ...], msgspec.Meta(max_length=ENDPOINTS_MAX)] = ()
    offloads: Annotated[tuple[OffloadDescriptor, ...], msgspec.Meta(max_length=OFFLOADS_MAX)] = ()

    def __repr__(self) -> str:
        return f"Ticket(blob={format_blob_id(self.blob)}, expires={self.expires})"


def ticket_digest(secret: bytes) -> bytes:
    """What names a ticket without giving it away: BLAKE3 of its secret."""
    return blake3(b"ioc/1 ticket" + secret).digest()


def claim_bytes(holder: bytes, nonce: bytes, digest: bytes) -> bytes:
    """What a reader signs to claim a ticket on one connection."""
    return signed_bytes(DOMAIN, "bulk-claim", holder + nonce + digest)


# -- the stream


class Call(Message, frozen=True):
    """First frame on a connection that the holder opened because its reader had asked for that (`relay.CallReader`):
    which call this is. The reader speaks next."""

    call: Digest


class Hello(Message, frozen=True):
    """First frame: which ticket will be claimed."""

    version: UInt
    ticket: Digest


class Challenge(Message, frozen=True):
    """The holder's fresh nonce."""

    nonce: Digest


class Claim(Message, frozen=True):
    """The ticket's secret, and the proof that its reader is the one who speaks."""

    secret: Digest
    reader: Key
    signature: Signature


class Accept(Message, frozen=True):
    """The claim holds; this is how large the blob is."""

    size: Annotated[int, msgspec.Meta(ge=0, le=BLOB_BYTES_MAX)]
    chunks: Annotated[int, msgspec.Meta(ge=0, le=limits.BLOB_CHUNKS_MAX)]


class Refusal(Message, frozen=True):
    """No, or no longer: a code of `ioc_wire.errors`."""

    code: UInt
    detail: ShortText = ""


class WantHashes(Message, frozen=True):
    """Ask for the whole hash list."""


class Hashes(Message, frozen=True):
    """Consecutive chunk hashes from chunk `start` on."""

    start: UInt
    digests: Annotated[tuple[Digest, ...], msgspec.Meta(min_length=1, max_length=HASHES_PER_FRAME_MAX)]


class ChunkRange(Message, frozen=True):
    """Chunks `start` … `start + count - 1`."""

    start: Annotated[int, msgspec.Meta(ge=0, lt=limits.BLOB_CHUNKS_MAX)]
    count: Annotated[int, msgspec.Meta(ge=1, le=limits.BLOB_CHUNKS_MAX)]


class Want(Message, frozen=True):
    """Ask for chunks, in this order, after those asked for before; `credit` adds to what may be sent."""

    ranges: Annotated[tuple[ChunkRange, ...], msgspec.Meta(min_length=1, max_length=RANGES_MAX)]
    credit: Annotated[int, msgspec.Meta(ge=1, le=CREDIT_CHUNKS_MAX)]


class Credit(Message, frozen=True):
    """So many chunks more may be sent."""

    chunks: Annotated[int, msgspec.Meta(ge=1, le=CREDIT_CHUNKS_MAX)]


class WantSmall(Message, frozen=True):
    """Ask for whole small blobs, by the secrets of their tickets."""

    secrets: Annotated[tuple[Digest, ...], msgspec.Meta(min_length=1, max_length=SMALL_BATCH_MAX)]


class Missed(Message, frozen=True):
    """The blob of the secret at `place` in a WantSmall is not sent: a code of `ioc_wire.errors`."""

    place: Annotated[int, msgspec.Meta(ge=0, lt=SMALL_BATCH_MAX)]
    code: UInt
    detail: ShortText = ""


BulkMessage = (
    Hello
    | Challenge
    | Claim
    | Accept
    | Refusal
    | WantHashes
    | Hashes
    | Want
    | Credit
    | WantSmall
    | Missed
    | Call
)

FRAME_HEADER: Final = struct.Struct(">BI")
CHUNK_INDEX: Final = struct.Struct(">I")
CHUNK_FRAME: Final = 0
_KINDS: Final[dict[int, type[BulkMessage]]] = {
    1: Hello,
    2: Challenge,
    3: Claim,
    4: Accept,
    5: Refusal,
    6: WantHashes,
    7: Hashes,
    8: Want,
    9: Credit,
    10: WantSmall,
    11: Missed,
    12: Call,
}
_TYPES: Final = {kind: number for number, kind in _KINDS.items()}


def encode_frame(message: BulkMessage) -> bytes:
    """One frame, header included."""
    payload = encode(message)
    return FRAME_HEADER.pack(_TYPES[type(message)], len(payload)) + payload


def encode_chunk_header(index: int, length: int) -> bytes:
    """What precedes the bytes of a chunk: the frame header and the chunk's index."""
    return FRAME_HEADER.pack(CHUNK_FRAME, CHUNK_INDEX.size + length) + CHUNK_INDEX.pack(index)


def decode_frame_header(data: bytes | bytearray | memoryview) -> tuple[int, int]:
    """Frame type and payload length; raises `UnknownType` or `TooLarge` before anything is buffered."""
    kind, length = FRAME_HEADER.unpack(data)
    if kind != CHUNK_FRAME and kind not in _KINDS:
        raise UnknownType(f"bulk frame {kind}")
    size_max = FRAME_PAYLOAD_BYTES_MAX if kind == CHUNK_FRAME else MESSAGE_BYTES_MAX
    if length > size_max:
        raise TooLarge(f"bulk frame of {length} bytes, at most {size_max} are allowed")
    if kind == CHUNK_FRAME and length <= CHUNK_INDEX.size:
        raise Malformed("chunk without bytes")
    return kind, length


def decode_frame(kind: int, payload: bytes | bytearray | memoryview) -> BulkMessage:
    """The struct in the payload of a frame other than CHUNK; raises `Malformed` or `UnknownType`."""
    expected = _KINDS.get(kind)
    if expected is None:
        raise UnknownType(f"bulk frame {kind}")
    message: BulkMessage = decode(payload, expected, size_max=MESSAGE_BYTES_MAX)
    return message


# -- messages over links (tags 60-79)


class RequestTicket(Message, tag=60, frozen=True):
    """The asking peer wants to read `blob`. Answer: `TicketIssued`, or `NotFound`, or `NotOwner`."""

    blob: Digest


class TicketIssued(Message, tag=61, frozen=True):
    """Answer to `RequestTicket` and to `GrantOutput` (`ioc_wire.tasks`)."""

    ticket: Ticket


class RequestTickets(Message, tag=64, frozen=True):
    """The asking peer wants to read all of `blobs`. Answer: `TicketsIssued`."""

    blobs: Annotated[tuple[Digest, ...], msgspec.Meta(min_length=1, max_length=TICKETS_ASKED_MAX)]


class Grant(Message, frozen=True):
    """What differs between tickets that are issued together."""

    secret: Digest
    size: Annotated[int, msgspec.Meta(ge=0, le=BLOB_BYTES_MAX)]


class TicketsIssued(Message, tag=65, frozen=True):
    """A grant, or nil where the blob is not shared, for each blob in the order of the question. The tickets' holder and
    reader are the two ends of the link; they expire together and name the same endpoints."""

    grants: Annotated[tuple[Grant | None, ...], msgspec.Meta(max_length=TICKETS_ASKED_MAX)]
    expires: UInt
    endpoints: Annotated[tuple[Endpoint, ...], msgspec.Meta(max_length=ENDPOINTS_MAX)] = ()


def ticket_of(issued: TicketIssued, blob: bytes, holder: bytes) -> Ticket:
    """The ticket of an answer to `RequestTicket` or `GrantOutput`; raises `Malformed` where it is one for another blob,
    whose bytes would be taken for those that were asked for, or of another holder.
    """
    ticket = issued.ticket
    if ticket.blob != blob or ticket.holder != holder:
        raise Malformed(f"a ticket for {format_blob_id(ticket.blob)}, asked was for {format_blob_id(blob)}")
    return ticket


def tickets_of(
    issued: TicketsIssued, blobs: Sequence[bytes], holder: bytes, reader: bytes
) -> list[Ticket | None]:
    """The tickets of an answer to `RequestTickets(blobs)`; raises `Malformed` where it answers something else."""
    if len(issued.grants) != len(blobs):
        raise Malformed(f"{len(issued.grants)} grants for {len(blobs)} blobs")
    return [
        Ticket(grant.secret, blob, holder, reader, issued.expires, grant.size, issued.endpoints)
        if grant is not None
        else None
        for blob, grant in zip(blobs, issued.grants, strict=True)
    ]


def is_blob(blob: bytes, data: bytes | memoryview) -> bool:
    """Whether `data`, of at most one chunk, is all of `blob`."""
    chunks = (chunk_hash(data),) if data else ()
    return len(data) <= limits.CHUNK_BYTES and blob_id_of(len(data), chunks) == blob
