"""When a node's process looks for garbage that refers to itself: in small rounds, never through all that it holds.

Left alone, CPython goes through every old object at once, whenever their number has grown by a quarter. A core node
that has taken in a catalogue holds hundreds of thousands for good, and stands still for tens of milliseconds. Here only
the young generations are collected by themselves. The old one is when it is due, after which what is left is *frozen*:
no later round looks at it, so that each costs what came since the last. Cycles that were alive when they were frozen
(a link's, which ended since) wait for the thorough round.
"""

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

_NEVER: Final = 1 << 30
ROUND_SECONDS: Final = 1.0
DUE_ROUNDS: Final = 8
"""Collections of the middle generation, whose survivors are old, until a round is due."""
THOROUGH_SECONDS: Final = 3600.0
"""A thorough round goes through everything: some 60 ms at a million identifiers."""


@asynccontextmanager
async def open_garbage_rounds() -> AsyncIterator[None]:
    """Freeze what is there now, and go on in rounds until the block ends. Once in a process."""
    before = gc.get_threshold()
    gc.set_threshold(*before[:2], _NEVER)
    try:
        _go_through(thorough=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_go_on)
            yield
            nursery.cancel_scope.cancel()
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


async def _go_on() -> None:
    thorough_at = trio.current_time() + THOROUGH_SECONDS
    while True:
        await trio.sleep(ROUND_SECONDS)
        thorough = trio.current_time() >= thorough_at
        if thorough:
            thorough_at += THOROUGH_SECONDS
        if thorough or gc.get_count()[2] >= DUE_ROUNDS:
            _go_through(thorough=thorough)


def _go_through(*, thorough: bool) -> None:
    if thorough:
        gc.unfreeze()
    gc.collect()
    gc.freeze()
