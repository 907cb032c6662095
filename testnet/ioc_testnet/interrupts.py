"""Run an async program so that Ctrl-C, SIGTERM and SIGHUP end it in order, however often they come."""

import signal
from collections.abc import Awaitable, Callable
from typing import Final

import trio

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_in_order(program: Callable[[], Awaitable[None]]) -> int:
    """Run `program` to its end and return the exit code: 0, or 128 + the signal that cancelled it."""
    received: list[int] = []

    async def watch(scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(*SIGNALS) as signals:
            task_status.started()
            async for number in signals:  # the second and later ones change nothing: the end is under way
                received.append(number)
                scope.cancel()

    async def main() -> None:
        async with trio.open_nursery() as watchers:
            work = trio.CancelScope()
            await watchers.start(watch, work)
            with work:
                await program()
            watchers.cancel_scope.cancel()

    trio.run(main)
    return 128 + received[0] if received else 0
