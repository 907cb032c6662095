"""Datagrams of the DHT: the packets that make and carry a session, and the messages inside them.

Packets. One UDP datagram of at most 1200 bytes. Integers are big-endian. Every packet begins with a header of
21 bytes, `kind (1) | session id (8) | nonce (12)`. A session id is chosen at random by its *receiver*; in
KNOCK and HANDSHAKE it is the one that the initiator will answer to. The shape follows discv5 (WHOAREYOU),
with a rotating signed prekey, so that two round trips give an authenticated session and the first answer.

========= ==== ============================================================================================
KNOCK     0x01 header (random nonce) | version (1) | network id (32) | initiator's node ID (32) |
               zeros up to 192 bytes
WHOAREYOU 0x02 header (echo of KNOCK's) | cookie (24) | responder's node key (32) | prekey (32) |
               not_after (8) | signature (64); 181 bytes
HANDSHAKE 0x03 header (as in KNOCK) | cookie (24) | initiator's node key (32) | prekey id (8, the first
               bytes of the prekey) | ephemeral (32) | flags (1) | signature (64) | ciphertext of `Opening`
ACCEPT    0x04 header (nonce all zero) | ciphertext of `Acceptance`
MESSAGE   0x05 header (nonce: 4 zero bytes, counter (8)) | ciphertext of one message
REFUSED   0x06 bytes 1 to 20 of the refused packet | error code (2); code 0: "I hold no such session, knock"
========= ==== ============================================================================================

- The *network id* is the SHA-256 of the network's definition. A responder answers another one with REFUSED 9.
- The *cookie* is opaque to the initiator: a coarse time (4) and a truncated HMAC-SHA-256 (20) over that time,
  the initiator's address, node ID, session id and nonce. The responder keeps nothing until it comes back.
  Before that no answer is larger than its request (192 bytes against 181 or 23).
- The *prekey* is an X25519 public key, valid until `not_after` (seconds since 1970). Its Ed25519 signature
  covers `signed_bytes("ioc/1", "dht-prekey", network id | prekey | not_after)`.
- The *transcript* is `network id | initiator's key | responder's key | session id | nonce | cookie | prekey |
  ephemeral | flags`. HANDSHAKE's signature covers `signed_bytes("ioc/1", "dht-handshake", transcript)`.
- *Keys*: `HKDF-SHA-256(ikm = X25519(ephemeral, prekey), salt = SHA-256(transcript), info = "ioc/1 dht
  keys")`, 32 bytes: first the initiator's AES-128-GCM key, then the responder's. The associated data is
  everything before the ciphertext. The GCM nonce is 4 zero bytes and the sender's counter (8); counter 0 is
  that of HANDSHAKE and ACCEPT, MESSAGE counts from 1. A counter is accepted once, within a window of 64
  behind the highest seen.
- *Flags*: bit 0, the sender is a server (it wants to be in routing tables).
- In a `certified` network both sides send the delegation chain whose last subject is their node key, and a
  server's must hold a server role. In an `open` network none is sent, and one that is sent is ignored.
- A session belongs to a node ID *and* an address: a MESSAGE from elsewhere is answered with REFUSED 0. So a
  session proves its address, and takes the place of BEP 5's write token. A HANDSHAKE is accepted once; its
  exact repetition is answered with the same ACCEPT, any other use of its cookie is dropped.

Messages. `[type, request, …]` in MessagePack; `request` is chosen by the asker and echoed in the answer. An
unknown type is answered with `Refusal` 2. A request may be repeated (its answer may have been lost): all are
idempotent. A record does not share a datagram with its chain: it names it by `chain_hash`, and who does not
know that chain asks for it. Where a message says *record*, it is a signed `ResourceRecord` or the signed
`Tombstone` that took its place; of two for one identifier the higher `(version, issued)` wins, whichever it is.
"""

import functools
import ipaddress
import struct
from typing import Annotated, ClassVar, Final, NamedTuple, get_args

import msgspec

from ioc_wire import limits
from ioc_wire.authority import Chain
from ioc_wire.codec import Digest, Host, Key, Message, Port, UInt, decode
from ioc_wire.errors import Malformed, WireError
from ioc_wire.records import check_period
from ioc_wire.signed import DOMAIN, Signed, SignedPayload, signed_bytes, verify

KNOCK: Final = 1
WHOAREYOU: Final = 2
HANDSHAKE: Final = 3
ACCEPT: Final = 4
MESSAGE: Final = 5
REFUSED: Final = 6

