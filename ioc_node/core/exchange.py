"""Requests and their answers over sessions: numbers, round-trip estimates, repetition, time-outs.

A request goes out in the peer's session; without one it starts a handshake and rides in it (requests to the
same peer meanwhile wait for that handshake). Unanswered, it is repeated with doubled patience, `TRIES` times
in all, and then its owner is told `PeerUnreachable`. Round-trip times are estimated per node as in RFC 6298,
from requests sent once.
"""

import heapq
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from ioc_node.core.challenge import Address
from ioc_node.core.chance import Chance
from ioc_node.core.events import Fault
from ioc_node.core.session import Attempt, Challenged, Failed, Lost, Opened, Outbox, Session
from ioc_node.core.sessions import Sessions
from ioc_node.errors import PeerUnreachable
from ioc_wire import dht as wire
from ioc_wire.dht import AnyMessage
from ioc_wire.errors import RateLimited
from ioc_wire.identity import format_node_id

TRIES: Final = 3
PATIENCE_SECONDS_FIRST: Final = 0.5
PATIENCE_SECONDS_MIN: Final = 0.15
PATIENCE_SECONDS_MAX: Final = 2.0
REQUESTS_MAX: Final = 8192
ROUND_TRIPS_MAX: Final = 4096

OnAnswer = Callable[["AnyMessage | Fault", "Request", float, Outbox], None]

OnLate = Callable[[float, Outbox], None]

OnSilent = Callable[[bytes, Address, float, Outbox], None]
"""Called when a known node did not answer at all."""


class Request:
    """One request under way. `node_id` is None until somebody answers at a bootstrap address. `began` counts
    the handshake in, `sent` does not.
    """

    __slots__ = (
        "address", "attempt", "began", "data", "deadline", "fault", "node_id", "number", "on_answer", "on_late",
        "patience", "sent", "tries",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        data: bytes,
        node_id: bytes | None,
        address: Address,
        on_answer: OnAnswer,
        now: float,
        on_late: OnLate | None = None,
    ) -> None:
        self.number = number
        self.data = data
        self.node_id = node_id
        self.address = address
        self.on_answer = on_answer
        self.on_late = on_late
        self.began = self.sent = now
        self.patience = PATIENCE_SECONDS_FIRST
        self.deadline = now
        self.tries = 1
        self.attempt: Attempt | None = None
        self.fault: Fault | None = None


