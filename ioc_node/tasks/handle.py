"""What a program holds of a task that it submitted."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ioc_node.errors import TaskFailed
from ioc_node.tasks.live import LiveTask
from ioc_node.tasks.story import Ending, StoryEvent
from ioc_wire.signed import Signed
from ioc_wire.tasks import OutputBlob, State, format_task_id

if TYPE_CHECKING:
    from ioc_node.tasks.consume import Consumer


@dataclass(frozen=True)
class TaskResult:
    """A task that is COMPLETE. Its outputs are blobs in this node's store now; `receipt` is None if disputed."""

    task: bytes
    state: State
    outputs: tuple[OutputBlob, ...]
    receipt: Signed | None


class TaskHandle:
    """One task: follow it, wait for it, cancel it. Handles come and go; the task goes on without them."""

    def __init__(self, consumer: "Consumer", live: LiveTask) -> None:
        self._consumer = consumer
        self._live = live

    def __repr__(self) -> str:
        return f"<TaskHandle {self.name} {format_task_id(self.id)[:12]} {self.state}>"

    @property
    def id(self) -> bytes:
        return self._live.id

    @property
    def name(self) -> str:
        return self._live.name

    @property
    def state(self) -> State:
        return self._live.state

    @property
    def live(self) -> LiveTask:
        """Everything that is known of the task now."""
        return self._live

    async def events(self, *, follow: bool = True) -> AsyncIterator[StoryEvent]:
        """All events so far (the newest 1000), then those that come, until the last; without `follow` only those so
        far. Any number of listeners; a slow one misses the oldest."""
        after = 0
        while True:
            if follow:
                found, after = await self._live.feed.read(after)
            else:
                found, after = self._live.feed.read_nowait(after)
            if not found:
                return
            for event in found:
                yield event

    async def wait(self) -> Ending:
        """Wait for the end, whatever it is."""
        await self._live.ended.wait()
        assert self._live.ending is not None
        return self._live.ending

    async def result(self) -> TaskResult:
        """Wait for the end and bring the outputs here.

        Raises `TaskFailed` for an end other than COMPLETE or outputs that cannot be had any more, `StorageFull`.
        """
        ending = await self.wait()
        if not ending.succeeded:
            raise TaskFailed(
                f"task {self.name!r} ended {ending.state}" + (f": {ending.text}" if ending.text else "")
            )
        await self._consumer.fetch_outputs(self._live)
        return TaskResult(self.id, ending.state, ending.outputs, self._consumer.receipt_of(self._live))

    async def cancel(self) -> None:
        """Ask for an early end; a task that has ended stays as it is. Returns at once, see `wait`."""
        self._consumer.cancel(self.id)
