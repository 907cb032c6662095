"""More core nodes than a full mesh holds, over real links: one copy each, and who goes or swallows all stops nobody."""

import time
from contextlib import AsyncExitStack

from ioc_node.core import gossip_events as ev
from ioc_node.core.linking import Room
from ioc_node.core.own_catalogue import OwnCatalogue
from ioc_node.runtime.links import LinkSettings
from ioc_wire.gossip import HeadNews
from tests.runtime.gossip_cases import CoreNode, delegated, host_record, key_of, open_core, until

COUNT = 9
ROOM = Room(mesh_max=4, mesh_again=3)
PATIENT = LinkSettings(handshake_seconds=20.0, dial_seconds=20.0, close_seconds=0.3)
"""All dial each other at once."""
SECONDS = 50
"""Nothing takes so long: neighbours are found within seconds, a graft takes half a second."""


class Publisher:
    """A provider at home at one core node, and how often its heads came to each of all."""

    def __init__(self, home: CoreNode, nodes: list[CoreNode]) -> None:
        self.home, self.nodes = home, nodes
        self.own = OwnCatalogue(key_of("one"))
        self.copies = dict.fromkeys(range(len(nodes)), 0)
        for number, node in enumerate(nodes):
            self._watch(number, node)

    def _watch(self, number: int, node: CoreNode) -> None:
        handle = node.gossip.machine.handle

        def counted(event: ev.Event, *, now: float) -> list[ev.Effect]:
            if isinstance(event, ev.NewsReceived) and event.peer is not None:
                self.copies[number] += len(event.news)
            return handle(event, now=now)

        node.gossip.machine.handle = counted  # type: ignore[method-assign]

    async def publish(self, host: str) -> None:
        """Change one record, and wait until every node that is left has it."""
        cid = f"ioc:cn.r3301.20001/gen/3301/az1/{host}"
        self.copies = dict.fromkeys(self.copies, 0)
        self.own.put(host_record(key_of("one"), cid), unix=time.time())
        self.own.commit(unix=time.time())
        assert self.own.head is not None
        news = HeadNews(self.own.head, delegated("one", "cn.r3301.20001", "provider"), None)
        await self.home.gossip.publish_own(news, self.own.entries_after(0))
        await until(lambda: all(node.gossip.catalogue.find(cid) is not None for node in self.nodes), SECONDS)


def inner(publisher: Publisher) -> CoreNode:
    """A node on whose links to others much hangs: the busiest of the tree but the home."""
    others = [node for node in publisher.nodes if node is not publisher.home]
    return max(others, key=lambda node: len(node.gossip.machine._spread.tree.eager))


async def test_a_head_comes_once_to_everybody_and_no_inner_node_stops_it() -> None:
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(
                open_core(f"core{n}", room=ROOM, compare_seconds=3600, settings=PATIENT)
            )
            for n in range(COUNT)
        ]
        for node in nodes:  # as membership tells it
            for other in nodes:
                node.gossip.feed(ev.ContactKnown(other.contact))
        await until(lambda: all(len(node.gossip.machine.neighbours) >= 2 for node in nodes), SECONDS)
        publisher = Publisher(nodes[0], list(nodes))
        for number in range(5):  # what comes twice is pruned
            await publisher.publish(f"h{number}")
        await publisher.publish("once")
        assert all(publisher.copies[number] for number in range(1, COUNT))
        assert sum(publisher.copies.values()) < 2 * (COUNT - 1)

        killed = inner(publisher)
        assert len(killed.gossip.machine._spread.tree.eager) >= 2
        publisher.nodes.remove(killed)
        killed.scope.cancel()
        await publisher.publish("after-a-death")

        wedged = inner(publisher)
        publisher.nodes.remove(wedged)
        wedged.gossip._perform = lambda effect: None  # type: ignore[method-assign]
        await publisher.publish("past-a-wedged-one")
        assert {node.gossip.catalogue.digest() for node in publisher.nodes} == {
            publisher.home.gossip.catalogue.digest()
        }
