"""Peers that answer slowly, half, twice, for others, or point into nothing: the search goes on with those that are
honest, ends in bounded time where nobody is, and says why.
"""

import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import msgspec
import pytest
import trio
import trio.testing

from ioc_node.core.sessions import ATTEMPTS_MAX
from ioc_node.errors import PeerUnreachable
from ioc_node.runtime.dht import Dht, open_dht
from ioc_wire import dht as wire
from ioc_wire import limits
from ioc_wire.authority import Delegation, Role, chain_hash
from ioc_wire.codec import encode
from ioc_wire.errors import (
    BadSignature,
    BrokenChain,
    NotFound,
    PrefixNotCovered,
    RoleNotGranted,
    WireError,
)
from ioc_wire.signed import Signed, public_bytes, sign
from tests.fuzz.crafted import Initiator, Responder
from tests.runtime.dht_nodes import NETWORK, dht_options, key_of, open_dhts, own_cid, record_of
from tests.runtime.hostile import (
    CID,
    OWNER,
    Lie,
    Relay,
    bound,
    check_bounds,
    corrupt,
    fault_of,
    open_relay,
    report,
)

HOUR: Final = 3600


@asynccontextmanager
async def open_pair() -> AsyncIterator[tuple[Dht, Dht, Relay]]:
    """Alice, a client, knows only bob, through a relay; he holds the record."""
    async with (
        open_dht(**dht_options("bob")) as bob,
        open_dht(**dht_options("alice", server=False)) as alice,
        open_relay(bob) as relay,
    ):
        await alice.join([relay.address])
        await alice.put(record_of(OWNER, CID))
        yield alice, bob, relay


# -- slow, half, twice


async def test_a_slow_peer_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    """Slower than the first patience: asked again, answered more than once, and counted once."""
    async with open_pair() as (alice, _, relay):
        for delay in (0.1, 0.4):
            relay.delay = delay
            got = await alice.get(CID)
            assert got.resource.cid == CID
            assert 2 * delay <= got.seconds < 4
        assert alice.counters()["repeated"] > 0
        relay.delay = 3
        began = trio.current_time()
        assert isinstance(await fault_of(alice.get(CID)), NotFound), "too slow is silent"
        assert trio.current_time() - began < 30
        check_bounds(alice)
        assert all(number < 0 for number in alice.machine.operations), "only the machine's own go on"


