"""One task from submit to receipt, over real links, bulk transfers and the wasm sandbox."""

import pytest
import trio

from ioc_node.errors import TaskFailed, UsageError
from ioc_wire.market import Removal
from ioc_wire.metering import verify_receipt
from ioc_wire.signed import Signed
from ioc_wire.tasks import Constraints, Input, Limits, Output, Resources
from tests.tasks.cases import Town, capacity_of, cid_of, copy_task, ending_of, story_of, task_of, until


async def test_a_task_runs_somewhere_and_comes_back_with_a_receipt(town: Town) -> None:
    (town.folder / "data").write_bytes(b"terrain" * 1000)
    async with town.open_node("alice") as alice, town.open_node("bob", capacity=capacity_of()) as bob:
        task = await alice.consumer.submit(copy_task(town.folder, f"file:{town.folder / 'data'}"))
        with trio.fail_after(10):
            result = await task.result()
        (output,) = result.outputs
        assert output.path == "out"
        assert await alice.exchange.blobs.read_bytes(output.blob, bytes_max=10_000) == b"terrain" * 1000
        assert isinstance(result.receipt, Signed)
        usage = verify_receipt(result.receipt)
        assert (usage.cid, usage.consumer, usage.provider) == (cid_of("bob"), alice.public, bob.public)
        assert usage.bytes_in > 7000
        events = await story_of(task)
        assert [each.state for each in events if each.change == "state"] == [
            "QUEUED",
            "INITIALIZING",
            "RUNNING",
            "COMPLETE",
        ]
        assert "copied" in [each.text for each in events if each.stream == "stdout"]
        assert [each.seq for each in events] == list(range(1, len(events) + 1))
        await until(lambda: bob.ledger.totals().receipts)
        assert bob.ledger.totals() == alice.ledger.totals()
        assert bob.book.free(cid_of("bob")).cores_milli == 2000
        assert not list((bob.home / "tasks").iterdir())
        assert (await story_of(alice.consumer.handle(task.id)))[-1].state == "COMPLETE"


async def test_what_was_fetched_may_be_forgotten_by_the_provider(town: Town) -> None:
    (town.folder / "data").write_bytes(b"x")
    async with town.open_node("alice") as alice, town.open_node("bob", capacity=capacity_of()) as bob:
        task = await alice.consumer.submit(copy_task(town.folder, f"file:{town.folder / 'data'}"))
        (output,) = (await task.result()).outputs
        program = alice.exchange.blobs.list_blobs()
        await until(lambda: not alice.consumer.journal.errand_providers())
        assert await bob.keeper.sweep(10**15) == len(program), (
            "inputs are cached for an hour, the output is not"
        )
        assert not bob.exchange.blobs.has(output.blob)
        assert alice.exchange.blobs.has(output.blob)


async def test_a_program_that_fails_is_not_tried_elsewhere(town: Town) -> None:
    async with (
        town.open_node("alice") as alice,
        town.open_node("bob", capacity=capacity_of()),
        town.open_node("carol", capacity=capacity_of()),
    ):
        task = await alice.consumer.submit(task_of(town.folder, "fail"))
        ending = await ending_of(task)
        assert (ending.state, task.live.attempt) == ("EXECUTOR_ERROR", 1)
        assert "3" in ending.text
        with pytest.raises(TaskFailed, match="task 'fail' ended EXECUTOR_ERROR"):
            await task.result()
        assert alice.ledger.totals().receipts == 1, "the time that it took is paid for"


async def test_an_output_that_was_never_written_is_named(town: Town) -> None:
    async with town.open_node("alice") as alice, town.open_node("bob", capacity=capacity_of()):
        task = await alice.consumer.submit(
            task_of(town.folder, "noop", outputs=(Output(path="deep/result"),))
        )
        ending = await ending_of(task)
        assert (ending.state, ending.text) == ("EXECUTOR_ERROR", "output 'deep/result' was never written")


async def test_limits_end_a_task(town: Town) -> None:
    async with town.open_node("alice") as alice, town.open_node("bob", capacity=capacity_of()):
        task = await alice.consumer.submit(task_of(town.folder, "sleep", limits=Limits(wall_seconds=1)))
        ending = await ending_of(task)
        assert ending.state == "EXECUTOR_ERROR"
        assert "1" in ending.text


async def test_an_impossible_demand_ends_at_once_with_the_nearest_miss(town: Town) -> None:
    town.removals = (Removal("cores", 7, "ioc:cn.r3301.20004/gen/3301/az1/big has 64"),)
    async with town.open_node("alice") as alice:
        task = await alice.consumer.submit(task_of(town.folder, "noop", resources=Resources(cores=128)))
        ending = await ending_of(task, seconds=1)
        assert ending.state == "SYSTEM_ERROR"
        assert ending.text.startswith("cannot be placed because of 1 known, cores rules out 7")
        assert "nearest miss: ioc:cn.r3301.20004/gen/3301/az1/big has 64" in ending.text


