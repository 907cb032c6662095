"""What `scontrol --oneliner --detail show nodes` prints, read.

The text is read, not JSON: scontrol of Slurm 22.05 has none, and the shape of later releases' JSON is versioned. One
line is one node, `Key=value` after `Key=value`; values may contain spaces, and the last ones are free text (Reason,
Comment, Extra) that says what people like.
States: https://slurm.schedmd.com/scontrol.html#SECTION_NODES---SPECIFICATIONS-FOR-SHOW-COMMAND
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

FREE_TEXT: Final = frozenset({"Reason", "Comment", "Extra"})
_KEY: Final = re.compile(r"([A-Z][A-Za-z0-9_:]*)=(.*)", re.DOTALL)
_COUNT: Final = re.compile(r"([0-9]{1,9})([KMG]?)")
_FACTORS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_FLAG_SIGNS: Final = {
    "*": "NOT_RESPONDING", "~": "POWERED_DOWN", "#": "POWERING_UP", "!": "POWER_DOWN", "%": "POWERING_DOWN",
    "$": "MAINTENANCE", "@": "REBOOT_REQUESTED", "^": "REBOOT_ISSUED", "-": "PLANNED",
}  # fmt: skip
AT_WORK: Final = frozenset({"IDLE", "MIXED", "ALLOCATED", "COMPLETING"})
HARMLESS: Final = frozenset(
    {
        "CLOUD",
        "COMPLETING",
        "DYNAMIC_NORM",
        "DYNAMIC_FUTURE",
        "PLANNED",
        "POWERED_DOWN",
        "POWERING_UP",
        "POWER_UP",
    }
)
"""Flags of a node that still takes jobs; one that saves power is woken for them. Any other takes it out of service."""


def node_fields(line: str) -> dict[str, str]:
    """The fields of one line. Of a key that is there twice the first counts; what free text says is no field."""
    fields: dict[str, str] = {}
    key = ""
    for word in line.split(" "):
        match = _KEY.fullmatch(word)
        if key in FREE_TEXT:
            fields[key] += f" {word}"
        elif match is not None:
            key = match[1]
            fields.setdefault(key, match[2])
        elif key:
            fields[key] += f" {word}"
    return {name: value.strip() for name, value in fields.items()}


def in_service(state: str) -> bool:
    """Whether a node in this state (`MIXED`, `IDLE+DRAIN`, `DOWN*`) is given jobs."""
    base, flags = _state_parts(state)
    return base in AT_WORK and flags <= HARMLESS


def _state_parts(state: str) -> tuple[str, set[str]]:
    parts = [part.strip() for part in state.upper().split("+")]
    flags = set(parts[1:])
    base = parts[0]
    while base and base[-1] in _FLAG_SIGNS:
        flags.add(_FLAG_SIGNS[base[-1]])
        base = base[:-1]
    return base, flags


@dataclass(frozen=True, slots=True)
class Gres:
    """A generic resource: `gpu:a100:4(S:0-1)`. `detail` is what stands in the parentheses."""

    name: str
    type: str
    count: int
    detail: str


def read_gres(text: str) -> list[Gres]:
    """The resources of a `Gres=` or `GresUsed=`. Raises `ValueError` naming one that does not read so."""
    found = []
    for item in _outside_parentheses(text.replace("(null)", "")):
        body, _, detail = item.partition("(")
        name, *rest = body.split(":")
        match = _COUNT.fullmatch(rest[-1]) if rest else None
        if not name or (rest and not rest[-1]):
            raise ValueError(f"{item[:60]!r} does not read NAME:TYPE:COUNT")
        kinds = [word for word in (rest[:-1] if match is not None else rest) if word and word != "no_consume"]
        count = int(match[1]) * _FACTORS[match[2]] if match is not None else 1
        found.append(Gres(name, ":".join(kinds), count, detail.rstrip(")")))
    return found


def _outside_parentheses(text: str) -> list[str]:
    """Split at commas, but not at those inside of parentheses."""
    return [item for item in re.split(r",(?![^(]*\))", text) if item]


def gpu_groups(fields: Mapping[str, str]) -> dict[str, int]:
    """How many GPUs of each type there are; the type is empty where the cluster names none. Raises `ValueError`."""
    groups: dict[str, int] = {}
    for gres in read_gres(fields.get("Gres", "")):
        if gres.name == "gpu" and gres.count:
            groups[gres.type] = groups.get(gres.type, 0) + gres.count
    return groups


def has_shards(fields: Mapping[str, str]) -> bool:
    """Whether jobs may take shares of GPUs."""
    return any(gres.name in ("shard", "mps") for gres in read_gres(fields.get("Gres", "")))


def gpus_used_milli(fields: Mapping[str, str], groups: Mapping[str, int]) -> dict[str, int]:
    """Thousandths of the GPUs of each type that jobs hold. Raises `ValueError`.

    Where Slurm doesn't say how much of a shared GPU is taken (22.05 names only the devices), all of it counts as taken.
    GPUs and shares without a type, or of one that the node doesn't have, count against every type.
    """
    used = dict.fromkeys(groups, 0)
    shares = {gres.name: gres.count for gres in read_gres(fields.get("Gres", ""))}
    for gres in read_gres(fields.get("GresUsed", "")):
        if gres.name == "gpu" and gres.type in used:
            used[gres.type] += 1000 * gres.count
        elif gres.name == "gpu":
            for kind, count in groups.items():
                used[kind] = min(1000 * count, used[kind] + 1000 * gres.count)
        elif gres.name in ("shard", "mps") and gres.count:
            for kind in [gres.type] if gres.type in used else used:
                used[kind] += _shares_milli(gres, groups[kind], shares.get(gres.name, 0))
    return used


def _shares_milli(gres: Gres, devices: int, shares: int) -> int:
    """Thousandths of devices that `gres` holds: of `(3/4,0/4)`, of `(IDX:0-1)`, or of the plain number."""
    if fractions := re.findall(r"([0-9]{1,9})/([0-9]{1,9})", gres.detail):
        return sum(-(-1000 * int(part) // max(1, int(whole))) for part, whole in fractions)
    if gres.detail.startswith("IDX:"):
        indices = re.findall(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", gres.detail)
        return 1000 * sum(int(last or first) - int(first) + 1 for first, last in indices)
    return -(-1000 * devices * gres.count // shares) if shares else 1000 * devices
