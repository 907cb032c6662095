"""What other core nodes are yet to be told: by provider, not by message.

A burst of changes (all providers renew their heads, an island comes back) is gathered into few frames, and what a slow
link cannot take yet waits here as the newest state of a provider, not as a growing queue. Nothing is dropped while
the link stands; what is lost with a link, the next comparison repairs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from ioc_node.core.catalogue import Catalogue
from ioc_node.core.packing import pack_statuses
from ioc_node.runtime.links import Link
from ioc_wire import limits
from ioc_wire.codec import Message
from ioc_wire.gossip import HeadNews, HeadsAnnounced, StatusAnnounced
from ioc_wire.signed import Signed

GATHER_SECONDS: Final = 0.005
"""How long changes are gathered before they are told."""
RETRY_SECONDS: Final = 0.05
"""How long a link that has too much to send is left alone."""
_STEP: Final = limits.NEWS_MAX // 2


@dataclass(slots=True)
class _Untold:
    """Providers of whom a peer is to be told; in order, each once."""

    heads: dict[bytes, None] = field(default_factory=dict)
    statuses: dict[tuple[bytes, int], None] = field(default_factory=dict)
    """Provider and part."""

    def __bool__(self) -> bool:
        return bool(self.heads or self.statuses)


class Outbox:
    """Of one core node. `link_of` gives the link to a peer, if there is one."""

    def __init__(self, catalogue: Catalogue, link_of: Callable[[bytes], Link | None]) -> None:
        self._catalogue = catalogue
        self._link_of = link_of
        self._untold: dict[bytes, _Untold] = {}
        self._filled = trio.Event()
        self._chains: dict[Link, dict[bytes, tuple[Signed, ...]]] = {}
        """What each link's peer was told of whom: a chain is told once, and again when it is another."""

    def add(self, peer: bytes, message: Message) -> bool:
        """Note heads and status for `peer`; False, and nothing noted, for any other message."""
        if self._link_of(peer) is None:
            return isinstance(message, HeadsAnnounced | StatusAnnounced)
        match message:
            case HeadsAnnounced(news):
                told = [one.head.key for one in news if self._is_told(peer, one.head.key)]
                self._of(peer).heads.update(dict.fromkeys(told))
            case StatusAnnounced(batches):
                wanted = [batch for batch in batches if self._is_told(peer, batch.key)]
                self._of(peer).statuses.update(dict.fromkeys(self._parts_of(wanted)))
            case _:
                return False
        return True

    def _is_told(self, peer: bytes, provider: bytes) -> bool:
        replica = self._catalogue.replica(provider)
        return replica is not None and self._catalogue.interests.is_told(peer, replica.prefix)

    def _parts_of(self, batches: Sequence[Signed]) -> Iterator[tuple[bytes, int]]:
        for batch in batches:
            replica = self._catalogue.replica(batch.key)
            for part, held in replica.statuses.items() if replica is not None else ():
                if held.signed is batch:  # another is no longer the newest
                    yield batch.key, part

    def _of(self, peer: bytes) -> _Untold:
        self._filled.set()
        return self._untold.setdefault(peer, _Untold())

    async def run(self) -> None:
        """Tell everybody, until cancelled."""
        while True:
            await self._filled.wait()
            await trio.sleep(GATHER_SECONDS)
            self._filled = trio.Event()
            for link in [link for link in self._chains if link.closed.is_set()]:
                del self._chains[link]
            for peer in list(self._untold):
                await trio.lowlevel.checkpoint()
                self._tell(peer)
            if self._untold:
                self._filled.set()
                await trio.sleep(RETRY_SECONDS)

    def _tell(self, peer: bytes) -> None:
        untold, link = self._untold.pop(peer), self._link_of(peer)
        if link is None:
            return
        chains = self._chains.setdefault(link, {})
        for heads in self._heads(untold, chains):
            if not link.notify_nowait(heads):
                break
            chains.update((one.head.key, one.chain) for one in heads.news if one.chain)
            for one in heads.news:
                untold.heads.pop(one.head.key, None)
        else:
            for statuses in self._statuses(untold):
                if not link.notify_nowait(statuses):
                    break
                for name in self._parts_of(statuses.batches):
                    untold.statuses.pop(name, None)
        if untold and not link.closed.is_set():
            self._untold[peer] = untold

    def _heads(self, untold: _Untold, chains: dict[bytes, tuple[Signed, ...]]) -> Iterator[HeadsAnnounced]:
        """The heads to tell, as they are now; before status, which needs one."""
        heads = list(untold.heads)
        for start in range(0, len(heads), _STEP // 2):
            told = heads[start : start + _STEP // 2]
            replicas = [self._catalogue.replica(provider) for provider in told]
            news = tuple(
                HeadNews(one.head, (), one.contact) if chains.get(one.head.key) == one.chain else one
                for replica in replicas
                if replica is not None
                for one in replica.news()
            )
            if news:
                yield HeadsAnnounced(news)
            for provider, replica in zip(told, replicas, strict=True):
                if replica is None or not replica.news():
                    untold.heads.pop(provider, None)

    def _statuses(self, untold: _Untold) -> Iterator[StatusAnnounced]:
        """The status batches to tell, as they are now."""
        batches: list[Signed] = []
        for provider, part in list(untold.statuses):
            replica = self._catalogue.replica(provider)
            held = replica.statuses.get(part) if replica is not None else None
            if held is None:
                del untold.statuses[provider, part]
            else:
                batches.append(held.signed)
        yield from pack_statuses(batches)
