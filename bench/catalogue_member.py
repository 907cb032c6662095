"""One core node in a process of its own, driven by `bench.catalogue`: `python -m bench.catalogue_member HOME FOLDER`.

HOME is a node's home folder, FOLDER that of a generated population (`bench.catalogue_files`). The node is the real one,
`ioc_node.open_node`. It prints `{"opened": SECONDS}`, then answers each line of JSON from standard input with one:

- `fill`: take in all catalogues as if their providers were here; `load` and `take`: read a change set, then take it in
- `when`: wait until the digest of the catalogue is `digest`; `{"at", "rows"}` on the clock that all processes share,
  or `{"at": null}` after `SYNC_SECONDS_MAX`
- `delays`: milliseconds from the signing of each status batch that came since the last call to its arrival
- `gauge`: what `bench.catalogue_gauges` says; `settle`: wait until this process has nothing left to do
- `status`: publish status of all providers; `updates`: go on with that at `rate` rows/s until `calm`
- `sign_heads`: sign all heads anew; `renew`: publish them evenly within `seconds`; `unwatch`: note no more digests
- `query`: send the demands of `bench.catalogue_queries`, with `new` each a little different from all before, at
  fixed times; `{"service", "latency", "cpu", "matches"}`
"""

import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog
import trio

from bench.catalogue_files import Change, Made, opened
from bench.catalogue_gauges import StepTimes, forget_peak, gauges
from bench.catalogue_load import Queries, Statuses
from bench.catalogue_records import Population
from ioc_node import open_node
from ioc_node.config import NodeConfig
from ioc_node.core_side import CoreSide
from ioc_node.runtime.garbage import open_garbage_rounds
from ioc_node.runtime.gossip import CoreGossip
from ioc_wire.errors import Busy
from ioc_wire.gossip import HeadNews
from ioc_wire.records import Head
from ioc_wire.signed import sign, verify

LINE_BYTES_MAX: Final = 65536
WATCH_SECONDS: Final = 0.01
SYNC_SECONDS_MAX: Final = 600.0
IDLE_SHARE: Final = 0.12


async def take_in(gossip: CoreGossip, news: HeadNews, entries: tuple[bytes, ...]) -> None:
    """As the node does with its own catalogue, whosever this is."""
    while True:
        try:
            await gossip.publish_own(news, entries)
        except Busy:  # it is taking up what it holds
            await trio.sleep(0.01)
        else:
            return await trio.lowlevel.checkpoint()


