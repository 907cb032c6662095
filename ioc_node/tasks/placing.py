"""Finding a place for a task: ask for offers, reserve the best that accepts, wait where all are busy.

Tasks with the same demand stand in one line, a few at its head ask at a time, and whoever ends a task wakes the next:
so hundreds of waiting tasks don't all poll the same providers, and none waits behind a task of another kind.
"""

import random
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from ioc_node.errors import PeerUnreachable
from ioc_node.market.leases import cores_milli_of
from ioc_node.market.policies import Context, Outstanding, load_policy
from ioc_node.market.pricing import format_micro
from ioc_node.tasks.exchange import Connect, Find
from ioc_node.tasks.journal import AttemptRow, Journal
from ioc_node.tasks.live import LiveTask
from ioc_wire.codec import encode
from ioc_wire.errors import (
    Busy,
    Closing,
    LeaseRefused,
    RateLimited,
    RemoteFault,
    Unplaceable,
    WireError,
)
from ioc_wire.market import (
    Demand,
    Lease,
    LeaseGranted,
    Offer,
    OffersFound,
    Removal,
    ReserveLease,
    demand_of,
)
from ioc_wire.metering import cost_of
from ioc_wire.records import ResourceRecord
from ioc_wire.signed import Signed, verify

ASKING_MAX: Final = 8
"""Tasks of one demand that ask providers at the same time."""
PAUSE_SECONDS_MIN: Final = 0.1
PAUSE_SECONDS_MAX: Final = 3.0
OFFERS_SECONDS: Final = 0.25
"""How long an answer of a core node serves further tasks with the same demand."""
STATUS_SECONDS: Final = 1.0
"""A lease shows in its provider's status, as a core node tells it, after at most about so long."""
RECENT_MAX: Final = 4096
REASONS_TOLD_MAX: Final = 4
LINES_MAX: Final = 1024

PASSING: Final = (Busy, Closing, RateLimited, RemoteFault, PeerUnreachable)
"""Refusals that another try may not meet."""


@dataclass
class _Asked:
    """What one round over all offers brought."""

    refusals: list[str]
    may_change: bool = False

    def add(self, cid: str, error: Exception) -> None:
        self.refusals.append(f"{cid}: {error}")
        self.may_change = self.may_change or isinstance(error, PASSING)


