"""What a provider refuses, whoever asks how; and that a bug in one story stays there."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import msgspec
import pytest

from ioc_node.executors.executor import Outcome, Report, Work
from ioc_node.runtime.links import Handlers, Link, open_links
from ioc_node.tasks.story import now_ms
from ioc_wire.bulk import TicketIssued, format_blob_id
from ioc_wire.errors import (
    BadSignature,
    BadTask,
    LeaseEnded,
    LeaseRefused,
    LeaseTaken,
    NotOwner,
    Superseded,
    TaskUnknown,
    WireError,
)
from ioc_wire.market import (
    Lease,
    LeaseGranted,
    MeasureRtt,
    ReleaseLease,
    ReserveLease,
    RttMeasured,
    demand_of,
)
from ioc_wire.messages import NODE_CODEC
from ioc_wire.metering import Receipt, UsageRecord
from ioc_wire.signed import public_bytes, sign, verify
from ioc_wire.tasks import (
    CancelTask,
    Done,
    ExecutorStep,
    GrantOutput,
    Input,
    Output,
    Resources,
    SettleTask,
    StartTask,
    TaskDefinition,
    TaskEvent,
    TaskOrder,
    TaskProgress,
    TaskStarted,
    WatchTask,
    definition_bytes,
    task_id_of,
)
from tests.tasks.cases import (
    NETWORK,
    QUICK,
    TaskNode,
    Town,
    capacity_of,
    cid_of,
    key_of,
    program,
    until,
)

NONCE = bytes(16)


class Stranger:
    """A consumer that says whatever the test wants."""

    def __init__(self, name: str, link: Link, blob: str) -> None:
        self.key = key_of(name)
        self.public = public_bytes(self.key)
        self.link = link
        self.sleep = TaskDefinition(
            name="sleep",
            executor=ExecutorStep(runtime="wasm", program=blob),
            resources=Resources(cores=1, memory_mib=64, disk_mib=64),
        )

    def task_id(self, definition: TaskDefinition) -> bytes:
        return task_id_of(definition_bytes(definition), self.public, NONCE)

    async def reserve(self, definition: TaskDefinition | None = None, attempt: int = 1) -> Lease:
        definition = definition or self.sleep
        ask = ReserveLease(cid_of("bob"), demand_of(definition), self.task_id(definition), attempt)
        return verify((await self.link.request(ask, LeaseGranted)).lease, Lease)

    def order(self, promise: Lease, what: TaskDefinition | None = None, **change: object) -> StartTask:
        """An order for `what` under a lease, with fields changed for the worse."""
        what = what or self.sleep
        order = TaskOrder(self.task_id(what), promise.attempt, promise.lease, definition_bytes(what), NONCE)
        return StartTask(sign(self.key, msgspec.structs.replace(order, **change)), ())

    async def last_event(self, task: bytes, attempt: int = 1) -> TaskEvent:
        events: list[TaskEvent] = []
        async with self.link.open_stream(WatchTask(task, attempt, 0), TaskProgress) as progress:
            async for message in progress:
                events += message.events
        return events[-1]


@dataclass
class People:
    """A provider, and two consumers linked to it."""

    bob: TaskNode
    alice: Stranger
    mallory: Stranger


@asynccontextmanager
async def people(town: Town) -> AsyncIterator[People]:
    async with AsyncExitStack() as stack:
        bob = await stack.enter_async_context(town.open_node("bob", capacity=capacity_of(cores=8)))
        info = await bob.exchange.blobs.add_file(program(town.folder, "sleep"))

        async def open_stranger(name: str) -> Stranger:
            opening = open_links(
                key_of(name),
                NETWORK,
                host="127.0.0.1",
                port=0,
                codec=NODE_CODEC,
                handlers=Handlers(),
                settings=QUICK,
            )
            links = await stack.enter_async_context(opening)
            link = await links.connect(("127.0.0.1", bob.port), bob.public)
            return Stranger(name, link, f"blob:{format_blob_id(info.blob)}")

        yield People(bob, await open_stranger("alice"), await open_stranger("mallory"))


async def test_an_order_is_taken_once_and_can_be_repeated(town: Town) -> None:
    async with people(town) as who:
        alice, bob = who.alice, who.bob
        lease = await alice.reserve()
        for _ in range(3):
            assert await alice.link.request(alice.order(lease)) == TaskStarted(lease.task, 1)
        assert bob.provider.tasks_running == 1
        assert await alice.link.request(ReleaseLease(lease.lease)) == Done()
        assert bob.book.free(cid_of("bob")).cores_milli == 7000, "an accepted lease ends with its task"
        assert await alice.link.request(MeasureRtt(), RttMeasured) == RttMeasured(125)
        await alice.link.request(CancelTask(lease.task, 1, "enough"))
        last = await alice.last_event(lease.task)
        assert (last.state, last.text) == ("CANCELED", "enough")
        assert await alice.link.request(CancelTask(lease.task, 1, "again")) == Done()


async def test_orders_that_are_refused(town: Town) -> None:
    async with people(town) as who:
        alice, mallory, bob = who.alice, who.mallory, who.bob
        lease = await alice.reserve()
        good = alice.order(lease)
        tampered = msgspec.structs.replace(
            good.order, payload=good.order.payload[:-1] + bytes((good.order.payload[-1] ^ 1,))
        )
        thirsty = msgspec.structs.replace(
            alice.sleep, resources=Resources(cores=2, memory_mib=64, disk_mib=64)
        )
        native = msgspec.structs.replace(
            alice.sleep, executor=ExecutorStep(runtime="process", command=("true",))
        )
        remote = msgspec.structs.replace(alice.sleep, inputs=(Input(path="in", url="file:/etc/passwd"),))
        outside = msgspec.structs.replace(alice.sleep, outputs=(Output(path="../../node.key"),))
        cases: list[tuple[Stranger, StartTask, type[WireError]]] = [
            (mallory, good, NotOwner),
            (alice, StartTask(tampered, ()), BadSignature),
            (alice, alice.order(lease, lease=bytes(32)), LeaseEnded),
            (alice, alice.order(lease, attempt=9), NotOwner),
            (alice, alice.order(lease, task=bytes(32)), BadTask),
            (alice, alice.order(lease, definition=b"\x81\xa1x\x01"), BadTask),
            (alice, alice.order(lease, thirsty), BadTask),
            (alice, alice.order(lease, native), BadTask),
            (alice, alice.order(lease, remote), BadTask),
            (alice, alice.order(lease, outside), BadTask),
            (mallory, mallory.order(lease), NotOwner),
        ]
        for sender, message, fault in cases:
            with pytest.raises(fault):
                await sender.link.request(message)
        assert bob.provider.tasks_running == 0
        assert bob.book.held() == [lease], "none of them used the lease up"
        await alice.link.request(good)


async def test_only_the_owner_watches_cancels_and_settles(town: Town) -> None:
    async with people(town) as who:
        alice, mallory, bob = who.alice, who.mallory, who.bob
        lease = await alice.reserve()
        await alice.link.request(alice.order(lease))
        with pytest.raises(NotOwner):
            await mallory.last_event(lease.task)
        with pytest.raises(NotOwner):
            await mallory.link.request(CancelTask(lease.task, 1, "mine now"))
        with pytest.raises(TaskUnknown):
            await alice.last_event(lease.task, attempt=2)
        with pytest.raises(TaskUnknown):
            await mallory.link.request(GrantOutput(lease.task, bytes(32), mallory.public), TicketIssued)
        await alice.link.request(CancelTask(lease.task, 1, ""))
        usage = (await alice.last_event(lease.task)).usage
        assert usage is not None
        receipt = sign(alice.key, Receipt(usage, now_ms()))
        for sender, wrong in (
            (mallory, receipt),
            (alice, sign(mallory.key, Receipt(usage, now_ms()))),
            (alice, sign(alice.key, Receipt(sign(alice.key, verify(usage, UsageRecord)), now_ms()))),
        ):
            with pytest.raises(WireError):
                await sender.link.request(SettleTask(lease.task, wrong))
        assert bob.ledger.totals().receipts == 0
        for _ in range(2):
            assert await alice.link.request(SettleTask(lease.task, receipt)) == Done()
        again = sign(alice.key, Receipt(usage, now_ms() + 1))
        assert await alice.link.request(SettleTask(lease.task, again)) == Done()
        assert bob.ledger.totals().receipts == 1, "countersigned twice is paid once"


async def test_a_later_attempt_supersedes_an_earlier_one(town: Town) -> None:
    async with people(town) as who:
        alice, bob = who.alice, who.bob
        first, second = await alice.reserve(), await alice.reserve(attempt=2)
        await alice.link.request(alice.order(first))
        await alice.link.request(alice.order(second))
        assert (await alice.last_event(first.task, 1)).state == "CANCELED"
        assert bob.provider.tasks_running == 1
        third, late = await alice.reserve(attempt=3), await alice.reserve(attempt=1)
        await alice.link.request(alice.order(third))
        with pytest.raises(LeaseTaken):
            await alice.link.request(alice.order(late))
        other = msgspec.structs.replace(alice.sleep, name="other")
        newer, older = await alice.reserve(other, attempt=5), await alice.reserve(other, attempt=4)
        await alice.link.request(alice.order(newer, other))
        with pytest.raises(Superseded):
            await alice.link.request(alice.order(older, other))


async def test_an_input_without_a_ticket_ends_the_attempt_by_name(town: Town) -> None:
    async with people(town) as who:
        alice, bob = who.alice, who.bob
        lacking = msgspec.structs.replace(alice.sleep, inputs=(Input(path="dem", url="blob:b" + "a" * 52),))
        lease = await alice.reserve(lacking)
        await alice.link.request(alice.order(lease, lacking))
        last = await alice.last_event(lease.task)
        assert (last.state, last.text) == ("SYSTEM_ERROR", "there is no ticket for input 'dem'")
        assert bob.book.accepted() == []
        with pytest.raises(LeaseRefused):
            await alice.reserve(
                msgspec.structs.replace(alice.sleep, executor=ExecutorStep(runtime="slurm", command=("x",)))
            )


class Buggy:
    """An executor with a mistake in it."""

    runtime = "wasm"

    async def run(self, work: Work, report: Report) -> Outcome:
        raise KeyError("a mistake")


async def test_a_bug_in_one_story_ends_that_story_and_nothing_else(town: Town) -> None:
    async with people(town) as who:
        alice, bob = who.alice, who.bob
        good = await alice.reserve()
        await alice.link.request(alice.order(good))
        await until(lambda: [row.state for row in bob.provider.rows(9)] == ["RUNNING"])
        executors = dict(bob.provider._workshop.executors)
        bob.provider._workshop.executors = {"wasm": Buggy()}  # type: ignore[dict-item]
        other = msgspec.structs.replace(alice.sleep, name="other")
        lease = await alice.reserve(other)
        await alice.link.request(alice.order(lease, other))
        last = await alice.last_event(lease.task)
        assert (last.state, last.text) == ("SYSTEM_ERROR", "internal error: KeyError: 'a mistake'")
        bob.provider._workshop.executors = executors
        assert bob.provider.tasks_running == 1
        assert [each.lease for each in bob.book.accepted()] == [good.lease]


async def test_a_folder_is_private_and_gone_afterwards(town: Town) -> None:
    async with people(town) as who:
        alice, bob = who.alice, who.bob
        lease = await alice.reserve()
        await alice.link.request(alice.order(lease))
        await until(lambda: [row.state for row in bob.provider.rows(9)] == ["RUNNING"])
        (folder,) = (bob.home / "tasks").iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (bob.home / "tasks").stat().st_mode & 0o777 == 0o700
        await alice.link.request(CancelTask(lease.task, 1, ""))
        await alice.last_event(lease.task)
        assert not list((bob.home / "tasks").iterdir())
