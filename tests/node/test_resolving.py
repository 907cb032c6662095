"""Resolving on whole nodes: the DHT raced by core nodes, the local catalogue, withdrawals, watching, failures."""

import time

import msgspec
import pytest
import trio

import ioc_node
from ioc_node import api
from ioc_node.errors import PeerUnreachable
from ioc_wire.cid import cid_key, self_certified_prefix
from ioc_wire.errors import BadIdentifier, BadSignature, NotFound, OlderVersion, PrefixNotCovered, Withdrawn
from ioc_wire.market import RecordResolved
from ioc_wire.records import ResourceRecord, Tombstone, named_payload
from ioc_wire.signed import public_bytes, sign
from tests.core.staple import key_of
from tests.node.conftest import MakeHome
from tests.node.three_nodes import Three, one_line, open_three


def cid_of(nodes: Three) -> str:
    assert nodes.provider.provider is not None
    (row,) = nodes.provider.provider.registrar.resources
    return row.cid


async def lose_from_dht(nodes: Three) -> None:
    """As if everybody near the key had been taken over: no server of the DHT gives the record, or gets it again."""
    cid, key = cid_of(nodes), cid_key(cid_of(nodes))
    nodes.provider.dht.withdraw(cid)
    with trio.fail_after(10):
        missed = 0
        while missed < 20:  # a sweep that had begun may still store it, for as long as it takes
            for node in (nodes.core, nodes.provider):
                held = node.dht.machine.store.get(key, time.time())
                if held is not None:
                    node.dht.machine.store._drop(held)
                    missed = -1
            missed += 1
            await trio.sleep(0.02)


async def settled(nodes: Three) -> api.Resolved:
    """Resolve until the DHT itself answers."""
    with trio.fail_after(10):
        while True:
            found = await nodes.consumer.look_up(cid_of(nodes))
            if isinstance(found, api.Resolved) and found.source == "dht":
                return found
            await trio.sleep(0.02)


async def test_the_dht_answers_and_costs_core_nodes_nothing(make_home: MakeHome) -> None:
    async with open_three(make_home) as nodes:
        await settled(nodes)
        found = await nodes.consumer.resolve(cid_of(nodes))
        assert (found.source, found.ending, found.hops) == ("dht", "stopped", 1)
        assert {hop.round for hop in found.trace} == {1}
        answers = {hop.answer for hop in found.trace}  # the other server may be asked, and not waited for
        assert "record" in answers
        assert found.record.key == nodes.provider.identity.public_key
        with pytest.raises(BadIdentifier):
            await nodes.consumer.resolve("ioc:nonsense")


async def test_a_core_node_answers_what_the_dht_lost(make_home: MakeHome) -> None:
    async with open_three(make_home) as nodes:
        await settled(nodes)
        await lose_from_dht(nodes)
        found = await nodes.consumer.resolve(cid_of(nodes))
        assert found.source == f"core node {nodes.core.identity.name[:10]}"
        assert found.holder == nodes.core.identity.name
        assert found.record.key == nodes.provider.identity.public_key
        assert {hop.answer[:8] for hop in found.trace if hop.round} == {"not held"}
        assert [hop.answer for hop in found.trace if not hop.round] == ["record"]
        version = named_payload(found.record).version
        with pytest.raises(NotFound) as caught:
            await nodes.consumer.resolve(cid_of(nodes), version_min=version + 1)
        line = one_line(caught.value)
        assert "DHT: " in line
        assert f"core node {nodes.core.identity.name[:10]}: not found" in line


async def test_a_core_node_answers_itself_from_its_catalogue(make_home: MakeHome) -> None:
    async with open_three(make_home) as nodes:
        await settled(nodes)
        found = await nodes.core.resolve(cid_of(nodes))
        assert (found.source, found.asked, found.trace) == ("local catalogue", 0, ())
        assert found.record.key == nodes.provider.identity.public_key
        version = named_payload(found.record).version
        with pytest.raises(NotFound):
            await nodes.core.resolve(cid_of(nodes), version_min=version + 1)


