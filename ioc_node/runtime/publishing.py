"""Keeping a node's own records stored in the DHT: by sweep, signed anew before they expire.

Theory of operation. Every published identifier has a time at which it is due. What is due together is signed anew,
sorted by key and stored in sweeps of `SWEPT_AT_ONCE` records, so that refreshing costs few lookups and few messages
however many identifiers there are. A record is *young* until it was stored a second time, a minute after the first:
the table may have been filling still, so young records are stored again when servers come. A withdrawn identifier
leaves a tombstone, which is published in the same way and forgotten once it is not young any more.
"""

import heapq
import itertools
from collections.abc import Awaitable, Callable, Generator, Iterable
from typing import Final

import structlog
import trio

from ioc_node.core.events import Chain, SweepReport
from ioc_node.errors import NodeError
from ioc_node.runtime.pauses import run_with_pauses
from ioc_wire.cid import cid_key
from ioc_wire.errors import WireError
from ioc_wire.signed import Signed

REFRESH_SECONDS: Final = 22 * 3600
REFRESH_SECONDS_FIRST: Final = 60
"""The first refresh comes early: the table may not have been full when a record was first stored."""
REFRESH_SECONDS_FAILED: Final = 15
ENDING_FAILURES_MAX: Final = 240
"""A tombstone that nobody took for an hour is given up; a record is not."""
LATE_PART: Final = 4
"""A refresh that comes a quarter of its interval late has fallen behind; records live for two intervals."""
GATHERED_PART: Final = 16
"""What is due within this part of the first interval is taken along."""
GROWN_SECONDS: Final = 0.5
"""How long new servers are gathered before young records are stored again."""
PUBLISHED_MAX: Final = 1 << 20
SWEPT_AT_ONCE: Final = 1024
STEP_ENTRIES: Final = 256
"""Entries looked at between two pauses."""
TURN_SECONDS: Final = 0.003
"""How long records are signed before others have a turn."""

_log = structlog.get_logger()
Resign = Callable[[], tuple[Signed, Chain]]
"""Gives the present record (or tombstone) of an identifier, freshly signed, and its chain."""
Records = tuple[tuple[Signed, Chain], ...]


class _Entry:
    """One identifier: when it is due, and how long after that it will be due again."""

    __slots__ = ("cid", "due", "ends", "failures", "interval", "key", "resign", "since")

    def __init__(self, cid: str, resign: Resign, now: float, *, ends: bool) -> None:
        self.cid = cid
        self.key = cid_key(cid)
        self.resign = resign
        self.due = now
        self.since = 0.0
        """How long it was to wait for `due`."""
        self.interval: float = REFRESH_SECONDS_FIRST
        self.ends = ends
        self.failures = 0


