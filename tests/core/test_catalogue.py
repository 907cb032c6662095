"""A provider's log, its replicas, and the tree that holds both together."""

import hashlib
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ioc_node.core import catalogue as catalogue_module
from ioc_node.core.catalogue import Catalogue, CatalogueBounds, Standing
from ioc_node.core.own_catalogue import OwnCatalogue
from ioc_node.core.tree import MerkleTree
from ioc_wire.errors import (
    BrokenChain,
    Expired,
    Malformed,
    NotFound,
    OverQuota,
    PrefixNotCovered,
    Revoked,
    RoleNotGranted,
    TooLarge,
    WireError,
    WrongRoot,
)
from ioc_wire.gossip import HeadNews
from ioc_wire.market import Contact
from ioc_wire.merkle import leaf_hash, root_of
from ioc_wire.records import CatalogueEntry, Head, StatusBatch, StatusRow, entry_bytes
from ioc_wire.signed import DOMAIN, Signed, sign, signed_bytes
from tests.core.gossip_staple import ROOT, Provider, certified
from tests.core.staple import UNIX, delegate, key_of, record_of


def brought(catalogue: Catalogue, provider: Provider, *, unix: float = UNIX) -> Any:
    news = provider.news(unix)
    replica = catalogue.replica(provider.public)
    after = replica.held_seq if replica is not None else 0
    catalogue.consider(news, unix=unix)
    return catalogue.apply(provider.public, news.head, provider.own.entries_after(after), unix=unix)


def signed_by_hand(
    provider: Provider, entries: list[CatalogueEntry], seq: int = UNIX
) -> tuple[HeadNews, list[bytes]]:
    """A head and entries that no honest `OwnCatalogue` would make."""
    data = [entry_bytes(entry) for entry in entries]
    root = root_of([leaf_hash(leaf) for leaf in data])
    head = Head(seq, bytes(32), root, len(data), UNIX, UNIX + 3600)
    return HeadNews(sign(provider.key, head), provider.chain, None), data


# -- the tree

_hashes = st.integers(0, 255).map(lambda n: hashlib.sha256(bytes([n])).digest())


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.dictionaries(st.integers(0, 39), _hashes, max_size=12)), max_size=8
    )
)
def test_a_changed_tree_equals_one_made_anew(steps: list[tuple[int, dict[int, bytes]]]) -> None:
    tree, leaves = MerkleTree(), list[bytes]()
    for count, changes in steps:
        wanted = leaves[:count] + [b""] * (count - len(leaves))
        for index, leaf in changes.items():
            if index < count:
                wanted[index] = leaf
        changed = tree.changed(changes, count)
        if b"" in wanted:
            assert changed is None  # a gap
            continue
        assert changed is not None
        tree, leaves = changed, wanted
        assert tree.root == root_of(leaves)
        assert len(tree) == count


# -- the log

