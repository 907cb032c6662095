"""How bytes share what an operator allows: ceilings in total, per class of traffic and per peer, weights below them.

Theory of operation. Every ceiling is a token bucket with a queue in front. A *flow* (one peer, one class, one blob)
asks for a few bytes at a time; the request waits in the queue of each bucket that applies to its flow, and may go once
every one of them has paid. Each bucket pays its requests in the order of start-time fair queueing (Goyal, Vin and
Cheng, 1996): a request's start tag is the later of the bucket's virtual time and the flow's last finish tag, and its
finish tag lies its size divided by the flow's weight later. So flows that wait at one bucket get bytes in proportion to
their weights, whatever the sizes of their requests; one that asks for less leaves the rest to the others; and nobody
starves, since a bucket pays each request after finitely many others, and what it has paid it does not take back while
the request waits elsewhere.

Over any time of `t` seconds a bucket pays at most `rate * t` and its burst, where no request is larger than that; a
larger one goes once the bucket is full and leaves it in debt. A ceiling that is not there costs nothing: without any,
every request goes at once, and what is shared then is the machine.

Pure state: time is an argument, in seconds of one clock.
"""

import heapq
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Final, Literal

Traffic = Literal["interactive", "task", "bulk"]
TRAFFIC: Final[tuple[Traffic, ...]] = ("interactive", "task", "bulk")
"""Somebody waits for it; a task does; nobody does."""

BURST_SECONDS: Final = 0.1
"""What may go at once after a pause, as time at a bucket's rate."""
BURST_BYTES_MIN: Final = 64 << 10
PIECE_SECONDS: Final = 0.02
PIECE_BYTES_MIN: Final = 16 << 10
PIECE_BYTES_MAX: Final = 1 << 20
METER_SECONDS: Final = 2.0
"""Rates told are averages over about so long."""
USES_MAX: Final = 1024
PEER_BUCKETS_MAX: Final = 4096
HURRIED_MAX: Final = 1024
_ROUNDING: Final = 1.0
"""Bytes by which a bucket pays early: what adding up times may lose."""

_Name = bytes | Traffic | None
"""Of a bucket: a peer's node ID, a class, or None for the total."""


@dataclass(frozen=True)
class Ceilings:
    """Bytes per second; what is None or not named has no ceiling. A peer named in `peers` (by its node ID) has its own
    ceiling instead of `each_peer`."""

    total: float | None = None
    each_peer: float | None = None
    classes: Mapping[Traffic, float] = field(default_factory=dict)
    peers: Mapping[bytes, float] = field(default_factory=dict)

    def of_peer(self, peer: bytes) -> float | None:
        """The ceiling of one peer."""
        return self.peers.get(peer, self.each_peer)

    def named(self) -> Iterator[float]:
        """All that are there."""
        for each in (self.total, self.each_peer, *self.classes.values(), *self.peers.values()):
            if each is not None:
                yield each


class _Bucket:
    """One ceiling and who waits for it."""

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self.at = now
        self.tokens = self.burst
        self.virtual = 0.0
        self.waiting: list[tuple[float, int, Request]] = []
        self.finish: dict[Flow, float] = {}

    @property
    def burst(self) -> float:
        return max(self.rate * BURST_SECONDS, BURST_BYTES_MIN)

    def settle(self, now: float) -> None:
        """Let tokens flow in up to now."""
        self.tokens = min(self.burst, self.tokens + max(0.0, now - self.at) * self.rate)
        self.at = max(self.at, now)

    def head(self) -> "Request | None":
        """Who is next; those that do not wait any more are dropped."""
        while self.waiting:
            request = self.waiting[0][2]
            if self in request.unpaid:
                return request
            heapq.heappop(self.waiting)
        return None

    def missing(self, request: "Request") -> float:
        """Tokens that must still flow in before this one is paid."""
        return min(request.size, self.burst) - self.tokens


@dataclass(eq=False, slots=True)
class Flow:
    """One transfer: what shares as one, over however many connections. Made by `Bandwidth.open`."""

    peer: bytes
    traffic: Traffic
    name: object
    users: int = 0


@dataclass(eq=False, slots=True)
class Request:
    """`size` bytes of one flow that want to move. They may once `unpaid` is empty."""

    flow: Flow
    size: int
    number: int
    factor: float = 1.0
    """Of its weight, see `Bandwidth.hurry`."""
    paid: dict[_Bucket, float] = field(default_factory=dict)
    unpaid: dict[_Bucket, float] = field(default_factory=dict)
    """Start tags by bucket."""

    @property
    def granted(self) -> bool:
        """Whether they may move."""
        return not self.unpaid


class Meter:
    """Bytes, and bytes per second averaged over the last `METER_SECONDS` or so (decaying exponentially)."""

    __slots__ = ("_at", "_level", "total")

    def __init__(self, now: float) -> None:
        self.total = 0
        self._level = 0.0
        self._at = now

    def add(self, size: int, now: float) -> None:
        self._level = self._decayed(now) + size
        self._at = max(self._at, now)
        self.total += size

    def rate(self, now: float) -> float:
        return self._decayed(now) / METER_SECONDS

    def _decayed(self, now: float) -> float:
        return self._level * math.exp(min(0.0, self._at - now) / METER_SECONDS)


