"""Path MTU probes of the bulk port: which datagram sizes does the path between reader and holder carry?

A reader sends one probe per size that may fit, each padded to that size, before its first QUIC packet and from the
same socket; a holder returns every probe as an echo of the same size. The largest echo that came back is what the
reader announces as `max_udp_payload_size` (RFC 9000 section 18.2), and no holder sends larger datagrams than that:
packetization layer path MTU discovery (RFC 8899) that costs no round trip of its own.

The first byte lies in none of the ranges that RFC 9443 section 4 assigns to QUIC, so a probe is never taken for a
packet. An echo is never answered and is as long as its probe: two holders cannot be played against each other, and
nobody is sent more than was spent. The nonce keeps third parties from answering in the holder's place.

    kind (1 byte: 8 probe, 9 echo) | "ioc-mtu" (7 bytes) | nonce (8 bytes) | zeros up to the size
"""

from typing import Final

PROBE: Final = 8
ECHO: Final = 9
_MAGIC: Final = b"ioc-mtu"
NONCE_BYTES: Final = 8
HEADER_BYTES: Final = 1 + len(_MAGIC) + NONCE_BYTES
BASE_DATAGRAM_BYTES: Final = 1200
"""What every QUIC path carries (RFC 9000 section 14.1); used where no larger probe came back."""
PROBE_SIZES: Final = (1232, 1392, 1452, 8952)
"""UDP payloads that fit: IPv6's least MTU; a WireGuard tunnel; Ethernet; jumbo Ethernet and loopback, where still
larger ones were measured to bring nothing. All leave room for IPv6 and UDP headers, 48 bytes."""
DATAGRAM_BYTES_MAX: Final = PROBE_SIZES[-1]


def encode_probe(nonce: bytes, size: int) -> bytes:
    """A probe of `size` bytes."""
    if len(nonce) != NONCE_BYTES or not HEADER_BYTES <= size <= DATAGRAM_BYTES_MAX:
        raise ValueError(f"a probe has {NONCE_BYTES} bytes of nonce and at most {DATAGRAM_BYTES_MAX} in all")
    return (bytes((PROBE,)) + _MAGIC + nonce).ljust(size, b"\0")


def echo_of(datagram: bytes) -> bytes | None:
    """The echo that a probe is due, or None where `datagram` is no probe."""
    if datagram[:1] != bytes((PROBE,)) or not _is_whole(datagram):
        return None
    return bytes((ECHO,)) + datagram[1:]


def echoed_bytes(datagram: bytes, nonce: bytes) -> int | None:
    """The size that an echo confirms, or None where `datagram` is no echo of a probe with this nonce."""
    if datagram[:1] != bytes((ECHO,)) or not _is_whole(datagram) or datagram[8:HEADER_BYTES] != nonce:
        return None
    return len(datagram)


def _is_whole(datagram: bytes) -> bool:
    return HEADER_BYTES <= len(datagram) <= DATAGRAM_BYTES_MAX and datagram[1:8] == _MAGIC
