"""A channel that holds one thing, the newest: a slow reader misses what was overtaken, and nothing piles up."""

from collections.abc import AsyncIterator
from typing import Generic, TypeVar

import trio

_T = TypeVar("_T")


class Newest(AsyncIterator[_T], Generic[_T]):
    """Iterate over what is put in. One reader."""

    def __init__(self) -> None:
        self._kept: list[_T] = []
        self._filled = trio.Event()

    def put(self, thing: _T) -> None:
        """Take the place of what was not read yet."""
        self._kept = [thing]
        self._filled.set()

    async def __anext__(self) -> _T:
        await self._filled.wait()
        self._filled = trio.Event()
        return self._kept.pop()
