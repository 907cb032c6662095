"""The load that `bench.catalogue` puts on a core node: status updates at a rate, demand queries at fixed times."""

import inspect
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
import trio

from bench.catalogue_queries import DEMANDS
from bench.catalogue_records import Population, Provider
from ioc_node.core_side import CoreSide
from ioc_node.runtime.gossip import CoreGossip
from ioc_wire import limits
from ioc_wire.market import Demand, FindOffers, OffersFound
from ioc_wire.records import StatusRow

OFFERS: Final = 32
STATUS_SECONDS: Final = limits.STATUS_SECONDS_MAX
PACE_SECONDS: Final = 0.005
"""Between two first batches."""
TURNS: Final = 2
"""Different draws of status that take turns."""


async def finish(work: Callable[..., Any], *arguments: object) -> Any:
    """Call what may or may not be async."""
    done = work(*arguments)
    return await done if inspect.isawaitable(done) else done


class Statuses:
    """Signs and publishes status batches of a population's providers."""

    def __init__(self, gossip: CoreGossip, population: Population) -> None:
        self.rows_sent = 0
        self._gossip = gossip
        self._population = population
        self._drawn: dict[tuple[int, int], list[tuple[StatusRow, ...]]] = {}
        self._batches = [
            (n, part) for n in range(population.providers) for part in population.provider(n).parts
        ]
        self._seq = 0

    async def publish_all(self) -> int:
        """Status of everybody once; returns the number of rows."""
        before = self.rows_sent
        for number, part in self._batches:
            await self._publish(number, part, 0)
            await trio.sleep(PACE_SECONDS)
        return self.rows_sent - before

    async def keep_publishing(self, rate: float, scope: trio.CancelScope) -> None:
        """`rate` rows each second, batch after batch, until `scope` is cancelled."""
        with scope:
            due = trio.current_time()
            for turn, (number, part) in self._forever():
                due += await self._publish(number, part, turn) / rate
                await trio.sleep_until(due)

    def _forever(self) -> Iterator[tuple[int, tuple[int, int]]]:
        turn = 0
        while True:
            turn += 1
            for batch in self._batches:
                yield turn % TURNS, batch

    async def _publish(self, number: int, part: int, turn: int) -> int:
        provider = self._population.provider(number)
        rows = self._rows(provider, part)[turn]
        self._seq = max(self._seq + 1, int(time.time() * 1000))
        batch = provider.status(rows, part, seq=self._seq, unix=int(time.time()), seconds=STATUS_SECONDS)
        await finish(self._gossip.publish_own_status, [batch])
        self.rows_sent += len(rows)
        return len(rows)

    def _rows(self, provider: Provider, part: int) -> list[tuple[StatusRow, ...]]:
        """Drawn before they are needed: drawing them is none of the node's work."""
        drawn = self._drawn.get((provider.number, part))
        if drawn is None:
            drawn = [provider.status_rows(part, turn=turn) for turn in range(TURNS)]
            self._drawn[provider.number, part] = drawn
        return drawn


class Queries:
    """Demands that arrive at fixed times, whether or not the node keeps up."""

    def __init__(self, core: CoreSide) -> None:
        self._core = core
        self._shorter = 0

    def _unlike_all(self, demand: Demand) -> Demand:
        """The demand for a task that is a little shorter than any before, which hardly changes who can serve it."""
        self._shorter += 1
        return msgspec.structs.replace(demand, wall_seconds=demand.wall_seconds - self._shorter)

    async def ask(self, kind: str, count: int, interval: float, *, new: bool) -> dict[str, Any]:
        """The demands of a kind in turn, or with `new` each time one that was never asked. Seconds of each answer:
        `service` while it was made, `cpu` of the loop's thread meanwhile, `latency` from when it should have been
        asked.

        A thread keeps the time, so that a stalled loop cannot put off the questions that it is late for.
        """
        demands = DEMANDS[kind]
        service: list[float] = []
        latency: list[float] = []
        cpu: list[float] = []
        matches: list[int] = []

        async def answer(number: int, due: float) -> None:
            demand = demands[number % len(demands)].demand
            message = FindOffers(self._unlike_all(demand) if new else demand, "cost", OFFERS)
            began, cpu_began = time.perf_counter(), time.thread_time()
            found: OffersFound = await finish(self._core.answer, message)
            ended = time.perf_counter()
            service.append(ended - began)
            latency.append(ended - due)
            cpu.append(time.thread_time() - cpu_began)
            if number < len(demands):
                matches.append(matching(found))

        async with trio.open_nursery() as nursery:
            token = trio.lowlevel.current_trio_token()

            def keep_time() -> None:
                due = time.perf_counter()
                for number in range(count):
                    due += interval
                    time.sleep(max(0.0, due - time.perf_counter()))
                    token.run_sync_soon(nursery.start_soon, answer, number, due)

            thread = threading.Thread(target=keep_time, daemon=True)
            thread.start()
            await trio.to_thread.run_sync(thread.join)
            await trio.lowlevel.checkpoint()
        return {"service": service, "latency": latency, "cpu": cpu, "matches": matches}


def matching(found: OffersFound) -> int:
    """How many rows met every condition."""
    return found.considered - sum(removal.removed for removal in found.removals)
