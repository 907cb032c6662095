"""The nodes of a Slurm cluster, as its controller tells them.

Reads and changes nothing: one `scontrol show nodes` a look, as any user may run it. What is free is what Slurm has not
given to jobs; a node that takes no jobs (down, drained, reserved, not responding) is out of service, and one that is
gone from the cluster is gone here. Slurm doesn't know how much memory a GPU has: `gpus.TYPE` in the options says it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import trio

from ioc_node.collectors.collector import (
    HOSTS_MAX,
    BadCollector,
    Collected,
    CollectedHost,
    CollectorFailed,
    Free,
    Host,
    RefusedRow,
    free_fault,
    read_options,
)
from ioc_node.collectors.command import run_command
from ioc_node.collectors.mapping import GpuRule, RowFault
from ioc_node.collectors.peaks import nominal_tflops
from ioc_node.collectors.slurm_nodes import (
    gpu_groups,
    gpus_used_milli,
    has_shards,
    in_service,
    node_fields,
)
from ioc_wire.codec import Name, ShortText, UInt

OUTPUT_BYTES_MAX: Final = 128 << 20
"""About 2 kB for each of as many nodes as a collector may have."""
SERVICES_MAX: Final = 16
FEATURES_CHARS_MAX: Final = 200
PLACEHOLDER: Final = "{node}"


class SlurmOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`path` names a node: class/city/zone/{node}; `path_with_gpu` one that has GPUs. `partitions`: only their nodes.
    `conf` is the slurm.conf to use, `command` the program to ask with."""

    path: str
    path_with_gpu: str = ""
    partitions: tuple[Name, ...] = ()
    gpus: dict[str, GpuRule] = msgspec.field(default_factory=dict)
    architecture: Name = "x86_64"
    price_micro_per_core_hour: UInt = 0
    latitude: float = 0.0
    longitude: float = 0.0
    labels: dict[Name, ShortText] = msgspec.field(default_factory=dict)
    conf: str = ""
    command: str = "scontrol"
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=600)] = 15.0


class SlurmCollector:
    """Collects from one cluster."""

    def __init__(self, options: Mapping[str, Any], folder: Path) -> None:
        self._options: SlurmOptions = read_options(options, SlurmOptions, "slurm")
        for name in ("path", "path_with_gpu"):
            template = getattr(self._options, name)
            if template and template.count(PLACEHOLDER) != 1:
                raise BadCollector(
                    f"collector 'slurm': options: {name}: {template!r} lacks {PLACEHOLDER}, the node's name"
                )
        conf = self._options.conf
        self._environment = {"LC_ALL": "C"} | ({"SLURM_CONF": str(folder / conf)} if conf else {})
        self._architectures: dict[str, str] = {}

    async def collect(self) -> Collected:
        """All nodes of the cluster. Raises `CollectorFailed` where its controller doesn't tell."""
        text = await run_command(
            [self._options.command, "--oneliner", "--detail", "--all", "show", "nodes"],
            environment=self._environment,
            seconds=self._options.timeout_seconds,
            bytes_max=OUTPUT_BYTES_MAX,
        )
        return await trio.to_thread.run_sync(read_nodes, text, self._options, self._architectures)


