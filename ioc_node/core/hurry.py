"""How much more weight a transfer with a deadline gets while it is behind.

Looked at now and then, it is told how much is here. Where what came since the last look was slower than what the rest
needs, its weight grows by as many times as it was too slow; where it was quicker, it shrinks again, down to its own.
Between transfers that share a ceiling by weight this converges on what the deadline needs, and a deadline that cannot
be met takes no more than `FACTOR_MAX` times its share from others.

Pure state: time is an argument, in seconds of one clock.
"""

from typing import Final

FACTOR_MAX: Final = 16.0
STEP_MAX: Final = 4.0
"""What one look may change, up or down: a pause in the middle is no measurement."""


class Hurry:
    """A transfer of `size` bytes that has to be over by `deadline`."""

    def __init__(self, size: int, deadline: float, *, now: float) -> None:
        self.factor = 1.0
        """Times its own weight."""
        self._size = size
        self._deadline = deadline
        self._seen = 0
        self._at = now

    def look(self, here: int, *, now: float) -> float:
        """The factor from now on, with `here` bytes of it here."""
        seconds = now - self._at
        if seconds <= 0:
            return self.factor
        rate, left = max(0, here - self._seen) / seconds, max(0, self._size - here)
        self._seen, self._at = here, now
        time_left = self._deadline - now
        if not left:
            self.factor = 1.0
        elif time_left <= 0 or rate <= 0:
            self.factor = min(FACTOR_MAX, self.factor * STEP_MAX)
        else:
            step = min(STEP_MAX, max(1 / STEP_MAX, left / time_left / rate))
            self.factor = min(FACTOR_MAX, max(1.0, self.factor * step))
        return self.factor
