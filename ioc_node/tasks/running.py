"""One attempt while the provider runs it: its events, how it reports, and how it is cancelled."""

import time
from typing import Final, Literal

import trio

from ioc_node.bulk.transfers import TransferReport
from ioc_node.executors.executor import StreamName
from ioc_node.tasks.feed import Feed
from ioc_node.tasks.staging import Attempt, Ended
from ioc_node.tasks.story import now_ms
from ioc_wire import limits
from ioc_wire.bulk import format_blob_id
from ioc_wire.signed import Signed
from ioc_wire.tasks import State, TaskEvent

PROGRESS_SECONDS_MIN: Final = 0.1
"""Progress is told at most this often; what comes faster is conflated."""
Change = Literal["state", "progress", "log", "transfer", "usage"]
WATCH_EVENTS_MAX: Final = 128
"""Events in one message, so that the longest lines together fit into a frame."""


class Running:
    """An attempt's events, and the scope that its story runs in. Also the executor's `Report`."""

    def __init__(self, attempt: Attempt, owner: bytes) -> None:
        self.attempt = attempt
        self.owner = owner
        self.scope = trio.CancelScope()
        self.cancelled = Ended("CANCELED", "")
        """How it ends if its scope is cancelled."""
        self.feed: Feed[TaskEvent] = Feed()
        self.state: State = "QUEUED"
        self._told_at = 0.0
        self._untold: tuple[float, str] | None = None

    @property
    def key(self) -> tuple[bytes, int]:
        """Task and attempt number."""
        return (self.attempt.lease.task, self.attempt.lease.attempt)

    def cancel(self, reason: str) -> None:
        """End it soon as CANCELED; one that has ended already stays as it is."""
        self._cut_short(Ended("CANCELED", reason))

    def preempt(self, reason: str) -> None:
        """As `cancel`, for a reason that is the provider's own: its consumer will place the task elsewhere."""
        self._cut_short(Ended("PREEMPTED", reason))

    def _cut_short(self, ended: Ended) -> None:
        if not self.scope.cancel_called:
            self.cancelled = ended
        self.scope.cancel()

    # -- what is told

    def enter(self, state: State, text: str = "") -> None:
        """Go to a state in which the story continues."""
        self.state = state
        self._tell(change="state", text=text)

    def last_event(self, ended: Ended, usage: Signed | None) -> TaskEvent:
        """The event that ends the story; told by `finish` once it was journalled."""
        self._flush()
        return TaskEvent(
            seq=self.feed.last + 1,
            time_ms=now_ms(),
            change="state",
            state=ended.state,
            text=cut(ended.text),
            outputs=ended.outputs,
            usage=usage,
        )

    def finish(self, last: TaskEvent) -> None:
        self.state = last.state
        self.feed.append(last)
        self.feed.close()

    def fetched(self, blob: bytes, moved: TransferReport) -> None:
        """An input arrived."""
        took_ms = f"{moved.seconds * 1000:.0f} ms"
        text = f"{format_blob_id(blob)}: {moved.bytes_moved} bytes in {took_ms} by {moved.transport}"
        self._tell(change="transfer", text=f"{text} ({moved.reason})" if moved.reason else text)

    # -- the executor's report

    def progress(self, fraction: float, text: str) -> None:
        self._untold = (fraction, text)
        if time.monotonic() - self._told_at >= PROGRESS_SECONDS_MIN:
            self._flush()

    def line(self, stream: StreamName, text: str) -> None:
        self._flush()
        self._tell(change="log", text=text, stream=stream)

    def _flush(self) -> None:
        if self._untold is not None:
            fraction, text = self._untold
            self._untold = None
            self._told_at = time.monotonic()
            milli = min(1000, max(0, int(fraction * 1000)))
            self.feed.append(self._event("progress", text, fraction_milli=milli), conflate=True)

    def _tell(self, *, change: Change, text: str, stream: str = "") -> None:
        self.feed.append(self._event(change, text, stream=stream))

    def _event(self, change: Change, text: str, *, stream: str = "", fraction_milli: int = 0) -> TaskEvent:
        return TaskEvent(
            seq=self.feed.last + 1,
            time_ms=now_ms(),
            change=change,
            state=self.state,
            fraction_milli=fraction_milli,
            text=cut(text),
            stream=stream,
        )


def cut(text: str) -> str:
    """At most what one event may carry."""
    return text[: limits.LOG_LINE_BYTES_MAX]
