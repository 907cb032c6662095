"""Who answers which message on a link, and what a failing answer does (to that one stream, to nothing else)."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import structlog

from ioc_node.errors import NodeError
from ioc_node.runtime.faults import place_of, sole
from ioc_wire.codec import Message
from ioc_wire.errors import RemoteFault, WireError

if TYPE_CHECKING:
    from ioc_node.runtime.link_mux import Link

log = structlog.get_logger()

M = TypeVar("M", bound=Message)
SendItem = Callable[[Message], Awaitable[None]]
"""Sends one item of a streamed answer; waits while the asking side does not read."""
Answer = Callable[["Link", M], Awaitable[Message]]
StreamAnswer = Callable[["Link", M, SendItem], Awaitable[None]]
TakeNotice = Callable[["Link", M], Awaitable[None] | None]


class Entry(NamedTuple):
    """One row of the table."""

    answer: Any
    streams: bool


class Handlers:
    """Table from message type to whoever answers it. Filled before links are opened; one answer per type."""

    def __init__(self) -> None:
        self._answers: dict[type[Message], Entry] = {}
        self._notices: dict[type[Message], TakeNotice[Any]] = {}

    def serve(self, kind: type[M], answer: Answer[M]) -> None:
        """Answer every `kind` with the one message that `answer(link, message)` returns.

        A `WireError` it raises travels to the asking side as it is, a `NodeError` as `RemoteFault` with its line.
        """
        self._add(kind, Entry(answer, streams=False))

    def serve_stream(self, kind: type[M], answer: StreamAnswer[M]) -> None:
        """Answer every `kind` with the messages that `answer(link, message, send)` sends until it returns.

        It is cancelled when the asking side leaves the stream or the link breaks.
        """
        self._add(kind, Entry(answer, streams=True))

    def serve_notify(self, kind: type[M], take: TakeNotice[M]) -> None:
        """Give every one-way `kind` to `take(link, message)`, sync or async, one at a time in order of arrival."""
        if kind in self._notices:
            raise ValueError(f"{kind.__name__} notices are taken already")
        self._notices[kind] = take

    def find(self, kind: type[Message]) -> Entry | None:
        return self._answers.get(kind)

    def find_notice(self, kind: type[Message]) -> TakeNotice[Any] | None:
        return self._notices.get(kind)

    def _add(self, kind: type[Message], entry: Entry) -> None:
        if kind in self._answers:
            raise ValueError(f"{kind.__name__} is answered already")
        self._answers[kind] = entry


class Outcome:
    """How a contained call ended: `failure` is what to tell the asking side, or None."""

    failure: WireError | None = None


@contextmanager
def contained(what: str, peer: str) -> Iterator[Outcome]:
    """Run an answer so that its failure stays its own.

    This is the one place of a node that catches everything: what one peer's request makes one answer do must not
    end the links of all the others (a KeyError in one of many tasks has stopped whole nodes elsewhere).
    """
    outcome = Outcome()
    try:
        yield outcome
    except Exception as error:  # noqa: BLE001 - the last resort described above
        outcome.failure = _told(sole(error), what, peer)


def _told(error: BaseException, what: str, peer: str) -> WireError:
    if isinstance(error, WireError):
        return error
    if isinstance(error, NodeError):
        log.info("answer_failed", request=what, peer=peer, error=str(error))
        return RemoteFault(str(error).splitlines()[0] if str(error) else type(error).__name__)
    crash = f"{type(error).__name__}: {error}"
    log.error("answer_crashed", request=what, peer=peer, error=crash, place=place_of(error))
    return RemoteFault("internal error")
