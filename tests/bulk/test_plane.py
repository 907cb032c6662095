"""Bulk data moved by a process of its own: everything as within one, and a process that ends in the middle."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs

from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.gathering import Source
from ioc_node.bulk.plane import parent as plane_parent
from ioc_node.bulk.plane.parent import ChildPlane
from ioc_node.bulk.plane.process import PlaneProcess
from ioc_node.bulk.transfers import BulkEndpoint, open_bulk
from ioc_node.core.bandwidth import Ceilings
from ioc_node.errors import PeerUnreachable, StorageFull, StorageUnusable, UsageError
from ioc_node.runtime.throttle import Throttle, Throttles
from ioc_wire.bulk import Ticket, format_blob_id
from ioc_wire.errors import BlobCorrupt, NotFound, TicketRefused, WrongPeer
from ioc_wire.identity import node_id_of
from ioc_wire.signed import public_bytes

from .conftest import ALICE, BOB, CAROL, MIB, pattern

HOSTS = ["127.0.0.1"]
DATA = pattern(5 * MIB + 321)
PROCESS = PlaneProcess(log_level="warning")
NONE = Ceilings()
SLOW = Ceilings(total=4e6)


@asynccontextmanager
async def open_two(
    alice_store: BlobStore,
    bob_store: BlobStore,
    *,
    sending: Ceilings = NONE,
    receiving: Ceilings = NONE,
    process: PlaneProcess = PROCESS,
) -> AsyncIterator[tuple[BulkEndpoint, BulkEndpoint]]:
    throttles = Throttles(Throttle(sending, {}), Throttle(NONE, {}))
    with trio.fail_after(40):
        async with (
            open_bulk(alice_store, ALICE, throttles=throttles, process=process) as alice,
            open_bulk(
                bob_store,
                BOB,
                throttles=Throttles(Throttle(NONE, {}), Throttle(receiving, {})),
                process=process,
            ) as bob,
        ):
            yield alice, bob


@pytest.fixture
def silent_udp() -> Iterator[socket.socket]:
    """At its port nobody answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind((HOSTS[0], 0))
        yield silent


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await trio.sleep(0.01)