@pytest.mark.parametrize("kind", [wire.WHOAREYOU, wire.ACCEPT, wire.MESSAGE])
async def test_half_an_answer_is_none(kind: int, autojump_clock: trio.testing.MockClock) -> None:
    """A truncated datagram is dropped and the request repeated; the whole answer that follows is taken."""
    async with open_dht(**dht_options("bob")) as bob, open_relay(bob) as relay:
        cut: list[int] = []

        def halve(data: bytes, to_server: bool) -> list[bytes]:
            if data[0] == kind and not to_server and len(cut) < 2:
                cut.append(len(data))
                return [data[: len(data) // 2]]
            return [data]

        relay.bend = halve
        async with open_dht(**dht_options("alice", server=False)) as alice:
            assert await alice.join([relay.address]) == 1
            assert (await alice.put(record_of(OWNER, CID))).stored
            assert (await alice.get(CID)).resource.cid == CID
            assert len(cut) == 2
            counters = alice.counters()
            assert counters["garbage"] + counters["undecryptable"] == 2
            assert counters["malformed"] == 0


async def test_half_of_everything_ends_in_bounded_time(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as (alice, _, relay):
        relay.bend = lambda data, to_server: [data if to_server else data[: len(data) // 2]]
        began = trio.current_time()
        assert isinstance(await fault_of(alice.get(CID)), NotFound)
        assert isinstance(await fault_of(alice.ping(relay.address)), PeerUnreachable)
        assert trio.current_time() - began < 30
        assert all(number < 0 for number in alice.machine.operations)


async def test_everything_twice_is_once() -> None:
    """Each request comes twice and is answered once; each answer comes twice and counts once."""
    async with open_pair() as (alice, bob, relay):
        before = bob.counters()["replayed"], alice.counters()["replayed"]
        told = len(relay.seen)
        relay.bend = lambda data, to_server: [data, data]
        for version in range(2, 12):
            assert len((await alice.put(record_of(OWNER, CID, version))).stored) == 1
            assert (await alice.get(CID)).resource.version == version
        with trio.fail_after(5):
            while True:
                messages = [to_server for data, to_server in relay.seen[told:] if data[0] == wire.MESSAGE]
                replayed = bob.counters()["replayed"] - before[0], alice.counters()["replayed"] - before[1]
                if replayed == (messages.count(True), messages.count(False)) and len(messages) >= 40:
                    break
                await trio.sleep(0.01)
        await alice.ping(relay.address)
        assert bob.counters()["handshakes_accepted"] == 2, "also of two the same HANDSHAKEs"


async def test_an_answer_that_was_asked_of_another_counts_for_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Mallory sees the numbers of alice's requests grow, and answers those that she puts to silent others."""
    async with open_dht(**dht_options("mallory")) as mallory, open_dht(**dht_options("alice")) as alice:
        await alice.join([mallory.address])
        session = mallory.machine.sessions.with_node(alice.node_id, trio.current_time())
        assert session is not None
        with await bound() as silent:
            async with trio.open_nursery() as nursery:
                reports: list[int] = []

                async def join() -> None:
                    reports.append(await alice.join([silent.getsockname()]))

                nursery.start_soon(join)
                await trio.sleep(0.05)
                for number in range(alice.machine.exchange._number - 3, alice.machine.exchange._number + 3):
                    out: list[Any] = []
                    pong = wire.encode_message(wire.Pong(number, b"\x7f\0\0\1", 1))
                    mallory.machine.sessions.send(session, pong, out)
                    mallory._driver._socket.send_nowait(out[0].data, out[0].address)
            assert reports == [0], "nobody was reached there"


# -- with someone else's signature


def other_payload(signed: Signed, **changed: Any) -> Signed:
    return msgspec.structs.replace(signed, **changed)


def lies_about_a_record() -> dict[str, Signed]:
    good, mallory = record_of(OWNER, CID, 9), key_of("mallory")
    return {
        "another's signature": other_payload(good, signature=record_of(mallory, CID, 9).signature),
        "another's key": other_payload(good, key=public_bytes(mallory)),
        "signed by another": record_of(mallory, CID, 9),
        "for another identifier": record_of(OWNER, own_cid(OWNER, "other"), 9),
        "another's own identifier": record_of(mallory, own_cid(mallory), 9),
        "changed": other_payload(good, payload=good.payload[:-1] + bytes((good.payload[-1] ^ 1,))),
        "no record": sign(
            OWNER, wire.HolderRecord(bytes(32), "h", 1, int(time.time()), int(time.time()) + 60)
        ),
        "of another time": record_of(OWNER, CID, 9, seconds=-7200),
        "key of small order": other_payload(good, key=bytes(32), signature=bytes(64)),
    }


@pytest.mark.parametrize("case", list(lies_about_a_record()))
async def test_a_lie_about_a_record_is_rejected_and_the_truth_is_found(case: str) -> None:
    """Two of three servers give the same bad record; the third the good one."""
    lied = lies_about_a_record()[case]

    def lie(request: wire.Request, honest: wire.Answer) -> wire.Answer:
        if isinstance(request, wire.Get):
            return wire.Value(request.request, lied, None, ())
        return honest

    async with open_dhts(3) as nodes, open_dht(**dht_options("alice", server=False)) as alice:
        await alice.join([nodes[0].address])
        await alice.put(record_of(OWNER, CID, 1))
        for node in nodes[:2]:
            corrupt(node, lie)
        for _ in range(5):
            got = await alice.get(CID, answers=1)
            assert (got.resource.version, got.holder.node_id) == (1, nodes[2].node_id)
        authoritative = await alice.get(CID, answers=3)
        assert authoritative.resource.version == 1
        assert alice.counters()["rejected"] >= 2
        corrupt(nodes[2], lie)
        assert isinstance(await fault_of(alice.get(CID)), NotFound), "nobody tells the truth any more"


async def test_holders_that_others_signed_are_not_told() -> None:
    blob, now = bytes(range(32)), int(time.time())
    good = sign(OWNER, wire.HolderRecord(blob, "192.0.2.1", 4000, now, now + HOUR))
    lies = (
        other_payload(good, key=public_bytes(key_of("mallory"))),
        other_payload(good, signature=bytes(64)),
        sign(OWNER, wire.HolderRecord(bytes(32), "192.0.2.2", 4000, now, now + HOUR)),
        sign(OWNER, wire.HolderRecord(blob, "192.0.2.3", 4000, now - 9 * HOUR, now - 8 * HOUR)),
    )

    def lie(request: wire.Request, honest: wire.Answer) -> wire.Answer:
        return wire.Holders(request.request, lies, 99, ()) if isinstance(request, wire.GetHolders) else honest

    async with open_dhts(2) as nodes, open_dht(**dht_options("alice", server=False)) as alice:
        await alice.join([nodes[0].address])
        for node in nodes:
            corrupt(node, lie)
        assert isinstance(await fault_of(alice.holders(blob)), NotFound)


@pytest.mark.parametrize("what", ["prekey", "accept", "handshake"])
async def test_a_handshake_with_someone_elses_signature(
    what: str, autojump_clock: trio.testing.MockClock
) -> None:
    """By hand, on a socket: a prekey or a HANDSHAKE signed by another, an ACCEPT sealed with another's keys."""
    dice = random.Random(11)
    async with open_dht(**dht_options("alice")) as alice:
        with await bound() as sock:
            if what == "handshake":
                mallory = Initiator(key_of("bob"), NETWORK, dice)
                await sock.sendto(mallory.knock(), alice.address)
                shake = mallory.handshake(
                    await sock.recv(2048), encode(wire.Opening(None, b"")), signer=key_of("mallory")
                )
                await sock.sendto(shake, alice.address)
                _, _, code = wire.decode_refused(await sock.recv(2048))
                assert code == BadSignature.code
            else:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(answer_falsely, sock, what, dice)
                    with trio.fail_after(10):
                        fault = await fault_of(alice.ping(sock.getsockname()))
                    nursery.cancel_scope.cancel()
                assert isinstance(fault, BadSignature if what == "prekey" else PeerUnreachable)
        assert len(alice.machine.sessions) == len(alice.contacts()) == 0


async def answer_falsely(sock: trio.socket.SocketType, what: str, dice: random.Random) -> None:
    bob, mallory = Responder(key_of("bob"), NETWORK, dice), Responder(key_of("mallory"), NETWORK, dice)
    inside = encode(wire.Acceptance(bytes(8), wire.FLAG_SERVER, None, b""))
    while True:
        data, address = await sock.recvfrom(2048)
        if data[0] == wire.KNOCK:
            signer = key_of("mallory") if what == "prekey" else None
            back = bob.whoareyou(data, int(time.time()) + HOUR, signer=signer)
        else:
            back = mallory.accept(data, inside)
        await sock.sendto(back, address)


# -- pointing into nothing


def contacts_at(
    dice: random.Random, address: tuple[str, int], after: bytes = bytes(32)
) -> tuple[wire.Contact, ...]:
    """A full page of invented servers, all at one address, nearer to anything than chance has it."""
    drawn = sorted(max(after, dice.randbytes(32)) for _ in range(limits.REPLICATION))
    return tuple(wire.Contact(each, wire.pack_host(address[0]), address[1]) for each in drawn)


def pointing_at(address: tuple[str, int]) -> Lie:
    dice = random.Random(12)

    def lie(request: wire.Request, honest: wire.Answer) -> wire.Answer:
        if isinstance(request, wire.FindNode):
            return wire.Nodes(request.request, contacts_at(dice, address), 1 << 40)
        if isinstance(request, wire.GetServers):
            return wire.Nodes(request.request, contacts_at(dice, address, request.after), 1 << 40)
        if isinstance(request, wire.Get):
            return wire.Value(request.request, None, None, contacts_at(dice, address)[: request.nodes_max])
        return honest

    return lie


async def test_a_liar_that_points_to_itself_thousands_of_times(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Each invented server turns out to be somebody else, so nobody enters; searches end and memory is bounded."""
    async with (
        open_dht(**dht_options("mallory")) as mallory,
        open_dht(**dht_options("bob")) as bob,
        open_dht(**dht_options("alice")) as alice,
    ):
        await bob.put(record_of(OWNER, CID))
        await alice.join([bob.address])
        corrupt(mallory, pointing_at(mallory.address))
        await alice.join([mallory.address])
        began = trio.current_time()
        found = await alice.find_node(bytes(32))
        assert {contact.node_id for contact in found.nodes} <= {mallory.node_id, bob.node_id}
        assert (await alice.get(CID)).resource.cid == CID
        assert isinstance(await fault_of(alice.get(own_cid(OWNER, "none"))), NotFound)
        report(f"three searches among invented servers: {trio.current_time() - began:.1f} s")
        await trio.sleep(HOUR)
        check_bounds(alice)
        assert len(alice.machine.sessions._attempts) < ATTEMPTS_MAX
        assert {contact.node_id for contact in alice.contacts()} == {mallory.node_id, bob.node_id}
        assert (await alice.get(CID)).resource.cid == CID


@pytest.mark.parametrize(
    "host", ["224.0.0.1", "239.1.2.3", "255.255.255.255", "0.0.0.0", "240.0.0.1", "ff02::1"]
)
async def test_nobody_is_sent_to_where_no_one_server_is(
    host: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Multicast, broadcast, unspecified, reserved: not knocked at, whoever tells of them."""
    async with open_dht(**dht_options("mallory")) as mallory, open_dht(**dht_options("alice")) as alice:
        corrupt(mallory, pointing_at((host, 4000)))
        await alice.join([mallory.address])
        await alice.find_node(bytes(32))
        await trio.sleep(HOUR)
        assert alice._driver._socket.unsent == 0
        assert alice.counters()["timed_out"] == 0
        assert len(alice.machine.upkeep._candidates) == 0


async def test_answers_of_the_wrong_kind_end_an_operation(autojump_clock: trio.testing.MockClock) -> None:
    """Every answer to every question: nothing raises, all ends."""
    given: list[object] = []
    answers = {
        wire.Pong: lambda n: wire.Pong(n, b"\1\2\3\4\5", 1),
        wire.Nodes: lambda n: wire.Nodes(n, (), 0),
        wire.Value: lambda n: wire.Value(n, None, bytes(32), ()),
        wire.Stored: wire.Stored,
        wire.Refusal: lambda n: wire.Refusal(n, 60_000, "x" * 400),
        wire.ChainValue: lambda n: wire.ChainValue(n, ()),
        wire.Holders: lambda n: wire.Holders(n, (), 0, ()),
        wire.StoredMany: lambda n: wire.StoredMany(n, (0, 1, 65_535)),
        wire.Watching: lambda n: wire.Watching(n, 1),
    }
    assert answers.keys() == set(wire.Answer.__args__)
    async with open_dhts(2) as (bob, mallory), open_dht(**dht_options("alice", server=False)) as alice:
        await alice.join([bob.address])
        for kind, build in answers.items():
            given.append(kind)
            corrupt(mallory, lambda request, honest, build=build: build(request.request))  # type: ignore[misc]
            await alice.put(record_of(OWNER, CID, len(given)))
            assert (await alice.get(CID, answers=2)).resource.version == len(given)
            await fault_of(alice.holders(bytes(32)))
            await alice.find_node(bytes(32))
            await fault_of(alice.announce(bytes(32), "192.0.2.1", 4000))
            await fault_of(alice.ping(mallory.address))
            await trio.sleep(10)
        await trio.sleep(120)
        assert len(alice.machine.operations) <= 1, "a sweep may be under way"


# -- a certified network

ROOT = key_of("root")


def grant(subject: str, prefix: str, *roles: Role) -> Signed:
    now = int(time.time())
    return sign(ROOT, Delegation(public_bytes(key_of(subject)), prefix, roles, now - HOUR, now + HOUR))


def certified(name: str, prefix: str, *roles: Role, **changed: Any) -> dict[str, Any]:
    rule: dict[str, Any] = {"admission": "certified", "roots": frozenset({public_bytes(ROOT)})}
    return dht_options(name, chain=(grant(name, prefix, *roles),), **rule, **changed)


HELD, FOREIGN = "ioc:cn.r3301.20004/ai/3301/az1/h1", "ioc:cn.r3302.20004/ai/3302/az1/h1"
CHAIN = (grant("provider", "cn.r3301.20004", "provider"),)


async def test_a_prefix_that_was_not_delegated() -> None:
    """Refused where it is put; not believed where a server gives it all the same."""
    provider = key_of("provider")
    foreign, consumer = record_of(provider, FOREIGN), (grant("consumer", "cn.r3302.20004", "consumer"),)
    refusals: list[tuple[Signed, tuple[Signed, ...], type[WireError]]] = [
        (foreign, CHAIN, PrefixNotCovered),
        (foreign, (), PrefixNotCovered),
        (record_of(key_of("consumer"), FOREIGN), consumer, PrefixNotCovered),
        (record_of(key_of("mallory"), HELD), CHAIN, PrefixNotCovered),
        (record_of(provider, own_cid(provider)), CHAIN, PrefixNotCovered),
    ]
    async with AsyncExitStack() as stack:
        bob = await stack.enter_async_context(open_dht(**certified("bob", "cn", "national")))
        client = certified("alice", "cn", "consumer", server=False)
        alice = await stack.enter_async_context(open_dht(**client))
        assert await alice.join([bob.address]) == 1
        for record, chain, fault in refusals:
            put = await alice.put(record, chain)
            assert not put.stored
            assert isinstance(put.refused[0][1], fault), put.refused
        assert (await alice.put(record_of(provider, HELD), CHAIN)).stored
        assert (await alice.get(HELD)).chain == CHAIN

        def lie(request: wire.Request, honest: wire.Answer) -> wire.Answer:
            if isinstance(request, wire.Get):
                return wire.Value(request.request, foreign, chain_hash(CHAIN), ())
            return honest

        corrupt(bob, lie)
        assert isinstance(await fault_of(alice.get(FOREIGN)), NotFound)
        assert alice.counters()["rejected"] == 1


async def test_who_has_no_right_to_be_a_member_or_a_server() -> None:
    async with open_dht(**certified("bob", "cn", "national")) as bob:
        strangers = {
            "as a server": (certified("carol", "cn", "consumer"), RoleNotGranted),
            "another's chain": (
                certified("dave", "cn", "provider") | {"key": key_of("mallory")},
                BrokenChain,
            ),
            "no chain": (certified("eve", "cn", "provider") | {"chain": ()}, BrokenChain),
        }
        for who, (options, fault) in strangers.items():
            async with open_dht(**options) as stranger:
                joined = await stranger.join_report([bob.address])
                assert isinstance(joined.failed[0][1], fault), who
        assert len(bob.machine.sessions) == len(bob.contacts()) == 0
