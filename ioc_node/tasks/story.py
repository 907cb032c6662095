"""What a consumer tells about its tasks: events numbered over all attempts, and how a story ended."""

import time
from typing import Final

import msgspec

from ioc_wire.codec import Message, ShortText, UInt
from ioc_wire.market import Contact
from ioc_wire.tasks import ENDED, OutputBlob, State, TaskEvent

CHARGED: Final[frozenset[str]] = frozenset({"COMPLETE", "EXECUTOR_ERROR", "CANCELED"})
"""Ends after which usage is paid for; a SYSTEM_ERROR is the provider's own affair."""
NODE_STREAM: Final = "node"
"""`stream` of log lines that the consumer's own node wrote: placing, waiting, settling."""


class StoryEvent(Message, frozen=True):
    """One line of a task's story as its owner sees it.

    `event.seq` counts from 1 over all attempts, `event.time_ms` is the consumer's clock, and `event.state` the
    task's state after the event, whatever changed. `place` is the identifier where the attempt runs, empty before
    there is one.
    """

    attempt: UInt
    place: ShortText
    event: TaskEvent

    @property
    def is_last(self) -> bool:
        """Whether nothing follows."""
        return self.event.change == "state" and self.event.state in ENDED


class Source(Message, frozen=True):
    """Where an input lies: output `blob` of the finished `task`, kept by `holder`."""

    blob: bytes
    task: bytes
    holder: Contact


class Ending(Message, frozen=True):
    """How a story ended, and where its outputs are. `lost` names a blob that nobody holds any more, where that is
    the reason."""

    state: State
    text: str = ""
    outputs: tuple[OutputBlob, ...] = ()
    holder: Contact | None = None
    place: str = ""
    lost: bytes = b""

    @property
    def succeeded(self) -> bool:
        return self.state == "COMPLETE"


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def renumbered(event: TaskEvent, *, seq: int, state: State) -> TaskEvent:
    """A provider's event with the consumer's number, clock and idea of the task's state."""
    return msgspec.structs.replace(event, seq=seq, time_ms=now_ms(), state=state)