async def test_everything_a_node_asks_of_its_bulk_port(
    alice_store: BlobStore, bob_store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pair of processes: fetch, again, small ones, a stream, refusals, revocation, room, counters."""
    async with open_two(alice_store, bob_store) as (alice, bob):
        assert (alice.plane.pid, bob.plane.pid) == (0, 0)  # nothing to move: no process
        info = await alice_store.add_bytes(DATA)
        ticket = alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS)
        told: list[tuple[int, int]] = []
        report = await bob.fetch(ticket, on_progress=lambda here, size: told.append((here, size)))
        assert bob_store.path(info.blob).read_bytes() == DATA
        assert (report.size, report.bytes_moved, report.bytes_resumed) == (len(DATA), len(DATA), 0)
        assert report.transport == f"quic/{bob.engine}"
        assert report.shares == ((alice.public_key, len(DATA)),)
        assert [size for _, size in report.paths] == [len(DATA)]
        assert told[-1] == (len(DATA), len(DATA))
        assert bob_store.bytes_total == len(DATA)
        assert bob.counters.bytes_received == len(DATA)
        await until(lambda: alice.counters.bytes_sent == len(DATA))
        monkeypatch.setattr(plane_parent, "EXPORT_BYTES_MIN", MIB)
        await bob.export(info.blob, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == DATA
        with pytest.raises(StorageUnusable, match=r"cannot write .*nowhere"):
            await bob.export(info.blob, tmp_path / "nowhere" / "copy")
        assert 0 not in (alice.plane.pid, bob.plane.pid)
        assert os.getpid() not in (alice.plane.pid, bob.plane.pid)
        assert (await bob.fetch(ticket)).transport == "local"

        small = [await alice_store.add_bytes(b"%d" % number) for number in range(300)]
        tickets = [alice.issue_ticket(each.blob, bob.public_key, hosts=HOSTS) for each in small]
        assert await bob.fetch_small([*tickets[:299]]) == {}
        assert all(bob_store.has(each.blob) for each in small[:299])
        await bob_store.remove(small[0].blob)
        missed = await bob.fetch_small([tickets[299], tickets[0]])
        assert isinstance(missed[small[0].blob], TicketRefused)  # a ticket is good for one small blob, once

        more = await alice_store.add_bytes(pattern(3 * MIB + 5))
        stream = alice.issue_ticket(more.blob, bob.public_key, hosts=HOSTS)
        async with bob.open_blob([Source(stream)], 10, 2 * MIB) as pieces:
            assert b"".join([bytes(piece) async for piece in pieces]) == pattern(3 * MIB)[10 : 2 * MIB]
        async with bob.open_blob([Source(stream)], 0, 4 * MIB) as pieces:
            with pytest.raises(UsageError, match="not within the blob"):
                await anext(pieces)
        assert not bob_store.has(more.blob)

        with pytest.raises(WrongPeer):
            await bob.fetch(alice.issue_ticket(more.blob, public_bytes(CAROL), hosts=HOSTS))
        alice.tickets.revoke(stream.secret)
        with pytest.raises(TicketRefused):
            await bob.fetch(stream)

        again = alice.issue_ticket(more.blob, bob.public_key, hosts=HOSTS)
        renewed = []

        async def renew() -> Ticket:
            renewed.append(again)
            return again

        await bob.fetch(stream, renew=renew)
        assert renewed
        assert bob_store.path(more.blob).read_bytes() == pattern(3 * MIB + 5)

        await alice_store.remove(info.blob)
        await bob_store.remove(info.blob)
        with pytest.raises(NotFound):
            await bob.fetch(ticket)
        assert bob_store.list_partials() == []
        pids = alice.plane.pid, bob.plane.pid
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.slow
async def test_a_killed_process_costs_a_moment_and_no_byte(
    alice_store: BlobStore, bob_store: BlobStore
) -> None:
    """First the reader's, while it is asked to take a ticket back, then the holder's, each in the middle of one
    transfer."""
    async with open_two(alice_store, bob_store, sending=SLOW) as (alice, bob):
        data = pattern(5 * MIB)
        info = await alice_store.add_bytes(data)
        killed: list[int] = []
        unused = bob.tickets.issue(info.blob, alice.public_key)

        def told(here: int, _size: int) -> None:
            victims = (bob, alice)[len(killed) :]
            if here > 2 * MIB * len(killed) + MIB / 2 and len(killed) < 2:
                killed.append(victims[0].plane.pid)
                os.kill(killed[-1], signal.SIGKILL)
                bob.tickets.revoke(unused.secret)

        ticket = alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS)
        await bob.fetch(ticket, on_progress=told)
        assert len(killed) == 2
        assert not {alice.plane.pid, bob.plane.pid} & set(killed)
        assert bob_store.path(info.blob).read_bytes() == data
        assert bob_store.bytes_total == len(data)
        os.kill(alice.plane.pid, signal.SIGKILL)
        assert await alice.uses() == ((), ())  # nothing moves then
        os.kill(bob.plane.pid, signal.SIGKILL)
        await bob.set_bandwidth()


async def test_bytes_in_order_go_on_after_a_kill(alice_store: BlobStore, bob_store: BlobStore) -> None:
    async with open_two(alice_store, bob_store) as (alice, bob):
        data = pattern(5 * MIB)
        info = await alice_store.add_bytes(data)
        ticket = alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS)
        killed, came = 0, b""
        async with bob.open_blob([Source(ticket)], 10, 5 * MIB - 9, ahead=1) as pieces:
            async for piece in pieces:
                came += piece
                if not killed:
                    killed = bob.plane.pid
                    os.kill(killed, signal.SIGKILL)
        assert came == data[10:-9]
        assert bob.plane.pid != killed


async def test_ceilings_and_revocations_reach_a_running_transfer(
    alice_store: BlobStore, bob_store: BlobStore, silent_udp: socket.socket
) -> None:
    async with (
        open_two(alice_store, bob_store) as (alice, bob),
        trio.open_nursery() as nursery,
    ):
        port = silent_udp.getsockname()[1]
        nursery.start_soon(alice.plane.call_reader, *HOSTS, port, bob.public_key, bytes(32))
        info = await alice_store.add_bytes(pattern(40 * MIB))
        await until(lambda: alice.plane.pid)
        alice.throttles.sending.set(SLOW, {})  # while the process starts
        await alice.set_bandwidth()
        await until(lambda: alice.plane.connections)  # it is not idle while it calls somebody
        ticket = alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS)
        refused = trio.Event()

        async def fetch() -> None:
            with pytest.raises(TicketRefused):
                await bob.fetch(ticket)
            refused.set()

        nursery.start_soon(fetch)
        while not (uses := (await alice.uses())[0]):
            await trio.sleep(0.05)
        assert (uses[0].peer, uses[0].traffic) == (node_id_of(bob.public_key), "bulk")
        alice.throttles.sending.set(Ceilings(total=1e6), {})
        await alice.set_bandwidth()
        before = (await alice.uses())[0][0].bytes_moved
        await trio.sleep(1)
        assert (await alice.uses())[0][0].bytes_moved - before < 3e6
        alice.tickets.revoke_readers({bob.public_key})
        await refused.wait()
        assert bob_store.list_partials() == [info.id]  # what arrived waits for another ticket


@pytest.mark.slow
async def test_whoever_gave_a_ticket_gets_ready(alice_store: BlobStore) -> None:
    """Else both ends' processes would start one after the other before a first byte moves."""
    async with open_bulk(alice_store, ALICE, process=PROCESS) as alice:
        info = await alice_store.add_bytes(DATA)
        alice.issue_ticket(info.blob, public_bytes(BOB), hosts=HOSTS)
        await until(lambda: alice.plane.pid)


async def test_a_hurry_reaches_the_process(alice_store: BlobStore, bob_store: BlobStore) -> None:
    here: dict[bytes, int] = {}
    async with open_two(alice_store, bob_store, receiving=Ceilings(total=24e6)) as (alice, bob):
        infos = [await alice_store.add_bytes(bytes((number,)) * (12 * MIB)) for number in range(2)]
        async with trio.open_nursery() as nursery:

            async def fetch(blob: bytes) -> None:
                ticket = alice.issue_ticket(blob, bob.public_key, hosts=HOSTS)
                await bob.fetch(ticket, on_progress=lambda present, _: here.update({blob: present}))
                nursery.cancel_scope.cancel()

            for info in infos:
                nursery.start_soon(fetch, info.blob)
            while len(here) < 2:
                await trio.sleep(0.01)
            await bob.hurry(alice.public_key, infos[1].blob, 8.0)
    assert bob_store.has(infos[1].blob)
    assert here[infos[0].blob] <= 8 * MIB


async def test_a_blob_without_room_is_refused_and_leaves_nothing(
    alice_store: BlobStore, tmp_path: Path
) -> None:
    store = BlobStore(tmp_path / os.fsdecode(b"narrow\xff"), bytes_max=2 * MIB)
    async with open_two(alice_store, store) as (alice, bob):
        info = await alice_store.add_bytes(DATA)
        small = [await alice_store.add_bytes(pattern(60_000 + number)) for number in range(40)]
        with pytest.raises(StorageFull, match=format_blob_id(info.blob)[:20]):
            await bob.fetch(alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS))
        tickets = [alice.issue_ticket(each.blob, bob.public_key, hosts=HOSTS) for each in small]
        with pytest.raises(StorageFull, match="40 small blobs"):
            await bob.fetch_small(tickets)
        assert (store.bytes_total, store.list_partials()) == (0, [])


