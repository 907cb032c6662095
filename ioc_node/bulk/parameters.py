"""The one QUIC transport parameter that neither engine lets its user set: `max_udp_payload_size`.

In `ioc-bulk/1` it says what the path was found to carry (`ioc_wire.pathprobe`). qh3 clients always say 1472 and its
servers heed what they are told; aioquic neither says nor heeds it. `taught_connection` is either engine's class
with that repaired at the seam where the parameters are already bytes (RFC 9000 section 18: a sequence of
identifier, length, value).
"""

import functools
import importlib
from collections.abc import Iterator
from typing import Any, Final

from aioquic.buffer import encode_uint_var

from ioc_wire.pathprobe import BASE_DATAGRAM_BYTES, DATAGRAM_BYTES_MAX

MAX_UDP_PAYLOAD_SIZE: Final = 0x03


def with_payload_bytes(parameters: bytes, size: int) -> bytes:
    """The same parameters announcing `size`."""
    kept = b"".join(whole for identifier, _, whole in _each(parameters) if identifier != MAX_UDP_PAYLOAD_SIZE)
    value = encode_uint_var(size)
    return kept + encode_uint_var(MAX_UDP_PAYLOAD_SIZE) + encode_uint_var(len(value)) + value


def payload_bytes(parameters: bytes) -> int:
    """What the peer announced; where it announced nothing, or nonsense, the least that every path carries."""
    try:
        for identifier, value, _ in _each(parameters):
            if identifier == MAX_UDP_PAYLOAD_SIZE:
                return max(_varint(value, 0)[0], BASE_DATAGRAM_BYTES)
    except IndexError:
        pass
    return BASE_DATAGRAM_BYTES


def _each(parameters: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    end = 0
    while end < len(parameters):
        start = end
        identifier, at = _varint(parameters, start)
        length, at = _varint(parameters, at)
        end = at + length
        if end > len(parameters):
            raise IndexError
        yield identifier, parameters[at:end], parameters[start:end]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A variable-length integer (RFC 9000 section 16) and where it ends; `IndexError` where it is cut off."""
    size = 1 << (data[at] >> 6)
    if at + size > len(data):
        raise IndexError
    return int.from_bytes(data[at : at + size], "big") & ((1 << (8 * size - 2)) - 1), at + size


@functools.cache
def taught_connection(name: str) -> Any:
    """The engine's connection class, taught to announce and to heed what the path carries."""
    base = importlib.import_module(f"{name}.quic.connection").QuicConnection
    return _teach_qh3(base) if name == "qh3" else _teach_aioquic(base)


def _teach_qh3(base: Any) -> Any:
    class Connection(base):  # type: ignore[misc]
        path_bytes = BASE_DATAGRAM_BYTES

        def _create_tls(self, remote_source_cid: bytes | None) -> Any:
            bridge = super()._create_tls(remote_source_cid)
            ((kind, parameters),) = bridge.tls.handshake_extensions
            if self.configuration.is_client:
                parameters = with_payload_bytes(parameters, self.path_bytes)
                bridge.tls.handshake_extensions = [(kind, parameters)]
                return bridge
            parse = bridge.parse_transport_parameters

            def parse_bounded(data: bytes, *, from_session_ticket: bool = False) -> Any:
                parsed = parse(data, from_session_ticket=from_session_ticket)
                parsed.max_udp_payload_size = payload_bytes(data)  # the core takes it for its upper bound
                return parsed

            bridge.parse_transport_parameters = parse_bounded
            return bridge

    return Connection


def _teach_aioquic(base: Any) -> Any:
    class Connection(base):  # type: ignore[misc]
        path_bytes = BASE_DATAGRAM_BYTES

        def _serialize_transport_parameters(self) -> bytes:
            parameters: bytes = super()._serialize_transport_parameters()
            return with_payload_bytes(parameters, self.path_bytes) if self._is_client else parameters

        def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:
            super()._parse_transport_parameters(data, from_session_ticket)
            if not self._is_client:
                self._max_datagram_size = min(payload_bytes(data), DATAGRAM_BYTES_MAX)

    return Connection