@dataclass(frozen=True)
class Use:
    """What one peer moves in one class. `flows` are open now."""

    peer: bytes
    traffic: Traffic
    bytes_moved: int
    bytes_per_second: float
    flows: int
    waiting: int
    """Requests that wait for a ceiling now."""


class Bandwidth:
    """One direction of one node."""

    def __init__(self, ceilings: Ceilings, weights: Mapping[Traffic, float], *, now: float) -> None:
        self.ceilings = Ceilings()
        self._weights: dict[Traffic, float] = {}
        self._buckets: dict[_Name, _Bucket] = {}
        self._flows: dict[tuple[bytes, Traffic, object], Flow] = {}
        self._busy: dict[_Bucket, None] = {}
        """Those that somebody may wait for."""
        self._pending: dict[Request, None] = {}
        self._released: list[Request] = []
        """What a change of the ceilings has let go."""
        self._numbers = count()
        self._meters: OrderedDict[tuple[bytes, Traffic], Meter] = OrderedDict()
        self._hurried: dict[tuple[bytes, object], float] = {}
        self.set(ceilings, weights, now=now)

    # -- what the operator says

    @property
    def weights(self) -> Mapping[Traffic, float]:
        """Of one flow of each class."""
        return self._weights

    def set(self, ceilings: Ceilings, weights: Mapping[Traffic, float], *, now: float) -> None:
        """Other ceilings and weights from now on, also for what waits. Raises `ValueError` for one that is not above
        zero."""
        for each in (*ceilings.named(), *weights.values()):
            if not (each > 0 and math.isfinite(each)):
                raise ValueError(f"a ceiling or weight has to be above 0, not {each:g}")
        self.ceilings = ceilings
        self._weights = {traffic: weights.get(traffic, 1.0) for traffic in TRAFFIC}
        for name, bucket in list(self._buckets.items()):
            bucket.settle(now)
            rate = self._rate_of(name)
            if rate is None:
                del self._buckets[name]
            else:
                bucket.rate = rate
                bucket.tokens = min(bucket.tokens, bucket.burst)
            bucket.waiting = []
            bucket.finish.clear()
            bucket.virtual = 0.0
        self._busy.clear()
        for request in list(self._pending):
            request.unpaid.clear()
            for bucket in self._buckets_for(request.flow.peer, request.flow.traffic, now):
                if bucket not in request.paid:
                    self._queue(request, bucket)
            if request.granted:
                del self._pending[request]
                self._released.append(request)

    # -- flows

    def open(self, peer: bytes, traffic: Traffic, name: object) -> Flow:
        """The flow of that name, one user more."""
        key = (peer, traffic, name)
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = Flow(peer, traffic, name)
        flow.users += 1
        return flow

    def close(self, flow: Flow) -> None:
        """One user less; with the last one the flow ends."""
        flow.users -= 1
        if flow.users == 0:
            del self._flows[flow.peer, flow.traffic, flow.name]
            for bucket in self._buckets.values():
                bucket.finish.pop(flow, None)

    def ceiling_of(self, peer: bytes, traffic: Traffic) -> float:
        """The lowest ceiling that applies; `math.inf` without any."""
        names: tuple[_Name, ...] = (None, traffic, peer)
        rates = (self._rate_of(name) for name in names)
        return min((rate for rate in rates if rate is not None), default=math.inf)

    def is_limited(self, flow: Flow) -> bool:
        """Whether any ceiling applies to this flow."""
        return bool(self.ceiling_of(flow.peer, flow.traffic) < math.inf)

    def piece_bytes(self, flow: Flow) -> int:
        """How much to ask for at a time: a few milliseconds of the narrowest ceiling."""
        rate = self.ceiling_of(flow.peer, flow.traffic)
        return int(max(PIECE_BYTES_MIN, min(PIECE_BYTES_MAX, rate * PIECE_SECONDS)))

    def hurry(self, peer: bytes, name: object, factor: float) -> None:
        """The flow `name` with that peer (None: every one with it) weighs `factor` times as much as its class says,
        from its next request on; 1 ends that. Raises `ValueError`."""
        if not (factor > 0 and math.isfinite(factor)):
            raise ValueError(f"a weight has to be above 0, not {factor:g}")
        if factor == 1:
            self._hurried.pop((peer, name), None)
        elif (peer, name) in self._hurried or len(self._hurried) < HURRIED_MAX:
            self._hurried[peer, name] = factor

    # -- bytes

    def ask(self, flow: Flow, size: int, *, now: float) -> Request:
        """Have `size` bytes wait their turn. `advance` then says who may go, this one perhaps among them."""
        request = Request(flow, size, next(self._numbers), self._factor_of(flow))
        for bucket in self._buckets_for(flow.peer, flow.traffic, now):
            self._queue(request, bucket)
        if not request.granted:
            self._pending[request] = None
        return request

    def withdraw(self, request: Request) -> None:
        """It waits no more, or does not use what it got. What buckets have paid is theirs again, and its flow's turn is
        where it was."""
        for bucket, start in (*request.paid.items(), *request.unpaid.items()):
            if bucket.finish.get(request.flow) == self._finish(request, start):
                bucket.finish[request.flow] = start
        for bucket in request.paid:
            bucket.tokens = min(bucket.burst, bucket.tokens + request.size)
        request.paid.clear()
        request.unpaid.clear()
        self._pending.pop(request, None)

    def advance(self, now: float) -> list[Request]:
        """Who may go now, in order."""
        granted, self._released = self._released, []
        for bucket in list(self._busy):
            bucket.settle(now)
            while (request := bucket.head()) is not None and bucket.missing(request) <= _ROUNDING:
                start, _, _ = heapq.heappop(bucket.waiting)
                bucket.tokens -= request.size
                bucket.virtual = max(bucket.virtual, start)
                request.paid[bucket] = request.unpaid.pop(bucket)
                if request.granted:
                    del self._pending[request]
                    granted.append(request)
            if not bucket.waiting:
                del self._busy[bucket]
        return sorted(granted, key=lambda request: request.number)

    def admits(self, peer: bytes, traffic: Traffic, size: int, *, now: float) -> bool:
        """Whether bytes that nobody can hold back, such as a relay's datagrams, may go now: else they are to be
        dropped. They go ahead of what waits, and what they take counts."""
        buckets = self._buckets_for(peer, traffic, now)
        for bucket in buckets:
            bucket.settle(now)
        if any(bucket.tokens < min(size, bucket.burst) for bucket in buckets):
            return False
        for bucket in buckets:
            bucket.tokens -= size
        self.moved(peer, traffic, size, now=now)
        return True

    def deadline(self) -> float:
        """When to `advance` next; `math.inf` while nobody waits."""
        soonest = math.inf
        for bucket in self._busy:
            request = bucket.head()
            if request is not None:
                soonest = min(soonest, bucket.at + max(0.0, bucket.missing(request)) / bucket.rate)
        return soonest

    # -- what moved

    def moved(self, peer: bytes, traffic: Traffic, size: int, *, now: float) -> None:
        """Count bytes that moved."""
        key = (peer, traffic)
        meter = self._meters.get(key)
        if meter is None:
            meter = self._meters[key] = Meter(now)
            if len(self._meters) > USES_MAX:
                self._meters.popitem(last=False)
        else:
            self._meters.move_to_end(key)
        meter.add(size, now)

    def uses(self, now: float) -> list[Use]:
        """Who uses what, the quickest first: of the `USES_MAX` pairs of peer and class that moved something last."""
        flows: dict[tuple[bytes, Traffic], int] = {}
        waiting: dict[tuple[bytes, Traffic], int] = {}
        for flow in self._flows.values():
            key = (flow.peer, flow.traffic)
            flows[key] = flows.get(key, 0) + 1
        for request in self._pending:
            key = (request.flow.peer, request.flow.traffic)
            waiting[key] = waiting.get(key, 0) + 1
        idle = {key: Meter(now) for key in flows if key not in self._meters}
        found = [
            Use(*key, meter.total, meter.rate(now), flows.get(key, 0), waiting.get(key, 0))
            for key, meter in (*self._meters.items(), *idle.items())
        ]
        return sorted(found, key=lambda use: (-use.bytes_per_second, use.peer, use.traffic))

    # -- buckets

    def _queue(self, request: Request, bucket: _Bucket) -> None:
        start = max(bucket.virtual, bucket.finish.get(request.flow, 0.0))
        bucket.finish[request.flow] = self._finish(request, start)
        heapq.heappush(bucket.waiting, (start, request.number, request))
        request.unpaid[bucket] = start
        self._busy[bucket] = None

    def _finish(self, request: Request, start: float) -> float:
        return start + request.size / (self._weights[request.flow.traffic] * request.factor)

    def _factor_of(self, flow: Flow) -> float:
        if not self._hurried:
            return 1.0
        of_peer = self._hurried.get((flow.peer, None), 1.0)
        return self._hurried.get((flow.peer, flow.name), of_peer)

    def _rate_of(self, name: _Name) -> float | None:
        if name is None:
            return self.ceilings.total
        if isinstance(name, bytes):
            return self.ceilings.of_peer(name)
        return self.ceilings.classes.get(name)

    def _buckets_for(self, peer: bytes, traffic: Traffic, now: float) -> list[_Bucket]:
        found = []
        names: tuple[_Name, ...] = (None, traffic, peer)
        for name in names:
            bucket = self._buckets.get(name)
            if bucket is None:
                rate = self._rate_of(name)
                if rate is None:
                    continue
                self._make_room(now)
                bucket = self._buckets[name] = _Bucket(rate, now)
            found.append(bucket)
        return found

    def _make_room(self, now: float) -> None:
        """Forget buckets that are full and unused: a new one would be the same."""
        if len(self._buckets) < PEER_BUCKETS_MAX:
            return
        for name, bucket in list(self._buckets.items()):
            bucket.settle(now)
            if bucket.head() is None and bucket.tokens >= bucket.burst:
                del self._buckets[name]
