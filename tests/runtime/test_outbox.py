"""A burst of changes reaches other core nodes without waiting for the next comparison."""

import time

from ioc_node.core import gossip_events as ev
from ioc_node.core.own_catalogue import OwnCatalogue
from ioc_wire.authority import Delegation
from ioc_wire.gossip import HeadNews
from ioc_wire.records import StatusRow
from ioc_wire.signed import public_bytes, sign
from tests.runtime.gossip_cases import ROOT, key_of, open_core, until

PROVIDERS = 300


async def test_no_head_or_status_of_a_burst_is_lost() -> None:
    now = int(time.time())
    async with (
        open_core("alice", compare_seconds=3600) as alice,
        open_core("bob", compare_seconds=3600) as bob,
    ):
        alice.links.keep((bob.contact.host, bob.contact.port))
        await until(lambda: bool(alice.links.links and bob.links.links))
        statuses = {}
        for number in range(PROVIDERS):
            key = key_of(f"provider {number}")
            own = OwnCatalogue(key)
            own.commit(unix=now)
            assert own.head is not None
            prefix = f"cn.r3301.{20000 + number}"
            chain = (sign(ROOT, Delegation(public_bytes(key), prefix, ("provider",), now - 10, now + 3600)),)
            await alice.gossip.publish_own(HeadNews(own.head, chain, None), own.entries_after(0))
            row = StatusRow(0, 1000, 1, (), 0, 0)
            statuses[own.key] = own.sign_status([row] * 400, unix=now)[0]
            alice.gossip.feed(ev.StatusReceived(None, (statuses[own.key],)))
        theirs = bob.gossip.catalogue
        await until(lambda: theirs.digest() == alice.gossip.catalogue.digest())
        assert len(theirs.providers()) == PROVIDERS

        def told() -> int:
            replicas = [theirs.replica(provider) for provider in statuses]
            return sum(one is not None and bool(one.statuses) for one in replicas)

        await until(lambda: told() == PROVIDERS)
