"""Task definitions in GA4GH TES vocabulary, their states and events, and the messages that drive them.

A task file (TOML or JSON) is a `TaskDefinition` whose inputs may name local files; before it is signed they have
become blobs. The task ID is the hash of the exact definition bytes, the owner's key and a nonce.
"""

import hashlib
from typing import Annotated, ClassVar, Final, Literal

import msgspec

from ioc_wire import limits
from ioc_wire.bulk import Ticket
from ioc_wire.cid import check_area, provider_prefix_of
from ioc_wire.codec import Digest, Document, Key, Message, Name, ShortText, UInt, decode, encode
from ioc_wire.errors import BadIdentifier, BadTask, Malformed, WireError
from ioc_wire.identity import base32, unbase32
from ioc_wire.signed import Signed, SignedPayload

Path = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
"""A path inside the task's folder: relative, forward slashes, no `..`."""

State = Literal[
    "QUEUED",
    "INITIALIZING",
    "RUNNING",
    "PAUSED",
    "COMPLETE",
    "EXECUTOR_ERROR",
    "SYSTEM_ERROR",
    "CANCELING",
    "CANCELED",
    "PREEMPTED",
    "UNKNOWN",
]
ENDED: Final[frozenset[str]] = frozenset(
    {"COMPLETE", "EXECUTOR_ERROR", "SYSTEM_ERROR", "CANCELED", "PREEMPTED"}
)
"""UNKNOWN is not among them: contact is lost, the task may still be running."""


class ExecutorStep(Document, frozen=True):
    """What to run. `program` is a `file:` or `blob:` URL, or for runtime `process` also a command name."""

    runtime: Name
    program: Annotated[str, msgspec.Meta(max_length=1024)] = ""
    command: Annotated[
        tuple[Annotated[str, msgspec.Meta(max_length=8192)], ...], msgspec.Meta(max_length=1024)
    ] = ()
    env: dict[Name, Annotated[str, msgspec.Meta(max_length=8192)]] = msgspec.field(default_factory=dict)


class Input(Document, frozen=True):
    """Bytes that must be in the task's folder before it starts: `url` is `file:PATH` or `blob:ID`."""

    path: Path
    url: Annotated[str, msgspec.Meta(max_length=1024)]
    name: ShortText = ""


class Output(Document, frozen=True):
    """A file that the task must have written when it ends."""

    path: Path
    name: ShortText = ""


class AcceleratorDemand(Document, frozen=True):
    """`count_milli` thousandths of a device of one of `models` (any where empty; case does not count), each with so
    much memory and, where `tflops_min` is above 0, such a peak rate in `precision`."""

    type: Name = "gpu"
    models: tuple[Name, ...] = ()
    count_milli: UInt = 1000
    memory_mib_min: UInt = 0
    precision: ShortText = ""
    tflops_min: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 0.0


class Resources(Document, frozen=True):
    """TES resources. Cores in thousandths on the wire are `cores * 1000`."""

    cores: Annotated[float, msgspec.Meta(gt=0, le=65536)] = 1.0
    memory_mib: UInt = 256
    disk_mib: UInt = 256
    accelerators: Annotated[tuple[AcceleratorDemand, ...], msgspec.Meta(max_length=8)] = ()


class Constraints(Document, frozen=True):
    """Where a task may run. `allow` and `deny` are identifier prefixes, or beginnings of identifiers (`ioc:…`); `where`
    is an expression over the host's fields. `rtt_ms_max` counts from the consumer, or from the provider that `data_at`
    names, by its prefix or the beginning of an identifier."""

    resource_class: Literal["", "gen", "ai", "sup", "edge"] = ""
    allow: Annotated[tuple[str, ...], msgspec.Meta(max_length=64)] = ()
    deny: Annotated[tuple[str, ...], msgspec.Meta(max_length=64)] = ()
    cities: Annotated[tuple[Name, ...], msgspec.Meta(max_length=64)] = ()
    architectures: Annotated[tuple[Name, ...], msgspec.Meta(max_length=8)] = ()
    services: Annotated[tuple[Name, ...], msgspec.Meta(max_length=8)] = ()
    rtt_ms_max: Annotated[float, msgspec.Meta(gt=0, le=3_600_000)] | None = None
    price_micro_max: UInt | None = None
    where: Annotated[str, msgspec.Meta(max_length=limits.EXPRESSION_CHARS_MAX)] = ""
    data_at: Annotated[str, msgspec.Meta(max_length=limits.CID_BYTES_MAX)] = ""


