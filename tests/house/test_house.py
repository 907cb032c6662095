"""A test keeps house: layering, purity, bans, docstrings, file length, and what is in the wheel."""

import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.house import rules
from tests.house.rules import ROOT, Source

MODULES = list(rules.sources())
ROOMS = frozenset(rules.room_of(source.module) for _, source in MODULES)
Rule = Callable[[Source], list[str]]


def all_faults(rule: Rule) -> str:
    return "\n".join(fault for _, source in MODULES for fault in rule(source))


def layer_rule(source: Source) -> list[str]:
    return rules.layer_faults(
        source, ROOMS | {"ioc_node.core", "ioc_node.runtime", "ioc_node.bulk", "ioc_node.market"}
    )


def test_all_modules_are_seen() -> None:
    seen = {source.module for _, source in MODULES}
    assert {"ioc_wire.cid", "ioc_bootstrap", "ioc_node.core.machine", "ioc_node", "ioc_testnet"} <= seen


@pytest.mark.parametrize(
    "rule",
    [
        layer_rule,
        rules.purity_faults,
        rules.ban_faults,
        rules.except_faults,
        rules.length_faults,
    ],
)
def test_rule_holds_everywhere(rule: Rule) -> None:
    assert all_faults(rule) == ""


def test_wire_is_documented() -> None:
    wire = [source for _, source in MODULES if rules.room_of(source.module) == "ioc_wire"]
    assert "\n".join(fault for source in wire for fault in rules.docstring_faults(source)) == ""


def test_every_module_says_what_it_is() -> None:
    """Elsewhere than in `ioc_wire` a module's docstring is asked for, no more."""
    faults = [
        fault
        for _, source in MODULES
        for fault in rules.docstring_faults(source)
        if fault.endswith(": no docstring")
    ]
    assert [fault for fault in faults if not fault.startswith("ioc_wire")] == []


def test_packages_are_marked() -> None:
    assert rules.missing_markers(rules.PACKAGES) == []


def test_wheel_holds_exactly_the_four_packages(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    assert rules.wheel_faults(zipfile.ZipFile(wheel).namelist()) == []


def test_build_configuration_names_the_four_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    build = project["tool"]["hatch"]["build"]
    assert {Path(path).name for path in build["targets"]["wheel"]["packages"]} == set(rules.PACKAGES)
    assert build["dev-mode-exact"] is True


def test_only_the_four_packages_are_importable() -> None:
    """An editable install must not make `wire`, `tests` or `bench` importable from elsewhere."""
    code = "import importlib.util as u; print([n for n in ('wire', 'bootstrap', 'bench', 'tests') if u.find_spec(n)])"
    printed = subprocess.run(
        [sys.executable, "-c", code],
        cwd="/",
        env={"PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout.strip() == "[]"


def test_every_requirement_has_a_tested_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(r for extra in ("demo", "dev") for r in project["optional-dependencies"][extra]),
    ]
    pinned = {
        line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    }
    names = {requirement.split(";")[0].split(">")[0].split("[")[0].strip().lower() for requirement in wanted}
    # pip treats - and _ in names as one
    assert {n.replace("_", "-") for n in names} - {n.replace("_", "-") for n in pinned} == set()


# -- each rule can fail


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("ioc_wire.cid", "import ioc_node.core.machine"),
        ("ioc_wire.cid", "from ioc_node import errors"),
        ("ioc_wire.cid", "def f():\n    import ioc_bootstrap"),
        ("ioc_bootstrap.file", "from ioc_node.errors import NodeError"),
        ("ioc_node.errors", "from ioc_node.core import machine"),
        ("ioc_node.core.lookup", "from ioc_node import config"),
        ("ioc_node.core.lookup", "from ioc_node.runtime.driver import run"),
        ("ioc_node.core.lookup", "from .. import runtime"),
        ("ioc_node.core.lookup", "from ..runtime import driver"),
        ("ioc_node.runtime.driver", "from ioc_node.bulk import quic"),
        ("ioc_node.bulk.quic", "from ioc_node.market import offers"),
        ("ioc_node.core.lookup", "from ioc_node import open_node"),
        ("ioc_node.attic", "import ioc_wire"),
        ("ioc_node.cli.main", "import ioc_testnet"),
    ],
)
def test_wrong_arrow_is_found(module: str, text: str) -> None:
    assert layer_rule(Source(module, False, text)) != []


