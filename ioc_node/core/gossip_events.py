"""What happens to the gossip machine (past facts), and what it commands its driver to do."""

from dataclasses import dataclass

from ioc_node.core.intake import Intake
from ioc_node.core.replica import Seen
from ioc_wire.codec import Message
from ioc_wire.errors import WireError
from ioc_wire.gossip import HeadNews, HeadRow
from ioc_wire.market import Contact
from ioc_wire.plumtree import TreeMessage
from ioc_wire.signed import Signed

# -- events


@dataclass(frozen=True, slots=True)
class LinkUp:
    """A link to `peer` is up. `contact` is where it takes links, if anywhere, `prefix` the one that it was granted."""

    peer: bytes
    core: bool
    contact: Contact | None = None
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class LinkDown:
    peer: bytes


@dataclass(frozen=True, slots=True)
class NewsReceived:
    """`peer` is None for this node's own catalogue."""

    peer: bytes | None
    news: tuple[HeadNews, ...]


@dataclass(frozen=True, slots=True)
class StatusReceived:
    peer: bytes | None
    batches: tuple[Signed, ...]


@dataclass(frozen=True, slots=True)
class PeersReceived:
    """`tree`: `peer` passes news on along a tree, not to all of these."""

    peer: bytes
    core: tuple[Contact, ...]
    tree: bool = False


@dataclass(frozen=True, slots=True)
class TreeReceived:
    """A core node speaks of the tree along which news goes."""

    peer: bytes
    message: TreeMessage


@dataclass(frozen=True, slots=True)
class VectorReceived:
    """The answer to `Compare`: no rows where nothing differs."""

    peer: bytes
    rows: tuple[HeadRow, ...]
    differs: bool


@dataclass(frozen=True, slots=True)
class EntriesFetched:
    """The answer to `Fetch`, all pages together."""

    peer: bytes | None
    provider: bytes
    after_seq: int
    head: Signed
    entries: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class EntriesPrepared:
    """The answer to `Fetch`, verified in steps outside of the machine: `target` is what `Catalogue.close` returned."""

    peer: bytes | None
    provider: bytes
    after_seq: int
    intake: Intake
    target: Seen


@dataclass(frozen=True, slots=True)
class EntriesRefused:
    """The answer to `Fetch`, and what is wrong with it."""

    peer: bytes | None
    provider: bytes
    after_seq: int
    error: WireError


@dataclass(frozen=True, slots=True)
class FetchFailed:
    peer: bytes
    provider: bytes


@dataclass(frozen=True, slots=True)
class ContactKnown:
    """A core node says itself that it is alive and takes links there."""

    contact: Contact


@dataclass(frozen=True, slots=True)
class ContactGone:
    """A core node has left or is dead: it is dialed no more."""

    key: bytes


@dataclass(frozen=True, slots=True)
class KeyRevoked:
    """`Trust` took in a revocation."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    LinkUp
    | LinkDown
    | NewsReceived
    | StatusReceived
    | PeersReceived
    | TreeReceived
    | VectorReceived
    | EntriesFetched
    | EntriesPrepared
    | EntriesRefused
    | FetchFailed
    | ContactKnown
    | ContactGone
    | KeyRevoked
    | Tick
)


# -- effects


@dataclass(frozen=True, slots=True)
class Notify:
    """Send one way; may be lost."""

    peer: bytes
    message: Message


@dataclass(frozen=True, slots=True)
class Fetch:
    """Fetch entries; ends in `EntriesPrepared` (or `EntriesFetched`), `EntriesRefused` or `FetchFailed`."""

    peer: bytes
    provider: bytes
    after_seq: int


@dataclass(frozen=True, slots=True)
class FetchNews:
    """Fetch heads and status; ends in `NewsReceived` and `StatusReceived`, or in nothing. `status_seqs` are those of
    the newest status held, 0 where there is none."""

    peer: bytes
    providers: tuple[bytes, ...]
    status_seqs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Compare:
    """Compare head vectors; ends in `VectorReceived` or in nothing."""

    peer: bytes


@dataclass(frozen=True, slots=True)
class Dial:
    """Open a link to a core node and keep it."""

    contact: Contact


@dataclass(frozen=True, slots=True)
class Persist:
    """Store this provider's heads, with what its book was given; remove what no longer exists."""

    provider: bytes


@dataclass(frozen=True, slots=True)
class CatalogueChanged:
    """Identifiers of `provider` in these slots came, changed or went, with their status; None: any of them."""

    provider: bytes
    slots: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class StatusChanged:
    """`provider` has new status for one part of its slots."""

    provider: bytes
    part: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """`what` of `provider`, told by `peer`, was not believed."""

    peer: bytes | None
    provider: bytes
    what: str
    error: WireError


Effect = Notify | Fetch | FetchNews | Compare | Dial | Persist | CatalogueChanged | StatusChanged | Refuse
