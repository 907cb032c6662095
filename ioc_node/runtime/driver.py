"""Where a sans-IO machine meets trio: one driver owns one machine, its socket and its timer.

Events go in by `feed`, from the socket, from the clock or from a caller; the effects that come out are
carried out at once, in order, before anything else is fed. Carrying out an effect never waits.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Generic, Protocol, TypeVar

import trio

from ioc_node.core.events import DatagramReceived, Tick
from ioc_node.core.session import SendDatagram
from ioc_node.runtime.datagrams import DatagramSocket
from ioc_node.runtime.faults import sole

_Event = TypeVar("_Event", contravariant=True)
_Effect = TypeVar("_Effect", covariant=True)
_E = TypeVar("_E")
_F = TypeVar("_F")


class DatagramMachine(Protocol[_Event, _Effect]):
    """A machine that takes `DatagramReceived` and `Tick`, and gives `SendDatagram` among its effects."""

    def handle(self, event: _Event | DatagramReceived | Tick, *, now: float) -> Sequence[_Effect]: ...

    def deadline(self) -> float: ...


class Driver(Generic[_E, _F]):
    """Runs one machine. `perform` carries out the effects other than sending; it must not wait."""

    def __init__(
        self, machine: DatagramMachine[_E, _F], sock: DatagramSocket, perform: Callable[[_F], None]
    ) -> None:
        self._machine = machine
        self._socket = sock
        self._perform = perform
        self._deadline = machine.deadline()
        self._nap = trio.CancelScope()

    def feed(self, event: _E | DatagramReceived | Tick) -> None:
        """Give the machine an event and carry out what follows from it."""
        for effect in self._machine.handle(event, now=trio.current_time()):
            if isinstance(effect, SendDatagram):
                self._socket.send_nowait(effect.data, effect.address)
            else:
                self._perform(effect)
        deadline = self._machine.deadline()
        if deadline < self._deadline:
            # Only ever sooner: most deadlines are those of requests that are answered long before, and one idle
            # wake-up costs less than moving the deadline back after each of them.
            self._deadline = self._nap.deadline = deadline

    async def run(self) -> None:
        """Serve the socket and the timer until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive)
            nursery.start_soon(self._tick)

    async def _receive(self) -> None:
        while True:
            for data, address in await self._socket.receive_batch():
                self.feed(DatagramReceived(data, address))

    async def _tick(self) -> None:
        while True:
            self._deadline = self._machine.deadline()
            with trio.CancelScope(deadline=self._deadline) as self._nap:
                await trio.sleep_forever()
            if self._machine.deadline() <= trio.current_time():
                self.feed(Tick())


@asynccontextmanager
async def open_background() -> AsyncIterator[trio.Nursery]:
    """A nursery for tasks that last as long as the block; it is cancelled at the block's end.

    A single exception comes out as itself and not in a group, so that callers can name what they expect.
    """
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise sole(group) from None
