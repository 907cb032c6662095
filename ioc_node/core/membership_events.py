"""What happens to the membership machine (past facts), what it commands, and its constants with their sources."""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from ioc_wire.codec import Message
from ioc_wire.errors import WireError
from ioc_wire.market import Contact

# -- events


@dataclass(frozen=True, slots=True)
class LinkUp:
    """An authenticated link to a core node is up: it lives, and takes links at `contact`, if anywhere."""

    peer: bytes
    contact: Contact | None = None


@dataclass(frozen=True, slots=True)
class LinkDown:
    peer: bytes


@dataclass(frozen=True, slots=True)
class Received:
    """A message over an authenticated link with a core node."""

    peer: bytes
    message: Message


@dataclass(frozen=True, slots=True)
class Introduced:
    """Core nodes that were heard of, or are remembered: nothing is known of them until they answer."""

    contacts: tuple[Contact, ...]


@dataclass(frozen=True, slots=True)
class KeyRevoked:
    """`Trust` took in a revocation."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Leave:
    """This node is about to stop."""


Event = LinkUp | LinkDown | Received | Introduced | KeyRevoked | Tick | Leave

# -- effects


@dataclass(frozen=True, slots=True)
class Send:
    """Send one way, over a link opened for it where there is none; may be lost."""

    contact: Contact
    message: Message


@dataclass(frozen=True, slots=True)
class MemberCame:
    """A member was not known, or was held dead, and lives."""

    contact: Contact


@dataclass(frozen=True, slots=True)
class MemberSuspected:
    """A living member did not answer, here or elsewhere: it is held dead soon, unless it refutes."""

    key: bytes


@dataclass(frozen=True, slots=True)
class MemberWent:
    """A member is held dead now, or said goodbye."""

    key: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """`what`, told by `peer`, was not believed."""

    peer: bytes
    what: str
    error: WireError


Effect = Send | MemberCame | MemberSuspected | MemberWent | Refused


class State(Enum):
    """How a member stands, in this node's own judgement."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class Member:
    """One row of the membership. `since` is when it got this state, on the machine's clock."""

    contact: Contact
    state: State
    incarnation: int
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """SWIM's constants, and which of Lifeguard's and of our own precautions are taken.

    Sources: SWIM (Das, Gupta, Motivala, DSN 2002); Lifeguard (Dadgar, Phillips, Currey, arXiv 1707.00788):
    period 1 s, time-out 0.5 s, 3 indirect probes, alpha 5, beta 6, K 3, local health at most 8.
    """

    period_seconds: float = 1.0
    answer_seconds: float = 0.5
    """How long a direct probe waits before others are asked to probe."""
    indirect: int = 3
    alpha: float = 5.0
    """A suspicion lasts at least alpha * log10(members) periods."""
    beta: float = 6.0
    """And at most so many times as long, while nobody else confirms it."""
    confirmations: int = 3
    """Independent confirmations that bring a suspicion down to its shortest."""
    health_max: int = 8
    retransmits: int = 4
    """A statement is passed on retransmits * ceil(log10(members + 1)) times (lambda log n)."""
    dead_periods: int = 10
    """A dead member is probed every so many periods, any of them."""
    compare_periods: int = 30
    """Memberships are compared with another member every so many periods."""
    lifeguard: bool = True
    """Local health, suspicions that shrink, NACKs, telling the suspect. Without: SWIM, beta is 1."""
    own_probe: bool = True
    """Ours: a node holds another dead only after a probe of its own, and what it reaches itself lives."""
    own_stalls: bool = True
    """Ours: a node that was stalled itself gives what it waits for another chance."""


SWIM: Final = Settings(lifeguard=False, own_probe=False, own_stalls=False)
LIFEGUARD: Final = Settings(own_probe=False, own_stalls=False)
OURS: Final = Settings()
