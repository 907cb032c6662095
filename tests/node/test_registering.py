"""A provider's identifiers come, go and come back: in its catalogue and in the DHT, with versions that only grow."""

from pathlib import Path

import pytest
import trio

from ioc_node.collectors.local import LocalMachine
from ioc_node.config import ResourceConfig
from ioc_node.core.own_catalogue import OwnCatalogue
from ioc_node.market.leases import LeaseBook
from ioc_node.registering import Registrar
from ioc_node.resources import RecordSigner, Resource, plan_resources
from ioc_node.runtime.dht import Dht
from ioc_node.runtime.home import Home
from ioc_node.runtime.store import Store
from ioc_wire import limits
from ioc_wire.cid import self_certified_prefix
from ioc_wire.errors import NotFound, Withdrawn
from ioc_wire.records import Endpoint, verify_tombstone
from ioc_wire.signed import public_bytes
from tests.runtime.dht_nodes import key_of, open_dhts

KEY = key_of("provider")
PREFIX = self_certified_prefix(public_bytes(KEY))
UNIX = 1_800_000_000


def resources(*hosts: str) -> list[Resource]:
    machine = LocalMachine("x86_64", "test", 8, 16384, 100_000)
    configs = [ResourceConfig(path=f"gen/3301/az1/{host}") for host in hosts]
    return plan_resources(
        configs, prefix=PREFIX, machine=machine, runtimes=(), offloads=(), endpoint=Endpoint("127.0.0.1", 4)
    )


def cid(host: str) -> str:
    return f"ioc:{PREFIX}/gen/3301/az1/{host}"


def registrar(store: Store, own: OwnCatalogue, *hosts: str) -> Registrar:
    planned = resources(*hosts)
    book = LeaseBook(store, KEY, {resource.cid: resource.capacity for resource in planned})
    made = Registrar(planned, signer=RecordSigner(store, KEY), chain=(), own=own, book=book)
    made.enter_catalogue()
    return made


def test_versions_only_grow_over_withdrawals(tmp_path: Path) -> None:
    with Store(tmp_path / "node.sqlite") as store:
        signer = RecordSigner(store, KEY)
        one, two = resources("h1", "h2")
        for resource in (one, two):
            signer.sign(resource.description, now=UNIX)
        assert signer.withdraw_others({one.cid, two.cid}, now=UNIX) == []
        assert signer.withdraw_others({one.cid}, now=UNIX) == [two.cid]
        assert signer.withdraw_others({one.cid}, now=UNIX + 60) == [two.cid]  # a restart changes nothing
        tombstone, _ = verify_tombstone(signer.sign_tombstone(two.cid, now=UNIX + 60), now=UNIX + 60)
        assert (tombstone.cid, tombstone.version) == (two.cid, 2)
        assert tombstone.expires - tombstone.issued == limits.RECORD_SECONDS_MAX
        signer.sign(two.description, now=UNIX + 70)  # configured again, as it was
        assert signer.version_of(two.cid) == 3
        assert signer.withdraw_others({one.cid, two.cid}, now=UNIX + 80) == []
        assert signer.version_of(one.cid) == 1


def test_a_tombstone_is_published_until_no_older_record_can_be_about(tmp_path: Path) -> None:
    with Store(tmp_path / "node.sqlite") as store:
        signer = RecordSigner(store, KEY)
        (one,) = resources("h1")
        signer.sign(one.description, now=UNIX)
        later = UNIX + limits.RECORD_SECONDS_MAX
        assert signer.withdraw_others((), now=UNIX) == [one.cid]
        assert signer.withdraw_others((), now=later - 1) == [one.cid]
        assert signer.withdraw_others((), now=later + 1) == []
        signer.sign(one.description, now=later + 2)
        assert signer.version_of(one.cid) == 3


async def outcome(dht: Dht, host: str) -> int | str:
    try:
        return (await dht.get(cid(host), answers=2)).resource.version
    except (Withdrawn, NotFound) as error:
        return type(error).__name__


async def wait_for(dht: Dht, expected: dict[str, int | str]) -> None:
    with trio.fail_after(20):
        while {host: await outcome(dht, host) for host in expected} != expected:
            await trio.sleep(0.02)


@pytest.fixture
def home() -> Home:
    own = OwnCatalogue(KEY)
    return Home(own, chain=lambda: (), contact=lambda: None, status=lambda: ())


async def test_what_is_not_configured_any_more_is_gone_from_the_dht(tmp_path: Path, home: Home) -> None:
    async with open_dhts(3) as nodes:
        with Store(tmp_path / "node.sqlite") as store:
            registrar(store, home.own, "h1", "h2").publish(nodes[0], home)
            await wait_for(nodes[2], {"h1": 1, "h2": 1})
            for host in ("h1", "h2"):  # as when the provider stops
                nodes[0].withdraw(cid(host))
        with Store(tmp_path / "node.sqlite") as store:
            registrar(store, home.own, "h1").publish(nodes[1], home)
            await wait_for(nodes[2], {"h1": 1, "h2": "Withdrawn"})
            assert cid("h2") not in home.own.records()
        with Store(tmp_path / "node.sqlite") as store:
            registrar(store, home.own, "h1", "h2").publish(nodes[1], home)
            await wait_for(nodes[2], {"h1": 1, "h2": 3})


async def test_many_are_registered_by_sweep(tmp_path: Path, home: Home) -> None:
    async with open_dhts(3) as nodes:
        with Store(tmp_path / "node.sqlite") as store:
            hosts = [f"h{n}" for n in range(60)]
            rows = await registrar(store, home.own, *hosts).register_now(nodes[0])
            assert [(row.cid, row.version) for row in rows] == [(cid(host), 1) for host in hosts]
            assert {(row.stored, row.refused) for row in rows} == {(3, ())}
            few = await registrar(store, home.own, "h1", "h2").register_now(nodes[0])
            assert [row.stored for row in few] == [3, 3]
