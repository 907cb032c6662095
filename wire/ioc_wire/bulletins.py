"""Bulletins: what core nodes announce to everybody, signed, each for some days (tags 62-63)."""

import hashlib
import unicodedata
from typing import Annotated, ClassVar, Final, Literal

import msgspec

from ioc_wire import limits
from ioc_wire.authority import Chain
from ioc_wire.cid import check_prefix
from ioc_wire.codec import Digest, Message, UInt, encode
from ioc_wire.errors import Expired, Malformed, NotYetValid, TooLarge
from ioc_wire.signed import Signed, SignedPayload, verify

Level = Literal["info", "warning"]
_UNSHOWN: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories that steer a terminal, or the order in which it shows what follows."""


class Bulletin(SignedPayload, frozen=True):
    """What a core node announces about a prefix (empty: the whole network) until `expires`. Its signer gives each
    `number` once. Times in seconds since 1970, UTC."""

    kind: ClassVar[str] = "bulletin"
    number: UInt
    title: Annotated[str, msgspec.Meta(min_length=1, max_length=limits.BULLETIN_TITLE_CHARS_MAX)]
    text: Annotated[str, msgspec.Meta(max_length=limits.BULLETIN_TEXT_CHARS_MAX)]
    level: Level
    about: Annotated[str, msgspec.Meta(max_length=limits.CID_BYTES_MAX)]
    issued: UInt
    expires: UInt


class BulletinNews(Message, frozen=True):
    """A signed `Bulletin` with the chain that makes its signer a core node; none in an open network."""

    statement: Signed
    chain: Chain = ()


class BulletinsTold(Message, tag=62, frozen=True):
    """One-way between core nodes: bulletins that are new to the sender. Also the answer to `FetchBulletins`."""

    news: Annotated[tuple[BulletinNews, ...], msgspec.Meta(max_length=limits.BULLETINS_TOLD_MAX)] = ()


class FetchBulletins(Message, tag=63, frozen=True):
    """Request to a core node: bulletins but those with these names, as many as one answer holds. Answer:
    `BulletinsTold`, empty where there are no others."""

    held: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=limits.BULLETINS_NAMED_MAX)] = ()


def bulletin_name(signed: Signed) -> bytes:
    """What a bulletin is called: SHA-256 of its encoding, 32 bytes."""
    return hashlib.sha256(encode(signed)).digest()


def check_shown(what: str, text: str) -> None:
    """Raise `Malformed` where `text` has characters that steer a terminal instead of being shown."""
    for at, char in enumerate(text):
        if unicodedata.category(char) in _UNSHOWN:
            raise Malformed(
                f"{what}: control character U+{ord(char):04X} at {at}; plain text in one line only"
            )


def verify_bulletin(news: BulletinNews, *, now: float) -> Bulletin:
    """Check a bulletin itself; whether its signer may speak of `about` is the chain's matter.

    Raises `TooLarge`, `BadSignature`, `UnknownType`, `Malformed`, `BadIdentifier`, `Expired` or `NotYetValid`.
    """
    size = len(encode(news))
    if size > limits.BULLETIN_BYTES_MAX:
        raise TooLarge(f"bulletin of {size} bytes, at most {limits.BULLETIN_BYTES_MAX} are allowed")
    bulletin = verify(news.statement, Bulletin)
    check_shown("title", bulletin.title)
    check_shown("text", bulletin.text)
    check_prefix(bulletin.about)
    if not 0 < bulletin.expires - bulletin.issued <= limits.BULLETIN_SECONDS_MAX:
        raise Malformed(f"a bulletin holds for 1 to {limits.BULLETIN_SECONDS_MAX} s from when it is issued")
    if now >= bulletin.expires:
        raise Expired(f"bulletin, since {int(now - bulletin.expires)} s")
    if now < bulletin.issued - limits.CLOCK_SKEW_SECONDS:
        raise NotYetValid(f"bulletin, issued {int(bulletin.issued - now)} s in the future")
    return bulletin
