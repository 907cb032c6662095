"""From one store to another over QUIC, with both engines in both directions."""

import time
from pathlib import Path

import pytest
import trio

from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.engines import EngineName, load_engine
from ioc_node.bulk.transfers import open_bulk
from ioc_node.errors import PeerUnreachable, PortInUse, StorageFull, UsageError
from ioc_wire.bulk import Endpoint, Ticket
from ioc_wire.errors import BlobCorrupt, Expired, NotFound, TicketRefused, WrongPeer
from ioc_wire.signed import public_bytes

from .conftest import ALICE, BOB, CAROL, MIB, pattern

HOSTS = ["127.0.0.1"]
DATA = pattern(5 * MIB + 321)


@pytest.mark.parametrize("holder", ["qh3", "aioquic"])
@pytest.mark.parametrize("reader", ["qh3", "aioquic"])
async def test_a_blob_moves_between_any_two_engines(
    alice_store: BlobStore, bob_store: BlobStore, holder: EngineName, reader: EngineName
) -> None:
    told: list[tuple[int, int]] = []
    async with (
        open_bulk(alice_store, ALICE, engine=holder) as alice,
        open_bulk(bob_store, BOB, engine=reader) as bob,
    ):
        info = await alice_store.add_bytes(DATA)
        ticket = alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS)
        with trio.fail_after(20):
            report = await bob.fetch(ticket, on_progress=lambda here, size: told.append((here, size)))
            again = await bob.fetch(ticket)
    assert bob_store.path(info.blob).read_bytes() == DATA
    assert (report.size, report.bytes_moved, report.bytes_resumed) == (len(DATA), len(DATA), 0)
    assert report.transport == f"quic/{reader}"
    assert told[-1] == (len(DATA), len(DATA))
    assert len(told) == 6
    assert (again.transport, again.bytes_moved) == ("local", 0)
    assert alice.counters.bytes_sent == bob.counters.bytes_received == len(DATA)


async def test_the_empty_blob_moves_too(alice_store: BlobStore, bob_store: BlobStore) -> None:
    async with open_bulk(alice_store, ALICE) as alice, open_bulk(bob_store, BOB) as bob:
        info = await alice_store.add_bytes(b"")
        with trio.fail_after(10):
            report = await bob.fetch(alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS))
    assert report.size == 0
    assert bob_store.has(info.blob)


async def test_many_readers_at_once_share_one_port(alice_store: BlobStore, tmp_path: Path) -> None:
    async with open_bulk(alice_store, ALICE) as alice, trio.open_nursery() as nursery:
        infos = [await alice_store.add_bytes(pattern(MIB + n)) for n in range(8)]
        async with open_bulk(BlobStore(tmp_path / "many"), BOB) as bob:
            with trio.fail_after(20):
                async with trio.open_nursery() as fetches:
                    for info in infos * 2:  # twice: the second finds it local
                        ticket = alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS)
                        fetches.start_soon(bob.fetch, ticket)
            assert len(bob.store.list_blobs()) == 8
        nursery.cancel_scope.cancel()


def altered(ticket: Ticket, **changes: object) -> Ticket:
    fields = {name: getattr(ticket, name) for name in Ticket.__struct_fields__}
    return Ticket(**(fields | changes))  # type: ignore[arg-type]


async def test_wrong_tickets_are_refused_each_with_its_own_error(
    alice_store: BlobStore, bob_store: BlobStore, tmp_path: Path
) -> None:
    async with (
        open_bulk(alice_store, ALICE) as alice,
        open_bulk(bob_store, BOB) as bob,
        open_bulk(BlobStore(tmp_path / "carol"), CAROL) as carol,
    ):
        info = await alice_store.add_bytes(DATA)
        ticket = alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS)
        with trio.fail_after(20):
            with pytest.raises(WrongPeer, match="issued to another reader"):
                await carol.fetch(ticket)
            with pytest.raises(TicketRefused, match="no such ticket"):
                await bob.fetch(altered(ticket, secret=bytes(32)))
            with pytest.raises(WrongPeer, match="has another key"):
                await bob.fetch(altered(ticket, holder=public_bytes(CAROL)))
            with pytest.raises(BlobCorrupt, match="the ticket is for 7"):
                await bob.fetch(altered(ticket, size=7))
            with pytest.raises(BlobCorrupt):
                await bob.fetch(altered(ticket, blob=bytes(32)))
            old = alice.tickets.issue(info.blob, bob.public_key, seconds=-1, endpoints=ticket.endpoints)
            with pytest.raises(Expired):
                await bob.fetch(old)
            alice.tickets.revoke(ticket.secret)
            with pytest.raises(TicketRefused):
                await bob.fetch(ticket)
            gone = alice.tickets.issue(bytes(32), bob.public_key, endpoints=ticket.endpoints)
            with pytest.raises(NotFound):
                await bob.fetch(gone)
        assert alice.counters.refused == 5
        assert alice.counters.bytes_sent == 0
    assert bob_store.list_blobs() == []


