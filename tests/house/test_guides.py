"""The guides say what the code does: every key of config.toml with its default, and a program that runs."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ioc_node.config import (
    AcceleratorConfig,
    BulkConfig,
    CollectorConfig,
    GossipConfig,
    NodeConfig,
    ResourceConfig,
    TasksConfig,
)
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
}


def _keys() -> Iterator[tuple[str, str]]:
    for prefix, kind in TABLES.items():
        for field in msgspec.structs.fields(kind):
            if prefix == "" and field.name in ("home", "bulk", "tasks", "gossip"):
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
