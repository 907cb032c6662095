"""A provider is revoked in a running network: within seconds nobody links with it, finds it or resolves its names."""

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import trio

from ioc_testnet.network import Testnet, TestnetNode, open_testnet
from ioc_wire.errors import NotFound
from ioc_wire.market import Demand
from ioc_wire.records import ResourceRecord
from ioc_wire.signed import verify
from tests.testnet.command import NODE, run

SECONDS_MAX = 60
HONOURED_SECONDS_MAX = 10


async def _resolves(asked: TestnetNode, cid: str) -> bool:
    async with asked.client() as node:
        try:
            await node.resolve(cid)
        except NotFound:
            return False
        return True


async def _is_offered(asked: TestnetNode, cid: str) -> bool:
    async with asked.client() as node:
        offers = (await node.find(Demand())).found.offers
    return any(verify(offer.record, ResourceRecord).cid == cid for offer in offers)


async def _links(asked: TestnetNode) -> set[str]:
    async with asked.client() as node:
        return {peer.node_id for peer in await node.peers() if peer.linked}


async def _honoured(net: Testnet, victim: str, cid: str) -> None:
    """Wait until nobody but the revoked one resolves its name, offers it or has a link with it."""
    others = [node for node in net if node.saved.name != victim]
    async with net[victim].client() as node:
        node_id = (await node.status()).node_id
    for asked in others:
        while await _resolves(asked, cid) or await _is_offered(asked, cid) or node_id in await _links(asked):
            await trio.sleep(0.1)


async def test_a_provider_is_revoked_by_whoever_granted_it_and_announced_by_anybody() -> None:
    with tempfile.TemporaryDirectory(prefix="ioc-t-") as temp, trio.fail_after(SECONDS_MAX):
        async with open_testnet("small", folder=Path(temp) / "net") as net:
            await net.wait_joined()
            await net.wait_offered(2, "consumer-1")
            victim = net["provider-1"]
            (cid,) = victim.saved.identifiers
            assert await _resolves(net["consumer-1"], cid)
            file = Path(temp) / "revocation.bin"
            words = ("authority", "revoke", "--issuer", net["regional-1"].home, "--of", victim.home)
            done = await trio.to_thread.run_sync(
                lambda: run(NODE, *words, "--reason", "sold", "-o", file, "--json").check()
            )
            assert (done.json["revoked"], done.json["reason"]) == (victim.saved.key, "sold")
            home = net["consumer-1"].home
            told = await trio.to_thread.run_sync(
                lambda: run(NODE, "--home", home, "authority", "announce", file, "--json").check()
            )
            assert not told.json["known"]
            with trio.fail_after(HONOURED_SECONDS_MAX):
                await _honoured(net, "provider-1", cid)
            async with victim.client() as node:
                texts = [
                    warned.text for warned in (await node.status()).warnings if warned.about == "revoked"
                ]
            assert "(sold)" in texts[0]
            assert "own_key_revoked" in victim.words(200)
            assert await _resolves(net["consumer-1"], net["provider-2"].saved.identifiers[0])
            await net["regional-1"].stop()
            with closing(sqlite3.connect(net["regional-1"].home / "node.db")) as database:
                assert database.execute("SELECT count(*) FROM revocations").fetchone() == (1,)
            await net["regional-1"].start()
            again = await trio.to_thread.run_sync(
                lambda: run(
                    NODE, "--home", net["regional-1"].home, "authority", "announce", file, "--json"
                ).check()
            )
            assert again.json["known"]
