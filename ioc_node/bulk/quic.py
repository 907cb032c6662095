"""QUIC on trio: one connection carries one byte stream between a reader and a holder.

Theory of operation. A `Channel` owns one sans-IO connection (`engines.Pipe`). Whatever happens to it
(datagrams fed by the socket's reader, bytes from the application, a timer) ends in `_turn`, which takes
the engine's events, wakes waiting tasks and sends what is due, but no more than the channel's share of this pass
of the loop (`turnstile`); `drive` sends the rest in later passes. It sleeps until the engine's timer or until it
is woken, so an idle connection costs nothing.

Sending waits while unacknowledged bytes exceed the pipe's bound; a peer that acknowledges none of them for
`STALLED_SECONDS`, however alive it claims to be, is hung up on. Receiving is bounded by
`received_bytes_max`; the engines' own flow control follows what arrived rather than what was consumed,
hence a peer that sends more than the application asked for is cut off.
"""

import contextlib
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import trio

from ioc_node.bulk.engines import EngineError, Pipe, Transmit
from ioc_node.bulk.turnstile import current_turnstile
from ioc_node.bulk.udp import Address, Received, UdpSocket
from ioc_node.errors import PeerUnreachable
from ioc_wire.errors import RateLimited, TooLarge, WireError, WrongPeer

DATAGRAMS_PER_POLL: Final = 44
STREAM: Final = 0
"""The only stream: the first that a client opens."""
STALLED_SECONDS: Final = 30.0
"""How long bytes may wait for a peer that grants no window and acknowledges nothing."""
FINISH_SECONDS: Final = 2.0
"""How long a closing side waits for its last bytes to be acknowledged."""


class ChannelBroken(PeerUnreachable):
    """The connection ended before the conversation did."""


