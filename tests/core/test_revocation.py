"""Key rotation and revocation in the DHT: what rests on a revoked key ends at once, and nothing else does."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.core.challenge import Address
from ioc_node.core.dht import DhtMachine
from ioc_node.core.events import (
    AnnounceStarted,
    GetReport,
    GetStarted,
    HoldersReport,
    HoldersStarted,
    JoinStarted,
    KeyRevoked,
    PeerLost,
    PingStarted,
    PutReport,
    PutStarted,
    RecordDropped,
)
from ioc_node.core.revocations import Revocations
from ioc_node.core.trust import Ended
from ioc_wire import dht as wire
from ioc_wire.authority import Revocation, RevocationNews
from ioc_wire.cid import self_certified_prefix
from ioc_wire.errors import (
    NotEntitled,
    NotFound,
    OlderVersion,
    OverQuota,
    PrefixNotCovered,
    Revoked,
    WireError,
)
from ioc_wire.identity import node_id_of
from ioc_wire.signed import Signed, public_bytes, sign
from tests.core.staple import UNIX, Network, delegate, key_of, record_of

ROOT, REGION, OLD, NEW = key_of("root"), key_of("region"), key_of("old"), key_of("new")
ROOTS = (public_bytes(ROOT),)
REGION_LINK = delegate(ROOT, REGION, "cn.r3301", "regional")
NAMED = "ioc:cn.r3301.20004/ai/3301/az1/h1"
OWN = f"ioc:{self_certified_prefix(public_bytes(OLD))}/ai/3301/az1/h1"
Chain = tuple[Signed, ...]


def chain_to(key: Ed25519PrivateKey) -> Chain:
    return (REGION_LINK, delegate(REGION, key, "cn.r3301.20004", "provider"))


def revocation(
    revoker: Ed25519PrivateKey, subject: Ed25519PrivateKey, chain: Chain = (), *, until: int = UNIX + 86400
) -> RevocationNews:
    return RevocationNews(sign(revoker, Revocation(public_bytes(subject), UNIX, until, "stolen")), chain)


class Story:
    """A small network; `bob` and `carol` are servers, `alice` asks."""

    def __init__(self, *, certified: bool) -> None:
        self.net = Network()
        self.certified = certified
        self.bob = self.add("bob", "regional")
        self.carol = self.add("carol", "regional")
        self.alice = self.add("alice", "consumer", server=False)
        self.numbers = iter(range(100, 1000))
        for who in (self.carol, self.alice):
            self.net.result(who, JoinStarted(next(self.numbers), (self.bob,)))
        self.net.run(5)

    def add(self, name: str, role: str, *, server: bool = True, chain: Chain = ()) -> Address:
        chain = chain or (delegate(ROOT, key_of(name), "", role),)  # type: ignore[arg-type]
        rule = {"admission": "certified", "chain": chain} if self.certified else {}
        return self.net.add(name, server=server, roots=ROOTS, **rule)  # type: ignore[arg-type]

    def machine(self, who: Address) -> DhtMachine:
        return self.net.nodes[who]

    def put(self, key: Ed25519PrivateKey, cid: str, version: int, chain: Chain = ()) -> list[WireError]:
        report = self.net.result(
            self.alice, PutStarted(next(self.numbers), record_of(key, cid, version), chain)
        )
        assert isinstance(report, PutReport)
        return [fault for _, fault in report.refused if isinstance(fault, WireError)]

    def get(self, cid: str) -> GetReport | None:
        found = self.net.result(self.alice, GetStarted(next(self.numbers), cid, answers=2))
        assert isinstance(found, (GetReport, NotFound))
        return found if isinstance(found, GetReport) else None

    def revoke(self, news: RevocationNews) -> list[Ended]:
        """Everybody learns of it; the alternation of `Trust` and event is the node's."""
        all_ended = []
        for address, node in self.net.nodes.items():
            ended = node.trust.take(news, unix=UNIX)
            assert ended is not None
            self.net.do(address, KeyRevoked(ended))
            all_ended.append(ended)
        return all_ended


@pytest.mark.parametrize("certified", [False, True])
def test_rotation_by_the_issuer(certified: bool) -> None:
    story = Story(certified=certified)
    assert story.put(OLD, NAMED, 5, chain_to(OLD)) == []
    assert story.put(NEW, NAMED, 6, chain_to(NEW)) == []
    assert all(isinstance(fault, OlderVersion) for fault in story.put(OLD, NAMED, 5, chain_to(OLD)))
    found = story.get(NAMED)
    assert found is not None
    assert found.record.key == public_bytes(NEW)
    assert story.put(OLD, NAMED, 99, chain_to(OLD)) == [], "the thief of the old key outbids"
    story.revoke(revocation(REGION, OLD, chain_to(OLD)))
    assert story.get(NAMED) is None
    faults = story.put(OLD, NAMED, 100, chain_to(OLD))
    assert len(faults) == 2
    assert all(isinstance(fault, Revoked) for fault in faults)
    assert story.put(NEW, NAMED, 7, chain_to(NEW)) == []
    found = story.get(NAMED)
    assert found is not None
    assert found.resource.version == 7


