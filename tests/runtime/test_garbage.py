"""When a process looks for garbage: what is old is collected in rounds, what was frozen in the thorough one."""

import gc
import weakref

import trio
import trio.testing

from ioc_node.runtime.garbage import DUE_ROUNDS, ROUND_SECONDS, THOROUGH_SECONDS, open_garbage_rounds


class Cycle:
    """Refers to itself: only a collection finds it."""

    def __init__(self) -> None:
        self.own = self


async def test_what_is_old_is_collected_in_rounds_and_what_was_frozen_in_a_thorough_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    before = gc.get_threshold()
    lasting = Cycle()
    frozen = weakref.ref(lasting)
    async with open_garbage_rounds():
        assert gc.get_freeze_count() > 0
        assert gc.get_threshold()[2] > 1 << 20
        del lasting
        passing = Cycle()
        old = weakref.ref(passing)
        for _ in range(DUE_ROUNDS):
            gc.collect(1)  # it is of the oldest generation now
        del passing
        assert old() is not None
        await trio.sleep(1.5 * ROUND_SECONDS)
        assert old() is None
        assert frozen() is not None
        await trio.sleep(THOROUGH_SECONDS)
        assert frozen() is None
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
