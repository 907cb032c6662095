"""Steps of a machine on the event loop, with pauses in which everything else goes on."""

from collections.abc import Generator
from typing import TypeVar

import trio

Result = TypeVar("Result")


async def run_with_pauses(steps: Generator[None, None, Result]) -> Result:
    """Run `ioc_node.core.steps` to their end with a checkpoint after each; the result, or what they raise."""
    while True:
        await trio.lowlevel.checkpoint()
        try:
            next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result
