"""Providers publish, core nodes hold: real links, certified network."""

import time
from contextlib import AsyncExitStack

import pytest
import trio

from ioc_node.core.own_catalogue import OwnCatalogue
from ioc_wire.errors import BrokenChain, Busy, NotFound, RoleNotGranted
from ioc_wire.gossip import (
    CompareHeads,
    EntriesPage,
    ExchangePeers,
    FetchEntries,
    HeadNews,
    HeadsAnnounced,
    HeadsCompared,
    PeersKnown,
    Published,
    PublishHead,
    StatusAnnounced,
)
from ioc_wire.records import StatusRow
from tests.runtime.gossip_cases import (
    CoreNode,
    delegated,
    host_record,
    key_of,
    open_core,
    open_provider,
    until,
)

HOST_A = "ioc:cn.r3301.20001/gen/3301/az1/h1"
HOST_B = "ioc:cn.r1100.20002/gen/1100/az1/h1"


def digests(nodes: list[CoreNode]) -> set[bytes]:
    return {node.gossip.catalogue.digest() for node in nodes}


def holds(node: CoreNode, *cids: str) -> bool:
    return all(node.gossip.catalogue.find(cid) is not None for cid in cids)


async def test_core_nodes_that_know_one_address_form_a_full_mesh() -> None:
    async with AsyncExitStack() as stack:
        names = ["alice", "bob", "carol", "dave"]
        nodes = [await stack.enter_async_context(open_core(name)) for name in names]
        for node in nodes[1:]:
            node.links.keep((nodes[0].contact.host, nodes[0].contact.port))
        await until(lambda: all(len(node.links.links) == 3 for node in nodes))
        link = nodes[1].links.link(nodes[0].contact.key)
        assert link is not None
        known = await link.request(ExchangePeers(), PeersKnown)
        assert {contact.key for contact in known.core} == {node.contact.key for node in nodes[1:]}


async def test_published_catalogues_reach_every_core_node_and_survive_their_home() -> None:
    async with AsyncExitStack() as stack:
        alice = await stack.enter_async_context(open_core("alice", "national"))
        bob = await stack.enter_async_context(open_core("bob"))
        carol = await stack.enter_async_context(open_core("carol"))
        bob.links.keep((alice.contact.host, alice.contact.port))
        carol.links.keep((alice.contact.host, alice.contact.port))
        one = await stack.enter_async_context(open_provider("one", "cn.r3301.20001"))
        two = await stack.enter_async_context(open_provider("two", "cn.r1100.20002", outbound_only=True))
        for provider in (one, two):
            provider.links.keep((bob.contact.host, bob.contact.port))
        one.put(HOST_A)
        two.put(HOST_B)
        nodes = [alice, bob, carol]
        await until(lambda: all(holds(node, HOST_A, HOST_B) for node in nodes))
        assert len(digests(nodes)) == 1
        assert one.home.link is not None
        assert one.home.link.peer.key == bob.contact.key
        await until(lambda: {c.key for c in one.home.contacts} >= {n.contact.key for n in nodes})

        began = trio.current_time()
        bob.scope.cancel()
        one.put("ioc:cn.r3301.20001/gen/3301/az1/h2")
        left = [alice, carol]
        await until(lambda: all(holds(node, "ioc:cn.r3301.20001/gen/3301/az1/h2") for node in left))
        assert trio.current_time() - began < 5
        assert one.home.link is not None
        assert one.home.link.peer.key != bob.contact.key
        assert len(digests(left)) == 1
        assert [node.gossip.catalogue.records for node in left] == [3, 3]  # nothing lost, nothing doubled
        # a status change arrives without being waited for
        one.rows[:] = [StatusRow(0, 1000, 16384)]
        one.home.status_changed()

        def free(node: CoreNode) -> int:
            replica = node.gossip.catalogue.replica(one.own.key)
            assert replica is not None
            status = replica.status_of(0)
            return status.batch.rows[0].free_cores_milli if status else -1

        await until(lambda: all(free(node) == 1000 for node in left), 2)


async def test_a_core_node_that_comes_late_gets_everything_and_withdrawals_spread() -> None:
    async with open_core("alice") as alice, open_provider("one", "cn.r3301.20001") as one:
        one.links.keep((alice.contact.host, alice.contact.port))
        cids = [f"ioc:cn.r3301.20001/gen/3301/az1/h{i}" for i in range(1500)]
        for cid in cids:
            one.put(cid)
        await until(lambda: holds(alice, *cids))
        async with open_core("bob") as bob:
            bob.links.keep((alice.contact.host, alice.contact.port))
            await until(lambda: holds(bob, *cids))
            one.own.withdraw(cids[7])
            one.home.catalogue_changed()
            await until(lambda: bob.gossip.catalogue.records == alice.gossip.catalogue.records == 1499)
            assert bob.gossip.catalogue.find(cids[7]) is None
            assert len(digests([alice, bob])) == 1


async def test_only_a_provider_publishes_and_only_what_is_its_own() -> None:
    async with open_core("alice") as alice, open_provider("one", "cn.r3301.20001") as one:
        link = await one.links.connect((alice.contact.host, alice.contact.port))
        await until(lambda: one.home.published_seq > 0)  # its home would publish meanwhile
        other = OwnCatalogue(key_of("two"))
        other.commit(unix=time.time())
        assert other.head is not None
        with pytest.raises(RoleNotGranted):
            await link.request(PublishHead(HeadNews(other.head, delegated("two", "cn", "provider"), None)))
        one.own.put(host_record(key_of("one"), HOST_A), unix=time.time())
        one.own.commit(unix=time.time())
        assert one.own.head is not None
        with pytest.raises(BrokenChain):
            await link.request(
                PublishHead(HeadNews(one.own.head, delegated("two", "cn.r3301.20001", "provider"), None))
            )
        news = HeadNews(one.own.head, delegated("one", "cn.r3301.20001", "provider"), None)
        assert (await link.request(PublishHead(news), Published)).seq == one.own.seq
        # what a provider says of others is not even looked at
        foreign = HeadNews(other.head, delegated("two", "cn", "provider"), None)
        link.notify_nowait(HeadsAnnounced((foreign,)))
        link.notify_nowait(StatusAnnounced(tuple(other.sign_status([StatusRow(0, 1, 1)], unix=time.time()))))
        answer = await link.request(CompareHeads(bytes(32)), HeadsCompared)
        assert [row.provider for row in answer.rows] == [one.own.key]
        with pytest.raises(NotFound):
            await link.request(FetchEntries(other.key, 0), EntriesPage)


async def test_a_record_outside_of_the_prefix_is_left_out_and_the_rest_goes_on() -> None:
    async with open_core("alice") as alice, open_provider("one", "cn.r3301.20001") as one:
        one.links.keep((alice.contact.host, alice.contact.port))
        one.put(HOST_B)
        one.put(HOST_A)
        await until(lambda: holds(alice, HOST_A))
        assert not holds(alice, HOST_B)
        await until(lambda: one.home.published_seq == one.own.seq)  # the answer is still on its way


async def test_a_peer_that_asks_for_core_nodes_without_end_is_refused() -> None:
    async with open_core("alice") as alice, open_provider("one", "cn.r3301.20001") as one:
        link = await one.links.connect((alice.contact.host, alice.contact.port))
        refused = 0
        for _ in range(100):
            try:
                await link.request(ExchangePeers(), PeersKnown)
            except Busy:
                refused += 1
        assert refused
