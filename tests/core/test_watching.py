"""Watching an identifier in a network in memory: pushes, lost pushes, forged ones, bounds, clients, restarts."""

import pytest

from ioc_node.core import watches
from ioc_node.core.challenge import Address
from ioc_node.core.events import (
    GetReport,
    GetStarted,
    JoinStarted,
    OperationCancelled,
    PutReport,
    PutStarted,
    RecordChanged,
    RecordsRestored,
    Trace,
    WatchStarted,
)
from ioc_node.core.watches import WATCHES_PER_PEER_MAX
from ioc_node.core.watching import RENEW_SECONDS, WATCH_HOLDERS, WATCH_SECONDS
from ioc_wire import dht as wire
from ioc_wire.authority import chain_hash
from ioc_wire.cid import cid_key, self_certified_prefix
from ioc_wire.errors import BadIdentifier, NotFound, OverQuota, Withdrawn, error_of
from ioc_wire.records import Tombstone
from ioc_wire.signed import Signed, public_bytes, sign
from tests.core.staple import UNIX, Network, delegate, key_of, record_of
from tests.core.test_dht_network import grow, nearest

PROVIDER = key_of("provider")
OWN = f"ioc:{self_certified_prefix(public_bytes(PROVIDER))}/ai/3301/az1"
CID = f"{OWN}/h1"
WATCH = 7


def tombstone_of(version: int, *, issued: int = UNIX, cid: str = CID) -> Signed:
    return sign(PROVIDER, Tombstone(cid=cid, version=version, issued=issued, expires=issued + 86400))


def put(net: Network, address: Address, record: Signed) -> None:
    report = net.result(address, PutStarted(2, record, ()))
    assert isinstance(report, PutReport)
    assert report.stored


def told(net: Network, address: Address, number: int = WATCH) -> list[RecordChanged]:
    """What a node was told so far."""
    return [
        effect
        for at, effect in net.effects
        if at == address and isinstance(effect, RecordChanged) and effect.operation == number
    ]


def versions(net: Network, address: Address, number: int = WATCH) -> list[int]:
    return [change.resource.version for change in told(net, address, number)]


def join_client(net: Network, nodes: list[Address], name: str = "client") -> Address:
    client = net.add(name, server=False)
    net.result(client, JoinStarted(1, (nodes[0],)))
    net.run(30)
    return client


def watching_at(net: Network, nodes: list[Address]) -> list[Address]:
    return [address for address in nodes if len(net.nodes[address].watches)]


def test_a_new_version_is_pushed_and_told_once_to_a_client() -> None:
    net = Network()
    nodes = grow(net, 24)
    client = join_client(net, nodes)
    put(net, nodes[3], record_of(PROVIDER, CID, 1))
    net.do(client, WatchStarted(WATCH, CID))
    net.run(1)
    assert versions(net, client) == [1], "what is there already is told at once"
    assert len(watching_at(net, nodes)) == WATCH_HOLDERS
    began = net.now
    net.do(nodes[5], PutStarted(2, record_of(PROVIDER, CID, 2), ()))
    while versions(net, client) != [1, 2]:
        assert net.step(began + 5)
    assert net.now - began < 3 * net.delay, "one datagram to the holder, one to the watcher"
    net.run(5)
    assert versions(net, client) == [1, 2], f"{WATCH_HOLDERS} holders told it, the reader hears it once"
    put(net, nodes[6], record_of(PROVIDER, CID, 2, issued=UNIX + 60))
    net.run(5)
    assert versions(net, client) == [1, 2], "signed anew is not a new version"
    assert net.nodes[client].exchange.timed_out == 0


def test_nothing_older_is_told_and_a_known_version_is_not_repeated() -> None:
    net = Network()
    nodes = grow(net, 8)
    put(net, nodes[0], record_of(PROVIDER, CID, 5))
    client = join_client(net, nodes)
    net.do(client, WatchStarted(WATCH, CID, 5))
    net.run(400)
    assert versions(net, client) == []
    put(net, nodes[0], record_of(PROVIDER, CID, 9))
    net.run(2)
    assert versions(net, client) == [9]


