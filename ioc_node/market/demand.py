"""Demands as people write them: `make_demand(accelerators="gpu:h100:8", cores=16, max_rtt_ms=20)`.

The options of `ioc-node find` lead here too. Every mistake is a `UsageError` of one line that names the argument, what
it was given and what it takes.
"""

import math
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Final, get_args

import msgspec

from ioc_node.errors import UsageError
from ioc_node.market.expression_fields import check_expression
from ioc_wire.cid import CLASSES, check_area, provider_prefix_of
from ioc_wire.errors import BadIdentifier
from ioc_wire.limits import OFFERS_MAX
from ioc_wire.market import Demand, OffersFound, Removal
from ioc_wire.records import Precision
from ioc_wire.tasks import AcceleratorDemand, Constraints, Resources

_ACCELERATOR: Final = re.compile(
    r"(?P<type>[a-z]+)(?::(?P<models>\*|[a-z][a-z0-9_.+-]*(?:/[a-z][a-z0-9_.+-]*)*))?"
    r"(?::(?P<whole>[0-9]{1,7})(?:\.(?P<decimals>[0-9]{1,3}))?)?"
)
_SIZE: Final = re.compile(r"(?P<number>[0-9]{1,15}(?:\.[0-9]{1,9})?)\s*(?P<unit>[kmgt]i?b?)?", re.IGNORECASE)
_MIB: Final = {"k": Decimal(1) / 1024, "m": Decimal(1), "g": Decimal(1024), "t": Decimal(1 << 20)}
_MIB_MAX: Final = 1 << 40
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
PRECISIONS: Final[tuple[str, ...]] = get_args(Precision)


def make_demand(
    *,
    accelerators: str | Sequence[str] = (),
    accelerator_memory: int | str = 0,
    precision: str = "",
    min_tflops: float = 0,
    cores: float = 1,
    memory: int | str = 256,
    disk: int | str = 256,
    runtimes: Sequence[str] | str = (),
    resource_class: str = "",
    within: Sequence[str] | str = (),
    avoid: Sequence[str] | str = (),
    cities: Sequence[str] | str = (),
    architectures: Sequence[str] | str = (),
    services: Sequence[str] | str = (),
    max_rtt_ms: float | None = None,
    data_at: str = "",
    max_price: float | None = None,
    where: str = "",
    gang: int = 1,
    duration: int | str = 3600,
) -> Demand:
    """A demand from friendly values. Raises `UsageError`.

    `accelerators` reads TYPE, TYPE:COUNT or TYPE:MODEL:COUNT, the count with up to three decimals (`gpu:a100:0.5` is
    half a shared device), several models with a slash between them (`gpu:a100/h100:8`); several items are wanted
    together. Each of their devices has `accelerator_memory` and, in `precision`, `min_tflops` at least. Sizes are MiB,
    or text such as `16GiB`; `duration` is seconds, or text such as `90m`. `within` and `avoid` are prefixes
    (`cn.r3301`) or beginnings of identifiers (`ioc:cn.r3301.20004/ai`). `max_price` is currency per core-hour. `where`
    is an expression, as `tflops.fp16 >= 100 and not city in (3301, 3302)`; `ioc_node.market.expression_fields` has the
    fields. `max_rtt_ms` counts from here, or from the provider that `data_at` names, by its prefix or an identifier of
    its. `gang` hosts are wanted together: so many, or none.
    """
    _check_range("cores", cores, 0.001, 65536)
    _check_range("gang", gang, 1, OFFERS_MAX)
    if max_rtt_ms is not None:
        _check_range("max-rtt-ms", max_rtt_ms, 0.001, 3_600_000)
    if max_price is not None:
        _check_range("max-price", max_price, 0, 1e9)
    if resource_class and resource_class not in CLASSES:
        raise UsageError(f"class: {resource_class!r} is none of {', '.join(CLASSES)}")
    if where:
        check_expression(where)
    items = tuple(
        _accelerator(item, accelerator_memory, precision, min_tflops) for item in _listed(accelerators)
    )
    if not items and (accelerator_memory or precision or min_tflops):
        raise UsageError(
            "accelerator memory, precision and TFLOPS say something of accelerators: name some, as gpu:1"
        )
    constraints = Constraints(
        resource_class=resource_class,  # type: ignore[arg-type]  # checked above
        allow=tuple(_place("within", item) for item in _listed(within)),
        deny=tuple(_place("avoid", item) for item in _listed(avoid)),
        cities=_listed(cities),
        architectures=_listed(architectures),
        services=_listed(services),
        rtt_ms_max=max_rtt_ms,
        data_at=_provider("data-at", data_at, max_rtt_ms) if data_at else "",
        price_micro_max=None if max_price is None else round(max_price * 1_000_000),
        where=where,
    )
    resources = Resources(
        cores=cores,
        memory_mib=mebibytes("memory", memory),
        disk_mib=mebibytes("disk", disk),
        accelerators=items,
    )
    demand = Demand(
        resources=resources,
        constraints=constraints,
        runtimes=_listed(runtimes),
        wall_seconds=seconds_of("duration", duration),
        gang=gang,
    )
    try:
        return msgspec.convert(msgspec.to_builtins(demand), Demand)
    except msgspec.ValidationError as error:
        raise UsageError(f"the demand is too large or has an empty word: {error}") from None


