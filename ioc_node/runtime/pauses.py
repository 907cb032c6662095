"""Steps of a machine on the event loop, with pauses in which everything else goes on."""

import time
from collections.abc import Generator
from typing import Final, TypeVar

import trio

Result = TypeVar("Result")

HOLD_SECONDS: Final = 0.001
"""Steps follow each other for so long: a pause costs as much as a short step, and in it others may take long."""


async def run_with_pauses(steps: Generator[None, None, Result], *, paused: bool = False) -> Result:
    """Run `ioc_node.core.steps` to their end, with a checkpoint first (unless the caller has just `paused`) and after
    each HOLD_SECONDS; the result, or what they raise.
    """
    while True:
        if not paused:
            await trio.lowlevel.checkpoint()
        paused = False
        until = time.perf_counter() + HOLD_SECONDS
        while time.perf_counter() < until:
            try:
                next(steps)
            except StopIteration as end:
                result: Result = end.value
                return result