@pytest.mark.slow
async def test_what_a_cancelled_order_left_is_accounted_for(
    alice_store: BlobStore, bob_store: BlobStore
) -> None:
    """Cancelled while the process writes: only when it has finished the node looks at what is there."""
    async with open_two(alice_store, bob_store) as (alice, bob):
        small = [await alice_store.add_bytes(b"%d" % number) for number in range(256)]
        tickets = [alice.issue_ticket(each.blob, bob.public_key, hosts=HOSTS) for each in small]
        complete = bob_store.folder / "complete"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bob.fetch_small, tickets)
            await until(lambda: any(complete.iterdir()))
            nursery.cancel_scope.cancel()
        here = len(bob_store.list_blobs())
        await trio.sleep(0.1)
        assert here == len(list(complete.iterdir()))


async def test_a_cancelled_fetch_is_taken_up_again(alice_store: BlobStore, bob_store: BlobStore) -> None:
    async with open_two(alice_store, bob_store, sending=SLOW) as (alice, bob):
        data = pattern(5 * MIB)
        info = await alice_store.add_bytes(data)
        ticket = alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS)
        with trio.CancelScope() as scope:
            await bob.fetch(ticket, on_progress=lambda here, _: here > MIB and scope.cancel())  # type: ignore[func-returns-value]
        assert scope.cancelled_caught
        report = await bob.fetch(ticket)
        assert report.bytes_resumed > MIB
        assert bob_store.path(info.blob).read_bytes() == data


async def test_a_changed_blob_is_set_aside_by_either_process(
    alice_store: BlobStore, bob_store: BlobStore
) -> None:
    """The holder's process finds out, the node knows of it."""
    gone = []
    alice_store.on_gone = gone.append
    async with open_two(alice_store, bob_store) as (alice, bob):
        info = await alice_store.add_bytes(DATA)
        path = alice_store.path(info.blob)
        path.chmod(0o600)
        path.write_bytes(DATA[:-1] + b"!")
        ticket = alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS)
        with pytest.raises(BlobCorrupt):
            await bob.fetch(ticket)
        await until(lambda: gone)
        assert not alice_store.has(info.blob)


