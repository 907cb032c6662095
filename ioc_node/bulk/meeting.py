"""QUIC between a reader and a holder that cannot be dialed: the holder calls the reader, or both go to a relay.

How to meet is agreed upon over a link (`ioc_wire.relay`). Whoever dials, the conversation on the stream stays the same:
the reader speaks first, the holder proves nothing but its knowledge of the *call*, a secret that the two shared over
that link, and hears the reader's claim as always.
"""

import secrets
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import structlog
import trio

from ioc_node.bulk.endpoint import (
    SERVER_RECEIVED_BYTES_MAX,
    Converse,
    Listener,
    keep_asking,
    open_channel,
)
from ioc_node.bulk.engines import Engine
from ioc_node.bulk.frames import send_message
from ioc_node.bulk.quic import Channel
from ioc_node.bulk.relay import dial_relay
from ioc_node.bulk.udp import connect_udp
from ioc_node.errors import NodeError, PeerUnreachable
from ioc_wire.bulk import Call, Endpoint, Ticket
from ioc_wire.errors import OverQuota, TicketRefused, WireError
from ioc_wire.pathprobe import DATAGRAM_BYTES_MAX

if TYPE_CHECKING:
    from trio import TaskStatus

CALL_SECONDS: Final = 10.0
"""A holder that was asked to call has come by then, or it does not come."""
CALL_BYTES: Final = 32
MEETINGS_PER_READER_MAX: Final = 16
"""Calls and relays that one reader has this holder attend at a time."""
IDLE_SECONDS: Final = 15.0
"""A relay on which no connection is open for so long is left."""

_log = structlog.get_logger()


class ExpectedCall:
    """A call that a reader waits for."""

    def __init__(self, received_bytes_max: int) -> None:
        self.call = secrets.token_bytes(CALL_BYTES)
        self.received_bytes_max = received_bytes_max
        self.over = trio.Event()
        self._came = trio.Event()
        self._channel: Channel | None = None

    def come(self, channel: Channel) -> None:
        """The holder has called."""
        self._channel = channel
        self._came.set()

    async def wait(self) -> Channel:
        """The connection. Raises `PeerUnreachable` where the holder does not call."""
        with trio.move_on_after(CALL_SECONDS):
            await self._came.wait()
        if self._channel is None:
            raise PeerUnreachable(
                f"the holder did not call within {CALL_SECONDS:g} s; is this bulk port reachable?"
            )
        return self._channel


class RelayEnd(NamedTuple):
    """Where a core node relays datagrams for this reader, and what to say there."""

    host: str
    port: int
    token: bytes


class Arranger(Protocol):
    """Agrees over links with holders that cannot be dialed how to meet them."""

    def arrange(
        self, holder: bytes, endpoint: Endpoint, call: bytes
    ) -> AbstractAsyncContextManager[RelayEnd | None]:
        """Have the holder (public key), found at `endpoint`, call this node: None. Where nobody can call it, a relay at
        which the holder waits for as long as the block lasts.

        Raises `PeerUnreachable`, or the `WireError` of whoever refused.
        """
        ...


class Dialer:
    """Connects to holders: by QUIC where they take datagrams, else as `arranger` agrees with them."""

    def __init__(self, engine: Engine, meetings: "Meetings", locals_: Sequence[str] = ()) -> None:
        self.arranger: Arranger | None = None
        self.locals: tuple[str | None, ...] = (None, *locals_)
        """Local addresses to dial from; None is the one that the kernel routes from."""
        self.datagram_bytes_max = DATAGRAM_BYTES_MAX
        """No larger ones are tried on the way to a holder."""
        self._engine = engine
        self._meetings = meetings

    def open(
        self, ticket: Ticket, endpoint: Endpoint, *, received_bytes_max: int, local: str | None = None
    ) -> AbstractAsyncContextManager[Channel]:
        """A connection to the ticket's holder. Raises as `open_channel` and `Arranger` do."""
        if endpoint.via is None:
            return open_channel(
                self._engine,
                endpoint.host,
                endpoint.port,
                ticket.holder,
                received_bytes_max=received_bytes_max,
                dial=partial(connect_udp, local=local),
                datagram_bytes_max=self.datagram_bytes_max,
            )
        if self.arranger is None:
            raise PeerUnreachable("the holder cannot be dialed, and this node is starting or stopping")
        return self._meet(self.arranger, ticket.holder, endpoint, received_bytes_max)

    @asynccontextmanager
    async def _meet(
        self, arranger: Arranger, holder: bytes, endpoint: Endpoint, received_bytes_max: int
    ) -> AsyncIterator[Channel]:
        with self._meetings.expect(received_bytes_max=received_bytes_max) as expected:
            async with arranger.arrange(holder, endpoint, expected.call) as end:
                if end is None:
                    yield await expected.wait()
                    return
                async with open_channel(
                    self._engine,
                    end.host,
                    end.port,
                    holder,
                    received_bytes_max=received_bytes_max,
                    dial=partial(dial_relay, end.token),
                ) as channel:
                    yield channel


