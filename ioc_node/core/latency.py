"""The latency rows that a core node knows: its own measurements, and the newest row of each other core node.

Another's row is believed only if its signer is a core node; it holds for minutes, and is bounded in size and number. It
may still lie. So what was measured here goes before it, and what is offered as near is pinged first (`core/nearness`).
"""

import statistics
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from ioc_node.core.trust import Trust
from ioc_wire import limits
from ioc_wire.authority import CORE_ROLES
from ioc_wire.errors import BrokenChain, OverQuota, Revoked, RoleNotGranted
from ioc_wire.latency import LatencyNews, LatencyRow, ProviderRtt, RowHeld, verify_row

ROWS_MAX: Final = 64
"""Core nodes whose rows are kept; those that come later are refused until one expires."""
PROVIDERS_MAX: Final = limits.LATENCY_RTTS_MAX
"""Providers whose samples are kept; the one measured longest ago goes."""
SAMPLES_KEPT: Final = 8


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

    def rtts(self, *, unix: float) -> tuple[ProviderRtt, ...]:
        """What a row says: least and median of the last samples, those of the last hour only."""
        found = []
        for provider, samples in self._samples.items():
            age = max(int(unix - samples.unix), 0)
            if age <= limits.LATENCY_SECONDS_MAX:
                last = samples.last
                found.append(ProviderRtt(provider, min(last), statistics.median_high(last), len(last), age))
        return tuple(found)


class Held(NamedTuple):
    """A verified row as it came."""

    news: LatencyNews
    row: LatencyRow


class LatencyBook:
    """The newest row of each core node."""

    def __init__(self, trust: Trust, *, rows_max: int = ROWS_MAX) -> None:
        self._trust = trust
        self._max = rows_max
        self._rows: dict[bytes, Held] = {}

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
        if core not in self._rows and len(self._rows) >= self._max:
            raise OverQuota(f"latency rows of {self._max} core nodes are held already")
        self._rows[core] = Held(news, row)
        return True

    def held(self) -> tuple[RowHeld, ...]:
        """Whose rows are held, to ask for newer ones."""
        return tuple(RowHeld(core, held.row.number) for core, held in self._rows.items())

    def lacking(self, held: Sequence[RowHeld]) -> tuple[LatencyNews, ...]:
        """Rows that are newer than `held`, as many as one message takes."""
        known = {each.core: each.number for each in held}
        newer = [each.news for core, each in self._rows.items() if known.get(core, -1) < each.row.number]
        return tuple(newer[: limits.LATENCY_TOLD_MAX])

    def by_provider(self, providers: Sequence[bytes]) -> Mapping[bytes, dict[bytes, float]]:
        """Least round trips to providers in ms: by provider, by the core node that measured them."""
        found: dict[bytes, dict[bytes, float]] = {provider: {} for provider in providers}
        for core, held in self._rows.items():
            for each in held.row.rtts:
                if each.provider in found:
                    found[each.provider][core] = each.rtt_us_min / 1000
        return found

    def expire(self, *, unix: float) -> None:
        """Drop what does not hold any more."""
        self._rows = {core: held for core, held in self._rows.items() if unix < held.row.expires}

    def drop_revoked(self) -> None:
        """Drop rows whose signer or chain was revoked since."""
        ended = self._trust.has_ended
        self._rows = {core: held for core, held in self._rows.items() if not ended(core, held.news.chain)}

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
