"""The packed table of slots says what a plain dictionary would."""

from collections.abc import Generator

from hypothesis import given
from hypothesis import strategies as st

from ioc_node.core.slots import STEP_SLOTS, SlotTable

CHANGES = st.lists(
    st.tuples(
        st.dictionaries(st.integers(0, 300), st.sampled_from(["", "a", "b", "c"])), st.integers(0, 300)
    ),
    max_size=6,
)


@given(st.integers(1, 300), CHANGES)
def test_changes_lead_where_a_dictionary_does(first: int, changes: list[tuple[dict[int, str], int]]) -> None:
    table = SlotTable().changed(dict.fromkeys(range(first), 1), {n: f"n{n}" for n in range(first)}, first)
    seqs, names = dict.fromkeys(range(first), 1), {n: f"n{n}" for n in range(first)}
    for seq, (said, count) in enumerate(changes, 2):
        there = {slot: name for slot, name in said.items() if slot < count}
        alive = {slot: f"{name}{slot % 50}" for slot, name in there.items() if name}
        table = table.changed(dict.fromkeys(there, seq), alive, count)
        seqs = {slot: seqs.get(slot, 0) for slot in range(count)} | dict.fromkeys(there, seq)
        names = {slot: name for slot, name in names.items() if slot < count and slot not in there} | alive
    assert len(table) == len(seqs)
    assert table.living == len(names)
    assert table.living_slots() == sorted(names)
    assert [table.is_alive(slot) for slot in range(310)] == [slot in names for slot in range(310)]
    assert table.alive_from(100, 50) == [slot in names for slot in range(100, min(150, len(seqs)))]
    assert table.after(2) == [slot for slot in sorted(seqs) if seqs[slot] > 2]
    for name in {*names.values(), "nobody"}:
        assert sorted(table.candidates(name)) == sorted(
            slot for slot, other in names.items() if other == name
        )


def test_a_large_catalogue_is_entered_and_left_in_steps() -> None:
    """Each step works through STEP_SLOTS at most: once to enter them, once to bring them in order."""
    count = 8 * STEP_SLOTS
    slots = range(count)
    entering = SlotTable().changing(dict.fromkeys(slots, 1), {n: f"n{n}" for n in slots}, count)
    steps, table = _steps_of(entering)
    assert steps >= 2 * count // STEP_SLOTS
    assert table.living_slots() == list(slots)
    assert all(list(table.candidates(f"n{n}")) == [n] for n in range(0, count, 97))
    steps, table = _steps_of(table.changing({}, {}, STEP_SLOTS))
    assert steps >= count // STEP_SLOTS
    assert table.living == STEP_SLOTS


def _steps_of(work: Generator[None, None, SlotTable]) -> tuple[int, SlotTable]:
    steps = 1
    while True:
        try:
            next(work)
        except StopIteration as end:
            return steps, end.value
        steps += 1
