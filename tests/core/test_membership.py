"""Core nodes find each other, miss who is gone, forgive who is slow, and believe nobody about others."""

import pytest

from ioc_node.core import membership_events as ev
from ioc_wire import membership as wire
from ioc_wire.market import Contact
from ioc_wire.signed import public_bytes, sign
from tests.core.membership_staple import Island, chain_of
from tests.core.staple import UNIX, key_of


def joined(count: int, **settings: object) -> Island:
    island = Island(count, **settings)  # type: ignore[arg-type]
    assert island.run(120, island.all_see) is not None
    island.run(30)
    island.went.clear()
    return island


def test_all_find_each_other_through_one() -> None:
    island = joined(12)
    assert len({node.digest() for node in island.nodes.values()}) == 1


def test_a_crashed_node_is_held_dead_by_all_and_returns() -> None:
    times = []
    for seed in range(1, 6):  # one seed alone may be a slow one
        island = joined(8, seed=seed)
        gone = island.keys[3]
        island.dead.add(gone)
        took = island.run(60, lambda island=island, gone=gone: island.all_miss(gone))
        assert took is not None
        times.append(took)
        assert {key for _, key in island.went} == {gone}
        island.start(3, island.keys[0])
        assert island.run(30, island.all_see) is not None
    assert sorted(times)[2] < 20


@pytest.mark.parametrize("settings", [ev.SWIM, ev.LIFEGUARD, ev.OURS])
def test_every_kind_of_settings_finds_a_crash(settings: ev.Settings) -> None:
    island = joined(6, settings=settings)
    gone = island.keys[2]
    island.dead.add(gone)
    assert island.run(90, lambda: island.all_miss(gone)) is not None


def test_a_goodbye_is_no_death() -> None:
    island = joined(6)
    gone = island.keys[1]
    island.give(gone, ev.Leave())
    assert island.run(20, lambda: island.all_miss(gone)) is not None
    assert all(island.nodes[key].state(gone) is ev.State.LEFT for key in island.keys if key != gone)


@pytest.mark.parametrize("seed", range(3))
def test_loss_kills_nobody(seed: int) -> None:
    island = joined(8, seed=seed)
    island.loss = 0.1
    island.run(300)
    assert not island.went


def test_who_is_stalled_holds_nobody_dead() -> None:
    island = joined(8)
    slow = island.keys[5]
    for _ in range(5):
        island.stalled_until[slow] = island.now + 8
        island.run(30)
    assert not [pair for pair in island.went if pair[0] == slow]


def test_two_islands_find_each_other_again() -> None:
    island = joined(8)
    left = set(island.keys[:4])
    island.cut = lambda a, b: (a in left) != (b in left)
    assert (
        island.run(
            300, lambda: all(island.all_miss_from(left, key) for key in island.keys if key not in left)
        )
        is not None
    )
    island.cut = lambda a, b: False
    assert island.run(120, island.all_see) is not None


def test_all_restart_with_what_they_remember() -> None:
    island = joined(6)
    for i, key in enumerate(island.keys):
        island.start(i, *(other for other in island.keys if other != key))
    assert island.run(30, island.all_see) is not None
    assert min(node.incarnation for node in island.nodes.values()) >= UNIX


def told(island: Island, *news: wire.AliveNews) -> list[ev.Effect]:
    node = island.nodes[island.keys[0]]
    message = wire.MembersTold(wire.MemberNews(news))
    return node.handle(ev.Received(island.keys[1], message), now=island.now)


def test_made_up_members_are_refused() -> None:
    island = joined(3)
    key = key_of("stranger")
    contact = Contact(public_bytes(key), "127.0.0.1", 9)
    good = sign(key, wire.Alive(contact, UNIX))
    other = sign(key, wire.Alive(Contact(island.keys[1], "127.0.0.1", 9), UNIX))
    far = sign(key, wire.Alive(contact, UNIX * 2))
    bad = wire.Signed(good.domain, good.kind, good.payload, good.key, bytes(64))
    chain = chain_of("stranger")
    statements = [
        wire.AliveNews(good),
        wire.AliveNews(good, chain_of("core1")),
        wire.AliveNews(good, chain_of("stranger", "provider")),
        wire.AliveNews(other, chain),
        wire.AliveNews(far, chain),
        wire.AliveNews(bad, chain),
    ]
    effects = told(island, *statements)
    assert [each.error.code for each in effects if isinstance(each, ev.Refused)]
    assert sum(isinstance(each, ev.Refused) for each in effects) == len(statements)
    assert island.nodes[island.keys[0]].state(contact.key) is None
    came = [each for each in told(island, wire.AliveNews(good, chain)) if isinstance(each, ev.MemberCame)]
    assert came == [ev.MemberCame(contact)]


def test_accusations_by_strangers_and_of_other_incarnations_do_nothing() -> None:
    island = joined(4)
    a, b, c = island.keys[:3]
    node = island.nodes[a]
    number = island.nodes[c].incarnation
    accused = (
        sign(key_of("stranger"), wire.Accused(c, number)),
        sign(key_of("core1"), wire.Accused(c, number + 1)),
        sign(key_of("core1"), wire.Accused(c, number - 1)),
    )
    node.handle(ev.Received(b, wire.MembersTold(wire.MemberNews((), accused))), now=island.now)
    assert node.state(c) is ev.State.ALIVE


def test_false_accusations_kill_nobody_and_are_refuted() -> None:
    island = joined(6)
    liar, victim = island.keys[1], island.keys[2]
    for _ in range(20):
        number = island.nodes[victim].incarnation
        lie = sign(key_of("core1"), wire.Accused(victim, number))
        for key in island.keys:
            if key not in (liar, victim):
                news = wire.MemberNews((), (lie,))
                island.give(key, ev.Received(liar, wire.MembersTold(news)))
        island.run(3)
    island.run(60)
    assert not island.went
    assert island.nodes[victim].incarnation > UNIX


def test_a_flood_is_bounded() -> None:
    island = joined(3)
    bad = wire.AliveNews(sign(key_of("x"), wire.Alive(Contact(bytes(32), "127.0.0.1", 9), UNIX)))
    refused = [each for _ in range(20) for each in told(island, *[bad] * 256) if isinstance(each, ev.Refused)]
    assert refused[-1].error.code == refused[-2].error.code != refused[0].error.code


def test_same_seed_same_run() -> None:
    runs = [joined(6, seed=4, loss=0.05) for _ in range(2)]
    assert runs[0].messages == runs[1].messages


def test_a_revoked_member_is_dropped() -> None:
    island = joined(3)
    gone = island.keys[2]
    island.trust.revoke(gone)
    effects = island.nodes[island.keys[0]].handle(ev.KeyRevoked(), now=island.now)
    assert ev.MemberWent(gone) in effects
    assert island.nodes[island.keys[0]].state(gone) is None
