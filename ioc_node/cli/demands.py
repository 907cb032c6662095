"""A demand from the options of a command line."""

import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from ioc_node.errors import UsageError
from ioc_node.market.expression_fields import check_expression
from ioc_wire.cid import check_prefix
from ioc_wire.market import Demand
from ioc_wire.tasks import AcceleratorDemand, Constraints, Resources

F = TypeVar("F", bound=Callable[..., Any])

_SIZE: Final = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[kmgt]?i?b?)", re.IGNORECASE)
_MIB: Final = {"": 1.0, "k": 1 / 1024, "m": 1.0, "g": 1024.0, "t": 1024.0 * 1024}

_OPTIONS: Final = (
    click.option("--cores", type=click.FloatRange(min=0, min_open=True), default=1.0, help="Cores needed."),
    click.option("--memory", default="256MiB", help="Memory needed, such as 8GiB (a bare number is MiB)."),
    click.option("--disk", default="0", help="Disk needed, such as 10GiB (a bare number is MiB)."),
    click.option("--gpu", multiple=True, help="Accelerators as TYPE, TYPE:COUNT or TYPE:MODEL:COUNT."),
    click.option("--runtime", multiple=True, help="Runtime needed: wasm, process."),
    click.option("--class", "resource_class", type=click.Choice(["gen", "ai", "sup", "edge"])),
    click.option("--within", multiple=True, help="Only inside this identifier prefix, such as cn.r3301."),
    click.option("--outside", multiple=True, help="Not inside this identifier prefix."),
    click.option("--city", multiple=True, help="Only in this city, such as 3301."),
    click.option("--arch", multiple=True, help="Only this CPU architecture, such as x86_64."),
    click.option("--service", multiple=True, help="Service that the resource must have."),
    click.option("--rtt-ms", type=click.FloatRange(min=0, min_open=True), help="Round trip at most."),
    click.option("--price-max", type=click.FloatRange(min=0), help="Price per core-hour at most."),
    click.option("--where", default="", help="Expression over a host's fields; `find --fields` lists them."),
    click.option(
        "--gang", type=click.IntRange(1, 256), default=1, help="Hosts wanted together: so many, or none."
    ),
    click.option("--seconds", type=click.IntRange(min=1), default=3600, help="Wall-clock seconds needed."),
)


def demand_options(command: F) -> F:
    """Add the options that `demand_from` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def demand_from(
    *,
    cores: float,
    memory: str,
    disk: str,
    gpu: tuple[str, ...],
    runtime: tuple[str, ...],
    resource_class: Any,
    within: tuple[str, ...],
    outside: tuple[str, ...],
    city: tuple[str, ...],
    arch: tuple[str, ...],
    service: tuple[str, ...],
    rtt_ms: float | None,
    price_max: float | None,
    where: str,
    gang: int,
    seconds: int,
) -> Demand:
    """The demand that the options mean. Raises `UsageError`, `BadIdentifier`."""
    for prefix in (*within, *outside):
        check_prefix(prefix)
    if where:
        check_expression(where)
    return Demand(
        resources=Resources(
            cores=cores,
            memory_mib=mebibytes(memory, "--memory"),
            disk_mib=mebibytes(disk, "--disk"),
            accelerators=tuple(accelerator(text) for text in gpu),
        ),
        constraints=Constraints(
            resource_class=resource_class or "",
            allow=within,
            deny=outside,
            cities=city,
            architectures=arch,
            services=service,
            rtt_ms_max=rtt_ms,
            price_micro_max=None if price_max is None else round(price_max * 1e6),
            where=where,
        ),
        runtimes=runtime,
        wall_seconds=seconds,
        gang=gang,
    )


def mebibytes(text: str, option: str) -> int:
    """`8GiB`, `512M` or `512` (MiB) as MiB, rounded up. Raises `UsageError`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or match["unit"].lower() in ("b", "ib"):
        raise UsageError(f"{option}: expected a size such as 512MiB or 8GiB, not {text!r}")
    value = float(match["number"]) * _MIB[match["unit"][:1].lower()]
    return int(-(-value // 1))


def accelerator(text: str) -> AcceleratorDemand:
    """`gpu`, `gpu:2`, `gpu:h100:8` or `gpu:h100:0.5`. Raises `UsageError`."""
    kind, *rest = text.split(":")
    model, count = ("", "1") if not rest else ("", rest[0]) if len(rest) == 1 else (rest[0], rest[1])
    if len(rest) == 1 and not re.fullmatch(r"\d+(\.\d+)?", count):
        model, count = count, "1"
    if len(rest) > 2 or not kind or not re.fullmatch(r"\d+(\.\d{1,3})?", count) or not float(count):
        raise UsageError(f"--gpu: expected TYPE, TYPE:COUNT or TYPE:MODEL:COUNT, not {text!r}")
    return AcceleratorDemand(
        type=kind, models=(model,) if model else (), count_milli=round(float(count) * 1000)
    )
