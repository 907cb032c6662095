"""Slurm's lines and resources read, and commands that don't answer as they should. tests/node starts the real thing."""

from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import trio

from ioc_node.collectors.collector import BadCollector, Collected, CollectorFailed, Free
from ioc_node.collectors.slurm import SlurmCollector, SlurmOptions, read_nodes
from ioc_node.collectors.slurm_nodes import gpus_used_milli, in_service, node_fields, read_gres

ONE = (  # as Slurm 22.05.8 printed it
    "NodeName=n1 Arch=x86_64 CoresPerSocket=1  CPUAlloc=3 CPUEfctv=4 CPUTot=4 CPULoad=3.91 AvailableFeatures=ib,avx"
    " ActiveFeatures=ib,avx Gres=gpu:a100:2,shard:a100:8 GresDrain=N/A"
    " GresUsed=gpu:a100:1(IDX:1),shard:a100:1(IDX:0) NodeAddr=127.0.0.1 NodeHostName=vm Port=26821 Version=22.05.8"
    " OS=Linux 6.18.44 #1 SMP PREEMPT_DYNAMIC @0  RealMemory=2000 AllocMem=400 FreeMem=19347 Sockets=4 Boards=1"
    " State=MIXED ThreadsPerCore=1 TmpDisk=0 Weight=1 Owner=N/A MCS_label=N/A Partitions=debug,long "
    " BootTime=2026-11-27T02:19:57 CfgTRES=cpu=4,mem=2000M,billing=4 AllocTRES=cpu=3,mem=400M CapWatts=n/a"
    " Reason=x  y=3 State=DOWN [root@2026-11-27T02:47:19] Comment=Gres=gpu:9 RealMemory=1 Extra=CPUAlloc=9"
)


def options(**more: Any) -> SlurmOptions:
    return msgspec.convert({"path": "sup/3301/az1/{node}"} | more, SlurmOptions)


def read(*lines: str, **more: Any) -> Collected:
    return read_nodes("\n".join(lines), options(**more), {})


def changed(line: str, **fields: str) -> str:
    for key, value in fields.items():
        before = f" {key}={node_fields(line)[key]}"
        assert before in line
        line = line.replace(before, f" {key}={value}", 1)
    return line


def test_a_node_as_slurm_prints_it() -> None:
    gpus = {"a100": {"vendor": "nvidia", "memory_mib": 40960}}
    collected = read(ONE, path_with_gpu="ai/3301/az1/{node}", gpus=gpus, labels={"owner": "physics"})
    (found,), host = collected.hosts, collected.hosts[0].host
    assert (collected.refused, found.line) == ((), 1)
    assert (host.path, host.cores, host.memory_mib, host.architecture) == (
        "ai/3301/az1/n1", 4, 2000, "x86_64"
    )  # fmt: skip
    (group,) = host.accelerators
    assert (group.model, group.count, group.memory_mib, group.sharing) == ("a100", 2, 40960, "shared")
    assert group.tflops["fp16"] == 312.0
    assert host.services == ("slurm.debug", "slurm.long")
    assert host.labels == {"owner": "physics", "features": "ib,avx"}
    assert found.free == Free(1000, 1600, (0,))  # one by a job, of the other nobody says how much is taken


def test_free_text_says_nothing_of_a_node() -> None:
    fields = node_fields(ONE)
    assert (fields["State"], fields["RealMemory"], fields["CPUAlloc"]) == ("MIXED", "2000", "3")
    assert fields["OS"] == "Linux 6.18.44 #1 SMP PREEMPT_DYNAMIC @0"
    assert fields["Reason"].startswith("x  y=3 State=DOWN [root@")


def test_a_type_that_is_called_unknown_is_one() -> None:
    line = changed(ONE, Gres="gpu:2,gpu:unknown:4", GresUsed="gpu:1(IDX:0),gpu:unknown:3(IDX:2-4)")
    (found,) = read(line).hosts
    assert found.free is not None
    assert found.free.accelerators_milli == (1000, 1000)


