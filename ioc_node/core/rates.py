"""Token buckets: how often something may happen, per second and at once."""

from collections import OrderedDict
from functools import lru_cache
from typing import Final

from ioc_node.core.routing import address_scope
from ioc_wire.dht import pack_host

BUCKETS_MAX: Final = 4096


class Rate:
    """`per_second` tokens flow in, up to `burst` are kept."""

    __slots__ = ("_at", "_burst", "_per_second", "_tokens")

    def __init__(self, per_second: float, burst: float) -> None:
        self._per_second = per_second
        self._burst = self._tokens = burst
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Take one token; False if there is none."""
        tokens = min(self._burst, self._tokens + (now - self._at) * self._per_second)
        self._at = now
        if tokens < 1:
            self._tokens = tokens
            return False
        self._tokens = tokens - 1
        return True


class RateTable:
    """One bucket per name, for the `BUCKETS_MAX` names used last."""

    __slots__ = ("_buckets", "_burst", "_per_second")

    def __init__(self, per_second: float, burst: float) -> None:
        self._per_second = per_second
        self._burst = burst
        self._buckets: OrderedDict[object, Rate] = OrderedDict()

    def take(self, name: object, now: float) -> bool:
        """Take one of `name`'s tokens; False if there is none."""
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = Rate(self._per_second, self._burst)
            if len(self._buckets) > BUCKETS_MAX:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(name)
        return bucket.take(now)


@lru_cache(maxsize=8192)
def source_name(host: str) -> bytes | None:
    """Whom the limits per address count together: one IPv4 address, or the /64 of an IPv6 address. None for
    loopback and private addresses, which say nothing about who is behind them.
    """
    return pack_host(host)[:8] if address_scope(host) == 2 else None