class Limits(Document, frozen=True):
    """Bounds that end a task. `fuel` counts WebAssembly instructions (about one each)."""

    wall_seconds: Annotated[int, msgspec.Meta(ge=1, le=30 * 86400)] = 3600
    fuel: UInt | None = None
    log_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 26)] = 1 << 20


class TaskDefinition(Document, frozen=True):
    """One requested run. Unknown keys are refused."""

    name: Name
    executor: ExecutorStep
    inputs: Annotated[tuple[Input, ...], msgspec.Meta(max_length=limits.TASK_INPUTS_MAX)] = ()
    outputs: Annotated[tuple[Output, ...], msgspec.Meta(max_length=limits.TASK_OUTPUTS_MAX)] = ()
    resources: Resources = Resources()
    constraints: Constraints = Constraints()
    limits: Limits = Limits()
    policy: Name = "cost"
    budget_micro: UInt | None = None
    attempts: Annotated[int, msgspec.Meta(ge=1, le=20)] = 3
    labels: dict[Name, ShortText] = msgspec.field(default_factory=dict)


class WorkflowTask(TaskDefinition, frozen=True):
    """A task of a workflow: an input's `url` may also read `task:NAME/OUTPUT-PATH`."""


class WorkflowDefinition(Document, frozen=True):
    """A DAG of tasks; edges are the `task:` URLs of their inputs."""

    name: Name
    tasks: Annotated[tuple[WorkflowTask, ...], msgspec.Meta(min_length=1, max_length=10_000)]


def check_path(path: str) -> str:
    """Return `path` if it stays inside a task's folder, else raise `BadTask`."""
    parts = path.split("/")
    if (
        path.startswith("/")
        or "\\" in path
        or "\x00" in path
        or any(part in ("", ".", "..") for part in parts)
    ):
        raise BadTask(f"path {path!r} must be relative and stay inside the task's folder")
    return path


def check_definition(task: TaskDefinition) -> TaskDefinition:
    """Check what types alone cannot say: paths, prefixes, duplicates. Raises `BadTask` naming the field."""
    seen: set[str] = set()
    for path in (*(item.path for item in task.inputs), *(item.path for item in task.outputs)):
        if check_path(path) in seen:
            raise BadTask(f"path {path!r} is named twice")
        seen.add(path)
    for area in (*task.constraints.allow, *task.constraints.deny):
        try:
            check_area(area)
        except BadIdentifier as error:
            raise BadTask(f"constraints: {error.detail}") from None
    _check_data_at(task.constraints)
    if not task.executor.program and not task.executor.command:
        raise BadTask("executor: neither a program nor a command is given")
    return task


def _check_data_at(constraints: Constraints) -> None:
    if not constraints.data_at:
        return
    if constraints.rtt_ms_max is None:
        raise BadTask("constraints: data_at says from where rtt_ms_max counts: give both")
    try:
        provider_prefix_of(constraints.data_at)
    except BadIdentifier as error:
        raise BadTask(f"constraints: data_at: {error.detail}") from None


def task_id_of(definition: bytes, owner: bytes, nonce: bytes) -> bytes:
    """SHA-256 of length-prefixed definition bytes, owner key and nonce: 32 bytes."""
    return hashlib.sha256(len(definition).to_bytes(8, "big") + definition + owner + nonce).digest()


def format_task_id(task: bytes) -> str:
    return "t" + base32(task)


