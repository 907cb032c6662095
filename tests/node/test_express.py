"""Data express between real nodes: promised, moved, billed in bytes, receipted; either end may restart."""

import io
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from rich.console import Console

import ioc_node
from ioc_node import api
from ioc_node.cli.expresses import format_shipment, render_list, render_one
from ioc_node.cli.receipts import render_receipts
from ioc_node.client import open_remote
from ioc_node.config import BulkConfig, ExpressConfig, NodeConfig
from ioc_node.core.bandwidth import Ceilings
from ioc_node.errors import RequestRefused, UsageError
from ioc_node.express_taking import OPEN_PER_SENDER_MAX
from ioc_wire.bulk import format_blob_id
from ioc_wire.errors import NotFound
from ioc_wire.express import (
    DELIVERED,
    EXPRESS_CID,
    ReportShipment,
    ShipmentSettled,
    ShipmentTerms,
    shipment_cost,
    shipment_name,
)
from ioc_wire.metering import UsageRecord
from ioc_wire.signed import public_bytes, sign, verify
from tests.node.conftest import MakeHome

MIB = 1 << 20
PRICE = 2_500_000
TAKES = ExpressConfig(price_micro_per_gb=PRICE)
SLOW = Ceilings(total=0.3e6)


class Pair:
    """A core node that sends and a provider that takes; each may be ended and started again on its home."""

    def __init__(self, nursery: trio.Nursery, sender: NodeConfig, receiver: NodeConfig) -> None:
        self._configs = {"sender": sender, "receiver": receiver}
        self._nursery = nursery
        self._ends: dict[str, tuple[trio.Event, trio.Event]] = {}
        self.nodes: dict[str, ioc_node.Node] = {}

    @property
    def sender(self) -> ioc_node.Node:
        return self.nodes["sender"]

    @property
    def receiver(self) -> ioc_node.Node:
        return self.nodes["receiver"]

    async def start(self, name: str) -> None:
        await self._nursery.start(self._run, name)

    async def _run(self, name: str, *, task_status: trio.TaskStatus[None]) -> None:
        stop, stopped = self._ends[name] = (trio.Event(), trio.Event())
        async with ioc_node.open_node(self._configs[name]) as self.nodes[name]:
            task_status.started()
            await stop.wait()
        stopped.set()

    async def stop(self, name: str) -> None:
        stop, stopped = self._ends[name]
        stop.set()
        await stopped.wait()

    async def wait(self, holds: Callable[[], bool]) -> None:
        with trio.fail_after(25):
            while not holds():
                await trio.sleep(0.02)

    async def ship(
        self, subject: str, to: str = "", *, within: int = 3600, most: int = 10**9
    ) -> api.ShipmentRow:
        return await self.sender.express.send(
            api.SendShipment(subject, to or self.receiver.identity.name, within, most)
        )

    def states(self, id: bytes) -> tuple[str, str]:
        return self.sender.express.show(id).state, self.receiver.express.show(id).state


@asynccontextmanager
async def open_pair(make_home: MakeHome, express: ExpressConfig = TAKES) -> AsyncIterator[Pair]:
    bulk = BulkConfig(offloads=())  # ceilings slow QUIC down, not shared memory
    sender = make_home("sender", "regional", bulk=bulk)
    receiver = make_home(
        "receiver", "provider", bootstrap=(f"127.0.0.1:{sender.port}",), express=express, bulk=bulk
    )
    async with trio.open_nursery() as nursery:
        pair = Pair(nursery, sender, receiver)
        await pair.start("sender")
        await pair.start("receiver")
        with trio.fail_after(10):
            assert pair.receiver.provider is not None
            await pair.receiver.provider.home.wait_published()
            await pair.receiver.wait_joined()
        yield pair
        await pair.stop("receiver")
        await pair.stop("sender")


