"""Signed envelopes: what the signature covers, and every way to break one."""

import functools
import hashlib

import msgspec
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from ioc_wire.authority import Delegation
from ioc_wire.codec import decode, encode
from ioc_wire.errors import BadSignature, Malformed, UnknownType, WireError
from ioc_wire.metering import Receipt, UsageRecord
from ioc_wire.records import Head
from ioc_wire.signed import DOMAIN, Signed, SignedPayload, sign, signed_bytes, verify, verify_bytes
from tests.wire.conftest import delegate, private_key, public_key
from tests.wire.structs import all_structs
from tests.wire.test_structs import QUICK, mutations

replace = msgspec.structs.replace
PAYLOADS = [kind for kind in all_structs().values() if issubclass(kind, SignedPayload)]


def head(seq: int = 7) -> Head:
    return Head(seq, bytes(32), hashlib.sha256(b"root").digest(), 3, 1_800_000_000, 1_800_000_600)


def test_signature_covers_length_prefixed_domain_kind_and_payload() -> None:
    assert signed_bytes("ioc/1", "head", b"xyz") == b"\x05ioc/1\x04headxyz"
    assert signed_bytes("ab", "c", b"") != signed_bytes("a", "bc", b"")


def test_good_envelope() -> None:
    signed = sign(private_key("alice"), head())
    assert (signed.domain, signed.kind, signed.key) == ("ioc/1", "head", public_key("alice"))
    assert verify(signed, Head) == head()
    assert verify(decode(encode(signed), Signed), Head) == head()


def test_payload_is_taken_as_it_was_encoded() -> None:
    """Another encoder's longer integers verify: nothing is re-encoded to be checked."""
    payload = encode(head())
    longer = payload.replace(b"\x96\x07", b"\x96\xcd\x00\x07", 1)
    assert longer != payload
    key = private_key("alice")
    signature = key.sign(signed_bytes(DOMAIN, "head", longer))
    assert verify(Signed(DOMAIN, "head", longer, public_key("alice"), signature), Head) == head()


@pytest.mark.parametrize("at", [0, 31, 32, 63])
def test_changed_signature(at: int) -> None:
    signed = sign(private_key("alice"), head())
    changed = bytearray(signed.signature)
    changed[at] ^= 1
    with pytest.raises(BadSignature):
        verify(replace(signed, signature=bytes(changed)), Head)


def test_changed_payload_is_refused_before_it_is_parsed() -> None:
    signed = sign(private_key("alice"), head())
    for payload in (encode(head(8)), b"", b"\xc1", signed.payload + b"\x00"):
        with pytest.raises(BadSignature):
            verify(replace(signed, payload=payload), Head)


def test_another_key() -> None:
    with pytest.raises(BadSignature):
        verify(replace(sign(private_key("alice"), head()), key=public_key("bob")), Head)


