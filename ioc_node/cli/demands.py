"""A demand from the options of a command line."""

import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from ioc_node.errors import UsageError
from ioc_node.market.demand import PRECISIONS, make_demand
from ioc_wire.cid import CLASSES
from ioc_wire.market import Demand

F = TypeVar("F", bound=Callable[..., Any])

_PEAK: Final = re.compile(r"(?P<precision>[a-z0-9]+):(?P<number>[0-9]{1,9}(?:\.[0-9]{1,6})?)")

_OPTIONS: Final = (
    click.option(
        "--cores", type=click.FloatRange(0.001, 65536), default=1.0, show_default=True, help="Cores needed."
    ),
    click.option(
        "--memory",
        default="256MiB",
        show_default=True,
        help="Memory needed, such as 8GiB (a bare number is MiB).",
    ),
    click.option(
        "--disk", default="0", show_default=True, help="Disk needed, such as 10GiB (a bare number is MiB)."
    ),
    click.option(
        "--gpu",
        multiple=True,
        help="Accelerators as TYPE, TYPE:COUNT or TYPE:MODEL:COUNT: gpu:2, gpu:h100/h200:8, npu:0.5. Given several"
        " times, all are wanted.",
    ),
    click.option("--gpu-memory", default="", help="Memory of each of these devices, such as 40GiB."),
    click.option(
        "--tflops",
        default="",
        metavar="PRECISION:N",
        help=f"Peak rate of each of these devices, as fp16:300. Precisions: {', '.join(PRECISIONS)} (TOPS).",
    ),
    click.option("--runtime", multiple=True, help="Runtime needed: wasm, process."),
    click.option("--service", multiple=True, help="Service that the host must have."),
    click.option(
        "--class",
        "resource_class",
        type=click.Choice(CLASSES),
        help="Only of this class: general, AI, supercomputing or edge.",
    ),
    click.option(
        "--within",
        multiple=True,
        help="Only inside this prefix, such as cn.r3301, or beginning of an identifier (ioc:…). Given several times,"
        " any of them.",
    ),
    click.option("--outside", multiple=True, help="Not inside this prefix or beginning of an identifier."),
    click.option("--city", multiple=True, help="Only in this city, such as 3301."),
    click.option("--arch", multiple=True, help="Only this CPU architecture, such as x86_64."),
    click.option(
        "--rtt-ms",
        type=click.FloatRange(0.001, 3_600_000),
        help="Round trip from here at most, milliseconds.",
    ),
    click.option(
        "--data-at",
        default="",
        help="Count --rtt-ms from where the data is instead: a provider's prefix or an identifier of its (estimated).",
    ),
    click.option(
        "--price-max", type=click.FloatRange(0, 1e9), help="Price per core-hour at most, in the currency."
    ),
    click.option("--where", default="", help="Expression over a host's fields; `find --fields` lists them."),
    click.option(
        "--gang",
        type=click.IntRange(1, 256),
        default=1,
        show_default=True,
        help="Hosts wanted together: so many, or none.",
    ),
    click.option(
        "--duration",
        "--seconds",
        "duration",
        default="1h",
        show_default=True,
        help="How long the task may run: 90 (seconds), 15m, 2h, 1d.",
    ),
)
_OPTION_OF: Final = {
    "accelerators": "--gpu",
    "accelerator-memory": "--gpu-memory",
    "precision": "--tflops",
    "min-tflops": "--tflops",
    "avoid": "--outside",
    "max-rtt-ms": "--rtt-ms",
    "max-price": "--price-max",
    "data-at": "--data-at",
    **{
        name: f"--{name}"
        for name in ("cores", "gang", "memory", "disk", "duration", "class", "within", "where")
    },
}
"""What `make_demand` calls an argument that is called otherwise here."""


def demand_options(command: F) -> F:
    """Add the options that `demand_from` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def demand_from(
    *,
    gpu: tuple[str, ...],
    gpu_memory: str,
    tflops: str,
    runtime: tuple[str, ...],
    service: tuple[str, ...],
    resource_class: str | None,
    outside: tuple[str, ...],
    city: tuple[str, ...],
    arch: tuple[str, ...],
    rtt_ms: float | None,
    price_max: float | None,
    **same: Any,
) -> Demand:
    """The demand that the options mean; `same` are those that `make_demand` takes by the same name. Raises
    `UsageError`.
    """
    precision, min_tflops = _peak(tflops)
    if not gpu and (precision or gpu_memory):
        raise UsageError("--gpu-memory and --tflops say something of accelerators: name some, as --gpu gpu:1")
    try:
        return make_demand(
            accelerators=gpu,
            accelerator_memory=gpu_memory or 0,
            precision=precision,
            min_tflops=min_tflops,
            runtimes=runtime,
            services=service,
            avoid=outside,
            cities=city,
            architectures=arch,
            max_rtt_ms=rtt_ms,
            max_price=price_max,
            resource_class=resource_class or "",
            **same,
        )
    except UsageError as error:
        name, colon, text = str(error).partition(":")
        raise UsageError(f"{_OPTION_OF.get(name, name)}{colon}{text}") from None


def _peak(text: str) -> tuple[str, float]:
    """`fp16:300` as precision and TFLOPS. Raises `UsageError`."""
    if not text:
        return "", 0.0
    match = _PEAK.fullmatch(text)
    if match is None:
        raise UsageError(f"--tflops: {text!r} does not read PRECISION:N, as fp16:300")
    return match["precision"], float(match["number"])