def parse_task_id(text: str) -> bytes:
    """Inverse of `format_task_id`; raises `Malformed`."""
    if not text.startswith("t") or len(text) != 53:
        raise Malformed(f"a task ID is 't' and 52 characters of base32, not {text[:60]!r}")
    return unbase32(text[1:])


class TaskOrder(SignedPayload, frozen=True):
    """The consumer's signed order: run this definition under that lease, as attempt number so-and-so."""

    kind: ClassVar[str] = "order"
    task: Digest
    attempt: UInt
    lease: Digest
    definition: Annotated[bytes, msgspec.Meta(max_length=limits.TASK_BYTES_MAX)]
    nonce: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


def open_order(order: TaskOrder, owner: bytes) -> TaskDefinition:
    """The definition inside an order whose signature was verified. Raises `BadTask` where it is not what the task
    ID says or is not acceptable."""
    if task_id_of(order.definition, owner, order.nonce) != order.task:
        raise BadTask("the task ID is not the hash of definition, owner and nonce")
    try:
        return check_definition(decode(order.definition, TaskDefinition, size_max=limits.TASK_BYTES_MAX))
    except BadTask:
        raise
    except WireError as error:
        raise BadTask(error.detail) from None


def definition_bytes(task: TaskDefinition) -> bytes:
    """The canonical bytes that an ID and an order cover: fields in order of declaration, defaults left out.
    Raises `BadTask` above 64 KiB."""
    data = encode(task)
    if len(data) > limits.TASK_BYTES_MAX:
        raise BadTask(f"definition of {len(data)} bytes, at most {limits.TASK_BYTES_MAX} are allowed")
    return data


class OutputBlob(Message, frozen=True):
    """An output as it was kept: blob ID and size in bytes."""

    path: Path
    blob: Digest
    size: UInt


class TaskEvent(Message, frozen=True):
    """One line of a task's story, numbered by the provider within one attempt from 1 on.

    `change` is `state`, `progress`, `log`, `transfer` or `usage`; fields that a change does not use are empty.
    `time_ms` is milliseconds since 1970 on the provider's clock.
    """

    seq: UInt
    time_ms: UInt
    change: Literal["state", "progress", "log", "transfer", "usage"]
    state: State = "QUEUED"
    fraction_milli: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    text: Annotated[str, msgspec.Meta(max_length=limits.LOG_LINE_BYTES_MAX)] = ""
    stream: ShortText = ""
    outputs: tuple[OutputBlob, ...] = ()
    usage: Signed | None = None


# -- messages over links (tags 40-59)


class StartTask(Message, tag=40, frozen=True):
    """Accept a lease with a signed order; `tickets` give access to the inputs. Answer: `TaskStarted`."""

    order: Signed
    tickets: Annotated[tuple[Ticket, ...], msgspec.Meta(max_length=limits.TASK_INPUTS_MAX + 1)]


class TaskStarted(Message, tag=41, frozen=True):
    task: Digest
    attempt: UInt


class WatchTask(Message, tag=42, frozen=True):
    """Open a stream of `TaskProgress` with all events after `after_seq`; it ends after the last event."""

    task: Digest
    attempt: UInt
    after_seq: UInt


class TaskProgress(Message, tag=43, frozen=True):
    events: Annotated[tuple[TaskEvent, ...], msgspec.Meta(max_length=256)]


class CancelTask(Message, tag=44, frozen=True):
    """Answer: `Done`, also for a task that has ended already."""

    task: Digest
    attempt: UInt
    reason: ShortText


class SettleTask(Message, tag=45, frozen=True):
    """The countersigned receipt, which the provider stores. Idempotent. Answer: `Done`.

    With `forget` the outputs are no longer needed either; else the provider keeps them for its retention time.
    """

    task: Digest
    receipt: Signed
    forget: bool = False


class GrantOutput(Message, tag=46, frozen=True):
    """The owner asks the holder of an output to let `reader` fetch it. Answer: `TicketIssued` (`ioc_wire.bulk`)."""

    task: Digest
    blob: Digest
    reader: Key


class Done(Message, tag=47, frozen=True):
    """Plain success."""
