"""Workflows: the order of tasks as pure state, then whole ones over several providers."""

from pathlib import Path
from typing import Any

import pytest
import trio

from ioc_node.errors import TaskFailed, UsageError
from ioc_node.tasks.plan import Plan
from ioc_node.tasks.story import Ending
from ioc_node.tasks.workflow import WorkflowHandle
from ioc_wire.market import Contact
from ioc_wire.tasks import (
    ExecutorStep,
    Input,
    Output,
    OutputBlob,
    TaskDefinition,
    WorkflowDefinition,
    WorkflowTask,
)
from tests.tasks.cases import Town, capacity_of, cid_of, copy_task, mortal, task_of, until

HOLDER = Contact(b"h" * 32, "127.0.0.1", 1)


def step(name: str, *needs: str) -> WorkflowTask:
    inputs = tuple(Input(path=f"in{n}", url=f"task:{need}/out") for n, need in enumerate(needs))
    executor = ExecutorStep(runtime="wasm", program="blob:b" + "a" * 52)
    return WorkflowTask(name=name, executor=executor, inputs=inputs, outputs=(Output(path="out"),))


def ended(name: str) -> Ending:
    return Ending("COMPLETE", outputs=(OutputBlob("out", name.encode().ljust(32, b"."), 1),), holder=HOLDER)


def finish(plan: Plan, name: str) -> None:
    plan.start(name, name.encode().ljust(32, b"t"))
    plan.finish(name, name.encode().ljust(32, b"t"), ended(name))


@pytest.fixture
def plan() -> Plan:
    """Two tiles, a join, and one task on the side."""
    steps = (step("join", "a", "b"), step("a"), step("b"), step("side", "a"))
    return Plan(WorkflowDefinition(name="w", tasks=steps))


def test_a_task_is_ready_when_all_it_reads_is_there(plan: Plan) -> None:
    assert list(plan.ready()) == ["a", "b"]
    finish(plan, "a")
    assert list(plan.ready()) == ["b", "side"]
    plan.start("b", bytes(32))
    assert list(plan.ready()) == ["side"]
    finish(plan, "b")
    assert list(plan.ready()) == ["join", "side"]
    definition, sources = plan.resolve("join")
    assert type(definition) is TaskDefinition
    assert [source.holder for source in sources] == [HOLDER, HOLDER]
    assert all(item.url.startswith("blob:b") for item in definition.inputs)
    for name in ("join", "side"):
        finish(plan, name)
    assert plan.complete
    assert plan.sinks() == ["join", "side"]


def test_a_lost_output_is_made_again_and_nothing_else(plan: Plan) -> None:
    finish(plan, "a")
    finish(plan, "b")
    finish(plan, "side")
    plan.start("join", bytes(32))
    assert plan.rerun("join", b"a".ljust(32, b".")) == "a"
    assert list(plan.ready()) == ["a"]
    finish(plan, "a")
    assert list(plan.ready()) == ["join"]
    assert plan.reruns == {"a": 1}
    assert plan.rerun("join", b"nobody made this") is None


def tiles(folder: Path, count: int = 3, **more: Any) -> WorkflowDefinition:
    """`count` copies of a file, each copied once more, and a task at the end that needs them all."""
    (folder / "data").write_bytes(b"terrain")
    first = [copy_task(folder, f"file:{folder / 'data'}", name=f"tile{n}") for n in range(count)]
    second = [copy_task(folder, f"task:tile{n}/out", name=f"again{n}") for n in range(count)]
    inputs = (
        Input(path="in", url="task:again0/out"),
        *(Input(path=f"in{n}", url=f"task:again{n}/out") for n in range(1, count)),
    )
    last = copy_task(folder, "task:again0/out", **{"name": "join", "inputs": inputs, **more})
    return WorkflowDefinition(name="terrain", tasks=tuple(as_step(each) for each in (*first, *second, last)))


def as_step(task: TaskDefinition) -> WorkflowTask:
    return WorkflowTask(**{name: getattr(task, name) for name in task.__struct_fields__})


async def state_of(flow: WorkflowHandle, seconds: float = 20) -> str:
    with trio.fail_after(seconds):
        return await flow.wait()


