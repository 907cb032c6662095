"""Core nodes over real links that replicate only a part: what is told, compared, taken in and forgotten."""

import time

from ioc_node.core.interest import EVERYTHING, Interest
from ioc_wire.signed import public_bytes
from tests.runtime.gossip_cases import CoreNode, key_of, open_core, open_provider, until


def held(core: CoreNode, name: str) -> int:
    replica = core.gossip.catalogue.replica(public_bytes(key_of(name)))
    return replica.living if replica is not None else 0


async def test_each_region_holds_its_own_and_the_national_node_all() -> None:
    async with (
        open_core("whole", "national", compare_seconds=0.2) as whole,
        open_core("east", interest=("cn.r3301",), compare_seconds=0.2) as east,
        open_core("west", interest=("cn.r6501",), compare_seconds=0.2) as west,
        open_provider("alice", "cn.r3301.20001") as alice,
        open_provider("bob", "cn.r6501.20002") as bob,
    ):
        for core in (east, west):
            await core.links.connect(("127.0.0.1", whole.links.port), whole.contact.key)
        for provider, home in ((alice, east), (bob, west)):
            prefix = "cn.r3301.20001" if provider is alice else "cn.r6501.20002"
            provider.put(f"ioc:{prefix}/gen/3301/az1/h1")
            await provider.links.connect(("127.0.0.1", home.links.port), home.contact.key)
        await until(lambda: held(whole, "alice") == held(whole, "bob") == 1)
        assert (held(east, "alice"), held(west, "bob")) == (1, 1)
        assert (held(east, "bob"), held(west, "alice")) == (0, 0)
        part = Interest(["cn.r3301"])
        await until(lambda: whole.gossip.catalogue.digest(part) == east.gossip.catalogue.digest())
        assert whole.gossip.catalogue.interests.common(east.contact.key) == part
        assert east.gossip.catalogue.interests.common(whole.contact.key) == part


async def test_a_guest_is_taken_in_told_to_others_and_forgotten_after_it_left() -> None:
    async with (
        open_core("whole", "national", compare_seconds=0.2) as whole,
        open_core("east", interest=("cn.r3301",), compare_seconds=0.2) as east,
    ):
        await east.links.connect(("127.0.0.1", whole.links.port), whole.contact.key)
        async with open_provider("bob", "cn.r6501.20002") as bob:
            bob.put("ioc:cn.r6501.20002/gen/3301/az1/h1")
            await bob.links.connect(("127.0.0.1", east.links.port), east.contact.key)
            await until(lambda: held(whole, "bob") == held(east, "bob") == 1)
        key = public_bytes(key_of("bob"))
        await until(lambda: east.links.link(key) is None)
        assert east.gossip.catalogue.expire(unix=time.time()) == []
        assert east.gossip.catalogue.expire(unix=time.time() + 90) == [key]
        assert held(east, "bob") == 0
        assert east.gossip.catalogue.interests.own.overlaps("cn.r6501.20002") is False
        assert whole.gossip.catalogue.interests.own == EVERYTHING
