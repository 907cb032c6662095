"""Where a machine's randomness comes from: an argument, so that a seed replays a whole network."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

_T = TypeVar("_T")


class Chance(Protocol):
    """The part of `random.Random` that machines use. A real node is given `random.SystemRandom()`."""

    def random(self) -> float: ...

    def randbytes(self, n: int, /) -> bytes: ...

    def randrange(self, stop: int, /) -> int: ...

    def sample(self, population: Sequence[_T], k: int) -> list[_T]: ...
