"""The provider's lease book: time-bounded promises, journalled before they are given.

A lease is `held` from its reservation until it is accepted, released or its time is up; `accepted` until the task
that accepted it ends; then `ended`. Only held and accepted leases take anything away from what is free. The book in
memory is always what the journal says: every change is written first, and a restart reads the journal again.

All quantities are exact integers, and each accelerator is counted by itself, so nothing can go below zero and a
fraction of a device is never promised where only pieces of several are left.
"""

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_node.runtime.store import Store
from ioc_wire.codec import decode, encode
from ioc_wire.errors import Busy, LeaseEnded, LeaseRefused, LeaseTaken, NotOwner
from ioc_wire.market import Lease, ReserveLease
from ioc_wire.records import Accelerator
from ioc_wire.signed import Signed, sign
from ioc_wire.tasks import AcceleratorDemand

LEASE_SECONDS: Final = 30
"""How long a lease waits for its order before it expires."""
HELD_MAX: Final = 1024
"""Leases that one consumer may hold without having accepted them."""
ENDED_KEPT_SECONDS: Final = 3600
"""How long the journal keeps a lease whose task has ended. One that nobody accepted leaves nothing."""
MILLI: Final = 1000

Phase = Literal["held", "accepted", "ended"]

_SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS leases (
         lease BLOB PRIMARY KEY, phase TEXT NOT NULL, expires INTEGER NOT NULL, changed INTEGER NOT NULL,
         signed BLOB NOT NULL) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS leases_phase ON leases (phase, changed)",
)


@dataclass(frozen=True)
class Device:
    """One accelerator. A device that is not `shared` is only given away whole."""

    type: str
    model: str
    memory_mib: int
    shared: bool = False
    peaks: tuple[tuple[str, int], ...] = ()
    """Billions of operations per second by precision."""


@dataclass(frozen=True)
class Capacity:
    """What one identifier has to give, and at which price (millionths of the currency per core-hour)."""

    cores_milli: int
    memory_mib: int
    disk_mib: int
    devices: tuple[Device, ...] = ()
    runtimes: tuple[str, ...] = ()
    price_micro: int = 0
    wall_seconds_max: int = 30 * 86400


@dataclass(frozen=True)
class Amounts:
    """Quantities of one identifier: core thousandths, MiB, and thousandths of each device in order."""

    cores_milli: int
    memory_mib: int
    disk_mib: int
    devices_milli: tuple[int, ...]

    def minus(self, other: "Amounts") -> "Amounts":
        devices = zip(self.devices_milli, other.devices_milli, strict=False)
        return Amounts(
            self.cores_milli - other.cores_milli,
            self.memory_mib - other.memory_mib,
            self.disk_mib - other.disk_mib,
            tuple(mine - theirs for mine, theirs in devices),
        )

    @property
    def floor(self) -> int:
        """The smallest of all quantities."""
        return min(self.cores_milli, self.memory_mib, self.disk_mib, *self.devices_milli, 1 << 62)


@dataclass(frozen=True)
class _Entry:
    lease: Lease
    signed: Signed
    phase: Phase


