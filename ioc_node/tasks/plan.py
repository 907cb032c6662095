"""The order in which a workflow's tasks can run: pure state, told what ended and asked what is ready.

A task is `waiting` until all tasks whose outputs it reads are done, then `ready`, `running`, and `done` or failed. A
producer whose outputs were lost goes back to the start, together with the task that found it out.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from ioc_node.tasks.definition import BLOB, TASK, producers_of, split_reference
from ioc_node.tasks.story import Ending, Source
from ioc_wire.bulk import format_blob_id
from ioc_wire.tasks import TaskDefinition, WorkflowDefinition


@dataclass(frozen=True)
class Done:
    """A finished task of the workflow."""

    task: bytes
    ending: Ending


@dataclass
class Plan:
    """What a workflow has done and has to do. The definition was checked (`check_workflow`)."""

    workflow: WorkflowDefinition
    done: dict[str, Done] = field(default_factory=dict)
    running: dict[str, bytes] = field(default_factory=dict)
    reruns: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._tasks = {task.name: task for task in self.workflow.tasks}
        self._needs = {task.name: tuple(producers_of(task)) for task in self.workflow.tasks}
        self._readers: dict[str, list[str]] = {name: [] for name in self._tasks}
        for name, needs in self._needs.items():
            for producer in needs:
                self._readers[producer].append(name)

    @property
    def complete(self) -> bool:
        """Whether everything that somebody needs is done."""
        return len(self.done) == len(self._tasks)

    def ready(self) -> Iterator[str]:
        """Tasks that can be started now, in the order in which they were written."""
        for name, needs in self._needs.items():
            if (
                name not in self.done
                and name not in self.running
                and all(need in self.done for need in needs)
            ):
                yield name

    def start(self, name: str, task: bytes) -> None:
        self.running[name] = task

    def finish(self, name: str, task: bytes, ending: Ending) -> None:
        """The task is COMPLETE."""
        self.running.pop(name, None)
        self.done[name] = Done(task, ending)

    def rerun(self, name: str, blob: bytes) -> str | None:
        """`name` ended because its input `blob` is lost: run its producer again, and `name` after it. Returns the
        producer, or None where no task of the workflow made the blob."""
        self.running.pop(name, None)
        for producer in self._needs[name]:
            done = self.done.get(producer)
            if done is None:  # another reader found it out first
                return producer
            if any(output.blob == blob for output in done.ending.outputs):
                del self.done[producer]
                self.reruns[producer] = self.reruns.get(producer, 0) + 1
                return producer
        return None

    def sinks(self) -> list[str]:
        """Tasks whose outputs no task reads: they are the workflow's result."""
        return [name for name, readers in self._readers.items() if not readers]

    def resolve(self, name: str) -> tuple[TaskDefinition, tuple[Source, ...]]:
        """The definition of a ready task with blobs in place of references, and where those blobs lie."""
        task = self._tasks[name]
        sources: dict[bytes, Source] = {}
        inputs = []
        for item in task.inputs:
            if item.url.startswith(TASK):
                producer, path = split_reference(item.url)
                source = self._source(self.done[producer], path)
                sources[source.blob] = source
                item = msgspec.structs.replace(item, url=BLOB + format_blob_id(source.blob))
            inputs.append(item)
        fields: Mapping[str, object] = {each: getattr(task, each) for each in task.__struct_fields__}
        return msgspec.convert({**fields, "inputs": tuple(inputs)}, TaskDefinition), tuple(sources.values())

    def _source(self, done: Done, path: str) -> Source:
        output = next(output for output in done.ending.outputs if output.path == path)
        assert done.ending.holder is not None
        return Source(output.blob, done.task, done.ending.holder)