def read_nodes(text: str, options: SlurmOptions, architectures: dict[str, str]) -> Collected:
    """The hosts in what scontrol printed. `architectures` remembers what a node said of itself before its controller
    was started again, for as long as there is such a node. Raises `CollectorFailed` where it is no list of nodes.
    """
    lines = text.removesuffix("\n").split("\n")  # a comment may hold what Unicode takes for the end of a line
    if len(lines) > HOSTS_MAX:
        raise CollectorFailed(f"slurm: more than {HOSTS_MAX} nodes: use several providers, by `partitions`")
    hosts: list[CollectedHost] = []
    refused: list[RefusedRow] = []
    names: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("No nodes"):
            continue
        if not line.startswith("NodeName="):
            raise CollectorFailed(f"slurm: line {number} is no node: {line[:60]!r}")
        fields = node_fields(line)
        names.add(fields["NodeName"])
        partitions = _listed(fields.get("Partitions", ""))
        if options.partitions and not set(options.partitions) & set(partitions):
            continue
        if "Arch" in fields:
            architectures[fields["NodeName"]] = fields["Arch"]
        try:
            host = _host(fields, partitions, options, architectures.get(fields["NodeName"]))
        except RowFault as fault:
            refused.append(_refused(number, fields, fault))
            continue
        try:
            free = _free(fields, host)
        except RowFault as fault:  # it is there, but what is free of it cannot be told
            refused.append(_refused(number, fields, fault))
            free = None
        hosts.append(CollectedHost(host, free, number))
    for name in architectures.keys() - names:
        del architectures[name]
    return Collected("slurm", tuple(hosts), tuple(refused))


def _refused(number: int, fields: Mapping[str, str], fault: RowFault) -> RefusedRow:
    return RefusedRow(number, fault.column, f"node {fields['NodeName'][:64]}: {fault.reason}")


def _listed(text: str) -> list[str]:
    return [name for name in text.split(",") if name and name != "(null)"]


def _number(fields: Mapping[str, str], key: str, default: int | None = None) -> int:
    text = fields.get(key, "")
    if not text and default is not None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise RowFault(key, f"{text[:40]!r} is not a plain number" if text else "missing")
    return int(text)


def _host(
    fields: Mapping[str, str], partitions: list[str], options: SlurmOptions, architecture: str | None
) -> Host:
    groups = _groups(fields, options)
    template = (options.path_with_gpu if groups else "") or options.path
    features = fields.get("AvailableFeatures", "(null)")
    document: dict[str, Any] = {
        "path": template.replace(PLACEHOLDER, fields["NodeName"].lower()),
        "architecture": architecture or options.architecture,
        "cores": _number(fields, "CPUEfctv", _number(fields, "CPUTot")),
        "memory_mib": _number(fields, "RealMemory") - _number(fields, "MemSpecLimit", 0),
        "storage_mib": _number(fields, "TmpDisk", 0),
        "accelerators": groups,
        "services": [f"slurm.{name}" for name in partitions[:SERVICES_MAX]],
        "labels": dict(options.labels),
    }
    for name in ("price_micro_per_core_hour", "latitude", "longitude"):
        document[name] = getattr(options, name)
    if features != "(null)" and len(features) <= FEATURES_CHARS_MAX:
        document["labels"].setdefault("features", features)
    try:
        return msgspec.convert(document, Host, strict=True)
    except msgspec.ValidationError as error:
        raise RowFault("", str(error)) from None


def _groups(fields: Mapping[str, str], options: SlurmOptions) -> list[dict[str, Any]]:
    try:
        groups, shared = gpu_groups(fields), has_shards(fields)
    except ValueError as error:
        raise RowFault("Gres", str(error)) from None
    made = []
    for kind, count in groups.items():
        rule = options.gpus.get(kind, GpuRule())
        model = kind or "unknown"
        made.append(
            {
                "type": rule.type,
                "vendor": rule.vendor,
                "model": model,
                "count": count,
                "memory_mib": rule.memory_mib,
                "sharing": "shared" if shared else rule.sharing,
                "tflops": rule.tflops or nominal_tflops(model),
            }
        )
    return made


def _free(fields: Mapping[str, str], host: Host) -> Free | None:
    if not in_service(fields.get("State", "")):
        return None
    try:
        groups = gpu_groups(fields)  # of the host, in its order
        used = gpus_used_milli(fields, groups)
    except ValueError as error:
        raise RowFault("GresUsed", str(error)) from None
    free = Free(
        1000 * (host.cores - _number(fields, "CPUAlloc")),
        host.memory_mib - _number(fields, "AllocMem", 0),
        tuple(1000 * count - used[kind] for kind, count in groups.items()),
    )
    if fault := free_fault(host, free):
        raise RowFault("", fault)
    return free