async def test_without_any_provider_it_says_so(town: Town) -> None:
    async with town.open_node("alice") as alice:
        ending = await ending_of(await alice.consumer.submit(task_of(town.folder, "noop")), seconds=1)
        assert ending.text == "cannot be placed because no compute resource is known to the core node"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"resources": Resources(cores=3)}, "3000 core thousandths are asked for"),
        ({"constraints": Constraints(price_micro_max=1)}, "a core-hour costs 3600000, at most 1 is paid"),
        ({"budget_micro": 1}, "the budget is 0.000001"),
    ],
)
async def test_a_demand_that_every_offer_refuses_ends_at_once(
    town: Town, change: dict[str, object], line: str
) -> None:
    async with town.open_node("alice") as alice, town.open_node("bob", capacity=capacity_of(cores=2)):
        ending = await ending_of(
            await alice.consumer.submit(task_of(town.folder, "noop", **change)), seconds=2
        )
        assert ending.state == "SYSTEM_ERROR"
        assert ending.text.startswith("cannot be placed because ioc:")
        assert line in ending.text


async def test_busy_providers_are_waited_for(town: Town) -> None:
    async with (
        town.open_node("alice") as alice,
        town.open_node("bob", capacity=capacity_of(cores=1)),
        town.open_node("carol", capacity=capacity_of(cores=1)),
    ):
        long = [await alice.consumer.submit(task_of(town.folder, "sleep")) for _ in range(2)]
        await until(lambda: all(each.state == "RUNNING" for each in long))
        assert {each.live.place for each in long} == {cid_of("bob"), cid_of("carol")}
        short = [await alice.consumer.submit(task_of(town.folder, "noop")) for _ in range(10)]
        await until(lambda: any("waits for a place" in str(each.live.feed.read_nowait(0)) for each in short))
        assert not any(each.live.ending for each in short)
        await long[0].cancel()
        endings = [await ending_of(each) for each in short]
        assert {each.state for each in endings} == {"COMPLETE"}
        await long[1].cancel()
        await ending_of(long[1])


async def test_cancelling_a_running_task_takes_less_than_a_second(town: Town) -> None:
    async with town.open_node("alice") as alice, town.open_node("bob", capacity=capacity_of()) as bob:
        task = await alice.consumer.submit(task_of(town.folder, "sleep"))
        await until(lambda: task.live.progress_milli == 500)
        await task.cancel()
        ending = await ending_of(task, seconds=1)
        assert (ending.state, ending.text) == ("CANCELED", "cancelled by its owner")
        assert bob.book.free(cid_of("bob")).cores_milli == 2000
        assert bob.provider.tasks_running == 0
        await task.cancel()
        assert task.state == "CANCELED"


async def test_cancelling_a_task_that_waits_for_a_place(town: Town) -> None:
    async with town.open_node("alice") as alice, town.open_node("bob", capacity=capacity_of(cores=1)) as bob:
        first = await alice.consumer.submit(task_of(town.folder, "sleep"))
        await until(lambda: first.state == "RUNNING")
        second = await alice.consumer.submit(task_of(town.folder, "sleep"))
        await until(lambda: any("waits" in each.event.text for each in second.live.feed.read_nowait(0)[0]))
        await second.cancel()
        assert (await ending_of(second, seconds=1)).state == "CANCELED"
        await first.cancel()
        await ending_of(first)
        assert bob.book.held() == bob.book.accepted() == []


async def test_a_slow_listener_and_a_late_one_both_hear_the_end(town: Town) -> None:
    async with town.open_node("alice") as alice, town.open_node("bob", capacity=capacity_of()):
        task = await alice.consumer.submit(task_of(town.folder, "noop"))
        listener = task.events()
        first = await anext(listener)
        await ending_of(task)
        rest = [each.event async for each in listener]
        assert [first.event, *rest] == await story_of(task) == await story_of(task, follow=False)
        assert rest[-1].state == "COMPLETE"


async def test_bad_tasks_are_refused_before_anything_is_journalled(town: Town) -> None:
    async with town.open_node("alice") as alice:
        with pytest.raises(UsageError, match=r"inputs\[0\].url: the file .*/gone does not exist"):
            await alice.consumer.submit(copy_task(town.folder, f"file:{town.folder / 'gone'}"))
        with pytest.raises(UsageError, match="there is no task"):
            alice.consumer.handle(bytes(32))
        assert alice.consumer.tasks(10) == []


async def test_an_input_blob_that_nobody_has_ends_the_task_by_name(town: Town) -> None:
    async with town.open_node("alice") as alice, town.open_node("bob", capacity=capacity_of()) as bob:
        lost = "blob:b" + "a" * 52
        task = await alice.consumer.submit(task_of(town.folder, "noop", inputs=(Input(path="in", url=lost),)))
        ending = await ending_of(task)
        assert ending.state == "SYSTEM_ERROR"
        assert "is lost: it is not in this node's store" in ending.text
        await until(lambda: bob.book.held() == [], seconds=8)
