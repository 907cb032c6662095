"""How much bulk work fits between two looks at the clock and the sockets: one budget for all channels of a process.

trio runs everything that is ready in one pass, then asks the kernel what came in. Encrypting and decrypting
datagrams is work without a pause; with four transfers flat out a pass would last as long as all of them together,
and whoever waits for a 64-byte answer would wait for that. So all channels draw on one budget per pass. Who finds
it used up waits for the next pass; who draws on it while others wait takes only his share.
"""

import time
from typing import Final

import trio

PASS_SECONDS: Final = 0.0015
"""Bulk work in one pass of the loop."""


class Turnstile(trio.abc.Instrument):
    """The budget of one trio run, in processor time: what others of the machine took of the clock is not our work."""

    clock = staticmethod(time.thread_time)

    def __init__(self) -> None:
        self._left_seconds = PASS_SECONDS
        self._waiting = 0

    def after_io_wait(self, timeout: float) -> None:
        """A new pass begins (called by trio)."""
        self._left_seconds = PASS_SECONDS

    def share_seconds(self) -> float:
        """What the caller may use up now; zero or less: nothing more in this pass."""
        return min(self._left_seconds, PASS_SECONDS / (1 + self._waiting))

    def charge(self, since: float) -> float:
        """Book the work done since `clock()` said `since`; returns the seconds that it took."""
        spent = self.clock() - since
        self._left_seconds -= spent
        return spent

    async def admit(self) -> None:
        """Return in a pass that has budget left; always lets other tasks run first."""
        self._waiting += 1
        try:
            await trio.lowlevel.checkpoint()
            while self._left_seconds <= 0:
                await trio.lowlevel.checkpoint()
        finally:
            self._waiting -= 1


_current: trio.lowlevel.RunVar[Turnstile] = trio.lowlevel.RunVar("bulk_turnstile")


def current_turnstile() -> Turnstile:
    """The turnstile of this trio run."""
    try:
        return _current.get()
    except LookupError:
        turnstile = Turnstile()
        trio.lowlevel.add_instrument(turnstile)
        _current.set(turnstile)
        return turnstile
