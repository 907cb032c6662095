"""Both ends of a handshake made by hand, so that everything in it can be wrong: the inside of HANDSHAKE and ACCEPT
with any plaintext, flags, key and signature. The real ends (`ioc_node.core.sessions`) only make good ones.
"""

import random
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ioc_node.core.session import Cipher, derive_ciphers
from ioc_wire import dht as wire
from ioc_wire import limits
from ioc_wire.identity import node_id_of
from ioc_wire.signed import public_bytes

FIRST_NONCE: Final = bytes(12)
SIGNATURE_AT: Final = wire.HANDSHAKE_HEADER_BYTES - limits.SIGNATURE_BYTES


class Initiator:
    """Knocks, and answers the WHOAREYOU with whatever it is told to put into its HANDSHAKE."""

    def __init__(self, key: Ed25519PrivateKey, network_id: bytes, dice: random.Random) -> None:
        self.key = key
        self.public = public_bytes(key)
        self.network_id = network_id
        self.session_id = dice.randbytes(wire.SESSION_ID_BYTES)
        self.nonce = dice.randbytes(12)
        self._secret = X25519PrivateKey.from_private_bytes(dice.randbytes(32))
        self.seals: Cipher | None = None
        self.opens: Cipher | None = None

    def knock(self, version: int = limits.PROTOCOL_VERSION) -> bytes:
        node_id = node_id_of(self.public)
        return wire.Knock(self.session_id, self.nonce, version, self.network_id, node_id).encode()

    def handshake(
        self,
        whoareyou: bytes,
        plain: bytes,
        *,
        flags: int = wire.FLAG_SERVER,
        signer: Ed25519PrivateKey | None = None,
    ) -> bytes:
        """A HANDSHAKE whose inside is `plain`, properly sealed; `signer` signs instead of our key."""
        who = wire.decode_whoareyou(whoareyou)
        public = self._secret.public_key().public_bytes_raw()
        shake = wire.Handshake(
            self.session_id, self.nonce, who.cookie, self.public, who.prekey[:8], public, flags, b""
        )
        transcript = wire.transcript(self.network_id, shake, who.key, who.prekey)
        self.seals, self.opens = derive_ciphers(self._secret, who.prekey, transcript)
        signature = (signer or self.key).sign(wire.handshake_signed_bytes(transcript))
        head = shake._replace(signature=signature).encode()
        return head + self.seals.encrypt(FIRST_NONCE, plain, head)

    def acceptance(self, accept: bytes) -> wire.Acceptance:
        """What the responder's ACCEPT says."""
        assert self.opens is not None
        head = wire.HEADER_BYTES
        return wire.decode_acceptance(self.opens.decrypt(FIRST_NONCE, accept[head:], accept[:head]))

    def message(self, remote_id: bytes, counter: int, plain: bytes) -> bytes:
        """A MESSAGE with `plain` inside."""
        assert self.seals is not None
        nonce = counter.to_bytes(12, "big")
        head = bytes((wire.MESSAGE,)) + remote_id + nonce
        return head + self.seals.encrypt(nonce, plain, head)


class Responder:
    """Answers one KNOCK and one HANDSHAKE, with what it is told to put into its ACCEPT."""

    def __init__(self, key: Ed25519PrivateKey, network_id: bytes, dice: random.Random) -> None:
        self.key = key
        self.public = public_bytes(key)
        self.network_id = network_id
        self._prekey = X25519PrivateKey.from_private_bytes(dice.randbytes(32))
        self._cookie = dice.randbytes(wire.COOKIE_BYTES)
        self.seals: Cipher | None = None

    def whoareyou(self, knock: bytes, not_after: int, *, signer: Ed25519PrivateKey | None = None) -> bytes:
        """The challenge; `signer` signs the prekey instead of our key."""
        asked = wire.decode_knock(knock)
        prekey = self._prekey.public_key().public_bytes_raw()
        signature = (signer or self.key).sign(wire.prekey_signed_bytes(self.network_id, prekey, not_after))
        return wire.Whoareyou(
            asked.session_id, asked.nonce, self._cookie, self.public, prekey, not_after, signature
        ).encode()

    def accept(self, handshake: bytes, plain: bytes) -> bytes:
        """An ACCEPT whose inside is `plain`, properly sealed."""
        shake = wire.decode_handshake(handshake)
        prekey = self._prekey.public_key().public_bytes_raw()
        transcript = wire.transcript(self.network_id, shake, self.public, prekey)
        _, self.seals = derive_ciphers(self._prekey, shake.ephemeral, transcript)
        head = bytes((wire.ACCEPT,)) + shake.session_id + FIRST_NONCE
        return head + self.seals.encrypt(FIRST_NONCE, plain, head)
