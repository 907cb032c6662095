"""The line between one task's story and the node that tells it."""

from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from ioc_node.errors import NodeError
from ioc_node.runtime.faults import place_of, sole
from ioc_wire.errors import WireError

_log = structlog.get_logger()


class Fault:
    """What ended a contained story; `text` is one line, empty where nothing went wrong."""

    text: str = ""


@contextmanager
def contained_story(what: str, **about: str) -> Iterator[Fault]:
    """Run one story so that its failure stays its own.

    Faults that have a name end the story with their line. A bug ends it too, with a log line that says where it is:
    hundreds of other tasks share this process, and one KeyError must not end them. Cancellation passes.
    """
    fault = Fault()
    try:
        yield fault
    except Exception as error:  # noqa: BLE001 - the last resort described above
        inner = sole(error)
        fault.text = str(inner) or type(inner).__name__
        if not isinstance(inner, WireError | NodeError):
            fault.text = f"internal error: {type(inner).__name__}: {inner}".splitlines()[0]
            _log.error("story_crashed", story=what, error=fault.text, place=place_of(inner), **about)
