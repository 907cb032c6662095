"""Which core node becomes home, and what is worth a move."""

from ioc_node.core.homes import CONTACTS_MAX, SETTLED_SECONDS, SHUNNED_SECONDS, Candidate, Homes
from ioc_wire.market import Contact

ME, NEAR, FAR, OWN, TOP = (bytes([number]) * 32 for number in range(1, 6))


def candidate(key: bytes, milliseconds: float | None, *, covers: bool = False) -> Candidate:
    seconds = None if milliseconds is None else milliseconds / 1000
    return Candidate(key, covers, key == TOP, seconds)


def test_own_region_comes_first_and_the_national_node_last() -> None:
    homes = Homes(ME)
    linked = [candidate(TOP, 1), candidate(FAR, 50), candidate(OWN, 90, covers=True)]
    assert homes.choose(linked, 0.0) == linked[2]
    homes.shun(OWN, 0.0)
    assert homes.choose(linked, 1.0) == linked[1]
    homes.shun(FAR, 1.0)
    homes.shun(TOP, 2.0)
    assert homes.choose(linked, 3.0) == linked[2]  # all failed: the first of them
    assert homes.choose(linked, 2.0 + SHUNNED_SECONDS) == linked[2]
    assert homes.choose([], 0.0) is None


def test_much_nearer_for_long_is_worth_a_move_and_a_moment_is_not() -> None:
    homes = Homes(ME)
    homes.served(FAR, 0.0)
    home, near = candidate(FAR, 40), candidate(NEAR, 10)
    late = SETTLED_SECONDS + 1
    assert [homes.review(home, [near], at) for at in (60.0, 120.0, 180.0, late)] == [None, None, None, NEAR]
    homes.served(NEAR, late)
    assert homes.review(near, [home], 2 * late) is None
    homes = Homes(ME)
    for at in range(20):  # better now and then only: it stays
        assert homes.review(home, [near if at % 3 else candidate(NEAR, 39)], 1000.0 + at) is None
    assert homes.review(home, [candidate(NEAR, None)], 2000.0) is None


def test_the_own_region_is_worth_a_move_soon() -> None:
    homes = Homes(ME)
    homes.served(FAR, 0.0)
    own = candidate(OWN, 80, covers=True)
    assert [homes.review(candidate(FAR, 1), [own], at) for at in (1.0, 2.0)] == [None, OWN]


def test_contacts_are_bounded_and_those_that_fail_make_room() -> None:
    homes = Homes(ME)
    keys = [bytes([9, number]) * 16 for number in range(CONTACTS_MAX + 1)]
    for key in (ME, *keys):
        homes.know(Contact(key, "127.0.0.1", 7400))
    assert {contact.key for contact in homes.contacts} == set(keys[:-1])
    homes.shun(keys[3], 0.0)
    assert keys[3] not in {contact.key for contact in homes.to_dial([], 1.0)}
    assert homes.to_dial([], 6.0)[-1].key == keys[3]
    homes.know(Contact(keys[-1], "127.0.0.1", 7400))
    assert {contact.key for contact in homes.contacts} == set(keys) - {keys[3]}