def test_a_comment_with_an_odd_end_of_line_ends_no_line() -> None:
    (found,) = read(ONE.replace("Comment=", "Comment=a\u2028b\x0cc\x85d")).hosts
    assert found.line == 1


def test_nodes_that_are_gone_are_forgotten() -> None:
    """A cluster in a cloud may have a new name for each node."""
    remembered: dict[str, str] = {}
    for name in ("n1", "n2"):
        read_nodes(ONE.replace("NodeName=n1", f"NodeName={name}"), options(), remembered)
    assert remembered == {"n2": "x86_64"}


SERVING = "IDLE MIXED ALLOCATED IDLE+COMPLETING IDLE+CLOUD+POWERED_DOWN MIXED- IDLE~ ALLOCATED+PLANNED"
IDLING = (
    "IDLE* IDLE+DRAIN MIXED+DRAIN+NOT_RESPONDING DOWN DOWN*+DRAIN FAIL MIXED+FAIL IDLE+MAINTENANCE IDLE$"
    " IDLE+RESERVED UNKNOWN FUTURE IDLE% IDLE+SOMETHING_NEW +"
)


@pytest.mark.parametrize("state", SERVING.split() + IDLING.split())
def test_which_states_take_jobs(state: str) -> None:
    assert in_service(state) is (state in SERVING.split())
    (found,) = read(changed(ONE, State=state)).hosts  # whatever its state, it is there
    assert (found.free is not None) is (state in SERVING.split())


@pytest.mark.parametrize(
    ("gres", "used", "milli"),
    [
        ("gpu:a100:4(S:0-1)", "gpu:a100:1(IDX:3)", {"a100": 1000}),
        ("gpu:2", "gpu:(null):2(IDX:0-1)", {"": 2000}),
        ("gpu:a100:2,gpu:v100:4,license:1K", "gpu:a100:0(IDX:N/A),gpu:v100:3(IDX:0-2)", {"a100": 0, "v100": 3000}),
        ("gpu:a100:2,shard:a100:8", "gpu:a100:0(IDX:N/A),shard:a100:3(3/4,0/4)", {"a100": 750}),
        ("gpu:2,shard:6", "gpu:0,shard:1", {"": 334}),
        ("gpu:a100:1,gpu:v100:1,shard:8", "shard:2(2/4)", {"a100": 500, "v100": 500}),
        ("gpu:1g.5gb:7,lustre:no_consume:4G", "gpu:1g.5gb:7(IDX:0-6)", {"1g.5gb": 7000}),
        ("gpu:a100", "(null)", {"a100": 0}),
        ("gpu:a100:2,gpu:v100:4", "gpu:3", {"a100": 2000, "v100": 3000}),  # which ones?
    ],
)  # fmt: skip
def test_gpus_and_what_jobs_hold_of_them(gres: str, used: str, milli: dict[str, int]) -> None:
    counts = {
        each.type: each.count
        for each in read_gres(gres.replace("gpu:a100,", "gpu:a100:1,"))
        if each.name == "gpu"
    }
    assert gpus_used_milli({"Gres": gres, "GresUsed": used}, counts) == milli


def test_what_cannot_be_read_is_left_out_and_the_rest_goes_on() -> None:
    collected = read(
        ONE,
        changed(ONE, CPUEfctv="-4"),
        changed(ONE, RealMemory="lots"),
        changed(ONE, Gres="gpu:a100:"),
        changed(ONE, CPUEfctv="8192"),
        changed(ONE, CPUAlloc="5"),
        changed(ONE, GresUsed="gpu:a100:3(IDX:0-2)"),
        ONE.replace("CPUTot=4 ", ""),
    )
    assert [str(row) for row in collected.refused] == [
        "line 2: CPUEfctv: node n1: '-4' is not a plain number",
        "line 3: RealMemory: node n1: 'lots' is not a plain number",
        "line 4: Gres: node n1: 'gpu:a100:' does not read NAME:TYPE:COUNT",
        "line 5: node n1: Expected `int` <= 4096 - at `$.cores`",
        "line 6: node n1: -1000 core thousandths are free: more is in use than there is",
        "line 7: node n1: -1000 thousandths of a100 are free: more is in use than there is",
        "line 8: CPUTot: node n1: missing",
    ]
    there = [(each.line, each.free is not None) for each in collected.hosts]
    assert there == [(1, True), (6, False), (7, False)]  # whose use is nonsense is there, out of service


