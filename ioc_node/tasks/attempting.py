"""One attempt as its consumer lives it: hand over the inputs, send the order, watch, and stay in contact.

Contact is lost and found again: the state is UNKNOWN meanwhile, and only when it stays lost for longer than the
configured time is the attempt given up. A provider whose port refuses connections is known to be gone sooner.
"""

import errno
import os
import random
from dataclasses import dataclass
from typing import Final

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.errors import NodeError, PeerUnreachable
from ioc_node.runtime.links import Link
from ioc_node.tasks.definition import blobs_of
from ioc_node.tasks.exchange import BlobExchange, Connect
from ioc_node.tasks.journal import AttemptRow, Journal
from ioc_node.tasks.live import LiveTask
from ioc_node.tasks.story import Source, now_ms
from ioc_wire.bulk import Ticket, TicketIssued, format_blob_id, ticket_of
from ioc_wire.errors import (
    BadTask,
    Busy,
    Closing,
    Malformed,
    NotFound,
    RateLimited,
    RemoteFault,
    TaskUnknown,
    WireError,
)
from ioc_wire.market import MeasureRtt
from ioc_wire.signed import sign
from ioc_wire.tasks import (
    ENDED,
    CancelTask,
    GrantOutput,
    StartTask,
    State,
    TaskEvent,
    TaskOrder,
    TaskProgress,
    WatchTask,
)

PAUSE_SECONDS_MIN: Final = 0.1
PAUSE_SECONDS_MAX: Final = 2.0
PROBES_PER_LOSS: Final = 3
"""How often a silent provider is asked for a sign of life within the time after which contact is lost."""
REFUSED_SECONDS: Final = 1.0
"""How long a provider's port must refuse connections before its process is taken for gone."""

_REFUSED: Final = os.strerror(errno.ECONNREFUSED)
_log = structlog.get_logger()


@dataclass(frozen=True)
class Lost:
    """The attempt is given up; the task may be placed again."""

    reason: str


@dataclass(frozen=True)
class Impossible:
    """No attempt can succeed. `blob` names an input that nobody holds any more."""

    reason: str
    blob: bytes = b""


Outcome = TaskEvent | Lost | Impossible


class InputLost(NodeError):
    """The holder of an input is gone, or no longer has it."""

    def __init__(self, blob: bytes, reason: str) -> None:
        super().__init__(f"input {format_blob_id(blob)} is lost: {reason}")
        self.blob = blob


class _Contact:
    """Since when a provider was last heard, and whether that is too long ago."""

    def __init__(self, lost_seconds: float) -> None:
        self._lost_seconds = lost_seconds
        self._heard_at = trio.current_time()
        self._refused_at: float | None = None
        self.reason = ""

    def hear(self) -> None:
        self._heard_at = trio.current_time()
        self._refused_at = None

    def miss(self, reason: str) -> None:
        self.reason = reason
        if _REFUSED not in reason:
            self._refused_at = None
        elif self._refused_at is None:
            self._refused_at = trio.current_time()

    @property
    def deadline(self) -> float:
        """When contact counts as lost, on trio's clock."""
        lost_at = self._heard_at + self._lost_seconds
        if self._refused_at is None:
            return lost_at
        return min(lost_at, self._refused_at + min(REFUSED_SECONDS, self._lost_seconds))


