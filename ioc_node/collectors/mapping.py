"""From other people's columns to a host: a mapping file in TOML, or our own columns where there is none.

    path = "gen/3301/az1/{sn}"            # {column} takes that column's text, in lower case
    path_with_gpu = "ai/3301/az1/{sn}"    # for hosts with accelerators; optional
    [constants]
    architecture = "x86_64"
    [columns]
    cpu_milli = { field = "cores", unit = "milli" }
    model = { field = "gpu_model", values = { V100M16 = "V100-16G" } }
    [gpus.V100-16G]
    memory_mib = 16384

Numbers are exact: what is no whole number of the field's unit is refused, never rounded. Units are never guessed.
"""

import re
import tomllib
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from ioc_node.collectors.collector import (
    BadCollector,
    CollectedHost,
    Devices,
    Free,
    Host,
    free_fault,
    whole,
)
from ioc_node.collectors.files import BadFile, read_text
from ioc_wire.records import Tflops

MAPPING_BYTES_MAX: Final = 1 << 20
_MEMORY: Final = {
    "B": Decimal(1) / (1 << 20), "KiB": Decimal(1) / 1024, "MiB": Decimal(1), "GiB": Decimal(1024),
    "TiB": Decimal(1 << 20),
}  # fmt: skip
_CORES: Final = {"cores": Decimal(1), "milli": Decimal(1) / 1000}
_MILLI: Final = {"milli": Decimal(1), "cores": Decimal(1000), "devices": Decimal(1000)}
_COUNT: Final = {"devices": Decimal(1)}
_NUMBERS: Final[dict[str, tuple[dict[str, Decimal], str]]] = {
    "cores": (_CORES, "cores"),
    "memory_mib": (_MEMORY, "MiB"),
    "storage_mib": (_MEMORY, "MiB"),
    "gpu_count": (_COUNT, "devices"),
    "gpu_memory_mib": (_MEMORY, "MiB"),
    "price_micro_per_core_hour": ({"micro": Decimal(1), "whole": Decimal(10**6)}, "micro"),
    "free_cores_milli": (_MILLI, "milli"),
    "free_memory_mib": (_MEMORY, "MiB"),
    "free_gpu_milli": (_MILLI, "milli"),
}
"""Fields that are whole numbers: their units with how many of ours one is, and the unit that is meant without."""
_TEXTS: Final = ("path", "architecture", "cpu_model", "gpu_model", "gpu_vendor", "gpu_type", "gpu_sharing")
_DEGREES: Final = ("latitude", "longitude")
FIELDS: Final = (*_TEXTS, *_NUMBERS, *_DEGREES)
LABEL: Final = "label."
"""Beginning of a field that becomes a label."""
_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")
_NUMBER: Final = re.compile(r"-?[0-9]{1,18}(?:\.[0-9]{1,9})?")


class RowFault(Exception):
    """One row cannot be used: in which column, and why. Never leaves this room."""

    def __init__(self, column: str, reason: str) -> None:
        super().__init__(reason)
        self.column = column
        self.reason = reason


class ColumnRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a column becomes. `values` translates texts; `default` stands for an empty one."""

    field: str
    unit: str = ""
    values: dict[str, str] = msgspec.field(default_factory=dict)
    default: str = ""


class GpuRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the rows don't say of a model of accelerator."""

    memory_mib: int = 0
    vendor: str = ""
    type: str = "gpu"
    sharing: str = "exclusive"
    tflops: Tflops = msgspec.field(default_factory=dict)


