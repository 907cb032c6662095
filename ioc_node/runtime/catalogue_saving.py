"""What of a catalogue is to be stored, gathered over a moment, until a core node stops."""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import structlog
import trio

from ioc_node.core.catalogue import Catalogue
from ioc_node.core.entry_book import EntryBook
from ioc_node.errors import StorageFull
from ioc_wire.gossip import HeadNews

GATHER_SECONDS: Final = 0.1
STORE_AGAIN_SECONDS: Final = 5.0
STORE_LAST_SECONDS: Final = 2.0
"""What is unsaved when the node stops is stored within so long, or fetched again later."""

log = structlog.get_logger()


class Shelf(EntryBook, Protocol):
    """Where a catalogue survives a restart; see `ioc_node.runtime.catalogue_store`."""

    async def load(self, catalogue: Catalogue, *, unix: float) -> None: ...

    async def save(self, news: Mapping[bytes, Sequence[HeadNews]]) -> None: ...

    async def wait_for_room(self) -> None: ...


class Saving:
    """Of one catalogue."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._unsaved: set[bytes] = set()
        self._noted = trio.Event()

    def note(self, provider: bytes) -> None:
        """What is held of this provider is to be stored."""
        self._unsaved.add(provider)
        self._noted.set()

    async def run(self, shelf: Shelf) -> None:
        """Store what was noted, until cancelled; then once more."""
        try:
            while True:
                await self._noted.wait()
                await trio.sleep(GATHER_SECONDS)
                await self._save_now(shelf)
        finally:
            with trio.move_on_after(STORE_LAST_SECONDS, shield=True):
                await self._save_now(shelf)

    async def _save_now(self, shelf: Shelf) -> None:
        self._noted = trio.Event()
        changed, self._unsaved = self._unsaved, set()
        if not changed:
            return
        replicas = {provider: self._catalogue.replica(provider) for provider in changed}
        try:
            await shelf.save({key: one.news() if one is not None else () for key, one in replicas.items()})
        except StorageFull as error:
            # Nothing is lost: what cannot be stored here is fetched from others after a restart.
            log.error("catalogue_not_stored", error=str(error))
            self._unsaved |= changed
            self._noted.set()
            await trio.sleep(STORE_AGAIN_SECONDS)
