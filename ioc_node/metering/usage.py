"""What an attempt used, from what was measured to a signed `UsageRecord`, and whether to believe one.

All figures are integers: milliseconds of a core, MiB-milliseconds of memory, bytes, milliseconds.
"""

from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ioc_wire.errors import BadReceipt
from ioc_wire.market import Lease
from ioc_wire.metering import UsageRecord, cost_of, verify_usage
from ioc_wire.signed import Signed, public_bytes, sign

WALL_SLACK_MS: Final = 2_000
"""How much longer than the consumer saw an attempt may claim to have lasted: clocks and delivery."""
CORE_SLACK_MS: Final = 1_000
"""Core time beyond `cores * wall` that is tolerated: accounting of the operating system is coarse."""


@dataclass
class Meter:
    """Adds up what one attempt uses. Times are milliseconds since 1970 on the provider's clock."""

    started_ms: int
    core_ms: int = 0
    mib_ms: int = 0
    accelerator_ms: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    def add_transfer_in(self, bytes_moved: int) -> None:
        self.bytes_in += bytes_moved

    def add_outputs(self, size: int) -> None:
        self.bytes_out += size

    def add_run(self, lease: Lease, *, core_ms: int, mib_ms: int, wall_ms: int) -> None:
        """One execution. No more core time or memory is charged than the lease kept for it."""
        self.core_ms += min(core_ms, core_ms_max(lease, wall_ms))
        self.mib_ms += min(mib_ms, lease.memory_mib * wall_ms)
        self.accelerator_ms += sum(lease.accelerators_milli) * wall_ms // 1000

    def close(self, lease: Lease, key: Ed25519PrivateKey, *, ended_ms: int, state: str) -> Signed:
        """The signed record of an attempt that ended in `state`."""
        ended_ms = max(ended_ms, self.started_ms)
        return sign(
            key,
            UsageRecord(
                task=lease.task,
                attempt=lease.attempt,
                lease=lease.lease,
                provider=public_bytes(key),
                consumer=lease.consumer,
                cid=lease.cid,
                started_ms=self.started_ms,
                ended_ms=ended_ms,
                wall_ms=ended_ms - self.started_ms,
                core_ms=self.core_ms,
                mib_ms=self.mib_ms,
                bytes_in=self.bytes_in,
                bytes_out=self.bytes_out,
                price_micro=lease.price_micro,
                cost_micro=cost_of(self.core_ms, lease.price_micro),
                state=state,
                accelerator_ms=self.accelerator_ms,
            ),
        )


def core_ms_max(lease: Lease, wall_ms: int) -> int:
    """The most core time that a lease can have used in `wall_ms`."""
    return lease.cores_milli * wall_ms // 1000 + CORE_SLACK_MS


def check_usage(signed: Signed, lease: Lease, provider: bytes, *, seen_ms: int, state: str) -> UsageRecord:
    """The record inside `signed`, where it is what the lease promised and the consumer saw.

    `seen_ms` is how long the attempt lasted on the consumer's own clock, from sending the order to the last
    event. Raises `BadReceipt` naming the figure that is wrong, `BadSignature` or `Malformed`.
    """
    usage = verify_usage(signed)
    if usage.provider != provider:
        raise BadReceipt("the usage record is signed by another provider than the one that ran the task")
    for name in ("lease", "task", "attempt", "consumer", "cid", "price_micro"):
        if getattr(usage, name) != getattr(lease, name):
            raise BadReceipt(f"its {name.replace('_micro', '')} is not that of the lease")
    if usage.state != state:
        raise BadReceipt(f"it says {usage.state}, the task's last event says {state}")
    if usage.wall_ms != usage.ended_ms - usage.started_ms or usage.wall_ms > seen_ms + WALL_SLACK_MS:
        raise BadReceipt(f"it claims {usage.wall_ms} ms, the consumer saw {seen_ms} ms")
    if usage.core_ms > core_ms_max(lease, usage.wall_ms):
        raise BadReceipt(
            f"{usage.core_ms} core-ms in {usage.wall_ms} ms on {lease.cores_milli} core thousandths"
        )
    if usage.mib_ms > lease.memory_mib * (usage.wall_ms + WALL_SLACK_MS):
        raise BadReceipt(f"{usage.mib_ms} MiB-ms in {usage.wall_ms} ms with {lease.memory_mib} MiB")
    if usage.cost_micro != cost_of(usage.core_ms, usage.price_micro):
        raise BadReceipt(f"the cost is {usage.cost_micro}, price and core time make another sum")
    return usage