def test_a_push_that_got_lost_is_healed_by_the_next_renewal() -> None:
    net = Network()
    nodes = grow(net, 8)
    client = join_client(net, nodes)
    put(net, nodes[0], record_of(PROVIDER, CID, 1))
    net.do(client, WatchStarted(WATCH, CID))
    net.run(60)
    net.on_wire = lambda data, source, target: [] if client in (source, target) else [data]
    put(net, nodes[1], record_of(PROVIDER, CID, 2))
    net.run(20)
    assert versions(net, client) == [1]
    assert not watching_at(net, nodes), "who does not answer is forgotten"
    net.on_wire = lambda data, source, target: [data]
    net.run(RENEW_SECONDS * 1.2)
    assert versions(net, client) == [1, 2]
    put(net, nodes[2], record_of(PROVIDER, CID, 3))
    net.run(1)
    assert versions(net, client) == [1, 2, 3], "and it is watched again"


def test_a_record_that_does_not_exist_yet_can_be_watched_by_a_server() -> None:
    net = Network()
    nodes = grow(net, 6)
    net.do(nodes[4], WatchStarted(WATCH, CID))
    net.run(5)
    assert versions(net, nodes[4]) == []
    put(net, nodes[1], record_of(PROVIDER, CID, 1))
    net.run(1)
    assert versions(net, nodes[4]) == [1]


def test_withdrawing_is_pushed_and_ends_a_get() -> None:
    net = Network()
    nodes = grow(net, 12)
    client = join_client(net, nodes)
    put(net, nodes[0], record_of(PROVIDER, CID, 3))
    net.do(client, WatchStarted(WATCH, CID))
    net.run(1)
    put(net, nodes[1], tombstone_of(3, issued=UNIX + 1))
    net.run(1)
    assert [type(change.resource).__name__ for change in told(net, client)] == ["ResourceRecord", "Tombstone"]
    for reader in (client, nodes[7]):
        trace = Trace()
        fault = net.result(reader, GetStarted(3, CID, trace=trace))
        assert isinstance(fault, Withdrawn)
        assert "version 3" in str(fault)
        assert "2027-01-15" in str(fault), "since when"
        assert trace.ending == "stopped"
    missing = net.result(client, GetStarted(3, CID, min_version=4))
    assert isinstance(missing, NotFound), "a newer one than the tombstone was asked for"
    put(net, nodes[2], record_of(PROVIDER, CID, 4))
    net.run(1)
    assert versions(net, client) == [3, 3, 4], "a later version ends the withdrawal"
    assert isinstance(net.result(client, GetStarted(3, CID)), GetReport)


def test_a_get_of_several_answers_corrects_holders_that_missed_the_tombstone() -> None:
    net = Network()
    nodes = grow(net, 5)
    put(net, nodes[0], record_of(PROVIDER, CID, 1))
    behind = nodes[1]
    net.on_wire = lambda data, source, target: [] if behind in (source, target) else [data]
    put(net, nodes[0], tombstone_of(2))
    net.on_wire = lambda data, source, target: [data]
    net.run(60)  # whoever was lost is found again
    client = join_client(net, nodes)
    assert isinstance(net.result(client, GetStarted(3, CID, answers=5)), Withdrawn)
    net.run(2)
    held = net.nodes[behind].store.get(cid_key(CID), UNIX + net.now)
    assert held is not None
    assert held.signed.kind == Tombstone.kind


def test_three_answers_cost_one_round_trip_and_three_questions() -> None:
    net = Network()
    nodes = grow(net, 30)
    put(net, nodes[0], record_of(PROVIDER, CID, 1))
    client = join_client(net, nodes)
    sent = len(net.wire)
    report = net.result(client, GetStarted(3, CID, answers=3))
    assert isinstance(report, GetReport)
    assert report.seconds == pytest.approx(2 * net.delay)
    assert report.queried == 3
    assert len(net.wire) - sent == 6