def test_records_are_dropped_where_they_are_held() -> None:
    story = Story(certified=True)
    story.put(OLD, NAMED, 5, chain_to(OLD))
    other = "ioc:cn.r3301.20004/ai/3301/az1/h2"
    story.put(NEW, other, 1, chain_to(NEW))
    assert len(story.machine(story.bob).store) == 2
    story.net.effects.clear()
    story.revoke(revocation(ROOT, OLD))
    assert len(story.machine(story.bob).store) == 1
    dropped = [effect for _, effect in story.net.effects if isinstance(effect, RecordDropped)]
    assert len(dropped) == 2
    assert story.get(other) is not None


def test_revoking_a_region_ends_what_it_granted() -> None:
    story = Story(certified=True)
    story.put(OLD, NAMED, 1, chain_to(OLD))
    dave = story.add(
        "dave", "", chain=(REGION_LINK, delegate(REGION, key_of("dave"), "cn.r3301.20005", "provider"))
    )
    story.net.result(dave, JoinStarted(1, (story.bob,)))
    dave_id = story.machine(dave).node_id
    assert dave_id in story.machine(story.bob).table
    ended = story.revoke(revocation(ROOT, REGION))
    assert ended[0].keys == {public_bytes(REGION), public_bytes(key_of("dave"))}
    assert dave_id not in story.machine(story.bob).table
    assert story.machine(story.bob).sessions.with_node(dave_id, story.net.now) is None
    assert len(story.machine(story.bob).store) == 0
    assert all(isinstance(fault, Revoked) for fault in story.put(OLD, NAMED, 2, chain_to(OLD)))


def test_an_issuer_cannot_revoke_what_others_granted() -> None:
    """A region delegates something to bob's key, which bob never asked for, and revokes it."""
    story = Story(certified=True)
    trap = (REGION_LINK, delegate(REGION, key_of("bob"), "cn.r3301.66666", "consumer"))
    with pytest.raises(NotEntitled):
        story.machine(story.alice).trust.take(revocation(REGION, key_of("bob"), chain_to(OLD)), unix=UNIX)
    for node in story.net.nodes.values():
        node.trust.learn(trap, unix=UNIX)
    assert all(not ended.keys for ended in story.revoke(revocation(REGION, key_of("bob"), trap)))
    story.put(OLD, NAMED, 1, chain_to(OLD))
    assert len(story.machine(story.bob).store) == 1, "bob still takes part"
    assert not story.machine(story.alice).trust.has_ended(
        public_bytes(key_of("bob")), (delegate(ROOT, key_of("bob"), "", "regional"),)
    )


def test_sessions_end_and_none_begin() -> None:
    story = Story(certified=True)
    carol_id = node_id_of(public_bytes(key_of("carol")))
    bob = story.machine(story.bob)
    assert carol_id in bob.table
    assert bob.sessions.with_node(carol_id, story.net.now) is not None
    story.net.effects.clear()
    story.revoke(revocation(ROOT, key_of("carol")))
    assert bob.sessions.with_node(carol_id, story.net.now) is None
    assert carol_id not in bob.table
    assert any(at == story.bob and isinstance(effect, PeerLost) for at, effect in story.net.effects)
    for who, whom in ((story.carol, story.bob), (story.bob, story.carol)):
        fault = story.net.result(who, PingStarted(next(story.numbers), whom, None))
        assert isinstance(fault, Revoked), fault
    story.net.run(120)
    assert carol_id not in bob.table
    assert carol_id not in story.machine(story.alice).table


def test_a_server_that_is_not_admitted_any_more_leaves_the_table() -> None:
    """Carol's revocation came while there was no session with her: she is found out when she is asked."""
    story = Story(certified=True)
    carol = public_bytes(key_of("carol"))
    alice = story.machine(story.alice)
    assert node_id_of(carol) in alice.table
    alice.trust.revoke(carol)
    alice.sessions.drop_node(node_id_of(carol))
    story.net.result(story.alice, PingStarted(next(story.numbers), story.carol, node_id_of(carol)))
    assert node_id_of(carol) not in alice.table