async def test_a_withdrawn_identifier_is_said_to_be_by_all(make_home: MakeHome) -> None:
    async with open_three(make_home) as nodes:
        record = named_payload((await settled(nodes)).record)
        now = int(time.time())
        stone = sign(nodes.provider.identity.key, Tombstone(record.cid, record.version + 1, now, now + 3600))
        async with nodes.consumer.watch(record.cid, version=record.version) as changes:
            await nodes.provider.dht.put(stone)
            with trio.fail_after(5):
                assert (await anext(changes)).record == stone
        for node in (nodes.consumer, nodes.core, nodes.provider):
            with pytest.raises(Withdrawn, match=f"version {record.version + 1}"):
                await node.resolve(record.cid)
        failed = await nodes.consumer.look_up(record.cid)
        assert isinstance(failed, api.Unresolved)
        assert failed.ending == "stopped"
        answers = {hop.answer for hop in failed.trace}  # the other server may be asked, and not waited for
        assert "tombstone" in answers
        assert answers <= {"tombstone", "no answer yet"}


async def test_the_core_node_knows_of_a_withdrawal_that_the_dht_lost(make_home: MakeHome) -> None:
    async with open_three(make_home) as nodes:
        record = named_payload((await settled(nodes)).record)
        now = int(time.time())
        stone = sign(nodes.provider.identity.key, Tombstone(record.cid, record.version + 1, now, now + 3600))
        await nodes.provider.dht.put(stone)
        for peer in nodes.consumer.dht.contacts():  # it knows no server of the DHT any more
            nodes.consumer.dht.machine.table.remove(peer.node_id)
        with pytest.raises(Withdrawn):
            await nodes.consumer.resolve(record.cid)


async def test_core_node_dead_then_everybody_dead(make_home: MakeHome) -> None:
    core_config = make_home("core", "regional")
    first = (f"127.0.0.1:{core_config.port}",)
    async with ioc_node.open_node(make_home("consumer", "consumer", bootstrap=first)) as consumer:
        async with ioc_node.open_node(make_home("provider", "provider", bootstrap=first)) as provider:
            async with ioc_node.open_node(core_config) as core:
                nodes = Three(core, provider, consumer)
                with trio.fail_after(30):
                    await consumer.wait_joined()
                    await provider.wait_joined()
                    while len(consumer.dht.contacts()) < 2:
                        await trio.sleep(0.02)
                await settled(nodes)
            with trio.fail_after(10):
                found = await consumer.resolve(cid_of(nodes))
            assert found.source == "dht"
        with trio.fail_after(15):
            failed = await consumer.look_up(cid_of(nodes))
        assert isinstance(failed, api.Unresolved)
        assert failed.trace
        assert any("did not answer" in hop.answer for hop in failed.trace)
        line = one_line(failed.fault())
        assert "DHT: " in line
        assert "core nodes: no core node can be reached" in line


async def test_a_node_that_knows_nobody_says_so(make_home: MakeHome) -> None:
    async with ioc_node.open_node(make_home("consumer", "consumer")) as consumer:
        with trio.fail_after(5), pytest.raises(PeerUnreachable, match="nobody can be asked"):
            await consumer.resolve("ioc:cn.r3301.20004/ai/3301/az1/h1")


async def test_what_a_core_node_says_is_verified(make_home: MakeHome) -> None:
    async with open_three(make_home) as nodes:
        found = await settled(nodes)
        record = msgspec.msgpack.decode(found.record.payload, type=ResourceRecord)
        check = nodes.consumer.resolver.check
        assert check(RecordResolved(found.record, ()), record.cid, 0) == record
        with pytest.raises(OlderVersion):
            check(RecordResolved(found.record, ()), record.cid, record.version + 1)
        with pytest.raises(BadIdentifier):
            check(RecordResolved(found.record, ()), f"{record.cid}x", 0)
        with pytest.raises(PrefixNotCovered):
            check(RecordResolved(sign(key_of("mallory"), record), ()), record.cid, 0)
        flipped = msgspec.structs.replace(
            found.record, payload=found.record.payload[:-1] + bytes((found.record.payload[-1] ^ 1,))
        )
        with pytest.raises(BadSignature):
            check(RecordResolved(flipped, ()), record.cid, 0)


async def test_watching_a_name_that_is_not_registered_yet(make_home: MakeHome) -> None:
    key = key_of("later")
    cid = f"ioc:{self_certified_prefix(public_bytes(key))}/ai/3301/az1/h1"
    async with open_three(make_home) as nodes:
        record = named_payload((await settled(nodes)).record)
        assert isinstance(record, ResourceRecord)
        now = int(time.time())
        async with nodes.consumer.watch(cid) as changes:
            later = msgspec.structs.replace(record, cid=cid, version=7, issued=now, expires=now + 600)
            await nodes.core.dht.put(sign(key, later))
            with trio.fail_after(5):
                assert (await anext(changes)).resource == later