_steps = st.lists(
    st.lists(st.tuples(st.sampled_from(["h1", "h2", "h3", "h4", "h5"]), st.booleans()), max_size=4),
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(_steps, st.integers(0, 7))
def test_a_replica_that_follows_and_one_that_joins_late_hold_the_same(steps: Any, late: int) -> None:
    alice = Provider("alice", 20001)
    follower, latecomer = Catalogue(certified()), Catalogue(certified())
    alive: set[str] = set()
    for number, step in enumerate(steps):
        for host, put in step:
            if put:
                alice.put(host, version=number + 1)
                alive.add(host)
            else:
                assert alice.own.withdraw(alice.cid(host)) == (host in alive)
                alive.discard(host)
        brought(follower, alice, unix=UNIX + number)
        if number >= late:
            brought(latecomer, alice, unix=UNIX + number)
        assert {cid for host in alive if follower.find(cid := alice.cid(host))} == set(alice.own.records())
        assert follower.records == len(alive)
    if len(steps) > late:
        assert follower.digest() == latecomer.digest()
        replica, other = follower.replica(alice.public), latecomer.replica(alice.public)
        assert replica is not None
        assert other is not None
        slots = replica.slots_after(0)
        assert slots == other.slots_after(0)
        assert follower.entries(alice.public, slots) == latecomer.entries(alice.public, slots)
    restored = OwnCatalogue(alice.key)
    if alice.own.head is not None:
        restored.restore(alice.own.head, alice.own.entries_after(0))
        assert restored.records() == alice.own.records()


def test_heads_are_numbered_by_the_clock_and_chained() -> None:
    alice = Provider("alice", 20001)
    alice.put("h1")
    first = alice.own.commit(unix=UNIX)
    assert first is not None
    assert first.seq == UNIX
    assert alice.own.commit(unix=UNIX + 1) is None  # nothing to say
    alice.put("h2")
    second = alice.own.commit(unix=UNIX)
    assert second is not None
    assert second.seq == UNIX + 1  # in the same second
    renewed = alice.own.commit(unix=UNIX + 3 * 3600 + 2)
    assert renewed is not None
    assert renewed.slots == ()
    fresh = Provider("alice", 20001)  # started without its state
    fresh.put("h9")
    again = fresh.own.commit(unix=UNIX + 4 * 3600)
    assert again is not None
    catalogue = Catalogue(certified())
    brought(catalogue, alice, unix=UNIX + 3 * 3600 + 2)
    brought(catalogue, fresh, unix=UNIX + 4 * 3600)
    assert catalogue.find(fresh.cid("h9"))
    assert catalogue.find(fresh.cid("h1")) is None


def test_a_withdrawn_identifier_gets_its_slot_back() -> None:
    alice = Provider("alice", 20001)
    alice.put("h1", "h2")
    alice.own.withdraw(alice.cid("h1"))
    assert alice.own.slot_of(alice.cid("h1")) is None
    alice.put("h1", version=2)
    assert alice.own.slot_of(alice.cid("h1")) == 0


def test_a_stored_log_that_was_damaged_is_not_taken_up() -> None:
    alice = Provider("alice", 20001)
    alice.put("h1", "h2")
    alice.own.commit(unix=UNIX)
    head, entries = alice.own.head, alice.own.entries_after(0)
    assert head is not None
    for damaged in (
        entries[:1],
        entries[::-1],
        (entries[0], entries[1][:-1] + bytes((entries[1][-1] ^ 1,))),
        (*entries, entries[0]),
    ):
        other = OwnCatalogue(alice.key)
        with pytest.raises(WireError):
            other.restore(head, damaged)
        assert other.slots == 0


# -- heads


def test_standing_of_a_head() -> None:
    alice = Provider("alice", 20001)
    catalogue = Catalogue(certified())
    alice.put("h1")
    news = alice.news()
    assert catalogue.consider(news, unix=UNIX) is Standing.LAGGING
    catalogue.apply(alice.public, news.head, alice.own.entries_after(0), unix=UNIX)
    assert catalogue.consider(news, unix=UNIX) is Standing.KNOWN
    renewed = alice.news(UNIX + 4 * 3600)
    assert catalogue.consider(renewed, unix=UNIX + 4 * 3600) is Standing.HELD
    assert catalogue.consider(news, unix=UNIX + 4 * 3600) is Standing.KNOWN
    twin = Provider("alice", 20001)
    twin.put("h2")
    assert catalogue.consider(twin.news(UNIX + 4 * 3600), unix=UNIX + 4 * 3600) is Standing.FORKED
    assert catalogue.records == 0
    assert catalogue.consider(renewed, unix=UNIX + 4 * 3600) is Standing.KNOWN


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"chain": ()}, BrokenChain),
        ({"chain": (delegate(ROOT, key_of("bob"), "cn.r3301", "provider"),)}, BrokenChain),
        ({"chain": (delegate(ROOT, key_of("alice"), "cn.r3301", "consumer"),)}, RoleNotGranted),
        ({"chain": (delegate(key_of("bob"), key_of("alice"), "cn", "provider"),)}, BrokenChain),
        ({"contact": Contact(bytes(32), "127.0.0.1", 1)}, Malformed),
        ({"unix": UNIX + 7 * 3600}, Expired),
        ({"slots_max": 0}, TooLarge),
        ({"providers_max": 0}, OverQuota),
        ({"revoked": True}, Revoked),
    ],
)
def test_refused_heads(change: dict[str, Any], error: type[WireError]) -> None:
    alice = Provider("alice", 20001)
    alice.put("h1")
    news = alice.news()
    trust = certified()
    if "revoked" in change:
        trust.revoke(alice.public)
    bounds = {key: value for key, value in change.items() if key.endswith("_max")}
    catalogue = Catalogue(trust, bounds=CatalogueBounds(**bounds))
    sent = HeadNews(news.head, change.get("chain", news.chain), change.get("contact"))
    with pytest.raises(error):
        catalogue.consider(sent, unix=change.get("unix", UNIX))
    assert catalogue.providers() == []


