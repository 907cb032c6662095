"""`dht_session.json` without `ioc_wire` and `ioc_node`: every value is computed anew with msgpack, hashlib, hmac and
the primitives of cryptography, from the private keys and what went over the wire.
"""

import hashlib
import hmac
import struct
from typing import Any, Final

import msgpack  # type: ignore[import-untyped]
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.wire.test_vectors import jsonable, length_prefixed, load, person, same, sha256

FOUND: Final = load("dht_session")
SESSIONS: Final = FOUND["sessions"]
NETWORK: Final = bytes.fromhex(FOUND["network_id"])
TAG_BYTES: Final = 16

each = pytest.mark.parametrize("session", SESSIONS, ids=[found["name"].split()[0] for found in SESSIONS])


def unhex(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("hex:"))


def hkdf_sha256(key: bytes, salt: bytes, info: bytes) -> bytes:
    """RFC 5869 for 32 bytes: one round of Expand."""
    return hmac.digest(hmac.digest(salt, key, "sha256"), info + b"\x01", "sha256")


class Fields:
    """The parts of a packet, cut off from the front."""

    def __init__(self, data: bytes) -> None:
        self.rest = data

    def take(self, size: int) -> bytes:
        taken, self.rest = self.rest[:size], self.rest[size:]
        assert len(taken) == size
        return taken


def keys_of(session: dict[str, Any]) -> tuple[bytes, bytes, bytes, bytes]:
    """The public keys of initiator and responder, prekey and ephemeral."""
    prekey = X25519PrivateKey.from_private_bytes(unhex(session["prekey_private"]))
    ephemeral = X25519PrivateKey.from_private_bytes(unhex(session["ephemeral_private"]))
    return (
        person(session["initiator"]["name"])["public"],
        person(session["responder"]["name"])["public"],
        prekey.public_key().public_bytes_raw(),
        ephemeral.public_key().public_bytes_raw(),
    )


def transcript_of(session: dict[str, Any]) -> bytes:
    initiator, responder, prekey, ephemeral = keys_of(session)
    knock = unhex(session["KNOCK"]["bytes"])
    cookie = unhex(session["WHOAREYOU"]["fields"]["cookie"])
    flags = bytes((session["initiator"]["server"],))
    return NETWORK + initiator + responder + knock[1:21] + cookie + prekey + ephemeral + flags


def ciphers_of(session: dict[str, Any]) -> dict[str, AESGCM]:
    """The cipher of each side, derived anew by the side that holds the ephemeral's private half."""
    ephemeral = X25519PrivateKey.from_private_bytes(unhex(session["ephemeral_private"]))
    shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(keys_of(session)[2]))
    keys = hkdf_sha256(shared, sha256(transcript_of(session)), b"ioc/1 dht keys")
    return {
        session["initiator"]["name"]: AESGCM(keys[:16]),
        session["responder"]["name"]: AESGCM(keys[16:]),
    }


def check_struct(data: bytes, vector: dict[str, Any]) -> list[Any]:
    """A struct's bytes decode to its fields; returns what msgpack read, without the tag."""
    assert data.hex() == vector["bytes"]
    read = msgpack.unpackb(data, raw=False)
    if "tag" in vector:
        assert read.pop(0) == vector["tag"]
    assert same(jsonable(read), vector["fields"])
    assert isinstance(read, list)
    return read


def check_sealed(vector: dict[str, Any], cipher: AESGCM, head: int) -> list[Any]:
    """A packet opens with its key, and with nothing changed; returns its plaintext as msgpack read it."""
    packet, nonce = unhex(vector["bytes"]), unhex(vector["gcm_nonce"])
    assert vector["associated_data"] == packet[:head].hex()
    assert vector["ciphertext"] == packet[head:].hex()
    plain = cipher.decrypt(nonce, packet[head:], packet[:head])
    for changed in (packet[:head] + bytes((packet[head] ^ 1,)) + packet[head + 1 :], b"\xff" + packet[1:]):
        with pytest.raises(InvalidTag):
            cipher.decrypt(nonce, changed[head:], changed[:head])
    assert cipher.encrypt(nonce, plain, packet[:head]) == packet[head:]
    return check_struct(plain, vector["plaintext"])


# -- first half


@each
def test_knock(session: dict[str, Any]) -> None:
    fields = session["KNOCK"]["fields"]
    initiator = person(session["initiator"]["name"])["public"]
    head = b"\x01" + unhex(fields["session_id"]) + unhex(fields["nonce"])
    assert unhex(session["KNOCK"]["bytes"]) == (head + b"\x01" + NETWORK + sha256(initiator)).ljust(
        192, b"\0"
    )


@each
def test_whoareyou(session: dict[str, Any]) -> None:
    vector = session["WHOAREYOU"]
    _, responder, prekey, _ = keys_of(session)
    packet, knock = Fields(unhex(vector["bytes"])), unhex(session["KNOCK"]["bytes"])
    assert len(packet.rest) == 181 <= len(knock)
    assert packet.take(21) == b"\x02" + knock[1:21]
    assert packet.take(24) == unhex(vector["fields"]["cookie"])
    assert packet.take(64) == responder + prekey
    (not_after,) = struct.unpack(">Q", packet.take(8))
    assert not_after == vector["fields"]["not_after"] == FOUND["now"] + 7200
    said = length_prefixed("ioc/1", "dht-prekey", NETWORK + prekey + struct.pack(">Q", not_after))
    assert vector["signed_bytes"] == said.hex()
    assert packet.take(64) == Ed25519PrivateKey.from_private_bytes(person("bob")["private"]).sign(said)
    assert not packet.rest


# -- what both derive