class Channel:
    """One QUIC connection with its one stream."""

    def __init__(self, pipe: Pipe, udp: UdpSocket, peer: Address, *, received_bytes_max: int) -> None:
        self.pipe = pipe
        self.peer = peer
        self.on_ids_changed: Callable[[bytes, bool], None] = lambda _id, _added: None
        self.udp = udp
        self.heard_at = self.data_at = trio.current_time()
        self._turnstile = current_turnstile()
        self.received_bytes_max = received_bytes_max
        self._has_several_paths = False
        self._unsent: Sequence[Transmit] = ()
        self._more = False
        self._wake = trio.Event()
        self._sleep = trio.CancelScope()
        self._ready = trio.Event()
        self._fault: Exception | None = None
        self._parts: deque[memoryview] = deque()
        self._buffered = 0
        self._wanted = 1
        self._peer_finished = False
        self._readable = trio.Event()
        self._writable = trio.Event()
        self._expecting = trio.Event()
        self._expecting_since = self.heard_at
        self._path_bytes = 0
        self._sent_bytes = 0
        self._arrived_bytes = 0
        self._stalled_since: float | None = None

    # -- what the application does

    async def wait_ready(self) -> None:
        """Return when the handshake is done; raises `ChannelBroken`."""
        self._expect()
        await self._ready.wait()
        self._raise_fault()

    def check_peer(self, key: bytes) -> None:
        """Raise `WrongPeer` unless the server's certificate holds `key`."""
        if self.pipe.peer_key() != key:
            raise WrongPeer(f"the holder at {self.peer[0]}:{self.peer[1]} has another key")

    async def send_all(self, data: bytes | memoryview) -> None:
        """Send bytes; returns once they are within the bound of bytes not yet acknowledged."""
        view = memoryview(data)
        step = self.pipe.slice_bytes
        for start in range(0, len(view), step):
            piece = view[start : start + step]
            while self._fault is None and not self._has_room(len(piece)):
                self._writable = trio.Event()
                await self._writable.wait()
            if self._turnstile.share_seconds() <= 0:
                await self._turnstile.admit()
            self._sent_bytes += len(piece)
            self._apply(self.pipe.send, STREAM, piece)
            await trio.lowlevel.checkpoint()

    async def receive_exactly(self, count: int) -> bytes:
        """The next `count` bytes; raises `ChannelBroken` when fewer are to come."""
        await self.wait_received(count)
        return self.take_nowait(count)

    async def wait_received(self, count: int) -> None:
        """Return when the next `count` bytes are here; raises `ChannelBroken` when fewer are to come."""
        while self._buffered < count:
            self._raise_fault()
            if self._peer_finished:
                raise ChannelBroken(f"{self.peer[0]}:{self.peer[1]} ended the stream early")
            self._wanted = count
            self._readable = trio.Event()
            self._expect()
            await self._readable.wait()

    def take_nowait(self, count: int) -> bytes:
        """The next `count` bytes, which are here."""
        return b"".join(self._take(count))

    def take_into_nowait(self, target: memoryview) -> None:
        """Fill `target` with the next bytes, which are here."""
        at = 0
        for part in self._take(len(target)):
            target[at : at + len(part)] = part
            at += len(part)

    async def wait_expecting(self) -> None:
        """Return when the application waits for the peer."""
        await self._expecting.wait()

    def silent_seconds(self) -> float:
        """For how long the application has waited without a sign of life from the peer."""
        return trio.current_time() - max(self.heard_at, self._expecting_since)

    def finish_nowait(self) -> None:
        """Say that nothing more will be sent."""
        self._apply(self.pipe.send, STREAM, b"", end=True)

    async def aclose(self, reason: str = "") -> None:
        """Let what was sent arrive (for at most `FINISH_SECONDS`), then close."""
        with trio.move_on_after(FINISH_SECONDS):
            while self._fault is None and self._buffered_bytes():
                self._writable = trio.Event()
                await self._writable.wait()
        self.close_nowait(reason)

    def close_nowait(self, reason: str = "") -> None:
        """Close at once."""
        if self._fault is None:
            self._say_close(0, reason)
            self._end(ChannelBroken(f"connection to {self.peer[0]}:{self.peer[1]} was closed here"))

    # -- what the socket's reader and the drive do

    @property
    def ended(self) -> bool:
        """Whether this connection is over."""
        return self._fault is not None

    def feed(self, received: Sequence[Received]) -> None:
        """Take what came in from the socket."""
        now = trio.current_time()
        began = self._turnstile.clock()
        self.heard_at = now
        try:
            for each in received:
                self.pipe.feed(each, now)
                self._has_several_paths = self._has_several_paths or each[2] != self.peer
        except EngineError as error:
            self._give_up(error)
            return
        self._turnstile.charge(began)
        if self.pipe.unordered_bytes(STREAM) > self.received_bytes_max:
            self._abort(TooLarge(f"{self.peer[0]}:{self.peer[1]} sent far ahead of what it left out"))
            return
        self._turn(now)

    @property
    def path_is_open(self) -> bool:
        """Whether what the path carries is still to be found out."""
        return not self._ready.is_set()

    def path_carries(self, size: int) -> None:
        """Datagrams of so many bytes come through in both directions: tell the peer."""
        if size > self._path_bytes:
            self._path_bytes = size
            self.pipe.announce_datagram_bytes(size)

    def rebind(self, udp: UdpSocket) -> None:
        """Go on from another local socket; the peer validates the new address before it sends much there."""
        old, self.udp = self.udp, udp
        old.close()
        self._unsent = ()
        if self._fault is None:
            with contextlib.suppress(EngineError):  # no spare connection ID: the old one must do
                self.pipe.change_address()
            self.ping()

    def ping(self) -> None:
        """Ask for a sign of life; on a connected socket a closed port answers at once."""
        if self._fault is None:
            self._apply(self.pipe.ping)

    def connect(self) -> None:
        """Start a client's handshake."""
        self._apply(self.pipe.connect, self.peer, trio.current_time())

    def fail(self, error: Exception) -> None:
        """End with a fault that the socket found."""
        self._end(ChannelBroken(f"{self.peer[0]}:{self.peer[1]}: {error}"))

    async def drive(self) -> None:
        """Own the timer and the sending until the connection is over."""
        while self._fault is None:
            if self._unsent:
                udp = self.udp
                try:
                    await udp.wait_writable()
                except trio.ClosedResourceError:
                    if udp is self.udp:
                        return
            elif self._more:
                await self._turnstile.admit()
            else:
                await self._doze()
            if self._fault is not None:
                return
            now = trio.current_time()
            timer = self.pipe.timer()
            if timer is not None and now >= timer:
                self._apply(self.pipe.handle_timer, now)
            else:
                self._turn(now)

    async def _doze(self) -> None:
        self._sleep = trio.CancelScope(deadline=self._deadline())
        with self._sleep:
            await self._wake.wait()
        self._wake = trio.Event()

    def _note_progress(self, now: float) -> None:
        waiting = self.pipe.buffered_bytes(STREAM)
        arrived = self._sent_bytes - waiting
        if waiting == 0:
            self._stalled_since = None
        elif self._stalled_since is None or arrived > self._arrived_bytes:
            self._stalled_since = now
        elif now - self._stalled_since >= STALLED_SECONDS:
            reason = f"took nothing for {STALLED_SECONDS:g} s"
            self._say_close(RateLimited.code, reason)
            self._end(ChannelBroken(f"{self.peer[0]}:{self.peer[1]} {reason}"))
        self._arrived_bytes = max(self._arrived_bytes, arrived)

    def _expect(self) -> None:
        if not self._expecting.is_set():
            self._expecting_since = trio.current_time()
            self._expecting.set()

    def _deadline(self) -> float:
        timer = self.pipe.timer()
        deadline = math.inf if timer is None else timer
        return (
            deadline if self._stalled_since is None else min(deadline, self._stalled_since + STALLED_SECONDS)
        )

    # -- one turn

    def _apply(self, call: Callable[..., None], *args: object, **kwargs: object) -> None:
        self._raise_fault()
        began = self._turnstile.clock()
        try:
            call(*args, **kwargs)
        except EngineError as error:
            self._give_up(error)
            return
        self._turnstile.charge(began)
        self._turn(trio.current_time())

    def _turn(self, now: float) -> None:
        if self._fault is not None:
            return
        try:
            self._take_events()
            if self._fault is not None:
                return
            self._more = self._send_due(now)
            self._note_progress(now)
            if not self._writable.is_set() and self._has_room(self.pipe.slice_bytes):
                self._writable.set()
        except EngineError as error:
            self._give_up(error)
            return
        except OSError as error:
            self._end(ChannelBroken(f"{self.peer[0]}:{self.peer[1]}: {error.strerror or error}"))
            return
        if self._more or self._unsent:
            self._wake.set()
        else:
            self._sleep.deadline = min(self._sleep.deadline, self._deadline())

    def _send_due(self, now: float, *, at_once: bool = False) -> bool:
        """Send what the engine has, within this pass's share; whether it may have more."""
        turnstile = self._turnstile
        left = turnstile.share_seconds()
        while left > 0 or at_once:
            began = turnstile.clock()
            batch = self._unsent or self.pipe.poll(now, DATAGRAMS_PER_POLL)
            self._unsent = self._send(batch) if batch else ()
            left -= turnstile.charge(began)
            if not batch or self._unsent:
                return False
        return True

    def _send(self, batch: Sequence[Transmit]) -> Sequence[Transmit]:
        """Hand datagrams to the kernel; those that it did not take."""
        address = batch[0][1]
        count = len(batch)
        if self._has_several_paths:  # a probe of another path may be among them
            count = next((at for at, each in enumerate(batch) if each[1] != address), count)
        sent = self.udp.send_nowait([each[0] for each in batch[:count]], address)
        if sent == count < len(batch):
            return self._send(batch[count:])
        return batch[sent:]

    def _take_events(self) -> None:
        events = self.pipe.events
        while (event := self.pipe.next_event()) is not None:
            if isinstance(event, events.StreamDataReceived):
                self._take_data(event.stream_id, event.data, event.end_stream)
            elif isinstance(event, events.HandshakeCompleted):
                self._expecting = trio.Event()
                self._ready.set()
            elif isinstance(event, events.ConnectionIdIssued):
                self.on_ids_changed(event.connection_id, True)
            elif isinstance(event, events.ConnectionIdRetired):
                self.on_ids_changed(event.connection_id, False)
            elif isinstance(event, (events.StreamReset, events.StopSendingReceived)):
                self._end(ChannelBroken(f"{self.peer[0]}:{self.peer[1]} reset the stream"))
            elif isinstance(event, events.ConnectionTerminated):
                reason = event.reason_phrase or f"closed with code {event.error_code}"
                self._end(ChannelBroken(f"{self.peer[0]}:{self.peer[1]}: {reason}"))

    def _take_data(self, stream: int, data: bytes, end: bool) -> None:
        if stream != STREAM:
            self._abort(TooLarge(f"{self.peer[0]}:{self.peer[1]} opened a second stream"))
            return
        if data:
            self.data_at = self.heard_at
            self._parts.append(memoryview(data))
            self._buffered += len(data)
        if self._buffered > self.received_bytes_max:
            self._abort(TooLarge(f"{self.peer[0]}:{self.peer[1]} sent more than it was asked for"))
            return
        self._peer_finished = self._peer_finished or end
        if self._buffered >= self._wanted or end:
            self._expecting = trio.Event()
            self._readable.set()

    def _take(self, count: int) -> list[memoryview]:
        taken: list[memoryview] = []
        self._buffered -= count
        while count:
            part = self._parts.popleft()
            if len(part) > count:
                self._parts.appendleft(part[count:])
                part = part[:count]
            count -= len(part)
            taken.append(part)
        return taken

    def _has_room(self, count: int) -> bool:
        buffered = self._buffered_bytes()
        return buffered == 0 or buffered + count <= self.pipe.buffered_bytes_max

    def _buffered_bytes(self) -> int:
        try:
            return self.pipe.buffered_bytes(STREAM)
        except EngineError as error:
            self._give_up(error)
            return 0

    def _give_up(self, error: EngineError) -> None:
        self._say_close(1, "cannot go on")
        self._end(ChannelBroken(str(error)))

    def _abort(self, error: WireError) -> None:
        self._say_close(error.code, str(error)[:200])
        self._end(error)

    def _say_close(self, code: int, reason: str) -> None:
        try:
            self.pipe.close(code, reason)
            self._send_due(trio.current_time(), at_once=True)
        except (EngineError, OSError):
            pass  # the peer will notice by itself

    def _end(self, fault: Exception) -> None:
        if self._fault is None:
            self._fault = fault  # what arrived before can still be read: often the reason
        for event in (self._ready, self._readable, self._writable, self._wake, self._expecting):
            event.set()

    def _raise_fault(self) -> None:
        if self._fault is not None:
            raise self._fault
