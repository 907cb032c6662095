"""Whole DHT sessions with fixed keys, packet by packet, and everything an implementer wants to compare on the way.

The packets are made by the real `Sessions` of two nodes; only their randomness is fixed. The values between (shared
secret, salt, keys) are computed from what they drew.
"""

import hashlib
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from dht_messages import ALICE, BOB, CHAIN, dialogue
from people import NOW, Vector, digest, key_of, link, public, struct_vector
from plain import plain

from ioc_node.core.session import Opened, Received, SendDatagram, Session
from ioc_node.core.sessions import Sessions
from ioc_node.core.trust import Admission, Trust
from ioc_wire import dht
from ioc_wire.codec import decode
from ioc_wire.signed import Signed

CLOCK: Final = 20.0
"""What the machines' clock shows: the coarse time in the cookies is not 0 then."""
NETWORK: Final = digest("network")
ADDRESSES: Final = {"alice": ALICE, "bob": BOB}
NAMES: Final = {
    dht.KNOCK: "KNOCK", dht.WHOAREYOU: "WHOAREYOU", dht.HANDSHAKE: "HANDSHAKE", dht.ACCEPT: "ACCEPT",
    dht.MESSAGE: "MESSAGE", dht.REFUSED: "REFUSED",
}  # fmt: skip


