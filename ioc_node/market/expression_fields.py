"""What an expression can ask of a host: the fields, where their values lie, their units, and how values are read.

A field's values lie with the kinds of host (place, accelerators), the traits (software, processor), the labels, or in a
column of numbers, by host or by group of accelerators. Numbers are whole ones of a small unit: comparisons are exact.
"""

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Literal

from ioc_node.errors import UsageError
from ioc_node.market.expression_text import Comparison, comparisons, parse
from ioc_node.market.kinds import Traits, unpack_labels
from ioc_wire.records import Accelerator

Domain = Literal["class", "city", "pool", "shape", "traits", "labels", "rows", "groups"]
PRECISIONS: Final = ("fp64", "fp32", "tf32", "bf16", "fp16", "fp8")
NUMBER_MAX: Final = 1 << 62
_NUMBER: Final = re.compile(r"(?P<number>[0-9]{1,12}(?:\.[0-9]{1,6})?)(?P<unit>[A-Za-z]*)")
_SIZES: Final = {
    "k": Decimal(1) / 1024,
    "kib": Decimal(1) / 1024,
    "m": Decimal(1),
    "mib": Decimal(1),
    "g": Decimal(1024),
    "gib": Decimal(1024),
    "t": Decimal(1 << 20),
    "tib": Decimal(1 << 20),
}
_TIMES: Final = {"s": Decimal(1), "m": Decimal(60), "h": Decimal(3600), "d": Decimal(86400)}


@dataclass(frozen=True, slots=True)
class Field:
    """`values` gives the words or whole numbers of one interned value (several where a host has several: a comparison
    holds if one of them meets it). Numbers: `scale` of them are one of `unit`; `column` says where, for rows.
    """

    name: str
    meaning: str
    domain: Domain
    values: Callable[[Any], Sequence[str] | Sequence[int]] = lambda value: ()
    column: str = ""
    unit: str = ""
    scale: int = 0
    units: tuple[tuple[str, Decimal], ...] = ()
    under: bool = False
    """Whether `=` means label by label: `cn.r3301` and all that is below it."""

    @property
    def is_number(self) -> bool:
        return self.scale > 0


def _of_shape(name: str) -> Callable[[tuple[Accelerator, ...]], list[Any]]:
    return lambda shape: [getattr(group, name) for group in shape]


def _peak(precision: str) -> Callable[[tuple[Accelerator, ...]], list[int]]:
    return lambda shape: [gops for group in shape for name, gops in group.peak if name == precision]


def _word(pick: Callable[[Any], str]) -> Callable[[Any], tuple[str, ...]]:
    return lambda value: (pick(value),)


def _size(name: str, meaning: str, column: str) -> Field:
    return Field(name, meaning, "rows", column=column, unit="MiB", scale=1, units=tuple(_SIZES.items()))


def _price(name: str, meaning: str, column: str) -> Field:
    return Field(name, meaning, "rows", column=column, unit="currency", scale=1_000_000)


