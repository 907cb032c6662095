"""Watching identifiers over real sockets: how soon a change is told, and what a slow reader gets."""

import statistics
import sys
import time

import pytest
import trio

from ioc_node.core.events import RecordChanged, Trace
from ioc_node.runtime.dht import open_dht
from ioc_wire.errors import BadIdentifier, NotFound, Withdrawn
from ioc_wire.records import ResourceRecord, Tombstone
from ioc_wire.signed import sign
from tests.runtime.dht_nodes import dht_options, key_of, open_dhts, own_cid, record_of

PROVIDER = key_of("provider")
CID = own_cid(PROVIDER)
CHANGES = 20


async def test_a_client_is_told_of_each_version_and_of_the_withdrawal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with open_dhts(8) as nodes, open_dht(**dht_options("client", server=False)) as client:
        await client.join([nodes[3].address])
        await nodes[0].put(record_of(PROVIDER, CID, 1))
        seconds: list[float] = []
        with trio.fail_after(20):
            async with client.watch(CID) as changes:
                first = await anext(changes)
                assert isinstance(first.resource, ResourceRecord)
                assert (first.resource.version, first.chain) == (1, ())
                await trio.sleep(0.05)  # until all holders know
                for version in range(2, 2 + CHANGES):
                    began = trio.current_time()
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(nodes[version % 8].put, record_of(PROVIDER, CID, version))
                        change = await anext(changes)
                        seconds.append(trio.current_time() - began)
                    assert change.resource.version == version
                now = int(time.time())
                gone = sign(PROVIDER, Tombstone(CID, 99, now, now + 3600))
                await nodes[1].put(gone)
                last = await anext(changes)
                assert (last.record, type(last.resource)) == (gone, Tombstone)
        with pytest.raises(Withdrawn, match="version 99"):
            await client.get(CID)
    with capsys.disabled():
        middle, worst = statistics.median(seconds), max(seconds)
        sys.stdout.write(f" [put to told: p50 {middle * 1000:.1f} ms, max {worst * 1000:.1f} ms]")


async def test_a_slow_reader_gets_the_newest_and_holders_forget_who_left() -> None:
    async with open_dhts(5) as nodes:
        with trio.fail_after(20):
            async with nodes[0].watch(CID) as changes:
                for version in range(1, 6):
                    await nodes[1].put(record_of(PROVIDER, CID, version))
                await trio.sleep(0.1)
                assert (await anext(changes)).resource.version == 5
                with trio.move_on_after(0.1) as nothing:
                    await anext(changes)
                assert nothing.cancelled_caught
                assert sum(len(node.machine.watches) for node in nodes) == 4
            while any(len(node.machine.watches) for node in nodes):
                await trio.sleep(0.01)
        with pytest.raises(BadIdentifier):
            async with nodes[0].watch("ioc:nonsense"):
                pass
        assert nodes[0].machine.operations == {}


async def test_two_watch_the_same_in_one_node() -> None:
    seen: list[list[int]] = [[], []]

    async def listen(number: int) -> None:
        async with nodes[0].watch(CID, version=number) as changes:
            change: RecordChanged
            async for change in changes:
                seen[number].append(change.resource.version)

    async with open_dhts(3) as nodes, trio.open_nursery() as nursery:
        await nodes[2].put(record_of(PROVIDER, CID, 1))
        nursery.start_soon(listen, 0)
        nursery.start_soon(listen, 1)
        with trio.fail_after(10):
            while not seen[0]:
                await trio.sleep(0.01)
            await nodes[1].put(record_of(PROVIDER, CID, 2))
            while not (seen[0] and seen[1] and seen[0][-1] == 2):
                await trio.sleep(0.01)
        assert seen == [[1, 2], [2]]
        nursery.cancel_scope.cancel()


async def test_the_trace_of_a_get_that_failed_or_was_cancelled() -> None:
    async with open_dhts(4) as nodes:
        trace = Trace()
        with pytest.raises(NotFound):
            await nodes[0].get(own_cid(PROVIDER, "nothing"), trace=trace)
        assert [hop.outcome[:8] for hop in trace.hops] == ["not held"] * 3
        assert trace.ending == "completed"
        trace = Trace()
        with trio.CancelScope() as scope:
            scope.cancel()
            await nodes[0].get(own_cid(PROVIDER, "nothing"), trace=trace)
        assert trace.ending == "cancelled"
        assert [hop.outcome for hop in trace.hops] == ["no answer yet"]
