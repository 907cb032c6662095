"""Events for many listeners: bounded, numbered, and the last one always arrives."""

import trio
import trio.testing

from ioc_node.tasks.feed import Feed


async def test_listeners_read_at_their_own_pace() -> None:
    feed: Feed[str] = Feed(kept_max=3)
    for word in "abcde":
        feed.append(word)
    assert feed.read_nowait(0) == (["c", "d", "e"], 5)
    assert feed.read_nowait(3, limit=1) == (["d"], 4)
    assert feed.read_nowait(5) == ([], 5)
    feed.close()
    assert await feed.read(4) == (["e"], 5)
    assert await feed.read(5) == ([], 5)


async def test_progress_in_a_row_is_conflated_for_those_who_come_late() -> None:
    feed: Feed[str] = Feed()
    feed.append("log")
    for step in range(100):
        feed.append(f"step {step}", conflate=True)
    feed.append("end")
    assert feed.read_nowait(0) == (["log", "step 99", "end"], 102)
    assert Feed([(1, "log"), (101, "step 99")]).read_nowait(1) == (["step 99"], 101)


async def test_everybody_who_waits_is_woken() -> None:
    feed: Feed[str] = Feed()
    heard: list[str] = []

    async def listen() -> None:
        heard.extend((await feed.read(0))[0])

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(listen)
        await trio.testing.wait_all_tasks_blocked()
        feed.append("news")
    assert heard == ["news"] * 3