class ColumnMapping(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A mapping file."""

    path: str = ""
    path_with_gpu: str = ""
    constants: dict[str, str | int | float] = msgspec.field(default_factory=dict)
    columns: dict[str, ColumnRule] = msgspec.field(default_factory=dict)
    gpus: dict[str, GpuRule] = msgspec.field(default_factory=dict)


class _Value(NamedTuple):
    column: str
    value: Any


def load_mapping(path: Path | None) -> ColumnMapping:
    """A mapping file, checked; without one our own columns. Raises `BadCollector` naming the key at fault."""
    if path is None:
        return ColumnMapping()
    try:
        text = read_text(path, MAPPING_BYTES_MAX)
        mapping = msgspec.convert(tomllib.loads(text), ColumnMapping, strict=True)
    except (BadFile, ValueError, RecursionError) as error:  # ValueError: not TOML, or not a mapping
        raise BadCollector(f"mapping {path}: {error}") from None
    for column, rule in mapping.columns.items():
        _check_field(path, f"columns.{column}", rule.field)
        units = _NUMBERS[rule.field][0] if rule.field in _NUMBERS else {}
        if rule.unit and rule.unit not in units:
            allowed = ", ".join(units) or "none"
            raise BadCollector(
                f"mapping {path}: columns.{column}: unit {rule.unit!r}; {rule.field} takes: {allowed}"
            )
    for field in mapping.constants:
        _check_field(path, "constants", field)
    fields = [rule.field for rule in mapping.columns.values()]
    twice = sorted({field for field in fields if fields.count(field) > 1 or field in mapping.constants})
    if twice:
        raise BadCollector(f"mapping {path}: field {twice[0]!r} has two sources")
    return mapping


def _check_field(path: Path, where: str, field: str) -> None:
    if field not in FIELDS and not (field.startswith(LABEL) and len(field) > len(LABEL)):
        raise BadCollector(
            f"mapping {path}: {where}: field {field!r} is not one of {', '.join(FIELDS)}, {LABEL}NAME"
        )


def missing_columns(mapping: ColumnMapping, columns: list[str]) -> list[str]:
    """What `mapping` needs of a file that has these columns, and is not there."""
    if not mapping.columns and not mapping.path:
        return [field for field in ("path", "cores", "memory_mib") if field not in columns]
    placeholders = _PLACEHOLDER.findall(mapping.path) + _PLACEHOLDER.findall(mapping.path_with_gpu)
    return [name for name in dict.fromkeys([*mapping.columns, *placeholders]) if name not in columns]


def host_from_row(row: Mapping[str, Any], mapping: ColumnMapping, line: int) -> CollectedHost:
    """One row as a host. Raises `RowFault`."""
    values = _fields_of(row, mapping)
    devices = _devices(values, mapping)
    document: dict[str, Any] = {
        "path": _path_of(row, values, mapping, bool(devices)),
        "accelerators": devices,
    }
    names = ("architecture", "cpu_model", "cores", "memory_mib", "storage_mib", "price_micro_per_core_hour")
    document |= {name: values[name].value for name in (*names, *_DEGREES) if name in values}
    document["labels"] = {
        name.removeprefix(LABEL): found.value for name, found in values.items() if name.startswith(LABEL)
    }
    try:
        host = msgspec.convert(document, Host, strict=True)
    except msgspec.ValidationError as error:
        raise RowFault(*_explain(str(error), values)) from None
    free = _free_of(host, values)
    if fault := free_fault(host, free):
        raise RowFault("", fault)
    return CollectedHost(host, free, line)


def _fields_of(row: Mapping[str, Any], mapping: ColumnMapping) -> dict[str, _Value]:
    rules = mapping.columns
    if not rules and not mapping.path:  # our own columns
        unknown = [name for name in row if name not in FIELDS and not name.startswith(LABEL)]
        if unknown:
            raise RowFault(unknown[0], "unknown column; the spelling is wrong, or a mapping file is needed")
        rules = {name: ColumnRule(field=name) for name in row}
    values = {
        field: _Value(f"constant {field}", _converted(ColumnRule(field=field), f"constant {field}", text))
        for field, text in mapping.constants.items()
    }
    for column, rule in rules.items():
        found = row.get(column)
        text = str(found).strip() if found is not None else ""
        text = rule.values.get(text, text) or rule.default
        if text:
            values[rule.field] = _Value(column, _converted(rule, column, text))
    return values


def _converted(rule: ColumnRule, column: str, value: object) -> Any:
    text = str(value)
    if rule.field in _NUMBERS:
        units, usual = _NUMBERS[rule.field]
        return _whole_number(column, text, units[rule.unit or usual], usual)
    if rule.field in _DEGREES:
        if _NUMBER.fullmatch(text) is None:
            raise RowFault(column, f"{text[:40]!r} is not a number of degrees")
        return float(text)
    return text


def _whole_number(column: str, text: str, factor: Decimal, unit: str) -> int:
    if _NUMBER.fullmatch(text) is None:
        raise RowFault(column, f"{text[:40]!r} is not a plain number of {unit}")
    try:
        number = Decimal(text) * factor
    except InvalidOperation:  # pragma: no cover - the pattern allows none
        raise RowFault(column, f"{text[:40]!r} is not a number") from None
    if number < 0:
        raise RowFault(column, f"{text} is negative")
    if number != number.to_integral_value():
        raise RowFault(column, f"{text} is {number.normalize():f} {unit}, not a whole number of them")
    return int(number)


def _devices(values: Mapping[str, _Value], mapping: ColumnMapping) -> tuple[dict[str, Any], ...]:
    count = values["gpu_count"].value if "gpu_count" in values else 0
    model = values.get("gpu_model")
    if not count:
        if "gpu_count" not in values and model is not None:
            raise RowFault(model.column, f"{model.value} without a count of devices")
        return ()
    if model is None:
        raise RowFault(values["gpu_count"].column, f"{count} devices without a model")
    rule = mapping.gpus.get(model.value, GpuRule())
    memory = values["gpu_memory_mib"].value if "gpu_memory_mib" in values else rule.memory_mib
    made: dict[str, Any] = {"model": model.value, "count": count, "memory_mib": memory, "tflops": rule.tflops}
    for name in ("type", "vendor", "sharing"):
        found = values.get(f"gpu_{name}")
        made[name] = found.value if found is not None else getattr(rule, name)
    try:
        msgspec.convert(made, Devices, strict=True)
    except msgspec.ValidationError as error:
        raise RowFault(model.column, f"devices: {error}") from None
    return (made,)


def _path_of(
    row: Mapping[str, Any], values: Mapping[str, _Value], mapping: ColumnMapping, has_gpu: bool
) -> str:
    template = (mapping.path_with_gpu if has_gpu else "") or mapping.path
    if not template:
        if "path" not in values:
            raise RowFault("path", "empty; a host needs a name")
        return str(values["path"].value)

    def filled(match: re.Match[str]) -> str:
        text = str(row.get(match[1]) or "").strip().lower()
        if not text:
            raise RowFault(match[1], "empty; a host needs a name")
        if "/" in text:
            raise RowFault(match[1], f"{text[:40]!r} contains a slash")
        return text

    return _PLACEHOLDER.sub(filled, template)


def _free_of(host: Host, values: Mapping[str, _Value]) -> Free:
    total = whole(host)
    cores = values["free_cores_milli"].value if "free_cores_milli" in values else total.cores_milli
    memory = values["free_memory_mib"].value if "free_memory_mib" in values else total.memory_mib
    devices = total.accelerators_milli
    if "free_gpu_milli" in values and (devices or values["free_gpu_milli"].value):
        devices = (values["free_gpu_milli"].value,)
    return Free(cores, memory, devices)


def _explain(message: str, values: Mapping[str, _Value]) -> tuple[str, str]:
    """msgspec's words with the column that the field came from."""
    if missing := re.search(r"missing required field `(\w+)`", message):
        return missing[1], "missing"
    match = re.search(r" - at `\$\.(\w+)", message)
    field = match[1] if match else ""
    what = message.split(" - at ", maxsplit=1)[0]
    found = values.get(field)
    if found is None:
        return field, what
    hint = "; is the unit right?" if "<=" in what else ""
    return found.column, f"{str(found.value)[:40]}: {what[:1].lower()}{what[1:].replace('`', '')}{hint}"
