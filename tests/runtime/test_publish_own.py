"""A core node takes in a catalogue of its own in steps: what is held is one catalogue or the next, never a mixture."""

import time

import trio

from ioc_node.core import gossip_events as ev
from ioc_node.core.catalogue import Catalogue
from ioc_node.core.own_catalogue import OwnCatalogue
from ioc_node.core.trust import Trust
from ioc_wire.gossip import HeadNews
from tests.runtime.gossip_cases import NETWORK, CoreNode, delegated, host_record, key_of, open_core

CHAIN = delegated("one", "cn.r3301.20001", "provider")
HOSTS = 1500


class Version:
    """An own catalogue as of now: its head, and all of its entries."""

    def __init__(self, own: OwnCatalogue) -> None:
        own.commit(unix=time.time())
        assert own.head is not None
        self.seq = own.seq
        self.news = HeadNews(own.head, CHAIN, None)
        self.entries = own.entries_after(0)

    def digest(self) -> bytes:
        """Of a catalogue that took it in in one go."""
        trust = Trust(network_id=NETWORK.network_id, admission="certified", roots=NETWORK.root_keys)
        catalogue = Catalogue(trust)
        catalogue.restore([self.news], self.entries, unix=time.time())
        assert catalogue.records == HOSTS
        return catalogue.digest()


def two_versions() -> tuple[Version, Version]:
    own, key = OwnCatalogue(key_of("one")), key_of("one")
    records = [host_record(key, f"ioc:cn.r3301.20001/gen/3301/az1/h{number}") for number in range(HOSTS)]
    for record in records:
        own.put(record, unix=time.time())
    first = Version(own)
    for number in (0, 7, HOSTS - 1):
        cid = f"ioc:cn.r3301.20001/gen/3301/az1/h{number}"
        own.put(host_record(key, cid, version=2, memory_mib=1024), unix=time.time())
    return first, Version(own)


class Turns:
    """Counts how often others had a turn."""

    def __init__(self) -> None:
        self.count = 0

    async def run(self) -> None:
        while True:
            await trio.lowlevel.checkpoint()
            self.count += 1


def held(core: CoreNode) -> int:
    replica = core.gossip.catalogue.replica(OwnCatalogue(key_of("one")).key)
    return replica.held_seq if replica is not None else 0


async def test_others_have_turns_and_the_outcome_is_that_of_one_go() -> None:
    first, second = two_versions()
    turns = Turns()
    async with open_core("alice") as alice, trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        for version in (first, second):
            before = turns.count
            await alice.gossip.publish_own(version.news, version.entries)
            assert turns.count - before >= 4
            assert held(alice) == version.seq
            assert alice.gossip.catalogue.digest() == version.digest()
        nursery.cancel_scope.cancel()


async def test_a_change_in_the_middle_is_whole_and_stays() -> None:
    first, second = two_versions()
    seen: list[int] = []
    async with open_core("alice") as alice:
        alice.gossip.on_changed(lambda provider, slots: seen.append(held(alice)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alice.gossip.publish_own, first.news, first.entries)
            for _ in range(3):
                await trio.lowlevel.checkpoint()
            assert not held(alice)  # it is under way
            await alice.gossip.publish_own(second.news, second.entries)
        assert seen in ([first.seq, second.seq], [second.seq])
        assert alice.gossip.catalogue.digest() == second.digest()


async def test_another_core_nodes_older_copy_that_is_quicker_does_not_stop_it() -> None:
    first, second = two_versions()
    async with open_core("alice") as alice:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alice.gossip.publish_own, second.news, second.entries)
            for _ in range(3):
                await trio.lowlevel.checkpoint()
            head = first.news.head
            assert not held(alice)
            alice.gossip.feed(ev.EntriesFetched(None, head.key, 0, head, first.entries))
            assert held(alice) == first.seq
        assert held(alice) == second.seq
        assert alice.gossip.catalogue.digest() == second.digest()
