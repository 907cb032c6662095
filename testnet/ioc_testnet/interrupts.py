"""Run an async program so that Ctrl-C, SIGTERM and SIGHUP end it in order, however often they come."""

from collections.abc import Awaitable, Callable

import trio

from ioc_node.cli.interrupts import SIGNALS, note_signals


def run_in_order(program: Callable[[], Awaitable[None]]) -> int:
    """Run `program` to its end and return the exit code: 0, or 128 + the signal that cancelled it."""
    received = note_signals()

    async def watch(scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(*SIGNALS) as signals:
            task_status.started()
            if received:  # before this receiver was open
                scope.cancel()
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
