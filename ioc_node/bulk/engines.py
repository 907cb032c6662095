"""The two QUIC engines behind one shape: aioquic, and its API-compatible fork qh3 with a native core.

Both are sans-IO: datagrams and time in, datagrams, events and a next timer out. What differs is here: how a
certificate is loaded, how the peer's is read, what counts as buffered, and which calls are quick.
"""

import datetime
import functools
import importlib
import itertools
import logging
import ssl
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from ioc_node.bulk.parameters import taught_connection
from ioc_node.bulk.udp import Address, Received
from ioc_node.errors import UsageError
from ioc_wire.bulk import BULK_ALPN
from ioc_wire.pathprobe import BASE_DATAGRAM_BYTES, DATAGRAM_BYTES_MAX

EngineName = Literal["auto", "qh3", "aioquic"]

IDLE_SECONDS: Final = 30.0
READER_WINDOW_BYTES: Final = 16 << 20
"""Flow control windows that a reader grants at first. Both engines widen them by themselves as data arrives: what
may be on its way is bounded by the credit of the bulk stream (`ioc_wire.bulk`) and by `Channel`."""
HOLDER_WINDOW_BYTES: Final = 1 << 20
"""A holder only ever receives requests."""
ED25519: Final = 0x0807
CONNECTION_ID_BYTES: Final = 8


class EngineError(Exception):
    """An engine failed on what a peer sent, or is done with this connection. Only that connection ends."""


Transmit = tuple[Any, ...]
"""One datagram: its bytes, where it goes, and whatever else an engine adds."""


class Pipe:
    """One sans-IO connection of either engine, without its differences."""

    buffers_per_turn = 8
    """Receive buffers of up to 64 KiB that take well under a millisecond."""

    def __init__(
        self, name: str, connection: Any, events: Any, *, slice_bytes: int, unsent_bytes_max: int
    ) -> None:
        self.name = name
        self.slice_bytes = slice_bytes
        self.buffered_bytes_max = unsent_bytes_max
        self.events = events
        self.connection = connection

    @property
    def source_id(self) -> bytes:
        """The connection ID under which the peer first knows us."""
        return bytes(self.connection.host_cid)

    def connect(self, address: Address, now: float) -> None:
        """Start a client's handshake."""
        self._guard(self.connection.connect, address, now)

    def feed(self, received: Received, now: float) -> None:
        """Give the engine what came in from the socket."""
        self._guard(self._feed, received, now)

    def handle_timer(self, now: float) -> None:
        """Tell the engine that its timer went off."""
        self._guard(self.connection.handle_timer, now)

    def poll(self, now: float, count: int) -> Sequence[Transmit]:
        """At most `count` datagrams to send now."""
        polled: Sequence[Transmit] = self._guard(self._poll, now, count)
        return polled

    def timer(self) -> float | None:
        """When `handle_timer` wants to be called."""
        timer: float | None = self.connection.get_timer()
        return timer

    def next_event(self) -> Any:
        """The engine's next event, or None."""
        return self.connection.next_event()

    def send(self, stream: int, data: bytes | memoryview, *, end: bool = False) -> None:
        """Queue stream bytes."""
        self._guard(self.connection.send_stream_data, stream, data, end)

    def ping(self) -> None:
        """Queue a PING."""
        self._guard(self.connection.send_ping, 1)

    def close(self, code: int, reason: str) -> None:
        """Queue a CONNECTION_CLOSE."""
        self._guard(self.connection.close, code, None, reason)

    def buffered_bytes(self, stream: int) -> int:
        """Stream bytes given to `send` that the peer has not acknowledged yet."""
        buffered: int = self._guard(self._buffered_bytes, stream)
        return buffered

    def announce_datagram_bytes(self, size: int) -> None:
        """The path carries so much in both directions: heed it, and tell the peer in the ClientHello after Retry."""
        self.connection.path_bytes = size
        self._use_datagram_bytes(size)

    def unordered_bytes(self, stream: int) -> int:
        """What the engine holds for the application because bytes before it are missing."""
        return 0  # qh3 bounds it by the window that it grants, and widens that only for what it has handed on

    def change_address(self) -> None:
        """The local address is another from now on: go on under a connection ID that was not seen on the old path."""
        self._guard(self.connection.change_connection_id)

    def peer_key(self) -> bytes | None:
        """The Ed25519 key in the peer's certificate, whose signature TLS has verified; None for any other."""
        raise NotImplementedError

    def _use_datagram_bytes(self, size: int) -> None:
        raise NotImplementedError

    def _buffered_bytes(self, stream: int) -> int:
        raise NotImplementedError

    def _feed(self, received: Received, now: float) -> None:
        raise NotImplementedError

    def _poll(self, now: float, count: int) -> Sequence[Transmit]:
        raise NotImplementedError

    def _guard(self, call: Any, *args: Any) -> Any:
        # The engines parse hostile bytes with asserts, struct and native code: whatever they raise ends
        # this one connection. A panic of native code derives from BaseException and has no importable
        # type.
        try:
            return call(*args)
        except (ArithmeticError, AssertionError, AttributeError, BufferError, LookupError) as error:
            raise EngineError(f"{self.name}: {type(error).__name__}: {error}") from None
        except (RuntimeError, TypeError, ValueError, _fault_of(self.name)) as error:
            raise EngineError(f"{self.name}: {error}") from None
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            raise EngineError(f"{self.name}: native panic") from None