class Publishing:
    """What this node keeps stored. `sweep` stores many records; it raises a `WireError` or a `NodeError`."""

    def __init__(self, sweep: Callable[[Records], Awaitable[SweepReport]]) -> None:
        self.late = 0
        """Refreshes that came too late."""
        self._sweep = sweep
        self._entries: dict[str, _Entry] = {}
        self._young: set[str] = set()
        self._due: list[tuple[float, int, _Entry]] = []
        self._numbers = itertools.count()
        self._grown_at = float("inf")
        self._sooner = trio.Event()

    def __len__(self) -> int:
        return len(self._entries)

    def publish(self, cid: str, resign: Resign, *, ends: bool = False) -> None:
        """Keep a record stored, or with `ends` a tombstone for as long as it takes to spread. Raises `BadIdentifier`,
        and `NodeError` for more than `PUBLISHED_MAX`.
        """
        entry = _Entry(cid, resign, trio.current_time(), ends=ends)
        if cid not in self._entries and len(self._entries) >= PUBLISHED_MAX:
            raise NodeError(f"{PUBLISHED_MAX} identifiers are published here: no more fit")
        self._entries[cid] = entry
        self._young.add(cid)
        self._push(entry)
        self._sooner.set()

    def withdraw(self, cid: str) -> None:
        """Store this identifier's record no more."""
        self._entries.pop(cid, None)
        self._young.discard(cid)

    def server_came(self) -> None:
        """What was stored a moment ago, with fewer servers known, may belong there too."""
        if self._young:
            self._grown_at = min(self._grown_at, trio.current_time() + GROWN_SECONDS)
            self._sooner.set()

    async def run(self) -> None:
        """Store what is due, until cancelled."""
        while True:
            self._sooner = trio.Event()
            due = await run_with_pauses(self._taking_due(trio.current_time()))
            for start in range(0, len(due), SWEPT_AT_ONCE):
                await self._store(due[start : start + SWEPT_AT_ONCE])
            if not due:
                soonest = self._due[0][0] if self._due else float("inf")
                with trio.move_on_at(min(soonest, self._grown_at)):
                    await self._sooner.wait()

    def _push(self, entry: _Entry) -> None:
        heapq.heappush(self._due, (entry.due, next(self._numbers), entry))
        if len(self._due) > 2 * len(self._entries) + 64:
            self._due = [(each.due, next(self._numbers), each) for each in self._entries.values()]
            heapq.heapify(self._due)

    def _taking_due(self, now: float) -> Generator[None, None, list[_Entry]]:
        """What is due, in order of key, in steps."""
        taken: dict[str, _Entry] = {}
        if self._grown_at <= now:
            self._grown_at = float("inf")
            for done, cid in enumerate(list(self._young), 1):
                entry = self._entries.get(cid)
                if entry is not None:  # else it was withdrawn meanwhile
                    taken[cid] = entry
                    entry.interval = REFRESH_SECONDS_FIRST
                if done % STEP_ENTRIES == 0:
                    yield
        if self._due and self._due[0][0] <= now:
            until = now + REFRESH_SECONDS_FIRST / GATHERED_PART
            for done in itertools.count(1):
                if not self._due or self._due[0][0] > until:
                    break
                due, _, entry = heapq.heappop(self._due)
                if due == entry.due and self._entries.get(entry.cid) is entry:
                    taken[entry.cid] = entry
                if done % STEP_ENTRIES == 0:
                    yield
        return (yield from _in_order(taken.values()))

    async def _store(self, entries: list[_Entry]) -> None:
        records = await self._sign(entries)
        stored: set[str] = set()
        if records:
            try:
                report = await self._sweep(tuple(records.values()))
            except (WireError, NodeError) as error:
                _log.warning("publish_failed", cid=next(iter(records)), count=len(records), reason=str(error))
            else:
                stored = set(records).difference(report.missed)
                _report(report, len(records))
        now = trio.current_time()
        late = sum(
            entry.since == REFRESH_SECONDS and now > entry.due + REFRESH_SECONDS / LATE_PART
            for entry in entries
        )
        if late:
            self.late += late
            _log.warning("refresh_late", count=late, seconds=round(now - min(e.due for e in entries)))
        for entry in entries:
            if self._entries.get(entry.cid) is entry:
                self._again(entry, entry.cid in stored, now)

    async def _sign(self, entries: list[_Entry]) -> dict[str, tuple[Signed, Chain]]:
        """Sign what is still published, a few milliseconds at a time."""
        records: dict[str, tuple[Signed, Chain]] = {}
        await trio.lowlevel.checkpoint()
        turn_ends = trio.current_time() + TURN_SECONDS
        for entry in entries:
            if self._entries.get(entry.cid) is not entry:
                continue
            try:
                records[entry.cid] = entry.resign()
            except (WireError, NodeError) as error:
                _log.warning("publish_failed", cid=entry.cid, count=1, reason=str(error))
            if trio.current_time() > turn_ends:
                await trio.lowlevel.checkpoint()
                turn_ends = trio.current_time() + TURN_SECONDS
        return records

    def _again(self, entry: _Entry, stored: bool, now: float) -> None:
        """When this one is due next."""
        if stored and entry.interval == REFRESH_SECONDS:
            self._young.discard(entry.cid)
            if entry.ends:
                del self._entries[entry.cid]
                return
        entry.failures = 0 if stored else entry.failures + 1
        if entry.ends and entry.failures > ENDING_FAILURES_MAX:
            _log.warning("tombstone_given_up", cid=entry.cid)
            self.withdraw(entry.cid)
            return
        entry.since = entry.interval if stored else REFRESH_SECONDS_FAILED
        if stored:
            entry.interval = REFRESH_SECONDS
        entry.due = now + entry.since
        self._push(entry)


def _in_order(entries: Iterable[_Entry]) -> Generator[None, None, list[_Entry]]:
    """By key, in steps: keys are hashes, so that each first byte has about as many as another."""
    buckets: list[list[_Entry]] = [[] for _ in range(256)]
    for done, entry in enumerate(entries, 1):
        buckets[entry.key[0]].append(entry)
        if done % STEP_ENTRIES == 0:
            yield
    ordered: list[_Entry] = []
    for bucket in buckets:
        ordered += sorted(bucket, key=lambda entry: entry.key)
        if len(bucket) > 1:
            yield
    return ordered


def _report(report: SweepReport, count: int) -> None:
    """Say what a sweep did, and what it could not do."""
    _log.debug(
        "swept", count=count, stored=report.stored, lookups=report.lookups, messages=report.messages,
        seconds=round(report.seconds, 3),
    )  # fmt: skip
    reason = f"{report.refused[0][0]}: {report.refused[0][1]}" if report.refused else ""
    if report.missed:
        cid = report.missed[0]
        _log.warning("publish_refused", cid=cid, count=len(report.missed), reason=reason)
    elif report.thin:
        _log.warning("publish_thin", count=report.thin, reason=reason)