# -- entries


def test_what_does_not_match_the_head_changes_nothing() -> None:
    alice = Provider("alice", 20001)
    catalogue = Catalogue(certified())
    alice.put("h1")
    brought(catalogue, alice)
    before = catalogue.digest()
    alice.put("h2", "h3")
    news = alice.news(UNIX + 1)
    catalogue.consider(news, unix=UNIX + 1)
    new = alice.own.entries_after(UNIX)
    wrong: list[tuple[tuple[bytes, ...], type[WireError]]] = [
        ((), WrongRoot),
        (new[:1], WrongRoot),
        ((new[0], new[0]), WrongRoot),
        ((new[0], b"\x94garbage"), Malformed),
        ((new[0], entry_bytes(CatalogueEntry(7, UNIX, alice.cid("h3"), None))), Malformed),
        ((new[0], entry_bytes(CatalogueEntry(2, UNIX + 9, alice.cid("h3"), None))), Malformed),
        ((new[0], entry_bytes(CatalogueEntry(2, UNIX + 1, alice.cid("h3"), None))), WrongRoot),
    ]
    for entries, error in wrong:
        with pytest.raises(error):
            catalogue.apply(alice.public, news.head, entries, unix=UNIX + 1)
        assert (catalogue.digest(), catalogue.records) == (before, 1)
    with pytest.raises(NotFound):
        catalogue.apply(Provider("bob", 20002).public, news.head, new, unix=UNIX)
    assert catalogue.apply(alice.public, news.head, new, unix=UNIX + 1).slots == (1, 2)
    assert catalogue.records == 3


def test_entries_that_a_head_vouches_for_but_its_provider_does_not_own_are_left_out() -> None:
    alice, bob = Provider("alice", 20001), Provider("bob", 20002)
    good = record_of(alice.key, alice.cid("h1"))
    news, entries = signed_by_hand(
        alice,
        [
            CatalogueEntry(0, UNIX, alice.cid("h1"), good),
            CatalogueEntry(1, UNIX, bob.cid("h1"), record_of(alice.key, bob.cid("h1"))),
            CatalogueEntry(2, UNIX, bob.cid("h2"), record_of(bob.key, bob.cid("h2"))),
            CatalogueEntry(3, UNIX, alice.cid("h4"), record_of(alice.key, alice.cid("h5"))),
            CatalogueEntry(4, UNIX, "ioc:nonsense", good),
            CatalogueEntry(5, UNIX, alice.cid("h1"), good),
            CatalogueEntry(
                6, UNIX, alice.cid("h6"), Signed("ioc/1", "record", b"?", alice.public, bytes(64))
            ),
            CatalogueEntry(7, UNIX, alice.cid("h7"), record_of(alice.key, alice.cid("h7"))),
        ],
    )
    catalogue = Catalogue(certified())
    catalogue.consider(news, unix=UNIX)
    applied = catalogue.apply(alice.public, news.head, entries, unix=UNIX)
    assert [what for what, _ in applied.refused] == [f"slot {slot}" for slot in range(1, 7)]
    assert isinstance(applied.refused[0].error, PrefixNotCovered)
    assert catalogue.records == 2
    assert catalogue.find(alice.cid("h7"))
    assert catalogue.find(bob.cid("h1")) is None