async def add(node: ioc_node.Node, folder: Path, size: int, name: str = "blob.bin") -> str:
    file = folder / name
    file.write_bytes(bytes(n % 251 for n in range(4096)) * (size // 4096) + b"end")
    return format_blob_id((await node.add(file, announce=False)).blob)


async def test_a_blob_is_shipped_metered_in_bytes_and_receipted_by_both(
    make_home: MakeHome, tmp_path: Path
) -> None:
    async with open_pair(make_home) as pair:
        blob = await add(pair.sender, tmp_path, 3 * MIB)
        row = await pair.ship(blob)
        assert (row.side, row.size, row.price_micro_per_gb) == ("sends", 3 * MIB + 3, PRICE)
        await pair.wait(lambda: pair.states(row.shipment) == ("delivered", "delivered"))
        assert pair.receiver.bulk.store.has(row.subject)
        ends = [node.express.show(row.shipment) for node in (pair.sender, pair.receiver)]
        assert {end.bytes_done for end in ends} == {row.size}
        assert ends[0].receipt == ends[1].receipt
        for node in (pair.sender, pair.receiver):
            (kept,) = node.ledger.verify_all()
            assert kept.usage is not None
            assert (kept.id, kept.usage.bytes_in) == (ends[0].receipt, row.size)
            assert kept.usage.cost_micro == shipment_cost(row.size, PRICE)
            assert kept.usage.provider == pair.receiver.identity.public_key
        again = await pair.ship(blob)  # it is there: nothing moves, nothing is charged
        await pair.wait(lambda: pair.states(again.shipment) == ("delivered", "delivered"))
        assert pair.sender.express.show(again.shipment).bytes_done == 0
        assert pair.sender.ledger.totals().cost_micro == shipment_cost(row.size, PRICE)
        with pytest.raises(UsageError, match="delivered already"):
            await pair.sender.express.cancel(row.shipment)


async def test_a_dataset_is_shipped_to_whoever_takes_it_at_a_place(
    make_home: MakeHome, tmp_path: Path
) -> None:
    async with open_pair(make_home) as pair:
        folder = tmp_path / "data"
        (folder / "deep").mkdir(parents=True)
        for number in range(5):
            (folder / "deep" / f"{number}.bin").write_bytes(bytes([number]) * (200_000 * number + 1))
        added = await pair.sender.datasets.add("tiles", folder, announce=False)
        assert pair.receiver.provider is not None
        prefix = pair.receiver.provider.registrar.resources[0].cid.removeprefix("ioc:").partition("/")[0]
        with trio.fail_after(10):
            while not (await pair.sender.find(ioc_node.Demand(within=prefix))).found.offers:
                await trio.sleep(0.05)
        row = await pair.ship("tiles", prefix)
        assert row.dataset
        await pair.wait(lambda: pair.states(row.shipment) == ("delivered", "delivered"))
        done = pair.sender.express.show(row.shipment)
        assert added.row.size < done.bytes_done <= done.size
        for number in range(5):
            data = (folder / "deep" / f"{number}.bin").read_bytes()
            shown = await pair.receiver.datasets.show(format_blob_id(row.subject), f"deep/{number}.bin")
            assert pair.receiver.bulk.store.path(shown.rows[0].blob).read_bytes() == data


@pytest.mark.parametrize("who", ["receiver", "sender"])
async def test_a_shipment_goes_on_after_a_restart_of_either_end(
    make_home: MakeHome, tmp_path: Path, who: str
) -> None:
    async with open_pair(make_home) as pair:
        blob = await add(pair.sender, tmp_path, 6 * MIB)
        pair.sender.bulk.throttles.sending.set(Ceilings(total=3e6), {})
        row = await pair.ship(blob)
        await pair.wait(lambda: pair.receiver.bulk.counters.bytes_received >= MIB)
        assert not pair.receiver.bulk.store.has(row.subject)
        await pair.stop(who)
        await pair.start(who)
        pair.sender.bulk.throttles.sending.set(Ceilings(), {})
        await pair.wait(lambda: pair.states(row.shipment) == ("delivered", "delivered"))
        assert pair.receiver.bulk.counters.bytes_received < 6 * MIB or who == "sender"
        for node in (pair.sender, pair.receiver):
            (kept,) = node.ledger.verify_all()
            assert kept.usage is not None
            assert kept.usage.bytes_in == row.size  # what came before the restart counts, and once


async def bill(pair: Pair, shipment: bytes) -> None:
    """The receiver says that all of it was delivered."""
    express, taker = pair.sender.express, pair.receiver.express
    row = express._journal.row(shipment)
    assert row is not None
    assert row.terms is not None
    price = verify(row.terms, ShipmentTerms).price_micro_per_gb
    usage = UsageRecord(
        task=shipment,
        attempt=1,
        lease=shipment_name(row.terms),
        provider=public_bytes(taker._key),
        consumer=public_bytes(express._key),
        cid=EXPRESS_CID,
        started_ms=row.made_ms,
        ended_ms=row.made_ms,
        wall_ms=0,
        core_ms=0,
        mib_ms=0,
        bytes_in=row.order.size,
        bytes_out=0,
        price_micro=price,
        cost_micro=shipment_cost(row.order.size, price),
        state=DELIVERED,
    )
    link = pair.receiver.links.link(usage.consumer)
    assert link is not None
    report = ReportShipment(shipment, row.order.size, usage=sign(taker._key, usage))
    await link.request(report, ShipmentSettled)


async def test_a_shipment_that_is_cancelled_stops_and_costs_nothing(
    make_home: MakeHome, tmp_path: Path
) -> None:
    async with open_pair(make_home) as pair:
        blob = await add(pair.sender, tmp_path, 3 * MIB)
        pair.sender.bulk.throttles.sending.set(SLOW, {})
        row = await pair.ship(blob)
        await pair.sender.express.cancel(row.shipment)
        assert pair.states(row.shipment) == ("cancelled", "cancelled")
        other = await pair.ship(blob)
        await pair.receiver.express.cancel(other.shipment)
        assert pair.states(other.shipment) == ("failed", "cancelled")
        assert "by its receiver" in pair.sender.express.show(other.shipment).text
        with pytest.raises(NotFound, match="not paid for"):
            await bill(pair, other.shipment)
        assert pair.sender.ledger.totals().receipts == pair.receiver.ledger.totals().receipts == 0


async def test_one_sender_may_not_fill_a_receiver_with_orders(make_home: MakeHome, tmp_path: Path) -> None:
    async with open_pair(make_home) as pair:
        blob = await add(pair.sender, tmp_path, 3 * MIB)
        pair.sender.bulk.throttles.sending.set(SLOW, {})
        rows = [await pair.ship(blob) for _ in range(OPEN_PER_SENDER_MAX)]
        with pytest.raises(
            RequestRefused, match="16 of 16 shipments that are under way here are that sender's"
        ):
            await pair.ship(blob)
        await pair.sender.express.cancel(rows[0].shipment)
        await pair.ship(blob)


async def test_the_same_calls_go_over_the_control_socket(make_home: MakeHome, tmp_path: Path) -> None:
    async with open_pair(make_home) as pair, open_remote(pair.sender.config.home) as remote:
        blob = await add(pair.sender, tmp_path, MIB)
        row = await remote.ship(api.SendShipment(blob, pair.receiver.identity.name, 3600, 10**9))
        await pair.wait(lambda: pair.states(row.shipment) == ("delivered", "delivered"))
        (listed,) = await remote.shipments()
        assert listed == await remote.shipment(row.shipment)
        console = Console(record=True, width=80, file=io.StringIO())
        render_list(console, (listed,))
        render_one(console, listed)
        render_receipts(console, await remote.receipts())
        text = console.export_text()
        for words in (
            format_shipment(row.shipment),
            "delivered",
            "1.0 MiB",
            "2.5 per GB",
            "0.002622",
            "express",
        ):
            assert words in text
        with pytest.raises(UsageError, match="delivered already"):
            await remote.cancel_shipment(row.shipment)


async def test_what_comes_too_late_costs_nothing(make_home: MakeHome, tmp_path: Path) -> None:
    async with open_pair(make_home) as pair:
        blob = await add(pair.sender, tmp_path, 2 * MIB)
        pair.sender.bulk.throttles.sending.set(Ceilings(total=0.7e6), {})
        asked_at = time.time()
        row = await pair.ship(blob, within=1)  # the receiver expects 50 MB/s
        assert row.deadline >= asked_at + 1
        await pair.wait(lambda: pair.states(row.shipment) == ("late", "late"))
        (kept,) = pair.sender.ledger.verify_all()
        assert kept.usage is not None
        assert (kept.usage.state, kept.usage.bytes_in, kept.usage.cost_micro) == ("LATE", row.size, 0)


async def test_orders_that_are_not_taken_say_why_and_leave_nothing(
    make_home: MakeHome, tmp_path: Path
) -> None:
    async with open_pair(
        make_home, ExpressConfig(price_micro_per_gb=PRICE, mib_max=8, expected_mb_s=1)
    ) as pair:
        blob = await add(pair.sender, tmp_path, 4 * MIB)
        large = await add(pair.sender, tmp_path, 9 * MIB, "large")
        with pytest.raises(RequestRefused, match=r"it costs 0\.010486 here, the order allows 0\.000010"):
            await pair.ship(blob, most=10)
        with pytest.raises(RequestRefused, match=r"4194307 bytes take about 4 s"):
            await pair.ship(blob, within=2)
        with pytest.raises(RequestRefused, match="at most 8 MiB are taken"):
            await pair.ship(large)
        with pytest.raises(UsageError, match="is not known here"):
            await pair.ship(blob, "n" + "a" * 52)
        with pytest.raises(UsageError, match="is not shared here"):
            await pair.ship("b" + "a" * 52)
        with pytest.raises(RequestRefused, match="takes no shipments"):
            await pair.receiver.express.send(
                api.SendShipment(
                    await add(pair.receiver, tmp_path, MIB, "back"), pair.sender.identity.name, 60, 10**9
                )
            )
        assert pair.sender.express.list() == pair.receiver.express.list() == ()