class Dice:
    """Randomness that is the same every time, and remembers what it gave."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.drawn: list[bytes] = []

    def random(self) -> float:
        return 0.5

    def randrange(self, stop: int, /) -> int:
        return stop // 2

    def sample(self, population: Any, k: int) -> list[Any]:
        return list(population[:k])

    def randbytes(self, n: int, /) -> bytes:
        seed = f"{self.name} draws {len(self.drawn)}"
        self.drawn.append(hashlib.shake_128(seed.encode()).digest(n))
        return self.drawn[-1]

    def x25519(self, wanted: bytes) -> X25519PrivateKey:
        """The private key that was drawn for a public one."""
        for data in self.drawn:
            if len(data) == 32:
                private = X25519PrivateKey.from_private_bytes(data)
                if private.public_key().public_bytes_raw() == wanted:
                    return private
        raise LookupError(f"{self.name} drew no private key for {wanted.hex()}")


class Two:
    """alice and bob, and the wire between them."""

    def __init__(self, name: str, admission: Admission, chains: dict[str, tuple[Signed, ...]]) -> None:
        self.dice = {who: Dice(f"{name}: {who}") for who in ("alice", "bob")}
        self.sessions = {
            who: Sessions(
                key=key_of(who),
                trust=Trust(network_id=NETWORK, admission=admission, roots=[public("root")]),
                chain=chains.get(who, ()),
                server=who == "bob" or admission == "certified",
                chance=self.dice[who],
                unix_offset=NOW - CLOCK,
            )
            for who in ("alice", "bob")
        }
        self.out: list[Any] = []

    def sent(self) -> bytes:
        """The one datagram that somebody just sent."""
        (effect,) = self.out
        self.out.clear()
        assert isinstance(effect, SendDatagram)
        return bytes(effect.data)

    def give(self, reader: str, packet: bytes) -> Any:
        """Let `reader` receive a packet of the other one; what it made of it."""
        writer = "alice" if reader == "bob" else "bob"
        return self.sessions[reader].receive(packet, ADDRESSES[writer], CLOCK, self.out)

    def knock(self, first: dht.AnyMessage) -> bytes:
        self.sessions["alice"].knock(BOB, None, dht.encode_message(first), self.out)
        return self.sent()


def dht_session() -> Vector:
    """dht_session.json."""
    bob = link("root", "bob", "cn.r3301", "regional")[0]
    chains = {"alice": CHAIN, "bob": (bob,)}
    return {
        "network_id": NETWORK.hex(),
        "roots": {"root": public("root").hex()},
        "now": NOW,
        "sessions": [
            _session("open network, a client and a server", "open", {}, dialogue()),
            _session("certified network, two servers", "certified", chains, dialogue()[:4]),
        ],
        "refused": _refusals(),
    }


def _session(
    name: str,
    admission: Admission,
    chains: dict[str, tuple[Signed, ...]],
    spoken: list[tuple[str, dht.AnyMessage]],
) -> Vector:
    """One handshake with the first request and answer in it, then messages."""
    two = Two(name, admission, chains)
    (_, asked), (_, answered), *rest = spoken
    knock = two.knock(asked)
    two.give("bob", knock)
    whoareyou = two.sent()
    two.give("alice", whoareyou)
    handshake = two.sent()
    heard = two.give("bob", handshake)
    assert isinstance(heard, Received)
    assert heard.data == dht.encode_message(asked)
    two.sessions["bob"].send(heard.session, dht.encode_message(answered), two.out)
    accept = two.sent()
    opened = two.give("alice", accept)
    assert isinstance(opened, Opened)
    assert opened.data == dht.encode_message(answered)
    two.give("bob", handshake)
    assert two.sent() == accept, "a repeated HANDSHAKE gets the same ACCEPT"

    who, shake = dht.decode_whoareyou(whoareyou), dht.decode_handshake(handshake)
    secrets = _secrets(two, who, shake)
    ends: dict[str, Session] = {"alice": opened.session, "bob": heard.session}
    return {
        "name": name,
        "admission": admission,
        "initiator": {"name": "alice", "host": ALICE[0], "port": ALICE[1], "server": bool(shake.flags & 1)},
        "responder": {"name": "bob", "host": BOB[0], "port": BOB[1], "server": True},
        "prekey_private": two.dice["bob"].x25519(who.prekey).private_bytes_raw().hex(),
        "ephemeral_private": two.dice["alice"].x25519(shake.ephemeral).private_bytes_raw().hex(),
        "KNOCK": {"fields": plain(dht.decode_knock(knock)._asdict()), "bytes": knock.hex()},
        "WHOAREYOU": {
            "fields": plain(who._asdict()),
            "signed_bytes": dht.prekey_signed_bytes(NETWORK, who.prekey, who.not_after).hex(),
            "bytes": whoareyou.hex(),
        },
        "keys": {name: value.hex() for name, value in secrets.items()},
        "HANDSHAKE": {
            "fields": plain(shake._asdict()),
            "signed_bytes": dht.handshake_signed_bytes(secrets["transcript"]).hex(),
            **_sealed(
                handshake, dht.HANDSHAKE_HEADER_BYTES, bytes(12), secrets["initiator_key"], dht.Opening
            ),
        },
        "ACCEPT": _sealed(accept, dht.HEADER_BYTES, bytes(12), secrets["responder_key"], dht.Acceptance),
        "messages": [_message(two, ends, sender, message, secrets) for sender, message in rest],
    }


def _secrets(two: Two, who: dht.Whoareyou, shake: dht.Handshake) -> dict[str, bytes]:
    """What both ends derive."""
    transcript = dht.transcript(NETWORK, shake, who.key, who.prekey)
    shared = two.dice["alice"].x25519(shake.ephemeral).exchange(X25519PublicKey.from_public_bytes(who.prekey))
    salt = hashlib.sha256(transcript).digest()
    keys = HKDF(hashes.SHA256(), 32, salt=salt, info=b"ioc/1 dht keys").derive(shared)
    return {
        "transcript": transcript,
        "salt": salt,
        "shared_secret": shared,
        "hkdf_output": keys,
        "initiator_key": keys[:16],
        "responder_key": keys[16:],
    }


def _sealed(packet: bytes, head: int, nonce: bytes, key: bytes, kind: Any) -> Vector:
    """An encrypted packet taken apart."""
    plaintext = AESGCM(key).decrypt(nonce, packet[head:], packet[:head])
    return {
        "associated_data": packet[:head].hex(),
        "gcm_nonce": nonce.hex(),
        "plaintext": struct_vector(decode(plaintext, kind)),
        "ciphertext": packet[head:].hex(),
        "bytes": packet.hex(),
    }


def _message(
    two: Two, ends: dict[str, Session], sender: str, message: dht.AnyMessage, secrets: dict[str, bytes]
) -> Vector:
    """One MESSAGE, sent by one end and understood by the other."""
    reader = "alice" if sender == "bob" else "bob"
    two.sessions[sender].send(ends[sender], dht.encode_message(message), two.out)
    packet = two.sent()
    heard = two.give(reader, packet)
    assert isinstance(heard, Received)
    assert dht.decode_message(heard.data) == message
    key = secrets["initiator_key" if sender == "alice" else "responder_key"]
    sealed = _sealed(packet, dht.HEADER_BYTES, packet[9:21], key, type(message))
    return {"sender": sender, "counter": int.from_bytes(packet[13:21], "big"), **sealed}


def _refusals() -> list[Vector]:
    """Packets that bob refuses, and how; each at a bob who has just begun."""
    two = Two("refused", "open", {})
    spoiled = two.knock(dht.Ping(1))
    two.give("bob", spoiled)
    two.give("alice", two.sent())
    handshake = two.sent()
    signature = slice(dht.HANDSHAKE_HEADER_BYTES - 64, dht.HANDSHAKE_HEADER_BYTES)
    header = bytes((dht.MESSAGE,)) + digest("session")[:8] + bytes(4) + (7).to_bytes(8, "big")
    cases = [
        ("no such session", header + digest("ciphertext")),
        ("another network", spoiled[:22] + digest("another network") + spoiled[54:]),
        ("another version", spoiled[:21] + b"\x02" + spoiled[22:]),
        ("signature of another handshake", _with(handshake, signature, bytes(64))),
        ("prekey that is not known (any more)", _with(handshake, slice(77, 85), bytes(8))),
    ]
    found: list[Vector] = []
    for name, packet in cases:
        two.give("bob", packet)
        refused = two.sent()
        found.append(
            {
                "name": name,
                "code": dht.decode_refused(refused)[2],
                "packet": NAMES[packet[0]],
                "packet_bytes": packet.hex(),
                "bytes": refused.hex(),
            }
        )
    return found


def _with(packet: bytes, where: slice, data: bytes) -> bytes:
    return packet[: where.start] + data + packet[where.stop :]