HEADER_BYTES: Final = 21
SESSION_ID_BYTES: Final = 8
COOKIE_BYTES: Final = 24
TAG_BYTES: Final = 16
KNOCK_BYTES: Final = 192
WHOAREYOU_BYTES: Final = 181
HANDSHAKE_HEADER_BYTES: Final = 182
REFUSED_BYTES: Final = 23
FLAG_SERVER: Final = 1
CODE_NO_SESSION: Final = 0

PLAINTEXT_BYTES_MAX: Final = limits.DATAGRAM_BYTES_MAX - HEADER_BYTES - TAG_BYTES
"""Room for one message in a MESSAGE."""
OPENING_BYTES_MAX: Final = limits.DATAGRAM_BYTES_MAX - HANDSHAKE_HEADER_BYTES - TAG_BYTES
BATCH_RECORDS_MAX: Final = 16
WATCH_SECONDS_MAX: Final = 3600
HOLDER_BYTES_MAX: Final = 512
HOLDER_SECONDS_MAX: Final = 48 * 3600

_KNOCK = struct.Struct(">B8s12sB32s32s")
_WHOAREYOU = struct.Struct(">B8s12s24s32s32sQ64s")
_HANDSHAKE = struct.Struct(">B8s12s24s32s8s32sB64s")
_REFUSED = struct.Struct(">B20sH")
_KNOCK_PADDING = bytes(KNOCK_BYTES - _KNOCK.size)

HostBytes = Annotated[bytes, msgspec.Meta(min_length=4, max_length=16)]
Nonce = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
SessionId = Annotated[bytes, msgspec.Meta(min_length=SESSION_ID_BYTES, max_length=SESSION_ID_BYTES)]

# -- packets


class Knock(NamedTuple):
    """First contact: who asks, and for which network."""

    session_id: bytes
    nonce: bytes
    version: int
    network_id: bytes
    node_id: bytes

    def encode(self) -> bytes:
        return _KNOCK.pack(KNOCK, *self) + _KNOCK_PADDING


class Whoareyou(NamedTuple):
    """The responder's identity and the challenge. Stateless on its side."""

    session_id: bytes
    nonce: bytes
    cookie: bytes
    key: bytes
    prekey: bytes
    not_after: int
    signature: bytes

    def encode(self) -> bytes:
        return _WHOAREYOU.pack(WHOAREYOU, *self)


class Handshake(NamedTuple):
    """The fixed part of a HANDSHAKE; the ciphertext follows it and has it as associated data."""

    session_id: bytes
    nonce: bytes
    cookie: bytes
    key: bytes
    prekey_id: bytes
    ephemeral: bytes
    flags: int
    signature: bytes

    def encode(self) -> bytes:
        return _HANDSHAKE.pack(HANDSHAKE, *self)


def decode_knock(data: bytes) -> Knock:
    """Raises `Malformed`."""
    if len(data) != KNOCK_BYTES:
        raise Malformed(f"KNOCK of {len(data)} bytes")
    return Knock(*_KNOCK.unpack_from(data)[1:])


def decode_whoareyou(data: bytes) -> Whoareyou:
    """Raises `Malformed`."""
    if len(data) != WHOAREYOU_BYTES:
        raise Malformed(f"WHOAREYOU of {len(data)} bytes")
    return Whoareyou(*_WHOAREYOU.unpack(data)[1:])


def decode_handshake(data: bytes) -> Handshake:
    """The fixed part; raises `Malformed`."""
    if len(data) < HANDSHAKE_HEADER_BYTES + TAG_BYTES:
        raise Malformed(f"HANDSHAKE of {len(data)} bytes")
    return Handshake(*_HANDSHAKE.unpack_from(data)[1:])


def encode_refused(packet: bytes, code: int) -> bytes:
    """REFUSED for `packet` (at least 21 bytes long)."""
    return _REFUSED.pack(REFUSED, packet[1:HEADER_BYTES], code)


def decode_refused(data: bytes) -> tuple[bytes, bytes, int]:
    """Session id, nonce and code of a REFUSED; raises `Malformed`."""
    if len(data) != REFUSED_BYTES:
        raise Malformed(f"REFUSED of {len(data)} bytes")
    _, echo, code = _REFUSED.unpack(data)
    return echo[:SESSION_ID_BYTES], echo[SESSION_ID_BYTES:], code


def prekey_signed_bytes(network_id: bytes, prekey: bytes, not_after: int) -> bytes:
    """What a prekey's signature covers."""
    return signed_bytes(DOMAIN, "dht-prekey", network_id + prekey + not_after.to_bytes(8, "big"))