def test_all_entries_together_are_bounded() -> None:
    alice, bob = Provider("alice", 20001), Provider("bob", 20002)
    catalogue = Catalogue(certified(), bounds=CatalogueBounds(entries_max=3))
    alice.put("h1", "h2")
    bob.put("h1", "h2")
    brought(catalogue, alice)
    with pytest.raises(OverQuota):
        brought(catalogue, bob)
    catalogue.drop(alice.public)
    brought(catalogue, bob)
    assert catalogue.records == 2


# -- status


def test_status_counts_by_seq_and_not_for_ever() -> None:
    alice = Provider("alice", 20001)
    catalogue = Catalogue(certified())
    early = alice.status(1)
    with pytest.raises(NotFound):
        catalogue.apply_status(early, unix=UNIX)
    alice.put("h1")
    brought(catalogue, alice)
    first, second = alice.status(1), alice.status(2)
    assert catalogue.apply_status(second, unix=UNIX) == (0, ())
    assert catalogue.apply_status(first, unix=UNIX) == (None, ())
    assert catalogue.apply_status(second, unix=UNIX) == (None, ())
    replica = catalogue.replica(alice.public)
    assert replica is not None
    status = replica.status_of(0)
    assert status is not None
    assert status.fresh_until == UNIX + 30
    with pytest.raises(Expired):
        catalogue.apply_status(alice.status(3), unix=UNIX + 331)
    with pytest.raises(Expired):
        catalogue.apply_status(sign(alice.key, StatusBatch(1 << 60, UNIX, UNIX + 601, ())), unix=UNIX)
    catalogue.expire(unix=UNIX + 331)
    assert not replica.statuses


def test_many_providers_expire_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue_module, "EXPIRE_STEP", 2)
    catalogue = Catalogue(certified())
    providers = [Provider(f"p{number}", 20001 + number) for number in range(5)]
    for provider in providers:
        provider.put("h1")
        brought(catalogue, provider)
        catalogue.apply_status(provider.status(1), unix=UNIX)
    digest = catalogue.digest()
    assert catalogue.expire_calls == 3
    left = []
    for _ in range(3):
        catalogue.expire(unix=UNIX + 331)
        replicas = map(catalogue.replica, catalogue.providers())
        left.append(sum(bool(replica and replica.statuses) for replica in replicas))
    assert left == [3, 1, 0]
    assert catalogue.digest() == digest
    gone = [key for _ in range(5) for key in catalogue.expire(unix=UNIX + 100 * 86400)]
    assert sorted(gone) == sorted(provider.public for provider in providers)
    assert not catalogue.providers()


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ([0, -1, 1, [], 0, 0], "Expected `int` >= 0"),
        ([0, 1, -(2**63), [], 0, 0], "Expected `int` >= 0"),
        ([0, 1, 1, [-500], 0, 0], "Expected `int` >= 0"),
        ([0, 1, 1, [], -1, 0], "Expected `int` >= 0"),
        ([0, 2**64 - 1, 1, [], 0, 0], "Expected `int` <="),
        ([0, 0.5, 1, [], 0, 0], "Expected `int`"),
    ],
)
def test_counts_that_would_underflow_are_refused_and_what_was_known_stays(row: list[Any], word: str) -> None:
    alice = Provider("alice", 20001)
    catalogue = Catalogue(certified())
    alice.put("h1")
    brought(catalogue, alice)
    catalogue.apply_status(alice.status(7), unix=UNIX)
    payload = msgspec.msgpack.encode([1 << 60, UNIX, UNIX + 30, [row], 0])
    signature = alice.key.sign(signed_bytes(DOMAIN, StatusBatch.kind, payload))
    bad = Signed(DOMAIN, StatusBatch.kind, payload, alice.public, signature)
    with pytest.raises(Malformed, match=word) as caught:
        catalogue.apply_status(bad, unix=UNIX)
    assert "rows" in str(caught.value) or "$[3]" in str(caught.value)
    replica = catalogue.replica(alice.public)
    assert replica is not None
    status = replica.status_of(0)
    assert status is not None
    assert status.batch.rows[0].free_cores_milli == 7