class _AioquicPipe(Pipe):
    buffers_per_turn = 1

    def __init__(self, connection: Any, events: Any) -> None:
        super().__init__("aioquic", connection, events, slice_bytes=64 << 10, unsent_bytes_max=2 << 20)
        self._polled: deque[Transmit] = deque()

    def _feed(self, received: Received, now: float) -> None:
        data, size, address = received
        for start in range(0, len(data), size):
            self.connection.receive_datagram(data[start : start + size], address, now)

    def _poll(self, now: float, count: int) -> Sequence[Transmit]:
        if not self._polled:
            self._polled.extend(self.connection.datagrams_to_send(now))
        return [self._polled.popleft() for _ in range(min(count, len(self._polled)))]

    def _buffered_bytes(self, stream: int) -> int:
        found = self.connection._streams.get(stream)
        return len(found.sender._buffer) if found is not None else 0

    def _use_datagram_bytes(self, size: int) -> None:
        self.connection._max_datagram_size = size

    def unordered_bytes(self, stream: int) -> int:
        # aioquic widens its windows for the highest offset seen, holes included, and fills the holes with zeros
        found = self.connection._streams.get(stream)
        return len(found.receiver._buffer) if found is not None else 0

    def peer_key(self) -> bytes | None:
        return _ed25519_key(self.connection.tls._peer_certificate)


class _Qh3Pipe(Pipe):
    def __init__(self, connection: Any, events: Any) -> None:
        super().__init__("qh3", connection, events, slice_bytes=256 << 10, unsent_bytes_max=8 << 20)

    def _use_datagram_bytes(self, size: int) -> None:
        self.connection.configuration.max_datagram_size = size  # read when Retry makes a new core

    def _feed(self, received: Received, now: float) -> None:
        data, size, address = received
        connection = self.connection
        if connection._handshake_complete:
            # `receive_gro_buffer` slices every datagram once for a log that is off; its core does not.
            connection._core.receive_gro_buffer(data, size, address, now)
            connection._drain_core()
        else:
            connection.receive_gro_buffer(data, size, address, now)

    def _poll(self, now: float, count: int) -> Sequence[Transmit]:
        core = self.connection._core
        if core is None:
            return ()
        return list(itertools.islice(iter(functools.partial(core.poll_transmit, now), None), count))

    def _buffered_bytes(self, stream: int) -> int:
        core = self.connection._core
        flying = core.bytes_in_flight if core is not None else 0
        return int(self.connection.get_send_buffer_size(stream)) + int(flying)

    def peer_key(self) -> bytes | None:
        certificate = self.connection.get_peercert()
        if certificate is None:
            return None
        try:
            return _ed25519_key(x509.load_der_x509_certificate(certificate.public_bytes()))
        except ValueError:
            return None


