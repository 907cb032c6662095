"""The latency rows that a core node knows: its own measurements, and the newest row of each other core node.

Another's row is believed only if its signer is a core node; it holds for minutes, and is bounded in size and number. It
may still lie. So what was measured here goes before it, and what is offered as near is pinged first (`core/nearness`).
"""

import statistics
from collections import OrderedDict, deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from ioc_node.core.near import coordinate_of, told_of
from ioc_node.core.nearness import Estimate, estimate
from ioc_node.core.trust import Trust
from ioc_node.core.vivaldi import Coordinate
from ioc_wire import limits
from ioc_wire.authority import CORE_ROLES
from ioc_wire.errors import BrokenChain, OverQuota, Revoked, RoleNotGranted
from ioc_wire.latency import (
    CoordinateTold,
    CoreRtt,
    LatencyNews,
    LatencyRow,
    ProviderRtt,
    RowHeld,
    Vantage,
    verify_row,
)

ROWS_MAX: Final = 64
"""Core nodes whose rows are kept; those that come later are refused until one expires."""
PROVIDERS_MAX: Final = limits.LATENCY_RTTS_MAX
"""Providers whose samples are kept; the one measured longest ago goes."""
SAMPLES_KEPT: Final = 8
STEP_PROVIDERS: Final = 16
"""Providers whose way is estimated between two pauses."""


class _Samples:
    def __init__(self) -> None:
        self.last: deque[int] = deque(maxlen=SAMPLES_KEPT)
        self.unix = 0.0


class Measurements:
    """Round trips that this node measured itself, by provider key."""

    def __init__(self) -> None:
        self._samples: OrderedDict[bytes, _Samples] = OrderedDict()

    def __len__(self) -> int:
        return len(self._samples)

    def note(self, provider: bytes, rtt_us: int, *, unix: float) -> None:
        """One measured round trip; nothing is noted of one that is negative or above 60 s."""
        if not 0 <= rtt_us <= limits.LATENCY_RTT_US_MAX:
            return
        samples = self._samples.setdefault(provider, _Samples())
        self._samples.move_to_end(provider)
        samples.last.append(rtt_us)
        samples.unix = unix
        if len(self._samples) > PROVIDERS_MAX:
            self._samples.popitem(last=False)

    def rtts(
        self, *, unix: float, places: Mapping[bytes, CoordinateTold] | None = None
    ) -> tuple[ProviderRtt, ...]:
        """What a row says: least and median of the last samples, those of the last hour only, and the provider's own
        word of its place where it gave one."""
        told = places or {}
        found = []
        for provider, samples in self._samples.items():
            age = max(int(unix - samples.unix), 0)
            if age <= limits.LATENCY_SECONDS_MAX:
                last = samples.last
                median = statistics.median_high(last)
                found.append(ProviderRtt(provider, min(last), median, len(last), age, told.get(provider)))
        return tuple(found)


class Held(NamedTuple):
    """A verified row as it came."""

    news: LatencyNews
    row: LatencyRow


