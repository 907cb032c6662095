"""Ceilings and weights between real endpoints: lower bounds of time and shares of bytes, never upper bounds."""

from collections.abc import Callable

import pytest
import trio

from ioc_node.bulk import fetching
from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.gathering import Source
from ioc_node.bulk.transfers import open_bulk
from ioc_node.core.bandwidth import Ceilings
from ioc_node.runtime.throttle import Throttle, Throttles
from ioc_wire.identity import node_id_of

from .conftest import ALICE, BOB, MIB, pattern

HOSTS = ["127.0.0.1"]
MB = 1_000_000.0
WEIGHTS = {"interactive": 8.0, "task": 4.0, "bulk": 1.0}

Make = Callable[[Ceilings], Throttles]


def sending(ceilings: Ceilings) -> Throttles:
    return Throttles(Throttle(ceilings, WEIGHTS), Throttle(Ceilings(), WEIGHTS))  # type: ignore[arg-type]


def receiving(ceilings: Ceilings) -> Throttles:
    return Throttles(Throttle(Ceilings(), WEIGHTS), Throttle(ceilings, WEIGHTS))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "ceilings",
    [
        Ceilings(total=4 * MB),
        Ceilings(each_peer=4 * MB),
        Ceilings(classes={"bulk": 4 * MB}, total=400 * MB),
    ],
    ids=["total", "each peer", "class"],
)
@pytest.mark.parametrize("side", [sending, receiving])
async def test_no_blob_is_faster_than_a_ceiling(
    alice_store: BlobStore, bob_store: BlobStore, ceilings: Ceilings, side: Make
) -> None:
    data = pattern(3 * MIB + 11)
    holder = side(ceilings) if side is sending else None
    reader = side(ceilings) if side is receiving else None
    async with (
        open_bulk(alice_store, ALICE, throttles=holder) as alice,
        open_bulk(bob_store, BOB, throttles=reader) as bob,
    ):
        info = await alice_store.add_bytes(data)
        ticket = alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS)
        with trio.fail_after(20):
            report = await bob.fetch(ticket)
        # The last chunk may leave a reader's bucket in debt.
        free = 0.4 * MB + (MIB if side is receiving else 64 << 10)
        assert report.seconds >= (len(data) - free) / (4 * MB)
        (sent,), (received,) = alice.throttles.sending.uses(), bob.throttles.receiving.uses()
    assert bob_store.path(info.blob).read_bytes() == data
    assert (sent.peer, sent.traffic, sent.bytes_moved) == (node_id_of(bob.public_key), "bulk", len(data))
    assert (received.peer, received.traffic, received.bytes_moved) == (
        node_id_of(alice.public_key),
        "bulk",
        len(data),
    )


async def test_a_ceiling_that_is_lifted_lets_go_what_waits_for_it(
    alice_store: BlobStore, bob_store: BlobStore
) -> None:
    low = Ceilings(total=0.02 * MB)
    async with (
        open_bulk(alice_store, ALICE, throttles=sending(low)) as alice,
        open_bulk(bob_store, BOB) as bob,
        trio.open_nursery() as nursery,
    ):
        info = await alice_store.add_bytes(pattern(4 * MIB))
        nursery.start_soon(bob.fetch, alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS))
        with trio.fail_after(20):
            while not any(use.waiting for use in alice.throttles.sending.uses()):
                await trio.sleep(0.01)
            assert not bob_store.has(info.blob)
            alice.throttles.sending.set(Ceilings(), {})
            while not bob_store.has(info.blob):  # 200 seconds at the old ceiling
                await trio.sleep(0.01)


async def test_a_task_gets_more_of_a_ceiling_than_what_was_shared_by_hand(
    alice_store: BlobStore, bob_store: BlobStore
) -> None:
    here: dict[str, int] = {"task": 0, "bulk": 0}
    size = 4 * MIB
    async with (
        open_bulk(alice_store, ALICE, throttles=sending(Ceilings(total=4 * MB))) as alice,
        open_bulk(bob_store, BOB) as bob,
    ):

        async def fetch(traffic: str, scope: trio.CancelScope) -> None:
            info = await alice_store.add_bytes(pattern(size) + traffic.encode())
            ticket = alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS, traffic=traffic)  # type: ignore[arg-type]
            await bob.fetch(ticket, on_progress=lambda present, _: here.update({traffic: present}))
            scope.cancel()

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for traffic in here:
                    nursery.start_soon(fetch, traffic, nursery.cancel_scope)
    assert here["task"] > size
    assert here["bulk"] <= size // 2


async def test_small_blobs_and_streams_count_as_interactive(
    alice_store: BlobStore, bob_store: BlobStore
) -> None:
    async with open_bulk(alice_store, ALICE) as alice, open_bulk(bob_store, BOB) as bob:
        small = [await alice_store.add_bytes(b"%d" % n) for n in range(5)]
        large = await alice_store.add_bytes(pattern(3 * MIB))

        def ticket(blob: bytes):  # type: ignore[no-untyped-def]
            return alice.issue_ticket(blob, bob.public_key, hosts=HOSTS)

        with trio.fail_after(10):
            assert await bob.fetch_small([ticket(info.blob) for info in small]) == {}
            async with bob.open_blob([Source(ticket(large.blob))], MIB, 2 * MIB) as pieces:
                assert sum([len(piece) async for piece in pieces]) == MIB
        uses = {use.traffic: use.bytes_moved for use in bob.throttles.receiving.uses()}
        assert uses == {"interactive": 5 + MIB}


async def test_a_chunk_that_drips_in_under_a_low_ceiling_is_waited_for(
    alice_store: BlobStore, bob_store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "STALL_SECONDS", 0.5)
    async with (
        open_bulk(alice_store, ALICE, throttles=sending(Ceilings(total=0.6 * MB))) as alice,
        open_bulk(bob_store, BOB) as bob,
    ):
        info = await alice_store.add_bytes(pattern(MIB))
        with trio.fail_after(20):
            report = await bob.fetch(alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS))
        assert report.seconds > 1.5
        assert bob.counters.reconnections == 0
