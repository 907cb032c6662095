"""What a node forgets after a while, and what it keeps; and a provider that stops in an orderly way."""

import trio

from ioc_node.config import TasksConfig
from ioc_node.tasks.keeper import FOREVER_MS
from ioc_wire.tasks import WorkflowDefinition, WorkflowTask
from tests.tasks.cases import Town, capacity_of, cid_of, ending_of, task_of, until

TABLES = ("tasks", "attempts", "task_events", "workflows", "workflow_tasks")


async def test_ended_tasks_are_forgotten_and_their_receipts_kept(town: Town) -> None:
    async with town.open_node("bob", capacity=capacity_of(cores=4)), town.open_node("alice") as alice:
        running = await alice.consumer.submit(task_of(town.folder, "sleep"))
        done = await alice.consumer.submit(task_of(town.folder, "noop"))
        assert (await ending_of(done)).state == "COMPLETE"
        await until(lambda: running.state == "RUNNING")
        assert alice.consumer.forget_before(done.live.row.submitted_ms) == 0, "it did not end before it ended"
        assert alice.consumer.forget_before(FOREVER_MS) == 1
        assert [live.id for live in alice.consumer.tasks(10)] == [running.id]
        assert alice.store.fetch("SELECT count(*) FROM task_events WHERE task = ?", (done.id,)) == [(0,)]
        assert len(alice.ledger.receipts_of(done.id)) == 1
        await running.cancel()
        await ending_of(running)


async def test_a_workflow_is_forgotten_with_its_tasks_and_never_before(town: Town) -> None:
    async with town.open_node("bob", capacity=capacity_of(cores=4)), town.open_node("alice") as alice:
        step = task_of(town.folder, "noop")
        tasks = tuple(
            WorkflowTask(name=name, executor=step.executor, resources=step.resources) for name in ("a", "b")
        )
        flow = await alice.workflows.submit(WorkflowDefinition(name="w", tasks=tasks))
        with trio.fail_after(10):
            assert await flow.wait() == "COMPLETE"
        assert alice.consumer.forget_before(FOREVER_MS) == 0, "its tasks are needed to load it again"
        assert alice.workflows.forget_before(FOREVER_MS) == 1
        assert not alice.workflows.knows(flow.id)
        assert [alice.store.fetch(f"SELECT count(*) FROM {table}") for table in TABLES] == [[(0,)]] * 5
        assert alice.ledger.totals().receipts == 2


async def test_a_restart_forgets_what_is_older_than_the_retention_time(town: Town) -> None:
    async with town.open_node("bob", capacity=capacity_of()):
        async with town.open_node("alice") as alice:
            task = await alice.consumer.submit(task_of(town.folder, "noop"))
            await ending_of(task)
        short = TasksConfig(lost_contact_seconds=1.5, retention_seconds=0.001)
        async with town.open_node("alice", settings=short) as alice:
            await until(lambda: not alice.consumer.tasks(10))
            assert alice.ledger.totals().receipts == 1


async def test_a_provider_that_stops_tells_its_consumers_who_place_the_task_elsewhere(town: Town) -> None:
    async with town.open_node("alice") as alice, town.open_node("bob", capacity=capacity_of()) as bob:
        task = await alice.consumer.submit(task_of(town.folder, "sleep"))
        await until(lambda: task.state == "RUNNING")
        async with town.open_node("carol", capacity=capacity_of()):
            with trio.fail_after(2):
                await bob.provider.stop()
            assert [row.state for row in bob.provider.rows(10)] == ["PREEMPTED"]
            assert bob.book.accepted() == []
            await until(lambda: task.live.place == cid_of("carol") and task.state == "RUNNING")
            assert alice.ledger.totals().receipts == 0, "what was preempted costs nothing"
            await task.cancel()
            await ending_of(task)