def test_a_catalogue_is_taken_up_again_or_not_at_all() -> None:
    alice = Provider("alice", 20001)
    alice.put("h1", "h2")
    news = alice.news()
    entries = alice.own.entries_after(0)
    catalogue = Catalogue(certified())
    for bad in (entries[:1], (entries[0], entries[1] + b"x"), ()):
        with pytest.raises(WireError):
            catalogue.restore([news], bad, unix=UNIX)
        assert catalogue.providers() == []
    with pytest.raises(Expired):
        catalogue.restore([news], entries, unix=UNIX + 8 * 3600)
    catalogue.restore([news], entries, unix=UNIX)
    assert catalogue.records == 2


def test_a_chain_that_is_left_out_is_the_one_that_came_before() -> None:
    alice, bob = Provider("alice", 20001), Provider("bob", 20002)
    catalogue = Catalogue(certified())
    alice.put("h1")
    brought(catalogue, alice)
    alice.put("h2")
    news = alice.news(UNIX + 1)
    assert catalogue.consider(HeadNews(news.head, (), None), unix=UNIX + 1) is Standing.LAGGING
    catalogue.apply(alice.public, news.head, alice.own.entries_after(UNIX), unix=UNIX + 1)
    replica = catalogue.replica(alice.public)
    assert replica is not None
    assert replica.news()[0].chain == alice.chain
    with pytest.raises(BrokenChain):
        catalogue.consider(HeadNews(bob.news().head, (), None), unix=UNIX)


def test_each_part_of_the_slots_has_a_status_of_its_own() -> None:
    alice = Provider("alice", 20001)
    catalogue = Catalogue(certified())
    for number in range(1025):
        alice.put(f"h{number}")
    brought(catalogue, alice)
    rows = [StatusRow(number, 1000 + number, 1) for number in range(1025)]
    first, second = alice.own.sign_status(rows, unix=UNIX)
    assert catalogue.apply_status(second, unix=UNIX) == (1, ())
    assert catalogue.apply_status(first, unix=UNIX) == (0, ())
    replica = catalogue.replica(alice.public)
    assert replica is not None
    assert [len(status.batch.rows) for slot in (0, 1024) if (status := replica.status_of(slot))] == [1024, 1]
    # a part that has no rows any more is said to be empty, once
    emptied = alice.own.sign_status(rows[:1024], unix=UNIX + 1)
    assert [catalogue.apply_status(batch, unix=UNIX + 1)[0] for batch in emptied] == [0, 1]
    assert [len(status.batch.rows) for status in replica.statuses.values()] == [0, 1024]
    assert len(alice.own.sign_status(rows[:1024], unix=UNIX + 2)) == 1
    # a row of another part is refused, the rest counts
    stray = sign(
        alice.key, StatusBatch(1 << 60, UNIX, UNIX + 30, (StatusRow(1024, 1, 1), StatusRow(3, 1, 1)), 1)
    )
    part, refused = catalogue.apply_status(stray, unix=UNIX)
    assert part == 1
    assert [refusal.what for refusal in refused] == ["status of slot 3"]