def transcript(network_id: bytes, handshake: Handshake, responder_key: bytes, prekey: bytes) -> bytes:
    """What both sides agree on; see the module's text for the order."""
    h = handshake
    parts = (
        network_id,
        h.key,
        responder_key,
        h.session_id,
        h.nonce,
        h.cookie,
        prekey,
        h.ephemeral,
        bytes((h.flags,)),
    )
    return b"".join(parts)


def handshake_signed_bytes(transcript_bytes: bytes) -> bytes:
    """What a HANDSHAKE's signature covers."""
    return signed_bytes(DOMAIN, "dht-handshake", transcript_bytes)


class Opening(Message, frozen=True):
    """Inside a HANDSHAKE: the initiator's chain (certified networks) and its first message, if it fits."""

    chain: Chain | None
    message: bytes


class Acceptance(Message, frozen=True):
    """Inside an ACCEPT: the responder's session id, flags and chain, and the first answer, if it fits."""

    session_id: SessionId
    flags: Annotated[int, msgspec.Meta(ge=0, le=255)]
    chain: Chain | None
    message: bytes


# -- messages


class Contact(Message, frozen=True):
    """A server and its address: 4 or 16 bytes of IP and a UDP port."""

    node_id: Digest
    host: HostBytes
    port: Port


Contacts = Annotated[tuple[Contact, ...], msgspec.Meta(max_length=limits.REPLICATION)]


class Ping(Message, tag=1, frozen=True):
    request: Nonce


class Pong(Message, tag=2, frozen=True):
    """`host` and `port` are the asker's, as the answerer sees them."""

    request: Nonce
    host: HostBytes
    port: Port


class FindNode(Message, tag=3, frozen=True):
    """Who are the servers nearest to `target`? Answered with `Nodes`."""

    request: Nonce
    target: Digest


class Nodes(Message, tag=4, frozen=True):
    """Servers that the answerer has itself verified to live, nearest first; `total` is how many it knows."""

    request: Nonce
    nodes: Contacts
    total: UInt


class GetServers(Message, tag=5, frozen=True):
    """A page of the answerer's table: its first servers with IDs above `after`. Answered with `Nodes`."""

    request: Nonce
    after: Digest


class Get(Message, tag=6, frozen=True):
    """The record at `key`, if its version is at least `min_version`, and up to `nodes_max` of the servers
    nearest to the key. Answered with `Value`.
    """

    request: Nonce
    key: Digest
    min_version: UInt
    nodes_max: Annotated[int, msgspec.Meta(ge=0, le=limits.REPLICATION)]


class Value(Message, tag=7, frozen=True):
    """The record, if held, and as many of the servers wanted as fit beside it."""

    request: Nonce
    record: Signed | None
    chain_hash: Digest | None
    nodes: Contacts


class Put(Message, tag=8, frozen=True):
    """Keep this record. Answered with `Stored`, or a `Refusal` with the reason."""

    request: Nonce
    record: Signed
    chain_hash: Digest | None


class Stored(Message, tag=9, frozen=True):
    request: Nonce


class Refusal(Message, tag=10, frozen=True):
    """A `WireError` by its code."""

    request: Nonce
    code: UInt
    detail: Annotated[str, msgspec.Meta(max_length=400)]


class GetChain(Message, tag=11, frozen=True):
    """The chain with this hash. Answered with `ChainValue` or `Refusal` 23."""

    request: Nonce
    chain_hash: Digest


class ChainValue(Message, tag=12, frozen=True):
    request: Nonce
    chain: Chain


class PutChain(Message, tag=13, frozen=True):
    """A chain that a following `Put` names. Verified, then answered with `Stored`."""

    request: Nonce
    chain: Chain


class Announce(Message, tag=14, frozen=True):
    """A signed `HolderRecord`. Answered with `Stored` or a `Refusal`."""

    request: Nonce
    holder: Signed


class GetHolders(Message, tag=15, frozen=True):
    request: Nonce
    blob: Digest


class Holders(Message, tag=16, frozen=True):
    """Up to as many holders as fit, chosen at random out of `total`, and servers nearer to the blob."""

    request: Nonce
    holders: Annotated[tuple[Signed, ...], msgspec.Meta(max_length=16)]
    total: UInt
    nodes: Contacts


class PutMany(Message, tag=17, frozen=True):
    """Keep these records, all under one chain. Answered with `StoredMany`."""

    request: Nonce
    records: Annotated[tuple[Signed, ...], msgspec.Meta(min_length=1, max_length=BATCH_RECORDS_MAX)]
    chain_hash: Digest | None