async def test_outputs_move_from_provider_to_provider_and_not_through_the_consumer(town: Town) -> None:
    async with (
        town.open_node("alice") as alice,
        town.open_node("bob", capacity=capacity_of(cores=2)) as bob,
        town.open_node("carol", capacity=capacity_of(cores=2)) as carol,
    ):
        flow = await alice.workflows.submit(tiles(town.folder))
        with trio.fail_after(20):
            result = await flow.result()
        (only,) = result.outputs
        assert (only.name, only.output.path, only.output.size) == ("join", "out", 7)
        assert len(result.receipts) == 7
        tasks = flow.tasks()
        assert {each.live.place for each in tasks.values() if each} == {cid_of("bob"), cid_of("carol")}
        assert len(alice.exchange.blobs.list_blobs()) == 2, (
            "the program, and the terrain that went in and came out"
        )
        assert alice.ledger.totals().receipts == 7
        await until(lambda: bob.ledger.totals().receipts + carol.ledger.totals().receipts == 7)
        names = {event.name async for event in flow.events()}
        assert names == {"", "join", *(f"tile{n}" for n in range(3)), *(f"again{n}" for n in range(3))}
        assert [each.id for each in alice.workflows.latest(5)] == [flow.id]


async def test_one_failure_ends_the_workflow_and_cancels_the_rest(town: Town) -> None:
    tasks = (as_step(task_of(town.folder, "fail")), as_step(task_of(town.folder, "sleep")))
    async with town.open_node("alice") as alice, town.open_node("bob", capacity=capacity_of(cores=4)) as bob:
        flow = await alice.workflows.submit(WorkflowDefinition(name="w", tasks=tasks))
        assert await state_of(flow, seconds=5) == "EXECUTOR_ERROR"
        assert flow.text.startswith("task 'fail' ended EXECUTOR_ERROR")
        with pytest.raises(TaskFailed, match="workflow 'w' ended EXECUTOR_ERROR: task 'fail'"):
            await flow.result()
        sleeper = flow.tasks()["sleep"]
        assert sleeper is None or sleeper.state == "CANCELED"
        await until(lambda: bob.provider.tasks_running == 0)


async def test_a_workflow_can_be_cancelled(town: Town) -> None:
    tasks = tuple(as_step(task_of(town.folder, "sleep", name=f"s{n}")) for n in range(4))
    async with town.open_node("alice") as alice, town.open_node("bob", capacity=capacity_of(cores=2)) as bob:
        flow = await alice.workflows.submit(WorkflowDefinition(name="w", tasks=tasks))
        await until(lambda: bob.provider.tasks_running == 2)
        await flow.cancel()
        assert await state_of(flow, seconds=2) == "CANCELED"
        assert alice.consumer.journal.unfinished() == []
        await until(lambda: bob.provider.tasks_running == 0)


async def test_an_output_that_died_with_its_holder_is_made_again(town: Town) -> None:
    """`first` runs on bob, and bob dies before `last`, which waits for another task too, could read its output."""
    (town.folder / "data").write_bytes(
        b"terrain" * 10_000
    )  # more than is copied: alice must not have the output
    first = copy_task(town.folder, f"file:{town.folder / 'data'}", name="first")
    nap = task_of(town.folder, "nap", outputs=(Output(path="out"),))
    inputs = (Input(path="in", url="task:first/out"), Input(path="wait", url="task:nap/out"))
    last = copy_task(town.folder, "", name="last", inputs=inputs)
    definition = WorkflowDefinition(name="w", tasks=tuple(as_step(each) for each in (first, nap, last)))
    async with town.open_node("alice") as alice, mortal(town, "bob") as (_, scope, gone):
        flow = await alice.workflows.submit(definition)
        await until(lambda: (each := flow.tasks()["first"]) and each.state == "COMPLETE")
        made = flow.tasks()["first"]
        assert made is not None
        assert made.live.place == cid_of("bob")
        async with town.open_node("carol", capacity=capacity_of(cores=1)):
            del town.offered["bob"]
            scope.cancel()
            await gone.wait()
            assert await state_of(flow) == "COMPLETE"
            tasks = flow.tasks()
            assert tasks["first"] is not None
            assert tasks["first"].id != made.id
            assert {each.live.place for each in tasks.values() if each} == {cid_of("carol")}


async def test_a_consumer_that_restarts_continues_its_workflows(town: Town) -> None:
    async with town.open_node("bob", capacity=capacity_of(cores=2)):
        async with town.open_node("alice") as alice:
            flow = await alice.workflows.submit(tiles(town.folder))
            await until(lambda: any(each and each.state == "COMPLETE" for each in flow.tasks().values()))
        async with town.open_node("alice") as alice:
            again = alice.workflows.handle(flow.id)
            with trio.fail_after(20):
                result = await again.result()
            assert len(result.receipts) == 7
            assert len(alice.consumer.tasks(100)) == 7, "what was done is not done again"
        async with town.open_node("alice") as alice:
            assert alice.workflows.handle(flow.id).state == "COMPLETE"
            assert alice.workflows.knows(flow.id)
            with pytest.raises(UsageError, match="there is no workflow"):
                alice.workflows.handle(bytes(32))