def _ed25519_key(certificate: Any) -> bytes | None:
    try:
        key = certificate.public_key() if certificate is not None else None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None
    return key.public_bytes_raw() if isinstance(key, Ed25519PublicKey) else None


@functools.cache
def _fault_of(name: str) -> type[Exception]:
    fault: type[Exception] = importlib.import_module(f"{name}.quic.connection").QuicConnectionError
    return fault


class Engine:
    """One of the two libraries, ready to make connections for the node with this key."""

    def __init__(self, name: Literal["qh3", "aioquic"], key: Ed25519PrivateKey) -> None:
        logging.getLogger("quic").setLevel(logging.CRITICAL)  # a peer's faults are told by our own events
        self.name: Final = name
        self._configuration = importlib.import_module(f"{name}.quic.configuration").QuicConfiguration
        self._connection = taught_connection(name)
        self._events = importlib.import_module(f"{name}.quic.events")
        self._kind: Final = _Qh3Pipe if name == "qh3" else _AioquicPipe
        certificate = self_signed_certificate(key)
        self._server = self._configure(client=False)
        if name == "qh3":
            pem = certificate.public_bytes(serialization.Encoding.PEM)
            self._server.load_cert_chain(pem, _key_pem(key))
        else:
            self._server.certificate = certificate
            self._server.private_key = key

    @property
    def buffers_per_turn(self) -> int:
        """Receive buffers of up to 64 KiB that take well under a millisecond."""
        return self._kind.buffers_per_turn

    def _configure(self, *, client: bool) -> Any:
        configuration = self._configuration(
            is_client=client,
            alpn_protocols=[BULK_ALPN],
            # qh3's core never goes beyond what it begins with; aioquic takes this for what the path carries
            max_datagram_size=DATAGRAM_BYTES_MAX
            if self.name == "qh3" and not client
            else BASE_DATAGRAM_BYTES,
            max_data=READER_WINDOW_BYTES if client else HOLDER_WINDOW_BYTES,
            max_stream_data=READER_WINDOW_BYTES if client else HOLDER_WINDOW_BYTES,
            idle_timeout=IDLE_SECONDS,
            connection_id_length=CONNECTION_ID_BYTES,
        )
        configuration.supported_versions = configuration.supported_versions[:1]  # QUIC version 1
        if client:
            configuration.verify_mode = ssl.CERT_NONE  # the key is what is checked, see Pipe.peer_key
            configuration.server_name = "ioc-node"
        if self.name == "qh3":
            configuration.signature_algorithms = [ED25519]
        return configuration

    def open_client(self) -> Pipe:
        """A connection that will call a holder."""
        return self._pipe(self._connection(configuration=self._configure(client=True)))

    def open_server(self, original_id: bytes, retry_id: bytes) -> Pipe:
        """A connection for a client whose address Retry has validated."""
        connection = self._connection(
            configuration=self._server,
            original_destination_connection_id=original_id,
            retry_source_connection_id=retry_id,
        )
        return self._pipe(connection)

    def _pipe(self, connection: Any) -> Pipe:
        return self._kind(connection, self._events)


def available_engines() -> Iterator[Literal["qh3", "aioquic"]]:
    """The engines that can be imported here, the quicker one first."""
    names: tuple[Literal["qh3", "aioquic"], ...] = ("qh3", "aioquic")
    for name in names:
        try:
            importlib.import_module(f"{name}.quic.connection")
        except ImportError:
            continue
        yield name


def load_engine(name: EngineName, key: Ed25519PrivateKey) -> Engine:
    """The engine called `name`, or the quickest for `auto`. Raises `UsageError` where it is not installed."""
    found = list(available_engines())
    if name == "auto" and found:
        return Engine(found[0], key)
    for each in found:
        if each == name:
            return Engine(each, key)
    raise UsageError(f"QUIC engine {name} is not installed; installed are: {', '.join(found) or 'none'}")


def self_signed_certificate(key: Ed25519PrivateKey) -> x509.Certificate:
    """A certificate that says nothing but the key; peers compare the key with the holder they expect."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ioc-node")])
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=365 * 100))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("ioc-node")]), critical=False)
        .sign(key, None)
    )


def _key_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