@pytest.mark.parametrize(
    ("module", "is_package", "text"),
    [
        (
            "ioc_node.bulk.quic",
            False,
            "from ioc_node.runtime import links\nfrom ioc_wire import bulk\nimport trio",
        ),
        ("ioc_node.bulk.offloads", True, "from . import shm\nfrom .. import blobs"),
        ("ioc_node.core.lookup", False, "from ioc_node.errors import NodeError\nfrom ioc_node import errors"),
        ("ioc_testnet.cli", False, "from ioc_node import open_node"),
    ],
)
def test_right_arrow_passes(module: str, is_package: bool, text: str) -> None:
    assert layer_rule(Source(module, is_package, text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "import trio",
        "import time",
        "from time import monotonic",
        "import socket",
        "import sqlite3",
        "import random",
        "from random import choice",
        "def f():\n    import time",
        "import os.path",
        "from datetime import datetime\nx = datetime.now()",
        "key = Ed25519PrivateKey.generate()",
    ],
)
def test_impurity_is_found(text: str) -> None:
    for module in ("ioc_wire.cid", "ioc_node.core.lookup"):
        assert rules.purity_faults(Source(module, False, text)) != []
    assert rules.purity_faults(Source("ioc_node.runtime.driver", False, text)) == []


@pytest.mark.parametrize(
    "text",
    ["from random import Random", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import random"],
)
def test_a_generator_may_be_passed_in(text: str) -> None:
    assert rules.purity_faults(Source("ioc_node.core.lookup", False, text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "exec('1')",
        "import os\nos.system('ls')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "subprocess.run('ls', shell=flag)",
    ],
)
def test_banned_call_is_found(text: str) -> None:
    assert rules.ban_faults(Source("ioc_node.x", False, text)) != []


def test_methods_that_share_a_banned_name_pass() -> None:
    assert rules.ban_faults(Source("ioc_node.x", False, "db.exec('x')\nrun(shell=False)")) == []


@pytest.mark.parametrize(
    ("caught", "is_fault"),
    [
        (":", True),
        (" Exception:", True),
        (" (OSError, BaseException):", True),
        (" Exception:  # noqa: BLE001", True),
        (" Exception:  # noqa: BLE001 a plug-in may raise anything", False),
        (" Exception:  # noqa: BLE001 - a plug-in may raise anything", False),
        (" OSError:", False),
    ],
)
def test_broad_except_is_found(caught: str, is_fault: bool) -> None:
    text = f"try:\n    pass\nexcept{caught}\n    pass\n"
    assert bool(rules.except_faults(Source("ioc_node.x", False, text))) is is_fault


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("x = 1", 1),
        ('"""Yes."""\nclass A:\n    x: int', 1),
        ('"""Yes."""\nclass A(Message):\n    x: int', 0),
        ('"""Yes."""\ndef f():\n    a = 1\n    b = 2\n    return a + b', 1),
        ('"""Yes."""\ndef f():\n    return 1', 0),
        ('"""Yes."""\ndef _f():\n    a = 1\n    b = 2\n    return a + b', 0),
    ],
)
def test_missing_docstring_is_found(text: str, faults: int) -> None:
    assert len(rules.docstring_faults(Source("ioc_wire.x", False, text))) == faults


def test_broad_except_that_raises_again_passes() -> None:
    text = "try:\n    pass\nexcept BaseException:\n    undo()\n    raise\n"
    assert rules.except_faults(Source("ioc_node.x", False, text)) == []


def test_long_file_is_found() -> None:
    assert rules.length_faults(Source("ioc_node.x", False, "x\n" * 601)) != []


def test_missing_markers_are_found(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "a.py").write_text("")
    assert len(rules.missing_markers({"p": tmp_path})) == 2


def test_wrong_wheel_is_found() -> None:
    good = [f"{package}/py.typed" for package in rules.PACKAGES]
    assert rules.wheel_faults([*good, "ioc_node-0.1.0.dist-info/RECORD"]) == []
    assert rules.wheel_faults([*good, "tests/x.py"]) == ["the wheel contains tests"]
    assert rules.wheel_faults(good[1:]) == ["the wheel lacks ioc_wire"]