def test_a_slow_first_server_shows_as_a_hedge_in_the_trace() -> None:
    net = Network()
    nodes = grow(net, 12)
    put(net, nodes[0], record_of(PROVIDER, CID, 1))
    client = join_client(net, nodes)
    first = net.result(client, GetStarted(3, CID))
    assert isinstance(first, GetReport)
    slow = first.holder.address
    net.on_wire = lambda data, source, target: [] if source == slow else [data]
    for _ in range(12):  # until the slow one is the quickest known
        trace = Trace()
        report = net.result(client, GetStarted(3, CID, trace=trace))
        assert isinstance(report, GetReport)
        if trace.hedged is not None:
            break
    assert trace.hedged is not None
    assert [hop.contact.address for hop in trace.hops if hop.outcome == "no answer yet"].count(slow) == 1
    assert report.queried == len(trace.hops)


def test_a_cancelled_watch_is_forgotten_by_its_holders() -> None:
    net = Network()
    nodes = grow(net, 8)
    client = join_client(net, nodes)
    net.do(client, WatchStarted(WATCH, CID))
    net.run(1)
    assert len(watching_at(net, nodes)) == WATCH_HOLDERS
    net.do(client, OperationCancelled(WATCH))
    net.run(1)
    assert watching_at(net, nodes) == []
    put(net, nodes[0], record_of(PROVIDER, CID, 1))
    net.run(300)
    assert versions(net, client) == []
    assert net.nodes[client].operations == {}
    assert net.nodes[client].watches.own() == 0


def test_a_watch_expires_when_the_watcher_is_gone() -> None:
    net = Network()
    nodes = grow(net, 6)
    client = join_client(net, nodes)
    net.do(client, WatchStarted(WATCH, CID))
    net.run(1)
    del net.nodes[client]
    net.run(WATCH_SECONDS + 1)
    other = join_client(net, nodes, "other")
    net.do(other, WatchStarted(WATCH, f"{OWN}/another"))
    net.run(1)
    put(net, nodes[0], record_of(PROVIDER, CID, 1))
    net.run(10)
    assert all(set(net.nodes[a].watches._per_peer) <= {net.nodes[other].node_id} for a in nodes)


def test_holders_that_restart_or_die_are_replaced() -> None:
    net = Network()
    nodes = grow(net, 16)
    client = join_client(net, nodes)
    put(net, nodes[0], record_of(PROVIDER, CID, 1))
    net.do(client, WatchStarted(WATCH, CID))
    net.run(1)
    for address in watching_at(net, nodes):
        del net.nodes[address]
    living = [address for address in nodes if address in net.nodes]
    net.run(RENEW_SECONDS * 1.2)
    assert len(watching_at(net, living)) == WATCH_HOLDERS
    put(net, living[0], record_of(PROVIDER, CID, 2))
    net.run(2)
    assert versions(net, client) == [1, 2]


def test_a_restarted_holder_tells_again_after_the_renewal() -> None:
    net = Network()
    nodes = grow(net, 1)
    client = join_client(net, nodes)
    put(net, nodes[0], record_of(PROVIDER, CID, 1))
    net.do(client, WatchStarted(WATCH, CID))
    net.run(1)
    del net.nodes[nodes[0]]
    net.add("node0", address=nodes[0])
    net.do(nodes[0], RecordsRestored(((record_of(PROVIDER, CID, 2), ()),)))
    net.run(RENEW_SECONDS * 2.5)
    assert versions(net, client) == [1, 2]


def changed(
    net: Network, source: Address, target: Address, record: Signed, name: bytes | None = None
) -> object:
    """Have `source` push a record to `target` on its own account; returns the answer."""
    answers: list[object] = []
    node = net.nodes[source]
    out: list[object] = []
    number = node.exchange.number()
    message = wire.Changed(number, cid_key(CID), record, name)
    node.exchange.ask(
        number,
        message,
        net.nodes[target].node_id,
        target,
        lambda answer, request, now, out: answers.append(answer),
        net.now,
        out,
    )
    for effect in out:
        net.send(effect.data, source, effect.address)  # type: ignore[attr-defined]
    net.run(1)
    (answer,) = answers
    return error_of(answer.code, answer.detail) if isinstance(answer, wire.Refusal) else answer