class Placing:
    """Places tasks of the consumer `key` (its public key)."""

    def __init__(
        self, key: bytes, journal: Journal, find: Find, connect: Connect, rng: random.Random
    ) -> None:
        self._key = key
        self._journal = journal
        self._find = find
        self._connect = connect
        self._rng = rng
        self._freed = trio.lowlevel.ParkingLot()
        self._lines: OrderedDict[bytes, trio.Semaphore] = OrderedDict()
        self._known: OrderedDict[bytes, tuple[float, OffersFound]] = OrderedDict()
        self._recent: deque[tuple[float, str, int]] = deque(maxlen=RECENT_MAX)

    def tell_freed(self) -> None:
        """A task has ended somewhere: one that waits may try again at once."""
        self._freed.unpark()

    async def place(self, task: LiveTask, avoid: frozenset[bytes]) -> AttemptRow:
        """A journalled lease for the task's next attempt; providers in `avoid` come last.

        Waits as long as somebody could serve it later. Raises `Unplaceable` where nobody could.
        """
        demand = demand_of(task.definition)
        line = encode((demand, task.definition.policy))
        async with self._line(line):
            pause_seconds = PAUSE_SECONDS_MIN
            told = ""
            while True:
                found, reason = await self._offers(line, demand, task.definition.policy)
                if found is not None:
                    asked = _Asked([])
                    offers = self._ranked(found.offers, demand, task.definition.policy)
                    placed = await self._ask(task, demand, ordered(offers, avoid), asked)
                    if placed is not None:
                        return placed
                    reason = why_waiting(found, asked)
                    if not asked.may_change and not may_change(found.removals):
                        raise Unplaceable(why_not(found, asked))
                if reason != told:
                    task.note(f"waits for a place: {reason}")
                    told = reason
                self._known.pop(line, None)
                with trio.move_on_after(pause_seconds * self._rng.uniform(0.5, 1.0)):
                    await self._freed.park()
                pause_seconds = min(2 * pause_seconds, PAUSE_SECONDS_MAX)

    def _line(self, line: bytes) -> trio.Semaphore:
        waiting = self._lines.setdefault(line, trio.Semaphore(ASKING_MAX))
        self._lines.move_to_end(line)
        while len(self._lines) > LINES_MAX:
            self._lines.popitem(last=False)
        return waiting

    async def _offers(self, line: bytes, demand: Demand, policy: str) -> tuple[OffersFound | None, str]:
        asked_at, found = self._known.get(line, (float("-inf"), None))
        if found is not None and trio.current_time() - asked_at < OFFERS_SECONDS:
            return found, ""
        try:
            found = await self._find(demand, policy)
        except PASSING as error:
            return None, f"no core node answers: {error}"
        self._known[line] = (trio.current_time(), found)
        while len(self._known) > LINES_MAX:
            self._known.popitem(last=False)
        return found, ""

    def _ranked(self, offers: Sequence[Offer], demand: Demand, policy: str) -> list[Offer]:
        """The offers ranked again with the leases in mind that their status may not show yet: without this a
        hundred equal tasks would all go to the one place that is best for the first."""
        horizon = trio.current_time() - STATUS_SECONDS
        while self._recent and self._recent[0][0] < horizon:
            self._recent.popleft()
        outstanding: dict[str, Outstanding] = {}
        for _, cid, cores_milli in self._recent:
            leases, cores = outstanding.get(cid, Outstanding())
            outstanding[cid] = Outstanding(leases + 1, cores + cores_milli)
        return load_policy(policy)(offers, Context(demand, outstanding))

    async def _ask(
        self, task: LiveTask, demand: Demand, offers: Iterable[Offer], asked: _Asked
    ) -> AttemptRow | None:
        for offer in offers:
            cid = offer.provider.host
            try:
                record = verify(offer.record, ResourceRecord)
                cid = record.cid
                return await self._reserve(task, demand, offer, cid)
            except (PeerUnreachable, WireError) as error:
                asked.add(cid, error)
        return None

    async def _reserve(self, task: LiveTask, demand: Demand, offer: Offer, cid: str) -> AttemptRow:
        if offer.provider.key == self._key:
            raise LeaseRefused("it is this node itself")
        budget = task.definition.budget_micro
        if budget is not None and offer.price_micro > budget:
            raise LeaseRefused(
                f"it may cost {format_micro(offer.price_micro)}, the budget is {format_micro(budget)}"
            )
        link = await self._connect(offer.provider)
        attempt = task.attempt + 1
        price_max = task.definition.constraints.price_micro_max
        request = ReserveLease(cid, demand, task.id, attempt, price_max)
        granted = await link.request(request, LeaseGranted)
        lease = check_lease(granted.lease, request, offer.provider.key, self._key)
        wall_ms = task.definition.limits.wall_seconds * 1000
        if budget is not None and cost_of(lease.cores_milli * wall_ms // 1000, lease.price_micro) > budget:
            raise LeaseRefused(
                f"at {format_micro(lease.price_micro)} per core-hour it may cost more than {format_micro(budget)}"
            )
        self._journal.add_attempt(offer.provider, granted.lease, lease)
        self._recent.append((trio.current_time(), cid, lease.cores_milli))
        task.attempt = attempt
        task.place = cid
        task.note(f"attempt {attempt} leased at {cid}, {format_micro(lease.price_micro)} per core-hour")
        return AttemptRow(task.id, attempt, offer.provider, granted.lease, lease, "leased")


def check_lease(signed: Signed, request: ReserveLease, provider: bytes, consumer: bytes) -> Lease:
    """The lease in a provider's answer, where it promises what was asked for. Raises `LeaseRefused` or worse."""
    lease = verify(signed, Lease)
    if signed.key != provider:
        raise LeaseRefused("the lease is signed by another key than the provider's")
    named = (lease.cid, lease.task, lease.attempt, lease.consumer)
    if named != (request.cid, request.task, request.attempt, consumer):
        raise LeaseRefused("the lease is for something else than was asked for")
    resources = request.demand.resources
    if (
        lease.cores_milli < cores_milli_of(resources.cores)
        or lease.memory_mib < resources.memory_mib
        or lease.disk_mib < resources.disk_mib
        or sum(lease.accelerators_milli) < sum(each.count_milli for each in resources.accelerators)
    ):
        raise LeaseRefused("the lease promises less than was asked for")
    if request.price_micro_max is not None and lease.price_micro > request.price_micro_max:
        raise LeaseRefused(
            f"a core-hour costs {format_micro(lease.price_micro)}, "
            f"at most {format_micro(request.price_micro_max)} is paid"
        )
    if lease.expires <= time.time():
        raise LeaseRefused("the lease has expired already")
    return lease


def ordered(offers: Iterable[Offer], avoid: frozenset[bytes]) -> list[Offer]:
    """In the order of their ranks, those of providers to avoid last."""
    return sorted(offers, key=lambda offer: offer.provider.key in avoid)


def may_change(removals: Iterable[Removal]) -> bool:
    """Whether anything but time stands between a task and those that were removed."""
    return any(removal.removed and is_passing(removal.condition) for removal in removals)


def is_passing(condition: str) -> bool:
    """Whether a query's condition is about the moment (what is free now), not about what there is."""
    return condition.startswith(("free", "busy", "status"))


def why_not(found: OffersFound, asked: _Asked) -> str:
    """Why nobody will ever take it, with the nearest miss."""
    if asked.refusals:
        return "; ".join(asked.refusals[:REASONS_TOLD_MAX])
    if not found.considered:
        return "no compute resource is known to the core node"
    misses = [
        f"{removal.condition} rules out {removal.removed}"
        + (f" (nearest miss: {removal.nearest})" if removal.nearest else "")
        for removal in found.removals
        if removal.removed
    ]
    return f"of {found.considered} known, " + "; ".join(misses[:REASONS_TOLD_MAX])


def why_waiting(found: OffersFound, asked: _Asked) -> str:
    """Why it is not placed now, in one line."""
    if asked.refusals:
        return "; ".join(asked.refusals[:REASONS_TOLD_MAX])
    return why_not(found, asked)
