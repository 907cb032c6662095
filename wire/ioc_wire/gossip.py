"""What core nodes tell each other, and what providers tell their home core node (tags 1-19)."""

from typing import Annotated

import msgspec

from ioc_wire import limits
from ioc_wire.authority import Chain
from ioc_wire.codec import Digest, Key, Message, UInt
from ioc_wire.market import Contact
from ioc_wire.signed import Signed

EntryBytes = Annotated[bytes, msgspec.Meta(max_length=limits.RECORD_BYTES_MAX + 512)]
"""An encoded `CatalogueEntry`, exactly as the provider encoded it: it is a leaf of the Merkle tree."""


class HeadNews(Message, frozen=True):
    """A provider's signed head with the chain that authorises the provider, and where to reach it."""

    head: Signed
    chain: Chain
    contact: Contact | None


class PublishHead(Message, tag=1, frozen=True):
    """Provider to home core node: my catalogue has this head now. Answer: `WantEntries`."""

    news: HeadNews


class WantEntries(Message, tag=2, frozen=True):
    """Send me the entries that changed after `after_seq` (nothing is wanted where it equals the head's seq)."""

    after_seq: UInt


class PublishEntries(Message, tag=3, frozen=True):
    """A page of entries towards the head just published; `last` closes it. Answer: `Published`."""

    head: Digest
    entries: Annotated[tuple[EntryBytes, ...], msgspec.Meta(max_length=limits.PAGE_ENTRIES_MAX)]
    last: bool


class Published(Message, tag=4, frozen=True):
    seq: UInt


class HeadsAnnounced(Message, tag=5, frozen=True):
    """One-way: heads that the receiver may not have. It fetches what it lacks."""

    news: Annotated[tuple[HeadNews, ...], msgspec.Meta(max_length=256)]


class StatusAnnounced(Message, tag=6, frozen=True):
    """One-way: signed status batches, from a provider or passed on between core nodes."""

    batches: Annotated[tuple[Signed, ...], msgspec.Meta(max_length=256)]


class CompareHeads(Message, tag=7, frozen=True):
    """Anti-entropy: the sender's head-vector digest. Answer: `HeadsCompared`."""

    digest: Digest


class HeadsCompared(Message, tag=8, frozen=True):
    """Nothing where the digests are equal; else the answerer's heads and the newest status batches."""

    digest: Digest
    news: Annotated[tuple[HeadNews, ...], msgspec.Meta(max_length=8192)]
    statuses: Annotated[tuple[Signed, ...], msgspec.Meta(max_length=8192)]


class FetchEntries(Message, tag=9, frozen=True):
    """Entries of `provider` that changed after `after_seq`. Answer: a stream of `EntriesPage`."""

    provider: Key
    after_seq: UInt


class EntriesPage(Message, tag=10, frozen=True):
    """`head` is the signed head that the pages together lead to."""

    head: Signed
    entries: Annotated[tuple[EntryBytes, ...], msgspec.Meta(max_length=limits.PAGE_ENTRIES_MAX)]
    last: bool


class ExchangePeers(Message, tag=11, frozen=True):
    """Ask a core node for the core nodes that it is connected to. Answer: `PeersKnown`."""


class PeersKnown(Message, tag=12, frozen=True):
    """Only peers that the sender has a verified link with."""

    core: Annotated[tuple[Contact, ...], msgspec.Meta(max_length=256)]
