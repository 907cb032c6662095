"""`BySlot` beside a dict."""

import random

from ioc_node.core.by_slot import CHUNK_BITS, BySlot


def test_it_is_a_dict_whatever_is_done_with_it():
    rng = random.Random(1)
    chunked: BySlot[int] = BySlot()
    plain: dict[int, int] = {}
    for _ in range(3000):
        slot = rng.randrange(5 << CHUNK_BITS)
        if rng.random() < 0.3:
            assert chunked.pop(slot, None) == plain.pop(slot, None)
        else:
            chunked[slot] = plain[slot] = rng.randrange(100)
        assert (slot in chunked) == (slot in plain)
        assert chunked.get(slot) == plain.get(slot)
    assert dict(chunked) == plain
    assert len(chunked) == len(plain)
    assert list(chunked.in_order()) == sorted(plain)
    assert {slot: value for chunk in chunked.chunks() for slot, value in chunk.items()} == plain


def test_it_forgets_everything_in_steps():
    chunked = BySlot(dict.fromkeys(range(3 << CHUNK_BITS), 0))
    assert sum(1 for _ in chunked.emptying()) == 3
    assert len(chunked) == 0
