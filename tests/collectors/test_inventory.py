"""Inventories: our own columns and other people's, and what is refused with its line while the rest goes on."""

import json
import os
from pathlib import Path

import pytest

from ioc_node.collectors.collector import (
    BadCollector,
    Collected,
    CollectorFailed,
    Free,
    Host,
    free_fault,
    load_collector,
)
from ioc_node.collectors.inventory import InventoryCollector, read_inventory
from ioc_node.collectors.mapping import ColumnMapping, load_mapping

EXAMPLE = Path(__file__).parents[2] / "examples/gpu-cluster-2023.toml"
CLUSTER_HEAD = "sn,cpu_milli,memory_mib,gpu,model\n"
CLUSTER = CLUSTER_HEAD + (
    "openb-node-0000,32000,262144,0,\nopenb-node-0001,96000,393216,8,V100M32\nN2,64000,262144,2,T4\n"
)


def read(folder: Path, text: str, mapping: ColumnMapping | None = None, name: str = "hosts.csv") -> Collected:
    path = folder / name
    path.write_text(text, "utf-8")
    return read_inventory(path, mapping or ColumnMapping())


def reasons(collected: Collected) -> list[str]:
    return [str(row) for row in collected.refused]


def paths(collected: Collected) -> list[str]:
    return [each.host.path for each in collected.hosts]


def test_the_columns_of_the_trace(tmp_path: Path) -> None:
    collected = read(tmp_path, CLUSTER, load_mapping(EXAMPLE))
    assert reasons(collected) == []
    assert paths(collected) == [
        "gen/3301/az1/openb-node-0000", "ai/3301/az1/openb-node-0001", "ai/3301/az1/n2"
    ]  # fmt: skip
    _, second, third = collected.hosts
    (group,) = second.host.accelerators
    assert (group.model, group.count, group.memory_mib) == ("V100-32G", 8, 32768)
    assert (second.host.cores, second.host.memory_mib) == (96, 393216)
    assert third.free == Free(64000, 262144, (2000,))


@pytest.mark.slow
@pytest.mark.skipif("IOC_GPU_CLUSTER" not in os.environ, reason="IOC_GPU_CLUSTER names no node list")
def test_the_trace_itself() -> None:
    collected = read_inventory(Path(os.environ["IOC_GPU_CLUSTER"]), load_mapping(EXAMPLE))
    assert (len(collected.hosts), collected.refused) == (1523, ())
    assert sum(group.count for each in collected.hosts for group in each.host.accelerators) == 6212


def test_bad_rows_are_refused_alone(tmp_path: Path) -> None:
    text = CLUSTER + (
        "openb-node-0001,32000,262144,0,\n"
        "n5,-32000,262144,0,\n"
        "n6,32500,262144,0,\n"
        "n7,32000,256GiB,0,\n"
        "n8,32000,262144,2,\n"
        ",32000,262144,0,\n"
        "n10,32000,262144\n"
        "n11,0,262144,0,\n"
        "n12,32000,999999999,0,\n"
        "a/b,32000,1024,0,\n"
        'n14,"32"000,1024,0,\n'
        "last,1000,1024,0,\n"
    )
    collected = read(tmp_path, text, load_mapping(EXAMPLE))
    assert paths(collected)[-2:] == ["gen/3301/az1/openb-node-0001", "gen/3301/az1/last"]
    expected = [
        (6, "cpu_milli", "-32000 is negative"),
        (7, "cpu_milli", "32500 is 32.5 cores, not a whole number of them"),
        (8, "memory_mib", "'256GiB' is not a plain number of MiB"),
        (9, "gpu", "2 devices without a model"),
        (10, "sn", "empty; a host needs a name"),
        (11, "", "3 cells, the first line names 5"),
        (12, "cpu_milli", "0: expected int >= 1"),
        (13, "memory_mib", "999999999: expected int <= 134217728; is the unit right?"),
        (14, "sn", "'a/b' contains a slash"),
        (15, "", "',' expected after '\"'"),
    ]
    assert [(row.line, row.column, row.reason) for row in collected.refused] == expected


OWN = "path,cores,memory_mib,free_cores_milli,gpu_count,gpu_model,label.rack\n"


def test_own_columns(tmp_path: Path) -> None:
    collected = read(
        tmp_path,
        f"{OWN}gen/3301/az1/a,8,1024,2500,,,r1\ngen/3301/az1/a,8,1024,0,,,r1\ngen/3301/az1/b,8,1024,8001,,,\n"
        "gen/3301/az1/c,32000,1024,,,,\ngen/3301/az1/d,8,1024,,,T4,\n",
    )
    (only,) = collected.hosts
    assert (only.free, only.host.labels) == (Free(2500, 1024), {"rack": "r1"})
    assert reasons(collected) == [
        "line 3: path: gen/3301/az1/a is named in line 2 already",
        "line 4: 8001 core thousandths are free of 8000: less than nothing would be in use",
        "line 5: cores: 32000: expected int <= 4096; is the unit right?",
        "line 6: gpu_model: T4 without a count of devices",
    ]


def test_tables_and_lists(tmp_path: Path) -> None:
    host = 'path = "gen/3301/az1/a"\ncores = 4\nmemory_mib = 64\n'
    collected = read(tmp_path, f"[[hosts]]\n{host}[[hosts]]\ncorse = 1\n", name="hosts.toml")
    assert paths(collected) == ["gen/3301/az1/a"]
    assert reasons(collected) == [
        "line 2: corse: unknown column; the spelling is wrong, or a mapping file is needed"
    ]
    rows = '[{"path": "gen/3301/az1/a", "cores": 4, "memory_mib": 64}, 7, {"path": "gen/3301/az1/b", "cores": 4}]'
    collected = read(tmp_path, rows, name="hosts.json")
    assert paths(collected) == ["gen/3301/az1/a"]
    assert reasons(collected) == ["line 2: not a table", "line 3: memory_mib: missing"]


