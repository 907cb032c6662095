"""A node's offloads at work: which one a blob takes, and what happens when it fails.

Every failure has a kind, is counted, and costs the offload a while towards that node. What arrived by it is
kept, and the next road, in the end QUIC, brings the rest.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import structlog
import trio

from ioc_node.bulk.counters import BulkCounters
from ioc_node.bulk.offload import Landing, Offload, OffloadSource, OffloadUnusable, ask_capability
from ioc_node.bulk.standings import COOL_SECONDS, COOL_SECONDS_MAX, Standings
from ioc_node.core.roads import QUIC, Capability, Choice, OwnRoad, Reach, choose_roads
from ioc_node.errors import StorageUnusable
from ioc_wire.bulk import OFFLOADS_MAX, OffloadDescriptor, Ticket
from ioc_wire.codec import decode, encode
from ioc_wire.errors import (
    BadSignature,
    BlobCorrupt,
    Busy,
    Expired,
    NotFound,
    ReplayedProof,
    TicketRefused,
    WireError,
    WrongPeer,
)

STALL_SECONDS: Final = 8.0
"""An offload that brings no chunk for so long is left."""
LOOK_SECONDS: Final = 0.1
"""How often a pull is looked at: for its progress, and whether it stalls."""

Progress = Callable[[int, int], None]

_REFUSALS: Final = (TicketRefused, Expired, WrongPeer, ReplayedProof, BadSignature, NotFound, Busy)
_log = structlog.get_logger()


class Brought(NamedTuple):
    """How a blob came, or why no offload could bring it (`transport` is None)."""

    transport: str | None
    reason: str


class Stalled(OffloadUnusable):
    """No chunk came for `STALL_SECONDS`."""


class Incomplete(OffloadUnusable):
    """A pull ended before all chunks were there."""


class Offloads:
    """The offloads that are usable here, by name; their order does not matter."""

    def __init__(self, offloads: Sequence[Offload], counters: BulkCounters) -> None:
        self._offloads = {offload.name: offload for offload in offloads}
        self._capabilities = {offload.name: ask_capability(offload.probe) for offload in offloads}
        self._counters = counters
        self._standings = Standings()
        self.are_limited: Callable[[], bool] = lambda: False
        """Whether this node has ceilings on its bandwidth: an offload over the network would go past them."""
        self.refused: Mapping[str, str] = {}
        """Offloads that were asked for and cannot be used here, and why."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of all, sorted, for this node to advertise."""
        return tuple(sorted(self._offloads))

    def lines(self) -> tuple[str, ...]:
        """For the operator: each offload, how it is, and how often it failed (QUIC took over), by kind."""
        told = []
        for name in self.names:
            kinds = self._counters.fallback_kinds
            failed = {kind: kinds[kind] for kind in sorted(kinds) if kind.startswith(f"{name}/")}
            line = f"{name}: {self._capability(name).reason}"
            if failed:
                counts = ", ".join(f"{kind.partition('/')[2]} {count}" for kind, count in failed.items())
                line += f"; failed {sum(failed.values())}× ({counts})"
            told.append(line)
        return tuple(told)

    # -- the holder's side

    async def serve(self, source: OffloadSource) -> None:
        """Answer readers by every offload until cancelled; one that fails is started again after a while."""
        async with trio.open_nursery() as nursery:
            for offload in self._offloads.values():
                nursery.start_soon(self._keep_serving, offload, source)

    async def _keep_serving(self, offload: Offload, source: OffloadSource) -> None:
        wait = COOL_SECONDS
        while True:
            began = trio.current_time()
            try:
                await offload.serve(source)
                return
            except Exception as error:  # noqa: BLE001 a plug-in may raise anything, in groups too
                _log.warning("offload_stopped", offload=offload.name, error=str(error), again_seconds=wait)
            if trio.current_time() - began > COOL_SECONDS_MAX:
                wait = COOL_SECONDS
            await trio.sleep(wait)
            wait = min(2 * wait, COOL_SECONDS_MAX)

    def export(self, blob: bytes) -> tuple[OffloadDescriptor, ...]:
        """The descriptors of a blob for a ticket: of those that work now."""
        found = []
        for name, offload in self._offloads.items():
            if not self._capability(name).usable:
                continue
            try:
                exported = offload.export(blob)
                if exported is not None:
                    found.append(_checked(exported, name))
            except Exception as error:  # noqa: BLE001 a plug-in may raise anything
                _log.warning("offload_cannot_export", offload=name, error=str(error))
        return tuple(found[:OFFLOADS_MAX])

    # -- choosing

    def own_roads(self, node: bytes) -> tuple[OwnRoad, ...]:
        """All roads of this end as they stand towards `node` (public key), with what their probe says now."""
        now = trio.current_time()
        return tuple(
            self._standings.own_road(node, name, self._capability(name), now=now) for name in self._offloads
        )

    def quic_road(self, node: bytes) -> OwnRoad:
        """QUIC towards `node`, with the speed measured."""
        return self._standings.quic(node, now=trio.current_time())

    def choose(self, ticket: Ticket) -> Choice:
        """The roads for a ticket's blob."""
        theirs = {descriptor.name: self._reach(descriptor) for descriptor in ticket.offloads}
        holder = ticket.holder
        return choose_roads(self.own_roads(holder), theirs, size=ticket.size, quic=self.quic_road(holder))

    def _capability(self, name: str) -> Capability:
        declared = self._capabilities[name]
        if declared.scope == "network" and self.are_limited():
            return replace(declared, usable=False, reason="this node has a ceiling on its bandwidth")
        if not declared.usable:
            return declared
        health = ask_capability(self._offloads[name].health)
        return declared if health.usable else replace(declared, usable=False, reason=health.reason)

    def _reach(self, descriptor: OffloadDescriptor) -> Reach:
        offload = self._offloads.get(descriptor.name)
        if offload is None:
            return Reach(False, "not here")
        try:
            reach = offload.reach(descriptor)
            return Reach(bool(reach.reachable), reach.reason)
        except Exception as error:  # noqa: BLE001 a plug-in may raise anything
            self._counters.count_fallback(descriptor.name, _kind(error))
            return Reach(False, f"its descriptor: {error}")

    # -- the reader's side

    async def bring(self, landing: Landing, on_progress: Progress | None = None) -> Brought:
        """Bring the blob by the quickest offload that works. Raises `StorageFull`; else QUIC has to do it."""
        choice = self.choose(landing.ticket)
        descriptors = {descriptor.name: descriptor for descriptor in landing.ticket.offloads}
        failures = []
        if choice.roads:
            await landing.resume_doubtful()
        for road in choice.roads:
            offload, descriptor = self._offloads[road.name], descriptors[road.name]
            came, how = await self._pull(offload, descriptor, landing, on_progress)
            if came:
                return Brought(road.name, f"{road.reason}, {how}" if how else road.reason)
            failures.append(f"{road.name} failed: {how}")
        if choice.passed or not failures:
            failures.append(choice.why_quic)
        return Brought(None, "; ".join(failures))

    async def _pull(
        self, offload: Offload, descriptor: OffloadDescriptor, landing: Landing, on_progress: Progress | None
    ) -> tuple[bool, str]:
        holder, before, began = landing.ticket.holder, landing.bytes_brought, trio.current_time()
        try:
            how = await _pull_watched(offload, descriptor, landing, on_progress)
            if landing.partial is None or not landing.partial.complete:
                raise Incomplete("it left chunks out")
        except StorageUnusable:
            raise
        except Exception as error:  # noqa: BLE001 a plug-in may raise anything, in groups too
            kind, why = _kind(error), str(error) or type(error).__name__
            self._counters.count_fallback(offload.name, kind)
            now = trio.current_time()
            again = 0.0 if kind == "refused" else self._standings.failed(holder, offload.name, why, now=now)
            _log.warning("offload_failed", offload=offload.name, kind=kind, error=why, again_seconds=again)
            return False, why
        now = trio.current_time()
        moved = landing.bytes_brought - before
        if on_progress is not None and moved:
            on_progress(landing.bytes_present, landing.bytes_present)
        self._standings.succeeded(holder, offload.name, moved, now - began, now=now)
        return True, how

    def measured_quic(self, node: bytes, moved: int, seconds: float) -> None:
        """QUIC brought so much from `node`: what the offloads are compared with from now on."""
        self._standings.succeeded(node, QUIC, moved, seconds, now=trio.current_time())