class Exchange:
    """All requests of one node."""

    def __init__(self, sessions: Sessions, chance: Chance, on_silent: OnSilent) -> None:
        self._on_silent = on_silent
        self.repeated = 0
        self.timed_out = 0
        self._sessions = sessions
        self._number = chance.randrange(1 << 30)
        self._pending: dict[int, Request] = {}
        self._timers: list[tuple[float, int]] = []
        self._round_trips: OrderedDict[bytes, tuple[float, float]] = OrderedDict()
        self._knocks: dict[bytes | Address, list[Request]] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def number(self) -> int:
        """A number for the next request."""
        self._number += 1
        return self._number

    def round_trip(self, node_id: bytes) -> float | None:
        """Smoothed round-trip time to a node in seconds, if it was measured."""
        estimate = self._round_trips.get(node_id)
        return None if estimate is None else estimate[0]

    def ask(
        self,
        number: int,
        message: AnyMessage,
        node_id: bytes | None,
        address: Address,
        on_answer: OnAnswer,
        now: float,
        out: Outbox,
        on_late: OnLate | None = None,
    ) -> None:
        """Send `message`, whose request number is `number`. `on_answer` is called exactly once, never from in
        here; before it, `on_late` may be, once.
        """
        request = Request(number, wire.encode_message(message), node_id, address, on_answer, now, on_late)
        if len(self._pending) >= REQUESTS_MAX:
            request.fault = RateLimited(f"{REQUESTS_MAX} requests of this node are unanswered")
            self._pending[number] = request
            heapq.heappush(self._timers, (now, number))
            return
        self._pending[number] = request
        session = None if node_id is None else self._sessions.with_node(node_id, now)
        if session is not None:
            estimate = self._round_trips.get(session.node_id)
            if estimate is not None:
                patience = estimate[0] + 4 * estimate[1]
                request.patience = min(max(patience, PATIENCE_SECONDS_MIN), PATIENCE_SECONDS_MAX)
            self._sessions.send(session, request.data, out)
        else:
            self._knock(request, out)
        request.deadline = now + request.patience
        heapq.heappush(self._timers, (request.deadline, number))

    def on_answer(self, session: Session, answer: AnyMessage, now: float, out: Outbox) -> None:
        """An answer came in: give it to its owner, if it was asked for, of this node."""
        request = self._pending.get(answer.request)
        if request is None or request.node_id != session.node_id:  # it is known once its handshake is done
            return
        del self._pending[request.number]
        if request.tries == 1:
            self._measure(session.node_id, now - request.sent)
        if request.attempt is not None:
            self._unqueue(request)
        request.on_answer(answer, request, now, out)

    def on_opened(self, event: Opened, now: float, out: Outbox) -> None:
        """A handshake of ours succeeded: everything that waited for it goes out."""
        attempt = event.attempt
        for request in self._waiting(attempt):
            request.attempt = None
            request.node_id = event.session.node_id
            if not (attempt.carried and request.data is attempt.message):
                request.sent = now
                self._sessions.send(event.session, request.data, out)
                request.deadline = now + request.patience

    def on_challenged(self, event: Challenged, now: float) -> None:
        """A handshake of ours got half-way: the second half has all its tries."""
        attempt = event.attempt
        for request in self._knocks.get(_attempt_name(attempt), []):
            request.tries = 1
            request.sent = now
            request.deadline = max(request.deadline, now + request.patience)

    def on_failed(self, event: Failed, now: float, out: Outbox) -> None:
        """A handshake of ours was refused."""
        for request in self._waiting(event.attempt):
            self._fail(request, event.error, now, out)

    def on_lost(self, event: Lost, now: float, out: Outbox) -> None:
        """The peer forgot the session: ask again in a new one."""
        node_id = event.session.node_id
        for request in [r for r in self._pending.values() if r.node_id == node_id and r.attempt is None]:
            self._knock(request, out)

    def tick(self, now: float, out: Outbox) -> None:
        """Repeat what was not answered in time; give up what was repeated often enough."""
        timers = self._timers
        while timers and timers[0][0] <= now:
            _, number = heapq.heappop(timers)
            request = self._pending.get(number)
            if request is None:
                continue
            if request.fault is not None:
                self._fail(request, request.fault, now, out)
            elif request.deadline > now:
                heapq.heappush(timers, (request.deadline, number))
            elif request.tries >= TRIES:
                self._give_up(request, now, out)
            else:
                self._repeat(request, now, out)
                if request.on_late is not None:
                    on_late, request.on_late = request.on_late, None
                    on_late(now, out)

    def deadline(self) -> float:
        timers = self._timers
        while timers and timers[0][1] not in self._pending:
            heapq.heappop(timers)
        return timers[0][0] if timers else math.inf

    def _repeat(self, request: Request, now: float, out: Outbox) -> None:
        request.tries += 1
        self.repeated += 1
        request.patience = min(2 * request.patience, PATIENCE_SECONDS_MAX)
        request.deadline = now + request.patience
        heapq.heappush(self._timers, (request.deadline, request.number))
        if request.attempt is not None:
            if self._knocks[_name(request)][0] is request:
                self._sessions.repeat(request.attempt, out)
            return
        session = self._sessions.with_node(request.node_id, now) if request.node_id is not None else None
        if session is not None:
            self._sessions.send(session, request.data, out)
        else:
            self._knock(request, out)

    def _give_up(self, request: Request, now: float, out: Outbox) -> None:
        self.timed_out += 1
        if request.attempt is not None:
            self._sessions.abandon(request.attempt)
            waiting = self._waiting(request.attempt)
        else:
            waiting = [request]
            session = self._sessions.with_node(request.node_id, now) if request.node_id is not None else None
            if session is not None:
                self._sessions.drop(session)
        host, port = request.address
        name = f"{format_node_id(request.node_id)} at " if request.node_id is not None else ""
        fault = PeerUnreachable(f"{name}{host}:{port} did not answer {request.tries} times in a row")
        if request.node_id is not None:
            self._on_silent(request.node_id, request.address, now, out)
        for each in waiting:
            self._fail(each, fault, now, out)

    def _fail(self, request: Request, fault: Fault, now: float, out: Outbox) -> None:
        if self._pending.pop(request.number, None) is not None:
            request.attempt = None
            request.on_answer(fault, request, now, out)

    def _knock(self, request: Request, out: Outbox) -> None:
        """Begin a handshake for `request`, or wait for the one under way to the same peer."""
        waiting = self._knocks.setdefault(_name(request), [])
        if waiting:
            request.attempt = waiting[0].attempt
        else:
            request.attempt = self._sessions.knock(request.address, request.node_id, request.data, out)
            if request.attempt is None:
                del self._knocks[_name(request)]
                return
        waiting.append(request)

    def _waiting(self, attempt: Attempt) -> list[Request]:
        """Take out the requests that wait for `attempt`."""
        return self._knocks.pop(_attempt_name(attempt), [])

    def _unqueue(self, request: Request) -> None:
        waiting = self._knocks.get(_name(request), [])
        if request in waiting:
            waiting.remove(request)
            if not waiting and request.attempt is not None:
                self._sessions.abandon(request.attempt)
                del self._knocks[_name(request)]

    def _measure(self, node_id: bytes, seconds: float) -> None:
        known = self._round_trips.get(node_id)
        if known is None:
            self._round_trips[node_id] = (seconds, seconds / 2)
            if len(self._round_trips) > ROUND_TRIPS_MAX:
                self._round_trips.popitem(last=False)
        else:
            mean, spread = known
            spread += 0.25 * (abs(seconds - mean) - spread)
            self._round_trips[node_id] = (mean + 0.125 * (seconds - mean), spread)


def _attempt_name(attempt: Attempt) -> bytes | Address:
    return attempt.expected if attempt.expected is not None else attempt.address


def _name(request: Request) -> bytes | Address:
    """What a handshake is looked up by: whom it expects, or where it knocks."""
    return request.node_id if request.node_id is not None else request.address
