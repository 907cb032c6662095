"""Task files: TOML or JSON in, a checked `TaskSpec` out; local files become blobs when it is staged.

Every mistake ends in one line that names the file, the key and what was expected, before anything is sent.
"""

import json
import tomllib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import msgspec

from ioc_node.config import convert_document
from ioc_node.errors import ConfigError, UsageError
from ioc_node.market.expression_fields import check_expression
from ioc_wire.bulk import BlobId, format_blob_id, parse_blob_id
from ioc_wire.errors import BadTask, WireError
from ioc_wire.tasks import (
    ExecutorStep,
    Input,
    TaskDefinition,
    WorkflowDefinition,
    WorkflowTask,
    check_definition,
    definition_bytes,
)

FILE_BYTES_MAX: Final = 16 << 20
"""A task file larger than this is refused before it is parsed."""

FILE: Final = "file:"
BLOB: Final = "blob:"
TASK: Final = "task:"

Definition = TaskDefinition | WorkflowDefinition
AddFile = Callable[[Path], Awaitable[BlobId]]

_T = TypeVar("_T", bound=TaskDefinition)


@dataclass(frozen=True)
class TaskSpec:
    """A task or a workflow as written: `file:` URLs are relative to `folder` until they are staged."""

    definition: Definition
    folder: Path
    source: str = "task"

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read and check a task file. Raises `UsageError` or `ConfigError`, each one line."""
        path = Path(path)
        return cls.parse(_read_document(path), folder=path.resolve().parent, source=path.name)

    @classmethod
    def parse(cls, document: Mapping[str, Any], *, folder: Path, source: str = "task") -> Self:
        """The spec in a parsed document; one with a `tasks` key is a workflow. Raises as `load` does."""
        kind: Any = WorkflowDefinition if "tasks" in document else TaskDefinition
        definition: Definition = convert_document(document, kind, source)
        return cls.of(definition, folder=folder, source=source)

    @classmethod
    def of(cls, definition: Definition, *, folder: Path | None = None, source: str = "task") -> Self:
        """The spec of a definition built in Python. Raises as `load` does."""
        spec = cls(definition, folder or Path.cwd(), source)
        check_spec(spec)
        return spec

    @property
    def is_workflow(self) -> bool:
        return isinstance(self.definition, WorkflowDefinition)


def check_spec(spec: TaskSpec) -> None:
    """Check paths, URLs, references and that local files are there. Raises `ConfigError` or `UsageError`."""
    if isinstance(spec.definition, WorkflowDefinition):
        check_workflow(spec.definition, spec.source)
        for number, task in enumerate(spec.definition.tasks):
            _check_task(task, spec, f"tasks[{number}] ({task.name}): ")
    else:
        _check_task(spec.definition, spec, "")


def check_workflow(workflow: WorkflowDefinition, source: str = "workflow") -> None:
    """Check names, references and that the graph has no cycle. Raises `ConfigError`."""
    outputs: dict[str, set[str]] = {}
    for task in workflow.tasks:
        if task.name in outputs:
            raise ConfigError(f"{source}: two tasks are called {task.name!r}; give each its own name")
        if "/" in task.name:
            raise ConfigError(f"{source}: a task cannot be called {task.name!r}; leave out the '/'")
        outputs[task.name] = {output.path for output in task.outputs}
    for task in workflow.tasks:
        for number, item in enumerate(task.inputs):
            if item.url.startswith(TASK):
                _check_reference(item.url, outputs, f"{source}: task {task.name!r}: inputs[{number}].url")
    left = {task.name: set(producers_of(task)) for task in workflow.tasks}
    while ready := {name for name, needs in left.items() if not needs}:
        left = {name: needs - ready for name, needs in left.items() if name not in ready}
    if left:
        raise ConfigError(f"{source}: the tasks {', '.join(sorted(left)[:8])} wait in a circle")


def producers_of(task: WorkflowTask) -> dict[str, None]:
    """Names of the tasks whose outputs `task` reads, in order of first mention."""
    return {split_reference(item.url)[0]: None for item in task.inputs if item.url.startswith(TASK)}


def split_reference(url: str) -> tuple[str, str]:
    """Task name and output path of a `task:NAME/OUTPUT` URL."""
    name, _, path = url.removeprefix(TASK).partition("/")
    return name, path


async def stage_spec(spec: TaskSpec, add_file: AddFile) -> Definition:
    """The definition with every local file added as a blob. Raises `UsageError` for an unreadable one, and
    what `add_file` raises (`StorageFull`)."""
    staged: dict[Path, BlobId] = {}

    async def blob_url(url: str) -> str:
        if not url.startswith(FILE):
            return url
        path = file_path(url, spec.folder)
        if path not in staged:
            try:
                staged[path] = await add_file(path)
            except OSError as error:
                raise UsageError(f"{spec.source}: cannot read {path}: {error.strerror or error}") from None
        return BLOB + format_blob_id(staged[path])

    if isinstance(spec.definition, WorkflowDefinition):
        tasks = [await _staged(task, blob_url) for task in spec.definition.tasks]
        return msgspec.structs.replace(spec.definition, tasks=tuple(tasks))
    return await _staged(spec.definition, blob_url)


async def _staged(task: _T, blob_url: Callable[[str], Awaitable[str]]) -> _T:
    inputs = [msgspec.structs.replace(item, url=await blob_url(item.url)) for item in task.inputs]
    executor = msgspec.structs.replace(task.executor, program=await blob_url(task.executor.program))
    definition = msgspec.structs.replace(task, inputs=tuple(inputs), executor=executor)
    definition_bytes(definition)
    return definition


def file_path(url: str, folder: Path) -> Path:
    """The local path that a `file:` URL means, relative to `folder`."""
    name = url.removeprefix(FILE)
    return folder / (name.removeprefix("//") if name.startswith("///") else name)


def blobs_of(task: TaskDefinition) -> tuple[BlobId, ...]:
    """The blobs that a staged definition needs, program included, each once. Raises `Malformed`."""
    urls = (task.executor.program, *(item.url for item in task.inputs))
    return tuple(dict.fromkeys(blob_of(url) for url in urls if url.startswith(BLOB)))


def blob_of(url: str) -> BlobId:
    """The blob that a `blob:` URL names. Raises `Malformed`."""
    return parse_blob_id(url.removeprefix(BLOB))


def _check_reference(url: str, outputs: Mapping[str, set[str]], where: str) -> None:
    name, path = split_reference(url)
    if name not in outputs:
        raise ConfigError(f"{where}: there is no task {name!r} in this workflow")
    if path not in outputs[name]:
        known = ", ".join(sorted(outputs[name])[:8]) or "none"
        raise ConfigError(f"{where}: task {name!r} has no output {path!r} (it has: {known})")


def _check_task(task: TaskDefinition, spec: TaskSpec, where: str) -> None:
    try:
        check_definition(task)
    except BadTask as error:
        raise ConfigError(f"{spec.source}: {where}{error.detail}") from None
    if task.constraints.where:
        try:
            check_expression(task.constraints.where)
        except UsageError as error:
            raise ConfigError(f"{spec.source}: {where}constraints.{error}") from None
    in_workflow = isinstance(task, WorkflowTask)
    _check_program(task.executor, spec, where)
    for number, item in enumerate(task.inputs):
        _check_input(item, spec, f"{where}inputs[{number}].url", in_workflow)


def _check_program(step: ExecutorStep, spec: TaskSpec, where: str) -> None:
    program = step.program
    if program.startswith((FILE, BLOB)):
        _check_url(program, spec, f"{where}executor.program")
    elif program and step.runtime == "wasm":
        raise ConfigError(
            f"{spec.source}: {where}executor.program: expected 'file:PATH' or 'blob:ID', not {program!r}"
        )


def _check_input(item: Input, spec: TaskSpec, where: str, in_workflow: bool) -> None:
    if item.url.startswith((FILE, BLOB)):
        _check_url(item.url, spec, where)
    elif not (in_workflow and item.url.startswith(TASK)):
        last = "'blob:ID' or 'task:NAME/OUTPUT'" if in_workflow else "or 'blob:ID'"
        expected = f"'file:PATH', {last}"
        raise ConfigError(f"{spec.source}: {where}: expected {expected}, not {item.url!r}")


def _check_url(url: str, spec: TaskSpec, where: str) -> None:
    if url.startswith(BLOB):
        try:
            blob_of(url)
        except WireError as error:
            raise ConfigError(f"{spec.source}: {where}: {error.detail}") from None
        return
    path = file_path(url, spec.folder)
    if not path.exists():
        raise UsageError(f"{spec.source}: {where}: the file {path} does not exist")
    if not path.is_file():
        raise UsageError(f"{spec.source}: {where}: {path} is not a file")


def _read_document(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise ConfigError(f"{path}: a task file has at most {FILE_BYTES_MAX >> 20} MiB")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read task file {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file; write the task in TOML or JSON") from None
    as_json = path.suffix == ".json"
    try:
        document = json.loads(text) if as_json else tomllib.loads(text)
    except (json.JSONDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid {'JSON' if as_json else 'TOML'}: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected an object at the top, got {type(document).__name__}")
    return document
