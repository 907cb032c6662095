"""Nodes that die, restart or fall silent: no task is lost, none is settled twice."""

import pytest
import trio

from ioc_node.config import TasksConfig
from ioc_wire.market import Contact
from tests.tasks.cases import Town, capacity_of, cid_of, ending_of, mortal, story_of, task_of, until


async def test_a_dead_provider_is_noticed_and_the_task_runs_elsewhere_and_is_settled_once(town: Town) -> None:
    async with town.open_node("alice") as alice, mortal(town, "bob") as (_, scope, gone):
        task = await alice.consumer.submit(task_of(town.folder, "sleep"))
        await until(lambda: task.state == "RUNNING")
        assert task.live.place == cid_of("bob")
        async with town.open_node("carol", capacity=capacity_of()) as carol:
            scope.cancel()
            await gone.wait()
            await until(lambda: task.live.place == cid_of("carol") and task.state == "RUNNING")
            assert task.live.attempt == 2
            states = [each.state for each in await story_of(task, follow=False)]
            assert "UNKNOWN" in states
            await task.cancel()
            await ending_of(task)
            await until(lambda: carol.ledger.totals().receipts)
            assert alice.ledger.totals().receipts == 1


async def test_a_provider_restarted_under_a_task_says_so_and_the_task_is_placed_again(town: Town) -> None:
    async with town.open_node("alice") as alice:
        async with mortal(town, "bob") as (bob, scope, gone):
            task = await alice.consumer.submit(task_of(town.folder, "sleep"))
            await until(lambda: task.state == "RUNNING")
            (bob.home / "tasks" / "left").mkdir()
            scope.cancel()
            await gone.wait()
            port = bob.port
        async with town.open_node("bob", capacity=capacity_of(), port=port) as bob:
            await until(lambda: task.live.attempt == 2 and task.state == "RUNNING")
            texts = [each.text for each in await story_of(task, follow=False)]
            assert any("the provider was restarted while the task ran" in text for text in texts)
            assert len(bob.book.accepted()) == 1
            assert [row.state for row in bob.provider.rows(10)] == ["RUNNING", "SYSTEM_ERROR"]
            assert not (bob.home / "tasks" / "left").exists()
            await task.cancel()
            await ending_of(task)


async def test_attempts_are_bounded(town: Town) -> None:
    async with town.open_node("alice") as alice:
        async with mortal(town, "bob") as (_, scope, gone):
            task = await alice.consumer.submit(task_of(town.folder, "sleep", attempts=1))
            await until(lambda: task.state == "RUNNING")
            scope.cancel()
            await gone.wait()
        ending = await ending_of(task)
        assert ending.state == "SYSTEM_ERROR"
        assert ending.text.startswith("given up after 1 attempts; the last: contact with ioc:")


async def test_a_consumer_that_restarts_picks_its_tasks_up_and_settles_each_once(town: Town) -> None:
    async with town.open_node("bob", capacity=capacity_of(cores=8)) as bob:
        async with town.open_node("alice") as alice:
            running = await alice.consumer.submit(task_of(town.folder, "sleep"))
            await until(lambda: running.live.progress_milli == 500)
            short = [await alice.consumer.submit(task_of(town.folder, "noop")) for _ in range(5)]
        async with town.open_node("alice") as alice:
            for each in short:
                assert (await ending_of(alice.consumer.handle(each.id))).state == "COMPLETE"
            again = alice.consumer.handle(running.id)
            await until(lambda: again.state == "RUNNING")
            assert again.live.attempt == 1, "the provider never stopped"
            assert bob.provider.tasks_running == 1
            await again.cancel()
            assert (await ending_of(again, seconds=2)).state == "CANCELED"
            assert alice.ledger.totals().receipts == 6
            await until(lambda: bob.ledger.totals().receipts == 6)
        async with town.open_node("alice") as alice:
            assert alice.consumer.journal.unfinished() == []
            assert alice.ledger.totals().receipts == 6
            assert [each.state for each in await story_of(alice.consumer.handle(running.id))][
                -1
            ] == "CANCELED"


