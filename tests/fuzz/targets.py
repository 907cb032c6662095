"""What is fuzzed: every way from bytes to a value in the DHT, and whole machines.

A target takes bytes and returns nothing. The property: only a `WireError` may come out of a decoder, and what decodes
also encodes and decodes to itself. A target raises `AssertionError`, or whatever escaped, when that does not hold.
"""

import random
from collections.abc import Callable
from typing import Any, Final

from ioc_node.core.trust import Trust
from ioc_wire import codec, dht, signed
from ioc_wire.authority import (
    Chain,
    Delegation,
    Revocation,
    RevocationNews,
    chain_hash,
    verify_chain,
    verify_revocation,
)
from ioc_wire.errors import WireError
from ioc_wire.records import ResourceRecord, Tombstone, decode_entry, verify_named
from ioc_wire.signed import DOMAIN, Signed, SignedPayload, public_bytes, signed_bytes
from tests.core.staple import NETWORK, UNIX, key_of
from tests.fuzz import stage
from tests.wire.structs import all_structs

Target = Callable[[bytes], None]

SIGNER: Final = key_of("signer")
ROOT: Final = public_bytes(SIGNER)
MODULES: Final = ("dht", "records", "authority", "signed")
STRUCTS: Final = [kind for name, kind in all_structs().items() if name.partition(".")[0] in MODULES]
WHOLE: Final = ("machines",)
"""Targets that take milliseconds, not microseconds."""


def _stable(decode: Callable[[bytes], Any], encode: Callable[[Any], bytes], exact: bool = False) -> Target:
    """Decoding ends in a `WireError` or in a value that survives a round trip (`exact`: as the same bytes)."""

    def target(data: bytes) -> None:
        try:
            value = decode(data)
        except WireError as error:
            str(error)
            return
        again = encode(value)
        assert not exact or again == data, f"{data.hex()} is also {again.hex()}"
        assert decode(again) == value

    return target


def seal(kind: type[SignedPayload], payload: bytes) -> Signed:
    """`payload` under a good signature, so that what is behind the check of signatures is reached."""
    signature = SIGNER.sign(signed_bytes(DOMAIN, kind.kind, payload))
    return Signed(DOMAIN, kind.kind, payload, ROOT, signature)


def _named(kind: type[SignedPayload]) -> Target:
    def target(data: bytes) -> None:
        envelope = seal(kind, data)
        try:
            record, cid = verify_named(envelope, now=UNIX)
        except WireError as error:
            str(error)
            return
        assert record.cid.startswith(f"ioc:{cid.prefix}/")

    return target


def _holder(data: bytes) -> None:
    try:
        dht.verify_holder(seal(dht.HolderRecord, data), now=UNIX)
    except WireError as error:
        str(error)


def _delegation(data: bytes) -> None:
    chain = (seal(Delegation, data),)
    try:
        grant = verify_chain(chain, roots={ROOT}, now=UNIX)
    except WireError as error:
        str(error)
        return
    assert grant.covers(grant.prefix)


def _revocation(data: bytes) -> None:
    """Signed by a root; what it says is taken in where it may be."""
    trust = Trust(network_id=NETWORK, admission="certified", roots={ROOT})
    try:
        trust.take(RevocationNews(seal(Revocation, data)), unix=UNIX)
    except WireError as error:
        str(error)


def _news(data: bytes) -> None:
    """A revocation as it arrives, with its chain, in an open network and in a certified one."""
    try:
        news = codec.decode(data, RevocationNews)
    except WireError as error:
        str(error)
        return
    for certified in (False, True):
        try:
            verify_revocation(news, roots={ROOT, news.revocation.key}, now=UNIX, certified=certified)
        except WireError as error:
            str(error)


def _chain(data: bytes) -> None:
    """A chain as it arrives, its signatures checked as they are."""
    try:
        chain = codec.decode(data, Chain)
        chain_hash(chain)
        verify_chain(chain, roots={ROOT, *(link.key for link in chain[:1])}, now=UNIX)
    except WireError as error:
        str(error)


def _signed(data: bytes) -> None:
    """An envelope as it arrives, read as each kind of payload."""
    try:
        envelope = codec.decode(data, Signed)
    except WireError as error:
        str(error)
        return
    for kind in (ResourceRecord, Tombstone, Delegation, dht.HolderRecord):
        try:
            signed.verify(envelope, kind)
        except WireError as error:
            str(error)


def _trust(data: bytes) -> None:
    """A record of a known key, checked as a server checks it."""
    trust = Trust(network_id=NETWORK, admission="certified" if len(data) % 2 else "open", roots={ROOT})
    for kind in (ResourceRecord, Tombstone):
        try:
            trust.check_record(seal(kind, data), None, unix=UNIX)
        except WireError as error:
            str(error)


def _struct(data: bytes) -> None:
    """The first byte chooses the struct."""
    if data:
        kind = STRUCTS[data[0] % len(STRUCTS)]
        _stable(lambda rest: codec.decode(rest, kind), codec.encode)(data[1:])


def _unknown(data: bytes) -> None:
    number = dht.unknown_request(data)
    assert number is None or 0 <= number < 2**63


def _refused(data: bytes) -> None:
    _stable(dht.decode_refused, lambda v: bytes((dht.REFUSED,)) + v[0] + v[1] + v[2].to_bytes(2, "big"))(data)


def _handshake(data: bytes) -> None:
    head = dht.HANDSHAKE_HEADER_BYTES
    _stable(dht.decode_handshake, lambda shake: shake.encode() + data[head:])(data)


TARGETS: Final[dict[str, Target]] = {
    "knock": _stable(dht.decode_knock, dht.Knock.encode),
    "whoareyou": _stable(dht.decode_whoareyou, dht.Whoareyou.encode),
    "handshake": _handshake,
    "refused": _refused,
    "opening": _stable(dht.decode_opening, codec.encode),
    "acceptance": _stable(dht.decode_acceptance, codec.encode),
    "message": _stable(dht.decode_message, dht.encode_message),
    "unknown-request": _unknown,
    "host": _stable(dht.unpack_host, dht.pack_host, exact=True),
    "entry": _stable(decode_entry, codec.encode),
    "struct": _struct,
    "signed": _signed,
    "chain": _chain,
    "record": _named(ResourceRecord),
    "tombstone": _named(Tombstone),
    "holder": _holder,
    "delegation": _delegation,
    "revocation": _revocation,
    "news": _news,
    "trust": _trust,
    "machines": stage.play,
}


def dice_of(name: str, seed: int) -> random.Random:
    return random.Random(f"{name} {seed}")
