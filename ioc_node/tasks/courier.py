"""Delivers errands: messages that a provider must get, sooner or later, also after a restart of this node."""

from typing import Final

import structlog
import trio

from ioc_node.errors import PeerUnreachable
from ioc_node.tasks.exchange import Connect
from ioc_node.tasks.guard import contained_story
from ioc_node.tasks.journal import Errand, Journal
from ioc_node.tasks.story import now_ms
from ioc_wire.codec import Message, encode
from ioc_wire.errors import Busy, Closing, RateLimited, RemoteFault, TaskUnknown, WireError
from ioc_wire.market import Contact

PROVIDERS_MAX: Final = 16
"""Providers that errands are brought to at the same time."""
BATCH_ERRANDS: Final = 64
PAUSE_SECONDS_MIN: Final = 0.5
PAUSE_SECONDS_MAX: Final = 60.0
ERRAND_DAYS: Final = 7
"""After so long an errand to a provider that never answers is dropped."""
DELIVER_SECONDS: Final = 10.0
"""Without an answer for so long, the errand is tried again later."""

_log = structlog.get_logger()


class Courier:
    """`send` writes an errand down; `run` brings it."""

    def __init__(self, journal: Journal, connect: Connect) -> None:
        self._journal = journal
        self._connect = connect
        self._wanted: dict[bytes, Contact] = {}
        self._news = trio.lowlevel.ParkingLot()
        self._away: dict[bytes, trio.Event] = {}

    def send(self, provider: Contact, message: Message) -> None:
        """Write `message` down for `provider`. Joins a transaction that is open; call `wake` after it."""
        self._journal.add_errand(provider, message, now_ms())

    def wake(self, provider: Contact) -> None:
        """Something was written down for `provider`."""
        self._wanted[encode(provider)] = provider
        self._news.unpark_all()

    async def run(self) -> None:
        """Deliver until cancelled."""
        for provider in self._journal.errand_providers():
            self._wanted[encode(provider)] = provider
        room = trio.Semaphore(PROVIDERS_MAX)
        async with trio.open_nursery() as nursery:
            while True:
                while not (ready := [name for name in self._wanted if name not in self._away]):
                    await self._news.park()
                await room.acquire()
                provider = self._wanted.pop(ready[0])
                self._away[ready[0]] = trio.Event()
                nursery.start_soon(self._visit, ready[0], provider, room)

    async def _visit(self, name: bytes, provider: Contact, room: trio.Semaphore) -> None:
        pause_seconds = PAUSE_SECONDS_MIN
        done = False
        while not done:
            with contained_story("errands") as fault:
                done = await self._deliver_all(provider)
            done = done or bool(fault.text)
            if not done:
                room.release()  # a provider that is away must not keep others waiting
                await trio.sleep(pause_seconds)
                pause_seconds = min(2 * pause_seconds, PAUSE_SECONDS_MAX)
                await room.acquire()
        room.release()
        del self._away[name]
        self._news.unpark_all()

    async def _deliver_all(self, provider: Contact) -> bool:
        """Whether nothing is left for the provider."""
        while errands := self._journal.errands(provider, BATCH_ERRANDS):
            for errand in errands:
                if not await self._deliver(errand):
                    return False
                self._journal.drop_errand(errand.id)
        return True

    async def _deliver(self, errand: Errand) -> bool:
        what = type(errand.message).__name__
        with trio.move_on_after(DELIVER_SECONDS):
            try:
                link = await self._connect(errand.provider)
                await link.request(errand.message)
                return True
            except (PeerUnreachable, Busy, Closing, RateLimited, RemoteFault) as error:
                if now_ms() - errand.written_ms > ERRAND_DAYS * 86_400_000:
                    _log.warning("errand_dropped", errand=what, error=str(error))
                    return True
            except TaskUnknown:
                return True  # the attempt never came to be there
            except WireError as error:
                _log.warning("errand_refused", errand=what, error=str(error))
                return True
        return False