def _fields() -> list[Field]:
    fields = [
        Field(
            "prefix", "node and provider, or what is below: cn.r3301", "pool", _word(_prefix_of), under=True
        ),
        Field("class", "gen, ai, sup or edge", "class", _word(str)),
        Field("city", "GB/T 2260, four digits", "city", _word(str)),
        Field("zone", "availability zone", "pool", _word(lambda pool: pool.split("/")[3])),
        Field("accelerator.type", "gpu, npu, …", "shape", _of_shape("type")),
        Field("accelerator.vendor", "maker of the device", "shape", _of_shape("vendor")),
        Field("accelerator.model", "model of the device", "shape", _of_shape("model")),
        Field("accelerator.sharing", "exclusive or shared", "shape", _of_shape("sharing")),
        Field("accelerator.source", "of the peak: nominal or measured", "shape", _of_shape("peak_source")),
        Field(
            "accelerator.count", "devices of one group", "shape", _of_shape("count"), unit="devices", scale=1
        ),
        Field(
            "accelerator.memory",
            "of one device",
            "shape",
            _of_shape("memory_mib"),
            unit="MiB",
            scale=1,
            units=tuple(_SIZES.items()),
        ),
        Field("tops.int8", "of one device", "shape", _of_shape("int8_gops"), unit="TOPS", scale=1000),
    ]
    for precision in PRECISIONS:
        text = f"peak of one device in {precision}"
        fields.append(
            Field(f"tflops.{precision}", text, "shape", _peak(precision), unit="TFLOPS", scale=1000)
        )
    traits: tuple[tuple[str, str, Callable[[Traits], Sequence[str]]], ...] = (
        ("runtime", "one that the host has", lambda one: one.runtimes),
        ("service", "one that the host offers", lambda one: one.services),
        ("offload", "shm, ucx, …: one that the host has", lambda one: one.offloads),
        ("architecture", "as `uname -m` prints it", lambda one: (one.architecture,)),
        ("cpu.model", "name of the processor", lambda one: (one.cpu_model,)),
        ("management", "operating, management, cluster or bare", lambda one: (one.management,)),
    )
    fields += [Field(name, meaning, "traits", values) for name, meaning, values in traits]
    return [
        *fields,
        Field("cores", "of the host", "rows", column="cores", unit="cores", scale=1000),
        _size("memory", "of the host", "memory"),
        _size("disk", "of the host", "disk"),
        Field(
            "duration",
            "that a task may run",
            "rows",
            column="seconds",
            unit="s",
            scale=1,
            units=tuple(_TIMES.items()),
        ),
        Field("free.cores", "now", "rows", column="free_cores", unit="cores", scale=1000),
        _size("free.memory", "now", "free_memory"),
        Field("accelerator.free", "now, devices of one group", "groups", unit="devices", scale=1000),
        Field("queued", "tasks that wait there now", "rows", column="queued", unit="tasks", scale=1),
        _price("price.core_hour", "now", "core_hour_now"),
        _price("price.accelerator_hour", "as registered", "accelerator_hour"),
        _price("price.gib_hour", "of memory, as registered", "gib_hour"),
    ]


def _prefix_of(pool: str) -> str:
    return pool.removeprefix("ioc:").partition("/")[0]


FIELDS: Final = {field.name: field for field in _fields()}
LABEL: Final = "label."


def field_of(comparison: Comparison) -> Field:
    """The field of a comparison. Raises `UsageError` for one that does not exist."""
    name = comparison.field
    if name.startswith(LABEL) and len(name) > len(LABEL):
        key = name.removeprefix(LABEL)

        def values(packed: bytes) -> list[str]:
            return [value for label, value in unpack_labels(packed) if label.lower() == key]

        return Field(name, "a label of the host", "labels", values)
    found = FIELDS.get(name)
    if found is None:
        near = difflib.get_close_matches(name, FIELDS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else "; `ioc-node find --fields` lists them"
        raise UsageError(f"where: no field {name!r} at place {comparison.at + 1}{hint}")
    return found


def interval(field: Field, comparison: Comparison, value: str) -> tuple[int, int]:
    """The whole numbers (smallest, largest) that stand to `value` as the operator says; empty where the first is the
    larger. For `!=` those that are equal. Raises `UsageError` for what is no number of the field's unit.
    """
    match = _NUMBER.fullmatch(value)
    factor = (
        dict(field.units).get(match["unit"].lower()) if match is not None and match["unit"] else Decimal(1)
    )
    if match is None or factor is None:
        units = "".join(f", {name}" for name, _ in field.units)
        raise UsageError(
            f"where: {value!r} for {field.name} at place {comparison.at + 1} is no number of {field.unit}{units}"
        )
    exact = Decimal(match["number"]) * factor * field.scale
    floor = min(int(exact), NUMBER_MAX)
    ceiling = floor if exact == floor else floor + 1
    return {
        "=": (ceiling, floor),
        "!=": (ceiling, floor),
        ">=": (ceiling, NUMBER_MAX),
        ">": (floor + 1, NUMBER_MAX),
        "<=": (0, floor),
        "<": (0, ceiling - 1),
    }[comparison.operator]


def check(comparison: Comparison) -> tuple[Field, list[tuple[int, int]]]:
    """The field of a comparison that asks it something sensible, and of numbers the interval of each value. Raises
    `UsageError`.
    """
    field = field_of(comparison)
    if not field.is_number and comparison.operator not in ("=", "!=", "exists"):
        raise UsageError(
            f"where: {field.name} {comparison.operator} at place {comparison.at + 1}: words are equal (=) or not (!=)"
        )
    if field.domain == "rows" and comparison.operator == "exists":
        raise UsageError(
            f"where: every host has {field.name}: exists at place {comparison.at + 1} asks nothing"
        )
    if not field.is_number:
        return field, []
    return field, [interval(field, comparison, value) for value in comparison.values]


def check_expression(text: str) -> None:
    """Raise `UsageError` for what is no expression over hosts."""
    for comparison in comparisons(parse(text)):
        check(comparison)