def test_forged_pushes_and_pushes_of_strangers_are_refused() -> None:
    net = Network()
    nodes = grow(net, 12)
    client = join_client(net, nodes)
    put(net, nodes[0], record_of(PROVIDER, CID, 1))
    net.do(client, WatchStarted(WATCH, CID))
    net.run(30)
    holders = watching_at(net, nodes)
    stranger = next(address for address in nodes if address not in holders)
    assert isinstance(changed(net, stranger, client, record_of(PROVIDER, CID, 9)), NotFound)
    forged = record_of(key_of("mallory"), CID, 9)
    rejected = net.nodes[client].rejected
    assert not isinstance(changed(net, holders[0], client, forged), wire.Stored)
    assert isinstance(changed(net, holders[1], client, record_of(PROVIDER, f"{OWN}/h2", 9)), BadIdentifier)
    assert net.nodes[client].rejected == rejected + 2
    assert isinstance(changed(net, holders[0], client, record_of(PROVIDER, CID, 9)), NotFound), (
        "a liar was replaced"
    )
    assert versions(net, client) == [1]
    others = [address for address in watching_at(net, nodes) if address not in holders]
    assert len(others) == 2
    put(net, nodes[0], record_of(PROVIDER, CID, 2))
    net.run(1)
    assert versions(net, client) == [1, 2]


def test_a_chain_that_the_watcher_does_not_know_is_fetched_from_the_teller() -> None:
    root = key_of("root")
    roots = (public_bytes(root),)
    net = Network()

    def chain(name: str, *roles: str) -> tuple[Signed, ...]:
        return (delegate(root, key_of(name), "cn", *roles),)  # type: ignore[arg-type]

    options: dict[str, object] = {"admission": "certified", "roots": roots}
    nodes = [net.add(f"core{n}", chain=chain(f"core{n}", "national"), **options) for n in range(5)]  # type: ignore[arg-type]
    client = net.add("client", server=False, chain=chain("client", "consumer"), **options)  # type: ignore[arg-type]
    for address in (*nodes[1:], client):
        net.result(address, JoinStarted(1, (nodes[0],)))
    net.run(30)
    cid = "ioc:cn.r3301.20004/ai/3301/az1/h1"
    net.do(client, WatchStarted(WATCH, cid))
    net.run(1)
    granted = chain("provider", "provider")
    report = net.result(nodes[1], PutStarted(2, record_of(PROVIDER, cid, 1), granted))
    assert isinstance(report, PutReport)
    net.run(1)
    assert [(change.resource.version, chain_hash(change.chain)) for change in told(net, client)] == [
        (1, chain_hash(granted))
    ]
    assert net.nodes[client].rejected == 0


def test_what_a_holder_keeps_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Network()
    (holder,) = grow(net, 1)
    clients = [join_client(net, [holder], f"client{number}") for number in range(5)]
    table = net.nodes[holder].watches
    sessions = [net.nodes[holder].sessions.with_node(net.nodes[c].node_id, net.now) for c in clients]

    def take(client: int, key: int, seconds: int = 300) -> None:
        session = sessions[client]
        assert session is not None
        table.take(session, wire.Watch(1, key.to_bytes(32, "big"), 0, seconds), net.now)

    for key in range(WATCHES_PER_PEER_MAX):
        take(0, key)
    with pytest.raises(OverQuota, match="this peer"):
        take(0, 10**6)
    for _ in range(10_000):
        take(0, 1)
    assert len(table) == WATCHES_PER_PEER_MAX
    assert len(table._expiries) <= 2 * WATCHES_PER_PEER_MAX + 65
    monkeypatch.setattr(watches, "WATCHES_PER_KEY_MAX", 3)
    take(1, 5)
    take(2, 5)
    with pytest.raises(OverQuota, match="this key"):
        take(3, 5)
    monkeypatch.setattr(watches, "WATCHES_MAX", len(table) + 1)
    take(3, 6)
    with pytest.raises(OverQuota, match="are kept here"):
        take(3, 7)
    take(3, 6, seconds=0)
    take(3, 7)
    net.now += 301
    take(4, 8)
    assert len(table) == 1, "what expired makes room"