def test_a_refused_row_is_one_line_of_bounded_length(tmp_path: Path) -> None:
    path = f"gen/3301/az1/{'a' * 99_999}"
    for row in ({"path": path, "gpu_model": "m" * 99_999}, {"c" * 99_999: 1}):
        (reason,) = reasons(read(tmp_path, json.dumps([row]), name="hosts.json"))
        assert reason.startswith("line 1: ")
        assert len(reason) < 400
    assert len(reasons(read(tmp_path, f"{OWN}{path},8,64,,,,\n" * 2))[0]) < 400


def test_a_quoted_cell_that_does_not_end_swallows_no_hosts(tmp_path: Path) -> None:
    """They would be withdrawn: the file is left alone instead."""
    rows = [f"gen/3301/az1/h{number},8,64,,,,r1\n" for number in range(9000)]
    for broken in ('gen/3301/az1/x,8,64,,,,"r1\n', '"gen/3301/az1/x,8,64,,,,r1\n'):
        for after in (3, 9000):
            text = f"{OWN}{rows[0]}{broken}{''.join(rows[1:after])}"
            with pytest.raises(CollectorFailed, match="line 3: a quoted cell that goes on"):
                read(tmp_path, text)
    two_lines = f'{OWN}gen/3301/az1/a,8,64,,,,"r1\nr2"\ngen/3301/az1/b,8,64,,,,\ngen/3301/az1/b,8,64,,,,\n'
    collected = read(tmp_path, two_lines)
    assert [each.line for each in collected.hosts] == [2, 4]
    assert reasons(collected) == ["line 5: path: gen/3301/az1/b is named in line 4 already"]


@pytest.mark.parametrize("name", ["hosts.csv", "mapping.toml"])
def test_what_is_no_plain_file_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises((CollectorFailed, BadCollector), match="not a plain file"):
        load_mapping(tmp_path / name) if name == "mapping.toml" else read_inventory(
            tmp_path / name, ColumnMapping()
        )


def test_numbers_and_nesting_that_python_refuses(tmp_path: Path) -> None:
    for text in (f"hosts = {'1' * 9999}", f"hosts = {'[' * 9999}"):
        with pytest.raises(CollectorFailed, match=r"hosts\.toml: "):
            read(tmp_path, text, name="hosts.toml")
        with pytest.raises(BadCollector, match=r"hosts\.toml: "):
            load_mapping(tmp_path / "hosts.toml")


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.csv", "path,cores\n", "line 1: column 'memory_mib' is missing"),
        ("a.csv", "path,path\n", "or one twice"),
        ("a.json", "{", "Input data was truncated"),
        ("a.json", '{"nodes": []}', "no list of tables named `hosts`"),
        ("a.toml", "hosts =", "Invalid value"),
        ("a.xls", "", "must end in .csv, .toml or .json"),
        ("a.csv", OWN + "gen/3301/az1/a,8,1024,,,,\n" * 65_537, "more than 65536 rows"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, name: str, text: str, reason: str) -> None:
    with pytest.raises(CollectorFailed, match=reason):
        read(tmp_path, text, name=name)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[columns]\na = { field = "coers" }', "field 'coers' is not one of"),
        ('[columns]\na = { field = "cores", unit = "GHz" }', "unit 'GHz'; cores takes: cores, milli"),
        ('[columns]\na = { field = "cores" }\nb = { field = "cores" }', "two sources"),
        ("cores = 1", "unknown field `cores`"),
    ],
)
def test_a_mapping_that_is_none(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "m.toml").write_text(text)
    with pytest.raises(BadCollector, match=reason):
        load_mapping(tmp_path / "m.toml")


async def test_a_file_is_read_again_when_it_changed(tmp_path: Path) -> None:
    (tmp_path / "hosts.csv").write_text(f"{OWN}gen/3301/az1/a,8,1024,,,,\n")
    collector = InventoryCollector({"file": "hosts.csv"}, tmp_path)
    first = await collector.collect()
    assert first is not None
    assert paths(first) == ["gen/3301/az1/a"]
    assert await collector.collect() is None
    (tmp_path / "hosts.csv").write_text(f"{OWN}gen/3301/az1/bb,8,1024,,,,\n")
    second = await collector.collect()
    assert second is not None
    assert paths(second) == ["gen/3301/az1/bb"]
    (tmp_path / "hosts.csv").unlink()
    with pytest.raises(CollectorFailed, match="No such file"):
        await collector.collect()


def test_what_is_free_fits_into_what_there_is() -> None:
    host = Host(path="gen/3301/az1/a", cores=2, memory_mib=4)
    assert free_fault(host, Free(2000, 4)) == ""
    assert "more is in use than there is" in free_fault(host, Free(-1, 4))
    assert "less than nothing" in free_fault(host, Free(1, 5))
    assert "0" in free_fault(host, Free(1, 1, (1000,)))


def test_options_and_names_are_checked(tmp_path: Path) -> None:
    with pytest.raises(BadCollector, match="'nowhere' is not installed"):
        load_collector("nowhere", {}, tmp_path)
    with pytest.raises(BadCollector, match="unknown field `fiel`"):
        InventoryCollector({"file": "a.csv", "fiel": "b"}, tmp_path)
