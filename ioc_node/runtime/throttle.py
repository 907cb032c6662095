"""Bandwidth of one direction at work: tasks that move bytes wait here for their turn (`core/bandwidth` decides)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from ioc_node.core.bandwidth import Bandwidth, Ceilings, Flow, Request, Traffic, Use
from ioc_wire.identity import node_id_of


class Lane:
    """One transfer's way through a throttle. Made by `Throttle.open`."""

    __slots__ = ("_flow", "_throttle")

    def __init__(self, throttle: "Throttle", flow: Flow) -> None:
        self._throttle = throttle
        self._flow = flow

    @property
    def is_limited(self) -> bool:
        """Whether a ceiling applies now: without one there is nothing to wait for."""
        return self._throttle.machine.is_limited(self._flow)

    async def take(self, size: int) -> None:
        """Return when so many bytes may move, and count them."""
        await self._throttle.take(self._flow, size)

    def take_nowait(self, size: int) -> bool:
        """The same, if they may move now and nobody else's turn comes before."""
        return self._throttle.take_nowait(self._flow, size)

    def count(self, size: int) -> None:
        """Count bytes that moved without being asked."""
        self._throttle.count(self._flow, size)

    def pieces(self, data: bytes | memoryview) -> Iterator[memoryview]:
        """`data` in parts that are small beside the ceilings, in order."""
        view = memoryview(data)
        step = self._throttle.machine.piece_bytes(self._flow)
        return (view[start : start + step] for start in range(0, len(view), step))


class Throttle:
    """Bytes in one direction. `run` has to run for anybody to wait."""

    def __init__(self, ceilings: Ceilings, weights: Mapping[Traffic, float]) -> None:
        """Raises `ValueError` for a ceiling or weight that is not above zero."""
        self.machine = Bandwidth(ceilings, weights, now=trio.current_time())
        self._granted: dict[Request, trio.Event] = {}
        self._changed = trio.Event()

    async def run(self) -> None:
        """Let those go whose turn it is, until cancelled."""
        while True:
            self._changed = trio.Event()
            with trio.CancelScope(deadline=self.machine.deadline()):
                await self._changed.wait()
            self._advance()

    @contextmanager
    def open(self, peer: bytes, traffic: Traffic, name: object) -> Iterator[Lane]:
        """A lane of the transfer `name` with that peer (a public key)."""
        flow = self.machine.open(node_id_of(peer), traffic, name)
        try:
            yield Lane(self, flow)
        finally:
            self.machine.close(flow)

    def set(self, ceilings: Ceilings, weights: Mapping[Traffic, float]) -> None:
        """Other ceilings and weights, at once. Raises `ValueError`."""
        self.machine.set(ceilings, weights, now=trio.current_time())
        self._changed.set()

    def hurry(self, peer: bytes, name: object, factor: float) -> None:
        """See `Bandwidth.hurry`; `peer` is a public key."""
        self.machine.hurry(node_id_of(peer), name, factor)

    def admits(self, peer: bytes, traffic: Traffic, size: int) -> bool:
        """See `Bandwidth.admits`; `peer` is a public key."""
        return self.machine.admits(node_id_of(peer), traffic, size, now=trio.current_time())

    def ceiling_of(self, peer: bytes, traffic: Traffic) -> float:
        """The lowest ceiling for that class to or from a peer (a public key), bytes per second."""
        return self.machine.ceiling_of(node_id_of(peer), traffic)

    def uses(self) -> list[Use]:
        """Who uses what now; peers by node ID."""
        return self.machine.uses(trio.current_time())

    async def take(self, flow: Flow, size: int) -> None:
        request = self.machine.ask(flow, size, now=trio.current_time())
        if not request.granted:
            event = self._granted[request] = trio.Event()
            self._advance()
            self._changed.set()
            try:
                await event.wait()
            except trio.Cancelled:
                self.machine.withdraw(request)
                self._changed.set()
                raise
            finally:
                self._granted.pop(request, None)
        self.count(flow, size)

    def take_nowait(self, flow: Flow, size: int) -> bool:
        request = self.machine.ask(flow, size, now=trio.current_time())
        if not request.granted:
            self._advance()
        if not request.granted:
            self.machine.withdraw(request)
            return False
        self.count(flow, size)
        return True

    def count(self, flow: Flow, size: int) -> None:
        self.machine.moved(flow.peer, flow.traffic, size, now=trio.current_time())

    def _advance(self) -> None:
        for request in self.machine.advance(trio.current_time()):
            event = self._granted.get(request)
            if event is not None:
                event.set()


@dataclass(frozen=True)
class Throttles:
    """Both directions of a node."""

    sending: Throttle
    receiving: Throttle

    @classmethod
    def unlimited(cls) -> "Throttles":
        """No ceilings."""
        return cls(Throttle(Ceilings(), {}), Throttle(Ceilings(), {}))

    def are_limited(self) -> bool:
        """Whether there is any ceiling."""
        sides = (self.sending, self.receiving)
        return any(True for side in sides for _ in side.machine.ceilings.named())

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.sending.run)
            nursery.start_soon(self.receiving.run)
