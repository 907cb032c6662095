"""Providers whose newer head was seen before its entries came: who has them, and who is being asked.

One fetch per provider is under way at a time, from one of the peers that announced the head; the next one is asked
when it fails.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

FETCHES_MAX: Final = 16
SOURCES_MAX: Final = 8
"""Peers remembered per lagging provider."""


@dataclass(slots=True)
class _Lag:
    sources: "OrderedDict[bytes, None]" = field(default_factory=OrderedDict)
    asking: bytes | None = None
    whole: bool = False


class Lagging:
    """All of them, by provider's key; no more than the catalogue knows providers."""

    def __init__(self) -> None:
        self._lags: dict[bytes, _Lag] = {}
        self._asked: set[bytes] = set()
        """Those of whom somebody is being asked."""

    def __contains__(self, provider: bytes) -> bool:
        return provider in self._lags

    def want(self, provider: bytes, peer: bytes, *, first: bool = True) -> None:
        """`peer` has what is lacking; it is asked before those that said so earlier, or after them."""
        lag = self._lags.setdefault(provider, _Lag())
        if first or peer not in lag.sources:
            lag.sources[peer] = None
            lag.sources.move_to_end(peer, last=not first)
        while len(lag.sources) > SOURCES_MAX:
            lag.sources.popitem()

    def begin(self, held_seq: Callable[[bytes], int | None]) -> Iterator[tuple[bytes, bytes, int]]:
        """Start what may be fetched now: peer, provider, and the seq after which; 0 for everything. `held_seq` says
        what is held of a provider, None if it is not known any more."""
        for provider, lag in self._lags.items():
            if len(self._asked) >= FETCHES_MAX:
                return
            if lag.asking is not None or not lag.sources or (seq := held_seq(provider)) is None:
                continue
            lag.asking = next(iter(lag.sources))
            self._asked.add(provider)
            yield lag.asking, provider, 0 if lag.whole else seq

    def end(self, peer: bytes, provider: bytes, *, drop_source: bool, done: bool) -> None:
        """A fetch from `peer` has ended. Nothing more is wanted when `done`, or when nobody is left to ask."""
        lag = self._lags.get(provider)
        if lag is None:
            return
        if lag.asking == peer:
            self._stop_asking(provider, lag)
        if drop_source:
            lag.sources.pop(peer, None)
        if lag.asking is None and (not lag.sources or done):
            self.forget(provider)

    def take_in(self, provider: bytes) -> None:
        """Entries came and fitted: what comes next builds on them."""
        if lag := self._lags.get(provider):
            lag.whole = False

    def fetch_whole(self, provider: bytes) -> bool:
        """Entries did not fit what is held: ask the same peer again, for all. False if nobody is being asked."""
        lag = self._lags.get(provider)
        if lag is None:
            return False
        lag.whole = True
        self._stop_asking(provider, lag)
        return True

    def _stop_asking(self, provider: bytes, lag: _Lag) -> None:
        lag.asking = None
        self._asked.discard(provider)

    def forget(self, provider: bytes) -> None:
        self._lags.pop(provider, None)
        self._asked.discard(provider)

    def from_peer(self, peer: bytes) -> list[bytes]:
        """The providers for which this peer is asked, or would be."""
        return [name for name, lag in self._lags.items() if lag.asking == peer or peer in lag.sources]
