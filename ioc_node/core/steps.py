"""Long work in short steps: a generator that yields where others may go first, and returns its result.

A machine knows no event loop. Whoever has one runs the steps with pauses between them; tests and simulations, which
have nobody to hold up, run them through.
"""

from collections.abc import Generator
from typing import TypeVar

Result = TypeVar("Result")


def run_through(steps: Generator[None, None, Result]) -> Result:
    """Work without a pause; the result, or what the work raises."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result
