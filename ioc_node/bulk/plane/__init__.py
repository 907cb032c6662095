"""The data plane: what moves the bytes of blobs by QUIC, within the node's process or in one of its own.

A node decides (who gets tickets, what has room, which road a blob takes, how to meet hidden peers); its data plane
sends and receives. `LocalPlane` (`local.py`) does so in the same trio loop. Bulk data flat out leaves that loop too
little for anything else, so a node has a `ChildPlane` (`parent.py`): the same `LocalPlane` in a process of lower
priority (`child.py`, run by `process.py`), spoken to over a socket pair (`messages.py`).
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ioc_node.bulk.gathering import Source
from ioc_node.bulk.meeting import Arranger
from ioc_node.bulk.targets import OnProgress
from ioc_node.core.bandwidth import Traffic, Use
from ioc_wire.bulk import Ticket
from ioc_wire.errors import WireError


@dataclass(frozen=True)
class Gathered:
    """A blob came; `resumed` bytes of it had been here."""

    size: int
    resumed: int


class DataPlane(Protocol):
    """Moves blobs between this node's store and others."""

    arranger: Arranger | None
    """Set while the node has links: how to meet holders that cannot be dialed."""

    @property
    def connections(self) -> int:
        """Readers connected, as far as is known here."""
        ...

    @property
    def pid(self) -> int:
        """Of the process of its own, 0 where there is none now."""
        ...

    def expect_reader(self) -> None:
        """One was given a ticket and will call soon."""
        ...

    async def serve(self) -> None:
        """Answer readers until cancelled; nothing else works before."""
        ...

    async def gather(
        self, sources: Sequence[Source], on_progress: OnProgress | None, traffic: Traffic
    ) -> Gathered:
        """Have a blob in the store. The store's lock of the blob is held by the caller. Sources learn what each gave.
        Raises as `Gathering.run`."""
        ...

    async def fetch_small(self, tickets: Sequence[Ticket]) -> dict[bytes, WireError]:
        """See `ioc_node.bulk.small.fetch_small`."""
        ...

    def open_blob(
        self, sources: Sequence[Source], start: int, stop: int | None, *, ahead: int
    ) -> AbstractAsyncContextManager[AsyncIterator[memoryview]]:
        """Bytes of a blob as they arrive; at most `ahead` chunks wait. Iterating raises as `Gathering.run`."""
        ...

    async def export(self, blob: bytes, target: Path) -> None:
        """See `BlobShelf.export`."""
        ...

    async def call_reader(self, host: str, port: int, reader: bytes, call: bytes) -> None:
        """See `Meetings.call_reader`; returns once it is under way."""
        ...

    async def attend_relay(self, host: str, port: int, reader: bytes, token: bytes) -> None:
        """See `Meetings.attend_relay`; returns once it is under way."""
        ...

    async def set_bandwidth(self) -> None:
        """Go by the node's ceilings and weights, which have changed."""
        ...

    async def hurry(self, peer: bytes, name: bytes | None, factor: float) -> None:
        """Have what comes of the blob `name` from that peer (a public key; None: of all blobs) weigh `factor` times as
        much as its class says, see `Bandwidth.hurry`; 1 ends that."""
        ...

    async def uses(self) -> tuple[Sequence[Use], Sequence[Use]]:
        """Who uses what now: sending, receiving."""
        ...
