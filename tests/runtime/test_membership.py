"""Membership over real links: who comes is known to all, who falls silent is held dead, who says goodbye has left."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

from ioc_node.core import neighbours
from ioc_node.core.linking import ROOM, Room
from ioc_node.core.membership_events import Settings, State
from ioc_node.core.trust import Trust
from ioc_node.runtime.gossip import CoreGossip
from ioc_node.runtime.links import Handlers, Link
from ioc_node.runtime.membership import PROBE_LINK_SECONDS, PROBE_OVER, CoreMembership
from tests.runtime.gossip_cases import NETWORK, CoreNode, delegated, key_of, open_core

QUICK = Settings(period_seconds=0.1, answer_seconds=0.05, alpha=3.0, beta=2.0, dead_periods=3)


class Member:
    def __init__(self, node: CoreNode, membership: CoreMembership) -> None:
        self.node, self.membership = node, membership

    def states(self) -> dict[bytes, State]:
        return {each.contact.key: each.state for each in self.membership.members}


@asynccontextmanager
async def open_member(
    name: str,
    *dial: Member,
    room: Room = ROOM,
    settings: Settings = QUICK,
    probe_link_seconds: float = PROBE_LINK_SECONDS,
) -> AsyncIterator[Member]:
    made: list[CoreMembership] = []

    def prepare(gossip: CoreGossip, handlers: Handlers) -> None:
        trust = Trust(network_id=NETWORK.network_id, admission="certified", roots=NETWORK.root_keys)
        made.append(
            CoreMembership(
                key_of(name),
                delegated(name, "cn", "regional"),
                trust,
                gossip,
                settings=settings,
                probe_link_seconds=probe_link_seconds,
            )
        )
        made[0].register(handlers)

    async with open_core(name, prepare=prepare, room=room) as node, trio.open_nursery() as nursery:
        nursery.start_soon(made[0].run, node.links, node.contact)
        for other in dial:
            node.links.keep((other.node.contact.host, other.node.contact.port))
        yield Member(node, made[0])
        nursery.cancel_scope.cancel()


async def until(holds: Callable[[], bool], seconds: float = 8.0) -> float:
    began = time.monotonic()
    with trio.fail_after(seconds):
        while not holds():
            await trio.sleep(0.02)
    return time.monotonic() - began


def knows(member: Member, *others: tuple[Member, State]) -> bool:
    return member.states() == {other.node.contact.key: state for other, state in others}


async def test_core_nodes_know_who_is_alive() -> None:
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(open_member("one"))
        two = await stack.enter_async_context(open_member("two", one))
        alive = State.ALIVE
        leaver = AsyncExitStack()
        three = await leaver.enter_async_context(open_member("three", two))
        everybody = (one, two, three)

        def all_know_all() -> bool:
            others = {
                each: [(other, alive) for other in everybody if other is not each] for each in everybody
            }
            return all(knows(each, *those) for each, those in others.items())

        await until(all_know_all)
        # one that stops says goodbye: nobody has to suspect it
        await leaver.aclose()
        await until(lambda: all(each.states()[three.node.contact.key] is State.LEFT for each in (one, two)))
        # one that falls silent, its links still open, is held dead; it comes back by itself
        two.membership._feed = lambda event: None  # type: ignore[method-assign]
        await until(lambda: one.states()[two.node.contact.key] is State.DEAD)
        del two.membership._feed
        await until(lambda: one.states()[two.node.contact.key] is alive)


async def test_a_link_that_was_opened_for_a_probe_is_closed_again_where_there_are_more_than_a_mesh_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(neighbours, "CHOSEN", 0)  # four nodes, and nobody is a neighbour in the tree
    closed: list[tuple[Member, Link]] = []
    suspected: list[bytes] = []

    def watch(member: Member) -> None:
        def down(link: Link) -> None:
            closed.append((member, link))
            machine = member.membership._machine
            if machine is not None and link.said_goodbye and link.peer.key in machine._urgent:
                suspected.append(link.peer.key)

        member.node.links.on_link_down(down)

    slow = Settings(period_seconds=0.4, answer_seconds=0.3)
    async with AsyncExitStack() as stack:
        members: list[Member] = []
        for name in ("one", "two", "three", "four"):
            member = await stack.enter_async_context(
                open_member(
                    name,
                    *members[-1:],
                    room=Room(mesh_max=1, mesh_again=0),
                    settings=slow,
                    probe_link_seconds=0.1,
                )
            )
            watch(member)
            members.append(member)
        wanted = {member.node.contact.key for member in members}
        await until(lambda: all(wanted - {m.node.contact.key} == m.states().keys() for m in members))
        await until(lambda: sum(link.close_reason == PROBE_OVER for _, link in closed) >= 3)
        other_ends = [link for _, link in closed if link.close_reason == "closed by the peer"]
        assert other_ends
        assert all(link.said_goodbye for link in other_ends)
        assert not suspected
        assert all(state is State.ALIVE for member in members for state in member.states().values())
