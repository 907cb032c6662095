"""What a session is made of: its two ends, a handshake under way, and what a datagram can turn out to
mean.
"""

from functools import lru_cache
from typing import Any, Final, NamedTuple

import cryptography.hazmat.backends.openssl.backend  # noqa: F401 - or the first handshake imports it, 8 ms long
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ioc_node.core.challenge import Address, Spent
from ioc_node.core.chance import Chance
from ioc_wire import dht as wire
from ioc_wire.errors import Malformed, WireError
from ioc_wire.identity import NodeId

REPLAY_WINDOW: Final = 64
CIPHERS_AWAKE_MAX: Final = 1024
"""OpenSSL contexts of all nodes in this process; each takes 2.4 KiB, and 2 µs to make again."""
_KEYS_INFO: Final = b"ioc/1 dht keys"


Outbox = list[Any]
"""Where a machine's parts append their effects, in order."""


class SendDatagram(NamedTuple):
    """Effect: put `data` on the wire towards `address`."""

    data: bytes
    address: Address


class Cipher:
    """AES-128-GCM under one key. Of the many sessions of a node few are in use at a time: only the ciphers used last
    keep their context, the others are woken from their key.
    """

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        self._key = key

    def encrypt(self, nonce: bytes, data: bytes, head: bytes) -> bytes:
        """Ciphertext and tag; `head` is authenticated with them."""
        return _context(self._key).encrypt(nonce, data, head)

    def decrypt(self, nonce: bytes, data: bytes, head: bytes) -> bytes:
        """Inverse of `encrypt`; raises `cryptography.exceptions.InvalidTag`."""
        return _context(self._key).decrypt(nonce, data, head)


_context = lru_cache(CIPHERS_AWAKE_MAX)(AESGCM)


class Session:
    """One end of an established session. `operator` is the prefix delegated to the peer (certified networks)."""

    __slots__ = (
        "address", "counter", "elder", "expires", "heard", "highest", "is_server", "key", "local_id", "node_id", "open",
        "operator", "prefix", "remote_id", "renew", "seal", "unaccepted", "window",
    )  # fmt: skip

    def __init__(
        self,
        *,
        key: bytes,
        node_id: NodeId,
        address: Address,
        local_id: bytes,
        remote_id: bytes,
        is_server: bool,
        opens: Cipher,
        seals: Cipher,
        operator: str | None = None,
    ) -> None:
        self.key = key
        self.node_id = node_id
        self.address = address
        self.local_id = local_id
        self.remote_id = remote_id
        self.is_server = is_server
        self.operator = operator
        self.prefix = bytes((wire.MESSAGE,)) + remote_id + bytes(4)
        self.open = opens
        self.seal = seals
        self.counter = 0
        self.highest = 0
        self.window = 1
        self.unaccepted: Spent | None = None
        self.elder: Session | None = None
        self.expires = self.renew = self.heard = 0.0

    def is_fresh(self, counter: int) -> bool:
        """Whether a packet with this counter was not seen before."""
        behind = self.highest - counter
        return behind < 0 or (behind < REPLAY_WINDOW and not self.window >> behind & 1)

    def mark(self, counter: int) -> None:
        """Remember the counter of a packet that decrypted."""
        ahead = counter - self.highest
        if ahead > 0:
            shifted = self.window << min(ahead, REPLAY_WINDOW) | 1
            self.window = shifted & ((1 << REPLAY_WINDOW) - 1)
            self.highest = counter
        else:
            self.window |= 1 << -ahead


class Attempt:
    """An initiator's handshake under way. `packet` is the datagram to repeat until something comes back."""

    __slots__ = (
        "address", "carried", "ephemeral", "expected", "key", "message", "node_id", "nonce", "open", "packet",
        "seal", "session_id",
    )  # fmt: skip

    def __init__(self, address: Address, expected: bytes | None, message: bytes, chance: Chance) -> None:
        self.session_id = chance.randbytes(wire.SESSION_ID_BYTES)
        self.nonce = chance.randbytes(12)
        self.ephemeral = chance.randbytes(32)
        self.address = address
        self.expected = expected
        self.message = message
        self.carried = False
        self.packet = b""
        self.key = b""
        self.node_id = NodeId(b"")
        self.open: Cipher | None = None
        self.seal: Cipher | None = None


class Received(NamedTuple):
    """A message arrived in a session; after a HANDSHAKE it may be empty, and the session wants a `send`."""

    session: Session
    data: bytes


class Opened(NamedTuple):
    """Our attempt became a session; `data` answers the attempt's message if that was carried."""

    session: Session
    attempt: Attempt
    data: bytes


class Challenged(NamedTuple):
    """Our attempt got its WHOAREYOU, and the HANDSHAKE is out."""

    attempt: Attempt


class Failed(NamedTuple):
    """Our attempt was refused, or found somebody else. `refused_here`: the peer proved its key, and we refuse it."""

    attempt: Attempt
    error: WireError
    refused_here: bool = False


class Lost(NamedTuple):
    """The peer does not hold this session any more; it was dropped here too."""

    session: Session


SessionEvent = Received | Opened | Challenged | Failed | Lost


def derive_ciphers(secret: X25519PrivateKey, public: bytes, transcript: bytes) -> tuple[Cipher, Cipher]:
    """The initiator's and the responder's cipher; raises `Malformed` for a public key of low order."""
    try:
        shared = secret.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise Malformed("an X25519 key of low order") from None
    digest = hashes.Hash(hashes.SHA256())
    digest.update(transcript)
    keys = HKDF(hashes.SHA256(), 32, salt=digest.finalize(), info=_KEYS_INFO).derive(shared)
    return Cipher(keys[:16]), Cipher(keys[16:])
