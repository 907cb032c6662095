"""What a DHT server holds for others survives a restart of the server, and nothing else does."""

import time
from pathlib import Path

import trio
import trio.testing

from ioc_node.core.events import RecordDropped, RecordStored
from ioc_node.runtime.dht import Dht, open_dht
from ioc_node.runtime.record_shelf import RecordShelf
from ioc_node.runtime.store import open_store
from ioc_wire.authority import Delegation, chain_hash
from ioc_wire.cid import cid_key
from ioc_wire.signed import public_bytes, sign
from tests.runtime.dht_nodes import dht_options, key_of, own_cid, record_of

PROVIDER = key_of("provider")
CIDS = tuple(own_cid(PROVIDER, f"h{number}") for number in range(100))
ROOT = key_of("root")
ROOTS = frozenset({public_bytes(ROOT)})


async def _held(dht: Dht, count: int) -> None:
    with trio.fail_after(5):
        while dht.counters()["records"] < count:
            await trio.sleep(0.01)


async def test_a_restarted_server_still_holds_its_records(tmp_path: Path) -> None:
    with open_store(tmp_path / "node.db") as store:
        async with open_dht(**dht_options("alice", store=RecordShelf(store))) as alice:
            for version in (1, 2):
                for cid in CIDS:
                    await alice.put(record_of(PROVIDER, cid, version))
            await trio.testing.wait_all_tasks_blocked(0.01)
    with open_store(tmp_path / "node.db") as store:
        shelf = RecordShelf(store)
        writes = store.fetch("SELECT total_changes()")[0][0]
        async with (
            open_dht(**dht_options("alice", store=shelf)) as alice,
            open_dht(**dht_options("carol", server=False)) as carol,
        ):
            await _held(alice, len(CIDS))
            assert await carol.join([alice.address]) == 1
            for cid in CIDS:
                assert (await carol.get(cid)).resource.version == 2
        assert store.fetch("SELECT total_changes()")[0][0] == writes, "what was read is not written again"


async def test_a_certified_record_comes_back_with_its_chain(tmp_path: Path) -> None:
    now = int(time.time())
    prefix = "cn.r3301.20004"
    chain = (sign(ROOT, Delegation(public_bytes(PROVIDER), prefix, ("provider",), now - 60, now + 3600)),)
    certified = {"admission": "certified", "roots": ROOTS, "chain": chain, "key": PROVIDER}
    cids = [f"ioc:{prefix}/gen/3301/az1/h{number}" for number in range(3)]
    with open_store(tmp_path / "node.db") as store:
        async with open_dht(**dht_options("alice", store=RecordShelf(store), **certified)) as alice:
            for cid in cids:
                await alice.put(record_of(PROVIDER, cid), chain)
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert store.fetch("SELECT name FROM dht_chains") == [(chain_hash(chain),)]
        async with open_dht(**dht_options("alice", store=RecordShelf(store), **certified)) as alice:
            await _held(alice, len(cids))
            assert (await alice.get(cids[2])).chain == chain


async def test_dropped_expired_and_damaged_rows_do_not_come_back(tmp_path: Path) -> None:
    now = time.time()
    with open_store(tmp_path / "node.db") as store:
        shelf = RecordShelf(store, clock=lambda: now)
        for number, cid in enumerate(CIDS[:4]):
            record = record_of(PROVIDER, cid, seconds=60 if number == 1 else 3600)
            await shelf.save([RecordStored(cid_key(cid), record, ())])
        await shelf.save([RecordDropped(cid_key(CIDS[0]))])
        store.execute("UPDATE dht_records SET record = x'c1' WHERE key = ?", (cid_key(CIDS[2]),))
        now += 120
        assert list(shelf.load()) == [(record, ())]
        assert store.fetch("SELECT key FROM dht_records") == [(cid_key(CIDS[3]),)]


async def test_a_forged_row_is_not_served(tmp_path: Path) -> None:
    with open_store(tmp_path / "node.db") as store:
        shelf = RecordShelf(store)
        good, other = record_of(PROVIDER, CIDS[0]), record_of(key_of("mallory"), CIDS[1])
        await shelf.save(
            [RecordStored(cid_key(CIDS[0]), good, ()), RecordStored(cid_key(CIDS[1]), other, ())]
        )
        async with open_dht(**dht_options("alice", store=shelf)) as alice:
            await _held(alice, 1)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert alice.counters()["records"] == 1
            assert alice.counters()["rejected"] == 1