class LatencyBook:
    """The newest row of each core node; that of this one, whose key is `own`, always has room."""

    def __init__(self, trust: Trust, *, own: bytes = b"", rows_max: int = ROWS_MAX) -> None:
        self._trust = trust
        self._own = own
        self._max = rows_max
        self._rows: dict[bytes, Held] = {}
        self._measured: dict[bytes, dict[bytes, ProviderRtt]] = {}
        """By provider, by the core node that measured it."""

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, news: LatencyNews, *, unix: float) -> bool:
        """Verify and keep a row; False where one as new is held.

        Raises what `verify_row` and `Trust.learn` raise, `Revoked`, `BrokenChain`, `RoleNotGranted`, and `OverQuota`
        where too many core nodes' rows are held.
        """
        core = news.statement.key
        held = self._rows.get(core)
        if held is not None and held.news.statement == news.statement:
            return False
        row = verify_row(news, now=unix)
        self._check_right(news, unix=unix)
        if held is not None and held.row.number >= row.number:
            return False
        self.expire(unix=unix)
        others = len(self._rows.keys() - {self._own, core})
        if core != self._own and others >= self._max:
            raise OverQuota(f"latency rows of {self._max} core nodes are held already")
        self._forget([core] if core in self._rows else [])
        self._rows[core] = Held(news, row)
        for each in row.rtts:
            self._measured.setdefault(each.provider, {})[core] = each
        return True

    def held(self) -> tuple[RowHeld, ...]:
        """Whose rows are held, to ask for newer ones."""
        return tuple(RowHeld(core, held.row.number) for core, held in self._rows.items())

    def lacking(self, held: Sequence[RowHeld]) -> tuple[LatencyNews, ...]:
        """Rows that are newer than `held`, as many as one message takes."""
        known = {each.core: each.number for each in held}
        newer = [each.news for core, each in self._rows.items() if known.get(core, -1) < each.row.number]
        return tuple(newer[: limits.LATENCY_TOLD_MAX])

    def coordinate(self, core: bytes) -> Coordinate | None:
        """Where a core node says that it stands."""
        held = self._rows.get(core)
        return coordinate_of(held.row.coordinate) if held is not None else None

    def by_provider(self, providers: Sequence[bytes]) -> Mapping[bytes, dict[bytes, float]]:
        """Least round trips to providers in ms: by provider, by the core node that measured them."""
        return {
            provider: {
                core: each.rtt_us_min / 1000 for core, each in self._measured.get(provider, {}).items()
            }
            for provider in providers
        }

    def place_of(self, provider: bytes) -> Coordinate | None:
        """Where a provider says that it stands, by the row that measured it last."""
        told = [each for each in self._measured.get(provider, {}).values() if each.coordinate is not None]
        return coordinate_of(min(told, key=lambda each: each.age_seconds).coordinate) if told else None

    def vantage_of(self, provider: bytes) -> Vantage:
        """Where a provider stands, by what core nodes measured to it and by its own word."""
        rtts = [CoreRtt(core, each.rtt_us_min) for core, each in self._measured.get(provider, {}).items()]
        place = self.place_of(provider)
        return Vantage(tuple(rtts[: limits.VANTAGE_CORES_MAX]), told_of(place) if place is not None else None)

    def expire(self, *, unix: float) -> None:
        """Drop what does not hold any more."""
        self._forget([core for core, held in self._rows.items() if unix >= held.row.expires])

    def drop_revoked(self) -> None:
        """Drop rows whose signer or chain was revoked since."""
        ended = self._trust.has_ended
        self._forget([core for core, held in self._rows.items() if ended(core, held.news.chain)])

    def _forget(self, cores: Iterable[bytes]) -> None:
        for core in cores:
            for each in self._rows.pop(core).row.rtts:
                known = self._measured[each.provider]
                del known[core]
                if not known:
                    del self._measured[each.provider]

    # -- estimates

    def estimating(
        self, vantage: Vantage, providers: Iterable[bytes]
    ) -> Generator[None, None, dict[bytes, Estimate | None]]:
        """How far each provider probably is from `vantage`, in steps."""
        own = {each.core: each.rtt_us / 1000 for each in vantage.rtts}
        at = coordinate_of(vantage.coordinate)
        found: dict[bytes, Estimate | None] = {}
        for number, provider in enumerate(providers):
            if number % STEP_PROVIDERS == STEP_PROVIDERS - 1:
                yield
            theirs, place = self.by_provider([provider])[provider], self.place_of(provider)
            places = (at, place) if at is not None and place is not None else None
            found[provider] = estimate(own, theirs, places)
        return found

    def _check_right(self, news: LatencyNews, *, unix: float) -> None:
        signer = news.statement.key
        if signer in self._trust.revoked:
            raise Revoked("the latency row's key")
        if not self._trust.certified:
            if news.chain:
                raise BrokenChain("a latency row needs none in an open network")
            return
        if not news.chain:
            raise BrokenChain("this network is certified and the latency row shows no chain")
        _, grant = self._trust.learn(news.chain, unix=unix)
        if grant.subject != signer:
            raise BrokenChain("the chain was given to another key than the latency row's")
        if not CORE_ROLES.intersection(grant.roles):
            raise RoleNotGranted(f"core node (the chain grants {', '.join(grant.roles)})")
