"""The heart of a link: it notices a silent peer, and measures round trips meanwhile.

Nothing is sent while the peer is heard anyway. How soon silence is noticed may differ from link to link: a provider
must know within seconds that its home core node is gone, for an idle link a minute is soon enough.
"""

import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

ROUND_TRIPS_KEPT: Final = 5


@dataclass(frozen=True, slots=True)
class Pace:
    """A silent peer is given up after `missed_max` + 1 to + 2 intervals of `seconds`."""

    seconds: float
    missed_max: int


class Heart:
    """Beats at the pace it was made with, until `set_pace` gives it another. `send` sends a heartbeat."""

    def __init__(self, usual: Pace, send: Callable[[], object]) -> None:
        self._usual = self._pace = usual
        self._send = send
        self._heard = False
        self._repaced = trio.lowlevel.ParkingLot()
        self._sent_at: float | None = None
        self._round_trips: deque[float] = deque(maxlen=ROUND_TRIPS_KEPT)

    @property
    def round_trip_seconds(self) -> float | None:
        """Median of the last heartbeats that were answered, the peer's own delays included; None before the first."""
        return statistics.median(self._round_trips) if self._round_trips else None

    def set_pace(self, pace: Pace | None) -> None:
        """Beat faster or slower from now on; None: as usual."""
        wanted = pace or self._usual
        if wanted != self._pace:
            self._pace = wanted
            self._repaced.unpark_all()

    def beat_now(self) -> None:
        """Send a heartbeat for the sake of its round trip, unless one is on its way."""
        if self._sent_at is None:
            self._sent_at = trio.current_time()
            self._send()

    def hear(self) -> None:
        """The peer said something."""
        self._heard = True

    def hear_answer(self) -> None:
        """The peer answered a heartbeat."""
        if self._sent_at is not None:
            self._round_trips.append(trio.current_time() - self._sent_at)
            self._sent_at = None

    async def beat(self) -> str:
        """Returns, with the reason, once the peer was silent for too long."""
        # Counted in intervals that this process lived through, not in time: after a suspended laptop or a blocked
        # loop wakes up, everybody has the same grace as before.
        missed = 0
        while True:
            with trio.move_on_after(self._pace.seconds) as interval:
                await self._repaced.park()
            if self._heard or not interval.cancelled_caught:
                self._heard = False
                missed = 0
                continue
            missed += 1
            if missed > self._pace.missed_max:
                return f"silent for {missed} heartbeats"
            self._sent_at = trio.current_time()
            self._send()
