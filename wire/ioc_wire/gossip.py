"""What core nodes tell each other, and what providers tell their home core node (tags 1-19)."""

from typing import Annotated

import msgspec

from ioc_wire import limits
from ioc_wire.authority import Chain, RevocationNews
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
    """Provider to home core node: my catalogue has this head now. The core node fetches what it lacks with
    `FetchEntries` over the same link, so that both ways into a catalogue are one. Answer: `Published`."""

    news: HeadNews


class Published(Message, tag=4, frozen=True):
    seq: UInt


class HeadsAnnounced(Message, tag=5, frozen=True):
    """One-way: heads that the receiver may not have. It fetches what it lacks."""

    news: Annotated[tuple[HeadNews, ...], msgspec.Meta(max_length=limits.NEWS_MAX)]


class StatusAnnounced(Message, tag=6, frozen=True):
    """One-way: signed status batches, from a provider or passed on between core nodes."""

    batches: Annotated[tuple[Signed, ...], msgspec.Meta(max_length=limits.NEWS_MAX)]


class CompareHeads(Message, tag=7, frozen=True):
    """Anti-entropy: the sender's head-vector digest. Answer: `HeadsCompared`."""

    digest: Digest


class HeadRow(Message, frozen=True):
    """One provider in a head vector. `head` is the SHA-256 of the head's payload; 32 zero bytes stand for a provider
    that is quarantined because it forked. `status_seq` is that of its newest status batch, 0 where there is none."""

    provider: Key
    seq: UInt
    head: Digest
    status_seq: UInt


class HeadsCompared(Message, tag=8, frozen=True):
    """The answerer's head vector in order of provider; no rows where the digests are equal."""

    digest: Digest
    rows: Annotated[tuple[HeadRow, ...], msgspec.Meta(max_length=limits.PROVIDERS_MAX)]


class FetchHeads(Message, tag=13, frozen=True):
    """Heads and newest status batches of these providers. Answer: a stream of `HeadsPage`. `status_seqs`, one for each
    provider or none at all, are those that the sender has: equal ones are left out of the answer."""

    providers: Annotated[tuple[Key, ...], msgspec.Meta(min_length=1, max_length=limits.NEWS_MAX)]
    status_seqs: Annotated[tuple[UInt, ...], msgspec.Meta(max_length=limits.NEWS_MAX)] = ()


class HeadsPage(Message, tag=14, frozen=True):
    """Of a provider that forked, both heads are sent: together they are the proof."""

    news: Annotated[tuple[HeadNews, ...], msgspec.Meta(max_length=limits.NEWS_MAX)] = ()
    statuses: Annotated[tuple[Signed, ...], msgspec.Meta(max_length=limits.NEWS_MAX)] = ()


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
    """Ask a core node for the core nodes that it is linked with. Answer: `PeersKnown`."""


class PeersKnown(Message, tag=12, frozen=True):
    """Only core nodes that the sender has a verified link with. Also sent one-way between core nodes on change: a
    receiver then knows which of them need not be told again what the sender told everybody. `tree`: it tells along a
    tree instead."""

    core: Annotated[tuple[Contact, ...], msgspec.Meta(max_length=256)]
    tree: bool = False


class RevocationsAnnounced(Message, tag=15, frozen=True):
    """Revocations that the receiver may not have: one-way, to every linked node, and as the answer to
    `FetchRevocations`."""

    news: Annotated[tuple[RevocationNews, ...], msgspec.Meta(max_length=limits.NEWS_MAX)]


class CompareRevocations(Message, tag=16, frozen=True):
    """To a core node: SHA-256 over the names of all revocations that the sender remembers, in order. Answer:
    `RevocationsCompared`."""

    digest: Digest


class RevocationsCompared(Message, tag=17, frozen=True):
    """The names of the revocations that the answerer remembers, in order; none where the digests are equal."""

    digest: Digest
    names: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=limits.REVOCATIONS_MAX)]


class FetchRevocations(Message, tag=18, frozen=True):
    """Revocations by their names. Answer: `RevocationsAnnounced` with those that are remembered."""

    names: Annotated[tuple[Digest, ...], msgspec.Meta(min_length=1, max_length=limits.NEWS_MAX)]
