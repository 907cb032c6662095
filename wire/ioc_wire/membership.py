"""Which core nodes are alive: what they probe each other with, and what they tell of each other (tags 30-35).

Only the member itself says where it is and that it is alive; an accuser signs its own suspicion. So both may be passed
on by anybody, and neither can be made up by anybody else.
"""

from typing import Annotated, ClassVar

import msgspec

from ioc_wire import limits
from ioc_wire.authority import Chain
from ioc_wire.codec import Digest, Key, Message, UInt
from ioc_wire.market import Contact
from ioc_wire.signed import Signed, SignedPayload


class Alive(SignedPayload, frozen=True):
    """A core node's word of itself. A higher incarnation replaces a lower one; `left` says goodbye. `contact` names the
    envelope's key."""

    kind: ClassVar[str] = "alive"
    contact: Contact
    incarnation: UInt
    left: bool = False


class Accused(SignedPayload, frozen=True):
    """The signer could not reach `key` in this incarnation."""

    kind: ClassVar[str] = "accused"
    key: Key
    incarnation: UInt


class AliveNews(Message, frozen=True):
    """A signed `Alive` with the chain that makes its signer a core node; no chain is needed in an open network."""

    statement: Signed
    chain: Chain = ()


class MemberNews(Message, frozen=True):
    """What rides on every message between members: signed `Alive` and signed `Accused`."""

    alive: Annotated[tuple[AliveNews, ...], msgspec.Meta(max_length=limits.NEWS_MAX)] = ()
    accused: Annotated[tuple[Signed, ...], msgspec.Meta(max_length=limits.NEWS_MAX)] = ()


class Probe(Message, tag=30, frozen=True):
    """One-way: are you there? Answer: `ProbeAnswered` with this seq."""

    seq: UInt
    news: MemberNews = MemberNews()


class AskProbe(Message, tag=31, frozen=True):
    """One-way: probe member `target` for me, and tell me with `ProbeAnswered` and this seq what came of it."""

    seq: UInt
    target: Key
    news: MemberNews = MemberNews()


class ProbeAnswered(Message, tag=32, frozen=True):
    """One-way: `reached` is False where an asked member was given no answer in time; so it is alive itself."""

    seq: UInt
    reached: bool
    news: MemberNews = MemberNews()


class CompareMembers(Message, tag=33, frozen=True):
    """One-way: the digest of the sender's members, SHA-256 over `key (32) | incarnation (u64) | 1 if gone else 0`
    in order of key. Answered with `MembersVector` where the receiver's differs."""

    digest: Digest


class MemberRow(Message, frozen=True):
    """One member; `gone` where the sender holds it for dead or it left."""

    key: Key
    incarnation: UInt
    gone: bool


class MembersVector(Message, tag=34, frozen=True):
    """One-way: all members of the sender. Who receives it tells what is lacking there, and wants what it lacks."""

    rows: Annotated[tuple[MemberRow, ...], msgspec.Meta(max_length=limits.MEMBERS_MAX)]


class MembersTold(Message, tag=35, frozen=True):
    """One-way: statements that the receiver may not have. Those of `wanted` are told in return."""

    news: MemberNews = MemberNews()
    wanted: Annotated[tuple[Key, ...], msgspec.Meta(max_length=limits.NEWS_MAX)] = ()
