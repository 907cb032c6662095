"""The driver's timer: a machine is ticked when its deadline has come, and not before."""

import math

import trio
import trio.testing

from ioc_node.core.events import DatagramReceived, Tick
from ioc_node.runtime.datagrams import open_datagrams
from ioc_node.runtime.driver import Driver


class Alarms:
    """A machine that is fed times to be woken at, or False to forget them all."""

    def __init__(self) -> None:
        self.pending: list[float] = []
        self.ticks: list[float] = []

    def handle(self, event: float | bool | DatagramReceived | Tick, *, now: float) -> list[str]:
        if isinstance(event, Tick):
            self.ticks.append(now)
            self.pending = [at for at in self.pending if at > now]
        elif event is False:
            self.pending.clear()
        elif isinstance(event, float):
            self.pending.append(event)
        return []

    def deadline(self) -> float:
        return min(self.pending, default=math.inf)


async def test_deadlines_that_move_both_ways(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    machine = Alarms()
    with open_datagrams("127.0.0.1", 0) as sock:
        performed: list[str] = []
        driver: Driver[float | bool, str] = Driver(machine, sock, performed.append)
        nursery.start_soon(driver.run)
        began = trio.current_time()
        driver.feed(began + 9)  # before it runs
        await trio.sleep(1)
        driver.feed(began + 5)  # sooner
        await trio.sleep(2)
        driver.feed(False)  # none at all
        driver.feed(began + 7)  # later than the one that the timer still sleeps for
        await trio.sleep(10)
        assert machine.ticks == [began + 7]
        driver.feed(trio.current_time() + 2)
        await trio.sleep(3)
        assert machine.ticks == [began + 7, began + 15]
        nursery.cancel_scope.cancel()
