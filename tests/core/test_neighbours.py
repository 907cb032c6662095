"""Neighbours in the tree: chosen and taken, few, and none that is silent."""

import random

from ioc_node.core.neighbours import (
    ASK_SECONDS,
    CHOSEN,
    PRESENT_SECONDS,
    REFUSED_SECONDS,
    SILENT_SECONDS,
    TAKEN_MAX,
    URGED_SECONDS,
    Neighbours,
)
from ioc_wire.plumtree import IHave, Neighbour

LINKED = [bytes([number]) * 32 for number in range(30)]


def made() -> Neighbours:
    return Neighbours(random.Random(1))


def full(now: float = 0) -> Neighbours:
    """One that has chosen all it wants."""
    one = made()
    for peer, _ in one.pass_time(now, LINKED):
        one.said(peer, "yes", now, leaf=False)
    assert len(one) == CHOSEN
    return one


def test_a_node_chooses_some_and_takes_some() -> None:
    one = full()
    others = [peer for peer in LINKED if peer not in one]
    answers = [one.said(peer, "ask", 0, leaf=False) for peer in others]
    assert [(peer, Neighbour("yes")) in told for peer, told in zip(others, answers, strict=True)] == [
        number < TAKEN_MAX for number in range(len(others))
    ]
    assert len(one) == CHOSEN + TAKEN_MAX
    assert one.pass_time(1, LINKED) == []


def test_the_first_is_urged_and_who_does_not_answer_is_not_asked_again_soon() -> None:
    one = made()
    first = one.pass_time(0, LINKED)
    assert {message for _, message in first} == {Neighbour("urge")}
    again = one.pass_time(ASK_SECONDS, LINKED)
    assert len(again) == CHOSEN
    assert not {peer for peer, _ in first} & {peer for peer, _ in again}
    assert one.said(first[0][0], "yes", ASK_SECONDS, leaf=False) == [(first[0][0], Neighbour("no"))]
    one.said(again[0][0], "no", ASK_SECONDS, leaf=False)
    assert len(one.pass_time(ASK_SECONDS + 1, LINKED)) == 1


def test_who_has_none_is_taken_in_place_of_another_but_rarely() -> None:
    one = made()
    for peer in LINKED[:TAKEN_MAX]:
        one.said(peer, "ask", 0, leaf=False)
    swapped = one.said(LINKED[20], "urge", 0, leaf=False)
    assert [message for _, message in swapped] == [Neighbour("no"), Neighbour("yes")]
    assert len(one) == TAKEN_MAX
    assert one.said(LINKED[21], "urge", 1, leaf=False) == [(LINKED[21], Neighbour("no"))]
    assert (LINKED[22], Neighbour("yes")) in one.said(LINKED[22], "urge", URGED_SECONDS, leaf=False)


def test_whoever_asks_most_does_not_push_out_those_that_were_chosen() -> None:
    one = full()
    chosen = set(one)
    for number in range(100):
        one.said(bytes([200, number]) * 16, "urge", number * URGED_SECONDS / 50, leaf=False)
    assert chosen <= set(one)
    assert len(one) == CHOSEN + TAKEN_MAX


def test_silent_neighbours_are_replaced_and_present_ones_hear_something() -> None:
    one = full()
    silent, *others = one
    told = []
    for now in range(1, int(SILENT_SECONDS) + 3):
        for peer in others:
            one.heard(peer, now)
        told += one.pass_time(now, LINKED)
    assert silent not in one
    assert (silent, Neighbour("no")) in told
    assert told.count((others[0], IHave())) == int(SILENT_SECONDS // PRESENT_SECONDS)
    asked = [peer for peer, message in told if message == Neighbour("ask")]
    assert len(asked) == 1
    assert silent not in asked
    assert one.said(silent, "urge", SILENT_SECONDS + 3, leaf=False) == [(silent, Neighbour("no"))]


def test_a_refusal_ends_it_and_is_remembered_for_a_while() -> None:
    one = full()
    (peer, *_) = one
    one.said(peer, "no", 1, leaf=False)
    assert peer not in one
    assert (peer, Neighbour("ask")) not in one.pass_time(2, [peer])
    assert (peer, Neighbour("ask")) in one.pass_time(2 + REFUSED_SECONDS, [peer])


def test_leaves_take_no_place_of_others() -> None:
    one = made()
    for number in range(40):
        one.said(bytes([100, number]) * 16, "ask", 0, leaf=True)
    leaves = len(one)
    for peer in LINKED:
        one.said(peer, "ask", 0, leaf=False)
    assert len(one) == leaves + TAKEN_MAX
