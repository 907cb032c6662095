"""Whom a core node knows: what is sure stays, what is made up has its bounds."""

import random

from ioc_node.core.contacts import CONTACTS_MAX, FORGET_SECONDS, TOLD_MAX, ContactBook
from ioc_wire.market import Contact

ME = bytes(32)


def contact(number: int, host: str = "10.0.0.1") -> Contact:
    return Contact(number.to_bytes(32, "big"), host, 1000)


def book() -> ContactBook:
    return ContactBook(ME, random.Random(1))


def test_one_teller_has_a_share_of_the_book() -> None:
    known = book()
    for number in range(1, 1000):
        known.hear(contact(number), b"liar", 0)
    assert len(known) == TOLD_MAX
    known.hear(contact(5000), b"honest", 0)
    assert known.contact(contact(5000).key) is not None
    assert known.believed() == 0  # nobody but one has told of any


def test_hearsay_makes_room_for_what_is_sure_and_never_displaces_it() -> None:
    known = book()
    for number in range(1, CONTACTS_MAX + 1):
        known.hear(contact(number), bytes([number % 8]), 0)
    assert len(known) == CONTACTS_MAX
    for number in range(1000, 1000 + CONTACTS_MAX):
        known.know(contact(number), 1)
    assert len(known) == CONTACTS_MAX == known.believed()
    for number in range(2000, 2100):
        known.hear(contact(number), b"liar", 2)
    assert known.sure() == [contact(number) for number in range(1000, 1000 + CONTACTS_MAX)]
    linked = {contact(1000).key}
    known.know(contact(3000), 3, linked=linked)
    assert known.contact(contact(1000).key) is not None
    assert known.contact(contact(3000).key) is not None
    assert known.contact(contact(1001).key) is None


def test_contacts_dialed_in_vain_make_room_for_others_of_their_teller() -> None:
    known = book()
    for number in range(1, TOLD_MAX + 1):
        known.hear(contact(number), b"t", 0)
    assert len(known.due(10, (), 3)) == 3
    known.hear(contact(500), b"t", 11)
    known.hear(contact(501), b"u", 11)
    assert known.contact(contact(500).key) is not None
    assert len(known) == TOLD_MAX + 1


def test_a_sure_address_is_tried_in_turn_with_what_others_say() -> None:
    known = book()
    known.know(contact(1), 0)
    known.hear(contact(1, "evil.example"), b"liar", 1)
    assert known.contact(contact(1).key) == contact(1)
    dialed = [known.due(100.0 * turn, (), 8)[0].host for turn in range(1, 5)]
    assert dialed == ["10.0.0.1", "evil.example"] * 2
    known.know(contact(1, "10.0.0.2"), 500)
    assert [known.due(600.0 * turn, (), 8)[0].host for turn in (1, 2)] == ["10.0.0.2"] * 2


def test_who_is_not_heard_of_is_forgotten_unless_linked() -> None:
    known = book()
    known.know(contact(1), 0)
    known.hear(contact(2), b"t", 0)
    assert known.due(FORGET_SECONDS + 1, {contact(1).key}, 8) == []
    assert (len(known), known.deadline({contact(1).key})) == (1, None)
    assert known.due(1e6, {contact(1).key}, 8) == []


def test_who_has_links_enough_still_looks_for_those_that_nobody_hears_of() -> None:
    known = book()
    for number in (1, 2, 3):
        known.know(contact(number), 0)
    known.hear(contact(4), b"t", 0)
    assert known.seek(30, ()) == []
    known.hear(contact(2), b"t", 100)  # somebody is linked with it
    sought = [one for turn in range(1, 8) for one in known.seek(100 + 8.0 * turn, {contact(3).key})]
    assert sought
    assert set(sought) == {contact(1)}
    assert known.seek(156.5, ()) == []  # not as often as it is asked