class Member:
    """The node and what is being done with it."""

    def __init__(self, core: CoreSide, made: Made, steps: StepTimes, nursery: trio.Nursery) -> None:
        self.core = core
        self.made = made
        self.steps = steps
        self.statuses = Statuses(core.gossip, made.population)
        self.queries = Queries(core)
        self._nursery = nursery
        self._updating = trio.CancelScope()
        self._changes: list[Change] = []
        self._seen: dict[bytes, float] = {}
        self._watching = True
        self._renewals: list[HeadNews] = []
        self._delays: list[float] = []
        core.gossip.on_status(self._note_delay)

    async def watch(self) -> None:
        """Note when the catalogue had which digest, until `unwatch`: with 7,000 heads that costs too much."""
        while self._watching:
            digest = self.core.digest
            if digest not in self._seen:
                self._seen[digest] = time.monotonic()
            await trio.sleep(WATCH_SECONDS)

    async def obey(self, told: dict[str, Any]) -> dict[str, Any]:
        """Do as a line says; return the answer."""
        work: dict[str, Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]] = {
            "fill": self._fill,
            "load": self._load,
            "take": self._take,
            "when": self._when,
            "delays": self._take_delays,
            "gauge": self._gauge,
            "settle": self._settle,
            "status": self._status,
            "updates": self._updates,
            "calm": self._calm,
            "unwatch": self._unwatch,
            "sign_heads": self._sign_heads,
            "renew": self._renew,
            "query": self._query,
        }
        return await work[told["do"]](told)

    async def _fill(self, told: dict[str, Any]) -> dict[str, Any]:
        began = time.monotonic()
        for number in range(self.made.population.providers):
            news, entries = self.made.catalogue(number)
            await take_in(self.core.gossip, news, tuple(entries))
        return {"seconds": time.monotonic() - began, **self._held()}

    async def _load(self, told: dict[str, Any]) -> dict[str, Any]:
        self._changes = list(self.made.changes(told["index"]))
        return {}

    async def _take(self, told: dict[str, Any]) -> dict[str, Any]:
        began = time.monotonic()
        for change in self._changes:
            await take_in(self.core.gossip, change.news, change.entries)
        self._changes = []
        return {"began": began, **self._held()}

    def _held(self) -> dict[str, Any]:
        return {"digest": self.core.digest.hex(), "records": self.core.records, "at": time.monotonic()}

    async def _when(self, told: dict[str, Any]) -> dict[str, Any]:
        digest = bytes.fromhex(told["digest"])
        with trio.move_on_after(SYNC_SECONDS_MAX):
            while digest not in self._seen:  # noqa: ASYNC110 - nobody tells
                await trio.sleep(WATCH_SECONDS)
        return {"at": self._seen.get(digest), "rows": self.core.engine.rows}

    async def _take_delays(self, told: dict[str, Any]) -> dict[str, Any]:
        delays, self._delays = self._delays, []
        return {"delays_ms": delays}

    def _note_delay(self, provider: bytes, part: int) -> None:
        """The sequence number of a batch is the millisecond at which it was signed."""
        replica = self.core.gossip.catalogue.replica(provider)
        if replica is not None and (status := replica.statuses.get(part)) is not None:
            self._delays.append(time.time() * 1000 - status.seq)

    async def _gauge(self, told: dict[str, Any]) -> dict[str, Any]:
        answer = gauges(self.steps)
        forget_peak()
        return answer

    async def _settle(self, told: dict[str, Any]) -> dict[str, Any]:
        idle = 0
        while idle < 3:
            before = time.process_time()
            await trio.sleep(0.3)
            idle = idle + 1 if time.process_time() - before < 0.3 * IDLE_SHARE else 0
        return {}

    async def _status(self, told: dict[str, Any]) -> dict[str, Any]:
        return {"rows": await self.statuses.publish_all()}

    async def _updates(self, told: dict[str, Any]) -> dict[str, Any]:
        self._updating = trio.CancelScope()
        self._nursery.start_soon(self.statuses.keep_publishing, told["rate"], self._updating)
        return {}

    async def _calm(self, told: dict[str, Any]) -> dict[str, Any]:
        self._updating.cancel()
        return {"rows": self.statuses.rows_sent}

    async def _unwatch(self, told: dict[str, Any]) -> dict[str, Any]:
        self._watching = False
        return {}

    async def _sign_heads(self, told: dict[str, Any]) -> dict[str, Any]:
        self._watching = False
        population = self.made.population
        for number in range(population.providers):
            provider = population.provider(number)
            news, _ = self.made.catalogue(number)
            head = msgspec.structs.replace(verify(news.head, Head), seq=population.issued + 10_000)
            self._renewals.append(provider.news(sign(provider.key, head)))
        return {}

    async def _renew(self, told: dict[str, Any]) -> dict[str, Any]:
        began, cpu, seconds = trio.current_time(), time.process_time(), told["seconds"]
        for number, news in enumerate(self._renewals):
            await trio.sleep_until(began + seconds * number / len(self._renewals))
            await self.core.gossip.publish_own(news, ())
        await trio.sleep_until(began + seconds)
        return {"cpu_share": (time.process_time() - cpu) / seconds, **self._held()}

    async def _query(self, told: dict[str, Any]) -> dict[str, Any]:
        return await self.queries.ask(told["kind"], told["count"], told["interval"], new=told["new"])


async def serve(home: Path, made: Made) -> None:
    """Until standard input ends."""
    began = time.monotonic()
    steps = StepTimes()
    trio.lowlevel.add_instrument(steps)
    async with (
        open_node(NodeConfig.load(home)) as node,
        open_garbage_rounds(),  # as `ioc-node up` does
        trio.open_nursery() as nursery,
    ):
        assert node.core is not None
        member = Member(node.core, made, steps, nursery)
        nursery.start_soon(member.watch)
        print(json.dumps({"began": began, "opened": time.monotonic() - began}), flush=True)
        lines = trio.lowlevel.FdStream(0)
        pending = b""
        while data := await lines.receive_some(LINE_BYTES_MAX):
            pending += data
            while b"\n" in pending:
                line, _, pending = pending.partition(b"\n")
                print(json.dumps(await member.obey(json.loads(line))), flush=True)
        nursery.cancel_scope.cancel()


def made_in(folder: Path) -> Made:
    """The population of a folder, whose name says its parameters."""
    _, records, providers, seed, issued = (int(part) for part in folder.name.split("-"))
    return opened(Population(issued, records, providers, seed), folder)


def main() -> None:
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(30),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    trio.run(serve, Path(sys.argv[1]), made_in(Path(sys.argv[2])))


if __name__ == "__main__":
    main()
