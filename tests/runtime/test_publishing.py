"""Publishing on real sockets: by sweep, signed anew in time, withdrawn with a tombstone, never silently late."""

import time
from functools import partial

import pytest
import trio
import trio.lowlevel
import trio.testing

from ioc_node.core.events import Chain, SweepReport
from ioc_node.runtime import publishing
from ioc_node.runtime.dht import open_dht
from ioc_wire.cid import cid_key
from ioc_wire.errors import NotFound, Withdrawn
from ioc_wire.records import Tombstone
from ioc_wire.signed import Signed, sign
from tests.runtime.dht_nodes import dht_options, key_of, open_dhts, own_cid, record_of

PROVIDER = key_of("provider")
CID = own_cid(PROVIDER)


async def test_published_records_are_signed_anew_and_stored_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "REFRESH_SECONDS_FIRST", 0.05)
    monkeypatch.setattr(publishing, "REFRESH_SECONDS", 0.05)
    versions = iter(range(1, 1000))

    def resign() -> tuple[Signed, Chain]:
        return record_of(PROVIDER, CID, next(versions)), ()

    async with open_dhts(3) as nodes:
        nodes[0].publish(CID, resign)
        with trio.fail_after(5):
            while True:
                await trio.sleep(0.02)
                try:
                    if (await nodes[1].get(CID)).resource.version >= 3:
                        break
                except NotFound:
                    continue
        nodes[0].withdraw(CID)
        await trio.sleep(0.1)
        last = (await nodes[1].get(CID)).resource.version
        await trio.sleep(0.2)
        assert (await nodes[1].get(CID)).resource.version == last


async def test_what_could_not_be_published_yet_is_tried_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_dht(**dht_options("bob")) as bob, open_dht(**dht_options("alice", server=False)) as alice:
        alice.publish(CID, lambda: (record_of(PROVIDER, CID), ()))
        await trio.sleep(1)
        with pytest.raises(NotFound):
            await alice.get(CID)
        await alice.join([bob.address])
        await trio.sleep(publishing.REFRESH_SECONDS_FAILED + 1)
        assert (await alice.get(CID)).hops == 1


async def test_many_identifiers_are_published_by_sweep_and_refreshed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "SWEPT_AT_ONCE", 200)
    cids = [own_cid(PROVIDER, f"h{n}") for n in range(500)]
    signed = dict.fromkeys(cids, 0)

    def resign(cid: str) -> tuple[Signed, Chain]:
        signed[cid] += 1
        return record_of(PROVIDER, cid, signed[cid]), ()

    async with open_dhts(4) as nodes:
        monkeypatch.setattr(publishing, "REFRESH_SECONDS_FIRST", 1.0)
        for cid in cids:
            nodes[0].publish(cid, partial(resign, cid))
        with trio.fail_after(60):
            while min(signed.values()) < 2 or any(len(node.machine.store) < 500 for node in nodes):
                await trio.sleep(0.05)
            while (await nodes[3].get(cids[123])).resource.version < 2:
                await trio.sleep(0.05)
        counters = nodes[0].counters()
        assert counters["published"] == 500
        assert counters["refreshes_late"] == 0


async def test_a_withdrawn_identifier_leaves_a_tombstone_until_it_is_published_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(publishing, "REFRESH_SECONDS_FIRST", 0.1)

    def bury() -> tuple[Signed, Chain]:
        now = int(time.time())
        return sign(PROVIDER, Tombstone(CID, 2, now, now + 3600)), ()

    async def until(fault: type[Exception] | None) -> None:
        with trio.fail_after(10):
            while True:
                try:
                    await nodes[2].get(CID, answers=3)
                except (NotFound, Withdrawn) as error:
                    if type(error) is fault:
                        return
                else:
                    if fault is None:
                        return
                await trio.sleep(0.02)

    async with open_dhts(3) as nodes:
        nodes[0].publish(CID, lambda: (record_of(PROVIDER, CID, 1), ()))
        await until(None)
        nodes[0].withdraw(CID, bury)
        await until(Withdrawn)
        with trio.fail_after(10):
            while nodes[0].counters()["published"]:  # it has spread: nothing is left to do
                await trio.sleep(0.02)
        await nodes[1].put(record_of(PROVIDER, CID, 1))
        await until(Withdrawn)
        nodes[0].publish(CID, lambda: (record_of(PROVIDER, CID, 3), ()))
        await until(None)