class StoredMany(Message, tag=18, frozen=True):
    """What became of each record of a `PutMany`, in its order: 0, or the code of the fault."""

    request: Nonce
    codes: Annotated[tuple[UInt, ...], msgspec.Meta(max_length=BATCH_RECORDS_MAX)]


class Watch(Message, tag=19, frozen=True):
    """Tell me with `Changed` when the record at `key` gets a version above `version`, from now on for so many
    seconds; 0 ends it. Another `Watch` of the same key takes the place of the one before. Answered with
    `Watching`; what is newer already is told at once.
    """

    request: Nonce
    key: Digest
    version: UInt
    seconds: Annotated[int, msgspec.Meta(ge=0, le=WATCH_SECONDS_MAX)]


class Watching(Message, tag=20, frozen=True):
    """For so many seconds, which may be fewer than were asked for."""

    request: Nonce
    seconds: Annotated[int, msgspec.Meta(ge=0, le=WATCH_SECONDS_MAX)]


class Changed(Message, tag=21, frozen=True):
    """A newer record of a watched key: the one request that a server sends to a client. Answered with
    `Stored`; with `Refusal` 24 by a node that does not watch it, and then the watch is forgotten.
    """

    request: Nonce
    key: Digest
    record: Signed
    chain_hash: Digest | None


Request = (
    Ping
    | FindNode
    | GetServers
    | Get
    | Put
    | GetChain
    | PutChain
    | Announce
    | GetHolders
    | PutMany
    | Watch
    | Changed
)
Answer = Pong | Nodes | Value | Stored | Refusal | ChainValue | Holders | StoredMany | Watching
AnyMessage = Request | Answer
REQUEST_TYPES: Final = frozenset(get_args(Request))


class _Head(msgspec.Struct, array_like=True):
    type: int
    request: Nonce


_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)
_encoder = msgspec.msgpack.Encoder()
_head_decoder = msgspec.msgpack.Decoder(_Head)
_TYPES: Final = frozenset(range(1, 22))


def decode_message(data: bytes) -> AnyMessage:
    """Decode and validate one message; raises `Malformed`."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise Malformed(f"DHT message: {error}") from None


def encode_message(message: AnyMessage) -> bytes:
    """The plaintext of a MESSAGE."""
    return _encoder.encode(message)


def unknown_request(data: bytes) -> int | None:
    """The request number of a message whose type this version does not know, or None."""
    try:
        head = _head_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError):
        return None
    return None if head.type in _TYPES else head.request


# -- holders of blobs


class HolderRecord(SignedPayload, frozen=True):
    """The signing node holds `blob` and gives it out over a link to `host`:`port`, or over a circuit through the core
    node `via` that takes links there. Times since 1970, UTC."""

    kind: ClassVar[str] = "holder"
    blob: Digest
    host: Host
    port: Port
    issued: UInt
    expires: UInt
    via: Key | None = None


def verify_holder(signed: Signed, *, now: float) -> HolderRecord:
    """Raises `TooLarge`, `BadSignature`, `Expired`, `NotYetValid` or `Malformed`."""
    if len(signed.payload) > HOLDER_BYTES_MAX:
        raise Malformed(f"holder record of {len(signed.payload)} bytes")
    holder = verify(signed, HolderRecord)
    check_period(holder.issued, holder.expires, HOLDER_SECONDS_MAX, now, "holder record")
    return holder


# -- addresses


@functools.lru_cache(maxsize=8192)
def pack_host(host: str) -> bytes:
    """4 or 16 bytes of an IP address in text; raises `Malformed`."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        raise Malformed(f"{host[:64]!r} is not an IP address") from None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.packed
    return address.packed


@functools.lru_cache(maxsize=8192)
def unpack_host(packed: bytes) -> str:
    """Inverse of `pack_host`; raises `Malformed`, also for IPv4 hidden in IPv6, which has a shorter form."""
    try:
        address = ipaddress.ip_address(packed)
    except ValueError:
        raise Malformed(f"an IP address of {len(packed)} bytes") from None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        raise Malformed("an IPv4 address in 16 bytes")
    return str(address)


def decode_opening(data: bytes) -> Opening:
    """Raises `Malformed`."""
    return decode(data, Opening)


def decode_acceptance(data: bytes) -> Acceptance:
    """Raises `Malformed`."""
    return decode(data, Acceptance)


def refusal(request: int, error: WireError) -> Refusal:
    """The answer that carries `error`."""
    return Refusal(request, error.code, error.detail[:400])
