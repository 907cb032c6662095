"""Several addresses of one holder, or of one reader, carry one blob in parallel; a path that dies loses nothing."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio

from ioc_node.bulk.blobs import BlobStore
from ioc_node.bulk.transfers import BulkEndpoint, open_bulk
from ioc_node.config import NodeConfig
from ioc_node.errors import ConfigError, PortInUse
from ioc_testnet.impair import Impairment, open_impaired
from ioc_wire.bulk import Endpoint, Ticket

from .conftest import ALICE, BOB, MIB, pattern

HOSTS = ["127.0.0.1"]
SECOND = "127.0.0.2"
LINE_MB_S = 3.0
LINE = Impairment(rate_mbit_s=8 * LINE_MB_S, delay_ms=2, queue_bytes_max=200_000)
DATA = pattern(8 * MIB + 99)


@asynccontextmanager
async def open_two_paths(
    store: BlobStore,
) -> AsyncIterator[tuple[BulkEndpoint, list[Endpoint], list[trio.CancelScope]]]:
    """Alice at two addresses, each behind a line of its own that a scope can cut."""
    ways: list[Endpoint] = []
    scopes = [trio.CancelScope(), trio.CancelScope()]

    async def carry(place: int, endpoint: Endpoint, *, task_status: trio.TaskStatus[int]) -> None:
        with scopes[place]:
            async with open_impaired((endpoint.host, endpoint.port), LINE, host=endpoint.host) as line:
                task_status.started(line.port)
                await trio.sleep_forever()

    async with open_bulk(store, ALICE, addresses=[SECOND]) as alice, trio.open_nursery() as nursery:
        for place, endpoint in enumerate((Endpoint(HOSTS[0], alice.port), *alice.further)):
            port = await nursery.start(carry, place, endpoint)
            ways.append(Endpoint(endpoint.host, port))
        yield alice, ways, scopes
        nursery.cancel_scope.cancel()


def over(ticket: Ticket, *ways: Endpoint) -> Ticket:
    return msgspec.structs.replace(ticket, endpoints=ways)


async def test_a_ticket_lists_every_address_and_both_bring_more_than_one_could(
    alice_store: BlobStore, bob_store: BlobStore
) -> None:
    async with open_two_paths(alice_store) as (alice, ways, _), open_bulk(bob_store, BOB) as bob:
        info = await alice_store.add_bytes(DATA)
        ticket = alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS)
        assert ticket.endpoints == (Endpoint(HOSTS[0], alice.port), Endpoint(SECOND, alice.port))
        with trio.fail_after(20):
            report = await bob.fetch(over(ticket, *ways))
    assert bob_store.path(info.blob).read_bytes() == DATA
    came = dict(report.paths)
    assert came.keys() == {f"{way.host}:{way.port}" for way in ways}
    assert sum(came.values()) == len(DATA)
    assert min(came.values()) >= 2 * MIB
    # No line carries more than its rate (and one queue), so one alone takes longer than both did.
    assert report.seconds < (len(DATA) - LINE.queue_bytes_max) / (LINE_MB_S * 1e6)


async def test_a_path_that_dies_in_the_middle_loses_nothing(
    alice_store: BlobStore, bob_store: BlobStore
) -> None:
    async with open_two_paths(alice_store) as (alice, ways, scopes), open_bulk(bob_store, BOB) as bob:
        info = await alice_store.add_bytes(DATA)
        ticket = alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS)

        def cut(present: int, _size: int) -> None:
            if present >= 4 * MIB:
                scopes[0].cancel()  # the path over which the blob was begun

        with trio.fail_after(30):
            report = await bob.fetch(over(ticket, *ways), on_progress=cut)
    assert scopes[0].cancelled_caught
    assert bob_store.path(info.blob).read_bytes() == DATA
    came = dict(report.paths)
    assert sum(came.values()) == report.bytes_moved == len(DATA)
    assert came[f"{ways[1].host}:{ways[1].port}"] > len(DATA) // 2


async def test_a_reader_with_two_addresses_calls_from_both(
    alice_store: BlobStore, bob_store: BlobStore
) -> None:
    async with open_bulk(alice_store, ALICE) as alice, open_bulk(bob_store, BOB, addresses=[SECOND]) as bob:
        info = await alice_store.add_bytes(DATA)
        ticket = alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS)
        async with open_impaired((HOSTS[0], alice.port), Impairment(rate_mbit_s=32)) as line:
            way = f"{HOSTS[0]}:{line.port}"
            with trio.fail_after(20):
                report = await bob.fetch(over(ticket, Endpoint(HOSTS[0], line.port)))
        assert dict(report.paths).keys() == {way, f"{SECOND} to {way}"}
    assert bob_store.path(info.blob).read_bytes() == DATA


async def test_a_small_blob_is_not_worth_a_second_path(alice_store: BlobStore, bob_store: BlobStore) -> None:
    async with open_bulk(alice_store, ALICE, addresses=[SECOND]) as alice, open_bulk(bob_store, BOB) as bob:
        info = await alice_store.add_bytes(pattern(2 * MIB))
        with trio.fail_after(10):
            report = await bob.fetch(alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS))
        assert len(report.paths) == 1


async def test_a_node_that_listens_everywhere_takes_another_port_for_a_further_address(
    alice_store: BlobStore, bob_store: BlobStore
) -> None:
    async with (
        open_bulk(alice_store, ALICE, host="0.0.0.0", addresses=[SECOND]) as alice,
        open_bulk(bob_store, BOB) as bob,
    ):
        (further,) = alice.further
        assert further.host == SECOND
        assert further.port != alice.port
        info = await alice_store.add_bytes(DATA)
        ticket = alice.issue_ticket(info.blob, bob.public_key, hosts=HOSTS)
        with trio.fail_after(10):
            await bob.fetch(over(ticket, further))
    assert bob_store.path(info.blob).read_bytes() == DATA


async def test_addresses_of_other_machines_are_refused(bob_store: BlobStore) -> None:
    with pytest.raises(PortInUse, match=r"cannot listen on UDP 192\.0\.2\.1"):
        async with open_bulk(bob_store, BOB, addresses=["192.0.2.1"]):
            pass
    config = msgspec.convert({"role": "consumer", "bulk": {"addresses": ["eth1"]}}, NodeConfig)
    with pytest.raises(ConfigError, match=r"bulk\.addresses: 'eth1' is no IP address"):
        config.check()