def test_the_watchers_of_one_address_block_share_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Network()
    holder = net.add("holder", address=("9.9.9.1", 4000))
    table = net.nodes[holder].watches
    monkeypatch.setattr(watches, "WATCHES_PER_GROUP_MAX", 2)
    sessions = []
    for number, host in enumerate(("8.8.8.1", "8.8.8.2", "8.8.8.3", "7.7.7.7")):
        client = net.add(f"client {number}", server=False, address=(host, 4000))
        assert net.result(client, JoinStarted(1, (holder,)))
        session = net.nodes[holder].sessions.with_node(net.nodes[client].node_id, net.now)
        assert session is not None
        sessions.append(session)
    for session in sessions[:2]:
        table.take(session, wire.Watch(1, bytes(32), 0, 300), net.now)
    with pytest.raises(OverQuota, match="address block"):
        table.take(sessions[2], wire.Watch(1, bytes(32), 0, 300), net.now)
    table.take(sessions[3], wire.Watch(1, bytes(32), 0, 300), net.now)
    table.take(sessions[0], wire.Watch(1, bytes(32), 0, 0), net.now)
    table.take(sessions[2], wire.Watch(1, bytes(32), 0, 300), net.now)
    assert len(table) == 3


def test_own_watches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ioc_node.core.watching.OWN_WATCHES_MAX", 2)
    net = Network()
    nodes = grow(net, 2)
    for number in range(2):
        net.do(nodes[0], WatchStarted(20 + number, CID))
    assert isinstance(net.result(nodes[0], WatchStarted(30, CID)), OverQuota)
    assert isinstance(net.result(nodes[0], WatchStarted(31, "nonsense")), BadIdentifier)
    put(net, nodes[1], record_of(PROVIDER, CID, 1))
    net.run(1)
    assert [versions(net, nodes[0], 20 + number) for number in range(2)] == [[1], [1]]


def test_a_large_network_is_searched_for_the_holders() -> None:
    net = Network(5)
    nodes = grow(net, 60, full_max=24)
    assert not net.nodes[nodes[9]].upkeep.has_full_view()
    put(net, nodes[1], record_of(PROVIDER, CID, 1))
    net.do(nodes[9], WatchStarted(WATCH, CID))
    net.run(60)
    put(net, nodes[2], record_of(PROVIDER, CID, 2))
    net.run(1)
    assert versions(net, nodes[9]) == [1, 2]
    near = nearest(net, cid_key(CID), 8)
    assert any(net.nodes[address].node_id in near for address in watching_at(net, nodes))


def test_a_liar_among_the_first_asked_does_not_hold_up_the_others() -> None:
    """Of three asked at once one gives a forgery; a fourth is asked at once, though another is slow."""
    net = Network()
    nodes = grow(net, 12)
    put(net, nodes[0], record_of(PROVIDER, CID, 1))
    client = join_client(net, nodes)
    report = net.result(client, GetStarted(3, CID, answers=3))
    assert isinstance(report, GetReport)
    liar, silent, _ = (hop.contact.address for hop in report.trace.hops)
    for hop in report.trace.hops:  # these three are the quickest again
        net.nodes[client].exchange._round_trips[hop.contact.node_id] = (0.001, 0.0)
    store = net.nodes[liar].store
    held = store.get(cid_key(CID), UNIX + net.now)
    assert held is not None
    held.signed = record_of(key_of("mallory"), CID, 9)
    net.on_wire = lambda data, source, target: [] if source == silent else [data]
    report = net.result(client, GetStarted(3, CID, answers=3))
    assert isinstance(report, GetReport)
    assert report.seconds == pytest.approx(4 * net.delay)
    assert sorted(hop.outcome.partition(":")[0] for hop in report.trace.hops)[-4:] == [
        "record",
        "record",
        "record",
        "rejected",
    ]