def test_announcements_of_a_revoked_holder_end() -> None:
    story = Story(certified=False)
    blob = bytes(32)
    number = iter(range(1, 50))

    def announce(key: Ed25519PrivateKey) -> list[object]:
        holder = sign(key, wire.HolderRecord(blob, "10.0.0.1", 4000, UNIX, UNIX + 60))
        report = story.net.result(story.alice, AnnounceStarted(next(number), holder))
        assert isinstance(report, PutReport)
        return [fault for _, fault in report.refused]

    assert announce(OLD) == announce(NEW) == []
    story.revoke(revocation(OLD, OLD))
    found = story.net.result(story.alice, HoldersStarted(next(number), blob))
    assert isinstance(found, HoldersReport)
    assert [key for key, _ in found.holders] == [public_bytes(NEW)]
    assert all(isinstance(fault, Revoked) for fault in announce(OLD))


def test_rotation_of_a_self_certified_prefix() -> None:
    story = Story(certified=False)
    prefix = self_certified_prefix(public_bytes(OLD))
    endorsed = (delegate(OLD, NEW, prefix, "provider"),)
    assert story.put(OLD, OWN, 1) == []
    faults = story.put(NEW, OWN, 2)
    assert faults
    assert all(isinstance(fault, PrefixNotCovered) for fault in faults)
    assert story.put(NEW, OWN, 2, endorsed) == []
    found = story.get(OWN)
    assert found is not None
    assert (found.record.key, found.chain) == (public_bytes(NEW), endorsed)
    story.revoke(revocation(OLD, NEW, endorsed))
    assert story.get(OWN) is None
    assert story.put(OLD, OWN, 3) == [], "the name stays its owner's"
    story.revoke(revocation(OLD, OLD))
    assert story.get(OWN) is None


def test_a_certified_network_knows_no_endorsements() -> None:
    story = Story(certified=True)
    endorsed = (delegate(OLD, NEW, self_certified_prefix(public_bytes(OLD)), "provider"),)
    assert story.net.result(
        story.alice, PutStarted(next(story.numbers), record_of(NEW, OWN, 1), endorsed)
    ).__class__.__name__ in ("BrokenChain", "PutReport")
    assert len(story.machine(story.bob).store) == 0


# -- the table


def table_of(*, certified: bool = True, **bounds: int) -> Revocations:
    return Revocations(roots=ROOTS, certified=certified, **bounds)


def test_each_is_remembered_until_its_end() -> None:
    table = table_of()
    assert table.take(revocation(REGION, OLD, chain_to(OLD)), unix=UNIX) is not None
    assert table.take(revocation(REGION, OLD, chain_to(OLD)), unix=UNIX) is None
    assert table.take(revocation(ROOT, NEW, until=UNIX + 99_000), unix=UNIX) is not None
    assert (len(table), len(table.ended), table.whole) == (2, 1, {public_bytes(NEW)})
    assert table.expire(unix=UNIX + 86_400 + 300) == []
    assert len(table.expire(unix=UNIX + 86_400 + 301)) == 1
    assert (len(table), table.ended) == (1, set())
    assert table.expire(unix=UNIX + 99_301)
    assert table.whole == set()


def test_the_later_end_counts_in_whatever_order_they_come() -> None:
    news = [revocation(ROOT, OLD, until=UNIX + until) for until in (100, 300, 200)]
    digests = set()
    for order in (news, news[::-1]):
        table = table_of()
        for one in order:
            table.take(one, unix=UNIX)
        digests.add(table.digest())
        assert table.news() == [news[1]]
        assert table.news([b"unknown"]) == []
    assert len(digests) == 1
    assert digests != {table_of().digest()}


def test_shares_are_bounded_and_a_root_key_has_the_rest() -> None:
    table = table_of(revocations_max=3, per_issuer_max=1)
    keys = [key_of(f"k{number}") for number in range(4)]
    table.take(revocation(REGION, keys[0], chain_to(keys[0])), unix=UNIX)
    with pytest.raises(OverQuota, match="1 revocations of this revoker"):
        table.take(revocation(REGION, keys[1], chain_to(keys[1])), unix=UNIX)
    for key in keys[:2]:
        table.take(revocation(ROOT, key), unix=UNIX)
    with pytest.raises(OverQuota, match="3 revocations are remembered"):
        table.take(revocation(ROOT, keys[3]), unix=UNIX)
    assert len(table) == 3
    table.expire(unix=UNIX + 90_000)
    assert table.take(revocation(ROOT, keys[3], until=UNIX + 99_000), unix=UNIX + 90_000)


def test_keys_that_revoke_themselves_share_one_share() -> None:
    table = table_of(certified=False, per_issuer_max=2)
    keys = [key_of(f"k{number}") for number in range(3)]
    for key in keys[:2]:
        table.take(revocation(key, key), unix=UNIX)
    with pytest.raises(OverQuota):
        table.take(revocation(keys[2], keys[2]), unix=UNIX)
    assert table.take(revocation(ROOT, keys[2]), unix=UNIX)
