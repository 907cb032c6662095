"""The lease book: what it promises, to whom, and that nothing is ever promised twice or lost."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from ioc_node.errors import StorageFull
from ioc_node.market.leases import Capacity, Device, LeaseBook, choose_devices, whole
from ioc_node.runtime.store import Store, open_store
from ioc_wire.errors import Busy, LeaseEnded, LeaseRefused, LeaseTaken, NotOwner, WireError
from ioc_wire.market import Demand, Lease, ReserveLease
from ioc_wire.signed import public_bytes, verify
from ioc_wire.tasks import AcceleratorDemand, Resources

KEY = Ed25519PrivateKey.from_private_bytes(b"provider".ljust(32, b"."))
CID = "ioc:cn.r3301.20004/gen/3301/az1/host"
ALICE, BOB = b"a" * 32, b"b" * 32
GPU = Device("gpu", "h100", 81920)
SLICED = Device("gpu", "l4", 24576, shared=True)
CAPACITY = Capacity(4000, 1024, 2048, (GPU, SLICED, SLICED), ("wasm",), price_micro=100)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "node.db") as store:
        yield store


@pytest.fixture
def book(store: Store) -> LeaseBook:
    return LeaseBook(store, KEY, {CID: CAPACITY}, lease_seconds=10)


def ask(
    cores: float = 1.0,
    *,
    task: int = 1,
    attempt: int = 1,
    gpus: tuple[AcceleratorDemand, ...] = (),
    memory_mib: int = 64,
    disk_mib: int = 64,
    runtime: str = "wasm",
    wall_seconds: int = 60,
    cid: str = CID,
    price_micro_max: int | None = None,
) -> ReserveLease:
    resources = Resources(cores=cores, accelerators=gpus, memory_mib=memory_mib, disk_mib=disk_mib)
    demand = Demand(resources=resources, runtimes=(runtime,), wall_seconds=wall_seconds)
    return ReserveLease(cid, demand, bytes([task]) * 32, attempt, price_micro_max)


def granted(book: LeaseBook, request: ReserveLease, *, consumer: bytes = ALICE, now: float = 0) -> Lease:
    signed = book.reserve(request, consumer, now)
    assert signed.key == public_bytes(KEY)
    return verify(signed, Lease)


def test_a_lease_takes_exactly_what_was_asked_for_and_gives_it_back(book: LeaseBook) -> None:
    lease = granted(book, ask(1.5))
    assert (lease.cores_milli, lease.memory_mib, lease.price_micro, lease.expires) == (1500, 64, 100, 10)
    assert book.free(CID).cores_milli == 2500
    assert book.release(lease.lease, ALICE, 1)
    assert book.free(CID) == whole(CAPACITY)
    assert not book.release(lease.lease, ALICE, 1)


def test_asking_again_for_the_same_attempt_gives_the_same_lease(book: LeaseBook) -> None:
    assert book.reserve(ask(), ALICE, 0) == book.reserve(ask(), ALICE, 1)
    assert granted(book, ask(), consumer=BOB).lease != granted(book, ask()).lease


@pytest.mark.parametrize(
    ("request_", "line"),
    [
        (ask(5), "5000 core thousandths are asked for"),
        (ask(memory_mib=4096), "4096 MiB of memory are asked for"),
        (ask(disk_mib=4096), "4096 MiB of disk are asked for"),
        (ask(runtime="slurm"), "runtime 'slurm' is asked for, .* has: wasm"),
        (ask(wall_seconds=10**9), "seconds are asked for"),
        (ask(price_micro_max=99), "a core-hour costs 100, at most 99 is paid"),
        (ask(cid="ioc:cn.r3301.20004/gen/3301/az1/other"), "is not served here"),
        (ask(gpus=(AcceleratorDemand(models=("a100",)),)), "does not have the accelerators"),
        (ask(gpus=(AcceleratorDemand(count_milli=2**62),)), "does not have the accelerators"),
        (ask(gpus=(AcceleratorDemand(count_milli=500, models=("h100",)),)), "does not have the accelerators"),
    ],
)
def test_what_can_never_be_given_is_refused_with_the_reason(
    book: LeaseBook, request_: ReserveLease, line: str
) -> None:
    with pytest.raises(LeaseRefused, match=line):
        book.reserve(request_, ALICE, 0)


def test_what_cannot_be_given_now_is_busy_and_can_be_later(book: LeaseBook) -> None:
    first = granted(book, ask(4, task=1))
    with pytest.raises(Busy, match="1000 core thousandths are asked for, 0 are free now"):
        book.reserve(ask(1, task=2), ALICE, 0)
    book.release(first.lease, ALICE, 0)
    granted(book, ask(1, task=2))


def test_a_fraction_of_a_device_is_never_pieced_together(book: LeaseBook) -> None:
    """ray 52133: two devices with 600 free each do not make one with 1000."""
    part = AcceleratorDemand(count_milli=400, models=("l4",))
    granted(book, ask(task=1, gpus=(part,)))
    second = granted(book, ask(task=2, gpus=(part,)))
    assert second.accelerators_milli == (0, 400, 0), "the fuller device is filled first"
    granted(book, ask(task=3, gpus=(AcceleratorDemand(count_milli=1000, models=("l4",)),)))
    with pytest.raises(Busy):
        book.reserve(ask(task=4, gpus=(part,)), ALICE, 0)


def test_a_device_is_chosen_by_its_peak_and_left_to_who_needs_it() -> None:
    slow = Device("gpu", "L4", 24576, peaks=(("fp16", 121_000),))
    fast = Device("gpu", "H100", 81920, peaks=(("fp16", 989_000), ("fp64", 34_000)))
    quick = AcceleratorDemand(precision="fp16", tflops_min=900)
    anyone = AcceleratorDemand()
    assert choose_devices((quick,), (slow, fast), (1000, 1000)) == (0, 1000)
    assert choose_devices((anyone, quick), (fast, slow), (1000, 1000)) == (1000, 1000)
    assert choose_devices((AcceleratorDemand(models=("h100",)),), (slow, fast), (1000, 1000)) == (0, 1000)
    double = AcceleratorDemand(precision="fp64", tflops_min=100)
    assert choose_devices((double,), (slow, fast), (1000, 1000)) is None


def test_exactly_one_order_accepts(book: LeaseBook) -> None:
    lease = granted(book, ask())
    for task, attempt in ((b"x" * 32, 1), (lease.task, 2)):
        with pytest.raises(NotOwner):
            book.accept(lease.lease, ALICE, task, attempt, 1)
    with pytest.raises(NotOwner):
        book.accept(lease.lease, BOB, lease.task, 1, 1)
    book.accept(lease.lease, ALICE, lease.task, 1, 1)
    with pytest.raises(LeaseTaken):
        book.accept(lease.lease, ALICE, lease.task, 1, 1)
    assert not book.release(lease.lease, ALICE, 1), "an accepted lease ends with its task"
    assert book.end(lease.lease, 2)
    assert not book.end(lease.lease, 2)
    with pytest.raises(LeaseEnded):
        book.accept(lease.lease, ALICE, lease.task, 1, 3)


def test_an_accepted_lease_outlives_its_promise_and_a_held_one_does_not(book: LeaseBook) -> None:
    held, kept = granted(book, ask(task=1)), granted(book, ask(task=2))
    book.accept(kept.lease, ALICE, kept.task, 1, 1)
    assert book.expire(10) == 1
    assert [lease.lease for lease in book.accepted()] == [kept.lease]
    with pytest.raises(LeaseEnded, match="expired"):
        book.accept(held.lease, ALICE, held.task, 1, 10)


def test_nobody_else_can_release(book: LeaseBook) -> None:
    lease = granted(book, ask())
    with pytest.raises(NotOwner):
        book.release(lease.lease, BOB, 1)


def test_one_consumer_cannot_hold_everything_for_ever(store: Store) -> None:
    huge = LeaseBook(store, KEY, {CID: Capacity(10**9, 10**9, 10**9, (), ("wasm",))}, lease_seconds=10)
    for number in range(1024):
        huge.reserve(ask(attempt=number), ALICE, 0)
    with pytest.raises(Busy, match="wait to be accepted"):
        huge.reserve(ask(attempt=5000), ALICE, 0)
    huge.reserve(ask(attempt=5000), BOB, 0)
    huge.reserve(ask(attempt=5000), ALICE, 11)


def test_a_restart_knows_what_is_taken(store: Store, book: LeaseBook) -> None:
    held, kept = granted(book, ask(task=1)), granted(book, ask(task=2))
    book.accept(kept.lease, ALICE, kept.task, 1, 1)
    again = LeaseBook(store, KEY, {CID: CAPACITY}, lease_seconds=10)
    assert again.free(CID) == book.free(CID)
    assert (again.held(), again.accepted()) == ([held], [kept])


def test_a_transaction_rolled_back_leaves_the_journal_in_charge(store: Store, book: LeaseBook) -> None:
    lease = granted(book, ask())

    def accept_on_a_full_disk() -> None:
        with store.transaction():
            book.accept(lease.lease, ALICE, lease.task, 1, 1)
            raise StorageFull("no space is left")

    with pytest.raises(StorageFull):
        accept_on_a_full_disk()
    book.reload()
    assert book.accept(lease.lease, ALICE, lease.task, 1, 1) == lease


class Leases(RuleBasedStateMachine):
    """Whatever is asked for in whatever order: what is free and what is taken is always the whole."""

    leases = Bundle("leases")

    @initialize()
    def open(self) -> None:
        self.folder = TemporaryDirectory()
        self.opened = open_store(Path(self.folder.name) / "node.db")
        self.store = self.opened.__enter__()
        self.now = 0.0
        self.tasks = itertools.count(1)
        self.accepted: set[bytes] = set()
        self.restart()

    @rule()
    def restart(self) -> None:
        self.book = LeaseBook(self.store, KEY, {CID: CAPACITY}, lease_seconds=10)

    @rule(
        target=leases,
        cores=st.sampled_from([0.001, 0.5, 1, 2.5, 4]),
        memory=st.sampled_from([0, 100, 512]),
        gpu=st.sampled_from([None, 250, 700, 1000, 1500]),
        consumer=st.sampled_from([ALICE, BOB]),
    )
    def reserve(
        self, cores: float, memory: int, gpu: int | None, consumer: bytes
    ) -> tuple[Lease, bytes] | None:
        gpus = () if gpu is None else (AcceleratorDemand(count_milli=gpu),)
        request = ask(cores, attempt=next(self.tasks), memory_mib=memory, gpus=gpus)
        before = self.book.free(CID)
        try:
            lease = granted(self.book, request, consumer=consumer, now=self.now)
        except Busy:
            return None
        assert sum(lease.accelerators_milli) == (gpu or 0)
        assert lease.cores_milli <= max(before.cores_milli, 4000)
        return lease, consumer

    @rule(lease=leases, own=st.booleans())
    def accept(self, lease: tuple[Lease, bytes] | None, own: bool) -> None:
        if lease is None:
            return
        promise, consumer = lease
        asker = consumer if own else (BOB if consumer == ALICE else ALICE)
        try:
            self.book.accept(promise.lease, asker, promise.task, promise.attempt, self.now)
        except WireError:
            return
        assert own
        assert promise.lease not in self.accepted, "accepted twice"
        assert self.now < promise.expires, "accepted after its end"
        self.accepted.add(promise.lease)

    @rule(lease=leases)
    def release(self, lease: tuple[Lease, bytes] | None) -> None:
        if lease is not None and self.book.release(lease[0].lease, lease[1], self.now):
            assert lease[0].lease not in self.accepted

    @rule(lease=consumes(leases))
    def end(self, lease: tuple[Lease, bytes] | None) -> None:
        if lease is not None:
            self.book.end(lease[0].lease, self.now)
            assert not self.book.end(lease[0].lease, self.now)

    @rule(seconds=st.sampled_from([1, 4, 20]))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        self.book.expire(self.now)

    @invariant()
    def nothing_is_lost_or_promised_twice(self) -> None:
        free = self.book.free(CID)
        taken = [*self.book.held(), *self.book.accepted()]
        assert free.floor >= 0
        assert free.cores_milli + sum(lease.cores_milli for lease in taken) == CAPACITY.cores_milli
        assert free.memory_mib + sum(lease.memory_mib for lease in taken) == CAPACITY.memory_mib
        for device, left in enumerate(free.devices_milli):
            assert left + sum(lease.accelerators_milli[device] for lease in taken) == 1000
        assert all(lease.expires > self.now for lease in self.book.held()), "an expired promise still counts"
        (journalled,) = self.store.fetch("SELECT count(*) FROM leases WHERE phase != 'ended'")[0]
        assert journalled == len(taken)

    def teardown(self) -> None:
        if hasattr(self, "opened"):
            self.opened.__exit__(None, None, None)
            self.folder.cleanup()


TestLeases = Leases.TestCase
TestLeases.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
