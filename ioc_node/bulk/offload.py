"""The interface of offloads: roads for blobs other than QUIC, such as shared memory, RDMA, or what an installation has.

An offload is found by the entry point group `ioc_node.offloads`; docs/offloads.md tells how to write one. The
holder puts a descriptor of each usable one into a ticket. A reader that has an offload of that name may try it
first (`offloading.py`, which also does all the counting and timing). Whatever fails there, QUIC takes over with
the chunks that have arrived.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.bulk.arrivals import Arrivals
from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.counters import BulkCounters
from ioc_node.bulk.partial import PartialBlob
from ioc_node.bulk.tickets import TicketBook, make_claim
from ioc_node.core.roads import Capability, Reach, Scope
from ioc_node.errors import NodeError
from ioc_wire.bulk import BlobInfo, Claim, OffloadDescriptor, Ticket
from ioc_wire.errors import BlobCorrupt

__all__ = [
    "ENTRY_POINTS",
    "Capability",
    "Landing",
    "Loaded",
    "Offload",
    "OffloadSource",
    "OffloadUnusable",
    "Options",
    "Reach",
    "Scope",
    "load_offloads",
]

ENTRY_POINTS: Final = "ioc_node.offloads"

Options = Mapping[str, Any]
"""The operator's table `[bulk.offload_options.NAME]`."""

_log = structlog.get_logger()


class OffloadUnusable(NodeError):
    """This road does not lead to that holder; take another."""


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
    store: Arrivals
    partial: PartialBlob | None = None
    _resumed: int = 0

    def prove(self, nonce: bytes) -> Claim:
        """The claim to answer a holder's `nonce` with."""
        return make_claim(self.ticket, self.key, nonce)

    async def begin(self, info: BlobInfo) -> PartialBlob:
        """The arrived chunks of this blob, after its hash list has been verified. May be called again."""
        partial = await self.begin_doubtful(info)
        await trio.to_thread.run_sync(partial.recheck_sync)
        return partial

    async def resume(self) -> PartialBlob | None:
        """What an earlier attempt left, verified again."""
        partial = await self.resume_doubtful()
        if partial is not None:
            await trio.to_thread.run_sync(partial.recheck_sync)
        return partial

    async def begin_doubtful(self, info: BlobInfo) -> PartialBlob:
        """As `begin`, but what an earlier attempt left is still to be verified."""
        if info.blob != self.ticket.blob:
            raise BlobCorrupt("the holder described another blob than the ticket's")
        if self.partial is None:
            self.partial = await self.store.begin(info, recheck=False)
        return self.partial

    async def resume_doubtful(self) -> PartialBlob | None:
        """What an earlier attempt left, still to be verified."""
        if self.partial is None:
            self.partial = await self.store.resume(self.ticket.blob, recheck=False)
        return self.partial

    @property
    def bytes_present(self) -> int:
        """Bytes of the verified chunks that are here."""
        return self.partial.bytes_present if self.partial is not None else 0

    @property
    def bytes_resumed(self) -> int:
        """Those of them that an earlier attempt had left."""
        return self.partial.bytes_resumed if self.partial is not None else self._resumed

    @property
    def bytes_brought(self) -> int:
        """Those of them that came now."""
        return self.bytes_present - self.bytes_resumed

    def close(self) -> None:
        """Leave what has arrived for the next attempt."""
        if self.partial is not None:
            self._resumed = self.partial.bytes_resumed
            self.partial.close()
            self.partial = None


class Offload(Protocol):
    """One road. Constructed with the node's runtime folder (`Path`), where it may keep sockets, and its `Options`.

    All methods are called from one trio loop; those that are not async must not block. Whatever an offload raises
    makes QUIC take over: it can slow a transfer down, not break it.
    """

    name: str

    def probe(self) -> Capability:
        """Whether this machine has what it takes, how far the road reaches and how fast it is; asked at the start."""
        ...

    async def serve(self, source: OffloadSource) -> None:
        """The holder's side: answer pulls until cancelled. Called again after it has failed."""
        ...

    def export(self, blob: bytes) -> OffloadDescriptor | None:
        """How a reader reaches the blob by this road; None where it cannot be offered now."""
        ...

    def reach(self, descriptor: OffloadDescriptor) -> Reach:
        """Whether a holder's descriptor leads anywhere from here, as far as can be told without asking the holder.

        Raises a `WireError` for a descriptor that cannot be read.
        """
        ...

    async def pull(self, descriptor: OffloadDescriptor, into: Landing) -> str:
        """The reader's side: bring every missing chunk into `into`; how they came, for the report, or "".

        Raises `OffloadUnusable`, `OSError`, or a `WireError`; the chunks that arrived stay. Cancelled when no chunk
        arrives for a while.
        """
        ...

    def health(self) -> Capability:
        """Whether blobs can be pulled by it now; asked before each use."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


class Loaded(NamedTuple):
    """The offloads that are usable here, and why others that were asked for are not."""

    usable: tuple[Offload, ...]
    refused: dict[str, str]


def load_offloads(
    runtime_folder: Path, names: Collection[str] | None = None, options: Mapping[str, Options] | None = None
) -> Loaded:
    """The installed offloads called `names` (None: all). The node runs without those that cannot be used."""
    found = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    usable: list[Offload] = []
    refused: dict[str, str] = {}
    for name in sorted(set(found if names is None else names)):
        if name not in found:
            refused[name] = f"no offload of that name is installed; there are {', '.join(sorted(found))}"
            continue
        try:
            offload: Offload = found[name].load()(runtime_folder, (options or {}).get(name, {}))
            own_name = offload.name
        except Exception as error:  # noqa: BLE001 a plug-in may raise anything
            refused[name] = _one_line(error)
            continue
        capability = ask_capability(offload.probe)
        if own_name != name:
            capability = Capability(False, f"it calls itself {own_name!r}")
        if capability.usable:
            usable.append(offload)
        else:
            close_offload(offload)
            refused[name] = capability.reason
    for name, reason in refused.items():
        _log.warning("offload_unusable", offload=name, reason=reason)
    return Loaded(tuple(usable), refused)


def ask_capability(ask: Callable[[], object]) -> Capability:
    """What `probe` or `health` of an offload says; unusable where it raises, or says something else."""
    try:
        told = ask()
    except Exception as error:  # noqa: BLE001 a plug-in may raise anything
        return Capability(False, _one_line(error))
    return told if isinstance(told, Capability) else Capability(False, f"its probe returned {told!r}"[:80])


def close_offload(offload: Offload) -> None:
    """Have it give back what it holds."""
    try:
        offload.close()
    except Exception as error:  # noqa: BLE001 a plug-in may raise anything
        _log.warning("offload_not_closed", offload=offload.name, error=_one_line(error))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or repr(error)