@each
def test_both_sides_derive_the_same_keys(session: dict[str, Any]) -> None:
    keys = {name: unhex(value) for name, value in session["keys"].items()}
    _, _, prekey, ephemeral = keys_of(session)
    private = {
        name: X25519PrivateKey.from_private_bytes(unhex(session[f"{name}_private"]))
        for name in ("prekey", "ephemeral")
    }
    shared = private["ephemeral"].exchange(X25519PublicKey.from_public_bytes(prekey))
    assert shared == private["prekey"].exchange(X25519PublicKey.from_public_bytes(ephemeral))
    assert keys["shared_secret"] == shared
    assert keys["transcript"] == transcript_of(session)
    assert keys["salt"] == hashlib.sha256(keys["transcript"]).digest()
    assert keys["hkdf_output"] == hkdf_sha256(shared, keys["salt"], b"ioc/1 dht keys")
    assert keys["hkdf_output"] == keys["initiator_key"] + keys["responder_key"]


# -- second half


@each
def test_handshake(session: dict[str, Any]) -> None:
    vector = session["HANDSHAKE"]
    initiator, _, prekey, ephemeral = keys_of(session)
    packet, knock = Fields(unhex(vector["bytes"])), unhex(session["KNOCK"]["bytes"])
    assert packet.take(21) == b"\x03" + knock[1:21]
    assert packet.take(24) == unhex(session["WHOAREYOU"]["fields"]["cookie"])
    assert packet.take(32 + 8 + 32) == initiator + prekey[:8] + ephemeral
    assert packet.take(1)[0] == vector["fields"]["flags"] == session["initiator"]["server"]
    said = length_prefixed("ioc/1", "dht-handshake", transcript_of(session))
    assert vector["signed_bytes"] == said.hex()
    Ed25519PublicKey.from_public_bytes(initiator).verify(packet.take(64), said)
    assert packet.rest == unhex(vector["ciphertext"])
    assert vector["gcm_nonce"] == bytes(12).hex()
    chain, first = check_sealed(vector, ciphers_of(session)["alice"], 182)
    check_chain(session, chain, initiator)
    assert msgpack.unpackb(first)[:1] == [1], "a Ping rides in it"


@each
def test_accept(session: dict[str, Any]) -> None:
    vector = session["ACCEPT"]
    knock = unhex(session["KNOCK"]["bytes"])
    assert unhex(vector["associated_data"]) == b"\x04" + knock[1:9] + bytes(12)
    assert vector["gcm_nonce"] == bytes(12).hex()
    session_id, flags, chain, answer = check_sealed(vector, ciphers_of(session)["bob"], 21)
    assert len(session_id) == 8
    assert flags == session["responder"]["server"] == 1
    check_chain(session, chain, person("bob")["public"])
    tag, request, host, port = msgpack.unpackb(answer)
    assert (tag, request) == (2, 1)
    assert (host, port) == (
        bytes(map(int, session["initiator"]["host"].split("."))),
        session["initiator"]["port"],
    )


def check_chain(session: dict[str, Any], chain: list[Any] | None, subject: bytes) -> None:
    if session["admission"] == "open":
        assert chain is None
        return
    assert chain
    issuer = bytes.fromhex(FOUND["roots"]["root"])
    for domain, kind, payload, key, signature in chain:
        assert key == issuer
        Ed25519PublicKey.from_public_bytes(key).verify(signature, length_prefixed(domain, kind, payload))
        issuer = msgpack.unpackb(payload)[0]
    assert issuer == subject


# -- afterwards


@each
def test_messages(session: dict[str, Any]) -> None:
    ciphers, counters = ciphers_of(session), {"alice": 0, "bob": 0}
    towards = {
        "alice": unhex(session["ACCEPT"]["plaintext"]["fields"]["session_id"]),
        "bob": unhex(session["KNOCK"]["fields"]["session_id"]),
    }
    for vector in session["messages"]:
        sender = vector["sender"]
        counters[sender] += 1
        nonce = struct.pack(">4xQ", counters[sender])
        assert vector["counter"] == counters[sender]
        assert vector["gcm_nonce"] == nonce.hex()
        assert unhex(vector["associated_data"]) == b"\x05" + towards[sender] + nonce
        assert len(vector["bytes"]) <= 2 * 1200
        check_sealed(vector, ciphers[sender], 21)


def test_every_type_of_message_is_there() -> None:
    said = {vector["plaintext"]["tag"] for vector in SESSIONS[0]["messages"]} | {1, 2}
    assert said == set(range(1, max(said) + 1))
    assert said == {vector["tag"] for vector in load("dht")["messages"]}


def test_refusals() -> None:
    codes = {}
    for vector in FOUND["refused"]:
        packet, refused = unhex(vector["packet_bytes"]), unhex(vector["bytes"])
        assert refused == b"\x06" + packet[1:21] + struct.pack(">H", vector["code"])
        assert len(refused) <= len(packet)
        codes[vector["name"].split(" (")[0]] = vector["code"]
    assert codes == {
        "no such session": 0,
        "another network": 9,
        "another version": 2,
        "signature of another handshake": 3,
        "prekey that is not known": 7,
    }


def test_dht_json_names_its_chain_and_key() -> None:
    found = load("dht")
    links = [unhex(vector["bytes"]) for vector in found["chain"]]
    assert found["chain_hash"] == sha256(bytes((0x90 + len(links),)), *links).hex()
    (get,) = (v for v in found["messages"] if v["tag"] == 6 and v["fields"]["min_version"] == 1)
    assert get["fields"]["key"] == "hex:" + found["key"]
    (tombstone,) = (v for v in found["signed"] if v["name"] == "tombstone")
    assert found["key"] == sha256(tombstone["payload"]["fields"]["cid"].encode()).hex()
