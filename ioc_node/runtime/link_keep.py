"""A link that is held: dialed again, with growing and jittered pauses, whenever it is gone."""

import random
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import structlog
import trio

from ioc_node.errors import PeerUnreachable
from ioc_wire.errors import WireError

log = structlog.get_logger()

PAUSE_SECONDS_MIN: Final = 0.25
PAUSE_SECONDS_MAX: Final = 60.0
SETTLED_SECONDS: Final = 10.0
"""A link that lasted so long starts the pauses from the shortest again."""


class _HeldLink(Protocol):
    @property
    def closed(self) -> trio.Event: ...

    @property
    def close_reason(self) -> str: ...


class KeptLink:
    """One persistent link; `state` is a line for an operator."""

    def __init__(
        self,
        address: tuple[str, int],
        expected_key: bytes | None,
        rng: random.Random,
        on_forgotten: Callable[[], object],
    ) -> None:
        self.address = address
        self.state = "not dialed yet"
        self._expected_key = expected_key
        self._rng = rng
        self._on_forgotten = on_forgotten
        self._scope = trio.CancelScope()

    def forget(self) -> None:
        """Stop dialing. A link that is up stays up."""
        self._scope.cancel()
        self._on_forgotten()

    async def run(self, connect: Callable[[tuple[str, int], bytes | None], Awaitable[_HeldLink]]) -> None:
        """Dial, wait for the end, pause, dial again; until `forget` or cancelled."""
        pause_seconds = PAUSE_SECONDS_MIN
        with self._scope:
            while True:
                lasted = await self._hold_once(connect)
                pause_seconds = PAUSE_SECONDS_MIN if lasted >= SETTLED_SECONDS else pause_seconds
                # Equal jitter: never at once, and never all peers of a restarted node together.
                await trio.sleep(pause_seconds * self._rng.uniform(0.5, 1.0))
                pause_seconds = min(2 * pause_seconds, PAUSE_SECONDS_MAX)

    async def _hold_once(
        self, connect: Callable[[tuple[str, int], bytes | None], Awaitable[_HeldLink]]
    ) -> float:
        try:
            link = await connect(self.address, self._expected_key)
        except (PeerUnreachable, WireError) as error:
            self._say(str(error))
            return 0.0
        up_at = trio.current_time()
        self._say("up")
        await link.closed.wait()
        self._say(f"down: {link.close_reason}")
        return trio.current_time() - up_at

    def _say(self, state: str) -> None:
        if state != self.state:
            self.state = state
            log.info("kept_link", address=f"{self.address[0]}:{self.address[1]}", state=state)