async def _pull_watched(
    offload: Offload, descriptor: OffloadDescriptor, landing: Landing, on_progress: Progress | None
) -> str:
    stalled = False
    how = ""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            nonlocal stalled
            known, since = landing.bytes_present, trio.current_time()
            while True:
                await trio.sleep(LOOK_SECONDS)
                if landing.bytes_present != known:
                    known, since = landing.bytes_present, trio.current_time()
                    if on_progress is not None and landing.partial is not None:
                        on_progress(known, landing.partial.info.size)
                elif trio.current_time() - since > STALL_SECONDS:
                    stalled = True
                    nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        try:
            how = await offload.pull(descriptor, landing)
        except Exception as error:  # noqa: BLE001 a plug-in may raise anything; raised below, outside of the nursery
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise _innermost(failure)
    if stalled:
        raise Stalled(f"nothing came for {STALL_SECONDS:g} s")
    return how


def _checked(exported: OffloadDescriptor, name: str) -> OffloadDescriptor:
    """The same, if a reader can read it: it would refuse the whole ticket. Raises `WireError` or `ValueError`."""
    descriptor = decode(encode(exported), OffloadDescriptor)
    if descriptor.name != name:
        raise ValueError(f"a descriptor for {descriptor.name!r}")
    return descriptor


def _innermost(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _kind(error: Exception) -> str:
    """What kind of failure an error is, for the counters."""
    match error:
        case Stalled():
            return "stalled"
        case Incomplete():
            return "incomplete"
        case OffloadUnusable():
            return "unusable"
        case BlobCorrupt():
            return "corrupt"
        case WireError():
            return "refused" if isinstance(error, _REFUSALS) else "malformed"
        case OSError():
            return "broken"
    return "fault"
