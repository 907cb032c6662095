"""The revocations that a node remembers: verified, bounded, one per revoker and key, each until it has to be no longer.

They are never evicted for others, since a forgotten revocation makes a stolen key good again: when the table is full,
or one revoker's share of it, further ones are refused. A root key is only bound by the table. What keys of an open
network say of themselves costs them nothing, so all of them together have one share.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

from ioc_wire import limits
from ioc_wire.authority import Revocation, RevocationNews, revocation_name, verify_revocation
from ioc_wire.errors import OverQuota

REVOCATIONS_PER_ISSUER_MAX: Final = 1024
_THEMSELVES: Final = b"keys without a chain"


class Remembered(NamedTuple):
    """One verified revocation. `whole`: nothing of the key counts any more, whoever granted it."""

    news: RevocationNews
    revocation: Revocation
    name: bytes
    whole: bool

    @property
    def revoker(self) -> bytes:
        return self.news.revocation.key


class Revocations:
    """`whole` are keys revoked whole; `ended` are pairs of an issuer and the key whose grants it ended."""

    def __init__(
        self,
        *,
        roots: Collection[bytes],
        certified: bool,
        revocations_max: int = limits.REVOCATIONS_MAX,
        per_issuer_max: int = REVOCATIONS_PER_ISSUER_MAX,
    ) -> None:
        self.whole: set[bytes] = set()
        self.ended: set[tuple[bytes, bytes]] = set()
        self._roots = frozenset(roots)
        self._certified = certified
        self._max = revocations_max
        self._per_issuer_max = per_issuer_max
        self._by_pair: dict[tuple[bytes, bytes], Remembered] = {}
        self._by_name: dict[bytes, Remembered] = {}
        self._shares: Counter[bytes] = Counter()
        self._digest: bytes | None = None

    def __len__(self) -> int:
        return len(self._by_pair)

    def __contains__(self, name: bytes) -> bool:
        return name in self._by_name

    def take(self, news: RevocationNews, *, unix: float) -> Remembered | None:
        """Verify and remember; None where it tells nothing new.

        Raises what `verify_revocation` raises, and `OverQuota`.
        """
        name = revocation_name(news.revocation)
        if name in self._by_name:
            return None
        revocation = verify_revocation(news, roots=self._roots, now=unix, certified=self._certified)
        pair = (news.revocation.key, revocation.subject)
        known = self._by_pair.get(pair)
        if known is not None and (known.revocation.until, known.name) >= (revocation.until, name):
            return None
        whole = pair[0] in self._roots or pair[0] == pair[1]
        remembered = Remembered(news, revocation, name, whole)
        if known is None:
            self._count_in(remembered)
        else:
            del self._by_name[known.name]
        self._by_pair[pair] = self._by_name[name] = remembered
        self._digest = None
        if whole:
            self.whole.add(revocation.subject)
        else:
            self.ended.add(pair)
        return remembered

    def _count_in(self, remembered: Remembered) -> None:
        share = self._share(remembered)
        if len(self._by_pair) >= self._max:
            raise OverQuota(f"{self._max} revocations are remembered here")
        if share not in self._roots and self._shares[share] >= self._per_issuer_max:
            raise OverQuota(f"{self._per_issuer_max} revocations of this revoker are remembered here")
        self._shares[share] += 1

    def _share(self, remembered: Remembered) -> bytes:
        news = remembered.news
        if remembered.revoker in self._roots:
            return remembered.revoker
        return news.revocation.key if news.chain else _THEMSELVES

    def expire(self, *, unix: float) -> list[bytes]:
        """Forget what need not be remembered any more; returns the names."""
        gone = [
            (pair, held)
            for pair, held in self._by_pair.items()
            if unix > held.revocation.until + limits.CLOCK_SKEW_SECONDS
        ]
        for pair, held in gone:
            del self._by_pair[pair], self._by_name[held.name]
            self._shares[self._share(held)] -= 1
            self.ended.discard(pair)
            self._digest = None
        if gone:
            self.whole.intersection_update(
                {held.revocation.subject for held in self._by_pair.values() if held.whole}
            )
        return [held.name for _, held in gone]

    def of(self, key: bytes) -> list[Remembered]:
        """What was revoked of this key."""
        return [held for held in self._by_pair.values() if held.revocation.subject == key]

    def names(self) -> tuple[bytes, ...]:
        """The names of all, in order."""
        return tuple(sorted(self._by_name))

    def digest(self) -> bytes:
        """SHA-256 over the names in order: equal where the same is remembered, 32 bytes."""
        if self._digest is None:
            self._digest = hashlib.sha256(b"".join(self.names())).digest()
        return self._digest

    def news(self, names: Iterable[bytes] | None = None) -> list[RevocationNews]:
        """The revocations with these names (all by default), as they are passed on."""
        chosen = self.names() if names is None else names
        return [self._by_name[name].news for name in chosen if name in self._by_name]