def explain(found: OffersFound, extra: Sequence[Removal] = ()) -> str:
    """Why nothing was offered, in one line: `cannot be placed: cores: 3 removed; nearest miss …`."""
    removals = (*found.removals, *extra)
    if not found.considered:
        return "cannot be placed: no provider's hosts are known here yet"
    parts = [
        f"{removal.condition}: {removal.removed} removed"
        + (f"; nearest miss {removal.nearest}" if removal.nearest else "")
        for removal in removals
    ]
    return f"cannot be placed on any of {found.considered} hosts: {' | '.join(parts)}"


def _listed(value: Sequence[str] | str) -> tuple[str, ...]:
    items = value.split(",") if isinstance(value, str) else value
    return tuple(item.strip() for item in items if item.strip())


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UsageError(f"{name}: {value:g} is not between {low:g} and {high:g}")


def _accelerator(text: str, memory: int | str, precision: str, min_tflops: float) -> AcceleratorDemand:
    match = _ACCELERATOR.fullmatch(text.strip().lower())
    if match is None:
        raise UsageError(
            f"accelerators: {text!r} does not read TYPE:COUNT or TYPE:MODEL:COUNT, as gpu:h100:8 or gpu:0.5"
        )
    count_milli = int(match["whole"] or 1) * 1000 + int((match["decimals"] or "").ljust(3, "0"))
    if not 0 < count_milli <= 1_000_000_000:
        raise UsageError(f"accelerators: {text!r}: the count is not between 0.001 and 1000000")
    if precision and precision not in PRECISIONS:
        raise UsageError(f"precision: {precision!r} is none of {', '.join(PRECISIONS)}")
    if min_tflops and not precision:
        raise UsageError("min-tflops: say of which precision, they are not comparable")
    _check_range("min-tflops", min_tflops, 0, 1e9)
    models = match["models"] or "*"
    return AcceleratorDemand(
        type=match["type"],
        models=() if models == "*" else tuple(models.split("/")),
        count_milli=count_milli,
        memory_mib_min=mebibytes("accelerator-memory", memory),
        precision=precision,
        tflops_min=float(min_tflops),
    )


def mebibytes(name: str, value: int | str) -> int:
    """`8GiB`, `512M` or `512` (MiB) as MiB, rounded up. Raises `UsageError` that begins with `name`."""
    exact = Decimal(value) if isinstance(value, int) else _read_size(name, value)
    if not 0 <= exact <= _MIB_MAX:
        raise UsageError(f"{name}: {value} MiB is not between 0 and {_MIB_MAX}")
    return math.ceil(exact)


def _read_size(name: str, text: str) -> Decimal:
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{name}: {text!r} is no size such as 512, 512MiB or 16GiB")
    exact = Decimal(match["number"]) * _MIB[(match["unit"] or "m")[0].lower()]
    if exact > _MIB_MAX:
        raise UsageError(f"{name}: {text!r} is more than 1 EiB")
    return exact


def seconds_of(name: str, value: int | str) -> int:
    if isinstance(value, str):
        number, unit = (value[:-1], value[-1:]) if value[-1:] in _SECONDS else (value, "s")
        if not number.isdecimal() or len(number) > 9:
            raise UsageError(f"{name}: {value!r} is no duration such as 90, 90s, 15m, 2h or 1d")
        value = int(number) * _SECONDS[unit]
    if not 1 <= value <= 30 * 86400:
        raise UsageError(f"{name}: {value} s is not between 1 s and 30 days")
    return value


def _provider(name: str, text: str, max_rtt_ms: float | None) -> str:
    if max_rtt_ms is None:
        raise UsageError(f"{name}: says from where the round trip counts: give that, too")
    try:
        provider_prefix_of(text.rstrip("/"))
    except BadIdentifier as error:
        raise UsageError(f"{name}: {error.detail}") from None
    return text.rstrip("/")


def _place(name: str, text: str) -> str:
    try:
        return check_area(text.rstrip("/"))
    except BadIdentifier as error:
        raise UsageError(f"{name}: {error.detail}, nor the beginning of an identifier (ioc:…)") from None
