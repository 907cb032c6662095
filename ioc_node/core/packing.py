"""Heads and status in messages that fit into a frame, and which of two head rows tells something new."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from ioc_node.core.catalogue import Catalogue
from ioc_node.core.gossip_events import NewsReceived, StatusReceived
from ioc_node.core.replica import FORKED
from ioc_wire import limits
from ioc_wire.gossip import HeadNews, HeadRow, HeadsPage, StatusAnnounced
from ioc_wire.signed import Signed

PAGE_BYTES: Final = 512 << 10
_NONE: Final[Mapping[bytes, int]] = {}


def tells_news(row: HeadRow, other: HeadRow | None) -> bool:
    """Whether whoever holds `other` lacks what `row` tells."""
    if other is None:
        return True
    if FORKED in (row.head, other.head):
        return row.head != other.head and row.head == FORKED
    return row.seq > other.seq or (row.seq == other.seq and row.head != other.head)


def by_provider(news: Iterable[HeadNews]) -> Iterator[tuple[HeadNews, ...]]:
    """News one by one; two at a time where one of the same provider follows, as in the proof of a fork."""
    held: HeadNews | None = None
    for one in news:
        if held is not None and held.head.key == one.head.key:
            yield (held, one)
            held = None
            continue
        if held is not None:
            yield (held,)
        held = one
    if held is not None:
        yield (held,)


def one_by_one(
    peer: bytes, news: Iterable[HeadNews], statuses: Iterable[Signed]
) -> Iterator[NewsReceived | StatusReceived]:
    """What `peer` told, in its order: a head (a pair that proves a fork stays together) or a status batch in each."""
    for some in by_provider(news):
        yield NewsReceived(peer, some)
    for batch in statuses:
        yield StatusReceived(peer, (batch,))


def in_steps(news: Iterable[HeadNews], step: int) -> Iterator[tuple[HeadNews, ...]]:
    """News in tuples of at most `step`; a pair stays together."""
    gathered: list[HeadNews] = []
    for some in by_provider(news):
        if len(gathered) + len(some) > step:
            yield tuple(gathered)
            gathered = []
        gathered += some
    if gathered:
        yield tuple(gathered)


def pack_statuses(batches: Iterable[Signed]) -> list[StatusAnnounced]:
    """Status batches in messages that fit into a frame."""
    pages: list[list[Signed]] = []
    room = 0
    for signed in batches:
        size = len(signed.payload) + 160
        if not pages or size > room or len(pages[-1]) >= limits.NEWS_MAX:
            pages.append([])
            room = PAGE_BYTES
        pages[-1].append(signed)
        room -= size
    return [StatusAnnounced(tuple(page)) for page in pages]


def pack_news(
    catalogue: Catalogue, providers: Iterable[bytes], status_seqs: Mapping[bytes, int] = _NONE
) -> list[HeadsPage]:
    """Heads (of a forked provider both) and newest status of `providers`, in pages that fit into a frame. Status is
    left out where `status_seqs`, by provider, says that the receiver has the newest."""
    news: list[HeadNews] = []
    statuses: list[Signed] = []
    for provider in providers:
        replica = catalogue.replica(provider)
        if replica is None:
            continue
        news.extend(replica.news())
        if replica.status_seq != status_seqs.get(provider):
            statuses.extend(held.signed for held in replica.statuses.values())
    pages = [HeadsPage(news=some) for some in in_steps(news, limits.NEWS_MAX // 2)]
    return pages + [HeadsPage(statuses=message.batches) for message in pack_statuses(statuses)]
