"""What a task would cost: an estimate at its wall limit, in whole millionths of the currency.

    estimate = ceil( hours * (core_hour * cores + accelerator_hour * accelerators + gib_hour * memory) ) + task

with `hours` the demand's wall seconds / 3600, `memory` in GiB, and the record's prices per unit; a unit without a
price costs nothing. `core_hour` is the price in the status row where that is not 0. Bytes moved are not in it.
The sum is exact (integers, rounded up once).
"""

from typing import Final, NamedTuple

from ioc_node.market.leases import cores_milli_of
from ioc_wire.market import Demand
from ioc_wire.records import Price

ROUNDED: Final = 1 + 1e-9
"""By so much, at most, an estimate in floating point is beside the exact sum before that is rounded up."""
_SCALE: Final = 3600 * 1000 * 1024


class Prices(NamedTuple):
    """Millionths of the currency per unit; 0 where a record has no price for it."""

    core_hour: int = 0
    accelerator_hour: int = 0
    gib_hour: int = 0
    task: int = 0


def prices_of(prices: tuple[Price, ...]) -> Prices:
    """A record's prices; the first of two for one unit counts."""
    found: dict[str, int] = {}
    for price in prices:
        found.setdefault(price.unit, price.micro)
    return Prices(
        found.get("core-hour", 0),
        found.get("accelerator-hour", 0),
        found.get("gib-hour", 0),
        found.get("task", 0),
    )


def cores_milli(demand: Demand) -> int:
    """Thousandths of a core that a demand asks for, as leases count them."""
    return cores_milli_of(demand.resources.cores)


def accelerators_milli(demand: Demand) -> int:
    """Thousandths of accelerators that a demand asks for, all groups together."""
    return sum(item.count_milli for item in demand.resources.accelerators)


class Estimate:
    """The formula above, for one demand: `estimate(prices, price_now)`."""

    def __init__(self, demand: Demand) -> None:
        seconds = demand.wall_seconds
        self._core = cores_milli(demand) * 1024 * seconds
        self._accelerator = accelerators_milli(demand) * 1024 * seconds
        self._gib = demand.resources.memory_mib * 1000 * seconds

    def __call__(self, prices: Prices, core_hour_now: int) -> int:
        core_hour, accelerator_hour, gib_hour, task = prices
        total = (core_hour_now or core_hour) * self._core
        total += accelerator_hour * self._accelerator + gib_hour * self._gib
        return -(-total // _SCALE) + task


def format_micro(micro: int) -> str:
    """`0.12` for 120000."""
    whole, rest = divmod(micro, 1_000_000)
    return f"{whole}.{rest:06d}".rstrip("0") if rest else f"{whole}.0"
