"""The one table of protocol faults: code on the wire, exception here, one line of text.

`WireError` and its subclasses are the only exceptions that decoding, verifying or a peer's refusal can raise. A
refusal travels as `(code, detail)`; `error_of` turns it back into the same exception on the other side.
"""

from typing import ClassVar

_TABLE: "dict[int, type[WireError]]" = {}


class WireError(Exception):
    """A fault named by the protocol. `str()` gives its one line: what it is, and the detail of this case."""

    code: ClassVar[int] = 0
    text: ClassVar[str] = "unspecified fault"

    def __init_subclass__(cls, *, code: int, text: str) -> None:
        if code in _TABLE:
            raise TypeError(f"wire error code {code} is taken by {_TABLE[code].__name__}")
        cls.code = code
        cls.text = text
        _TABLE[code] = cls

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.text}: {self.detail}" if self.detail else self.text


# 1-19: bytes, signatures, authority
class Malformed(WireError, code=1, text="malformed message"): ...


class UnknownType(WireError, code=2, text="unknown message type"): ...


class BadSignature(WireError, code=3, text="signature does not verify"): ...


class BrokenChain(WireError, code=4, text="delegation chain is broken"): ...


class PrefixNotCovered(WireError, code=5, text="identifier prefix is not delegated to this key"): ...


class RoleNotGranted(WireError, code=6, text="role is not granted to this key"): ...


class Expired(WireError, code=7, text="expired"): ...


class NotYetValid(WireError, code=8, text="not valid yet"): ...


class UnknownNetwork(WireError, code=9, text="peer belongs to another network"): ...


class WrongPeer(WireError, code=10, text="peer is not who was expected"): ...


class ReplayedProof(WireError, code=11, text="proof was made for another connection"): ...


class Revoked(WireError, code=12, text="key or delegation was revoked"): ...


class BadIdentifier(WireError, code=13, text="not a compute identifier"): ...


class NotEntitled(WireError, code=14, text="its signer may not revoke that key"): ...


# 20-39: DHT and catalogue
class OlderVersion(WireError, code=20, text="a newer version is already known"): ...


class TooLarge(WireError, code=21, text="too large"): ...


class OverQuota(WireError, code=22, text="quota is used up"): ...


class ChainUnknown(WireError, code=23, text="delegation chain is not known here"): ...


class NotFound(WireError, code=24, text="not found"): ...


class WrongRoot(WireError, code=25, text="catalogue does not match its signed head"): ...


class Forked(WireError, code=26, text="two heads were signed for one sequence number"): ...


class RateLimited(WireError, code=27, text="too many requests"): ...


class Withdrawn(WireError, code=28, text="identifier was withdrawn by its provider"): ...


class Conflict(WireError, code=29, text="another statement has that number"): ...


# 40-59: links and blobs
class Unserved(WireError, code=40, text="this node does not serve that request"): ...


class Busy(WireError, code=41, text="busy"): ...


class TicketRefused(WireError, code=42, text="ticket refused"): ...


class BlobCorrupt(WireError, code=43, text="bytes do not match their hash"): ...


class NoSpace(WireError, code=44, text="no space left"): ...


class Closing(WireError, code=45, text="node is shutting down"): ...


# 60-79: market and tasks
class LeaseRefused(WireError, code=60, text="lease refused"): ...


class LeaseEnded(WireError, code=61, text="lease has ended"): ...


class LeaseTaken(WireError, code=62, text="lease was already accepted"): ...


class TaskUnknown(WireError, code=63, text="no such task"): ...


class BadTask(WireError, code=64, text="task definition is not acceptable"): ...


class NotOwner(WireError, code=65, text="only the owner may do this"): ...


class Superseded(WireError, code=66, text="task was placed elsewhere in the meantime"): ...


class BadReceipt(WireError, code=67, text="receipt is not acceptable"): ...


class Unplaceable(WireError, code=68, text="cannot be placed"): ...


# 90: the other side failed for a reason of its own
class RemoteFault(WireError, code=90, text="peer failed internally"): ...


def error_of(code: int, detail: str) -> WireError:
    """The exception for a refusal received from a peer; a code from the future becomes `RemoteFault`."""
    kind = _TABLE.get(code)
    return kind(detail) if kind is not None else RemoteFault(f"code {code}: {detail}")


def error_table() -> dict[int, type[WireError]]:
    """Every code with its exception, in order of code."""
    return dict(sorted(_TABLE.items()))
