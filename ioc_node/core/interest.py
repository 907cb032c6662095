"""Which part of the names a core node replicates: everything, or what lies within chosen prefixes.

A prefix covers by whole labels: `cn.r3301` covers `cn.r3301.20004`, but not `cn.r33010`. `cn.r` and `cn.i`, which name
no node, stand for all regional and all industry nodes under `cn`. A provider counts by the prefix that it was granted
(its self-certified one where it was granted none): it is replicated where that lies within an interest, and also where
it contains one, because the names of such a provider may lie within. So whoever has an interest holds all that there
is within it.
"""

import functools
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Final, Self

from ioc_wire import limits
from ioc_wire.cid import check_prefix
from ioc_wire.errors import BadIdentifier, TooLarge

LABELS_MAX: Final = 3
GUEST_SECONDS: Final = 60.0
_KIND = re.compile(r"(?:[a-z]{2}|p2p)\.[ri]")


class Interest:
    """An immutable set of prefixes, empty for nothing; `EVERYTHING` has the one that covers all."""

    __slots__ = ("_above", "_within", "prefixes")

    def __init__(self, prefixes: Iterable[str]) -> None:
        given = set(prefixes)
        self.prefixes: Final = tuple(
            sorted(one for one in given if not any(one != other and _covers(other, one) for other in given))
        )
        self._within: Final = frozenset(self.prefixes)
        self._above: Final = frozenset(itertools.chain.from_iterable(map(_ways_up, self.prefixes)))

    @classmethod
    def told(cls, prefixes: Sequence[str]) -> Self:
        """What somebody says of itself, where no prefix at all means everything. Raises `BadIdentifier`, `TooLarge`."""
        if len(prefixes) > limits.INTEREST_PREFIXES_MAX:
            raise TooLarge(f"{len(prefixes)} prefixes, at most {limits.INTEREST_PREFIXES_MAX} are allowed")
        for prefix in prefixes:
            if not prefix:
                raise BadIdentifier("an empty prefix; leave all of them out to be interested in everything")
            if _KIND.fullmatch(prefix) is None:
                check_prefix(prefix)
        return cls(prefixes or ("",))

    @property
    def is_everything(self) -> bool:
        return self.prefixes == ("",)

    def covers(self, prefix: str) -> bool:
        """Whether all names with this prefix lie within."""
        return not self._within.isdisjoint(_ways_up(prefix))

    def overlaps(self, prefix: str) -> bool:
        """Whether names with this prefix may lie within."""
        return prefix in self._above or self.covers(prefix)

    def covers_area(self, area: str) -> bool:
        """As `covers`, of a prefix or the beginning of an identifier (`ioc:…`)."""
        return self.covers(area[: limits.CID_BYTES_MAX].removeprefix("ioc:").partition("/")[0])

    def covers_places(self, areas: Sequence[str]) -> bool:
        """Whether everything within these areas lies within; no area means anywhere."""
        return all(map(self.covers_area, areas)) if areas else self.is_everything

    def intersect(self, other: "Interest") -> "Interest":
        """What both cover."""
        if self.is_everything or self == other:
            return other
        if other.is_everything:
            return self
        mine = [prefix for prefix in self.prefixes if other.covers(prefix)]
        return Interest(mine + [prefix for prefix in other.prefixes if self.covers(prefix)])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Interest) and self.prefixes == other.prefixes

    def __hash__(self) -> int:
        return hash(self.prefixes)

    def __str__(self) -> str:
        if self.is_everything:
            return "everything"
        return ", ".join(self.prefixes) or "nothing"

    def __repr__(self) -> str:
        return f"Interest({str(self)!r})"


class Interests:
    """What one core node wants to hold, and what the core nodes that it is linked with said of themselves.

    Whatever a node's interest, it holds the catalogues of those that publish to it, until they have been gone for
    `GUEST_SECONDS`: by then they publish elsewhere, and what is held here would only grow old.
    """

    def __init__(self, own: Interest | None = None) -> None:
        self.own: Final = own or EVERYTHING
        self.told: dict[bytes, Interest] = {}
        self._guests: dict[bytes, float] = {}
        """Provider to when it is forgotten, in seconds since 1970."""

    def common(self, peer: bytes) -> Interest:
        """What this node and a peer both replicate."""
        return self.own.intersect(self.told.get(peer, EVERYTHING))

    def is_told(self, peer: bytes, prefix: str) -> bool:
        """Whether a peer wants to hear of a provider with this prefix."""
        told = self.told.get(peer)
        return told is None or told.overlaps(prefix)

    def guest_came(self, provider: bytes) -> None:
        """A provider publishes here."""
        self._guests[provider] = float("inf")

    def guest_left(self, provider: bytes, *, unix: float) -> None:
        if provider in self._guests:
            self._guests[provider] = unix + GUEST_SECONDS

    def wants(self, provider: bytes, prefix: str) -> bool:
        """Whether a provider's catalogue is to be held here."""
        return self.own.overlaps(prefix) or provider in self._guests

    def expire(self, *, unix: float) -> None:
        """Forget guests that left long ago."""
        for provider in [key for key, until in self._guests.items() if until < unix]:
            del self._guests[provider]


@functools.lru_cache(maxsize=1 << 14)
def _ways_up(prefix: str) -> tuple[str, ...]:
    """What covers a prefix: itself and all above it, the kind of its node among them."""
    labels = prefix.split(".", LABELS_MAX) if prefix else []
    found = ["", *(".".join(labels[:count]) for count in range(1, len(labels) + 1))]
    if len(labels) > 1:
        found.append(f"{labels[0]}.{labels[1][:1]}")
    return tuple(found)


def _covers(outer: str, inner: str) -> bool:
    return outer in _ways_up(inner)


EVERYTHING: Final = Interest(("",))
NOTHING: Final = Interest(())
