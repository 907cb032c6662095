"""Errors of this node, as against faults named by the protocol (`ioc_wire.errors`).

Each carries one line that says what happened to what and what to do; the CLI prints it and exits with `exit_code`.
"""

from typing import ClassVar


class NodeError(Exception):
    """Base of every local error. `str()` is the one line an operator reads."""

    exit_code: ClassVar[int] = 1


class UsageError(NodeError):
    """The operator asked for something that cannot be meant: a bad option, file or value."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration, network or task file that cannot be used."""


class PeerUnreachable(NodeError):
    """A peer or a node did not answer."""

    exit_code = 3


class RequestRefused(NodeError):
    """The other side answered, and said no."""

    exit_code = 4


class TaskFailed(NodeError):
    """A task ended in a state other than COMPLETE."""

    exit_code = 5


class PortInUse(NodeError):
    """Another process listens on a port that this node needs."""


class KeyFileUnsafe(NodeError):
    """A private key file that is missing, unreadable, not a key, or readable by others."""


class DatabaseCorrupt(NodeError):
    """A database that SQLite refuses; it was set aside, never overwritten."""


class StorageUnusable(NodeError):
    """A folder in which blobs cannot be written."""


class StorageFull(StorageUnusable):
    """No space is left where a blob or the journal should be written."""


class ExecutorUnavailable(NodeError):
    """A runtime that this machine cannot offer, and why."""


def error_named(name: str, text: str) -> NodeError:
    """The error that a node reported by the name of its class; a name from elsewhere becomes a `NodeError`."""
    kinds: dict[str, type[NodeError]] = {}
    waiting = [NodeError]
    while waiting:
        kind = waiting.pop()
        kinds[kind.__name__] = kind
        waiting.extend(kind.__subclasses__())
    return kinds.get(name, NodeError)(text)
