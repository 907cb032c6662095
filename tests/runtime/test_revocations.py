"""Revocations over links: told at once, compared on connecting, kept over a restart; links of the revoked close."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from ioc_node.core.trust import Trust
from ioc_node.runtime.link_handlers import Handlers
from ioc_node.runtime.links import LinkEndpoint, open_links
from ioc_node.runtime.revocations import RevocationKeeper
from ioc_node.runtime.store import Store, open_store
from ioc_wire.authority import Revocation, RevocationNews, Role
from ioc_wire.errors import NotEntitled, Revoked
from ioc_wire.gossip import RevocationsAnnounced
from ioc_wire.messages import NODE_CODEC
from ioc_wire.signed import public_bytes, sign
from tests.runtime.gossip_cases import NETWORK, ROOT, SETTINGS, delegated, key_of, open_core, open_provider

SECONDS_MAX = 10


@dataclass
class Party:
    links: LinkEndpoint
    trust: Trust
    keeper: RevocationKeeper

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.links.port)

    def knows(self) -> int:
        return len(self.trust.revocations)


@asynccontextmanager
async def open_party(
    name: str, role: Role, *, store: Store | None = None, compare_seconds: float = 60.0
) -> AsyncIterator[Party]:
    """A node with nothing but links and revocations."""
    trust = Trust(network_id=NETWORK.network_id, admission="certified", roots=NETWORK.root_keys)
    chain, handlers = delegated(name, "cn", role), Handlers()
    keeper = RevocationKeeper(
        trust,
        own_key=public_bytes(key_of(name)),
        own_chain=chain,
        store=store,
        compare_seconds=compare_seconds,
    )
    keeper.register(handlers)
    keeper.load()
    async with (
        open_links(
            key_of(name), NETWORK, host="127.0.0.1", port=0, codec=NODE_CODEC, handlers=handlers, roles=(role,),
            chain=chain, settings=SETTINGS, revoked=trust.revoked, ended=trust.revocations.ended,
        ) as links,
        trio.open_nursery() as nursery,
    ):  # fmt: skip
        nursery.start_soon(keeper.run, links)
        yield Party(links, trust, keeper)
        nursery.cancel_scope.cancel()


def revocation(name: str, *, seconds: int = 90_000) -> RevocationNews:
    now = int(time.time())
    return RevocationNews(sign(ROOT, Revocation(public_bytes(key_of(name)), now, now + seconds, "stolen")))


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(SECONDS_MAX):
        while not condition():
            await trio.sleep(0.01)


async def test_one_who_learns_it_tells_all_and_the_revoked_one_is_out() -> None:
    async with (
        open_party("alice", "regional") as alice,
        open_party("bob", "regional") as bob,
        open_party("carol", "consumer") as carol,
        open_party("mallory", "provider") as mallory,
    ):
        await alice.links.connect(bob.address)
        await carol.links.connect(bob.address)
        await mallory.links.connect(alice.address)
        await mallory.links.connect(carol.address)
        assert carol.keeper.take(revocation("mallory"))
        assert not carol.keeper.take(carol.trust.revocations.news()[0])
        await until(lambda: alice.knows() and bob.knows() and mallory.knows())
        await until(lambda: not mallory.links.links)
        assert set(alice.links.links) == {bob.links.local.public_key}
        assert "was revoked by" in mallory.keeper.own_fault
        assert "stolen" in mallory.keeper.own_fault
        assert not alice.keeper.own_fault
        with pytest.raises(Revoked):
            await mallory.links.connect(bob.address)
        with pytest.raises(Revoked):
            await bob.links.connect(mallory.address)


async def test_a_node_that_is_refused_as_revoked_says_so_until_it_is_admitted() -> None:
    async with open_party("alice", "regional") as alice, open_party("mallory", "provider") as mallory:
        alice.trust.revoke(public_bytes(key_of("mallory")))
        assert mallory.links.revoked_elsewhere() == ""
        with pytest.raises(Revoked):
            await mallory.links.connect(alice.address)
        assert f"127.0.0.1:{alice.links.port} refused this node" in mallory.links.revoked_elsewhere()


async def test_who_comes_later_is_told_and_tells() -> None:
    async with open_party("alice", "regional") as alice, open_party("carol", "consumer") as carol:
        alice.keeper.take(revocation("mallory"))
        carol.keeper.take(revocation("trudy"))
        await carol.links.connect(alice.address)
        await until(lambda: alice.knows() == carol.knows() == 2)
        assert alice.trust.revocations.digest() == carol.trust.revocations.digest()


async def test_a_lost_notice_is_repaired_by_the_next_comparison() -> None:
    async with (
        open_party("alice", "regional", compare_seconds=0.1) as alice,
        open_party("bob", "regional") as bob,
    ):
        await alice.links.connect(bob.address)
        await trio.sleep(0.05)
        bob.trust.take(revocation("mallory"), unix=time.time())  # as if the notice never went out
        await until(alice.knows)


async def test_what_nobody_may_revoke_changes_nothing() -> None:
    async with open_party("alice", "regional") as alice, open_party("mallory", "provider") as mallory:
        link = await mallory.links.connect(alice.address)
        now = int(time.time())
        claim = Revocation(public_bytes(key_of("alice")), now, now + 900, "")
        bad = RevocationNews(sign(key_of("mallory"), claim), delegated("alice", "cn", "regional"))
        with pytest.raises(NotEntitled):
            alice.keeper.take(bad)
        link.notify_nowait(RevocationsAnnounced((bad,) * 64))
        link.notify_nowait(RevocationsAnnounced((revocation("trudy"),)))
        await until(alice.knows)
        assert alice.knows() == 1
        assert not alice.keeper.own_fault


async def test_kept_over_a_restart_and_forgotten_in_time(tmp_path: Path) -> None:
    with open_store(tmp_path / "node.db") as store:
        async with open_party("alice", "regional", store=store) as alice:
            alice.keeper.take(revocation("mallory"))
            alice.keeper.take(revocation("mallory", seconds=95_000))
            assert alice.knows() == 1
        async with open_party("alice", "regional", store=store) as alice:
            assert alice.knows() == 1
            assert public_bytes(key_of("mallory")) in alice.trust.revoked
        assert len(store.fetch("SELECT * FROM revocations")) == 1
        trust = Trust(network_id=NETWORK.network_id, admission="certified", roots=NETWORK.root_keys)
        late = RevocationKeeper(trust, own_key=bytes(32), store=store, clock=lambda: time.time() + 96_000)
        assert late.load() == 0
        assert store.fetch("SELECT * FROM revocations") == []


async def test_a_catalogue_of_a_revoked_provider_is_forgotten() -> None:
    async with open_core("alice") as alice, open_provider("mallory", "cn.r3301.20004") as mallory:
        mallory.home.know(alice.contact)
        mallory.put("ioc:cn.r3301.20004/gen/3301/az1/h1")
        await until(lambda: alice.gossip.catalogue.records == 1)
        told: list[bytes] = []
        alice.gossip.on_changed(lambda provider, slots: told.append(provider))
        alice.gossip.catalogue._trust.revoke(public_bytes(mallory.key))
        alice.gossip.key_revoked()
        assert alice.gossip.catalogue.records == 0
        assert told == [public_bytes(mallory.key)]
