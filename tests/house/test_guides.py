"""The guides say what the code does: every key of config.toml with its default, and a program that runs."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ioc_node.collecting import plan_hosts
from ioc_node.collectors.collector import CollectorFailed, Free, load_collector
from ioc_node.config import (
    AcceleratorConfig,
    BandwidthConfig,
    BulkConfig,
    CollectorConfig,
    DirectionConfig,
    ExpressConfig,
    GossipConfig,
    NodeConfig,
    RelayConfig,
    ResourceConfig,
    TasksConfig,
)
from ioc_wire.records import Endpoint
from tests.node.conftest import free_port

ROOT = Path(__file__).parents[2]
TABLES = {
    "": NodeConfig,
    "resources.": ResourceConfig,
    "resources.accelerators.": AcceleratorConfig,
    "collectors.": CollectorConfig,
    "bulk.": BulkConfig,
    "tasks.": TasksConfig,
    "gossip.": GossipConfig,
    "relay.": RelayConfig,
    "express.": ExpressConfig,
    "bandwidth.": BandwidthConfig,
    "bandwidth.sending.": DirectionConfig,
    "bandwidth.receiving.": DirectionConfig,
}


def _keys() -> Iterator[tuple[str, str]]:
    for prefix, kind in TABLES.items():
        for field in msgspec.structs.fields(kind):
            if isinstance(field.default, msgspec.Struct) or f"{prefix}{field.name}" == "home":
                continue
            default = field.default
            if field.default_factory is not msgspec.NODEFAULT:
                default = field.default_factory()
            shown = "" if default is msgspec.NODEFAULT or default is None else f"`{json.dumps(default)}`"
            yield f"{prefix}{field.name}", shown


def test_the_table_of_config_keys_is_complete_and_true() -> None:
    text = (ROOT / "docs" / "operating.md").read_text()
    table = text.partition("<!-- config:")[2].partition("<!-- end -->")[0]
    told = re.findall(r"^\| `([a-z_.]+)` \| (.*?) ?\| ", table, re.MULTILINE)
    assert told == list(_keys())


async def test_the_collector_of_the_operators_guide_collects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Installed as a package would be: a module, and the entry point that the guide names."""
    text = (ROOT / "docs" / "operating.md").read_text()
    shown = text.partition("### A collector of your own")[2]
    entry = tomllib.loads(shown.partition("```toml\n")[2].partition("```\n")[0])
    code = shown.partition("```python\n")[2].partition("```\n")[0]
    points = "".join(
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in named.items())
        for group, named in entry["project"]["entry-points"].items()
    )
    metadata = tmp_path / "room_collector-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: room-collector\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(points)
    (tmp_path / "room_collector.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    collector = load_collector("room", {"file": "room.txt"}, tmp_path)
    with pytest.raises(CollectorFailed, match=r"room\.txt: No such file"):
        await collector.collect()
    (tmp_path / "room.txt").write_text("pc1 8 16384\npc2 4 8192 away\n")
    collected = await collector.collect()
    assert collected is not None
    planned, refused = plan_hosts(
        collected.hosts, prefix="cn.r3301.20004", endpoint=Endpoint("127.0.0.1", 7400)
    )
    assert refused == []
    assert [(resource.cid, free) for resource, free in planned] == [
        ("ioc:cn.r3301.20004/gen/3301/room1/pc1", Free(8000, 16384)),
        ("ioc:cn.r3301.20004/gen/3301/room1/pc2", None),
    ]


def test_the_program_of_the_embedding_guide_runs(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "embedding.md").read_text()
    code = text.partition("```python\n")[2].partition("```\n")[0]
    program = tmp_path / "embed.py"
    program.write_text(code.replace("port: int = 9400", f"port: int = {free_port()}"))
    ran = subprocess.run(
        [sys.executable, program, tmp_path / "work", ROOT / "examples" / "hello.toml"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "receipt: COMPLETE" in ran.stdout
    assert "world" in (tmp_path / "work" / "greeting.txt").read_text()