async def test_a_cancellation_survives_a_restart(town: Town) -> None:
    async with town.open_node("bob", capacity=capacity_of()):
        async with town.open_node("alice") as alice:
            task = await alice.consumer.submit(task_of(town.folder, "sleep"))
            await until(lambda: task.state == "RUNNING")
            alice.consumer.journal.set_canceling(task.id)
        async with town.open_node("alice") as alice:
            assert (await ending_of(alice.consumer.handle(task.id))).state == "CANCELED"


async def test_results_wait_for_a_consumer_that_is_away(town: Town) -> None:
    async with town.open_node("bob", capacity=capacity_of()) as bob:
        async with town.open_node("alice") as alice:
            task = await alice.consumer.submit(task_of(town.folder, "noop"))
            await until(lambda: alice.consumer.journal.attempts(task.id))
            await until(bob.exchange.blobs.list_blobs)
        await until(lambda: not bob.provider.tasks_running)
        async with town.open_node("alice") as alice:
            again = alice.consumer.handle(task.id)
            assert (await ending_of(again)).state == "COMPLETE"
            await until(lambda: bob.ledger.totals().receipts == 1)


async def test_settlement_reaches_a_provider_that_was_away(town: Town) -> None:
    async with town.open_node("alice") as alice:
        async with mortal(town, "bob") as (bob, scope, gone):
            task = await alice.consumer.submit(task_of(town.folder, "noop"))
            await ending_of(task)
            port = bob.port
            scope.cancel()
            await gone.wait()
        receipt = alice.consumer.receipt_of(task.live)
        assert receipt is not None
        async with town.open_node("bob", capacity=capacity_of(), port=port) as bob:
            await until(lambda: bob.ledger.receipts_of(task.id))
            assert bob.ledger.receipts_of(task.id)[0].signed == receipt
            await until(lambda: alice.consumer.journal.errand_providers() == [])


class Wire:
    """A TCP relay that can fall silent: bytes are taken in and go nowhere, connections stay open."""

    def __init__(self) -> None:
        self.silent = False
        self.port = 0

    async def run(self, target: int, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async def relay(stream: trio.SocketStream) -> None:
            try:
                async with (
                    stream,
                    await trio.open_tcp_stream("127.0.0.1", target) as other,
                    trio.open_nursery() as nursery,
                ):
                    nursery.start_soon(self._pump, stream, other, nursery)
                    nursery.start_soon(self._pump, other, stream, nursery)
            except OSError:
                return

        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listener.socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(relay, [listener])

    async def _pump(
        self, source: trio.SocketStream, target: trio.SocketStream, nursery: trio.Nursery
    ) -> None:
        try:
            async for data in source:
                if not self.silent:
                    await target.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("comes_back", [True, False])
async def test_a_network_that_swallows_everything(town: Town, comes_back: bool) -> None:
    """A moment of silence is not a failure (bacalhau 3944); a long one is, though no connection broke."""
    wire = Wire()
    patient = TasksConfig(lost_contact_seconds=3.0 if comes_back else 0.9)
    async with (
        town.open_node("bob", capacity=capacity_of()) as bob,
        town.open_node("alice", settings=patient) as alice,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(wire.run, bob.port)
        town.contacts["bob"] = Contact(bob.public, "127.0.0.1", wire.port)
        task = await alice.consumer.submit(task_of(town.folder, "sleep", attempts=1))
        await until(lambda: task.state == "RUNNING")
        wire.silent = True
        await until(lambda: task.state == "UNKNOWN")
        if comes_back:
            wire.silent = False
            await until(lambda: task.state == "RUNNING")
            assert task.live.attempt == 1
            assert bob.provider.tasks_running == 1
            await task.cancel()
            assert (await ending_of(task)).state == "CANCELED"
        else:
            ending = await ending_of(task)
            assert ending.state == "SYSTEM_ERROR"
            assert "contact with" in ending.text
            wire.silent = False
            await until(lambda: bob.provider.tasks_running == 0)
            assert alice.ledger.totals().receipts == bob.ledger.totals().receipts == 0
        nursery.cancel_scope.cancel()