class Meetings:
    """Both parts of a node: as a reader it expects calls, as a holder it calls readers and attends relays."""

    def __init__(self, engine: Engine, converse: Converse) -> None:
        self._engine = engine
        self._converse = converse
        self._expected: dict[bytes, ExpectedCall] = {}
        self._attended: Counter[bytes] = Counter()

    # -- the reader

    @contextmanager
    def expect(self, *, received_bytes_max: int) -> Iterator[ExpectedCall]:
        """Expect one call; the connection ends with the block."""
        expected = ExpectedCall(received_bytes_max)
        self._expected[expected.call] = expected
        try:
            yield expected
        finally:
            self._expected.pop(expected.call, None)
            expected.over.set()

    async def take_call(self, channel: Channel, call: bytes) -> None:
        """Somebody has dialed this node and named a call. Returns when its reader has finished."""
        expected = self._expected.pop(call, None)
        if expected is None:
            raise TicketRefused("that call is not expected here, or not any more")
        channel.received_bytes_max = expected.received_bytes_max
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_asking, channel, None)
            expected.come(channel)
            await expected.over.wait()
            nursery.cancel_scope.cancel()

    # -- the holder; each reports once it is under way

    @property
    def attended(self) -> int:
        """Readers that are being called, and relays."""
        return self._attended.total()

    async def call_reader(
        self,
        host: str,
        port: int,
        reader: bytes,
        call: bytes,
        *,
        task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Dial a reader and serve it. Raises `OverQuota` before it has begun."""
        with self._attending(reader):
            task_status.started()
            try:
                async with open_channel(
                    self._engine, host, port, reader, received_bytes_max=SERVER_RECEIVED_BYTES_MAX
                ) as channel:
                    await send_message(channel, Call(call))
                    await self._converse(channel)
            except (WireError, NodeError, OSError) as error:
                _log.info("reader_not_called", peer=host, error=str(error))

    async def attend_relay(
        self,
        host: str,
        port: int,
        reader: bytes,
        token: bytes,
        *,
        task_status: "TaskStatus[None]" = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Answer QUIC through a relay. Raises `OverQuota`, or `PeerUnreachable` where the relay does not answer,
        before it has begun."""
        with self._attending(reader):
            udp, _ = await dial_relay(token, host, port)
            try:
                task_status.started()
                listener = Listener(udp, self._engine, self._converse)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(listener.serve)
                    await _until_idle(listener)
                    nursery.cancel_scope.cancel()
            finally:
                udp.close()

    @contextmanager
    def _attending(self, reader: bytes) -> Iterator[None]:
        if self._attended[reader] >= MEETINGS_PER_READER_MAX:
            raise OverQuota(f"{MEETINGS_PER_READER_MAX} meetings with one reader at a time")
        self._attended[reader] += 1
        try:
            yield
        finally:
            self._attended[reader] -= 1
            if not self._attended[reader]:
                del self._attended[reader]


async def _until_idle(listener: Listener) -> None:
    idle_seconds = 0.0
    while idle_seconds < IDLE_SECONDS:
        await trio.sleep(1.0)
        idle_seconds = 0.0 if listener.connections else idle_seconds + 1.0