@pytest.mark.slow
async def test_a_process_with_nothing_to_do_ends_and_comes_back(
    alice_store: BlobStore, bob_store: BlobStore
) -> None:
    hasty = PlaneProcess(idle_seconds=0.1)
    async with open_two(alice_store, bob_store, process=hasty) as (alice, bob):
        for number in range(2):
            info = await alice_store.add_bytes(pattern(MIB + number))
            await bob.fetch(alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS))
            assert bob_store.has(info.blob)
            pids = alice.plane.pid, bob.plane.pid
            await until(lambda: not alice.plane.pid and not bob.plane.pid)
            for pid in pids:
                with pytest.raises(ProcessLookupError):
                    os.kill(pid, 0)


async def test_a_process_that_does_not_start_is_said_in_one_line(
    alice_store: BlobStore, bob_store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_bulk(alice_store, ALICE) as alice, open_bulk(bob_store, BOB, process=PROCESS) as bob:
        info = await alice_store.add_bytes(DATA)
        monkeypatch.setattr(sys, "executable", "/nonesuch/python")
        with trio.fail_after(20), pytest.raises(PeerUnreachable, match=r"does not start.*nonesuch"):
            await bob.fetch(alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS))
        monkeypatch.setattr(sys, "executable", "/bin/false")
        with trio.fail_after(20), pytest.raises(PeerUnreachable, match="does not start"):
            await bob.fetch(alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS))
        monkeypatch.setattr(sys, "executable", None)
        with trio.fail_after(20), pytest.raises(PeerUnreachable, match=r"no Python .*own_process = false"):
            await bob.fetch(alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS))
        monkeypatch.undo()
        with trio.fail_after(20):
            await bob.fetch(alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS))


@pytest.mark.slow
async def test_a_process_that_ends_says_goodbye_to_readers(
    alice_store: BlobStore, bob_store: BlobStore
) -> None:
    """They would wait for seconds, and call again."""
    throttles = Throttles(Throttle(SLOW, {}), Throttle(NONE, {}))
    async with (
        open_bulk(alice_store, ALICE, throttles=throttles, process=PROCESS) as alice,
        open_bulk(bob_store, BOB) as bob,
    ):
        assert isinstance(alice.plane, ChildPlane)
        info = await alice_store.add_bytes(pattern(2 * MIB))

        def told(_here: int, _size: int) -> None:
            if not bob.counters.reconnections and (link := alice.plane.process.link):
                link.close_nowait("enough")

        with trio.fail_after(20), capture_logs() as lines:
            await bob.fetch(alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS), on_progress=told)
        why = [line["error"] for line in lines if line["event"] == "bulk_reconnecting"]
        assert "closing" in why[0]


PARENT = """
import os, sys, trio
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.plane.process import PlaneProcess
from ioc_node.bulk.transfers import open_bulk

async def main():
    async with open_bulk(BlobStore(Path(sys.argv[1])), Ed25519PrivateKey.generate(), process=PlaneProcess()) as bulk:
        os.environ["PYTHONPATH"] = sys.argv[2]
        bulk.plane.process.want()
        while not (bulk.plane.process.link if sys.argv[3] == "running" else bulk.plane.pid):
            await trio.sleep(0.001)
        print("at", bulk.port, bulk.plane.pid, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@pytest.mark.parametrize("when", ["starting", "running"])
async def test_the_process_ends_with_its_node_however_that_ends(tmp_path: Path, when: str) -> None:
    """Also where it would take long to start; a node that comes back at once finds its port free."""
    if when == "starting":
        (tmp_path / "structlog.py").write_text("import time; time.sleep(60)\n")
    given = [str(tmp_path / "store"), str(tmp_path), when]
    with subprocess.Popen(  # noqa: ASYNC220 - nothing else goes on here
        [sys.executable, "-c", PARENT, *given], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        line = next(line for line in parent.stdout if line.startswith(b"at "))
        port, pid = map(int, line.split()[1:])
        watched = os.pidfd_open(pid)
        if when == "running":
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)  # meant for the node, as Ctrl-C in its terminal is
        parent.kill()
    async with open_bulk(BlobStore(tmp_path / "again"), ALICE, port=port, process=PROCESS) as again:
        assert again.port == port
    with trio.fail_after(20):
        await trio.lowlevel.wait_readable(watched)
    os.close(watched)