def small_order_encodings() -> list[bytes]:
    """Encodings of the eight curve points P with 8 P = 0, found by arithmetic: the y of such points, and y + p."""
    p = 2**255 - 19
    d = -121665 * pow(121666, -1, p) % p
    # order 1, 2, 4: y = 1, -1, 0; order 8: doubling gives y = 0, so x² = -y² and d y⁴ + 2 y² - 1 = 0
    root = pow(1 + d, (p + 3) // 8, p)
    root = root if root * root % p == (1 + d) % p else root * pow(2, (p - 1) // 4, p) % p
    squares = [(-1 + sign * root) * pow(d, -1, p) % p for sign in (1, -1)]
    ys = {0, 1, p - 1}
    for square in squares:
        y = pow(square, (p + 3) // 8, p)
        y = y if y * y % p == square else y * pow(2, (p - 1) // 4, p) % p
        if y * y % p == square:
            ys |= {y, p - y}
    encodable = [y + more for y in ys for more in (0, p) if y + more < 2**255]
    return [(y | bit << 255).to_bytes(32, "little") for y in encodable for bit in (0, 1)]


def test_key_of_small_order_is_refused() -> None:
    """For such a key OpenSSL accepts one signature for a good part of all messages."""
    keys = small_order_encodings()
    assert len(keys) == 14
    for key in [*keys, b"\xff" * 32, bytes(31) + b"\x02"]:
        for signature in (bytes(64), b"\x01" + bytes(63), key + bytes(32)):
            for seq in range(8):
                with pytest.raises(BadSignature):
                    verify(replace(sign(private_key("alice"), head(seq)), key=key, signature=signature), Head)


P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
Point = tuple[int, int]
BASE: Point = (
    15112221349535400772501151409588531511454012693041857206046113283949847762202,
    4 * pow(5, -1, P) % P,
)


def add(a: Point, b: Point) -> Point:
    """Of two points of edwards25519, as slowly as the formula reads."""
    cross = D * a[0] * b[0] * a[1] * b[1]
    x = (a[0] * b[1] + b[0] * a[1]) * pow(1 + cross, -1, P) % P
    return x, (a[1] * b[1] + a[0] * b[0]) * pow(1 - cross, -1, P) % P


@functools.cache
def multiply(n: int, a: Point) -> Point:
    product: Point = (0, 1)
    while n:
        if n & 1:
            product = add(product, a)
        a, n = add(a, a), n >> 1
    return product


def point_bytes(a: Point) -> bytes:
    return (a[1] | (a[0] & 1) << 255).to_bytes(32, "little")


def twisted(seed: int, *, twisted_key: bool, twisted_r: bool) -> tuple[bytes, bytes, bytes]:
    """Key, signature and message; a point of order 4 is added to the key, or to the signature's R, or both."""
    torsion: Point = (pow(2, (P - 1) // 4, P), 0)
    secret, nonce = (
        int.from_bytes(hashlib.sha512(bytes((n, seed))).digest(), "little") % ORDER for n in (0, 1)
    )
    key, r = multiply(secret, BASE), multiply(nonce, BASE)
    public = point_bytes(add(key, torsion) if twisted_key else key)
    message, r_bytes = bytes((seed,)), point_bytes(add(r, torsion) if twisted_r else r)
    h = int.from_bytes(hashlib.sha512(r_bytes + public + message).digest(), "little")
    return public, r_bytes + ((nonce + h * secret) % ORDER).to_bytes(32, "little"), message


def test_second_encoding_of_a_signature_is_refused() -> None:
    """S and S + L would both solve the equation; RFC 8032 takes only the smaller."""
    order = 2**252 + 27742317777372353535851937790883648493
    signed = sign(private_key("alice"), head())
    twin = int.from_bytes(signed.signature[32:], "little") + order
    with pytest.raises(BadSignature):
        verify(replace(signed, signature=signed.signature[:32] + twin.to_bytes(32, "little")), Head)


def test_agrees_with_openssl_on_signatures_with_torsion() -> None:
    """Ed25519 checks differ in what they make of R or a key off the prime-order subgroup (RFC 8032 allows both). Ours
    does not multiply by the cofactor, nor does OpenSSL's: nobody can make a record that some nodes take and some not.
    """
    for seed in range(8):
        for twisted_key, twisted_r in ((False, True), (True, False), (True, True), (False, False)):
            public, signature, message = twisted(seed, twisted_key=twisted_key, twisted_r=twisted_r)
            try:
                Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
            except InvalidSignature:
                with pytest.raises(BadSignature):
                    verify_bytes(public, signature, message, "test")
            else:
                verify_bytes(public, signature, message, "test")


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_key_or_signature_of_another_length_is_refused(size: int) -> None:
    good = sign(private_key("alice"), head())
    with pytest.raises(BadSignature):
        verify_bytes(good.key.ljust(64)[:size], good.signature, b"", "test")
    with pytest.raises(BadSignature):
        verify_bytes(good.key, good.signature.ljust(96)[:size] if size != 64 else bytes(65), b"", "test")


def test_another_kind_or_domain() -> None:
    signed = sign(private_key("alice"), head())
    with pytest.raises(UnknownType, match="head"):
        verify(signed, Delegation)
    with pytest.raises(UnknownType):
        verify(replace(signed, kind="delegation"), Head)
    with pytest.raises(UnknownType):
        verify(replace(signed, domain="ioc/2"), Head)


def test_a_signature_for_one_kind_does_not_serve_another() -> None:
    """The same payload bytes under another kind: the kind is part of what is signed."""
    signed = sign(private_key("alice"), head())
    with pytest.raises(BadSignature):
        verify(replace(signed, kind="delegation"), Delegation)


def test_well_signed_nonsense_is_malformed() -> None:
    key = private_key("alice")
    for payload in (b"", b"\x90", b"\xc1", encode(["x"] * 6)):
        signature = key.sign(signed_bytes(DOMAIN, "head", payload))
        with pytest.raises(Malformed):
            verify(Signed(DOMAIN, "head", payload, public_key("alice"), signature), Head)


def test_kinds_are_unique_and_fit() -> None:
    kinds = [kind.kind for kind in PAYLOADS]
    assert len(set(kinds)) == len(kinds)
    assert all(0 < len(kind) <= 32 and kind.isascii() for kind in kinds)


@given(st.integers(0, 2**32))
@QUICK
def test_a_changed_envelope_never_verifies_as_something_else(seed: int) -> None:
    signed = sign(private_key("alice"), head())
    for mutant in mutations(encode(signed), seed, 20):
        try:
            envelope = decode(mutant, Signed)
            value = verify(envelope, Head)
        except WireError:
            continue
        assert (envelope.key, value) == (signed.key, head())


def test_bare_signature() -> None:
    key = private_key("alice")
    verify_bytes(public_key("alice"), key.sign(b"data"), b"data", "test")
    for public, data in ((public_key("alice"), b"date"), (public_key("bob"), b"data"), (b"short", b"data")):
        with pytest.raises(BadSignature, match="test"):
            verify_bytes(public, key.sign(b"data"), data, "test")


def test_nested_envelopes_stay_bytes() -> None:
    """A receipt holds the provider's envelope exactly as it was signed."""
    inner = delegate("root", "alice", "cn", "national")
    receipt = sign(private_key("bob"), Receipt(inner, 1))
    assert verify(receipt, Receipt).usage == inner
    assert UsageRecord.kind == "usage"