async def test_a_ticket_revoked_in_the_middle_ends_the_transfer(
    alice_store: BlobStore, bob_store: BlobStore
) -> None:
    async with open_bulk(alice_store, ALICE) as alice, open_bulk(bob_store, BOB) as bob:
        info = await alice_store.add_bytes(pattern(40 * MIB))
        ticket = alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS)
        with trio.fail_after(20), pytest.raises(TicketRefused):
            await bob.fetch(ticket, on_progress=lambda *_: alice.tickets.revoke(ticket.secret) and None)
    assert not bob_store.has(info.blob)


async def test_a_bit_flipped_on_the_holders_disk_reaches_nobody(
    alice_store: BlobStore, bob_store: BlobStore
) -> None:
    async with open_bulk(alice_store, ALICE) as alice, open_bulk(bob_store, BOB) as bob:
        info = await alice_store.add_bytes(DATA)
        path = alice_store.path(info.blob)
        path.chmod(0o600)
        changed = bytearray(DATA)
        changed[4 * MIB] ^= 1
        path.write_bytes(changed)
        ticket = alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS)
        with trio.fail_after(10), pytest.raises(BlobCorrupt):
            await bob.fetch(ticket)
    assert not bob_store.has(info.blob)
    assert not alice_store.has(info.blob)


async def test_no_room_at_the_reader_is_told_before_anything_moves(
    alice_store: BlobStore, tmp_path: Path
) -> None:
    small = BlobStore(tmp_path / "small", bytes_max=MIB)
    async with open_bulk(alice_store, ALICE) as alice, open_bulk(small, BOB) as bob:
        info = await alice_store.add_bytes(DATA)
        ticket = alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS)
        with trio.fail_after(10), pytest.raises(StorageFull, match="no space left for b"):
            await bob.fetch(ticket)
    assert alice.counters.bytes_sent == 0
    assert small.bytes_total == 0


async def test_nobody_there_is_an_end(bob_store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ioc_node.bulk.gathering.BACKOFF_SECONDS_MAX", 0.05)
    async with open_bulk(bob_store, BOB) as bob:
        async with open_bulk(bob_store, ALICE) as gone:
            port = gone.port
        ticket = Ticket(
            bytes(32),
            bytes(32),
            public_bytes(ALICE),
            bob.public_key,
            2**40,
            5,
            (Endpoint("127.0.0.1", port),),
        )
        with trio.fail_after(20), pytest.raises(PeerUnreachable, match="given up after 14 attempts"):
            await bob.fetch(ticket)


async def test_a_port_in_use_is_one_line(alice_store: BlobStore, bob_store: BlobStore) -> None:
    async with open_bulk(alice_store, ALICE) as alice:
        with pytest.raises(PortInUse, match=f"cannot listen on UDP 127.0.0.1:{alice.port}"):
            async with open_bulk(bob_store, BOB, port=alice.port):
                pass


def test_an_unknown_engine_is_one_line() -> None:
    with pytest.raises(UsageError, match="QUIC engine quiche is not installed; installed are: qh3, aioquic"):
        load_engine("quiche", ALICE)  # type: ignore[arg-type]


async def test_an_idle_endpoint_costs_nothing(alice_store: BlobStore) -> None:
    async with open_bulk(alice_store, ALICE):
        await trio.sleep(0.1)
        before = time.process_time()
        await trio.sleep(1)
        assert time.process_time() - before < 0.05