class Attempting:
    """Carries attempts of the consumer's tasks through."""

    def __init__(
        self,
        *,
        key: Ed25519PrivateKey,
        journal: Journal,
        exchange: BlobExchange,
        connect: Connect,
        lost_contact_seconds: float,
        rng: random.Random,
    ) -> None:
        self._key = key
        self._journal = journal
        self._exchange = exchange
        self._connect = connect
        self._lost_contact_seconds = lost_contact_seconds
        self._rng = rng

    async def carry_out(self, task: LiveTask, row: AttemptRow) -> Outcome:
        """Start the attempt, or take it up again, and follow it to its last event or until it is given up."""
        outcome: Outcome | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pass_cancel_on, task, row)
            outcome = await self._stay_in_contact(task, row)
            nursery.cancel_scope.cancel()
        assert outcome is not None
        return outcome

    async def _stay_in_contact(self, task: LiveTask, row: AttemptRow) -> Outcome:
        contact = _Contact(self._lost_contact_seconds)
        watching = _Watching(row)
        pause_seconds = PAUSE_SECONDS_MIN
        while True:
            with trio.CancelScope(deadline=contact.deadline) as scope:
                contact_scope = scope
                try:
                    link = await self._connect(row.provider)
                    if not watching.ordered:
                        await self._order(link, task, row)
                        watching.ordered = True
                    contact.hear()
                    contact_scope.deadline = float("inf")
                    if (last := await self._watch(link, task, watching, contact)) is not None:
                        return last
                    contact.miss(contact.reason or "the provider ended the stream of events")
                except InputLost as error:
                    return Impossible(str(error), error.blob)
                except BadTask as error:
                    return Impossible(f"{row.lease.cid} refuses the task: {error}")
                except (PeerUnreachable, Busy, Closing, RateLimited, RemoteFault) as error:
                    contact.miss(str(error))
                except WireError as error:
                    return Lost(f"{row.lease.cid}: {error}")
            if trio.current_time() >= contact.deadline:
                return Lost(f"contact with {row.lease.cid} is lost: {contact.reason or 'no answer'}")
            if task.state != "UNKNOWN":
                watching.state_before = task.state
                task.enter("UNKNOWN", f"contact lost, trying again: {contact.reason}")
                pause_seconds = PAUSE_SECONDS_MIN
            await trio.sleep(pause_seconds * self._rng.uniform(0.5, 1.0))
            pause_seconds = min(2 * pause_seconds, PAUSE_SECONDS_MAX)

    # -- ordering

    async def _order(self, link: Link, task: LiveTask, row: AttemptRow) -> None:
        order = TaskOrder(task.id, row.attempt, row.lease.lease, task.row.definition, task.row.nonce)
        tickets = await self._tickets(task, row.provider.key)
        if row.phase == "leased":
            self._journal.set_ordered(task.id, row.attempt, now_ms())
        await link.request(StartTask(sign(self._key, order), tickets))

    async def _tickets(self, task: LiveTask, reader: bytes) -> tuple[Ticket, ...]:
        sources = {source.blob: source for source in task.row.sources}
        tickets: list[Ticket] = []
        for blob in blobs_of(task.definition):
            source = sources.get(blob)
            if self._exchange.blobs.has(blob):
                tickets.append(self._exchange.issue(blob, reader))
            elif source is None:
                raise InputLost(blob, "it is not in this node's store")
            elif source.holder.key != reader:
                tickets.append(await self.request_output(source, reader))
        return tuple(tickets)

    async def request_output(self, source: Source, reader: bytes) -> Ticket:
        """A ticket for an output from its holder. Raises `InputLost`."""
        try:
            holder = await self._connect(source.holder)
            issued = await holder.request(GrantOutput(source.task, source.blob, reader), TicketIssued)
            return ticket_of(issued, source.blob, source.holder.key)
        except (PeerUnreachable, TaskUnknown, NotFound, Malformed) as error:
            raise InputLost(source.blob, str(error)) from None

    # -- watching

    async def _watch(
        self, link: Link, task: LiveTask, watching: "_Watching", contact: _Contact
    ) -> TaskEvent | None:
        """The last event, or None where contact was lost before it."""
        if task.state == "UNKNOWN":
            task.enter(watching.state_before, "contact is back")
        last: TaskEvent | None = None
        fault: PeerUnreachable | WireError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._probe, link, contact, nursery.cancel_scope)
            try:
                last = await self._read(link, task, watching, contact)
            except (PeerUnreachable, WireError) as error:
                fault = error  # kept out of the nursery, which would wrap it in a group
            nursery.cancel_scope.cancel()
        if fault is not None:
            raise fault
        return last

    async def _read(
        self, link: Link, task: LiveTask, watching: "_Watching", contact: _Contact
    ) -> TaskEvent | None:
        ask = WatchTask(task.id, watching.row.attempt, watching.after)
        async with link.open_stream(ask, TaskProgress) as progress:
            async for message in progress:
                contact.hear()
                for event in message.events:
                    watching.after = max(watching.after, event.seq)
                    if event.change == "state" and event.state in ENDED:
                        return event
                    task.retell(event)
        return None

    async def _probe(self, link: Link, contact: _Contact, scope: trio.CancelScope) -> None:
        """Ask for a sign of life again and again: a network that swallows everything breaks no connection."""
        wait_seconds = self._lost_contact_seconds / PROBES_PER_LOSS
        while True:
            await trio.sleep(wait_seconds)
            with trio.move_on_after(wait_seconds) as waiting:
                try:
                    await link.request(MeasureRtt())
                    contact.hear()
                except (PeerUnreachable, WireError):
                    return  # the stream tells the same
            if waiting.cancelled_caught:
                contact.miss(f"no sign of life for {wait_seconds:.1f} s")
                link.close_nowait("no sign of life")
                scope.cancel()

    # -- cancelling

    async def _pass_cancel_on(self, task: LiveTask, row: AttemptRow) -> None:
        await task.cancel_wanted.wait()
        if task.state not in ENDED:
            task.enter("CANCELING", "cancelled by its owner")
        pause_seconds = PAUSE_SECONDS_MIN
        while True:
            try:
                link = await self._connect(row.provider)
                await link.request(CancelTask(task.id, row.attempt, "cancelled by its owner"))
                return
            except (PeerUnreachable, WireError) as error:
                _log.info("cancel_not_delivered", task=task.name, error=str(error))
            await trio.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, PAUSE_SECONDS_MAX)


class _Watching:
    """How far the events of an attempt were read."""

    def __init__(self, row: AttemptRow) -> None:
        self.row = row
        self.ordered = False
        self.after = 0
        self.state_before: State = "RUNNING"
