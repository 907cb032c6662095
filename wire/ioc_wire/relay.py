"""Reaching nodes that nobody can dial, through a core node that both ends can dial (tags 70-78).

A *circuit* carries a link: two streams of bytes, one each way, that a core node passes on between two of its links.
The ends shake hands through it as on a TCP connection (TLS 1.3, both keys proved), so the core node in between
neither reads nor changes anything.

    caller                     core node                    target
    OpenCircuit(target, c)  →
                               AcceptCircuit(caller, d)  →
                            ←  FeedCircuit(c)            ←  FeedCircuit(d)
    CircuitData …           →  CircuitData …             →                    answers of FeedCircuit
                            ←  CircuitData …             ←  CircuitData …     answers of OpenCircuit, AcceptCircuit

Bulk data does not take that road: a QUIC connection's datagrams are passed on between two UDP addresses (`OpenRelay`),
or the reader, where it can be dialed, is called by the holder (`CallReader`).
"""

from typing import Annotated, Final

import msgspec

from ioc_wire import limits
from ioc_wire.codec import Digest, Host, Key, Message, Port, UInt

Circuit = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
"""Names a circuit on one link: random, chosen by whoever asks for it."""
RelayToken = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]

RELAY_MAGIC: Final = b"\x01ioc-rl1"
"""What a datagram to the relay itself begins with. No QUIC packet does: bit 0x40 of its first byte is set (RFC 9000
section 17)."""
COOKIE_BYTES: Final = 16
TOKEN_BYTES: Final = 16
RELAY_BOUND: Final = RELAY_MAGIC + b"bound"


class OpenCircuit(Message, tag=70, frozen=True):
    """To a core node: pass bytes on between this link and the one to `target`. Answer: a stream of `CircuitData`, what
    comes from there, or `NotFound` where it has no link to it."""

    target: Key
    circuit: Circuit


class AcceptCircuit(Message, tag=71, frozen=True):
    """From a core node: `caller` wants a link. Answer: a stream of `CircuitData`, what goes there."""

    caller: Key
    circuit: Circuit


class FeedCircuit(Message, tag=72, frozen=True):
    """Ask the other end of this link for the bytes that it sends through a circuit. Answer: a stream of
    `CircuitData`."""

    circuit: Circuit


class CircuitData(Message, tag=73, frozen=True):
    """Bytes of a circuit, in order."""

    data: Annotated[bytes, msgspec.Meta(min_length=1, max_length=limits.CIRCUIT_DATA_BYTES_MAX)]


class OpenRelay(Message, tag=74, frozen=True):
    """To a core node: pass datagrams on between two addresses, that of this peer and that of `target`. Answer: a
    stream, `RelayOpened` and then `RelayMetered` now and then; the relay ends with it. `NotFound` where it has no
    link to `target`, `OverQuota` or `Unserved`."""

    target: Key


class RelayOpened(Message, tag=75, frozen=True):
    """Where the relay is, and the token by which each end says which one it is. `target_token` is handed on by the
    caller, over a link with the target."""

    host: Host
    port: Port
    caller_token: RelayToken
    target_token: RelayToken


class RelayMetered(Message, tag=76, frozen=True):
    """What was passed on so far: bytes of UDP payload from the caller and to it."""

    bytes_from_caller: UInt
    bytes_to_caller: UInt


class CallReader(Message, tag=77, frozen=True):
    """A ticket's reader to its holder, which cannot be dialed: call me at `host`:`port` by QUIC, with `call` as the
    first frame. Answer: `Done` when that is being done."""

    call: Digest
    host: Host
    port: Port


class MeetAtRelay(Message, tag=78, frozen=True):
    """A ticket's reader to its holder, neither of which can be dialed: answer QUIC through this relay. Answer: `Done`
    when the holder's address is known there."""

    host: Host
    port: Port
    token: RelayToken


def encode_bind(token: bytes, cookie: bytes = b"") -> bytes:
    """A datagram to a relay: "this address is the end that `token` was made for", with the relay's `cookie` when it has
    asked for one."""
    return RELAY_MAGIC + token + cookie


def decode_bind(datagram: bytes) -> tuple[bytes, bytes] | None:
    """Token and cookie (empty in the first datagram); None where it is no bind."""
    body = datagram.removeprefix(RELAY_MAGIC)
    if len(body) == len(datagram) or len(body) not in (TOKEN_BYTES, TOKEN_BYTES + COOKIE_BYTES):
        return None
    return body[:TOKEN_BYTES], body[TOKEN_BYTES:]


def encode_challenge(cookie: bytes) -> bytes:
    """A relay's answer to a first bind, no larger than that: prove that datagrams reach this address."""
    return RELAY_MAGIC + cookie


def decode_challenge(datagram: bytes) -> bytes | None:
    """The cookie; None where it is no challenge."""
    body = datagram.removeprefix(RELAY_MAGIC)
    return body if len(body) == COOKIE_BYTES and len(body) != len(datagram) else None
