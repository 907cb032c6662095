"""The bulletins that a node knows: verified, bounded, one per signer and number, each until it expires.

Who has too many, or where there are too many, loses those that expire soonest, so that all nodes drop the same ones. Of
two with the same number the first stays: a signer that says two things under one number is believed in neither order.
"""

from collections.abc import Collection
from typing import Final, NamedTuple

from ioc_node.core.trust import Trust
from ioc_wire import limits
from ioc_wire.authority import CORE_ROLES
from ioc_wire.bulletins import Bulletin, BulletinNews, bulletin_name, verify_bulletin
from ioc_wire.cid import self_certified_prefix
from ioc_wire.codec import encode
from ioc_wire.errors import BrokenChain, Conflict, OverQuota, PrefixNotCovered, Revoked, RoleNotGranted

BULLETINS_MAX: Final = 256
BULLETINS_PER_SIGNER_MAX: Final = 16
_ENVELOPE_BYTES: Final = 16
"""Of a message around its bulletins."""


class Posted(NamedTuple):
    """One verified bulletin."""

    name: bytes
    news: BulletinNews
    bulletin: Bulletin

    @property
    def signer(self) -> bytes:
        return self.news.statement.key

    @property
    def rank(self) -> tuple[int, bytes]:
        """The lowest goes first."""
        return self.bulletin.expires, self.name


class BulletinBoard:
    """What one node holds."""

    def __init__(
        self,
        trust: Trust,
        *,
        bulletins_max: int = BULLETINS_MAX,
        per_signer_max: int = BULLETINS_PER_SIGNER_MAX,
    ) -> None:
        self._trust = trust
        self._max, self._per_signer_max = bulletins_max, per_signer_max
        self._by_name: dict[bytes, Posted] = {}
        self._by_number: dict[tuple[bytes, int], bytes] = {}

    def __len__(self) -> int:
        return len(self._by_name)

    def __contains__(self, name: bytes) -> bool:
        return name in self._by_name

    @property
    def names(self) -> tuple[bytes, ...]:
        return tuple(self._by_name)

    def posted(self) -> tuple[Posted, ...]:
        """All, the newest first."""
        return tuple(sorted(self._by_name.values(), key=lambda p: (-p.bulletin.issued, p.name)))

    def take(self, news: BulletinNews, *, unix: float) -> Posted | None:
        """Verify and keep a bulletin; None where it is known.

        Raises what `verify_bulletin` and `Trust.learn` raise, `Revoked`, `BrokenChain`, `RoleNotGranted`,
        `PrefixNotCovered`, `Conflict`, and `OverQuota` where those that are held expire later.
        """
        name = bulletin_name(news.statement)
        if name in self._by_name:
            return None
        bulletin = verify_bulletin(news, now=unix)
        self._check_right(news, bulletin.about, unix=unix)
        self.expire(unix=unix)
        number = (news.statement.key, bulletin.number)
        if number in self._by_number:
            raise Conflict(f"bulletin {bulletin.number} of this signer came with other words before")
        made = Posted(name, news, bulletin)
        self._make_room(made)
        self._by_name[name] = made
        self._by_number[number] = name
        return made

    def _check_right(self, news: BulletinNews, about: str, *, unix: float) -> None:
        signer = news.statement.key
        if signer in self._trust.revoked:
            raise Revoked("the bulletin's key")
        if not self._trust.certified:
            if news.chain:
                raise BrokenChain("a bulletin needs none in an open network")
            own = self_certified_prefix(signer)
            if about not in ("", own):
                raise PrefixNotCovered(
                    f"{about} (in an open network a core node speaks of {own}, or of nothing)"
                )
            return
        if not news.chain:
            raise BrokenChain("this network is certified and the bulletin shows no chain")
        _, grant = self._trust.learn(news.chain, unix=unix)
        if grant.subject != signer:
            raise BrokenChain("the chain was given to another key than the bulletin's")
        if not CORE_ROLES.intersection(grant.roles):
            raise RoleNotGranted(f"core node (the chain grants {', '.join(grant.roles)})")
        if "national" not in grant.roles and not grant.covers(about):
            raise PrefixNotCovered(f"{about or 'the whole network'} (this key holds {grant.prefix})")

    def _make_room(self, made: Posted) -> None:
        own = [posted for posted in self._by_name.values() if posted.signer == made.signer]
        for among, most, whose in (
            (own, self._per_signer_max, "of this signer"),
            (self._by_name.values(), self._max, "in all"),
        ):
            if len(among) < most:
                continue
            soonest = min(among, key=lambda posted: posted.rank)
            if made.rank <= soonest.rank:
                raise OverQuota(f"{most} bulletins {whose} are held, and all expire later")
            self._drop([soonest])
            return  # one went, so there is room in all too

    def _drop(self, gone: Collection[Posted]) -> int:
        for posted in gone:
            del self._by_name[posted.name]
            del self._by_number[posted.signer, posted.bulletin.number]
        return len(gone)

    def expire(self, *, unix: float) -> int:
        """Drop what is over; returns how many."""
        return self._drop([p for p in self._by_name.values() if unix >= p.bulletin.expires])

    def drop_revoked(self) -> int:
        """Drop what rests on a revoked key or delegation; returns how many."""
        ended = self._trust.has_ended
        return self._drop([p for p in self._by_name.values() if ended(p.signer, p.news.chain)])

    def next_number(self, signer: bytes, *, unix: float) -> int:
        """A number that `signer` has not given: the time, so that also one whose database is lost finds one."""
        return max([int(unix), *(number + 1 for key, number in self._by_number if key == signer)])

    def lacking(self, held: Collection[bytes]) -> tuple[BulletinNews, ...]:
        """Bulletins whose names are not in `held`, the newest first, as many as fit into one message."""
        without = frozenset(held)
        chosen: list[BulletinNews] = []
        room = limits.BULLETINS_TOLD_BYTES_MAX - _ENVELOPE_BYTES
        for posted in self.posted():
            if posted.name in without:
                continue
            room -= len(encode(posted.news))
            if room < 0 or len(chosen) == limits.BULLETINS_TOLD_MAX:
                break
            chosen.append(posted.news)
        return tuple(chosen)
