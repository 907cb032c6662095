"""A demand from options: everything that a demand can say has one, and each mistake is a line that names it."""

from typing import Any

import click
import pytest

from ioc_node.cli.demands import demand_from, demand_options
from ioc_node.errors import UsageError
from ioc_wire.market import Demand
from ioc_wire.tasks import AcceleratorDemand, Constraints, Resources


@click.command()
@demand_options
def command(**options: Any) -> Demand:
    return demand_from(**options)


def demand(*arguments: str) -> Demand:
    made: Demand = command.main(list(arguments), standalone_mode=False)
    return made


def test_every_field_of_a_demand_has_an_option() -> None:
    made = demand(
        *("--cores", "2.5", "--memory", "1.5GiB", "--disk", "0.1TiB", "--gpu", "gpu:A100/h100:8"),
        *("--gpu", "npu:0.125", "--gpu-memory", "40GiB", "--tflops", "fp16:312.5", "--runtime", "wasm"),
        *(
            "--service",
            "store",
            "--class",
            "ai",
            "--within",
            "cn.r3301",
            "--within",
            "ioc:cn.r1101.10007/ai/",
        ),
        *("--outside", "ioc:cn.r3301.20004/ai/3301/az1/h1", "--city", "3301", "--arch", "x86_64"),
        *(
            "--rtt-ms",
            "20",
            "--data-at",
            "cn.r3301.20004",
            "--price-max",
            "0.07",
            "--where",
            "queued = 0",
            "--gang",
            "4",
            "--duration",
            "90m",
        ),
    )
    each = {"memory_mib_min": 40960, "precision": "fp16", "tflops_min": 312.5}
    assert made == Demand(
        resources=Resources(
            cores=2.5,
            memory_mib=1536,
            disk_mib=104_858,  # 104857.6, rounded up
            accelerators=(
                AcceleratorDemand(type="gpu", models=("a100", "h100"), count_milli=8000, **each),
                AcceleratorDemand(type="npu", count_milli=125, **each),
            ),
        ),
        constraints=Constraints(
            resource_class="ai",
            allow=("cn.r3301", "ioc:cn.r1101.10007/ai"),
            deny=("ioc:cn.r3301.20004/ai/3301/az1/h1",),
            cities=("3301",),
            architectures=("x86_64",),
            services=("store",),
            rtt_ms_max=20,
            price_micro_max=70_000,
            where="queued = 0",
            data_at="cn.r3301.20004",
        ),
        runtimes=("wasm",),
        wall_seconds=5400,
        gang=4,
    )
    said = {field for part in (made, made.resources, made.constraints) for field in part.__struct_fields__}
    default = (Demand(), Resources(), Constraints())
    for part, plain in zip((made, made.resources, made.constraints), default, strict=True):
        left = [name for name in part.__struct_fields__ if getattr(part, name) == getattr(plain, name)]
        assert not left, f"of {said}, these were not said: {left}"


def test_counts_are_exact_to_the_thousandth() -> None:
    for milli in (1, 29, 57, 115, 290, 1001, 8999, 999_999):
        (wanted,) = demand("--gpu", f"gpu:{milli // 1000}.{milli % 1000:03d}").resources.accelerators
        assert wanted.count_milli == milli


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--gpu", "h100:8"), "--gpu: 'h100:8' does not read TYPE:COUNT or TYPE:MODEL:COUNT, as gpu:h100:8"),
        (("--gpu", "gpu:0.0005"), "--gpu: 'gpu:0.0005' does not read"),
        (("--gpu", "gpu:0"), "--gpu: 'gpu:0': the count is not between 0.001 and 1000000"),
        (("--gpu", "gpu:-1"), "--gpu: 'gpu:-1' does not read"),
        (("--tflops", "fp16:3"), "--gpu-memory and --tflops say something of accelerators: name some"),
        (("--gpu", "gpu", "--tflops", "312"), "--tflops: '312' does not read PRECISION:N, as fp16:300"),
        (("--gpu", "gpu", "--tflops", "fp12:3"), "--tflops: 'fp12' is none of fp64, fp32"),
        (("--gpu", "gpu", "--gpu-memory", "-1"), "--gpu-memory: '-1' is no size"),
        (("--memory", f"{'9' * 14}GiB"), f"--memory: '{'9' * 14}GiB' is more than 1 EiB"),
        (("--memory", "9" * 400), "is no size such as 512, 512MiB or 16GiB"),
        (("--disk", "1apple"), "--disk: '1apple' is no size"),
        (("--duration", "31d"), "--duration: 2678400 s is not between 1 s and 30 days"),
        (("--seconds", "9" * 5000), "is no duration such as 90, 90s, 15m, 2h or 1d"),
        (("--within", "cn.r33"), "--within: 'cn.r33' is not a prefix such as cn, cn.r3301"),
        (("--outside", "ioc:cn.r3301"), "--outside: 'ioc:cn.r3301' is not the beginning of an identifier"),
        (("--where", "cores >= "), "where: expected a value"),
        (("--data-at", "cn.r3301.20004"), "--data-at: says from where the round trip counts: give that, too"),
        (("--rtt-ms", "5", "--data-at", "cn.r3301"), "--data-at: 'cn.r3301' names no provider"),
        (("--rtt-ms", "5", "--data-at", "beijing"), "--data-at: 'beijing' is not a prefix"),
    ],
)
def test_a_mistake_names_its_option(arguments: tuple[str, ...], line: str) -> None:
    with pytest.raises(UsageError) as caught:
        demand(*arguments)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [("--cores", "1e9"), ("--cores", "nan"), ("--cores", "0"), ("--price-max", "1e20"), ("--rtt-ms", "0")],
)
def test_numbers_have_a_range(arguments: tuple[str, str]) -> None:
    with pytest.raises((click.BadParameter, UsageError)):
        demand(*arguments)