class LeaseBook:
    """All leases on the identifiers in `capacities` (identifier text to capacity).

    `now` is seconds since 1970 everywhere. Methods are synchronous: between two of them nothing is half done.
    """

    def __init__(
        self,
        store: Store,
        key: Ed25519PrivateKey,
        capacities: Mapping[str, Capacity],
        *,
        lease_seconds: int = LEASE_SECONDS,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._store = store
        self._key = key
        self._capacities = dict(capacities)
        self._lease_seconds = lease_seconds
        self._random_bytes = random_bytes
        self._taking: dict[bytes, _Entry] = {}
        store.require("leases", _SCHEMA)
        self.reload()

    def reload(self) -> None:
        """Read the journal again: at the start, and after a transaction that was rolled back."""
        self._taking.clear()
        for phase, signed in self._store.fetch("SELECT phase, signed FROM leases WHERE phase != 'ended'"):
            envelope = decode(signed, Signed)
            lease = decode(envelope.payload, Lease)  # our own promise, from our own journal
            self._taking[lease.lease] = _Entry(lease, envelope, phase)

    # -- what is there

    @property
    def capacities(self) -> Mapping[str, Capacity]:
        return self._capacities

    def free(self, cid: str) -> Amounts:
        """What is free of an identifier now; never below zero unless its capacity was reduced. Raises `KeyError`."""
        free = whole(self._capacities[cid])
        for entry in self._taking.values():
            if entry.lease.cid == cid:
                free = free.minus(amounts_of(entry.lease, len(free.devices_milli)))
        return free

    def used_milli(self) -> int:
        """Thousandths of all cores that are promised or in use."""
        total = sum(capacity.cores_milli for capacity in self._capacities.values())
        used = sum(entry.lease.cores_milli for entry in self._taking.values())
        return min(MILLI, used * MILLI // total) if total else MILLI

    def accepted(self) -> list[Lease]:
        """Leases whose tasks have not ended."""
        return [entry.lease for entry in self._taking.values() if entry.phase == "accepted"]

    def held(self) -> list[Lease]:
        """Leases that nobody has accepted yet."""
        return [entry.lease for entry in self._taking.values() if entry.phase == "held"]

    # -- what can happen to a lease

    def reserve(self, request: ReserveLease, consumer: bytes, now: float) -> Signed:
        """Promise what is asked for. Asking again for the same attempt gives the same lease again.

        Raises `LeaseRefused` for what can never be given here and `Busy` for what cannot be given now.
        """
        self.expire(now)
        if (known := self._same_attempt(request, consumer)) is not None:
            return known
        if sum(entry.lease.consumer == consumer for entry in self._held_entries()) >= HELD_MAX:
            raise Busy(f"{HELD_MAX} leases of this consumer wait to be accepted")
        capacity = self._capacities.get(request.cid)
        if capacity is None:
            raise LeaseRefused(f"{request.cid} is not served here")
        check_possible(request, capacity)
        wanted = self._take(request, capacity)
        lease = Lease(
            lease=self._random_bytes(32),
            cid=request.cid,
            consumer=consumer,
            task=request.task,
            attempt=request.attempt,
            cores_milli=wanted.cores_milli,
            memory_mib=wanted.memory_mib,
            disk_mib=wanted.disk_mib,
            accelerators_milli=wanted.devices_milli,
            price_micro=capacity.price_micro,
            issued=int(now),
            expires=int(now) + self._lease_seconds,
        )
        signed = sign(self._key, lease)
        self._store.execute(
            "INSERT INTO leases (lease, phase, expires, changed, signed) VALUES (?, 'held', ?, ?, ?)",
            (lease.lease, lease.expires, int(now), encode(signed)),
        )
        self._taking[lease.lease] = _Entry(lease, signed, "held")
        return signed

    def accept(self, lease: bytes, consumer: bytes, task: bytes, attempt: int, now: float) -> Lease:
        """Bind a held lease to its task; exactly one order can do so.

        Raises `NotOwner`, `LeaseTaken` where it was accepted already, and `LeaseEnded` where it is gone.
        """
        self.expire(now)
        entry = self._taking.get(lease)
        if entry is None:
            raise LeaseEnded("it has expired, was given back, or never existed")
        if entry.lease.consumer != consumer:
            raise NotOwner("this lease was promised to somebody else")
        if (entry.lease.task, entry.lease.attempt) != (task, attempt):
            raise NotOwner("this lease was promised for another task or attempt")
        if entry.phase != "held":
            raise LeaseTaken("by an earlier order")
        self._move(entry, "accepted", now)
        return entry.lease

    def release(self, lease: bytes, consumer: bytes, now: float) -> bool:
        """Give a held lease back; whether there was one. An accepted lease only ends with its task."""
        entry = self._taking.get(lease)
        if entry is None or entry.phase != "held":
            return False
        if entry.lease.consumer != consumer:
            raise NotOwner("this lease was promised to somebody else")
        self._move(entry, "ended", now)
        return True

    def end(self, lease: bytes, now: float) -> bool:
        """The task of a lease has ended; whether the lease was still taking anything."""
        entry = self._taking.get(lease)
        if entry is None:
            return False
        self._move(entry, "ended", now)
        return True

    def expire(self, now: float) -> int:
        """End held leases whose time is up. Returns how many ended."""
        late = [entry for entry in self._held_entries() if entry.lease.expires <= now]
        for entry in late:
            self._move(entry, "ended", now)
        return len(late)

    def forget_ended(self, now: float) -> int:
        """Drop from the journal what ended long ago. Returns how many leases that were."""
        before = int(now) - ENDED_KEPT_SECONDS
        return self._store.execute("DELETE FROM leases WHERE phase = 'ended' AND changed < ?", (before,))

    # -- inside

    def _held_entries(self) -> Iterable[_Entry]:
        return (entry for entry in self._taking.values() if entry.phase == "held")

    def _same_attempt(self, request: ReserveLease, consumer: bytes) -> Signed | None:
        for entry in self._held_entries():
            lease = entry.lease
            wanted = (request.cid, request.task, request.attempt, consumer)
            if (lease.cid, lease.task, lease.attempt, lease.consumer) == wanted:
                return entry.signed
        return None

    def _take(self, request: ReserveLease, capacity: Capacity) -> Amounts:
        free = self.free(request.cid)
        resources = request.demand.resources
        cores_milli = cores_milli_of(resources.cores)
        for wanted, there, what in (
            (cores_milli, free.cores_milli, "core thousandths"),
            (resources.memory_mib, free.memory_mib, "MiB of memory"),
            (resources.disk_mib, free.disk_mib, "MiB of disk"),
        ):
            if wanted > there:
                raise Busy(f"{wanted} {what} are asked for, {max(there, 0)} are free now")
        devices = choose_devices(resources.accelerators, capacity.devices, free.devices_milli)
        if devices is None:
            raise Busy("no accelerator that fits is free now")
        return Amounts(cores_milli, resources.memory_mib, resources.disk_mib, devices)

    def _move(self, entry: _Entry, phase: Phase, now: float) -> None:
        if phase == "ended" and entry.phase == "held":
            # It never bound anybody. Kept, such rows would let one who reserves and releases fill the disk.
            self._store.execute("DELETE FROM leases WHERE lease = ?", (entry.lease.lease,))
        else:
            self._store.execute(
                "UPDATE leases SET phase = ?, changed = ? WHERE lease = ?",
                (phase, int(now), entry.lease.lease),
            )
        if phase == "ended":
            del self._taking[entry.lease.lease]
        else:
            self._taking[entry.lease.lease] = _Entry(entry.lease, entry.signed, phase)


def cores_milli_of(cores: float) -> int:
    """Cores of a demand in thousandths, rounded to the nearest, at least one."""
    return max(1, round(cores * MILLI))


def whole(capacity: Capacity) -> Amounts:
    """All that an identifier has."""
    devices = (MILLI,) * len(capacity.devices)
    return Amounts(capacity.cores_milli, capacity.memory_mib, capacity.disk_mib, devices)


def amounts_of(lease: Lease, devices: int) -> Amounts:
    """What a lease takes, its devices padded or cut to the number that there are now."""
    taken = (*lease.accelerators_milli, *((0,) * devices))[:devices]
    return Amounts(lease.cores_milli, lease.memory_mib, lease.disk_mib, taken)


def check_possible(request: ReserveLease, capacity: Capacity) -> None:
    """Raise `LeaseRefused`, naming the figure, for what this identifier could not give even when idle."""
    demand = request.demand
    resources = demand.resources
    for wanted, there, what in (
        (cores_milli_of(resources.cores), capacity.cores_milli, "core thousandths"),
        (resources.memory_mib, capacity.memory_mib, "MiB of memory"),
        (resources.disk_mib, capacity.disk_mib, "MiB of disk"),
        (demand.wall_seconds, capacity.wall_seconds_max, "seconds"),
    ):
        if wanted > there:
            raise LeaseRefused(f"{wanted} {what} are asked for, {request.cid} has {there}")
    for runtime in demand.runtimes:
        if runtime not in capacity.runtimes:
            offered = ", ".join(capacity.runtimes) or "none"
            raise LeaseRefused(f"runtime {runtime!r} is asked for, {request.cid} has: {offered}")
    if request.price_micro_max is not None and capacity.price_micro > request.price_micro_max:
        raise LeaseRefused(
            f"a core-hour costs {capacity.price_micro}, at most {request.price_micro_max} is paid"
        )
    idle = (MILLI,) * len(capacity.devices)
    if choose_devices(resources.accelerators, capacity.devices, idle) is None:
        raise LeaseRefused(f"{request.cid} does not have the accelerators that are asked for")


def choose_devices(
    demands: Sequence[AcceleratorDemand], devices: tuple[Device, ...], free: tuple[int, ...]
) -> tuple[int, ...] | None:
    """Thousandths of each device that serve all demands, or None where the free ones do not.

    Whole devices take idle ones; a fraction takes the fullest shared device that still has room, so that the
    emptiest stay whole. What few devices serve is chosen first, then what is large.
    """
    left = list(free)
    fitting = [
        [number for number, device in enumerate(devices) if is_wanted(device, demand, device.peaks)]
        for demand in demands
    ]
    pairs = zip(demands, fitting, strict=True)
    for demand, fits in sorted(pairs, key=lambda pair: (len(pair[1]), -pair[0].count_milli)):
        whole_devices, fraction = divmod(demand.count_milli, MILLI)
        if whole_devices > len(devices):
            return None
        for part, count in ((MILLI, whole_devices), (fraction, 1 if fraction else 0)):
            for _ in range(count):
                found = [n for n in fits if left[n] >= part and (devices[n].shared or part == MILLI)]
                if not found:
                    return None
                left[min(found, key=lambda number: left[number])] -= part
    return tuple(before - after for before, after in zip(free, left, strict=True))


def peaks_of(group: Accelerator) -> tuple[tuple[str, int], ...]:
    """What one device of a group does at its peak, by precision; these are never added together."""
    return (*group.peak, *((("int8", group.int8_gops),) if group.int8_gops else ()))


def is_wanted(
    there: Device | Accelerator, demand: AcceleratorDemand, peaks: Iterable[tuple[str, int]]
) -> bool:
    """Whether one device is of the kind that is asked for: type, model (case does not count), memory, peak rate."""
    if there.type != demand.type or there.memory_mib < demand.memory_mib_min:
        return False
    if demand.models and there.model.lower() not in {model.lower() for model in demand.models}:
        return False
    return demand.tflops_min <= 0 or dict(peaks).get(demand.precision, 0) >= demand.tflops_min * 1000
