"""A task of this consumer while its story is told: its state, its events, and the wish to cancel it."""

import trio

from ioc_node.tasks.feed import Feed
from ioc_node.tasks.journal import Journal, TaskRow
from ioc_node.tasks.story import NODE_STREAM, Ending, StoryEvent, now_ms, renumbered
from ioc_wire import limits
from ioc_wire.codec import decode
from ioc_wire.tasks import State, TaskDefinition, TaskEvent


class LiveTask:
    """Made from a journal row. Whatever is told is in the journal first; progress alone is not worth it."""

    def __init__(self, row: TaskRow, journal: Journal) -> None:
        self.row = row
        self.id = row.task
        self.definition = decode(row.definition, TaskDefinition, size_max=limits.TASK_BYTES_MAX)
        self.state: State = row.state
        self.text = row.text
        self.attempt = row.attempt
        self.place = row.ending.place if row.ending is not None else ""
        self.progress_milli = 0
        self.ending = row.ending
        self.ended_ms = row.ended_ms
        self.receipt = row.receipt
        self.ended = trio.Event()
        self.cancel_wanted = trio.Event()
        past = journal.events(row.task)
        self.feed: Feed[StoryEvent] = Feed((event.event.seq, event) for event in past)
        self._journal = journal
        if past:
            self.place = past[-1].place
        if row.canceling:
            self.cancel_wanted.set()
        if row.ending is not None:
            self.feed.close()
            self.ended.set()

    @property
    def name(self) -> str:
        return self.definition.name

    def enter(self, state: State, text: str = "") -> None:
        """Go to a state in which the story continues."""
        self.state = state
        self.text = text
        self._journal.set_state(self.id, state, text)
        self._append(self._own("state", text))

    def note(self, text: str) -> None:
        """Say what this node does about the task."""
        self._append(self._own("log", text, stream=NODE_STREAM))

    def retell(self, event: TaskEvent) -> None:
        """Take a provider's event into the story; its last one is told by `finish`."""
        if event.change == "state":
            self.state = event.state
            self.text = event.text
            self._journal.set_state(self.id, event.state, event.text)
        elif event.change == "progress":
            self.progress_milli = event.fraction_milli
        self._append(renumbered(event, seq=self.feed.last + 1, state=self.state))

    def finish(self, ending: Ending) -> None:
        """Tell the end, which the journal has already."""
        self.ending = ending
        self.ended_ms = now_ms()
        self.state = ending.state
        self.text = ending.text
        self._append(self._own("state", ending.text))
        self.feed.close()
        self.ended.set()

    def _own(self, change: str, text: str, *, stream: str = "") -> TaskEvent:
        cut = text[: limits.LOG_LINE_BYTES_MAX]
        if change == "state":
            return TaskEvent(self.feed.last + 1, now_ms(), "state", self.state, text=cut)
        return TaskEvent(self.feed.last + 1, now_ms(), "log", self.state, text=cut, stream=stream)

    def _append(self, event: TaskEvent) -> None:
        told = StoryEvent(self.attempt, self.place, event)
        is_progress = event.change == "progress"
        if not is_progress:
            self._journal.add_event(self.id, told)
        self.feed.append(told, conflate=is_progress)