async def test_refreshing_that_falls_behind_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep that takes longer than a refresh may come late."""
    monkeypatch.setattr(publishing, "REFRESH_SECONDS_FIRST", 0.01)
    monkeypatch.setattr(publishing, "REFRESH_SECONDS", 0.02)
    swept = 0

    async def slow(records: publishing.Records) -> SweepReport:
        nonlocal swept
        await trio.sleep(0.1)
        swept += len(records)
        return SweepReport(len(records), 0, (), {}, [], 0, 1, 0.1)

    async with trio.open_nursery() as nursery:
        keeping = publishing.Publishing(slow)
        monkeypatch.setattr(publishing, "SWEPT_AT_ONCE", 1)
        for name in ("h1", "h2"):
            cid = own_cid(PROVIDER, name)
            keeping.publish(cid, partial(lambda cid: (record_of(PROVIDER, cid), ()), cid))
        nursery.start_soon(keeping.run)
        with trio.fail_after(10):
            while swept < 6:
                await trio.sleep(0.02)
        nursery.cancel_scope.cancel()
    assert keeping.late > 0


async def test_signing_thousands_lets_others_have_turns() -> None:
    """Nobody waits much longer than for a turn of signing, counted in records so that a slow machine is not told."""
    longest = since = 0

    def resign() -> tuple[Signed, Chain]:
        nonlocal since
        since += 1
        time.sleep(0.0005)
        return record_of(PROVIDER, CID), ()

    async def watch() -> None:
        nonlocal longest, since
        while True:
            longest, since = max(longest, since), 0
            await trio.lowlevel.checkpoint()

    async def sweep(records: publishing.Records) -> SweepReport:
        await trio.lowlevel.checkpoint()
        return SweepReport(len(records), 0, (), {}, [], 0, 1, 0.0)

    async with trio.open_nursery() as nursery:
        keeping = publishing.Publishing(sweep)
        for n in range(400):
            keeping.publish(own_cid(PROVIDER, f"h{n}"), resign)
        nursery.start_soon(watch)
        nursery.start_soon(keeping.run)
        await trio.sleep(0.4)
        nursery.cancel_scope.cancel()
    assert 0 < longest <= 14  # two turns of 3 ms: trio runs the tasks of a round in any order


async def test_thousands_are_swept_in_order_of_key_and_what_is_withdrawn_meanwhile_is_left_out() -> None:
    """They are brought in order in steps; between two of them the last is withdrawn."""
    signed = record_of(PROVIDER, CID)
    names = [own_cid(PROVIDER, f"h{number}") for number in range(5 * publishing.STEP_ENTRIES)]
    swept: list[str] = []

    def resign(cid: str) -> tuple[Signed, Chain]:
        swept.append(cid)
        return signed, ()

    async def sweep(records: publishing.Records) -> SweepReport:
        await trio.lowlevel.checkpoint()
        return SweepReport(len(records), 0, (), {}, [], 0, 1, 0.0)

    async with trio.open_nursery() as nursery:
        keeping = publishing.Publishing(sweep)
        for cid in names:
            keeping.publish(cid, partial(resign, cid))
        nursery.start_soon(keeping.run)
        for _ in range(2):
            await trio.lowlevel.checkpoint()
        assert not swept
        keeping.withdraw(names[-1])
        with trio.fail_after(10):
            while len(swept) < len(names) - 1:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert swept == sorted(names[:-1], key=cid_key)
