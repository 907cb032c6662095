"""Roads for blobs other than QUIC: shared memory, RDMA, whatever an installation has.

An offload is found by the entry point group `ioc_node.offloads`. The holder puts a descriptor of each
usable one into a ticket; a reader that has an offload of that name tries it first. Whatever fails there,
QUIC takes over with the chunks that have arrived, and the failure is counted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final, Protocol

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.counters import BulkCounters
from ioc_node.bulk.partial import PartialBlob
from ioc_node.bulk.tickets import TicketBook, make_claim
from ioc_node.errors import NodeError
from ioc_wire.bulk import BlobInfo, Claim, OffloadDescriptor, Ticket
from ioc_wire.errors import BlobCorrupt

ENTRY_POINTS: Final = "ioc_node.offloads"

_log = structlog.get_logger()


class OffloadUnusable(NodeError):
    """This road does not lead to that holder; take another."""


@dataclass(frozen=True)
class Capability:
    """What `probe` found: whether the offload works here, and one line that says why or why not."""

    usable: bool
    reason: str


@dataclass(frozen=True)
class OffloadSource:
    """What an offload serves from."""

    store: BlobStore
    tickets: TicketBook
    counters: BulkCounters


@dataclass
class Landing:
    """Where an offload puts a blob: it proves the ticket, begins the blob, and copies chunks into it."""

    ticket: Ticket
    key: Ed25519PrivateKey
    store: BlobStore
    partial: PartialBlob | None = None
    bytes_resumed: int = 0

    def prove(self, nonce: bytes) -> Claim:
        """The claim to answer a holder's `nonce` with."""
        return make_claim(self.ticket, self.key, nonce)

    async def begin(self, info: BlobInfo) -> PartialBlob:
        """The arrived chunks of this blob, after its hash list has been verified. May be called again."""
        if info.blob != self.ticket.blob:
            raise BlobCorrupt("the holder described another blob than the ticket's")
        if self.partial is None:
            self._keep(await self.store.begin(info))
        assert self.partial is not None
        return self.partial

    async def resume(self) -> PartialBlob | None:
        """What an earlier attempt left."""
        if self.partial is None:
            partial = await self.store.resume(self.ticket.blob)
            if partial is not None:
                self._keep(partial)
        return self.partial

    def _keep(self, partial: PartialBlob) -> None:
        self.partial = partial
        self.bytes_resumed = partial.bytes_present

    def close(self) -> None:
        """Leave what has arrived for the next attempt."""
        if self.partial is not None:
            self.partial.close()
            self.partial = None


class Offload(Protocol):
    """One road. Constructed with the node's runtime folder (`Path`), where it may keep sockets."""

    name: str

    def probe(self) -> Capability:
        """Whether this machine has what it takes; called once, before anything else."""
        ...

    async def serve(self, source: OffloadSource) -> None:
        """The holder's side: answer pulls until cancelled."""
        ...

    def export(self, blob: bytes) -> OffloadDescriptor | None:
        """How a reader reaches the blob by this road; None where it cannot be offered now."""
        ...

    async def pull(self, descriptor: OffloadDescriptor, into: Landing) -> int:
        """The reader's side: bring every missing chunk into `into`; how many bytes were moved.

        Raises `OffloadUnusable`, `OSError`, or a `WireError`; the chunks that arrived stay.
        """
        ...

    def health(self) -> Capability:
        """Whether it works now."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


def load_offloads(runtime_folder: Path) -> Iterator[Offload]:
    """Every installed offload that is usable here."""
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            offload: Offload = entry.load()(runtime_folder)
        except (ImportError, AttributeError, TypeError, OSError) as error:
            _log.warning("offload_unloadable", offload=entry.name, error=str(error))
            continue
        capability = offload.probe()
        if capability.usable:
            yield offload
        else:
            offload.close()
            _log.info("offload_unusable", offload=entry.name, reason=capability.reason)
