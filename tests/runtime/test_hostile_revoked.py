"""A revoked provider among real nodes: its records, its writes and its sessions count for nothing from that moment on,
also while servers that did not hear of it go on serving them.
"""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import trio

from ioc_node.core.events import KeyRevoked
from ioc_node.runtime.dht import Dht, open_dht
from ioc_wire.authority import Delegation, Role
from ioc_wire.errors import BrokenChain, NotFound, Revoked
from ioc_wire.signed import Signed, public_bytes, sign
from tests.runtime.dht_nodes import dht_options, key_of, record_of
from tests.runtime.hostile import CID, OWNER, fault_of

ROOT, REGION, PROVIDER, OTHER = key_of("root"), key_of("region"), key_of("provider"), key_of("other")
HELD, OTHERS = "ioc:cn.r3301.20004/ai/3301/az1/h1", "ioc:cn.r3301.30004/ai/3301/az1/h1"
ENDED: Final = (Revoked, BrokenChain)


def grant(issuer: Any, subject: Any, prefix: str, *roles: Role) -> Signed:
    now = int(time.time())
    return sign(issuer, Delegation(public_bytes(subject), prefix, roles, now - 600, now + 3600))


_REGION = grant(ROOT, REGION, "cn.r3301", "regional")
CHAIN = (_REGION, grant(REGION, PROVIDER, "cn.r3301.20004", "provider"))
OTHER_CHAIN = (_REGION, grant(REGION, OTHER, "cn.r3301.30004", "provider"))


def revoke(dht: Dht, key: Any) -> None:
    """As a node does that was shown a good revocation."""
    dht._driver.feed(KeyRevoked(dht.machine.trust.revoke(public_bytes(key))))


class Scene:
    """Bob, carol and the provider are servers, alice a client; two providers' records are stored everywhere."""

    def __init__(self, bob: Dht, carol: Dht, provider: Dht, alice: Dht) -> None:
        self.bob, self.carol, self.provider, self.alice = bob, carol, provider, alice


@asynccontextmanager
async def open_scene() -> AsyncIterator[Scene]:
    rule: dict[str, Any] = {"admission": "certified", "roots": frozenset({public_bytes(ROOT)})}
    chains = {
        "bob": (grant(ROOT, key_of("bob"), "cn", "national"),),
        "carol": (grant(ROOT, key_of("carol"), "cn", "national"),),
        "provider": CHAIN,
        "alice": (grant(ROOT, key_of("alice"), "cn", "national"),),
    }
    async with AsyncExitStack() as stack:
        nodes = {
            name: await stack.enter_async_context(
                open_dht(**dht_options(name, chain=chain, server=name != "alice", **rule))
            )
            for name, chain in chains.items()
        }
        scene = Scene(**nodes)
        for node in (scene.carol, scene.provider, scene.alice):
            assert await node.join([scene.bob.address]) == 1
        with trio.fail_after(20):
            while not all(node.machine.upkeep.has_full_view() for node in nodes.values()):
                await trio.sleep(0.02)
        for key, cid, chain in ((PROVIDER, HELD, CHAIN), (OTHER, OTHERS, OTHER_CHAIN)):
            assert len((await scene.alice.put(record_of(key, cid), chain)).stored) == 3
        yield scene


async def test_its_record_is_taken_neither_from_the_store_nor_from_peers() -> None:
    async with open_scene() as scene:
        assert (await scene.alice.get(HELD)).resource.cid == HELD
        revoke(scene.alice, PROVIDER)
        revoke(scene.bob, PROVIDER)
        for node in (scene.alice, scene.bob):
            assert isinstance(await fault_of(node.get(HELD)), NotFound)
            assert isinstance(await fault_of(node.get(HELD, answers=3)), NotFound)
            assert node.counters()["rejected"] > 0, "carol did not hear of it and gave it"
            assert (await node.get(OTHERS)).resource.cid == OTHERS, (
                "another provider of that region is as good"
            )
        assert scene.bob.counters()["records"] == 1
        assert (await scene.carol.get(HELD)).resource.cid == HELD


async def test_its_writes_are_refused() -> None:
    async with open_scene() as scene:
        revoke(scene.bob, PROVIDER)
        put = await scene.alice.put(record_of(PROVIDER, HELD, 2), CHAIN)
        refused = {contact.node_id: fault for contact, fault in put.refused}
        assert isinstance(refused[scene.bob.node_id], ENDED)
        assert scene.carol.node_id in {contact.node_id for contact in put.stored}
        assert scene.bob.counters()["records"] == 1


async def test_its_sessions_are_not_believed() -> None:
    """Neither the one it has, nor a new one; and nobody is told of it any more."""
    async with open_scene() as scene:
        bob, provider = scene.bob, scene.provider
        (contact,) = [known for known in provider.contacts() if known.node_id == bob.node_id]
        await provider.ping(contact)
        accepted = bob.counters()["handshakes_accepted"]
        revoke(bob, PROVIDER)
        fault = await fault_of(provider.ping(contact))
        assert isinstance(fault, ENDED), fault
        await fault_of(provider.put(record_of(PROVIDER, HELD, 3), CHAIN))
        await trio.sleep(0.2)
        assert bob.counters()["handshakes_accepted"] == accepted
        assert bob.machine.sessions.with_node(provider.node_id, trio.current_time()) is None
        assert provider.node_id not in {known.node_id for known in bob.contacts()}
        found = await scene.alice.find_node(provider.node_id)
        assert bob.node_id in {known.node_id for known in found.nodes}
        assert bob.counters()["records"] == 1


async def test_what_a_revoked_issuer_granted_ends_too() -> None:
    async with open_scene() as scene:
        revoke(scene.bob, REGION)
        revoke(scene.alice, REGION)
        for cid in (HELD, OTHERS):
            assert isinstance(await fault_of(scene.alice.get(cid)), NotFound)
        assert scene.bob.counters()["records"] == 0
        put = await scene.alice.put(record_of(OTHER, OTHERS, 2), OTHER_CHAIN)
        assert isinstance({c.node_id: f for c, f in put.refused}[scene.bob.node_id], ENDED)


async def test_in_an_open_network_its_own_names_end() -> None:
    blob = bytes(range(32))
    async with open_dht(**dht_options("bob")) as bob, open_dht(**dht_options("carol", server=False)) as carol:
        await carol.join([bob.address])
        assert (await carol.put(record_of(OWNER, CID))).stored
        async with open_dht(**dht_options("owner", server=False)) as owner:
            await owner.join([bob.address])
            await owner.announce(blob, "192.0.2.1", 4000)
            assert len((await carol.holders(blob)).holders) == 1
            revoke(bob, OWNER)
            assert isinstance(await fault_of(carol.get(CID)), NotFound)
            assert isinstance(await fault_of(carol.holders(blob)), NotFound)
            assert isinstance((await carol.put(record_of(OWNER, CID, 2))).refused[0][1], Revoked)
            await fault_of(owner.announce(blob, "192.0.2.1", 4000))
            assert isinstance(await fault_of(carol.holders(blob)), NotFound), (
                "neither its session nor its word"
            )
            assert bob.counters()["records"] == bob.counters()["blobs"] == 0