def test_only_chosen_partitions_and_remembered_architectures() -> None:
    other = ONE.replace("NodeName=n1", "NodeName=n2").replace("Partitions=debug,long", "Partitions=night")
    assert [each.host.path for each in read(ONE, other, partitions=["night", "no"]).hosts] == [
        "sup/3301/az1/n2"
    ]
    remembered: dict[str, str] = {}
    again = ONE.replace("Arch=x86_64 ", "")
    for line, architecture in ((again, "riscv64"), (ONE, "x86_64"), (again, "x86_64")):
        (found,) = read_nodes(line, options(architecture="riscv64"), remembered).hosts
        assert found.host.architecture == architecture
    assert read("No nodes in the system").hosts == ()
    with pytest.raises(CollectorFailed, match="line 2 is no node: 'slurm_load"):
        read(ONE, "slurm_load_node error")
    with pytest.raises(CollectorFailed, match="more than 65536 nodes"):
        read(*["NodeName=n1"] * 65_537)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("while :; do echo NodeName=n1; done", "printed more than 1048576 bytes"),
        ("sleep 600 & echo $! > child; wait", "did not answer within 1 s"),
        ("sleep 600 & echo $! > child", "did not answer within 1 s"),
        ("echo some >&2; echo 'Unable to contact slurm controller' >&2; exit 1", "Unable to contact slurm controller"),
        ("exit 7", "exit status 7"),
        ("head -c 1000000 /dev/zero >&2; exit 1", "\x00"),
        ("echo no nodes here", "line 1 is no node: 'no nodes here'"),
    ],
)  # fmt: skip
async def test_a_command_that_does_not_answer_as_it_should(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    monkeypatch.setattr("ioc_node.collectors.slurm.OUTPUT_BYTES_MAX", 1 << 20)
    program = tmp_path / "scontrol"
    program.write_text(f"#!/bin/sh\ncd {tmp_path}\n{script}\n")
    program.chmod(0o755)
    collector = SlurmCollector(
        {"path": "sup/3301/az1/{node}", "command": str(program), "timeout_seconds": 1.0}, tmp_path
    )
    with trio.fail_after(10), pytest.raises(CollectorFailed, match=reason) as caught:
        await collector.collect()
    assert "\n" not in str(caught.value)
    with trio.fail_after(5):
        while is_running(tmp_path / "child"):  # what the command started is gone with it
            await trio.sleep(0.01)


def is_running(pid_file: Path) -> bool:
    if not pid_file.exists():
        return False
    try:
        return psutil.Process(int(pid_file.read_text())).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_a_machine_without_slurm(tmp_path: Path) -> None:
    collector = SlurmCollector({"path": "sup/3301/az1/{node}", "command": "no-such-scontrol"}, tmp_path)
    with pytest.raises(CollectorFailed, match="no-such-scontrol is not installed, or not on the PATH"):
        await collector.collect()


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({}, "missing required field `path`"),
        ({"path": "sup/3301/az1/n1"}, "lacks {node}"),
        ({"path": "sup/3301/az1/{node}", "timeout_seconds": 0}, "timeout_seconds"),
        ({"path": "sup/3301/az1/{node}", "gpu": {}}, "unknown field `gpu`"),
    ],
)
def test_options_are_checked(tmp_path: Path, given: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadCollector, match=reason):
        SlurmCollector(given, tmp_path)
